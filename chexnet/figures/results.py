"""The results figure: test films with their maps, by outcome."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from chexnet.cam import peak_points, shared_scale
from chexnet.evaluation import OUTCOMES, outcome_table
from chexnet.figures.overlay import OPACITY, header_text, overlay_cam, plain_text, show_colors
from chexnet.labels import points_in_boxes, scale_boxes
from chexnet.runs import Run

_WRONG = ("FN", "FP")
_RULES = {
    "outcome": "Images sampled at random within each outcome (seed {}).",
    "score": "Images with the most confident scores of each outcome.",
    "hit": "Images sampled at random within each outcome (seed {}); positive images: hits only.",
    "miss": "Images sampled at random within each outcome (seed {}); positive images: misses only.",
}
# Inches: a film, the space between films, the text below one, the title above a quadrant, the
# strip around the line, the strip of the color bar, a line of the caption.
_FILM, _SPACE, _TEXT, _TITLE, _MIDDLE, _RIGHT, _LINE = 1.95, 0.1, 0.42, 0.34, 0.5, 1.05, 0.165


def results_figure(
    run_folder: str | Path,
    *,
    class_name: str | None = None,
    columns: tuple[int, int] = (4, 3),
    rows: int = 1,
    by: str = "outcome",
    image_ids: Sequence[str] | None = None,
    seed: int = 0,
    threshold: float | str = "youden",
    boxes: bool = True,
    scale: float | None = None,
    colormap: str = "heat",
    opacity: float = OPACITY,
) -> Figure:
    """Shows test films with their maps, by outcome, from the run folder without the model.

    Correctly classified films are left of a vertical red line, misclassified ones right of it.
    Films with the finding are above, films without it below. The caption says how they were
    selected. All maps have the same color scale, so a film without evidence stays gray.

    Args:
        run_folder: ``output/<run>/``, from notebook 03.
        class_name: the class; ``None`` is the run's first.
        columns: films side by side left and right of the line, each at least 1.
        rows: rows of films for each outcome, at least 1.
        by: ``"outcome"`` samples at random within each outcome. ``"hit"`` samples the positive
            films only among those whose map has its maximum inside a box, ``"miss"`` among the
            others. ``"score"`` takes the most confident scores.
        image_ids: exactly these test films, in this order, in as many rows as they need.
        seed: of the random sample.
        threshold: a film is positive if its score is at or above it; or a rule
            (``"youden"``, ``"sensitivity_0.9"``, ``"specificity_0.9"``), applied to validation.
        boxes: whether to draw the radiologists' boxes.
        scale: logits of the last color; ``None`` takes `chexnet.cam.shared_scale` of all test maps.
        colormap: as in `overlay_cam`; the original used ``"jet"``.
        opacity: as in `overlay_cam`.

    Raises:
        FileNotFoundError: the run lacks a file.
        ValueError: an argument has another value than stated above.

    Example:
        >>> from chexnet.figures import results_figure
        >>> results_figure("output/demo", columns=(2, 2), colormap="jet").savefig("results.png")
    """
    run = Run(run_folder)
    class_name = run.chosen_class(class_name)
    if len(columns) != 2 or min(*columns, rows) < 1:
        raise ValueError(
            f"columns={columns}, rows={rows}: expected two numbers of columns (left and right of "
            "the line) and a number of rows, each at least 1"
        )
    films, decision = outcome_table(run, class_name=class_name, threshold=threshold)
    maps = run.maps_of(films["image_id"], "test")[:, run.class_names.index(class_name)]
    table = run.boxes_of(class_name)
    films["row"] = np.arange(len(films))  # of maps
    films["boxed"] = films["y_true"].eq(1) & films["image_id"].isin(table["image_id"])
    films["hit"] = films["boxed"] & points_in_boxes(
        peak_points(maps), films["image_id"].to_numpy(), table, run.images
    )
    shown, rule = _select(films, columns, rows, by=by, image_ids=image_ids, seed=seed)
    rows = max([rows, *(-(-len(some) // columns[key in _WRONG]) for key, some in shown.items())])
    scale = shared_scale(maps) if scale is None else scale
    style: dict[str, Any] = {"scale": scale, "colormap": colormap, "opacity": opacity}
    counts = ", ".join(f"{key} {(films['outcome'] == key).sum()}" for key in OUTCOMES)
    caption = (
        f"Run {run.folder.resolve().name}, {class_name}: {len(films)} test images ({counts}). "
        f"{decision} {rule} "
        "Overlay: positive part of the CAM (logits), same color scale for all images; dashed line: "
        "half of the scale's maximum. The mean of the CAM plus the bias is the logit of the score."
    )
    if films["boxed"].any():
        caption += " Hit or miss: the maximum of the CAM lies inside or outside a box."
        caption += " Blue: radiologists’ boxes." if boxes else ""
    figure, cells = _quadrants(films, columns, rows, caption, style)
    for outcome, some in shown.items():
        if not len(some):
            text = "none selected" if (films["outcome"] == outcome).any() else "none"
            center: dict[str, Any] = {"ha": "center", "va": "center", "color": "#555555"}
            cells[outcome][0].text(0.5, 0.5, text, fontsize=10, **center)
        for ax, film in zip(cells[outcome], some.itertuples(), strict=False):
            pixels, its_boxes = run.film(film.image_id), None
            if boxes:
                its_boxes = table[table["image_id"] == film.image_id]
                its_boxes = scale_boxes(its_boxes, film.rows, film.columns, pixels.shape)
            overlay_cam(pixels, maps[film.row], its_boxes, ax, **style)
            ax.set_label(f"{outcome} {film.image_id}")
            ax.set_xlabel(_film_text(film), fontsize=7.5, labelpad=3, linespacing=1.3)
    return plain_text(figure)


def _film_text(film: Any) -> str:
    """Two lines below a film, which is a row of the table of films."""
    first = f"score {film.y_score:.2f} · {OUTCOMES[film.outcome][0]}"
    first += (" · hit" if film.hit else " · miss") if film.boxed else ""
    second = " · ".join(filter(None, [header_text(film), film.image_id[:8]]))
    return f"{first}\n{second}"


def _select(
    films: pd.DataFrame,
    columns: tuple[int, int],
    rows: int,
    *,
    by: str,
    image_ids: Sequence[str] | None,
    seed: int,
) -> tuple[dict[str, pd.DataFrame], str]:
    """The films of each outcome to show, and the rule as a sentence of the caption."""
    if image_ids is not None:
        unknown = [image_id for image_id in image_ids if image_id not in set(films["image_id"])]
        if unknown or not len(image_ids):
            raise ValueError(f"image_ids: {unknown or 'none'}; expected test films of this run")
        films = films.set_index("image_id", drop=False).loc[list(image_ids)]
        shown = {outcome: films[films["outcome"] == outcome] for outcome in OUTCOMES}
        return shown, "Images selected by hand."
    if by not in _RULES:
        raise ValueError(f"by={by!r}: expected one of {', '.join(map(repr, _RULES))}")
    shown = {}
    for outcome in OUTCOMES:
        some = films[films["outcome"] == outcome].sort_values("image_id")
        count = rows * columns[outcome in _WRONG]
        if by == "score":
            some = some.sort_values("y_score", ascending=outcome in ("TN", "FN")).head(count)
        else:
            if by != "outcome" and outcome in ("TP", "FN"):
                some = some[some["boxed"] & (some["hit"] == (by == "hit"))]
            some = some.sample(min(len(some), count), random_state=seed)
        shown[outcome] = some
    return shown, _RULES[by].format(seed)


def _quadrants(
    films: pd.DataFrame, columns: tuple[int, int], rows: int, caption: str, style: dict
) -> tuple[Figure, dict[str, list[Axes]]]:
    """A figure with the line, the caption, the color bar, and empty axes for each outcome."""
    left, right = columns
    step = _FILM + _SPACE
    width = _SPACE + (left + right) * step + _MIDDLE + _RIGHT
    lines = textwrap.wrap(caption, int((width - _SPACE) * 16.8))
    bottom = 0.15 + len(lines) * _LINE
    half = _TITLE + rows * (_FILM + _TEXT)
    height = bottom + 2 * half + 0.05
    figure = Figure(figsize=(width, height))

    def axes_at(x: float, y: float, wide: float, high: float) -> Axes:
        return figure.add_axes((x / width, y / height, wide / width, high / height))

    place = (_SPACE / width, 0.1 / height)
    figure.text(*place, "\n".join(lines), fontsize=8, va="bottom", linespacing=1.35)
    middle = (left * step + (_SPACE + _MIDDLE) / 2) / width
    ends = [(bottom + 0.05) / height, 1 - 0.1 / height]
    figure.add_artist(Line2D([middle, middle], ends, color="#d62728", linewidth=2.5))
    colors = axes_at(width - _RIGHT + 0.12, height - _TITLE - _FILM, 0.14, _FILM - 0.3)
    colors.set_title("CAM\n(logits)", fontsize=7.5, loc="left", pad=5)
    show_colors(colors, **style)
    cells: dict[str, list[Axes]] = {}
    for outcome, (name, y_true) in OUTCOMES.items():
        count, total = (films["outcome"] == outcome).sum(), (films["y_true"] == y_true).sum()
        title = f"{name.capitalize()}s ({count}/{total})"
        wrong = outcome in _WRONG
        start = _SPACE + wrong * (left * step + _MIDDLE)
        top = bottom + half * (1 if outcome in ("TN", "FP") else 2) - _TITLE
        figure.text(start / width, (top + 0.08) / height, title, fontsize=10, va="bottom")
        cells[outcome] = []
        for number in range(rows * columns[wrong]):
            row, column = divmod(number, columns[wrong])
            y = top - row * (_FILM + _TEXT) - _FILM
            ax = axes_at(start + column * step, y, _FILM, _FILM)
            ax.set(xticks=[], yticks=[], frame_on=False)
            cells[outcome].append(ax)
    return figure, cells
