"""Scores and maps of a trained network, stored in its run."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from chexnet.backend import keras
from chexnet.cam import class_activation_map, score_films
from chexnet.evaluation import fit_familiarity
from chexnet.files import read_image
from chexnet.generator import AugmentedImageSequence, ImageStore
from chexnet.runs import Run

# Enough to estimate the covariance of 1,024 features; scoring all would take longer than it helps.
MOST_TRAINING_FILMS = 4096
_FILES = ("predictions.csv", "maps.npz", "features.npz", "preparation.json")


def record_scores(
    run: Run,
    model: keras.Model,
    store: ImageStore,
    film_folder: str | Path,
    *,
    methods: Iterable[str] = ("CAM",),
    batch_size: int = 32,
) -> pd.DataFrame:
    """Scores the validation and test films and stores what notebooks 04 and 05 need.

    Writes ``predictions.csv``, ``maps.npz``, ``features.npz``, ``preparation.json`` and ``films/``
    of the run, and ``scoring.json``, which says what they were made from. If all of that is the
    same, nothing is computed again: one line says so. Else earlier ones, and what was made from
    them, are moved to ``earlier/``.

    Args:
        run: made with `Run.create`; its ``images`` say which film is in which split.
        model: the trained network.
        store: has the films of all splits.
        film_folder: folder of the films as ``<image_id>.jpg``; those of the test films are copied.
        methods: names of `chexnet.cam.METHODS` whose maps are stored. ``"CAM"``, which the
            evaluation needs, always is; each other one takes another pass over the films.
        batch_size: films per forward pass.

    Returns:
        ``image_id, split, class_name, y_true, y_score``, one row a film and class.

    Raises:
        ValueError: an unknown method, films with other pixels than those that the run was created
            with, or a score that is NaN.
        BlockingIOError: another process is training in the run folder or scoring it.

    Example:
        >>> from chexnet.files import read_table
        >>> from chexnet.generator import ImageStore
        >>> from chexnet.model import build_chexnet
        >>> from chexnet.runs import Run
        >>> from chexnet.training import record_scores
        >>> images, boxes = (read_table(f"data/phantom/{name}.csv") for name in ("images", "boxes"))
        >>> settings = {"class_names": ["Pneumonia"]}
        >>> run = Run.create("output/scored", settings=settings, images=images, boxes=boxes)
        >>> store = ImageStore("data/phantom/jpg", images["image_id"], image_size=32)
        >>> model = build_chexnet(32, weights=None)
        >>> scores = record_scores(run, model, store, "data/phantom/jpg")
        >>> list(scores)
        ['image_id', 'split', 'class_name', 'y_true', 'y_score']
    """
    methods = ["CAM", *(method for method in methods if method != "CAM")]
    with run.lock():
        run.remove_unfinished()
        images, names = run.images, run.class_names
        pixels = run.config.get("pixels")
        made_from = _made_from(run, model, store, methods)
        if pixels is not None and pixels != made_from["pixels"]:
            raise ValueError(
                f"{run.folder}: the films in {store.folder} have other pixels than those that the "
                "run was created with; bring them back, or train on these in another run (RUN)"
            )
        if _is_scored(run, made_from):
            print(f"{run.folder}: scored before with this network and these films; loaded.")
            return run.read_table("predictions.csv").astype({"y_true": "Int64"})
        scored = images[images["split"].isin(["val", "test"])].reset_index(drop=True)
        some = images[images["split"] == "train"]
        some = some.sample(min(len(some), MOST_TRAINING_FILMS), random_state=0)
        sequence, training = (
            AugmentedImageSequence(
                store,
                films,
                class_names=names,
                batch_size=batch_size,
                shuffle=False,
                seed=0,
                workers=1,
            )
            for films in (scored, some)
        )
        scores, cam, features = score_films(model, sequence)
        maps = {"CAM": cam}
        for method in methods[1:]:
            maps[method] = class_activation_map(model, sequence, class_index=None, method=method)[1]
        predictions = scored.melt(["image_id", "split"], names, "class_name", "y_true")
        predictions["y_true"] = predictions["y_true"].astype("Int64")
        predictions["y_score"] = scores.T.ravel().astype(float)
        test = scored.loc[scored["split"] == "test", "image_id"]
        for image_id in tqdm(test, desc="saving test images", unit=" images", delay=2):
            run.write_film(image_id, read_image(Path(film_folder) / f"{image_id}.jpg"))
        bias = keras.ops.convert_to_numpy(model.get_layer("predictions").bias)
        run.write_scores(predictions, scored["image_id"], maps, bias=bias)
        seen, is_val = score_films(model, training)[2], scored["split"] == "val"
        films = store[some["image_id"]][..., 0]
        run.write_arrays("features.npz", **fit_familiarity(seen, features[is_val], films))
        run.write_json("preparation.json", store.preparation)
        files = {name: run.fingerprint(name) for name in _FILES}
        run.write_json("scoring.json", {"made_from": made_from, "files": files})
        return predictions


def _made_from(run: Run, model: keras.Model, store: ImageStore, methods: list[str]) -> dict:
    network = hashlib.sha256()
    for array in model.get_weights():
        network.update(array.tobytes())
    return {
        "network": network.hexdigest(),
        "pixels": store.fingerprint(run.images["image_id"]),
        "preparation": store.preparation,
        "images": run.fingerprint("images.csv"),
        "methods": sorted(methods),
    }


def _is_scored(run: Run, made_from: dict) -> bool:
    """Whether the run has the scores of all this, and its files are those that were written."""
    if not (run.folder / "scoring.json").is_file():
        return False
    there = run.read_json("scoring.json")
    if there.get("made_from") != made_from or set(there.get("files", {})) != set(_FILES):
        return False
    test = run.images.loc[run.images["split"] == "test", "image_id"]
    stored = {path.stem for path in (run.folder / "films").glob("*.jpg")}
    return stored.issuperset(test) and run.has_files(there["files"])
