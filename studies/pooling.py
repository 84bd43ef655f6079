"""Does another pooling of the map, or another choice of weights, give better scores?

    python -m studies.pooling --study data/rsna --output output/pooling

The network, films and folds are those of `studies.recipe_study`: 96 pixels, 12 epochs, 2-fold
cross-validation by patient. In the network of the package the logit is the *mean* of the class
activation map plus the bias. Here the mean is replaced by another function of the same map, in
training and in scoring. Of each training four sets of weights are scored: the best epoch on
validation, the last epoch, and the average of the last 3 and 6 epochs.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from chexnet.auroc import auroc, compare_auroc, mean_interval
from chexnet.backend import keras
from chexnet.evaluation import interval_text
from chexnet.evaluation.localization import choose_map_threshold, localization_scores
from chexnet.generator import ImageStore
from chexnet.model import build_chexnet
from chexnet.runs import Run
from chexnet.training import recipe, train
from studies.cross_validation import batches_of, fold_splits
from studies.recipe_study import BATCH, EPOCHS, FOLDS, IMAGE_SIZE, films_of, parse_arms

layers, ops = keras.layers, keras.ops

# How the map becomes the logit. "mean" is the network of the package, with its own head.
POOLINGS = {
    "mean": "mean",
    "pcam": "mean, weighted by the sigmoid of the map (probabilistic CAM, arXiv:2005.14480)",
    "top10%": "mean of the highest tenth",
    "lse2": "log-mean-exp with r = 2 (arXiv:1411.6228)",
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


def build(pooling: str) -> keras.Model:
    """The network of the recipe, with this pooling."""
    network = build_chexnet(IMAGE_SIZE, weights=None, **recipe(None)["model"])
    if pooling == "mean":
        return network
    head = PooledHead(pooling, name="predictions", dtype="float32")
    return keras.Model(network.input, head(network.get_layer("relu").output), name="chexnet")


def train_arm(pooling: str, seed: int, study: Path, output: Path) -> None:
    """Trains and scores both folds; one that is finished is not trained again."""
    images, boxes = films_of(study)
    store = ImageStore(study / "jpg", images["image_id"], image_size=IMAGE_SIZE)
    for fold, split in enumerate(fold_splits(images, folds=FOLDS), 1):
        folder = output / f"{pooling}-{seed}" / f"fold-{fold}"
        if (folder / "scores.npz").is_file():
            continue
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        model = build(pooling)
        split_images = images.assign(split=split)
        settings = {"pooling": pooling, "seed": seed, "class_names": ["Pneumonia"]}
        run = Run.create(folder, settings=settings, images=split_images, boxes=boxes)
        settings |= recipe(None) | {"batch_size": BATCH}
        batches, val = batches_of(store, split_images, boxes, model, settings, workers=1)
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
    """Every finished arm, beside the network of the package with the same seed."""
    images, boxes = films_of(study)
    found = {
        (folder.name, weights): results(folder, weights, images, boxes)
        for folder in sorted(output.iterdir())
        if (folder / f"fold-{FOLDS}" / "scores.npz").is_file()
        for weights in WEIGHTS
    }
    rows = []
    for (arm, weights), films in found.items():
        pooling, seed = arm.rsplit("-", 1)
        row = {"pooling": pooling, "seed": seed, "weights": WEIGHTS[weights]}
        base = found[f"mean-{seed}", "best"]
        rows.append(row | _measures(films) | _difference(films, base))
    each = [
        films
        for (arm, weights), films in found.items()
        if arm.startswith("mean-") and weights == "best"
    ]
    if len(each) > 1:
        mean = each[0].assign(score=np.mean([one["score"] for one in each], axis=0))
        row = {"pooling": "mean", "seed": "mean of the scores of all", "weights": WEIGHTS["best"]}
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
    given = parse_arms(parser, POOLINGS, "output/pooling")
    for seed in given.seeds:
        for pooling in given.arms:
            train_arm(pooling, seed, given.study, given.output)
    print(table(given.study, given.output))


if __name__ == "__main__":
    main()
