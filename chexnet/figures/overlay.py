"""Films with maps and boxes.

A film is shown upright with square pixels. Coordinates are those of pixel edges (0 is the left and
the upper border), so boxes and maps need no half-pixel corrections.
"""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from chexnet.cam import normalize_map, upsample_map
from chexnet.files import check_number

NO_MAP = "no map: NaN or infinite values"
matplotlib.rcParams["pdf.fonttype"] = 42  # journals want TrueType; Type 3 is matplotlib's own
OPACITY = 0.65  # of the last color: the ribs below it can still be counted
RISE = 0.7  # exponent of the opacity over the map: below 1, so that low values are visible
BAR_GRAY = 110  # of the film below the color bar
BOX_COLOR = "#3d9dff"  # blue, visible on the black of a lung
_OUTLINE: dict[str, Any] = {"colors": "white", "linewidths": 0.8}
_FINE = 64  # positions per side at which the outline is traced
# Inferno without its ends, which look like air and bone on a film.
_HEAT = ListedColormap(matplotlib.colormaps["inferno"](np.linspace(0.35, 0.88, 256)))


def overlay_cam(
    film: np.ndarray,
    cam: np.ndarray,
    boxes: pd.DataFrame | None = None,
    ax: Axes | None = None,
    *,
    scale: float | None = None,
    threshold: float | None = None,
    colormap: str | Colormap = "heat",
    opacity: float = OPACITY,
) -> Figure:
    """Overlays a class activation map on its film.

    Args:
        film: uint8 ``(H, W)``.
        cam: raw map ``(h, w)``, logits; its positive part is shown (`chexnet.cam.normalize_map`).
        boxes: ``x, y, width, height`` in pixels of ``film``, drawn in blue.
        ax: where to draw; ``None`` makes a figure.
        scale: logits of the last color; use the same for films to compare. ``None`` takes the
            maximum of this map.
        threshold: logits at which a white line is drawn around the map, such as
            `chexnet.evaluation.cam_threshold`; ``None`` draws none.
        colormap: ``"heat"`` (safe for color blindness), ``"jet"``, or another of matplotlib.
        opacity: of the last color, 0 to 1; it falls to 0 with the map.

    Returns:
        the figure of ``ax``. A map with NaN or infinite values is not drawn, and a text says so.

    Raises:
        ValueError: as `blend`, or the threshold is no number.

    Example:
        >>> from chexnet.figures import overlay_cam
        >>> from chexnet.runs import Run
        >>> run = Run("output/demo")
        >>> image_ids, maps = run.maps()
        >>> image_id = run.predictions.query("split == 'test'")["image_id"].iloc[0]
        >>> cam = maps[image_ids == image_id][0, 0]
        >>> overlay_cam(run.film(image_id), cam).savefig("overlay.png")
    """
    if threshold is not None:
        check_number("threshold", threshold)
    blended = blend(film, cam, scale=scale, colormap=colormap, opacity=opacity)
    ax = show_film(blended, boxes, ax)
    if not np.isfinite(cam).all():
        place: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "color": "white"}
        ax.text(0.5, 0.02, NO_MAP, fontsize=7, **place)
    elif threshold is not None and np.max(cam) > threshold:
        centers = (np.arange(_FINE) + 0.5) / _FINE
        rows, columns = film.shape
        ax.contour(
            centers * columns, centers * rows, upsample_map(cam, _FINE), [threshold], **_OUTLINE
        )
    figure = ax.get_figure(root=True)
    assert figure is not None
    return plain_text(figure)


