"""Trains the recommended recipe with one change at a time, and compares the results.

    python -m studies.recipe_study --study data/rsna --output output/recipe-study

Each arm is the recipe with one change, on 96-pixel films for 12 epochs, in a 2-fold
cross-validation by patient. The films are the training and validation films of fold 1 of
`studies.cross_validate`; its test films are not used. Finished arms are not trained again. Two
processes can train different arms.
"""

import argparse
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from chexnet.evaluation import interval_text
from chexnet.generator import ImageStore
from chexnet.runs import Run
from chexnet.splits import read_split
from chexnet.training import recipe
from studies.cross_validation import cross_validate, fold_splits
from studies.out_of_fold import (
    compare_recipes,
    cross_validation_report,
    out_of_fold_films,
    out_of_fold_maps,
)

IMAGE_SIZE, EPOCHS, BATCH, FOLDS = 96, 12, 16, 2
AS_RECOMMENDED = "as recommended"
MILDER = {"shear": 0.0, "shift": 0.04, "scale": 0.1, "contrast": 0.1, "brightness": 0.04}
# What differs from the recipe, by what part of it.
ARMS = {
    AS_RECOMMENDED: {},
    "no boxes": {"training": {"box_weight": 0.0}},
    "map stride 32": {"model": {"map_stride": 32}},
    "no boxes, map stride 32": {"model": {"map_stride": 32}, "training": {"box_weight": 0.0}},
    "peak learning rate 3e-4": {"training": {"learning_rate": 3e-4}},
    "peak learning rate 3e-3": {"training": {"learning_rate": 3e-3}},
    "batch 8": {"batch_size": 8},
    "batch 32": {"batch_size": 32},
    "milder augmentation": {"augmentation": MILDER},
    "24 epochs": {"training": {"epochs": 24}},
    "128 pixels": {"image_size": 128},
    "running mean of the weights, 0.98": {"training": {"ema_momentum": 0.98}},
    "BatchNormalization momentum 0.99": {"model": {"batchnorm_momentum": 0.99}},
    "two classes, opacity and normal": {"class_names": ["Pneumonia", "Normal"]},
}


def films_of(study: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The films of the study that are trained and scored here, and their boxes."""
    images, boxes = read_split(study)
    images = images[fold_splits(images, folds=3)[0] != "test"].reset_index(drop=True)
    return images, boxes[boxes["image_id"].isin(images["image_id"])].reset_index(drop=True)


def train_arm(name: str, study: Path, output: Path) -> None:
    """Trains and scores the folds of one arm, where that is not done yet."""
    images, boxes = films_of(study)
    images["Normal"] = (images["detailed_class"] == "Normal").astype(int)
    change = ARMS[name]
    base = recipe(None)
    base["training"]["epochs"] = EPOCHS
    settings = {part: base[part] | change.get(part, {}) for part in base}
    store = ImageStore(
        study / "jpg", images["image_id"], image_size=change.get("image_size", IMAGE_SIZE)
    )
    cross_validate(
        output / folder_name(name),
        store,
        images,
        boxes,
        study / "jpg",
        recipe=settings,
        class_names=change.get("class_names", ["Pneumonia"]),
        folds=FOLDS,
        batch_size=change.get("batch_size", BATCH),
    )


def folder_name(name: str) -> str:
    """The folder of an arm."""
    return name.replace(",", "").replace(" ", "-")


def table(output: Path) -> str:
    """The results of every finished arm, and their difference to the recommended recipe."""
    found = {}
    for name in ARMS:
        folders = [output / folder_name(name) / f"fold-{fold + 1}" for fold in range(FOLDS)]
        if all((folder / "predictions.csv").is_file() for folder in folders):
            runs = [Run(folder) for folder in folders]
            found[name] = out_of_fold_films(runs), out_of_fold_maps(runs)
    rows = []
    for name, (films, maps) in found.items():
        report = cross_validation_report(films, maps)
        row = {
            "setting": name,
            "AUROC": interval_text(report["auroc"]),
            "hit rate": interval_text(report["maps"]["hit_rate"]),
        }
        if name != AS_RECOMMENDED:
            gap = compare_recipes((films, maps), found[AS_RECOMMENDED])
            row |= {
                "AUROC, difference": interval_text(gap["auroc"]),
                "hit rate, difference": interval_text(gap["hit_rate"]),
                "mean IoU, difference": interval_text(gap["mean_iou"]),
            }
        rows.append(row)
    return pd.DataFrame(rows).fillna("").to_markdown(index=False)


def parse_arms(
    parser: argparse.ArgumentParser, known: Collection[str], output: str
) -> argparse.Namespace:
    """Parses the names of arms, which argparse cannot check where none is given, and folders."""
    parser.add_argument("arms", nargs="*", default=list(known), help="all, unless named")
    parser.add_argument("--study", type=Path, default=Path("data/rsna"))
    parser.add_argument("--output", type=Path, default=Path(output))
    given = parser.parse_args()
    unknown = [name for name in given.arms if name not in known]
    if unknown:
        parser.error(f"{unknown[0]!r}: expected one of {', '.join(known)}")
    return given


def main() -> None:
    """Trains the arms that are asked for, then prints the table of all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    given = parse_arms(parser, ARMS, "output/recipe-study")
    for name in given.arms:
        train_arm(name, given.study, given.output)
    print(table(given.output))


if __name__ == "__main__":
    main()
