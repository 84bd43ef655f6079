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
_GUIDED = ("hit_rate", "mean_iou")
_GAPS = {
    "hit_rate_minus_fixed_point": "hit rate less the fixed point's",
    "mean_iou_minus_fixed_mask": "mean IoU less the fixed mask's",
}
_LOCATION_FLOORS = {
    "random_point": "hit rate of a random point",
    "fixed_point": "hit rate of the best fixed point",
    "fixed_mask": "mean IoU of the best fixed mask",
}
_ACTING = (10, 30, 50, 70)  # per cent; the whole curve is in metrics.json and on its figure


def report_table(metrics: dict) -> pd.DataFrame:
    """One row a number, in reading order, each with its interval or the reason why there is none.

    Args:
        metrics: of a run, as `evaluation.evaluate` and `map_report.localization_report` leave
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


def beyond_no_pixels(found: dict) -> tuple[bool, str]:
    """Whether the model is shown to know more than what needs no pixels, in one sentence.

    It is where its AUROC on test lies above that of the view alone and of view, sex and age, and
    above 0.5 among the films of each view, every time with the whole 95 % interval by patient. A
    comparison that cannot be had, for too few films of a view, has no say; one at least is needed.

    Args:
        found: a class's part of ``metrics.json``, from `evaluation.evaluate`.

    Returns:
        whether it is, and the sentence with the numbers, what speaks against it first.
    """
    for_it, against = [], []
    for floor, title in _FLOORS.items():
        gap = found["floors"][floor].get("model_minus_floor") or {}
        if gap.get("low") is not None:
            text = f"{interval_text(gap)} above {title}"
            (for_it if gap["low"] > 0 else against).append(text)
    for group in found["subgroups"]:
        number = group["auroc_by_patient"] or {}
        if group["by"] == "view" and number.get("low") is not None:
            text = f"{interval_text(number)} among {group['group']} films alone"
            (for_it if number["low"] > 0.5 else against).append(text)
    if against:
        return False, f"Not shown to know more than view, sex and age: AUROC {', '.join(against)}."
    if for_it:
        return True, f"Knows more than view, sex and age: AUROC {', '.join(for_it)}."
    return False, "Not known whether it knows more than view, sex and age: too few films."


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
    rows += _decision_rows(found)
    for group in found["subgroups"]:
        rows.append(_auroc_row(f"{group['by']}: {group['group']}", group))
    for floor, title in _FLOORS.items():
        block = found["floors"][floor]
        rows.append(_auroc_row(f"no pixels: {title}", block))
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


def _auroc_row(part: str, block: dict) -> dict:
    """One row for both intervals: DeLong's, and in the note the one by patient if it differs."""
    delong, *others = _auroc_rows(part, block)
    differing = [f"by patient {row['value']}" for row in others if row["value"] != delong["value"]]
    return delong | {"note": "; ".join(filter(None, [delong["note"], *differing]))}


def _decision_rows(found: dict) -> list[dict]:
    curve = found["decision_curve"]
    if "reason" in curve:
        return [_row("decision curve", "net benefit", curve)]
    rows = []
    for point in curve:
        if round(100 * point["probability"]) in _ACTING:
            number = {"value": point["model"], "low": point["low"], "high": point["high"]}
            note = f"acting on every film: {interval_text({'value': point['treat_all']})}"
            measure = f"net benefit, acting at {point['probability']:.0%}"
            rows.append(_row("decision curve", measure, number, note) | _counts(found["test"]))
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
        for measure in ("iou", "iobb"):
            title = {"iou": "IoU", "iobb": "IoBB"}[measure]
            for level, share in block[f"{measure}_accuracy"].items():
                rows.append(_film_row(part, f"share of films with {title} above {level}", share))
        for key, title in _LOCATION_FLOORS.items():
            rows.append(_film_row(part, title, block["floors"][key]))
        for of_map, judged in ((part, block), (f"{part}, guided by the prior", block["guided"])):
            if judged is not block:
                rows += [_film_row(of_map, _OVERLAPS[key], judged[key]) for key in _GUIDED]
            rows += [_film_row(of_map, title, judged[key]) for key, title in _GAPS.items()]
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
