"""What the explorer shows, without its controls: films in an order, and their pictures."""

import functools
import html

import cv2
import numpy as np
import pandas as pd

from chexnet.boxes import scale_boxes
from chexnet.cam import upsample_map
from chexnet.chart_parts import BLUE, RED
from chexnet.clahe import equalise
from chexnet.mapcache import CachedMaps, cached_maps
from chexnet.outcomes import (
    OUTCOMES,
    chosen_threshold,
    header_text,
    outcomes_at,
    scored_films,
)
from chexnet.overlap import points_in_boxes
from chexnet.overlay import BOX_COLOUR, OPACITY, blend
from chexnet.runs import Run

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
        self.class_name, predictions, films = scored_films(run, class_name)
        self.class_index = run.class_names.index(self.class_name)
        self.films = films.reset_index(drop=True)
        self.threshold = chosen_threshold(run, self.class_name, "youden", predictions)[0]
        found = run.metrics.get("localization", {})
        ours = found.get("class_name") == self.class_name
        self.chosen_cut = found["thresholds"]["logit"] if ours else None
        self._boxes = dict(iter(run.boxes.groupby("image_id")))
        self._maps: dict[str, CachedMaps] = {}
        self.pixels = functools.lru_cache(32)(run.film)

    def maps(self, method: str) -> CachedMaps:
        """The maps of a method of `chexnet.mapcache.METHODS`, made at first use."""
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
            colormap: as in `chexnet.overlay.overlay_cam`.

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
    colour = tuple(int(BOX_COLOUR[i : i + 2], 16) for i in (1, 3, 5))
    line = max(1, round(max(picture.shape) / 256))
    for x, y, width, height in boxes[["x", "y", "width", "height"]].to_numpy(float):
        corners = (round(x), round(y)), (round(x + width) - 1, round(y + height) - 1)
        cv2.rectangle(picture, *corners, (0, 0, 0), line + 2)
        cv2.rectangle(picture, *corners, colour, line)
