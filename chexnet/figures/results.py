"""Every picture of a study: here the results figure, from beside it overlays, sheets and curves."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from chexnet.cam import peak_points, shared_scale
from chexnet.evaluation import OUTCOMES, header_text, outcome_table
from chexnet.figures.overlay import OPACITY, overlay_cam, show_colours
from chexnet.labels import points_in_boxes, scale_boxes
from chexnet.runs import Run

_WRONG = ("FN", "FP")
_RULES = {
    "outcome": "Shown are films drawn at random within each outcome (seed {}).",
    "score": "Shown are the films of each outcome of which the model was surest.",
    "hit": "Shown are films drawn at random within each outcome (seed {}), those with boxes only "
    "where the map is brightest inside one.",
    "miss": "Shown are films drawn at random within each outcome (seed {}), those with boxes only "
    "where the map is brightest outside them.",
}
# Inches: a film, the space between films, the text below one, the title above a quadrant, the
# strip around the line, the strip of the colour bar, a line of the caption.
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
    heat_scale: float | None = None,
    colormap: str = "heat",
    opacity: float = OPACITY,
) -> Figure:
    """Right and wrong on one page, from the run folder alone, without the model.

    Left of a vertical red line the test films that the model got right, above those with the
    finding, below those without; right of it those it got wrong, above the missed, below the
    false alarms. A caption states how they were chosen. A colour means the same on every film, so
    a film whose map holds no evidence for the finding stays grey.

    Args:
        run_folder: ``output/<run>/``, as notebook 03 leaves it.
        class_name: which class; ``None`` is the run's first.
        columns: films side by side left and right of the line, each at least 1.
        rows: rows of films for each outcome, at least 1.
        by: ``"outcome"`` draws at random within each outcome; ``"hit"`` does so too, but of the
            films with boxes among those whose map is brightest inside one, and ``"miss"`` among
            the others; ``"score"`` takes the films of which the model was surest.
        image_ids: exactly these test films, in this order, in as many rows as they need.
        seed: of the random draw.
        threshold: a film is called positive at this score or above; or the name of a rule of
            `chexnet.evaluation.operating_points.RULES`, which is applied to validation.
        boxes: whether to draw the radiologists' boxes.
        heat_scale: logits that get the last colour; ``None`` takes `chexnet.cam.shared_scale` of
            all test films' maps.
        colormap: ``"heat"`` (safe for colour blindness and in grey print), ``"jet"`` as in the
            original, or any other of matplotlib's.
        opacity: of the last colour, 0 to 1; it falls to 0 with the heat.

    Returns:
        a figure that no window owns: the last line of a cell shows it, ``savefig`` keeps it.

    Raises:
        FileNotFoundError: the run lacks a file.
        ValueError: an argument is outside what is stated above.
    """
    run = Run(run_folder)
    class_name = run.class_names[0] if class_name is None else class_name
    if len(columns) != 2 or min(*columns, rows) < 1:
        raise ValueError(
            f"columns={columns}, rows={rows}: allowed are two numbers of columns (left and right "
            "of the line) and a number of rows, each at least 1"
        )
    films, called = outcome_table(run, class_name=class_name, threshold=threshold)
    table = run.boxes
    ids, arrays = run.maps()
    maps = dict(zip(ids, arrays[:, run.class_names.index(class_name)], strict=True))
    its_maps = np.stack([maps[image_id] for image_id in films["image_id"]])
    films["boxed"] = films["y_true"].eq(1) & films["image_id"].isin(table["image_id"])
    films["hit"] = films["boxed"] & points_in_boxes(
        peak_points(its_maps), films["image_id"].to_numpy(), table, run.images
    )
    shown, rule = _choose(films, columns, rows, by=by, image_ids=image_ids, seed=seed)
    rows = max([rows, *(-(-len(some) // columns[k in _WRONG]) for k, some in shown.items())])
    if heat_scale is None:
        heat_scale = shared_scale(its_maps)
    style = {"scale": heat_scale, "colormap": colormap, "opacity": opacity}

    finding = class_name.lower()
    counts = ", ".join(
        f"{name} {(films['outcome'] == key).sum()}" for key, (name, *_) in OUTCOMES.items()
    )
    caption = (
        f"Run {run.folder.resolve().name}, {len(films)} test films: {counts}. {called} {rule} "
        f"Colour: evidence for {finding}, which is the class activation map where it is above "
        "zero, on one scale for all films; dashed: half of that scale. The mean of a map plus the "
        "bias of the head is the logit of the score. Hit: the map is brightest inside a box."
        + " Blue: radiologists’ boxes."
        * boxes
    )
    titles = {outcome: _title(outcome, films, finding) for outcome in OUTCOMES}
    figure, cells = _quadrants(columns, rows, titles, caption, style)
    for outcome, some in shown.items():
        if not len(some):
            words = "none chosen" if (films["outcome"] == outcome).any() else "none"
            place = {"ha": "center", "va": "center", "color": "#555555", "fontsize": 10}
            cells[outcome][0].text(0.5, 0.5, words, **place)
        for ax, film in zip(cells[outcome], some.itertuples(), strict=False):
            pixels = run.film(film.image_id)
            its = table[table["image_id"] == film.image_id]
            its = scale_boxes(its, film.rows, film.columns, pixels.shape)
            overlay_cam(pixels, maps[film.image_id], its if boxes else None, ax, **style)
            ax.set_label(f"{outcome} {film.image_id}")
            ax.set_xlabel(_below(film), fontsize=7.5, labelpad=3, linespacing=1.3)
    return figure


def _choose(
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
            raise ValueError(f"image_ids: {unknown or 'none'}; allowed are test films of this run")
        films = films.set_index("image_id", drop=False).loc[list(image_ids)]
        shown = {outcome: films[films["outcome"] == outcome] for outcome in OUTCOMES}
        return shown, "The films were chosen by hand."
    if by not in _RULES:
        raise ValueError(f"by={by!r}: allowed are {', '.join(map(repr, _RULES))}")
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
    columns: tuple[int, int], rows: int, titles: dict[str, str], caption: str, style: dict
) -> tuple[Figure, dict[str, list[Axes]]]:
    """A figure with the line, the caption, the colours, and empty axes for each outcome."""
    left, right = columns
    step = _FILM + _SPACE
    width = _SPACE + (left + right) * step + _MIDDLE + _RIGHT
    lines = textwrap.wrap(caption, int((width - _SPACE) * 16.8))
    bottom = 0.15 + len(lines) * _LINE
    titles = {
        outcome: textwrap.wrap(title, int((columns[outcome in _WRONG] * step - _SPACE) * 12.3))
        for outcome, title in titles.items()
    }
    above = _TITLE + _LINE * (max(map(len, titles.values())) - 1)
    half = above + rows * (_FILM + _TEXT)
    height = bottom + 2 * half + 0.05
    figure = Figure(figsize=(width, height))

    def axes_at(x: float, y: float, wide: float, high: float) -> Axes:
        return figure.add_axes([x / width, y / height, wide / width, high / height])

    figure.text(
        _SPACE / width, 0.1 / height, "\n".join(lines), fontsize=8, va="bottom", linespacing=1.35
    )
    middle = (left * step + (_SPACE + _MIDDLE) / 2) / width
    ends = [(bottom + 0.05) / height, 1 - 0.1 / height]
    figure.add_artist(Line2D([middle, middle], ends, color="#d62728", linewidth=2.5))
    colours = axes_at(width - _RIGHT + 0.12, height - above - _FILM, 0.14, _FILM - 0.3)
    colours.set_title("evidence\n(logits)", fontsize=7.5, loc="left", pad=5)
    show_colours(colours, **style)
    cells = {outcome: [] for outcome in OUTCOMES}
    for outcome, axes in cells.items():
        wrong = outcome in _WRONG
        start = _SPACE + wrong * (left * step + _MIDDLE)
        top = bottom + half * (1 if outcome in ("TN", "FP") else 2) - above
        words = "\n".join(titles[outcome])
        figure.text(start / width, (top + 0.08) / height, words, fontsize=10, va="bottom")
        for number in range(rows * columns[wrong]):
            row, column = divmod(number, columns[wrong])
            y = top - row * (_FILM + _TEXT) - _FILM
            axes.append(axes_at(start + column * step, y, _FILM, _FILM))
            axes[-1].set(xticks=[], yticks=[], frame_on=False)
    return figure, cells


def _title(outcome: str, films: pd.DataFrame, finding: str) -> str:
    name, label, deed = OUTCOMES[outcome]
    count, among = (films["outcome"] == outcome).sum(), (films["y_true"] == label).sum()
    return f"{name.capitalize()}s: {count} of the {among} films {deed.format(finding)}"


def _below(film: tuple) -> str:
    first = f"score {film.y_score:.2f} · {OUTCOMES[film.outcome][0]}"
    first += (" · hit" if film.hit else " · miss") if film.boxed else ""
    return "\n".join([first, " · ".join(filter(None, [header_text(film), film.image_id[:8]]))])
