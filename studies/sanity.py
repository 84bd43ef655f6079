"""Tests whether maps and scores of a run depend on its weights: randomizes them from the top.

    python -m studies.sanity output/rsna --films data/rsna/jpg

Cascading parameter randomization, Adebayo et al. 2018 (arXiv:1810.03292), section 4.1. Each row has
random weights in the named part and in all above it. It shows the mean over several seeds, because
one seed can by chance mark the places of opacities. The last line has the AUROC with shuffled
labels.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from chexnet.auroc import auroc
from chexnet.backend import keras
from chexnet.cam import class_activation_map
from chexnet.evaluation import localization_scores
from chexnet.evaluation.localization import choose_map_threshold
from chexnet.generator import ImageStore
from chexnet.model import build_chexnet, load_chexnet
from chexnet.runs import Run

SHUFFLES = 1000
# From the top: the first letters of the layers' names.
PARTS = {
    "head": ("predictions",),
    "and block 4": ("bn", "conv5"),
    "and block 3": ("pool4", "conv4"),
    "and block 2": ("pool3", "conv3"),
    "all": ("pool2", "conv2", "conv1"),
}


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--films", type=Path, required=True, help="folder of <image_id>.jpg")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    run = Run(given.run)
    settings = run.config["settings"]
    scored = pd.concat(run.scored_films())
    ids, y = scored["image_id"].to_numpy(), scored["y_true"].to_numpy()
    val, test = (scored["split"].to_numpy() == split for split in ("val", "test"))
    images = run.images
    boxes = run.boxes_of().query("image_id in @ids[@y == 1]")
    with tempfile.TemporaryDirectory() as cache:
        store = ImageStore(
            given.films, ids, image_size=settings["image_size"], cache=cache, progress=False
        )
        pixels = store[ids]

    def measure(model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
        """Scores of the test films; AUROC, hit rate, mean IoU and energy on them."""
        scores, maps = class_activation_map(model, pixels)
        threshold, _ = choose_map_threshold(maps[val], ids[val], boxes, images)
        found = localization_scores(maps[test], ids[test], boxes, images, threshold=threshold)
        found = found[["hit", "iou", "energy_in_boxes"]].astype(float).mean()
        score = scores[test, 0]
        return score, np.array([auroc(y[test], score).value, *found])

    model = load_chexnet(run.folder / "model.keras")
    trained = model.get_weights()
    print("| randomized | AUROC | hit rate | mean IoU | energy inside boxes |")
    print("|---|---|---|---|---|")
    score, numbers = measure(model)
    rows = {"nothing": [numbers]}
    for seed in range(1, given.seeds + 1):
        keras.utils.set_random_seed(seed)
        fresh = build_chexnet(
            settings["image_size"], class_names=run.class_names, weights=None, **settings["model"]
        )
        model.set_weights(trained)
        for title, names in PARTS.items():
            for layer in model.layers:
                if layer.name.startswith(names) and layer.weights:
                    layer.set_weights(fresh.get_layer(layer.name).get_weights())
            rows.setdefault(title, []).append(measure(model)[1])
    for title, several in rows.items():
        print(f"| {title} | {' | '.join(f'{number:.2f}' for number in np.mean(several, 0))} |")
    rng = np.random.default_rng(0)
    values = [auroc(rng.permutation(y[test]), score).value for _ in range(SHUFFLES)]
    print(
        f"\nAUROC of the trained model with test labels shuffled {SHUFFLES:,} times: mean "
        f"{np.mean(values):.3f}, 95 % interval {np.quantile(values, 0.025):.2f} to "
        f"{np.quantile(values, 0.975):.2f}"
    )


if __name__ == "__main__":
    main()
