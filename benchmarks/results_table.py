"""The README's table of results, from a run that notebook 04 has evaluated.

python benchmarks/results_table.py output/rsna
"""

import sys
from pathlib import Path

from chexnet.report import interval_text
from chexnet.runs import Run


def main() -> None:
    """Prints the table as Markdown."""
    run = Run(Path(sys.argv[1]))
    metrics = run.metrics
    found = metrics["classes"][run.class_names[0]]
    maps = metrics["localization"]
    youden = found["operating_points"]["youden"]
    view, facts = (found["floors"][name] for name in ("view", "view_sex_age"))
    rows = [
        ("AUROC (DeLong)", found["test"]["auroc"], "view position alone", view["auroc"]),
        ("", None, "view, sex and age", facts["auroc"]),
        ("average precision", found["average_precision"], "prevalence", None),
        ("sensitivity, Youden's threshold on validation", youden["sensitivity"], "", None),
        ("specificity, the same threshold", youden["specificity"], "", None),
        ("hit rate (pointing game)", maps["hit_rate"], "best fixed point",
         maps["floors"]["fixed_point"]),
        ("", None, "random point", maps["floors"]["random_point"]),
        ("mean IoU, map cut in logits", maps["mean_iou_logit"], "best fixed mask",
         maps["floors"]["fixed_mask"]),
        ("mean IoU, map stretched film by film", maps["mean_iou"], "", None),
    ]  # fmt: skip
    print("| measure | model | what needs no model | its value |\n|---|---|---|---|")
    for measure, value, floor, its in rows:
        shown = "" if value is None else interval_text(value)
        beside = "" if its is None else interval_text(its)
        if floor == "prevalence":
            beside = f"{found['test']['prevalence']:.2f}"
        print(f"| {measure} | {shown} | {floor} | {beside} |")
    test = found["test"]
    print(f"\n{test['n']} test films, {test['n_positive']} positive, {test['n_patients']} patients")


if __name__ == "__main__":
    main()
