"""Prints the results of finished cross-validations, and the first compared with each other.

    python -m studies.cross_validation_table output/cv/ours output/cv/original --again output/cv-1

``--again`` names folders of the same recipes trained with other seeds. Their folds count as more
folds of the recipe; intervals stay by patient.
"""

import argparse
from pathlib import Path

import pandas as pd

from chexnet.evaluation import BASELINES, interval_text
from chexnet.runs import Run
from studies.out_of_fold import (
    compare_recipes,
    cross_validation_report,
    out_of_fold_films,
    out_of_fold_maps,
)

GUIDED = {
    "hit rate": "hit_rate",
    "Δ hit rate vs. best fixed point": "hit_rate_minus_fixed_point",
    "mean IoU": "mean_iou",
    "Δ mean IoU vs. best fixed mask": "mean_iou_minus_fixed_mask",
}
OF_MAPS = GUIDED | {
    "mean IoU (absolute threshold, logits)": "mean_iou_logit",
    "energy inside boxes": "energy_in_boxes",
}
POOLED = "AUROC, pooled over folds (DeLong)"
DIFFERENCES = {
    "auroc": "AUROC, mean of the folds",
    "auroc_all_together": POOLED,
    "hit_rate": "hit rate",
    "mean_iou": "mean IoU",
}


def rows_of(report: dict) -> dict[str, str]:
    """The results of one recipe, by metric."""
    folds = ", ".join(f"{value:.3f}" for value in report["auroc_of_each_fold"])
    rows = {
        "AUROC, mean of the folds": interval_text(report["auroc"]),
        "AUROC, per fold": folds,
        POOLED: interval_text(report["auroc_all_together"]),
        **{
            f"AUROC within {view}, mean of the folds": interval_text(found)
            for view, found in report["auroc_within"].items()
        },
        "sensitivity": interval_text(report["sensitivity"]),
        "specificity": interval_text(report["specificity"]),
    }
    for key, baseline in BASELINES.items():
        if key in report["baselines"]:
            found = report["baselines"][key]
            rows[f"AUROC, baseline: {baseline.title}"] = interval_text(found["auroc"])
            rows[f"ΔAUROC vs. {baseline.title}"] = interval_text(found["model_minus_baseline"])
    maps = report["maps"]
    rows |= {title: interval_text(maps[key]) for title, key in OF_MAPS.items()}
    rows |= {
        f"CAM × spatial prior: {title}": interval_text(maps["guided"][key])
        for title, key in GUIDED.items()
    }
    rows["hit rate, baseline: best fixed point"] = interval_text(maps["baselines"]["fixed_point"])
    rows["mean IoU, baseline: best fixed mask"] = interval_text(maps["baselines"]["fixed_mask"])
    return rows


def p_text(p: float | None) -> str:
    """For a table: two digits, or below 0.0001."""
    return "" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def read(folders: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The films and the maps of a recipe's cross-validations; each fold has its own number."""
    tables = []
    for seed, folder in enumerate(folders):
        runs = [Run(fold) for fold in sorted(folder.glob("fold-*"))]
        if not runs:
            raise FileNotFoundError(f"{folder}: no fold-*; expected a cross-validation")
        found = out_of_fold_films(runs), out_of_fold_maps(runs)
        tables.append([one.assign(fold=one["fold"] + 100 * seed) for one in found])
    films, maps = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    return films, maps


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of studies.cross_validate")
    parser.add_argument("--again", nargs="*", type=Path, default=[], help="other --output folders")
    given = parser.parse_args()
    # The name is the recipe: it heads the column and finds the folders of other seeds.
    names = [folder.name for folder in given.folders]
    if len(set(names)) < len(names):
        parser.error(f"{', '.join(names)}: expected a folder for each recipe, once")
    found, columns = {}, {}
    for folder in given.folders:
        name = folder.name
        found[name] = read([folder, *(root / name for root in given.again)])
        columns[name] = rows_of(cross_validation_report(*found[name]))
    films = next(iter(found.values()))[0]
    once = films.drop_duplicates("image_id")
    print(
        f"{len(once)} films of {once['patient_id'].nunique()} patients, "
        f"{once['y_true'].sum()} positive; {films['fold'].nunique()} folds\n"
    )
    # DeLong's interval counts each row as a film of its own.
    invalid = [POOLED] if given.again else []
    print(pd.DataFrame(columns).drop(index=invalid).to_markdown())
    first, *others = found
    if others:
        print(f"\nDifference of {first} to the other recipes, on the same films:\n")
        rows = []
        for other in others:
            gaps = compare_recipes(found[first], found[other])
            within = gaps.pop("auroc_within")
            named = {DIFFERENCES[key]: gap for key, gap in gaps.items()} | {
                f"AUROC within {view}": gap for view, gap in within.items()
            }
            for title, gap in named.items():
                if title not in invalid:
                    rows.append((title, other, interval_text(gap), p_text(gap.get("p"))))
        table = pd.DataFrame(rows, columns=["metric", "other", "difference", "p"])
        print(table.to_markdown(index=False, disable_numparse=True))


if __name__ == "__main__":
    main()
