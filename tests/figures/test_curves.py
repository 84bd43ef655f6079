import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from chexnet.evaluation import evaluate, evaluate_maps
from chexnet.figures import curves as charts
from chexnet.runs import Run
from tests.made_up_run import change_scores, write_history, write_run

OF_A_CLASS = [
    charts.roc_figure,
    charts.precision_recall_figure,
    charts.reliability_figure,
    charts.score_histogram,
    charts.decision_figure,
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    run = write_run(tmp_path_factory.mktemp("runs") / "made-up", signal=0.8)
    evaluate(run, n_bootstrap=50)
    evaluate_maps(run, n_bootstrap=50)
    write_history(run)
    return run


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_the_epoch_that_was_kept_is_marked(run):
    figure = charts.history_figure(run)
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "loss (cross-entropy)",
        "validation AUROC",
        "learning rate",
    ]
    marked = figure.axes[1].lines[1]
    assert (marked.get_xdata()[0], marked.get_ydata()[0]) == (3, 0.9)
    assert figure.axes[1].get_title() == "saved: epoch 3, AUROC 0.900"


def test_loss_shown_with_boxes(run, tmp_path):
    """With boxes, the loss shown is that of the scores, as it is on validation."""
    other = write_run(tmp_path / "boxed", films=40)
    other.write_table("history.csv", run.history.assign(predictions_loss=7.0, location_loss=1.0))
    assert (charts.history_figure(other).axes[0].lines[0].get_ydata() == 7).all()


def test_numbers_of_the_roc_legend(run):
    """The ROC legend holds the numbers of metrics.json and does not compute its own."""
    metrics = run.metrics["classes"]["Pneumonia"]
    texts = []
    for part in ("auroc", "auroc_by_patient"):
        value, low, high = (metrics["test"][part][key] for key in ("value", "low", "high"))
        texts.append(f"{value:.3f} ({low:.3f} to {high:.3f})")
    delong, by_patient = texts
    assert delong != by_patient
    label = f"test: AUROC {delong}\npatient bootstrap: {by_patient}"
    assert label in legend(charts.roc_figure(run))


def test_two_intervals_that_read_the_same_are_shown_once(tmp_path):
    sure = write_run(tmp_path / "sure", films=80, signal=50)
    evaluate(sure, n_bootstrap=20)
    label = legend(charts.roc_figure(sure))[1]
    assert label == "test: AUROC 1.000 (1.000 to 1.000)"


def test_the_operating_point_lies_on_the_curve_of_test(run):
    ax = charts.roc_figure(run).axes[0]
    val, test, point, _ = ax.lines
    assert val.get_linestyle() == "--"
    assert test.get_linestyle() == "-"
    x, y = point.get_xdata()[0], point.get_ydata()[0]
    height = np.interp(x, test.get_xdata(), test.get_ydata())
    before = np.interp(x - 1e-9, test.get_xdata(), test.get_ydata())
    assert min(before, height) - 1e-6 <= y <= max(before, height) + 1e-6


def test_prevalence_line(run):
    """The prevalence line stands at the share of positive test films."""
    ax = charts.precision_recall_figure(run).axes[0]
    films = run.predictions.query("split == 'test'")
    assert ax.lines[1].get_ydata()[0] == pytest.approx(films["y_true"].mean())


def test_the_area_under_the_drawn_steps_is_the_average_precision(run):
    figure = charts.precision_recall_figure(run)
    line = figure.axes[0].lines[0]
    area = -(np.diff(line.get_xdata()) * line.get_ydata()[:-1]).sum()
    assert line.get_drawstyle() == "steps-post"
    found = run.metrics["classes"]["Pneumonia"]["average_precision"]["value"]
    assert area == pytest.approx(found)


def test_reliability_is_shown_before_and_after_scaling(run):
    labels = legend(charts.reliability_figure(run))
    calibration = run.metrics["classes"]["Pneumonia"]["calibration"]
    assert [label.split(" ECE ")[0] for label in labels] == [
        "uncalibrated:",
        f"temperature {calibration['temperature']:.2f}:",
    ]


def test_net_benefits_of_the_decision_curve(run):
    """The decision curve shows the net benefits of metrics.json, with the interval as a band."""
    ax = charts.decision_figure(run).axes[0]
    curve = run.metrics["classes"]["Pneumonia"]["decision_curve"]
    none, everybody, model = ax.lines
    assert set(none.get_ydata()) == {0}
    assert list(everybody.get_ydata()) == [row["treat_all"] for row in curve]
    assert list(model.get_ydata()) == [row["model"] for row in curve]
    assert list(model.get_xdata()) == [row["probability"] for row in curve]
    band = ax.collections[0].get_paths()[0].get_extents()
    assert band.y0 == pytest.approx(min(row["low"] for row in curve))
    assert band.y1 == pytest.approx(max(row["high"] for row in curve))
    low, high = ax.get_ylim()
    assert low < 0 < band.y1 < high


def test_the_histogram_counts_every_test_film_once(run):
    ax = charts.score_histogram(run).axes[0]
    counted = sum(bar.get_height() for bars in ax.containers for bar in bars)
    assert counted == (run.predictions["split"] == "test").sum()


@pytest.mark.parametrize("chart", OF_A_CLASS, ids=lambda chart: chart.__name__)
class TestEveryChart:
    def test_draws_into_the_axes_it_is_given_or_makes_a_figure(self, chart, run):
        figure = Figure()
        ax = figure.subplots()
        assert chart(run, ax=ax) is figure
        FigureCanvasAgg(chart(run)).draw()

    def test_refused_class_and_run(self, chart, run, tmp_path):
        """Each chart refuses an unknown class and a run that is not evaluated."""
        with pytest.raises(ValueError, match=r"class_name='Mass': expected one of \['Pneumonia'\]"):
            chart(run, class_name="Mass")
        with pytest.raises(ValueError, match=r"metrics\.json: classes is missing"):
            chart(write_run(tmp_path / "bare", films=40))

    def test_draws_a_run_in_which_little_could_be_computed(self, chart, run, tmp_path):
        poor = write_run(tmp_path / "poor", films=60)
        predictions = poor.read_table("predictions.csv")
        change_scores(poor, predictions=predictions.assign(y_true=0))
        evaluate(poor, n_bootstrap=20)
        figure = chart(poor)
        FigureCanvasAgg(figure).draw()
        labels = " ".join(figure.axes[0].get_legend_handles_labels()[1])
        for claim in ("AUROC", "average precision", "ECE", "model", "threshold"):
            assert claim not in labels


def test_pyplot_is_never_touched_so_no_figure_stays_open():
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_films_whose_label_is_missing_are_not_drawn(tmp_path):
    run = write_run(tmp_path / "run", films=200, signal=0.8)
    films = run.read_table("predictions.csv")
    change_scores(run, predictions=films.assign(y_true=films["y_true"].mask(films.index % 3 == 0)))
    evaluate(run, n_bootstrap=20)
    for chart in OF_A_CLASS:
        chart(run)
    counted = sum(
        int(text.split("n = ")[1][:-1]) for text in legend(charts.score_histogram(run))[:2]
    )
    assert counted == run.metrics["classes"]["Pneumonia"]["test"]["n"] < len(films) / 2
