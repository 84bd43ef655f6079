"""Trains the recommended recipe with one change at a time, and compares the results.

    python -m studies.variants --study data/rsna --output output/variants

96-pixel films, 12 epochs, 2-fold cross-validation by patient. The films are the training and
validation films of fold 1 of `studies.cross_validate`; its test films are not used. Of each
training four sets of weights are scored: the best epoch on validation, the last epoch, and the
average of the last 3 and 6 epochs. Finished arms are not trained again. Two processes can train
different arms.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from chexnet.auroc import auroc, mean_interval
from chexnet.backend import keras
from chexnet.evaluation import interval_text
from chexnet.evaluation.localization import choose_map_threshold, localization_scores
from chexnet.generator import AugmentedImageSequence, ImageStore
from chexnet.model import build_chexnet
from chexnet.runs import Run
from chexnet.splits import read_split
from chexnet.training import default_optimizer, recipe, train
from studies.cross_validation import batches_of, fold_splits
from studies.cross_validation_table import p_text
from studies.out_of_fold import by_fold, by_view, compare_recipes

layers, ops = keras.layers, keras.ops

IMAGE_SIZE, EPOCHS, BATCH, FOLDS = 96, 12, 16, 2
MILDER = {"shear": 0.0, "shift": 0.04, "scale": 0.1, "contrast": 0.1, "brightness": 0.04}

# How the map becomes the logit, where that is not the mean: in training and in scoring.
POOLINGS = {
    "pcam": "probabilistic CAM",  # arXiv:2005.14480: the mean weighted by the sigmoid of the map
    "top10%": "mean of the highest tenth",
    "lse2": "log-mean-exp, r = 2",  # arXiv:1411.6228
}
WEIGHTS = {
    "best": "best on validation",
    "last": "last epoch",
    "last3": "average of the last 3 epochs",
    "last6": "average of the last 6 epochs",
}


@keras.saving.register_keras_serializable(package="studies")
class PooledHead(layers.Layer):
    """One score: the sigmoid of a function of the map plus a bias."""

    def __init__(self, pooling: str, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.pooling = pooling

    def get_config(self) -> dict:
        return super().get_config() | {"pooling": self.pooling}

    def build(self, shape: tuple) -> None:
        self.kernel = self.add_weight((shape[-1], 1), "glorot_uniform", name="kernel")
        self.bias = self.add_weight((1,), "zeros", name="bias")

    def call(self, features: keras.KerasTensor) -> keras.KerasTensor:
        values = ops.matmul(features, self.kernel)
        positions = values.shape[1] * values.shape[2]
        values = ops.reshape(values, (-1, positions))
        if self.pooling == "pcam":
            share = ops.sigmoid(values)
            pooled = ops.sum(share * values, 1) / ops.sum(share, 1)
        elif self.pooling == "top10%":
            pooled = ops.mean(ops.top_k(values, round(0.1 * positions))[0], 1)
        else:
            pooled = (ops.logsumexp(2 * values, 1) - np.log(positions)) / 2
        return ops.sigmoid(pooled[:, None] + self.bias)


class _LastWeights(keras.callbacks.Callback):
    """Keeps the weights of the last six epochs."""

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self.network, self.kept = network, []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.kept = [*self.kept[-5:], self.network.get_weights()]


class SoftMasks(AugmentedImageSequence):
    """Masks whose edge is blurred by 0.7 cells: radiologists' boxes are not exact to a cell."""

    def batch(self, epoch: int, index: int) -> tuple:
        films, labels = super().batch(epoch, index)
        soft = gaussian_filter(labels["location"], (0, 0.7, 0.7, 0), mode="constant")
        return films, labels | {"location": soft}


class WeightedDraws(AugmentedImageSequence):
    """Draws each film in proportion to the weight that its variant gives it."""

    film_weights: np.ndarray

    def rows(self, epoch: int, index: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch, 2])
        order = rng.permutation(len(self.image_ids))
        # Systematic: a film of weight 1.4 is drawn once or twice, never five times.
        ends = np.cumsum(self.film_weights[order])
        marks = (np.arange(len(order)) + rng.random()) * ends[-1] / len(order)
        drawn = rng.permutation(order[np.searchsorted(ends, marks, side="right")])
        return drawn[index * self.batch_size :][: self.batch_size]


