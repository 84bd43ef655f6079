"""Cross-validation: every film is scored once, by a network that never saw its patient."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from chexnet.backend import keras
from chexnet.generator import AugmentedImageSequence, ImageStore, default_augmenter
from chexnet.model import build_chexnet, map_size
from chexnet.runs import Run, data_fingerprint
from chexnet.splits import check_disjoint, folds_by_patient, split_by_patient
from chexnet.training import record_scores, train

# Of the films outside the fold that is scored: enough for thresholds and the choice of the epoch.
VALIDATION = 0.15


def cross_validate(
    folder: str | Path,
    store: ImageStore,
    images: pd.DataFrame,
    boxes: pd.DataFrame,
    film_folder: str | Path,
    *,
    recipe: Mapping[str, Mapping],
    class_names: Sequence[str] = ("Pneumonia",),
    weights: str | Path | None = None,
    folds: int = 3,
    batch_size: int = 16,
    seed: int = 0,
    workers: int = 2,
) -> list[Run]:
    """Trains one network a fold; each fold is a run like any other.

    Begun again after an interruption, it goes on where it broke off. Folds
    depend on the films and the seed alone, so two recipes are compared film by film.

    Args:
        folder: gets ``fold-1``, ``fold-2`` and so on, each a run folder.
        store: holds the films.
        images: one row a film, as notebook 02 writes it; its ``split`` is not used.
        boxes: ``image_id, x, y, width, height``, pixels of the original film.
        film_folder: where the films lie as ``<image_id>.jpg``.
        recipe: as `chexnet.training.recipe` gives it.
        class_names: columns of ``images``.
        weights: of `chexnet.model.build_chexnet`.
        folds: 2 or more.
        batch_size: films a step.
        seed: of folds, weights, order and augmentation.
        workers: threads that prepare batches.

    Returns:
        the runs, in the order of the folds.

    Raises:
        ValueError: as `chexnet.splits.folds_by_patient` and `chexnet.training.train`; or a fold
            there was trained with other settings or on other data.
    """
    size = store.image_size
    settings = {"class_names": list(class_names), "image_size": size, "folds": folds}
    settings |= {"weights": weights and str(weights), "batch_size": batch_size, "seed": seed}
    settings |= {name: dict(values) for name, values in recipe.items()}
    runs = []
    for fold, split in enumerate(fold_splits(images, folds=folds, seed=seed), 1):
        place = Path(folder) / f"fold-{fold}"
        split_images = images.assign(split=split)
        finished = _finished(
            place,
            settings | {"fold": fold},
            data_fingerprint(split_images, boxes),
            store.fingerprint(images["image_id"]),
        )
        if finished is None:
            finished = _train_fold(
                place,
                store,
                split_images,
                boxes,
                film_folder,
                settings=settings | {"fold": fold},
                workers=workers,
            )
        runs.append(finished)
    return runs


def fold_splits(images: pd.DataFrame, *, folds: int, seed: int = 0) -> list[pd.Series]:
    """The split of each fold: ``test`` is the fold, ``val`` is taken from the rest by patient.

    Args:
        images: as for `chexnet.splits.split_by_patient`.
        folds: 2 or more.
        seed: 0 or above.

    Returns:
        a str Series of ``train``, ``val`` and ``test`` for each fold; index as ``images``.

    Raises:
        ValueError: as `chexnet.splits.folds_by_patient`.
    """
    fold_of = folds_by_patient(images, folds=folds, seed=seed)
    splits = []
    for fold in range(folds):
        rest = images[fold_of != fold]
        with warnings.catch_warnings():
            # The one warning about films without a patient has been given for the folds.
            warnings.filterwarnings("ignore", message=".*patient_id")
            split = split_by_patient(
                rest, train=1 - VALIDATION, val=VALIDATION, test=0.0, seed=seed
            )
        split = split.reindex(images.index).fillna("test")
        check_disjoint(images, split)
        splits.append(split)
    return splits


def _finished(place: Path, settings: dict, fingerprint: str, pixels: str) -> Run | None:
    if not (place / "predictions.csv").is_file():
        return None
    run = Run(place)
    same_pixels = run.config.get("pixels") in (None, pixels)  # older runs did not record them
    if run.config["data_fingerprint"] != fingerprint or not same_pixels:
        raise ValueError(
            f"{place}: trained on other films, labels, boxes or folds; give another folder"
        )
    there = {name: run.config["settings"].get(name) for name in settings}
    differing = [name for name in settings if there[name] != settings[name]]
    if differing:
        raise ValueError(
            f"{place}: trained with another {differing}, such as {differing[0]} = "
            f"{there[differing[0]]} and not {settings[differing[0]]}; give another folder"
        )
    return run


def _train_fold(
    place: Path,
    store: ImageStore,
    images: pd.DataFrame,
    boxes: pd.DataFrame,
    film_folder: str | Path,
    *,
    settings: dict,
    workers: int,
) -> Run:
    keras.backend.clear_session()  # or the networks of all folds stay in memory
    keras.utils.set_random_seed(settings["seed"])
    names, size = settings["class_names"], settings["image_size"]
    model = build_chexnet(size, class_names=names, weights=settings["weights"], **settings["model"])
    tables = {"images": images, "boxes": boxes, "pixels": store.fingerprint(images["image_id"])}
    run = Run.create(place, settings=settings, resume=True, **tables)
    training, validation = batches_of(store, images, boxes, model, settings, workers=workers)
    train(model, training, validation, run, resume=True, **settings["training"])
    record_scores(run, model, store, film_folder)
    return run


def batches_of(
    store: ImageStore,
    images: pd.DataFrame,
    boxes: pd.DataFrame,
    model: keras.Model,
    settings: Mapping[str, Any],
    *,
    workers: int,
    sequence: type[AugmentedImageSequence] = AugmentedImageSequence,
) -> tuple[AugmentedImageSequence, AugmentedImageSequence]:
    """The training batches of a fold, augmented, and its validation batches.

    Args:
        store: holds the films.
        images: with ``split``.
        boxes: as for `cross_validate`; used where ``box_weight`` is above 0.
        model: gives the size of the map.
        settings: ``class_names``, ``batch_size``, ``seed``, ``augmentation`` and ``training``.
        workers: threads that prepare batches.
        sequence: of the training batches.
    """
    common = {name: settings[name] for name in ("class_names", "batch_size", "seed")}
    augmented = {"augmenter": default_augmenter(store.image_size, **settings["augmentation"])}
    if settings["training"].get("box_weight"):
        augmented |= {"boxes": boxes, "map_size": map_size(model)}
    parts = dict(iter(images.groupby("split")))
    return (
        sequence(store, parts["train"], shuffle=True, workers=workers, **augmented, **common),
        AugmentedImageSequence(store, parts["val"], shuffle=False, workers=workers, **common),
    )
