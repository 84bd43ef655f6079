"""Prints the main results of an evaluated run as a Markdown table.

python -m studies.results_table output/rsna
"""

import argparse
from pathlib import Path

from chexnet.evaluation import BASELINES, LOCATION_BASELINES, interval_text
from chexnet.runs import Run


def results_table(metrics: dict, class_name: str) -> str:
    """The table as Markdown, and a line with the number of films.

    Args:
        metrics: of the run, with classes and localization.
        class_name: whose numbers.
    """
    found, maps = metrics["classes"][class_name], metrics["localization"][class_name]
    test, youden = found["test"], found["operating_points"]["youden"]
    view, metadata = (
        (baseline.title, found["baselines"][key]["auroc"]) for key, baseline in BASELINES.items()
    )
    none = ("", None)
    rows = [
        ("AUROC (DeLong)", test["auroc"], view),
        ("", None, metadata),
        ("average precision", found["average_precision"],
         ("prevalence", {"value": test["prevalence"]})),
        ("sensitivity, threshold by Youden index on validation", youden["sensitivity"], none),
        ("specificity, the same threshold", youden["specificity"], none),
    ]  # fmt: skip
    if "reason" not in maps:  # there are boxes
        point, random, mask = (
            (title, maps["baselines"][key]) for key, title in LOCATION_BASELINES.items()
        )
        rows += [
            ("pointing-game accuracy (hit rate)", maps["hit_rate"], point),
            ("", None, random),
            ("mean IoU (absolute threshold, logits)", maps["mean_iou_logit"], mask),
            ("mean IoU (per-image min-max-normalized map)", maps["mean_iou"], none),
            ("hit rate, CAM × spatial prior", maps["guided"]["hit_rate"], none),
            ("mean IoU, CAM × spatial prior", maps["guided"]["mean_iou"], none),
        ]
    lines = ["| metric | model | baseline | its value |", "|---|---|---|---|"]
    for metric, value, (baseline, its_value) in rows:
        texts = ("" if number is None else interval_text(number) for number in (value, its_value))
        model, its_text = texts
        lines.append(f"| {metric} | {model} | {baseline} | {its_text} |")
    counts = f"{test['n']} test films, {test['n_positive']} positive, {test['n_patients']} patients"
    return "\n".join([*lines, "", counts])


def evaluated(run: Run) -> dict:
    """The metrics of a run.

    Raises:
        ValueError: scores or maps are not evaluated, or have changed since.
    """
    return run.metrics | {part: run.current_metrics(part) for part in ("classes", "localization")}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", type=Path, help="run folder, evaluated by notebook 04")
    run = Run(parser.parse_args().run)
    print(results_table(evaluated(run), run.class_names[0]))


if __name__ == "__main__":
    main()
