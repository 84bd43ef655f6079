"""The results figure: test films with their maps, by outcome."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from chexnet.cam import peak_points, shared_scale
from chexnet.evaluation import OUTCOMES, cam_threshold, outcome_table
from chexnet.figures.overlay import OPACITY, header_text, overlay_cam, plain_text, show_colors
from chexnet.files import check_number, full_id, short_ids
from chexnet.labels import points_in_boxes, scale_boxes
from chexnet.runs import Run

_WRONG = ("FN", "FP")
_RULES = {
    "outcome": "Images sampled at random within each outcome (seed {}).",
    "score": "Images with the most confident scores of each outcome.",
    "hit": "Images sampled at random within each outcome (seed {}); positive images: hits only.",
    "miss": "Images sampled at random within each outcome (seed {}); positive images: misses only.",
}
# Inches. Journals print one column 89 mm and two columns 183 mm wide (Nature's guide for figures).
WIDTHS = {"one column": 89 / 25.4, "two columns": 183 / 25.4}
_NOTEBOOK = 10.0  # its letters have the size of the notebook's own
_NARROWEST = 1.3  # of a film and the space beside it, where the number of columns is not given
_LARGEST = 1.95  # of a film, where the width is not given
_TALLEST = 1.5  # height of a place over its width
_SPACE, _MIDDLE = 0.1, 0.3  # between films; the strip around the line
_EMPTY_SIDE = 1.2  # of a side without films: its titles
_BAR = 0.55  # height of the strip of the color bar


def results_figure(
    run_folder: str | Path,
    *,
    class_name: str | None = None,
    columns: int | tuple[int, int] | None = None,
    rows: int = 1,
    by: str = "outcome",
    image_ids: Sequence[str] | None = None,
    seed: int = 0,
    threshold: float | str = "youden",
    boxes: bool = True,
    scale: float | None = None,
    colormap: str = "heat",
    opacity: float = OPACITY,
    width: str | float | None = None,
    caption: bool = True,
) -> Figure:
    """Shows test films with their maps, by outcome, from the run folder without the model.

    Correctly classified films are left of a vertical red line, misclassified ones right of it.
    Films with the finding are above, films without it below. The caption says how they were
    selected. All maps have the same color scale, so a film without evidence stays gray. The white
    line is the CAM threshold chosen on validation, as in the explorer; a run without boxes has
    none.

    Args:
        run_folder: ``output/<run>/``, from notebook 03.
        class_name: the class; ``None`` is the run's first.
        columns: films side by side, at least 2, divided between the sides of the line by how many
            films they have; or the largest number left and right of the line, each at least 1.
            ``None`` takes as many as can be seen well.
        rows: largest number of rows for each outcome, at least 1. Empty rows and columns are left
            out.
        by: ``"outcome"`` samples at random within each outcome. ``"hit"`` samples the positive
            films only among those whose map has its maximum inside a box, ``"miss"`` among the
            others. ``"score"`` takes the most confident scores.
        image_ids: exactly these test films, in this order, in as many rows as they need; the
            beginning of an id is enough where it is unique.
        seed: of the random sample.
        threshold: a film is positive if its score is at or above it; or a rule
            (``"youden"``, ``"sensitivity_0.9"``, ``"specificity_0.9"``), applied to validation.
        boxes: whether to draw the radiologists' boxes.
        scale: logits of the last color; ``None`` takes `chexnet.cam.shared_scale` of all test maps.
        colormap: as in `overlay_cam`; the original used ``"jet"``.
        opacity: as in `overlay_cam`.
        width: ``"one column"`` (89 mm) or ``"two columns"`` (183 mm) of a journal, or inches of at
            least 3; ``None`` is at most 10 inches, for a notebook.
        caption: whether the caption is drawn. ``figure.get_label()`` is its text in any case.

    Returns:
        a figure. A PDF of it has its fonts embedded as TrueType.

    Raises:
        FileNotFoundError: the run lacks a file.
        ValueError: an argument has another value than stated above.

    Example:
        >>> from chexnet.figures import results_figure
        >>> results_figure("output/demo", columns=4, width="two columns").savefig("results.pdf")
    """
    run = Run(run_folder)
    class_name = run.chosen_class(class_name)
    inches = _inches(width)
    check_number("seed", seed, integer=True, least=0)
    if scale is not None:
        check_number("scale", scale, above=0)
    films, decision = outcome_table(run, class_name=class_name, threshold=threshold)
    maps = run.maps_of(films["image_id"], "test")[:, run.class_names.index(class_name)]
    table = run.boxes_of(class_name)
    films["row"] = np.arange(len(films))  # of maps
    films["boxed"] = films["y_true"].eq(1) & films["image_id"].isin(table["image_id"])
    films["hit"] = films["boxed"] & points_in_boxes(
        peak_points(maps), films["image_id"].to_numpy(), table, run.images
    )
    films["short_id"] = films["image_id"].map(short_ids(run.images["image_id"]))
    chosen, rule = _choose(films, by=by, image_ids=image_ids, seed=seed)
    sides = _columns(columns, rows, chosen, inches)
    if image_ids is None:
        chosen = {key: some.head(rows * sides[key in _WRONG]) for key, some in chosen.items()}
    scale = shared_scale(maps) if scale is None else scale
    style: dict[str, Any] = {"scale": scale, "colormap": colormap, "opacity": opacity}
    line = cam_threshold(run, class_name)
    shown = pd.concat(chosen.values())
    has_line = line is not None and bool((maps[shown["row"]] > line).any())
    counts = films["outcome"].value_counts().reindex(list(OUTCOMES), fill_value=0)
    text = (
        f"Run {run.folder.resolve().name}, {class_name}: {len(films)} test images "
        f"({', '.join(f'{key} {count}' for key, count in counts.items())}). "
        f"{decision} {rule} {_legend(shown, boxes=boxes, threshold=line if has_line else None)}"
    )
    figure, cells = _quadrants(films, chosen, sides, text if caption else "", inches, width, style)
    figure.set_label(text)
    for outcome, some in chosen.items():
        for ax, film in zip(cells[outcome], some.itertuples(), strict=True):
            pixels, its_boxes = run.film(film.image_id), None
            if boxes:
                its_boxes = table[table["image_id"] == film.image_id]
                its_boxes = scale_boxes(its_boxes, film.rows, film.columns, pixels.shape)
            overlay_cam(pixels, maps[film.row], its_boxes, ax, threshold=line, **style)
            ax.set_label(f"{outcome} {film.image_id}")
    return plain_text(figure)


def _inches(width: str | float | None) -> float:
    if width is None:
        return _NOTEBOOK
    inches = WIDTHS.get(width) if isinstance(width, str) else float(width)
    if inches is None or not inches >= 3:
        expected = ", ".join(map(repr, WIDTHS))
        raise ValueError(f"width={width!r}: expected {expected} or a number of inches from 3")
    return inches


def _legend(shown: pd.DataFrame, *, boxes: bool, threshold: float | None) -> str:
    """What color, lines and words mean; only of what is in the figure."""
    text = "Color: positive part of the CAM (logits), same scale for all images."
    if threshold is not None:
        text += f" White line: CAM threshold {threshold:.2f} (chosen on validation)."
    if shown["boxed"].any():
        text += " Blue: radiologists’ boxes." if boxes else ""
        text += " Hit or miss: the maximum of the CAM is inside or outside a box."
    return text + " The mean of the CAM plus the bias is the logit of the score."


def _film_text(film: Any, letters: int) -> str:
    """The lines below a film, which is a row of the table of films: ``letters`` fit into one."""
    score = f"score {film.y_score:.2f}"
    if film.boxed:
        score += " · hit" if film.hit else " · miss"
    lines = [score]
    for part in filter(None, [header_text(film), *textwrap.wrap(film.short_id, letters)]):
        joined = f"{lines[-1]} · {part}"
        lines[-1:] = [joined] if len(joined) <= letters else [lines[-1], part]
    return "\n".join(lines)


def _choose(
    films: pd.DataFrame, *, by: str, image_ids: Sequence[str] | None, seed: int
) -> tuple[dict[str, pd.DataFrame], str]:
    """All films of each outcome in the order to show them, and the rule for the caption."""
    if by not in _RULES:
        raise ValueError(f"by={by!r}: expected one of {', '.join(map(repr, _RULES))}")
    if image_ids is not None:
        if not len(image_ids):
            raise ValueError("image_ids: none; expected test films of this run")
        known = films["image_id"].tolist()
        ids = [full_id(image_id, known, "image_ids") for image_id in image_ids]
        films = films.set_index("image_id", drop=False).loc[list(dict.fromkeys(ids))]
        chosen = {outcome: films[films["outcome"] == outcome] for outcome in OUTCOMES}
        return chosen, "Images selected by hand."
    chosen = {}
    for outcome in OUTCOMES:
        some = films[films["outcome"] == outcome].sort_values("image_id")
        if by == "score":
            some = some.sort_values("y_score", ascending=outcome in ("TN", "FN"))
        else:
            if by != "outcome" and outcome in ("TP", "FN"):
                some = some[some["boxed"] & (some["hit"] == (by == "hit"))]
            some = some.sample(frac=1, random_state=seed)
        chosen[outcome] = some
    return chosen, _RULES[by].format(seed)


def _columns(
    columns: int | tuple[int, int] | None,
    rows: int,
    chosen: dict[str, pd.DataFrame],
    inches: float,
) -> tuple[int, int]:
    """Films side by side left and right of the line, none of them empty in all rows."""
    given: list[Any] = [*columns] if isinstance(columns, tuple | list) else [columns]
    given = [] if columns is None else given
    if len(given) > 2:
        raise ValueError(f"columns={columns}: expected one number, or two: left and right")
    for number in given:
        check_number("columns", number, integer=True, least=3 - len(given))
    check_number("rows", rows, integer=True, least=1)
    left, right = (
        math.ceil(max(len(chosen[key]) for key in side) / rows) for side in (("TP", "TN"), _WRONG)
    )
    if len(given) == 2:
        return min(left, given[0]), min(right, given[1])
    total = given[0] if given else int((inches - _MIDDLE) / _NARROWEST)
    right = min(right, max(1, total * 3 // 7, total - left))
    return min(left, total - right), right


@dataclass(frozen=True)
class _Place:
    """Sizes of a figure in inches, letters in points."""

    width: float
    film: float  # width of a film's place
    high: float  # its height
    sides: tuple[float, float]  # widths
    letters: float

    def per_line(self, inches: float, size: float | None = None) -> int:
        """How many letters of this size fit into a line (DejaVu Sans, 0.54 em on average)."""
        return max(1, int(inches * 72 / (0.54 * (size or self.letters))))


def _place(
    inches: float, width: str | float | None, columns: tuple[int, int], shown: pd.DataFrame
) -> _Place:
    letters = 7.5 if inches > 5 else 6.5
    step = _SPACE + _LARGEST
    if any(columns):
        empty = _EMPTY_SIDE * sum(1 for count in columns if not count)
        step = (inches - _SPACE - _MIDDLE - empty) / sum(columns)
    if width is None:
        step = min(step, _SPACE + _LARGEST)
    left, right = (count * step if count else _EMPTY_SIDE for count in columns)
    shape = float((shown["rows"] / shown["columns"]).median()) if len(shown) else 1.0
    high = (step - _SPACE) * min(max(shape, 0.6), _TALLEST)
    return _Place(_SPACE + left + _MIDDLE + right, step - _SPACE, high, (left, right), letters)


def _quadrants(
    films: pd.DataFrame,
    chosen: dict[str, pd.DataFrame],
    columns: tuple[int, int],
    caption: str,
    inches: float,
    width: str | float | None,
    style: dict,
) -> tuple[Figure, dict[str, list[Axes]]]:
    """A figure with line, titles, texts, color bar and caption, and axes for each film."""
    place = _place(inches, width, columns, pd.concat(chosen.values()))
    line = place.letters * 1.35 / 72
    below = {
        key: [_film_text(film, place.per_line(place.film)) for film in some.itertuples()]
        for key, some in chosen.items()
    }
    words = max((text.count("\n") + 1 for texts in below.values() for text in texts), default=0)
    step = place.high + 0.06 + (words + 0.5) * line  # of a row
    titles = {key: _title(key, films, chosen[key], place) for key in OUTCOMES}
    heading = {
        half: (max(titles[key].count("\n") for key in half) + 1) * 1.4 * line + 0.06
        for half in (("TP", "FN"), ("TN", "FP"))
    }
    rows = {
        half: max(math.ceil(len(chosen[key]) / max(1, columns[key in _WRONG])) for key in half)
        for half in heading
    }
    lines = textwrap.wrap(caption, place.per_line(place.width - 2 * _SPACE))
    bottom = 0.08 + len(lines) * line + _BAR
    height = bottom + sum(heading[half] + rows[half] * step for half in heading) + 0.12
    figure = Figure(figsize=(place.width, height))
    _draw_foot(figure, lines, bottom, place, style)
    cells: dict[str, list[Axes]] = {}
    top = height - 0.06
    for half in heading:
        for key in half:
            wrong = key in _WRONG
            start = _SPACE + wrong * (place.sides[0] + _MIDDLE)
            figure.text(
                *(start / place.width, top / height),
                titles[key], fontsize=place.letters * 1.3, va="top",
            )  # fmt: skip
            cells[key] = []
            for number, text in enumerate(below[key]):
                row, column = divmod(number, columns[wrong])
                x = start + column * (place.film + _SPACE)
                y = top - heading[half] - row * step - place.high
                ax = _axes_at(figure, x, y, place.film, place.high)
                ax.set(xticks=[], yticks=[], frame_on=False)
                ax.set_xlabel(text, fontsize=place.letters, labelpad=3, linespacing=1.25)
                cells[key].append(ax)
        top -= heading[half] + rows[half] * step
    return figure, cells


def _axes_at(figure: Figure, x: float, y: float, wide: float, high: float) -> Axes:
    """Axes at a place in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes((x / width, y / height, wide / width, high / height))


