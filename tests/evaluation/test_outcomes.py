import numpy as np
import pandas as pd
import pytest

from chexnet.evaluation import chosen_threshold, outcome_table, outcomes_at
from chexnet.runs import Run

# Four films each of validation and test: labels and scores of two classes.
FILMS = {
    "Pneumonia": ([0, 1, 0, 1, 0, 1, 0, 1], [0.1, 0.4, 0.6, 0.9, 0.2, 0.55, 0.7, 0.95]),
    "Mass": ([1, 0, 0, 1, 1, 1, 0, 0], [0.8, 0.3, 0.2, 0.5, 0.5, 0.4, 0.6, 0.1]),
}


def test_outcomes_by_hand():
    """Each outcome by hand; a score at the threshold is positive."""
    y_true, y_score = pd.Series([1, 1, 0, 0, 1]), pd.Series([0.9, 0.1, 0.2, 0.8, 0.5])
    assert outcomes_at(y_true, y_score, 0.5).tolist() == ["TP", "FN", "TN", "FP", "TP"]


@pytest.fixture
def run(tmp_path):
    images = pd.DataFrame({"image_id": list("abcdefgh"), "split": ["val"] * 4 + ["test"] * 4})
    parts = []
    for name, (labels, scores) in FILMS.items():
        part = images[["image_id", "split"]].assign(class_name=name, y_true=labels, y_score=scores)
        images[name] = labels
        parts.append(part)
    boxes = pd.DataFrame(columns=["image_id", "x", "y", "width", "height"])
    settings = {"class_names": list(FILMS)}
    run = Run.create(tmp_path / "run", settings=settings, images=images, boxes=boxes)
    maps = {"CAM": np.zeros((8, 2, 1, 1), np.float32)}
    run.write_scores(pd.concat(parts), images["image_id"], maps, bias=np.zeros(2, np.float32))
    return run


@pytest.mark.parametrize(
    ("class_name", "rule", "threshold", "outcomes"),
    [
        # Validation, positives .4 .9, negatives .1 .6: Youden's J is 1/2 at .9 and at .4.
        (None, "youden", 0.9, ["TN", "FN", "TN", "TP"]),
        ("Pneumonia", "sensitivity_0.9", 0.4, ["TN", "TP", "FP", "TP"]),
        ("Pneumonia", "specificity_0.9", 0.9, ["TN", "FN", "TN", "TP"]),
        # Positives .5 .8, negatives .2 .3: at .5 without an error.
        ("Mass", "youden", 0.5, ["TP", "FN", "FP", "TN"]),
        ("Mass", "specificity_0.9", 0.5, ["TP", "FN", "FP", "TN"]),
    ],
)
def test_outcome_table(run, class_name, rule, threshold, outcomes):
    """The threshold is chosen on validation, of this class and by this rule; the films are test."""
    assert chosen_threshold(run, rule, class_name=class_name)[0] == threshold
    films, words = outcome_table(run, class_name=class_name, threshold=rule)
    assert films["image_id"].tolist() == list("efgh")
    assert films["outcome"].tolist() == outcomes
    assert words.startswith(f"Decision threshold {threshold:.3g} (")
    assert words.endswith("on 4 validation images).")


def test_given_threshold(run):
    """A number is used as it is; another word is an error."""
    films, words = outcome_table(run, threshold=0.55)
    assert films["outcome"].tolist() == ["TN", "TP", "FP", "TP"]
    assert words == "Decision threshold 0.55 (given)."
    with pytest.raises(ValueError, match="threshold='luck': expected a number or one of"):
        chosen_threshold(run, "luck")
