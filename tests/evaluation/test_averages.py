import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from chexnet.evaluation.scores import average_auroc


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    parts = []
    for number, name in enumerate(["Pneumonia", "Edema"]):
        y = (rng.random(150) < 0.3 + 0.2 * number).astype(int)
        part = pd.DataFrame({"y_true": y, "y_score": rng.normal(size=150) + y * (1 + number)})
        part["image_id"] = [f"{film:03d}" for film in range(150)]
        part["patient_id"] = [f"{film // 3:03d}" for film in range(150)]
        parts.append(part.assign(class_name=name))
    return pd.concat(parts, ignore_index=True)


def wide(predictions, column):
    return predictions.pivot_table(index="image_id", columns="class_name", values=column)


def test_macro_and_micro_are_those_of_scikit_learn(predictions):
    found = average_auroc(predictions, n_bootstrap=50)
    y, score = wide(predictions, "y_true"), wide(predictions, "y_score")
    for average in ("macro", "micro"):
        expected = roc_auc_score(y, score, average=average)
        assert found[average]["value"] == pytest.approx(expected, abs=1e-12)
        assert found[average]["low"] < expected < found[average]["high"]
        assert found[average]["method"] == "bootstrap by patient"
        assert found[average]["prevalence"] == pytest.approx(predictions["y_true"].mean())


def test_macro_average_without_a_class(predictions):
    """A class with one label only has no part in the macro average."""
    predictions.loc[predictions["class_name"] == "Edema", "y_true"] = 0
    found = average_auroc(predictions, n_bootstrap=50)
    first = predictions[predictions["class_name"] == "Pneumonia"]
    assert found["macro"]["value"] == roc_auc_score(first["y_true"], first["y_score"])
    assert found["micro"]["value"] != found["macro"]["value"]


def test_where_no_class_has_both_labels_there_is_no_average(predictions):
    predictions["y_true"] = 0
    found = average_auroc(predictions, n_bootstrap=5)
    for average in ("macro", "micro"):
        assert found[average]["value"] is None
        assert found[average]["reason"] == "no films of both labels"