def abnormal_twice(images: pd.DataFrame) -> np.ndarray:
    """The weight ``(N,)`` of each film: 2 for negatives whose class is not normal, else 1."""
    abnormal = (images["Pneumonia"] == 0) & (images["detailed_class"] != "Normal")
    return np.where(abnormal, 2.0, 1.0)


def equal_views(images: pd.DataFrame) -> np.ndarray:
    """The weight ``(N,)`` of each film that gives AP and PA the same prevalence.

    It is the share of the film's label in all films over its share in the films of this view.
    ``images`` has ``view`` and ``Pneumonia``.
    """
    label = images["Pneumonia"]
    in_all, in_view = label.mean(), label.groupby(images["view"]).transform("mean")
    return np.where(label == 1, in_all / in_view, (1 - in_all) / (1 - in_view))


def _with_pooling(pooling: str, network: keras.Model) -> keras.Model:
    head = PooledHead(pooling, name="predictions", dtype="float32")
    return keras.Model(network.input, head(network.get_layer("relu").output), name="chexnet")


def _with_stride_8(network: keras.Model) -> keras.Model:
    def renamed(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        return layer.__class__.from_config(config | {"name": names.get(layer.name, layer.name)})

    names = {"relu": "relu_stride_16"}  # `chexnet` looks for the map's features under "relu"
    body = keras.Model(network.input, network.get_layer("relu").output)
    momentum = network.get_layer("bn").momentum
    body = keras.models.clone_model(body, clone_function=renamed)
    coarse, fine = (body.get_layer(name).output for name in ("relu_stride_16", "pool3_relu"))
    fine = layers.Conv2D(coarse.shape[-1], 1, use_bias=False, name="lateral_conv")(fine)
    fine = layers.BatchNormalization(momentum=momentum, name="lateral_bn")(fine)
    coarse = layers.UpSampling2D(2, interpolation="bilinear", name="upsampled")(coarse)
    features = layers.ReLU(name="relu")(layers.Add(name="merged")([coarse, fine]))
    pooled = layers.GlobalAveragePooling2D(name="avg_pool")(features)
    score = layers.Dense(1, "sigmoid", name="predictions")(pooled)
    return keras.Model(body.input, score, name="chexnet")


@dataclass(frozen=True)
class Variant:
    """In what a variant differs from the recipe."""

    title: str
    settings: dict[str, Any] = field(default_factory=dict)  # as in `settings_of`
    change: Callable[[keras.Model], keras.Model] | None = None
    sequence: type[AugmentedImageSequence] = AugmentedImageSequence
    film_weights: Callable[[pd.DataFrame], np.ndarray] | None = None


NO_BOXES, STRIDE_32 = {"training": {"box_weight": 0.0}}, {"model": {"map_stride": 32}}
VARIANTS = {
    "mean": Variant("as recommended"),
    "noboxes": Variant("no boxes", NO_BOXES),
    "stride32": Variant("map stride 32", STRIDE_32),
    "plain": Variant("no boxes, map stride 32", NO_BOXES | STRIDE_32),
    "rate3e-4": Variant("peak learning rate 3e-4", {"training": {"learning_rate": 3e-4}}),
    "rate3e-3": Variant("peak learning rate 3e-3", {"training": {"learning_rate": 3e-3}}),
    "batch8": Variant("batch 8", {"batch_size": 8}),
    "batch32": Variant("batch 32", {"batch_size": 32}),
    "milder": Variant("milder augmentation", {"augmentation": MILDER}),
    "epochs24": Variant("24 epochs", {"training": {"epochs": 24}}),
    "pixels128": Variant("128 pixels", {"image_size": 128}),
    "ema": Variant(
        "exponential moving average of the weights, 0.98", {"training": {"ema_momentum": 0.98}}
    ),
    "momentum": Variant(
        "BatchNormalization momentum 0.99", {"model": {"batchnorm_momentum": 0.99}}
    ),
    "normal": Variant(
        "also learning which films are normal", {"class_names": ["Pneumonia", "Normal"]}
    ),
    **{key: Variant(title, {}, partial(_with_pooling, key)) for key, title in POOLINGS.items()},
    "stride8": Variant("map stride 8", {}, _with_stride_8),  # one connection, as arXiv:2010.11475
    "soft": Variant("soft masks", sequence=SoftMasks),
    "views": Variant(
        "same prevalence in AP and PA", sequence=WeightedDraws, film_weights=equal_views
    ),
    "abnormal": Variant(
        "negatives that are not normal twice as often",
        sequence=WeightedDraws,
        film_weights=abnormal_twice,
    ),
}


def films_of(study: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The films of the study that are trained and scored here, and their boxes."""
    images, boxes = read_split(study)
    images = images[fold_splits(images, folds=3)[0] != "test"].reset_index(drop=True)
    images["Normal"] = (images["detailed_class"] == "Normal").astype(int)
    return images, boxes[boxes["image_id"].isin(images["image_id"])].reset_index(drop=True)


def settings_of(variant: str, seed: int) -> dict[str, Any]:
    """The settings of a variant: those of the recipe, with its change."""
    settings = recipe(None)
    settings["training"]["epochs"] = EPOCHS
    settings |= {"class_names": ["Pneumonia"], "image_size": IMAGE_SIZE, "batch_size": BATCH}
    for name, change in VARIANTS[variant].settings.items():
        settings[name] = settings[name] | change if isinstance(change, dict) else change
    return settings | {"variant": variant, "seed": seed}


def train_arm(variant: str, seed: int, study: Path, output: Path) -> None:
    """Trains and scores both folds; one that is finished is not trained again."""
    chosen, settings = VARIANTS[variant], settings_of(variant, seed)
    size, names = settings["image_size"], settings["class_names"]
    images, boxes = films_of(study)
    store = ImageStore(study / "jpg", images["image_id"], image_size=size)
    for fold, split in enumerate(fold_splits(images, folds=FOLDS), 1):
        folder = output / f"{variant}-{seed}" / f"fold-{fold}"
        if (folder / "scores.npz").is_file():
            continue
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        model = build_chexnet(size, class_names=names, weights=None, **settings["model"])
        model = model if chosen.change is None else chosen.change(model)
        split_images = images.assign(split=split)
        run = Run.create(folder, settings=settings, images=split_images, boxes=boxes)
        batches, val = batches_of(
            store, split_images, boxes, model, settings, workers=1, sequence=chosen.sequence
        )
        if chosen.film_weights is not None:
            batches.film_weights = chosen.film_weights(images[split == "train"])
        options = dict(settings["training"])
        if "ema_momentum" in options:
            options["optimizer"] = default_optimizer(
                options["learning_rate"],
                steps_per_epoch=len(batches),
                epochs=options["epochs"],
                use_ema=True,
                ema_momentum=options.pop("ema_momentum"),
            )
        last = _LastWeights(model)
        train(model, batches, val, run, callbacks=[last], **options)
        weights = {"best": model.get_weights(), "last": last.kept[-1]}
        for n in (3, 6):
            weights[f"last{n}"] = [np.mean(one, 0) for one in zip(*last.kept[-n:], strict=True)]
        scored = _scored(model, weights, store[images["image_id"]])
        run.write_arrays("scores.npz", split=split.to_numpy(str), **scored)


def _scored(
    model: keras.Model, weights: dict[str, list[np.ndarray]], films: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores ``(N,)`` and maps ``(N, h, w)`` of the first class by each set of weights."""
    both = keras.Model(model.input, [model.output, model.get_layer("relu").output])
    found = {}
    for name, values in weights.items():
        model.set_weights(values)
        scores, features = both.predict(films, batch_size=32, verbose=0)
        kernel = model.get_layer("predictions").get_weights()[0]
        found[f"{name}_score"], found[f"{name}_map"] = scores[:, 0], (features @ kernel)[..., 0]
    return found


def results(folder: Path, weights: str, images: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """One row a film, scored by the network that never saw its patient.

    Args:
        folder: of an arm.
        weights: one of `WEIGHTS`.
        images: from `films_of`.
        boxes: from `films_of`.

    Returns:
        ``image_id, patient_id, view, y_true, fold, y_score``; ``hit`` and ``iou`` of films with
        boxes, at the threshold of the map chosen on the fold's validation films.
    """
    parts = []
    for fold in range(1, FOLDS + 1):
        stored = Run(folder / f"fold-{fold}").read_arrays("scores.npz")
        scores, maps = stored[f"{weights}_score"], stored[f"{weights}_map"]
        val, test = stored["split"] == "val", stored["split"] == "test"
        ids = images["image_id"].to_numpy()
        threshold, _ = choose_map_threshold(maps[val], ids[val], boxes, images)
        where = localization_scores(maps[test], ids[test], boxes, images, threshold=threshold)
        part = images.loc[test, ["image_id", "patient_id", "view", "Pneumonia"]]
        part = part.rename(columns={"Pneumonia": "y_true"})
        part = part.assign(fold=fold, y_score=scores[test].astype(float))
        parts.append(part.merge(where[["image_id", "hit", "iou"]], how="left", on="image_id"))
    return pd.concat(parts, ignore_index=True)


def table(study: Path, output: Path) -> str:
    """Every finished variant, beside the recommended network of the same seed."""
    images, boxes = films_of(study)
    found = {
        (folder.name, weights): results(folder, weights, images, boxes)
        for variant in VARIANTS
        for folder in sorted(output.glob(f"{variant}-[0-9]*"))
        if (folder / f"fold-{FOLDS}" / "scores.npz").is_file()
        for weights in (WEIGHTS if variant == "mean" else ["best"])
    }
    rows = []
    for (arm, weights), films in found.items():
        variant, seed = arm.rsplit("-", 1)
        row = {"variant": VARIANTS[variant].title, "seed": seed, "weights": WEIGHTS[weights]}
        base = found[f"mean-{seed}", "best"]
        rows.append(row | _measures(films) | ({} if films is base else _difference(films, base)))
    each = [
        films
        for (arm, weights), films in found.items()
        if arm.startswith("mean-") and weights == "best"
    ]
    if len(each) > 1:
        mean = each[0].assign(y_score=np.mean([one["y_score"] for one in each], axis=0))
        row = {"variant": VARIANTS["mean"].title, "seed": "mean score", "weights": WEIGHTS["best"]}
        of_scores = _measures(mean) | _difference(mean, each[0])  # the maps are those of one seed
        rows.append(row | {name: of_scores[name] for name in of_scores if "AUROC" in name})
    return pd.DataFrame(rows).fillna("").to_markdown(index=False)


def _measures(films: pd.DataFrame) -> dict[str, str]:
    def of(part: pd.DataFrame) -> str:
        return interval_text(auroc(part["y_true"], part["y_score"], **by_fold(part)).estimate())

    boxed = films.dropna(subset="hit")
    row = {"AUROC": of(films)}
    row |= {f"AUROC, {view}": of(part) for view, part in by_view(films)}
    for name, column in (("hit rate", "hit"), ("mean IoU", "iou")):
        row[name] = interval_text(mean_interval(boxed[column].astype(float), boxed["patient_id"]))
    return row


def _difference(films: pd.DataFrame, base: pd.DataFrame) -> dict[str, str]:
    gap = compare_recipes(*((one, one.dropna(subset="hit")) for one in (films, base)))
    return {
        "Δ AUROC": interval_text(gap["auroc"]),
        "p of Δ AUROC": p_text(gap["auroc"]["p"]),
        "Δ hit rate": interval_text(gap["hit_rate"]),
        "Δ mean IoU": interval_text(gap["mean_iou"]),
    }


def main() -> None:
    """Trains the arms that are asked for, then prints the table of all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("arms", nargs="*", default=list(VARIANTS), help="all, unless named")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--study", type=Path, default=Path("data/rsna"))
    parser.add_argument("--output", type=Path, default=Path("output/variants"))
    given = parser.parse_args()
    # argparse cannot check the names where none is given.
    unknown = [name for name in given.arms if name not in VARIANTS]
    if unknown:
        parser.error(f"{unknown[0]!r}: expected one of {', '.join(VARIANTS)}")
    for seed in given.seeds:
        for variant in given.arms:
            train_arm(variant, seed, given.study, given.output)
    print(table(given.study, given.output))


if __name__ == "__main__":
    main()
