"""Maps for looking at films: computed once, kept in the run folder as uint8.

``explorer/<method>.npz`` holds the maps of the test films and how far each, cut at some heats, lies
on the radiologists' boxes. The exact maps are the run's own; those of another method come from its
``model.keras`` at first use. A fingerprint of what they were made from says when they are stale.
"""

import hashlib
import io
import json
import warnings
import zipfile
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from chexnet.boxes import box_masks
from chexnet.cam import class_activation_map, shared_scale
from chexnet.images import prepare_film
from chexnet.overlap import CANVAS, brightest_points, overlaps, upsample
from chexnet.runs import Run

# Part of every cache's fingerprint: a change of the steps below must change it.
FORMAT = 1
# Method and layer by name. Grad-CAM at the last layer would be the exact map times a positive
# number, for the head is linear in the mean; so the others look at layers below it, which see more
# detail and less of what it means. Every layer here is one that the whole network passes through.
METHODS = {
    "CAM": ("cam", "relu"),
    "HiResCAM": ("hirescam", "pool4_pool"),
    "Grad-CAM": ("gradcam", "pool3_pool"),
    "LayerCAM": ("layercam", "pool2_pool"),
}
SHARES = np.arange(21) / 20  # of the scale: the heats at which maps are cut
_SOURCES = ("maps.npz", "images.csv", "boxes.csv", "predictions.csv")
_BROKEN = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile)
_FILMS_AT_ONCE = 64


@dataclass(frozen=True)
class CachedMaps:
    """Maps of one method, uint8, of the test films.

    Attributes:
        image_ids: str ``(N,)``.
        levels: uint8 ``(N, C, h, w)``; 0 stands for ``low``, 255 for ``high`` of the class. The
            error is half a level.
        low: float32 ``(C,)``, the least value of the class's maps, in the method's units (logits
            for ``CAM``).
        high: float32 ``(C,)``, the largest.
        scale: float32 ``(C,)``, the value that gets the last colour (`chexnet.cam.shared_scale`).
        cuts: float32 ``(C, T)``, rising values at which maps are cut.
        iou: float32 ``(N, C, T)``, IoU of the unrounded maps cut there with the film's boxes; NaN
            where a film is not labelled with the class or has no boxes.
        brightest: float64 ``(N, C, 2)``, where the unrounded map is brightest: x, y as shares of
            the film (`chexnet.overlap.brightest_points`).
        score_error: largest difference between the scores of the pass that made the maps and those
            of ``predictions.csv``; 0 for ``CAM``, which comes from the same pass.
    """

    image_ids: np.ndarray
    levels: np.ndarray
    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray
    cuts: np.ndarray
    iou: np.ndarray
    brightest: np.ndarray
    score_error: float

    def map_of(self, row: int, class_index: int = 0) -> np.ndarray:
        """The map of a film, float32 ``(h, w)``."""
        step = (self.high[class_index] - self.low[class_index]) / 255
        return self.low[class_index] + step * self.levels[row, class_index].astype(np.float32)


def methods_at_hand(run: Run) -> list[str]:
    """Names of `METHODS` that this run can show: ``CAM``, and with a ``model.keras`` all."""
    return list(METHODS) if (run.folder / "model.keras").is_file() else ["CAM"]


