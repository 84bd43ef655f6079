"""Cross-validates a recipe on a study that notebooks 01 and 02 have prepared.

    python -m studies.cross_validate ours --study data/rsna --output output/cv

The recipes: ``ours`` is what `chexnet.training.recipe` recommends from random weights; ``original``
is chexnet_auroc's as it was described, at our image size and from random weights: two sigmoids, one
epoch for the head alone, then Adam at 1e-4, its augmentation (`default_augmenter`: mirror, rotation
to 10 degrees, shear to 16, shift to 20 of 512 pixels, blur), and Keras' DenseNet121 as it comes,
with BatchNormalization momentum 0.99. It gets our corrected pixels, labels and split, so that all
are evaluated on the same films. ``original-corrected`` has our BatchNormalization momentum too.
"""

import argparse
from pathlib import Path

from chexnet.generator import ImageStore
from chexnet.splits import read_split
from chexnet.training import recipe
from studies.cross_validation import cross_validate


def recipes(epochs: int | None) -> dict[str, dict]:
    """The settings by name; all of them train for the same number of epochs."""
    ours = recipe(None)
    if epochs is not None:
        ours["training"]["epochs"] = epochs
    epochs = ours["training"]["epochs"]
    corrected = {
        "model": {"map_stride": 32},
        "augmentation": {},
        "training": {
            "head_epochs": 1,
            "head_learning_rate": 1e-4,
            "epochs": epochs - 1,
            "optimizer": {"class_name": "Adam", "config": {"learning_rate": 1e-4}},
        },
    }
    original = corrected | {"model": {"map_stride": 32, "batchnorm_momentum": 0.99}}
    return {"ours": ours, "original": original, "original-corrected": corrected}


def main() -> None:
    """Trains the folds of one recipe; what is finished is not done again."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("recipe", choices=recipes(None))
    parser.add_argument("--study", type=Path, default=Path("data/rsna"))
    parser.add_argument("--output", type=Path, default=Path("output/cv"))
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's number")
    parser.add_argument("--seed", type=int, default=0, help="of folds, weights and augmentation")
    given = parser.parse_args()
    images, boxes = read_split(given.study)
    class_names = ["Pneumonia"]
    if given.recipe.startswith("original"):
        images["No pneumonia"] = 1 - images["Pneumonia"]
        class_names = ["Pneumonia", "No pneumonia"]
    jpg = given.study / "jpg"
    store = ImageStore(jpg, images["image_id"], image_size=given.image_size)
    runs = cross_validate(
        given.output / given.recipe,
        store,
        images,
        boxes,
        jpg,
        recipe=recipes(given.epochs)[given.recipe],
        class_names=class_names,
        folds=given.folds,
        seed=given.seed,
    )
    for run in runs:
        print(run.folder, f"best validation AUROC {run.history['val_auroc'].max():.3f}")


if __name__ == "__main__":
    main()
