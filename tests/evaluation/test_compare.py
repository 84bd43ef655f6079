import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from chexnet.auroc import compare_auroc
from chexnet.cli import main
from chexnet.evaluation import compare_runs, localization_scores
from chexnet.figures import compare_figure
from tests.made_up_run import change_scores, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same films; the scores of the second are noisier, its maps are zero."""
    folder = tmp_path_factory.mktemp("runs")
    a, b = (write_run(folder / name, films=200, signal=0.6) for name in "ab")
    table = b.read_table("predictions.csv")
    noise = np.random.default_rng(5).random(len(table))
    change_scores(b, predictions=table.assign(y_score=0.5 * table["y_score"] + 0.5 * noise))
    change_scores(b, maps=-b.maps()[1])
    return a, b


def test_each_measure_is_that_of_its_run_on_the_test_films(runs):
    table = compare_runs(*runs, n_bootstrap=50).set_index("measure")
    films, other = (run.scored_films()[1] for run in runs)
    for column, scored in (("a", films), ("b", other)):
        expected = roc_auc_score(scored["y_true"], scored["y_score"])
        assert table.loc["AUROC (DeLong)", column].startswith(f"{expected:.2f} (")
    gap = compare_auroc(films["y_true"], films["y_score"], other["y_score"])
    assert table.loc["AUROC (DeLong)", "a - b"].startswith(f"{gap.difference:.2f} (")
    assert table.loc["AUROC (DeLong)", "p"] == f"{gap.p:.2g}"
    a = runs[0]
    positive = films[films["y_true"] == 1]["image_id"]
    boxes = a.boxes[a.boxes["image_id"].isin(positive)]
    maps = a.maps_of(positive, "test")[:, 0]
    hits = localization_scores(maps, positive, boxes, a.images, threshold=0.5)["hit"]
    assert table.loc["hit rate (pointing game)", "a"].startswith(f"{hits.mean():.2f} (")
    assert table.loc["hit rate (pointing game)", "n"] == len(hits)
    assert float(table.loc["Brier score, calibrated", "a - b"].split()[0]) < 0


def test_runs_on_other_films_or_labels_are_refused(runs, tmp_path):
    a = runs[0]
    images = a.images
    other = write_run(tmp_path / "other", films=200, signal=0.6)
    table = other.read_table("predictions.csv")
    other.write_table("images.csv", other.images.assign(image_id="x" + other.images["image_id"]))
    other.write_table("predictions.csv", table.assign(image_id="x" + table["image_id"]))
    images["image_id"] = "x" + images["image_id"]
    other.write_table("images.csv", images)
    with pytest.raises(ValueError, match="no test film in common"):
        compare_runs(a, other)
    flipped = write_run(tmp_path / "flipped", films=200, signal=0.6)
    table = flipped.read_table("predictions.csv")
    change_scores(flipped, predictions=table.assign(y_true=1 - table["y_true"]))
    with pytest.raises(ValueError, match="test films with different labels of Pneumonia"):
        compare_runs(a, flipped)


def test_without_boxes_on_validation_there_is_no_iou(tmp_path):
    """No map threshold can be chosen then; the pointing game needs none."""
    run = write_run(tmp_path / "few", films=200)
    val = run.images.query("split == 'val'")["image_id"]
    run.write_table("boxes.csv", run.boxes[~run.boxes["image_id"].isin(val)])
    table = compare_runs(run, run, n_bootstrap=2).set_index("measure")
    assert table.loc["hit rate (pointing game)", "n"] > 0
    assert table.loc["mean IoU", ["n", "a"]].tolist() == [0, "–"]


def test_without_both_labels_on_validation_nothing_is_calibrated(tmp_path):
    run = write_run(tmp_path / "one", films=200)
    scores = run.read_table("predictions.csv")
    change_scores(run, predictions=scores[(scores["split"] == "test") | (scores["y_true"] == 0)])
    table = compare_runs(run, run, n_bootstrap=2).set_index("measure")
    assert table.loc["Brier score, calibrated", ["n", "a"]].tolist() == [0, "–"]
    assert table.loc["AUROC (DeLong)", "n"] > 0


def test_the_command_prints_the_table_and_writes_the_curves(runs, tmp_path, capsys):
    folders = [str(run.folder) for run in runs]
    assert main(["compare", *folders, "--figure", str(tmp_path / "roc.png")]) == 0
    assert "AUROC (DeLong)" in capsys.readouterr().out
    assert (tmp_path / "roc.png").stat().st_size > 10_000
    legend = compare_figure(*runs).axes[0].get_legend().get_texts()
    assert [text.get_text()[:8] for text in legend] == ["a: AUROC", "b: AUROC"]