def blend(
    film: np.ndarray,
    cam: np.ndarray,
    *,
    scale: float | None = None,
    colormap: str | Colormap = "heat",
    opacity: float = OPACITY,
) -> np.ndarray:
    """Mixes a film with the colors of its map; opacity grows with the map, from 0.

    Arguments are those of `overlay_cam`.

    Returns:
        uint8 ``(H, W, 3)``, RGB; the film itself where the map is 0 or below, or all of it if the
        map has NaN or infinite values.

    Raises:
        ValueError: the film is not uint8 ``(H, W)``, the map not ``(h, w)``, the colormap unknown,
            or the opacity outside 0 to 1.

    Example:
        >>> import numpy as np
        >>> from chexnet.figures import blend
        >>> blend(np.zeros((2, 2), np.uint8), np.array([[1.0]]), colormap="gray", opacity=0.5)[0, 0]
        array([128, 128, 128], dtype=uint8)
    """
    if film.dtype != np.uint8 or film.ndim != 2 or np.ndim(cam) != 2:
        raise ValueError(
            f"film is {film.dtype} {film.shape}, the map has shape {np.shape(cam)}: expected uint8 "
            "(H, W) and (h, w)"
        )
    check_number("opacity", opacity, least=0, most=1)
    cam = cam if np.isfinite(cam).all() else np.zeros((1, 1))
    shown = normalize_map(upsample_map(cam, film.shape), scale=scale)
    share = (opacity * shown**RISE)[..., None]
    # In floating point: a sum of uint8 wraps around to black where the map is highest.
    mixed = (1 - share) * film[..., None] + share * _colors(colormap)(shown, bytes=True)[..., :3]
    return np.rint(mixed).astype(np.uint8)


def color_table(colormap: str | Colormap = "heat") -> np.ndarray:
    """The 256 colors of a colormap, uint8 ``(256, 3)``, RGB.

    Raises:
        ValueError: the colormap is unknown.

    Example:
        >>> from chexnet.figures import color_table
        >>> color_table("gray")[[0, 255]].tolist()
        [[0, 0, 0], [255, 255, 255]]
    """
    return _colors(colormap)(np.arange(256), bytes=True)[:, :3]


def _colors(colormap: str | Colormap) -> Colormap:
    return matplotlib.colormaps.get_cmap(_HEAT if colormap == "heat" else colormap)


def show_film(
    pixels: np.ndarray, boxes: pd.DataFrame | None = None, ax: Axes | None = None
) -> Axes:
    """Shows a film, uint8 ``(H, W)`` or RGB ``(H, W, 3)``, and boxes in its pixels, without ticks.

    Returns ``ax``, or the axes of a new figure. 0 is black and 255 white, always.
    """
    rows, columns = pixels.shape[:2]
    if ax is None:
        inches = 5 / max(rows, columns)
        ax = Figure(figsize=(inches * columns, inches * rows)).add_axes((0, 0, 1, 1))
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(0, columns, rows, 0), aspect="equal")
    # Without limits, a box that extends beyond the film would shrink it.
    ax.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[], frame_on=False)
    if boxes is not None:
        for x, y, width, height in boxes[["x", "y", "width", "height"]].to_numpy(float):
            corner = (x, y)
            box = Rectangle(corner, width, height, fill=False, edgecolor=BOX_COLOR, linewidth=1.3)
            box.set_path_effects([withStroke(linewidth=2.3, foreground="black", alpha=0.5)])
            ax.add_patch(box)
    return ax


def show_colors(
    ax: Axes,
    *,
    scale: float,
    colormap: str | Colormap = "heat",
    opacity: float = OPACITY,
    size: float = 7.5,
) -> None:
    """Draws a color bar: the colors as they look on a medium gray film, and their logits."""
    ramp = np.linspace(0, scale, 256, dtype=np.float32)[None]
    gray = np.full((1, 256), BAR_GRAY, np.uint8)
    colors = blend(gray, ramp, scale=scale, colormap=colormap, opacity=opacity)
    ax.imshow(colors, extent=(0, scale, 0, 1), aspect="auto")
    ax.set(yticks=[], xticks=[0, scale / 2, scale])
    labels = ["0 or less", f"{scale / 2:.2g}", f"{scale:.2g} or more"]
    ax.set_xticklabels(labels, fontsize=size)
    ax.tick_params(length=2, pad=2)


def plain_text(figure: Figure) -> Figure:
    """Takes every text of a figure literally: a name with ``$`` in it is no formula."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
    return figure


def header_text(film: pd.Series | tuple) -> str:
    """View, sex and age of a film, as far as they are known: ``PA · F · 54 y``.

    Example:
        >>> import pandas as pd
        >>> from chexnet.figures import header_text
        >>> header_text(pd.Series({"view": "PA", "sex": "F", "age": 54}))
        'PA · F · 54 y'
    """
    values = [getattr(film, name, None) for name in ("view", "sex", "age")]
    known = [value for value in values if pd.notna(value)]
    return " · ".join(value if isinstance(value, str) else f"{value:.0f} y" for value in known)
