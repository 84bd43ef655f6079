"""The numbers of ``metrics.json`` as one table to read."""

from collections.abc import Iterator

import pandas as pd

from chexnet.evaluation.baselines import BASELINES, LOCATION_BASELINES
from chexnet.evaluation.operating_points import RULES
from chexnet.files import refuse

MISSING = "–"
ESTIMATE = "estimate (95 % CI)"
_OVERLAPS = {
    "hit_rate": "hit rate (pointing game)",
    "mean_iou": "mean IoU",
    "mean_iou_logit": "mean IoU (absolute threshold, logits)",
    "iobb": "mean IoBB",
    "energy_in_boxes": "energy inside boxes",
}
_DIFFERENCES = {
    "hit_rate_minus_fixed_point": "Δ hit rate vs. best fixed point",
    "mean_iou_minus_fixed_mask": "Δ mean IoU vs. best fixed mask",
}
_AUROC, _AUROC_BY_PATIENT = "AUROC (DeLong)", "AUROC (bootstrap by patient)"
_DIFFERENCE = "ΔAUROC (model − baseline)"
# The groups of a part begin with these words.
_PARTS: dict[str, tuple[str, ...]] = {
    "scores": ("validation", "test", "all classes"),
    "operating points": ("operating point",),
    "calibration": ("calibration",),
    "decision curve": ("decision curve",),
    "subgroups": ("view:", "sex:", "age:", "negatives:"),
    "baselines": ("baseline",),
    "localization": ("CAM",),
}
_YOUDEN, _ALL_POSITIVE = f"operating point: {RULES['youden']}", "CAM, all positive films"
_SUMMARY = {
    ("test", _AUROC), ("test", _AUROC_BY_PATIENT), ("test", "average precision"),
    *((f"baseline: {baseline.title}", _DIFFERENCE) for baseline in BASELINES.values()),
    (_YOUDEN, "sensitivity"), (_YOUDEN, "specificity"), ("calibration, after scaling", "ECE"),
    (_ALL_POSITIVE, _OVERLAPS["hit_rate"]), (_ALL_POSITIVE, _OVERLAPS["mean_iou"]),
    *((_ALL_POSITIVE, title) for title in _DIFFERENCES.values()),
    ("all classes", "AUROC, macro average"), ("all classes", "AUROC, micro average"),
}  # fmt: skip
_PROBABILITIES = (10, 30, 50, 70)  # per cent; the whole decision curve is in metrics.json


def report_table(
    metrics: dict, *, class_name: str | None = None, part: str | None = None
) -> pd.DataFrame:
    """All metrics of a run, one a row, in reading order.

    Args:
        metrics: content of ``metrics.json``, from `evaluate` and `evaluate_maps`.
        class_name: only rows of this class; ``None`` is all, and their averages.
        part: only these rows: ``"summary"`` (what an abstract would quote), ``"scores"``,
            ``"operating points"``, ``"calibration"``, ``"decision curve"``, ``"subgroups"``,
            ``"baselines"`` or ``"localization"``; ``None`` is all.

    Returns:
        columns ``class_name, group, metric, n, n positive, estimate (95 % CI), note``, all text.
        Where the estimate is ``–``, the note gives the reason. ``n`` and ``n positive`` are the
        films behind it, empty where they do not apply.

    Raises:
        ValueError: ``part`` has another value, or the class is unknown.

    Example:
        >>> from chexnet.evaluation import evaluate, report_table
        >>> from chexnet.runs import Run
        >>> metrics = evaluate(Run("output/demo"), n_bootstrap=20)
        >>> report_table(metrics, part="scores")["metric"][0]
        'AUROC (DeLong)'
    """
    if part is not None and part != "summary" and part not in _PARTS:
        expected = ", ".join(map(repr, ("summary", *_PARTS)))
        raise ValueError(f"part={part!r}: expected one of {expected}")
    rows = []
    for name, found in metrics.get("classes", {}).items():
        rows += [{"class_name": name} | row for row in _class_rows(found)]
    for name, found in metrics.get("overall", {}).items():
        row = _row("all classes", f"AUROC, {name} average", found, found["method"])
        rows.append({"class_name": name} | row)
    for name, found in metrics.get("localization", {}).items():
        rows += [{"class_name": name} | row for row in _location_rows(found)]
    columns = ["class_name", "group", "metric", "n", "n positive", ESTIMATE, "note"]
    table = pd.DataFrame(rows, columns=columns)
    if class_name is not None:
        names = table["class_name"].unique()
        refuse("metrics", {class_name} - {*names}, "unknown classes", ", ".join(names))
        table = table[table["class_name"] == class_name]
    if part == "summary":
        pairs = zip(table["group"], table["metric"], strict=True)
        table = table[[pair in _SUMMARY for pair in pairs]]
    elif part is not None:
        table = table[table["group"].str.startswith(_PARTS[part])]
    return table.reset_index(drop=True)


