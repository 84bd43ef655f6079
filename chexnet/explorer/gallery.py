"""What the explorer shows, without its controls: films in an order, and their pictures.

Maps for looking at films: computed once, kept in the run folder as uint8.

``explorer/<method>.npz`` holds the maps of the test films and how far each, cut at some heats, lies
on the radiologists' boxes. The exact maps are the run's own; those of another method come from its
``model.keras`` at first use. A fingerprint of what they were made from says when they are stale.
"""

import functools
import hashlib
import html
import io
import json
import warnings
import zipfile
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from chexnet.cam import (
    CANVAS,
    METHODS,
    class_activation_map,
    peak_points,
    shared_scale,
    upsample_map,
)
from chexnet.evaluation import (
    OUTCOMES,
    chosen_threshold,
    header_text,
    outcomes_at,
    overlaps,
    scored_films,
)
from chexnet.figures import BLUE, BOX_COLOR, OPACITY, RED, blend
from chexnet.generator import equalise, prepare_film
from chexnet.labels import box_masks, points_in_boxes, scale_boxes
from chexnet.runs import Run

# Part of every cache's fingerprint: a change of the steps below must change it.
FORMAT = 1
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
            the film (`chexnet.cam.peak_points`).
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
    brightest = np.stack([peak_points(one) for one in maps.swapaxes(0, 1)], axis=1)
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
    return class_activation_map(model, pixels, class_index=None, method=method)


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
                raw = upsample_map(maps[some, index], CANVAS)
                iou[some, index] = overlaps(raw, masks, cuts[index])[0]
                bar.update(len(some))
    return iou


SORTS = {
    "score": "score, highest first",
    "iou": "IoU with the boxes, lowest first",
    "disagreement": "score against label, furthest first",
}
# Lossy at a quality at which no grey value of a film moves by more than two or three; a PNG of the
# same picture takes twenty times as long to write.
_JPG = [
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
]
_BINS = 20
_WIDE, _HALF = 300, 56  # the histogram's width, and its height above and below the line, pixels


