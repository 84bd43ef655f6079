"""Compares saliency methods, layers and image sizes by how well they find radiologists' boxes.

    python -m studies.map_methods output/rsna --films data/rsna/jpg

The threshold of each kind of map is chosen on the run's validation films; test films are used for
evaluation only. Several runs (folds of a cross-validation) are pooled.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from chexnet.auroc import mean_interval
from chexnet.cam import METHODS, class_activation_map, upsample_map
from chexnet.evaluation import interval_text, localization_scores
from chexnet.evaluation.localization import choose_map_threshold
from chexnet.generator import ImageStore
from chexnet.model import build_chexnet, load_chexnet
from chexnet.runs import Run

# On the last feature map, "relu", Grad-CAM and HiResCAM are the class activation map.
GRADIENT = [("Grad-CAM++", "relu"), ("LayerCAM", "relu")]
GRADIENT += [(method, "pool4_pool") for method in METHODS if method != "CAM"]
SCALES = (0.8, 1.0, 1.2)  # of the side that the network was trained at
# Odd, so that a pixel lies at the centre of each cell of the plain map, where it is brightest.
FINE = 5
PLAIN = "CAM"


def maps_of(run: Run, films: Path, ids: np.ndarray, cache: str) -> Iterator[tuple[str, np.ndarray]]:
    """Each kind of map of these films, ``(N, h, w)``, one after the other."""
    settings = run.config["settings"]
    side = settings["image_size"]

    def pixels(size: int) -> np.ndarray:
        return ImageStore(films, ids, image_size=size, cache=cache, progress=False)[ids]

    def cam(model: object, x: np.ndarray) -> np.ndarray:
        return class_activation_map(model, x)[1]

    def both_sides(model: object, x: np.ndarray) -> np.ndarray:
        return (cam(model, x) + cam(model, x[:, :, ::-1])[:, :, ::-1]) / 2

    model, x = load_chexnet(run.folder / "model.keras"), pixels(side)
    plain = cam(model, x)
    yield PLAIN, plain
    yield "CAM, mean of the film and its mirror image", both_sides(model, x)
    scaled = []
    for scale in SCALES:
        size = 32 * round(scale * side / 32)
        if size == side:
            scaled.append(upsample_map(plain, FINE * plain.shape[1]))
            continue
        other = build_chexnet(
            size,
            class_names=run.class_names,
            weights=run.folder / "model.keras",
            **settings["model"],
        )
        scaled.append(upsample_map(cam(other, pixels(size)), FINE * plain.shape[1]))
        yield f"CAM, film at {size} pixels", scaled[-1]
    yield "CAM, mean of these sizes", np.mean(scaled, axis=0)
    for method, layer in GRADIENT:
        yield f"{method} {layer}", class_activation_map(model, x, method=method, layer=layer)[1]


def localized(run: Run, films: Path, cache: str) -> pd.DataFrame:
    """One row a film and kind of map: split, patient, hit, IoU."""
    scored = pd.concat(run.scored_films()).query("y_true == 1")
    ids, split = scored["image_id"].to_numpy(), scored["split"].to_numpy()
    images, boxes = run.images, run.boxes_of()
    parts = []
    for kind, maps in maps_of(run, films, ids, cache):
        val = split == "val"
        threshold, _ = choose_map_threshold(maps[val], ids[val], boxes, images)
        part = localization_scores(maps, ids, boxes, images, threshold=threshold)
        part = part.merge(scored[["image_id", "patient_id", "split"]], on="image_id")
        parts.append(part.assign(kind=kind, cells=f"{maps.shape[1]} × {maps.shape[2]}"))
    return pd.concat(parts).assign(run=str(run.folder))


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--films", type=Path, required=True, help="folder of <image_id>.jpg")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        table = pd.concat([localized(Run(run), given.films, cache) for run in given.runs])
    columns = ["map", "cells", "validation: hit rate, IoU", "test: hit rate", "mean IoU"]
    columns += ["Δ hit rate vs. CAM", "Δ mean IoU vs. CAM"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    key = ["run", "image_id"]
    plain = table[(table["kind"] == PLAIN) & (table["split"] == "test")].set_index(key)
    for kind, rows in table.groupby("kind", sort=False):
        val = rows[rows["split"] == "val"]
        test = rows[rows["split"] == "test"].set_index(key)
        beside = plain.loc[test.index]
        patients = test["patient_id"].to_numpy()
        cells = [kind, rows["cells"].iloc[0], f"{val['hit'].mean():.2f}, {val['iou'].mean():.3f}"]
        cells += [
            interval_text(mean_interval(test[m].to_numpy(), patients)) for m in ("hit", "iou")
        ]
        for measure in ("hit", "iou"):
            gap = test[measure].astype(float) - beside[measure].astype(float)
            text = interval_text(mean_interval(gap.to_numpy(), patients))
            cells.append("" if kind == PLAIN else text)
        print(f"| {' | '.join(cells)} |")
    films = table.drop_duplicates(["run", "image_id"])["split"].value_counts()
    print(f"\n{films['val']} validation and {films['test']} test films with boxes")


if __name__ == "__main__":
    main()
