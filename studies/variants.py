"""Do variants of the network and its training, which `recipe` cannot express, give better scores?

    python -m studies.variants --study data/rsna --output output/variants

The films and folds are those of `studies.recipe_study`: 96 pixels, 12 epochs, 2-fold
cross-validation by patient. Of each training four sets of weights are scored: the best epoch on
validation, the last epoch, and the average of the last 3 and 6 epochs.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from chexnet.auroc import auroc, compare_auroc, mean_interval
from chexnet.backend import keras
from chexnet.evaluation import interval_text
from chexnet.evaluation.localization import choose_map_threshold, localization_scores
from chexnet.generator import AugmentedImageSequence, ImageStore
from chexnet.model import build_chexnet
from chexnet.runs import Run
from chexnet.training import recipe, train
from studies.cross_validation import batches_of, fold_splits
from studies.recipe_study import BATCH, EPOCHS, FOLDS, IMAGE_SIZE, films_of, parse_arms

layers, ops = keras.layers, keras.ops

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


class Variant(NamedTuple):
    """In what a variant differs from the recipe."""

    title: str
    change: Callable[[keras.Model], keras.Model] | None = None
    sequence: type[AugmentedImageSequence] = AugmentedImageSequence
    film_weights: Callable[[pd.DataFrame], np.ndarray] | None = None


VARIANTS = {
    "mean": Variant("as recommended"),
    **{key: Variant(title, partial(_with_pooling, key)) for key, title in POOLINGS.items()},
    "stride8": Variant("map stride 8", _with_stride_8),  # one connection, as arXiv:2010.11475
    "soft": Variant("soft masks", sequence=SoftMasks),
    "views": Variant("same prevalence in AP and PA", None, WeightedDraws, equal_views),
    "abnormal": Variant(
        "negatives that are not normal twice as often", None, WeightedDraws, abnormal_twice
    ),
}


def train_arm(variant: str, seed: int, study: Path, output: Path) -> None:
    """Trains and scores both folds; one that is finished is not trained again."""
    chosen = VARIANTS[variant]
    images, boxes = films_of(study)
    store = ImageStore(study / "jpg", images["image_id"], image_size=IMAGE_SIZE)
    for fold, split in enumerate(fold_splits(images, folds=FOLDS), 1):
        folder = output / f"{variant}-{seed}" / f"fold-{fold}"
        if (folder / "scores.npz").is_file():
            continue
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        model = build_chexnet(IMAGE_SIZE, weights=None, **recipe(None)["model"])
        model = model if chosen.change is None else chosen.change(model)
        split_images = images.assign(split=split)
        settings = {"variant": variant, "seed": seed, "class_names": ["Pneumonia"]}
        run = Run.create(folder, settings=settings, images=split_images, boxes=boxes)
        settings |= recipe(None) | {"batch_size": BATCH}
        batches, val = batches_of(
            store, split_images, boxes, model, settings, workers=1, sequence=chosen.sequence
        )
        if chosen.film_weights is not None:
            batches.film_weights = chosen.film_weights(images[split == "train"])
        options = settings["training"] | {"epochs": EPOCHS}
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
    """Scores ``(N,)`` and maps ``(N, h, w)`` by each set of weights."""
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
        ``image_id, patient_id, view, Pneumonia, fold, score``; ``hit`` and ``iou`` of films with
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
        part = part.assign(fold=fold, score=scores[test].astype(float))
        parts.append(part.merge(where[["image_id", "hit", "iou"]], how="left", on="image_id"))
    return pd.concat(parts, ignore_index=True)


def table(study: Path, output: Path) -> str:
    """Every finished variant, beside the recommended network of the same seed."""
    images, boxes = films_of(study)
    found = {
        (folder.name, weights): results(folder, weights, images, boxes)
        for variant in VARIANTS
        for folder in sorted(output.glob(f"{variant}-*"))
        if (folder / f"fold-{FOLDS}" / "scores.npz").is_file()
        for weights in (WEIGHTS if variant == "mean" else ["best"])
    }
    rows = []
    for (arm, weights), films in found.items():
        variant, seed = arm.rsplit("-", 1)
        row = {"variant": VARIANTS[variant].title, "seed": seed, "weights": WEIGHTS[weights]}
        base = found[f"mean-{seed}", "best"]
        rows.append(row | _measures(films) | _difference(films, base))
    each = [
        films
        for (arm, weights), films in found.items()
        if arm.startswith("mean-") and weights == "best"
    ]
    if len(each) > 1:
        mean = each[0].assign(score=np.mean([one["score"] for one in each], axis=0))
        row = {"variant": VARIANTS["mean"].title, "seed": "mean score", "weights": WEIGHTS["best"]}
        rows.append(row | _measures(mean, maps=False) | _difference(mean, each[0], maps=False))
    return pd.DataFrame(rows).fillna("").to_markdown(index=False)


def _measures(films: pd.DataFrame, *, maps: bool = True) -> dict[str, str]:
    def of(part: pd.DataFrame) -> str:
        found = auroc(
            part["Pneumonia"], part["score"], groups=part["patient_id"], strata=part["fold"]
        )
        return interval_text(found.estimate())

    boxed = films.dropna(subset="hit")
    row = {"AUROC": of(films)}
    row |= {f"AUROC, {view}": of(films[films["view"] == view]) for view in ("AP", "PA")}
    if maps:
        for name, column in (("hit rate", "hit"), ("mean IoU", "iou")):
            found = mean_interval(boxed[column].astype(float), boxed["patient_id"])
            row[name] = interval_text(found)
    return row


def _difference(films: pd.DataFrame, base: pd.DataFrame, *, maps: bool = True) -> dict[str, str]:
    if films["score"].equals(base["score"]):
        return {}
    gap = compare_auroc(
        films["Pneumonia"], films["score"], base["score"],
        groups=films["patient_id"], strata=films["fold"],
    ).estimate()  # fmt: skip
    row = {"Δ AUROC": interval_text(gap), "p": f"{gap['p']:.2g}"}
    if maps:
        both = films.dropna(subset="hit").merge(base, on="image_id", suffixes=("", "_base"))
        hits = both["hit"].astype(float) - both["hit_base"].astype(float)
        row["Δ hit rate"] = interval_text(mean_interval(hits, both["patient_id"]))
    return row


def main() -> None:
    """Trains the arms that are asked for, then prints the table of all that are finished."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    given = parse_arms(parser, VARIANTS, "output/variants")
    for seed in given.seeds:
        for variant in given.arms:
            train_arm(variant, seed, given.study, given.output)
    print(table(given.study, given.output))


if __name__ == "__main__":
    main()
