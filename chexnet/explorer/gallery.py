"""The contents of the explorer, without its controls: films in an order, and their pictures."""

import functools
import html

import cv2
import numpy as np
import pandas as pd

from chexnet.cam import shared_scale, upsample_map
from chexnet.evaluation import (
    OUTCOMES,
    cam_threshold,
    chosen_threshold,
    iou_at,
    localization_scores,
    outcomes_at,
)
from chexnet.figures import BLUE, BOX_COLOR, NO_MAP, OPACITY, RED, blend, header_text
from chexnet.generator import apply_clahe
from chexnet.labels import scale_boxes
from chexnet.runs import Run

SORTS = {
    "score": "score, highest first",
    "iou": "IoU, lowest first",
    "error": "largest error first",
}
# Lossy, but no gray value of a film changes by more than two or three. A PNG of the same picture
# takes twenty times as long to write.
_JPG = [
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
]
_STEPS = 20  # of the map threshold, from 0 to the scale of the maps
_BINS = 20
_WORD = 20  # letters of a class beside the histogram; the selector has them all
_WIDE, _HALF = 300, 56  # the histogram's width, and its height above and below the line, pixels


class Gallery:
    """The test films of a run, for one class; a film is a row number of ``films``."""

    def __init__(self, run: Run, class_name: str | None = None) -> None:
        """Reads the tables; maps and films are read when they are first shown."""
        self.run = run
        self._scores = run.fingerprint("predictions.csv")
        self.class_name = run.chosen_class(class_name)
        _, self.films = run.scored_films(self.class_name)
        self.threshold, _ = chosen_threshold(run, class_name=self.class_name)
        self.chosen_map_threshold = cam_threshold(run, self.class_name)
        self.boxes = run.boxes_of(self.class_name)
        self._boxes_of = dict(iter(self.boxes.groupby("image_id")))
        boxed = self.films["image_id"].isin(self.boxes["image_id"])
        self._has_boxes = (boxed & (self.films["y_true"] == 1)).to_numpy()
        self.has_boxes = bool(self._has_boxes.any())  # on any film
        self.pixels = functools.lru_cache(32)(run.film)
        self.maps = functools.cache(self._read_maps)
        self.scale = functools.cache(lambda method: shared_scale(self.maps(method)))
        self.iou = functools.cache(self._compute_iou)
        # Whether the map of each film has finite values only.
        self._has_map = functools.cache(
            lambda method: np.isfinite(self.maps(method)).all(axis=(1, 2))
        )

    def _read_maps(self, method: str) -> np.ndarray:
        """The raw maps of a method, ``(N, h, w)``."""
        if self.run.fingerprint("predictions.csv") != self._scores:
            raise ValueError(
                f"{self.run.folder}: scored again since the explorer was opened; run explore(...) "
                "again"
            )
        maps = self.run.maps_of(self.films["image_id"], "test", method)
        return maps[:, self.run.class_names.index(self.class_name)]

    def _compute_iou(self, method: str) -> np.ndarray:
        """IoU of maps and boxes at each of `map_thresholds`, ``(N, T)``; NaN without boxes."""
        image_ids = self.films["image_id"].to_numpy(str)
        thresholds = np.array(self.map_thresholds(method))
        iou = np.full((len(image_ids), len(thresholds)), np.nan)
        rows = self._has_boxes & self._has_map(method)
        maps = self.maps(method)[rows]
        iou[rows] = iou_at(maps, image_ids[rows], self.boxes, self.films, thresholds)
        return iou

    def map_thresholds(self, method: str) -> list[float]:
        """The thresholds to choose from, in the units of the method's maps."""
        thresholds = [step / _STEPS * self.scale(method) for step in range(_STEPS + 1)]
        chosen = self.chosen_map_threshold
        if method == "CAM" and chosen is not None and chosen > 0:
            thresholds.append(chosen)
        return sorted(thresholds)

    def outcomes(self, threshold: float) -> np.ndarray:
        """TP, FN, TN or FP of each film at a decision threshold, ``(N,)``."""
        return outcomes_at(self.films["y_true"], self.films["y_score"], threshold)

    def order(
        self,
        outcome: str,
        sort: str,
        *,
        threshold: float,
        method: str = "CAM",
        map_threshold: float = 0.0,
        reverse: bool = False,
    ) -> np.ndarray:
        """The films of an outcome (or ``"all"``), sorted by one of `SORTS`, ties by image id.

        Films without IoU (no boxes) come last, also in reverse order.
        """
        if sort == "iou":
            keys = self.iou(method)[:, self.map_thresholds(method).index(map_threshold)]
        elif sort == "score":
            keys = -self.films["y_score"].to_numpy()
        else:
            keys = -(self.films["y_true"] - self.films["y_score"]).abs().to_numpy()
        keys = -keys if reverse else keys
        rows = np.lexsort((self.films["image_id"], keys))  # NaN last
        return rows[(self.outcomes(threshold)[rows] == outcome) | (outcome == "all")]

    def film_jpg(self, row: int, *, clahe: bool) -> bytes:
        """A film as the run stores it, byte for byte; or with CLAHE as in the training data."""
        image_id = self.films["image_id"][row]
        if not clahe:
            return self.run.film_path(image_id).read_bytes()
        return jpg(apply_clahe(self.pixels(image_id)))

    def pane(self, row: int, *, method: str = "CAM", map_threshold: float = 0.0) -> dict:
        """The map of a film for the page to draw: values, shape, scale, threshold, unit, title."""
        if not self._has_map(method)[row]:
            return {"title": f"{method}: {NO_MAP}"}
        values = np.ascontiguousarray(self.maps(method)[row], np.float32)
        return {
            "map": values.tobytes(),
            "shape": list(values.shape),
            "scale": self.scale(method),
            "threshold": map_threshold,
            "unit": "logits" if method == "CAM" else method,
            "title": method,
        }

    def stored_boxes(self, row: int) -> list[list[float]]:
        """The reference boxes of a film, ``[x, y, width, height]`` in pixels of the stored film."""
        image_id = self.films["image_id"][row]
        if image_id not in self._boxes_of:
            return []
        rows, columns = self.films.loc[row, ["rows", "columns"]]
        shape = self.pixels(image_id).shape
        boxes = scale_boxes(self._boxes_of[image_id], rows, columns, shape)
        return boxes[["x", "y", "width", "height"]].to_numpy(float).tolist()

    def table(
        self, rows: np.ndarray, *, threshold: float, method: str = "CAM", map_threshold: float = 0.0
    ) -> pd.DataFrame:
        """Films as a table: outcome, score, label, metadata and IoU at the present thresholds."""
        films = self.films.iloc[rows]
        facts = [name for name in ("patient_id", "view", "sex", "age") if name in films]
        table = films[["image_id", "y_true", "y_score", *facts]].copy()
        table.insert(1, "outcome", self.outcomes(threshold)[rows])
        table["decision_threshold"] = threshold
        if self.has_boxes:
            at = self.map_thresholds(method).index(map_threshold)
            table["iou"] = self.iou(method)[rows, at].round(4)
            table["method"], table["map_threshold"] = method, map_threshold
        return table.reset_index(drop=True)

    def overlay(
        self,
        row: int,
        *,
        method: str = "CAM",
        map_threshold: float = 0.0,
        opacity: float = OPACITY,
        boxes: bool = True,
        clahe: bool = False,
        colormap: str = "heat",
    ) -> np.ndarray:
        """A film with its map and its boxes, RGB uint8 ``(H, W, 3)``, of the stored film's size.

        Of the map, values below ``map_threshold`` are not shown; the rest has a white border. It is
        what the page draws at first, for pages without a kernel.
        """
        image_id = self.films["image_id"][row]
        film = self.pixels(image_id)
        values = self.maps(method)[row]
        if not self._has_map(method)[row]:
            values = np.zeros_like(values)
        fine = upsample_map(values, film.shape)
        above = fine >= map_threshold
        picture = blend(
            apply_clahe(film) if clahe else film,
            np.where(above, fine, 0),
            scale=self.scale(method),
            colormap=colormap,
            opacity=opacity,
        )
        if map_threshold > 0 and opacity > 0:
            borders = cv2.findContours(
                above.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
            )[0]
            cv2.drawContours(picture, borders, -1, (255, 255, 255), 1)
        if boxes:
            _draw_boxes(picture, self.stored_boxes(row))
        return picture

    def facts(
        self,
        row: int,
        *,
        position: str,
        threshold: float,
        method: str = "CAM",
        map_threshold: float = 0.0,
    ) -> str:
        """Text beside a film, as HTML: position, outcome, score, metadata, IoU."""
        film = self.films.loc[row]
        outcomes = self.outcomes(threshold)
        outcome, score = outcomes[row], film["y_score"]
        sign, decision = ("<", "negative") if score < threshold else ("≥", "positive")
        counts = " · ".join(f"{name} {(outcomes == name).sum()}" for name in OUTCOMES)
        lines = [
            ("position", position),
            (f"outcome {outcome}", OUTCOMES[outcome][0]),
            ("score", f"score {score:.3f} {sign} {threshold:.3f} → {decision}"),
            ("header", header_text(film)),
            ("label", str(film.get("detailed_class", ""))),
            ("map", self._map_text(row, method, map_threshold)),
            ("image-id", film["image_id"]),
            ("counts", f"{counts} of {len(outcomes)} test images"),
        ]
        paragraphs = [
            f'<p class="{kind}">{html.escape(text)}</p>' for kind, text in lines if text.strip()
        ]
        paragraphs.insert(3, self.histogram_svg(threshold, score))
        return "\n".join(paragraphs)

    def _map_text(self, row: int, method: str, map_threshold: float) -> str:
        if not self._has_map(method)[row]:
            return NO_MAP
        if not self._has_boxes[row]:
            return "no reference boxes" if self.has_boxes else ""
        image_id = self.films["image_id"][row]
        found = localization_scores(
            self.maps(method)[row : row + 1],
            np.array([image_id]),
            self._boxes_of[image_id],
            self.films.loc[[row]],
            threshold=map_threshold,
            normalize=False,
        ).iloc[0]
        where, name = ("inside", "hit") if found["hit"] else ("outside", "miss")
        return f"IoU {found['iou']:.2f}; peak {where} the box (pointing game: {name})"

    def histogram_svg(self, threshold: float, score: float) -> str:
        """Histogram of the scores as SVG: films with the finding above the line, others below.

        The dashed line is the decision threshold; the arrow is the score of the present film.
        """
        y, scores = self.films["y_true"].to_numpy() == 1, self.films["y_score"].to_numpy()
        counts = [np.histogram(scores[y == which], _BINS, (0, 1))[0] for which in (True, False)]
        unit = _HALF / max(1, *(count.max() for count in counts))
        wide = _WIDE / _BINS
        bars = []
        for count, color, up in zip(counts, (RED, BLUE), (True, False), strict=True):
            for number, films in enumerate(count):
                tall = max(films * unit, 2) if films else 0  # one film among thousands is seen
                top = _HALF - tall if up else _HALF
                bars.append(
                    f'<rect x="{number * wide + 0.5:.1f}" y="{top:.1f}" width="{wide - 1:.1f}" '
                    f'height="{tall:.1f}" fill="{color}"/>'
                )
        at, here = threshold * _WIDE, score * _WIDE
        finding, below = self.class_name.lower(), 2 * _HALF + 16
        finding = finding if len(finding) <= _WORD else f"{finding[: _WORD - 1]}…"
        finding = html.escape(finding)
        return (
            f'<svg class="histogram" viewBox="-8 -14 {_WIDE + 16} {2 * _HALF + 32}" role="img">'
            f"<title>score {score:.3f}, threshold {threshold:.3f}</title>{''.join(bars)}"
            f'<path d="M0 {_HALF}H{_WIDE}" stroke="currentColor"/>'
            f'<path d="M{at:.1f} -2V{2 * _HALF + 2}" stroke="currentColor" stroke-dasharray="4 3"/>'
            f'<path class="here" d="M{here:.1f} {_HALF}V-4M{here - 5:.1f} -12h10l-5 9z" '
            'stroke="currentColor" stroke-width="2" fill="currentColor"/>'
            f'<text x="0" y="{below}">0</text><text x="14" y="{below}">'
            f'<tspan fill="{RED}">▲</tspan> with {finding}  '
            f'<tspan fill="{BLUE}">▼</tspan> without</text>'
            f'<text x="{_WIDE}" y="{below}" text-anchor="end">score 1</text></svg>'
        )


def jpg(pixels: np.ndarray) -> bytes:
    """A picture uint8 ``(H, W)`` or RGB ``(H, W, 3)`` as JPG."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", pixels, _JPG)[1].tobytes()


def _draw_boxes(picture: np.ndarray, boxes: list[list[float]]) -> None:
    color = tuple(int(BOX_COLOR[i : i + 2], 16) for i in (1, 3, 5))
    line = max(1, round(max(picture.shape) / 256))
    for x, y, width, height in boxes:
        corners = (round(x), round(y)), (round(x + width) - 1, round(y + height) - 1)
        cv2.rectangle(picture, *corners, (0, 0, 0), line + 2)
        cv2.rectangle(picture, *corners, color, line)