def cached_maps(run: Run, method: str = "CAM") -> CachedMaps:
    """Reads the maps of a method, after making them where there are none or stale ones.

    Other methods than ``CAM`` load Keras and the model (seconds) and map the pictures of the test
    films that the run holds. Those are shrunk to 512 pixels, so the scores differ a little from
    the recorded ones; ``score_error`` says how much. The file is written whole or not at all; two
    processes may make it at once. Where the folder cannot be written, a warning says so.

    Args:
        run: with predictions, maps and films.
        method: one of `METHODS`.

    Raises:
        FileNotFoundError: the run lacks a file.
        ValueError: an unknown method, a test film without a map, or a model without its layer.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: allowed are {', '.join(map(repr, METHODS))}")
    name = f"explorer/{method.lower()}.npz"
    made_from = _fingerprint(run, method)
    found = _read(run, name, made_from)
    if found is None:
        found = _make(run, method)
        try:
            run.write_arrays(name, made_from=np.array(made_from), **vars(found))
        except OSError as error:
            warnings.warn(
                f"{run.folder / name}: cannot be written ({error}); the maps are made anew each "
                "time",
                stacklevel=2,
            )
    return found


def _read(run: Run, name: str, made_from: str) -> CachedMaps | None:
    path = run.folder / name
    if not path.is_file():
        return None
    try:
        # From memory: of a broken file NumPy would leave the handle open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            content = {key: arrays[key] for key in arrays.files}
        if str(content.pop("made_from")) != made_from:
            return None
        content["score_error"] = float(content["score_error"])
        return CachedMaps(**content)
    except _BROKEN as error:
        warnings.warn(f"{path}: not readable ({error}); it is made anew", stacklevel=3)
        return None


def _fingerprint(run: Run, method: str) -> str:
    digest = hashlib.sha256()
    what = [FORMAT, method, METHODS[method], run.class_names, _chosen_cut(run)]
    digest.update(json.dumps(what).encode())
    for name in (*_SOURCES, *(["model.keras"] if method != "CAM" else [])):
        path = run.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing, and the maps of {method} need it")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _make(run: Run, method: str) -> CachedMaps:
    films = run.predictions.query("split == 'test'")
    image_ids = films["image_id"].drop_duplicates().to_numpy(str)
    score_error = 0.0
    if method == "CAM":
        maps = run.maps_of(image_ids, "test")
    else:
        scores, maps = _maps_of_model(run, method, image_ids)
        recorded = films.pivot_table(index="image_id", columns="class_name", values="y_score")
        recorded = recorded.loc[image_ids, run.class_names].to_numpy()
        score_error = float(np.abs(scores - recorded).max())
    scale = np.array([shared_scale(one) for one in maps.swapaxes(0, 1)], np.float32)
    cuts = SHARES.astype(np.float32) * scale[:, np.newaxis]
    if method == "CAM":
        # A class without a cut of its own gets a double, so that all have the same number.
        chosen = _chosen_cut(run)
        own = [chosen.get(name, 0.0) for name in run.class_names]
        cuts = np.sort(np.column_stack([cuts, np.array(own, np.float32)]), axis=1)
    low, high = maps.min(axis=(0, 2, 3)), maps.max(axis=(0, 2, 3))
    span = np.where(high > low, high - low, 1)[:, np.newaxis, np.newaxis]
    levels = np.rint((maps - low[:, np.newaxis, np.newaxis]) / span * 255).astype(np.uint8)
    iou = _overlap_with_boxes(run, films, image_ids, maps, cuts)
    brightest = np.stack([brightest_points(one) for one in maps.swapaxes(0, 1)], axis=1)
    return CachedMaps(image_ids, levels, low, high, scale, cuts, iou, brightest, score_error)


def _chosen_cut(run: Run) -> dict[str, float]:
    """By class, the cut in logits that the evaluation chose on validation, where it can be seen."""
    found = run.metrics.get("localization", {})
    cut = found.get("thresholds", {}).get("logit")
    return {found["class_name"]: cut} if cut is not None and cut > 0 else {}


def _maps_of_model(run: Run, method: str, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Imported here: who looks at the exact maps waits for no Keras.
    from chexnet.model import load_chexnet

    model = load_chexnet(run.folder / "model.keras")
    size = model.input_shape[1]
    films = (run.film(image_id) for image_id in image_ids)
    bar = tqdm(films, desc="films", unit="film", total=len(image_ids), delay=2)
    pixels = np.stack([prepare_film(film, size) for film in bar])[..., np.newaxis]
    how, layer = METHODS[method]
    return class_activation_map(model, pixels, class_index=None, method=how, layer=layer)


def _overlap_with_boxes(
    run: Run, films: pd.DataFrame, image_ids: np.ndarray, maps: np.ndarray, cuts: np.ndarray
) -> np.ndarray:
    boxes, images = run.boxes, run.images
    iou = np.full((*maps.shape[:2], cuts.shape[1]), np.nan, np.float32)
    with tqdm(desc="maps on boxes", unit="film", total=iou.shape[0] * iou.shape[1], delay=2) as bar:
        for index, name in enumerate(run.class_names):
            its = films[(films["class_name"] == name) & (films["y_true"] == 1)]["image_id"]
            boxed = np.flatnonzero(np.isin(image_ids, its[its.isin(boxes["image_id"])].to_numpy()))
            bar.update(len(image_ids) - len(boxed))
            for start in range(0, len(boxed), _FILMS_AT_ONCE):
                some = boxed[start : start + _FILMS_AT_ONCE]
                masks = box_masks(boxes, images, image_ids[some], CANVAS)
                raw = upsample(maps[some, index], CANVAS)
                iou[some, index] = overlaps(raw, masks, cuts[index])[0]
                bar.update(len(some))
    return iou
