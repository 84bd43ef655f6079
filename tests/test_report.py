import pytest

from chexnet.evaluation import evaluate
from chexnet.localization import localization_report
from chexnet.report import interval_text, report_table
from tests.made_up_run import write_run


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    run = write_run(
        tmp_path_factory.mktemp("output") / "run", films=240, classes=("Pneumonia", "Edema")
    )
    evaluate(run, draws=50)
    localization_report(run, draws=50)
    return run.metrics


def test_numbers_read_as_a_journal_prints_them():
    assert interval_text({"value": 0.8512, "low": 0.8, "high": 0.8999}) == "0.85 (0.80-0.90)"
    assert interval_text({"value": 0.02, "low": -0.034, "high": 0.07}) == "0.02 (-0.03 to 0.07)"
    assert interval_text({"value": -0.001, "low": -0.001, "high": 0}) == "0.00 (0.00-0.00)"
    assert interval_text({"value": 1.5}) == "1.50"
    assert interval_text({"value": 0.5, "low": None, "high": None}) == "0.50"
    assert interval_text({"value": None, "reason": "no films"}) == interval_text(None) == "–"


def test_the_table_says_what_the_metrics_say(metrics):
    table = report_table(metrics)
    test = metrics["classes"]["Pneumonia"]["test"]
    row = table[(table["part"] == "test") & (table["measure"] == "AUROC (DeLong)")].iloc[0]
    assert row["value"] == interval_text(test["auroc"])
    assert (row["films"], row["positives"]) == (test["n"], test["n_positive"])
    assert row["note"] == f"prevalence {test['prevalence']:.2f}"
    row = table[table["measure"] == "hit rate (pointing game)"].iloc[0]
    assert row["value"] == interval_text(metrics["localization"]["hit_rate"])
    assert row["films"] == metrics["localization"]["hit_rate"]["n"]
    assert {"macro", "micro"} <= set(table["class_name"])


def test_every_row_has_a_number_or_the_reason_why_not(metrics):
    table = report_table(metrics)
    missing = table["value"] == "–"
    assert missing.any()  # a rare class in a subgroup
    assert (table.loc[missing, "note"] != "").all()
    assert not table["value"].str.contains("nan|None").any()
    assert not table.duplicated(["class_name", "part", "measure"]).any()


def test_scores_alone_make_a_table_too(metrics):
    alone = report_table({"classes": metrics["classes"]})
    assert not alone["part"].str.startswith("maps").any()


def test_a_run_without_positives_makes_a_table_of_reasons(tmp_path):
    run = write_run(tmp_path / "run", films=60)
    columns = ["image_id", "split", "class_name", "y_true", "y_score"]
    run.write_table("predictions.csv", run.predictions.assign(y_true=0)[columns])
    evaluate(run, draws=5)
    localization_report(run, draws=5)
    table = report_table(run.metrics)
    assert (table["value"] == "–").all()
    assert (table["note"] != "").all()
