"""Maps laid over films, and films on contact sheets.

A film is shown as it is stored: upright, its pixels square, in coordinates of pixel *edges* (0 is
the left and the upper border), so boxes and maps need no half-pixel corrections.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from chexnet.cam import normalize_map, upsample_map

OPACITY = 0.65  # of the hottest colour: the ribs below it can still be counted
_RISE = 0.7  # exponent of the opacity's rise with the heat: below 1, so weak heat is still seen
BOX_COLOUR = "#3d9dff"  # blue, bright enough for the black of a lung
_BOX = {"edgecolor": BOX_COLOUR, "linewidth": 1.3}
_OUTLINE = {"colors": "white", "linewidths": 0.8, "linestyles": "dashed"}
_FINE = 64  # positions a side on which the outline is traced


def overlay_cam(
    film: np.ndarray,
    cam: np.ndarray,
    boxes: pd.DataFrame | None = None,
    ax: Axes | None = None,
    *,
    scale: float | None = None,
    colormap: str | Colormap = "heat",
    opacity: float = OPACITY,
    outline: bool = True,
) -> Figure:
    """Lays a class activation map over its film.

    Args:
        film: uint8 ``(H, W)``.
        cam: raw map ``(h, w)``, logits; `chexnet.cam.normalize_map` says what of it is shown.
        boxes: ``x, y, width, height``, pixels of ``film`` as given, drawn in blue.
        ax: where to draw; ``None`` makes a figure.
        scale: logits that get the last colour, the same for films to be compared; ``None`` takes
            the maximum of this map.
        colormap: ``"heat"`` (safe for colour blindness), ``"jet"``, or another of matplotlib's.
        opacity: of the last colour, 0 to 1; it falls to 0 with the heat.
        outline: a dashed line where the map reaches half of the scale. It survives grey print,
            where a colour can have the grey of the film below it.

    Returns:
        the figure drawn in.

    Raises:
        ValueError: as `blend`.
    """
    blended = blend(film, cam, scale=scale, colormap=colormap, opacity=opacity)
    ax = show_film(blended, boxes, ax)
    half = (np.max(cam) if scale is None else scale) / 2
    if outline and np.max(cam) > half > 0:
        centres = (np.arange(_FINE) + 0.5) / _FINE
        rows, columns = film.shape
        fine = upsample_map(cam, _FINE)
        ax.contour(centres * columns, centres * rows, fine, [half], **_OUTLINE)
    return ax.figure


def blend(
    film: np.ndarray,
    cam: np.ndarray,
    *,
    scale: float | None = None,
    colormap: str | Colormap = "heat",
    opacity: float = OPACITY,
) -> np.ndarray:
    """Mixes a film with the colours of its map; opacity grows with the heat, from 0.

    Args:
        film: uint8 ``(H, W)``.
        cam: raw map ``(h, w)``, logits.
        scale: as in `overlay_cam`.
        colormap: as in `overlay_cam`.
        opacity: as in `overlay_cam`.

    Returns:
        uint8 ``(H, W, 3)``, RGB; the film itself wherever the map is 0 or below.

    Raises:
        ValueError: the film is not uint8 ``(H, W)``, the map not ``(h, w)``, the colour map
            unknown, or the opacity outside 0 to 1.
    """
    if film.dtype != np.uint8 or film.ndim != 2 or np.ndim(cam) != 2:
        raise ValueError(
            f"film is {film.dtype} {film.shape}, the map has shape {np.shape(cam)}: allowed are "
            "uint8 (H, W) and (h, w)"
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity={opacity}: allowed is 0 to 1")
    warmth = normalize_map(upsample_map(cam, film.shape), scale=scale)
    colours = _colormap(colormap)(warmth, bytes=True)[..., :3]
    share = (opacity * warmth**_RISE)[..., None]
    # In floating point: a sum of uint8 wraps around to black where it is hottest.
    return np.rint((1 - share) * film[..., None] + share * colours).astype(np.uint8)


def film_sheet(
    films: Sequence[np.ndarray],
    *,
    titles: Sequence[str] | None = None,
    boxes: Sequence[pd.DataFrame | None] | None = None,
    masks: Sequence[np.ndarray | None] | None = None,
    columns: int = 4,
    width: float = 10.0,
) -> Figure:
    """A contact sheet: films row by row, each with its title and its boxes.

    Args:
        films: uint8 ``(H, W)`` each, of any sizes, at least one.
        titles: one a film.
        boxes: one table a film, ``x, y, width, height`` in pixels of that film, or ``None``.
        masks: one ``(h, w)`` in [0, 1] a film, or ``None``: boxes that were turned with the film
            and are boxes no more; outlined where a cell is half covered.
        columns: films side by side, at least 1.
        width: of the sheet, inches.

    Returns:
        a figure.

    Raises:
        ValueError: no films, no columns, or another number of titles, boxes or masks than of
            films.
    """
    titles = [""] * len(films) if titles is None else titles
    boxes = [None] * len(films) if boxes is None else boxes
    masks = [None] * len(films) if masks is None else masks
    numbers = {len(films), len(titles), len(boxes), len(masks)}
    if len(numbers) > 1 or min(numbers) < 1 or columns < 1:
        raise ValueError(
            f"{len(films)} films, {len(titles)} titles, {len(boxes)} tables of boxes, {len(masks)} "
            f"masks, columns={columns}: allowed are equal numbers, none of them 0"
        )
    columns = min(columns, len(films))
    rows = -(-len(films) // columns)
    tallest = max(film.shape[0] / film.shape[1] for film in films)
    lines = 1 + max(title.count("\n") for title in titles)
    # No film gets more than twice its width in height, so one narrow film does not stretch a row.
    height = rows * (width / columns * min(tallest, 2.0) + 0.16 * lines)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, film, title, its, mask in zip(axes, films, titles, boxes, masks, strict=False):
        show_film(film, its, ax).set_title(title, fontsize=8)
        if mask is not None and mask.max() > 0.5:
            extent = (0, film.shape[1], 0, film.shape[0])
            ax.contour(mask, [0.5], colors=[_BOX["edgecolor"]], linewidths=1.5, extent=extent)
    for ax in axes[len(films) :]:
        ax.set_axis_off()
    return figure


def show_film(
    pixels: np.ndarray, boxes: pd.DataFrame | None = None, ax: Axes | None = None
) -> Axes:
    """Shows a film with its boxes, without ticks.

    Args:
        pixels: uint8 ``(H, W)``, or RGB ``(H, W, 3)``; 0 is black, whatever the film's own range.
        boxes: ``x, y, width, height``, pixels of the film as given.
        ax: where to draw; ``None`` makes a figure.

    Returns:
        the axes drawn in.
    """
    rows, columns = pixels.shape[:2]
    if ax is None:
        inches = 5 / max(rows, columns)
        ax = Figure(figsize=(inches * columns, inches * rows)).add_axes([0, 0, 1, 1])
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(0, columns, rows, 0), aspect="equal")
    # Limits are set, or a box that reaches beyond the film would shrink it.
    ax.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[], frame_on=False)
    if boxes is not None:
        for x, y, width, height in boxes[["x", "y", "width", "height"]].to_numpy(float):
            box = Rectangle((x, y), width, height, fill=False, **_BOX)
            box.set_path_effects([withStroke(linewidth=2.3, foreground="black", alpha=0.5)])
            ax.add_patch(box)
    return ax


def show_colours(
    ax: Axes, *, scale: float, colormap: str | Colormap = "heat", opacity: float = OPACITY
) -> None:
    """Draws the colours as they look on a film of middle grey, with the logits they stand for."""
    ramp = np.linspace(scale, 0, 256, dtype=np.float32)[:, None]
    grey = np.full((256, 1), 110, np.uint8)
    colours = blend(grey, ramp, scale=scale, colormap=colormap, opacity=opacity)
    ax.imshow(colours, extent=(0, 1, 0, scale), aspect="auto")
    ax.yaxis.tick_right()
    ax.set(xticks=[], yticks=[0, scale / 2, scale])
    ax.set_yticklabels(["0 or less", f"{scale / 2:.2g}", f"{scale:.2g} or more"], fontsize=7.5)


def _colormap(name: str | Colormap) -> Colormap:
    if name == "heat":
        # Inferno without its ends, which on a film would look like air and like bone.
        return ListedColormap(matplotlib.colormaps["inferno"](np.linspace(0.35, 0.88, 256)))
    if isinstance(name, Colormap):
        return name
    if name not in matplotlib.colormaps:
        raise ValueError(f"colormap={name!r}: allowed are 'heat' and matplotlib's, such as 'jet'")
    return matplotlib.colormaps[name]
