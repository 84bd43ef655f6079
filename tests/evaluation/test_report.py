import pytest

from chexnet.evaluation import (
    evaluate,
    evaluate_maps,
    interval_text,
    outperforms_baselines,
    report_table,
)
from chexnet.evaluation.report import ESTIMATE
from tests.made_up_run import change_scores, write_run


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    run = write_run(
        tmp_path_factory.mktemp("output") / "run", films=240, classes=("Pneumonia", "Edema")
    )
    evaluate(run, n_bootstrap=50)
    evaluate_maps(run, n_bootstrap=50)
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
    row = table[(table["group"] == "test") & (table["metric"] == "AUROC (DeLong)")].iloc[0]
    assert row[ESTIMATE] == interval_text(test["auroc"])
    assert (row["n"], row["n positive"]) == (str(test["n"]), str(test["n_positive"]))
    assert row["note"] == f"prevalence {test['prevalence']:.2f}"
    row = table[table["metric"] == "hit rate (pointing game)"].iloc[0]
    hits = metrics["localization"]["Pneumonia"]["hit_rate"]
    assert row[ESTIMATE] == interval_text(hits)
    assert (row["n"], row["n positive"]) == (str(hits["n"]), "")
    assert {"macro", "micro"} <= set(table["class_name"])


def test_every_row_has_a_number_or_the_reason_why_not(metrics):
    table = report_table(metrics)
    missing = table[ESTIMATE] == "–"
    assert missing.any()  # a rare class in a subgroup
    assert (table.loc[missing, "note"] != "").all()
    assert not table[ESTIMATE].str.contains("nan|None").any()
    assert not table.duplicated(["class_name", "group", "metric"]).any()


def test_the_parts_together_are_the_whole_table(metrics):
    table = report_table(metrics)
    parts = (
        "scores", "operating points", "calibration", "decision curve", "subgroups", "baselines",
        "localization",
    )  # fmt: skip
    rows = [tuple(row) for part in parts for row in report_table(metrics, part=part).to_numpy()]
    assert sorted(rows) == sorted(map(tuple, table.to_numpy()))
    assert set(report_table(metrics, part="baselines")["group"]) == {
        "baseline: view position", "baseline: view + sex + age"
    }  # fmt: skip
    with pytest.raises(ValueError, match="part='base': expected one of 'summary', 'scores', 'oper"):
        report_table(metrics, part="base")


def test_the_summary_has_the_numbers_of_an_abstract_in_few_rows(metrics):
    summary = report_table(metrics, part="summary", class_name="Pneumonia")
    assert 8 <= len(summary) <= 14
    said = set(zip(summary["group"], summary["metric"], strict=True))
    assert ("test", "AUROC (bootstrap by patient)") in said
    assert ("operating point: Youden index", "sensitivity") in said
    assert ("CAM, all positive films", "Δ hit rate vs. best fixed point") in said
    whole = report_table(metrics, class_name="Pneumonia")
    assert whole.merge(summary).shape == summary.shape


def test_every_cell_of_the_table_is_text(metrics):
    cells = report_table(metrics).drop(columns="class_name").to_numpy().ravel()
    assert {type(cell) for cell in cells} == {str}
    assert not {"<NA>", "None", "nan"} & set(cells)


def test_scores_alone_make_a_table_too(metrics):
    alone = report_table({"classes": metrics["classes"]})
    assert not alone["group"].str.startswith("CAM").any()


def test_a_run_without_positives_makes_a_table_of_reasons(tmp_path):
    run = write_run(tmp_path / "run", films=60)
    change_scores(run, predictions=run.read_table("predictions.csv").assign(y_true=0))
    evaluate(run, n_bootstrap=5)
    evaluate_maps(run, n_bootstrap=5)
    table = report_table(run.metrics)
    assert (table[ESTIMATE] == "–").all()
    assert (table["note"] != "").all()


def test_both_intervals_are_told_where_they_differ(metrics):
    table = report_table(metrics)
    table = table[table["class_name"] == "Pneumonia"].set_index("group")
    found = metrics["classes"]["Pneumonia"]
    differing = 0
    for group in found["subgroups"]:
        row = table.loc[f"{group['by']}: {group['group']}"]
        delong, by_patient = interval_text(group["auroc"]), interval_text(group["auroc_by_patient"])
        assert row[ESTIMATE] == delong
        assert (f"by patient {by_patient}" in row["note"]) == (delong != by_patient)
        differing += delong != by_patient
    assert differing
    kinds = table.loc["test", "metric"].tolist()
    assert kinds[:2] == ["AUROC (DeLong)", "AUROC (bootstrap by patient)"]


def test_the_table_holds_the_decision_curve_and_iobb(metrics):
    table = report_table(metrics)
    table = table[table["class_name"] == "Pneumonia"].set_index("metric")
    curve = {row["probability"]: row for row in metrics["classes"]["Pneumonia"]["decision_curve"]}
    row = table.loc["net benefit at threshold probability 30%"]
    point = next(curve[key] for key in curve if round(key, 2) == 0.3)
    assert row[ESTIMATE] == interval_text(point | {"value": point["model"]})
    assert row["note"] == f"treat all: {interval_text({'value': point['treat_all']})}"
    share = metrics["localization"]["Pneumonia"]["iobb_accuracy"]["0.5"]
    rows = table.loc["share of films with IoBB > 0.5"]
    assert rows.iloc[0][ESTIMATE] == interval_text(share)


def metrics_of(over_view, over_facts, **views):
    """A class's metrics with these lower ends of intervals."""

    def number(value, low):
        return {"value": value, "low": low, "high": value + 0.1}

    return {
        "baselines": {
            "view": {"model_minus_baseline": number(0.2, over_view)},
            "view_sex_age": {"model_minus_baseline": number(0.1, over_facts)},
        },
        "subgroups": [
            {"by": "view", "group": view, "auroc_by_patient": low and number(0.7, low)}
            for view, low in views.items()
        ],
    }


def test_outperforms_baselines():
    """A model outperforms baselines only where every interval says so."""
    shown, sentence = outperforms_baselines(metrics_of(0.1, 0.05, AP=0.6, PA=0.55))
    assert shown
    assert sentence == (
        "Outperforms non-imaging baselines: ΔAUROC 0.20 (0.10-0.30) vs. view position, "
        "ΔAUROC 0.10 (0.05-0.20) vs. view + sex + age, AUROC 0.70 (0.60-0.80) within AP films, "
        "AUROC 0.70 (0.55-0.80) within PA films."
    )
    for weak in (
        metrics_of(-0.1, 0.05),
        metrics_of(0.1, 0.0, AP=0.6),
        metrics_of(0.1, 0.1, AP=0.6, PA=0.45),
    ):
        shown, sentence = outperforms_baselines(weak)
        assert not shown
        assert sentence.startswith("Not shown to outperform non-imaging baselines: ")


def test_what_speaks_against_a_model_is_all_that_is_said():
    sentence = outperforms_baselines(metrics_of(0.1, 0.1, AP=0.45))[1]
    assert sentence.endswith("baselines: AUROC 0.70 (0.45-0.80) within AP films.")


def test_comparisons_that_could_not_be_had_show_nothing():
    assert outperforms_baselines(metrics_of(0.1, 0.1, PA=None))[0]
    unknown = {"baselines": {"view": {}, "view_sex_age": {}}, "subgroups": []}
    assert outperforms_baselines(unknown) == (
        False,
        "No comparison with non-imaging baselines: too few films.",
    )
