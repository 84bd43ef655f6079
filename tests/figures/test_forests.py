import copy

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from chexnet.evaluation import evaluate, evaluate_maps
from chexnet.figures import BLUE, RED
from chexnet.figures import curves as forests
from chexnet.runs import Run
from tests.made_up_run import change_scores, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    run = write_run(tmp_path_factory.mktemp("runs") / "made-up", signal=0.8)
    evaluate(run, n_bootstrap=50)
    evaluate_maps(run, n_bootstrap=50)
    return run


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_rows_of_the_subgroup_forest(tmp_path):
    """The forest has a row for every subgroup and baseline, and a reason for every gap."""
    few = write_run(tmp_path / "few", films=80)
    evaluate(few, n_bootstrap=20)
    metrics = few.metrics["classes"]["Pneumonia"]
    ax = forests.subgroup_figure(few).axes[0]
    assert len(ax.get_yticklabels()) == 1 + len(metrics["subgroups"]) + len(metrics["baselines"])
    missing = [one for one in metrics["subgroups"] if one["auroc"] is None]
    assert missing
    assert sum(text.startswith("– ") and len(text) > 2 for text in texts(ax)) >= len(missing)


def test_a_forest_reads_from_above(run):
    ax = forests.subgroup_figure(run).axes[0]
    assert ax.get_yticklabels()[0].get_text().startswith("all test images")
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_localisation_stands_beside_its_floors(run):
    hits, overlap = forests.localization_figure(run).axes
    assert [label.get_text().split("  ")[0] for label in hits.get_yticklabels()] == [
        "all images with boxes",
        "true positives",
        "baseline: best fixed point",
        "baseline: random point",
    ]
    found = run.metrics["localization"]["Pneumonia"]
    assert any(f"{found['hit_rate']['value']:.3f}" in text for text in texts(hits))
    assert any(
        f"{found['baselines']['fixed_mask']['value']:.3f}" in text for text in texts(overlap)
    )


def test_a_run_whose_maps_were_not_held_against_boxes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.json: localization is missing"):
        forests.localization_figure(write_run(tmp_path / "bare", films=40))


def test_a_localisation_without_numbers_shows_the_reasons(run, tmp_path):
    bare = write_run(tmp_path / "bare", films=40)
    metrics = copy.deepcopy(run.metrics)
    metrics["localization"] = {"Pneumonia": {"reason": "no boxes"}}
    bare.write_metrics(metrics, {"maps.npz": bare.fingerprint("maps.npz")})
    figure = forests.localization_figure(bare)
    for ax in figure.axes:
        assert "– no boxes" in texts(ax)
        assert len(ax.get_yticklabels()) == 1


def test_the_interval_by_patient_lies_pale_below_delongs(run):
    ax = forests.subgroup_figure(run).axes[0]
    found = run.metrics["classes"]["Pneumonia"]["test"]
    delong, by_patient = ax.lines[1:3]  # the first is the line at 0.5
    for line, key in ((delong, "auroc"), (by_patient, "auroc_by_patient")):
        assert list(line.get_xdata()) == [found[key]["low"], found[key]["high"]]
    assert by_patient.get_alpha() == 0.5
    assert by_patient.get_ydata()[0] > delong.get_ydata()[0] == 0


def test_title_of_a_model_of_the_view(run, tmp_path):
    """The title is red and says so where a model has learnt only the view, and black otherwise."""
    view = write_run(tmp_path / "view", films=600)
    films = view.predictions
    noise = np.random.default_rng(0).random(len(films)) / 1000
    films["y_score"] = 0.3 + 0.4 * (films["view"] == "AP") + noise
    columns = ["image_id", "split", "class_name", "y_true", "y_score"]
    view.write_table("predictions.csv", films[columns])
    evaluate(view, n_bootstrap=100)
    title = forests.subgroup_figure(view).axes[0].title
    assert to_hex(title.get_color()) == to_hex(RED)
    assert "Not shown to outperform non-imaging" in title.get_text()
    title = forests.subgroup_figure(run).axes[0].title
    assert title.get_color() == "black"
    assert "Outperforms non-imaging" in title.get_text()


def test_forests_draw_into_the_axes_they_are_given(run):
    figure = Figure()
    one, *two = figure.subplots(1, 3)
    assert forests.subgroup_figure(run, ax=one) is figure
    assert forests.localization_figure(run, axes=two) is figure
    assert all(ax.get_yticklabels() for ax in figure.axes)
    FigureCanvasAgg(figure).draw()


def test_markers_of_model_and_baselines(run):
    """The model and the non-imaging baselines differ in colour and in marker."""
    ax = forests.subgroup_figure(run).axes[0]
    markers = {(line.get_marker(), line.get_color()) for line in ax.lines} - {("None", BLUE)}
    assert {("o", BLUE), ("D", RED)} <= markers


def test_refused_run_and_class(run, tmp_path):
    """A run that is not evaluated and an unknown class are refused."""
    with pytest.raises(ValueError, match=r"class_name='Mass': expected one of \['Pneumonia'\]"):
        forests.subgroup_figure(run, class_name="Mass")
    with pytest.raises(ValueError, match=r"metrics\.json: classes is missing"):
        forests.subgroup_figure(write_run(tmp_path / "bare", films=40))


def test_a_run_without_positives_draws_reasons(tmp_path):
    poor = write_run(tmp_path / "poor", films=60)
    change_scores(poor, predictions=poor.read_table("predictions.csv").assign(y_true=0))
    evaluate(poor, n_bootstrap=20)
    figure = forests.subgroup_figure(poor)
    FigureCanvasAgg(figure).draw()
    assert "– no positive films" in texts(figure.axes[0])
    assert "No comparison with non-imaging" in figure.axes[0].get_title()


def test_outdated_metrics_are_refused(tmp_path):
    """Figures refuse metrics that were made from other scores or other maps."""
    run = write_run(tmp_path / "run", films=60)
    evaluate(run, n_bootstrap=5)
    evaluate_maps(run, n_bootstrap=5)
    ids, maps = run.maps()
    run.write_arrays("maps.npz", image_id=ids, maps=-maps)
    forests.subgroup_figure(run)
    with pytest.raises(ValueError, match="localization was made from other scores or maps; run"):
        forests.localization_figure(run)
    scores = run.read_table("predictions.csv")
    run.write_table("predictions.csv", scores.assign(y_score=scores["y_score"] ** 2))
    with pytest.raises(ValueError, match="classes was made from other scores or maps; run"):
        forests.subgroup_figure(run)
