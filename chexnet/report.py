"""What ``metrics.json`` says, as one table that a person reads."""

import pandas as pd

MISSING = "–"
_FLOORS = {"view": "view alone", "view_sex_age": "view, sex and age"}
_RULES = {
    "youden": "threshold by Youden's rule",
    "sensitivity_0.9": "threshold for sensitivity 0.9",
    "specificity_0.9": "threshold for specificity 0.9",
}
_OVERLAPS = {
    "hit_rate": "hit rate (pointing game)",
    "mean_iou": "mean IoU",
    "mean_iou_logit": "mean IoU, maps cut in logits",
    "iobb": "mean IoBB",
    "energy_in_boxes": "energy in the boxes",
}
_LOCATION_FLOORS = {
    "random_point": "hit rate of a random point",
    "fixed_point": "hit rate of the best fixed point",
    "fixed_mask": "mean IoU of the best fixed mask",
}


def report_table(metrics: dict) -> pd.DataFrame:
    """One row a number, in reading order, each with its interval or the reason why there is none.

    Args:
        metrics: of a run, as `evaluation.evaluate` and `localization.localization_report` leave
            it in ``metrics.json``.

    Returns:
        text columns ``class_name, part, measure, value`` (``0.85 (0.80-0.90)``, or ``–``) and
        ``note``, and ``films`` and ``positives``, the numbers it rests on, where they are known.
    """
    rows = []
    for name, found in metrics["classes"].items():
        rows += [{"class_name": name} | row for row in _class_rows(found)]
    for name, found in metrics.get("overall", {}).items():
        row = _row("all classes", f"AUROC, {name} average", found, found["method"])
        rows.append({"class_name": name} | row)
    if "localization" in metrics:
        found = metrics["localization"]
        rows += [{"class_name": found["class_name"]} | row for row in _location_rows(found)]
    table = pd.DataFrame(rows)
    return table.astype({"films": "Int64", "positives": "Int64"})


def interval_text(number: dict | None) -> str:
    """``0.85 (0.80-0.90)``, ``0.02 (-0.03 to 0.07)``, or ``–`` where there is no number."""
    if number is None or number.get("value") is None:
        return MISSING
    value, low, high = (
        None if end is None else f"{round(end, 2) + 0.0:.2f}"  # + 0.0: no "-0.00"
        for end in (number["value"], number.get("low"), number.get("high"))
    )
    if low is None or high is None:
        return value
    return f"{value} ({low}{' to ' if low.startswith('-') else '-'}{high})"


def _class_rows(found: dict) -> list[dict]:
    rows = []
    for split, title in (("val", "validation"), ("test", "test")):
        rows += _auroc_rows(title, found[split])
    precision = found["average_precision"]
    note = f"chance: {precision['prevalence']:.2f}" if "prevalence" in precision else ""
    rows.append(_row("test", "average precision", precision, note) | _counts(found["test"]))
    points = found["operating_points"]
    if "reason" in points:
        rows.append(_row("operating points", "sensitivity", points))
        points = {}
    for rule, point in points.items():
        if point["threshold"] is None:
            rows.append(_row(_RULES[rule], "sensitivity", point))
            continue
        for rate in ("sensitivity", "specificity", "ppv", "npv"):
            title = rate.upper() if len(rate) == 3 else rate
            row = _row(
                _RULES[rule], title, point[rate], f"score of {point['threshold']:.3f} or more"
            )
            rows.append(row | {"films": point[rate]["n"]})
    calibration = found["calibration"]
    if "reason" in calibration:
        rows.append(_row("calibration", "temperature", calibration))
    else:
        temperature = {"value": calibration["temperature"]}
        rows.append(_row("calibration", "temperature", temperature, "fitted on validation"))
        for when in ("before", "after"):
            part = f"calibration, {when} scaling"
            errors = calibration[when]
            rows.append(_row(part, "Brier score", errors["brier"]) | _counts(found["test"]))
            chance = f"a calibrated model: up to {errors['ece']['if_calibrated']['high']:.2f}"
            rows.append(_row(part, "ECE", errors["ece"], chance) | _counts(found["test"]))
    for group in found["subgroups"]:
        rows += _auroc_rows(f"{group['by']}: {group['group']}", group)[:1]
    for floor, title in _FLOORS.items():
        block = found["floors"][floor]
        rows += _auroc_rows(f"no pixels: {title}", block)[:1]
        if "model_minus_floor" in block:
            gap = block["model_minus_floor"]
            p = (
                ""
                if gap["p"] is None
                else "p < 0.001"
                if gap["p"] < 0.001
                else f"p = {gap['p']:.3f}"
            )
            measure = "AUROC of the model less this"
            rows.append(_row(f"no pixels: {title}", measure, gap, p) | _counts(block))
    return rows


def _auroc_rows(part: str, block: dict) -> list[dict]:
    kinds = {"auroc": "AUROC (DeLong)", "auroc_by_patient": "AUROC (bootstrap by patient)"}
    rows = []
    for key, title in kinds.items():
        if block["auroc"] is None and key != "auroc":
            continue  # the reason once is enough
        number = block[key] or {"reason": block.get("reason", "")}
        note = (
            f"prevalence {block['prevalence']:.2f}" if block.get("prevalence") is not None else ""
        )
        note = "; ".join(filter(None, [note, block.get("note")]))
        rows.append(_row(part, title, number, note) | _counts(block))
    return rows


def _location_rows(found: dict) -> list[dict]:
    rows = []
    for part, block in (
        ("maps, all positive films", found),
        ("maps, true positives", found.get("true_positives")),
    ):
        if block is None:
            continue
        rows += [_film_row(part, title, block[key]) for key, title in _OVERLAPS.items()]
        for level, share in block["iou_accuracy"].items():
            rows.append(_film_row(part, f"share of films with IoU above {level}", share))
        for key, title in _LOCATION_FLOORS.items():
            rows.append(_film_row(part, title, block["floors"][key]))
        rows.append(
            _film_row(part, "hit rate less the fixed point's", block["hit_rate_minus_fixed_point"])
        )
        rows.append(
            _film_row(part, "mean IoU less the fixed mask's", block["mean_iou_minus_fixed_mask"])
        )
    if "challenge_map" in found:
        rows.append(_film_row("maps, all films", "mAP of the challenge", found["challenge_map"]))
    return rows


def _film_row(part: str, measure: str, number: dict) -> dict:
    return _row(part, measure, number) | {"films": number["n"]}


def _counts(block: dict) -> dict:
    return {"films": block.get("n"), "positives": block.get("n_positive")}


def _row(part: str, measure: str, number: dict, note: str = "") -> dict:
    text = interval_text(number)
    return {
        "part": part,
        "measure": measure,
        "films": None,
        "positives": None,
        "value": text,
        "note": number.get("reason", "") if text == MISSING else note,
    }
