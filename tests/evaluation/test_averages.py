import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from chexnet.auroc import auroc
from chexnet.evaluation.scores import auroc_table


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
    table = auroc_table(predictions, n_bootstrap=50).set_index("class_name")
    y, score = wide(predictions, "y_true"), wide(predictions, "y_score")
    for average in ("macro", "micro"):
        expected = roc_auc_score(y, score, average=average)
        assert table.loc[average, "value"] == pytest.approx(expected, abs=1e-12)
        assert table.loc[average, "low"] < expected < table.loc[average, "high"]


def test_classes_have_delongs_interval_and_with_groups_the_patients(predictions):
    first = predictions[predictions["class_name"] == "Pneumonia"]
    row = auroc_table(predictions, n_bootstrap=50).iloc[0]
    delong = auroc(first["y_true"], first["y_score"])
    assert (row["low"], row["high"], row["method"]) == (delong.low, delong.high, "DeLong")
    row = auroc_table(predictions, groups="patient_id", n_bootstrap=50).iloc[0]
    clustered = auroc(first["y_true"], first["y_score"], groups=first["patient_id"], n_bootstrap=50)
    assert (row["low"], row["high"]) == (clustered.low, clustered.high)
    assert row["method"] == "bootstrap by patient"


def test_the_counts_stand_beside_it(predictions):
    row = auroc_table(predictions, n_bootstrap=5).iloc[0]
    positives = predictions["y_true"][:150].sum()
    assert (row["n"], row["n_positive"]) == (150, positives)
    assert row["prevalence"] == pytest.approx(positives / 150)


def test_one_class_alone_has_no_average(predictions):
    assert auroc_table(predictions[:150], n_bootstrap=5)["class_name"].tolist() == ["Pneumonia"]


def test_a_class_with_one_value_only_is_nan_with_the_reason_never_zero(predictions):
    predictions.loc[predictions["class_name"] == "Edema", "y_true"] = 0
    table = auroc_table(predictions, n_bootstrap=50).set_index("class_name")
    assert np.isnan(table.loc["Edema", "value"])
    assert table.loc["Edema", "reason"] == "all 150 labels are 0"
    assert table.loc["macro", "value"] == table.loc["Pneumonia", "value"]
    assert table.loc["Pneumonia", "reason"] == ""


def test_where_no_class_has_both_values_there_is_no_average(predictions):
    predictions["y_true"] = 0
    table = auroc_table(predictions, n_bootstrap=5).set_index("class_name")
    assert table["value"].isna().all()
    assert table.loc["macro", "reason"] == "no class has both values"
    assert table.loc["micro", "reason"] == "all 300 labels are 0"