def interval_text(number: dict | None) -> str:
    """``0.85 (0.80-0.90)``, ``0.02 (-0.03 to 0.07)``, or ``–`` where there is no number.

    Example:
        >>> from chexnet.evaluation import interval_text
        >>> interval_text({"value": 0.851, "low": 0.8, "high": 0.9})
        '0.85 (0.80-0.90)'
    """
    if number is None or number.get("value") is None:
        return MISSING
    value, low, high = (
        None if end is None else f"{round(end, 2) + 0.0:.2f}"  # + 0.0: no "-0.00"
        for end in (number["value"], number.get("low"), number.get("high"))
    )
    if low is None or high is None:
        return str(value)
    return f"{value} ({low}{' to ' if low.startswith('-') else '-'}{high})"


def outperforms_baselines(found: dict) -> tuple[bool, str]:
    """Whether the model is better than all non-imaging baselines, and a sentence that says so.

    It is better where the whole 95 % interval by patient of its AUROC difference to each baseline
    is above 0, and that of its AUROC within each view above 0.5. Comparisons that are not available
    (too few films of a view) are left out; at least one is needed.

    Args:
        found: a class's part of ``metrics.json``, from `evaluate`.

    Returns:
        the answer, and the sentence: with the comparisons that fail, or with all of them.

    Example:
        >>> from chexnet.evaluation import evaluate, outperforms_baselines
        >>> from chexnet.runs import Run
        >>> metrics = evaluate(Run("output/demo"), n_bootstrap=20)
        >>> outperforms_baselines(metrics["classes"]["Pneumonia"])[0]
        True
    """
    comparisons = []
    for key, baseline in BASELINES.items():
        gap = found["baselines"][key].get("model_minus_baseline") or {}
        if gap.get("low") is not None:
            text = f"ΔAUROC {interval_text(gap)} vs. {baseline.title}"
            comparisons.append((gap["low"] > 0, text))
    for group in found["subgroups"]:
        number = group["auroc_by_patient"] or {}
        if group["by"] == "view" and number.get("low") is not None:
            text = f"AUROC {interval_text(number)} within {group['group']} films"
            comparisons.append((number["low"] > 0.5, text))
    failed = [text for passed, text in comparisons if not passed]
    if failed:
        return False, f"Not shown to outperform non-imaging baselines: {', '.join(failed)}."
    if comparisons:
        texts = ", ".join(text for _, text in comparisons)
        return True, f"Outperforms non-imaging baselines: {texts}."
    return False, "No comparison with non-imaging baselines: too few films."


def _class_rows(found: dict) -> Iterator[dict]:
    test, precision = found["test"], found["average_precision"]
    yield from _auroc_rows("validation", found["val"])
    yield from _auroc_rows("test", test)
    note = f"chance: {precision['prevalence']:.2f}" if "prevalence" in precision else ""
    yield _row("test", "average precision", precision, note, test)
    yield from _operating_rows(found["operating_points"])
    yield from _calibration_rows(found["calibration"], test)
    yield from _decision_rows(found["decision_curve"], test)
    for group in found["subgroups"]:
        yield _auroc_row(f"{group['by']}: {group['group']}", group)
    for key, baseline in BASELINES.items():
        block, title = found["baselines"][key], f"baseline: {baseline.title}"
        yield _auroc_row(title, block)
        if "model_minus_baseline" in block:
            gap = block["model_minus_baseline"]
            p = gap["p"]
            note = "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
            yield _row(title, _DIFFERENCE, gap, note, block)