class Gallery:
    """The test films of a run, one class at a time, to be looked at one by one.

    Attributes:
        run: where everything is read from.
        class_name: whose label, score and maps are meant.
        films: one row a test film: ``image_id, y_true, y_score`` and the facts of its header.
        threshold: the score from which a film is called, by Youden's rule on validation.
        chosen_cut: the cut of the exact maps in logits that the evaluation chose on validation, or
            None.
    """

    def __init__(self, run: Run, class_name: str | None = None) -> None:
        """Reads the tables; maps and films are read when they are asked for.

        Raises:
            ValueError: an unknown class, no test film, or no threshold to be had.
        """
        self.run = run
        self.class_name = run.chosen_class(class_name)
        _, films = scored_films(run, self.class_name)
        self.class_index = run.class_names.index(self.class_name)
        self.films = films.reset_index(drop=True)
        self.threshold = chosen_threshold(run, class_name=self.class_name)[0]
        found = run.metrics.get("localization", {})
        ours = found.get("class_name") == self.class_name
        self.chosen_cut = found["thresholds"]["logit"] if ours else None
        self._boxes = dict(iter(run.boxes.groupby("image_id")))
        self._maps: dict[str, CachedMaps] = {}
        self.pixels = functools.lru_cache(32)(run.film)

    def maps(self, method: str) -> CachedMaps:
        """The maps of a method of `chexnet.cam.METHODS`, made at first use."""
        if method not in self._maps:
            self._maps[method] = cached_maps(self.run, method)
        return self._maps[method]

    def iou(self, method: str, cut: int) -> np.ndarray:
        """IoU with the boxes of each film's map at one of its cuts, ``(N,)``, NaN without boxes."""
        maps = self.maps(method)
        rows = pd.Series(np.arange(len(maps.image_ids)), index=maps.image_ids)
        return maps.iou[rows[self.films["image_id"]].to_numpy(), self.class_index, cut]

    def outcomes(self, threshold: float) -> np.ndarray:
        """TP, FN, TN or FP of each film at a threshold of the score, ``(N,)``."""
        return outcomes_at(self.films["y_true"], self.films["y_score"], threshold)

    def order(
        self,
        outcome: str,
        sort: str,
        *,
        threshold: float,
        method: str = "CAM",
        cut: int = 0,
        reverse: bool = False,
    ) -> np.ndarray:
        """The films of an outcome, sorted.

        Args:
            outcome: TP, FN, TN, FP or ``"all"``.
            sort: one of `SORTS`; equals by image id.
            threshold: a film is called positive at this score or above.
            method: whose IoU is meant.
            cut: which of the method's cuts.
            reverse: the other way round. Films without a value (no boxes) come last either way.

        Returns:
            row numbers of ``films``.

        Raises:
            ValueError: an unknown outcome or sort.
        """
        if outcome not in ("all", *OUTCOMES) or sort not in SORTS:
            raise ValueError(
                f"outcome={outcome!r}, sort={sort!r}: allowed are {['all', *OUTCOMES]} and "
                f"{list(SORTS)}"
            )
        if sort == "iou":
            keys = self.iou(method, cut).astype(np.float64)
        elif sort == "score":
            keys = -self.films["y_score"].to_numpy()
        else:
            keys = -(self.films["y_true"] - self.films["y_score"]).abs().to_numpy()
        keys = -keys if reverse else keys
        rows = np.lexsort((self.films["image_id"], keys))  # NaN last
        return rows[(self.outcomes(threshold)[rows] == outcome) | (outcome == "all")]

    def film_jpg(self, row: int, *, clahe: bool) -> bytes:
        """A film as the run stores it, byte for byte; or equalised as for the network."""
        image_id = self.films["image_id"][row]
        if not clahe:
            return (self.run.folder / "films" / f"{image_id}.jpg").read_bytes()
        return jpg(equalise(self.pixels(image_id)))

    def overlay(
        self,
        row: int,
        *,
        method: str = "CAM",
        cut: int = 0,
        opacity: float = OPACITY,
        boxes: bool = True,
        clahe: bool = False,
        colormap: str = "heat",
    ) -> np.ndarray:
        """A film with its map and its boxes.

        Args:
            row: which film.
            method: whose map.
            cut: which of the method's cuts; what lies below it is left out, and its border drawn
                in white.
            opacity: of the last colour, 0 to 1.
            boxes: whether to draw the radiologists' boxes.
            clahe: whether to equalise the film first.
            colormap: as in `chexnet.figures.overlay_cam`.

        Returns:
            uint8 ``(H, W, 3)``, RGB, of the stored film's size.
        """
        image_id = self.films["image_id"][row]
        film = self.pixels(image_id)
        maps = self.maps(method)
        its = maps.map_of(int(np.flatnonzero(maps.image_ids == image_id)[0]), self.class_index)
        lowest = float(maps.cuts[self.class_index, cut])
        fine = upsample_map(its, film.shape)
        picture = blend(
            equalise(film) if clahe else film,
            np.where(fine >= lowest, fine, 0),
            scale=float(maps.scale[self.class_index]),
            colormap=colormap,
            opacity=opacity,
        )
        if lowest > 0 and opacity > 0:
            marked = (fine >= lowest).astype(np.uint8)
            borders = cv2.findContours(marked, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
            cv2.drawContours(picture, borders, -1, (255, 255, 255), 1)
        if boxes and image_id in self._boxes:
            film_facts = self.films.loc[row]
            scaled = scale_boxes(
                self._boxes[image_id], film_facts["rows"], film_facts["columns"], film.shape
            )
            _draw_boxes(picture, scaled)
        return picture

    def facts(
        self, row: int, *, position: str, threshold: float, method: str = "CAM", cut: int = 0
    ) -> str:
        """What there is to say about a film, as HTML: its place, outcome, score, header, IoU."""
        film = self.films.loc[row]
        outcomes = self.outcomes(threshold)
        outcome = outcomes[row]
        maps, image_id = self.maps(method), film["image_id"]
        lines = [
            ("position", position),
            (f"outcome {outcome}", OUTCOMES[outcome][0]),
            ("score", f"score {film['y_score']:.3f}, called from {threshold:.3f} on"),
            ("header", header_text(film)),
            ("label", str(film.get("detailed_class", ""))),
            ("map", self._map_text(maps, image_id, self.iou(method, cut)[row])),
            ("image-id", image_id),
        ]
        counts = " · ".join(f"{name} {(outcomes == name).sum()}" for name in OUTCOMES)
        lines.append(("counts", f"{counts} of {len(outcomes)} test films"))
        paragraphs = [
            f'<p class="{kind}">{html.escape(text)}</p>' for kind, text in lines if text.strip()
        ]
        paragraphs.insert(3, self.histogram_svg(threshold, film["y_score"]))
        return "\n".join(paragraphs)

    def histogram_svg(self, threshold: float, score: float) -> str:
        """Scores of films with the finding above the line, of those without below it, as SVG.

        The dashed line is the threshold, the black mark the score of the film at hand.
        """
        y, scores = self.films["y_true"].to_numpy() == 1, self.films["y_score"].to_numpy()
        counts = [np.histogram(scores[y == which], _BINS, (0, 1))[0] for which in (True, False)]
        unit = _HALF / max(1, *(count.max() for count in counts))
        wide = _WIDE / _BINS
        bars = []
        for count, colour, up in zip(counts, (RED, BLUE), (True, False), strict=True):
            for number, films in enumerate(count):
                tall = max(films * unit, 2) if films else 0  # one film among thousands is seen
                top = _HALF - tall if up else _HALF
                bars.append(
                    f'<rect x="{number * wide + 0.5:.1f}" y="{top:.1f}" width="{wide - 1:.1f}" '
                    f'height="{tall:.1f}" fill="{colour}"/>'
                )
        at, here = threshold * _WIDE, score * _WIDE
        finding, below = html.escape(self.class_name.lower()), 2 * _HALF + 16
        return (
            f'<svg class="histogram" viewBox="-8 -14 {_WIDE + 16} {2 * _HALF + 32}" role="img">'
            f"<title>score {score:.3f}, threshold {threshold:.3f}</title>{''.join(bars)}"
            f'<path d="M0 {_HALF}H{_WIDE}" stroke="currentColor"/>'
            f'<path d="M{at:.1f} -2V{2 * _HALF + 2}" stroke="currentColor" stroke-dasharray="4 3"/>'
            f'<path class="here" d="M{here:.1f} {_HALF}V-4M{here - 5:.1f} -12h10l-5 9z" '
            'stroke="currentColor" stroke-width="2" fill="currentColor"/>'
            f'<text x="0" y="{below}">0</text><text x="14" y="{below}">'
            f'<tspan class="with">▲ with {finding}</tspan>  '
            '<tspan class="without">▼ without</tspan></text>'
            f'<text x="{_WIDE}" y="{below}" text-anchor="end">score 1</text></svg>'
        )

    def _map_text(self, maps: CachedMaps, image_id: str, iou: float) -> str:
        if np.isnan(iou):
            return "no boxes"
        row = np.flatnonzero(maps.image_ids == image_id)
        point = maps.brightest[row, self.class_index]
        hit = points_in_boxes(point, np.array([image_id]), self._boxes[image_id], self.films)[0]
        where = "inside a box (hit)" if hit else "outside the boxes (miss)"
        return f"IoU {iou:.2f} with the boxes; brightest {where}"


def jpg(pixels: np.ndarray) -> bytes:
    """A picture uint8 ``(H, W)`` or RGB ``(H, W, 3)`` as JPG."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", pixels, _JPG)[1].tobytes()


def _draw_boxes(picture: np.ndarray, boxes: pd.DataFrame) -> None:
    colour = tuple(int(BOX_COLOR[i : i + 2], 16) for i in (1, 3, 5))
    line = max(1, round(max(picture.shape) / 256))
    for x, y, width, height in boxes[["x", "y", "width", "height"]].to_numpy(float):
        corners = (round(x), round(y)), (round(x + width) - 1, round(y + height) - 1)
        cv2.rectangle(picture, *corners, (0, 0, 0), line + 2)
        cv2.rectangle(picture, *corners, colour, line)
