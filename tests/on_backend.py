"""The road from a saved network to its evaluation, to be run in a process of its own.

KERAS_BACKEND=torch python -m tests.on_backend <folder of the study> <result.npz>
"""

import json
import sys
import tempfile
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd

from chexnet.cam import class_activation_map
from chexnet.evaluation import evaluate
from chexnet.generator import AugmentedImageSequence, ImageStore
from chexnet.model import build_chexnet, load_chexnet, map_size
from chexnet.runs import Run
from chexnet.training import default_optimizer, record_scores, train

SIZE, FILMS = 64, 36


def write_study(folder: Path) -> None:
    """Films of noise, the positives with a bright square, and a network with drawn weights."""
    draw = np.random.default_rng(0)
    images, boxes = [], []
    for index in range(FILMS):
        film = draw.normal(90, 40, (SIZE, SIZE)).clip(0, 255).astype(np.uint8)
        if index % 3 == 0:
            x, y = (int(corner) for corner in draw.integers(2, SIZE - 22, 2))
            film[y : y + 20, x : x + 20] = 210
            boxes.append((f"film{index:02d}", x, y, 20, 20))
        cv2.imwrite(str(folder / f"film{index:02d}.jpg"), film)
        split = ("train", "val", "test")[index * 3 // FILMS]
        images.append((f"film{index:02d}", f"p{index}", int(index % 3 == 0), SIZE, SIZE, split))
    names = ["image_id", "patient_id", "Pneumonia", "rows", "columns", "split"]
    pd.DataFrame(images, columns=names).to_csv(folder / "images.csv", index=False)
    names = ["image_id", "x", "y", "width", "height"]
    pd.DataFrame(boxes, columns=names).to_csv(folder / "boxes.csv", index=False)
    model = build_chexnet(SIZE, weights=None, map_stride=16)
    for weight in model.weights:
        if len(weight.shape) == 4:
            array = draw.normal(0, np.sqrt(2 / np.prod(weight.shape[:3])), weight.shape)
        elif weight.path.endswith(("gamma", "moving_variance")):
            array = draw.uniform(0.5, 1.5, weight.shape)
        else:
            array = draw.normal(0, 0.2, weight.shape)
        weight.assign(array)
    model.save(folder / "model.keras")


def all_weights(model: keras.Model) -> np.ndarray:
    """In one row."""
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def road(folder: Path) -> dict[str, np.ndarray]:
    """Scores, maps, metrics and a training step, from the same saved weights."""
    images, boxes = (pd.read_csv(folder / name) for name in ("images.csv", "boxes.csv"))
    ids = images["image_id"]
    store = ImageStore(folder, ids, image_size=SIZE, clip_limit=None, progress=False)
    model = load_chexnet(folder / "model.keras")
    before = all_weights(model)
    films = store[ids.to_numpy(dtype=object)]
    scores, maps = class_activation_map(model, films)
    _, grad_maps = class_activation_map(model, films[:4], method="Grad-CAM", layer="pool4_conv")
    with tempfile.TemporaryDirectory() as runs:
        settings = {"class_names": ["Pneumonia"]}
        run = Run.create(Path(runs) / "scored", settings=settings, images=images, boxes=boxes)
        record_scores(run, model, store, folder, batch_size=8)
        evaluate(run, n_bootstrap=20)
        metrics = json.loads((run.folder / "metrics.json").read_text())["classes"]["Pneumonia"]
        parts = {
            split: images[images["split"] == split].reset_index(drop=True)
            for split in ("train", "val")
        }
        options = {"class_names": ("Pneumonia",), "batch_size": FILMS, "shuffle": False}
        run = Run.create(Path(runs) / "trained", settings=settings, images=images, boxes=boxes)
        history = train(
            model,
            AugmentedImageSequence(
                store, parts["train"], boxes=boxes, map_size=map_size(model), **options
            ),
            AugmentedImageSequence(store, parts["val"], **options),
            run,
            epochs=1,
            box_weight=1.0,
            optimizer=default_optimizer(
                steps_per_epoch=1, epochs=1, use_ema=True, ema_momentum=0.5
            ),
        )
    return {
        "backend": keras.backend.backend(),
        "scores": scores,
        "maps": maps,
        "grad_maps": grad_maps,
        "auroc": [metrics[split]["auroc"]["value"] for split in ("val", "test")],
        "losses": history[["loss", "location_loss"]].to_numpy(),
        "weights_before": before,
        "weights": all_weights(model),
    }


if __name__ == "__main__":
    np.savez(sys.argv[2], **road(Path(sys.argv[1])))