def _auroc_rows(group: str, block: dict) -> Iterator[dict]:
    if block["auroc"] is None:
        yield _row(group, _AUROC, {"reason": block["reason"]}, "", block)
        return
    prevalence = block.get("prevalence")
    notes = ["" if prevalence is None else f"prevalence {prevalence:.2f}", block.get("note")]
    note = "; ".join(filter(None, notes))
    yield _row(group, _AUROC, block["auroc"], note, block)
    yield _row(group, _AUROC_BY_PATIENT, block["auroc_by_patient"], note, block)


def _auroc_row(group: str, block: dict) -> dict:
    """One row for both intervals: DeLong's, and in the note the one by patient if it differs."""
    delong, *others = _auroc_rows(group, block)
    other = [f"by patient {row[ESTIMATE]}" for row in others if row[ESTIMATE] != delong[ESTIMATE]]
    return delong | {"note": "; ".join(filter(None, [delong["note"], *other]))}


def _operating_rows(points: dict) -> Iterator[dict]:
    if "reason" in points:
        yield _row("operating point", "sensitivity", points)
        return
    for rule, point in points.items():
        group = f"operating point: {RULES[rule]}"
        if point["threshold"] is None:
            yield _row(group, "sensitivity", point)
            continue
        note = f"threshold {point['threshold']:.3f}"
        for metric in ("sensitivity", "specificity", "PPV", "NPV"):
            yield _row(group, metric, point[metric.lower()], note)


def _calibration_rows(calibration: dict, test: dict) -> Iterator[dict]:
    if "reason" in calibration:
        yield _row("calibration", "temperature", calibration)
        return
    temperature = {"value": calibration["temperature"]}
    yield _row("calibration", "temperature", temperature, "fitted on validation")
    for when in ("before", "after"):
        group, errors = f"calibration, {when} scaling", calibration[when]
        limit = f"if perfectly calibrated: up to {errors['ece']['if_calibrated']['high']:.2f}"
        yield _row(group, "Brier score", errors["brier"], "", test)
        yield _row(group, "ECE", errors["ece"], limit, test)


def _decision_rows(curve: list[dict] | dict, test: dict) -> Iterator[dict]:
    if isinstance(curve, dict):
        yield _row("decision curve", "net benefit", curve)
        return
    for point in curve:
        if round(100 * point["probability"]) in _PROBABILITIES:
            metric = f"net benefit at threshold probability {point['probability']:.0%}"
            note = f"treat all: {interval_text({'value': point['treat_all']})}"
            yield _row("decision curve", metric, point | {"value": point["model"]}, note, test)


def _location_rows(found: dict) -> Iterator[dict]:
    if "reason" in found:
        yield _row(_ALL_POSITIVE, _OVERLAPS["hit_rate"], found)
        return
    blocks = {_ALL_POSITIVE: found}
    if "true_positives" in found:
        blocks["CAM, true positives"] = found["true_positives"]
    for group, block in blocks.items():
        for key, title in _OVERLAPS.items():
            yield _row(group, title, block[key])
        for key, title in (("iou_accuracy", "IoU"), ("iobb_accuracy", "IoBB")):
            for level, share in block[key].items():
                yield _row(group, f"share of films with {title} > {level}", share)
        for key, title in LOCATION_BASELINES.items():
            metric = "mean IoU" if key == "fixed_mask" else "hit rate"
            yield _row(group, f"{metric}, baseline: {title}", block["baselines"][key])
        for key, title in _DIFFERENCES.items():
            yield _row(group, title, block[key])
        for key, number in block["guided"].items():
            title = (_OVERLAPS | _DIFFERENCES)[key]
            yield _row(group.replace("CAM", "CAM × spatial prior"), title, number)
    if "challenge_map" in found:
        yield _row("CAM, all films", "mAP of the RSNA challenge", found["challenge_map"])


def _row(group: str, metric: str, number: dict, note: str = "", counts: dict | None = None) -> dict:
    """A row of the table; the films are counted in ``counts``, or in ``number`` itself."""
    counts = number if counts is None else counts
    text = interval_text(number)
    return {
        "group": group,
        "metric": metric,
        "n": str(counts.get("n", "")),
        "n positive": str(counts.get("n_positive", "")),
        ESTIMATE: text,
        "note": number.get("reason", "") if text == MISSING else note,
    }
