"""The README's table of results, from a run that notebook 04 has evaluated.

python -m studies.results_table output/rsna
"""

import sys
from pathlib import Path

from chexnet.evaluation import interval_text
from chexnet.runs import Run


def results_table(metrics: dict, class_name: str) -> str:
    """The table as Markdown, and a line that says how many films stand behind it.

    Args:
        metrics: content of ``metrics.json``.
        class_name: whose numbers.
    """
    found = metrics["classes"][class_name]
    maps = metrics["localization"]
    youden = found["operating_points"]["youden"]
    view, facts = (found["baselines"][name] for name in ("view", "view_sex_age"))
    rows = [
        ("AUROC (DeLong)", found["test"]["auroc"], "view position", view["auroc"]),
        ("", None, "view + sex + age", facts["auroc"]),
        ("average precision", found["average_precision"], "prevalence", None),
        ("sensitivity, threshold by Youden index on validation", youden["sensitivity"], "", None),
        ("specificity, the same threshold", youden["specificity"], "", None),
        ("pointing-game accuracy (hit rate)", maps["hit_rate"], "best fixed point",
         maps["baselines"]["fixed_point"]),
        ("", None, "random point", maps["baselines"]["random_point"]),
        ("mean IoU (absolute threshold, logits)", maps["mean_iou_logit"], "best fixed mask",
         maps["baselines"]["fixed_mask"]),
        ("mean IoU (per-image min-max-normalized map)", maps["mean_iou"], "", None),
        ("hit rate, CAM × spatial prior", maps["guided"]["hit_rate"], "", None),
        ("mean IoU, CAM × spatial prior", maps["guided"]["mean_iou"], "", None),
    ]  # fmt: skip
    lines = ["| metric | model | baseline | its value |", "|---|---|---|---|"]
    for measure, value, baseline, its in rows:
        shown = "" if value is None else interval_text(value)
        beside = "" if its is None else interval_text(its)
        if baseline == "prevalence":
            beside = f"{found['test']['prevalence']:.2f}"
        lines.append(f"| {measure} | {shown} | {baseline} | {beside} |")
    test = found["test"]
    counts = f"{test['n']} test films, {test['n_positive']} positive, {test['n_patients']} patients"
    return "\n".join([*lines, "", counts])


def main() -> None:
    """Prints the table."""
    run = Run(Path(sys.argv[1]))
    print(results_table(run.metrics, run.class_names[0]))


if __name__ == "__main__":
    main()