def _draw_foot(figure: Figure, lines: list[str], bottom: float, place: _Place, style: dict) -> None:
    """Draws the red line down to ``bottom``, and below it the color bar and the caption."""
    width, height = figure.get_size_inches()
    letters: dict[str, Any] = {"fontsize": place.letters, "linespacing": 1.25}
    figure.text(_SPACE / width, 0.06 / height, "\n".join(lines), va="bottom", **letters)
    bar = min(1.8, width / 2)
    colors = _axes_at(figure, _SPACE + 0.25, bottom - 0.2, bar, 0.12)
    show_colors(colors, size=place.letters, **style)
    beside = ((_SPACE + 0.5 + bar) / width, (bottom - 0.14) / height)
    figure.text(*beside, "CAM (logits)", va="center", **letters)
    middle = (_SPACE + place.sides[0] + (_MIDDLE - _SPACE) / 2) / width
    ends = [(bottom + 0.02) / height, 1 - 0.04 / height]
    figure.add_artist(Line2D([middle, middle], ends, color="#d62728", linewidth=2))


def _title(outcome: str, films: pd.DataFrame, some: pd.DataFrame, place: _Place) -> str:
    name, y_true = OUTCOMES[outcome]
    count, total = (films["outcome"] == outcome).sum(), (films["y_true"] == y_true).sum()
    text = f"{name.capitalize()}s ({count}/{total})"
    if not len(some):
        text += ": none selected" if count else ": none"
    letters = place.per_line(place.sides[outcome in _WRONG], place.letters * 1.3)
    return textwrap.fill(text, letters)
