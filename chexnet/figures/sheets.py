"""Contact sheets: of any films, and of the unusual films of a conversion."""

import math
import textwrap
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
from matplotlib.figure import Figure
from pydicom.pixels import pixel_array

from chexnet.figures.overlay import BOX_COLOR, plain_text, show_film
from chexnet.files import check_number, read_image, shrink

_SHEET = 10.0  # width of a contact sheet, inches
_SAMPLED = 500  # films whose brightness is compared, evenly spread: takes a second
_WORDS = ("dark", "bright")
_SHOWN = 400  # pixels of the long side of a picture on the sheet


def film_sheet(
    films: Sequence[np.ndarray],
    *,
    titles: Sequence[str] | None = None,
    masks: Sequence[np.ndarray | None] | None = None,
    columns: int = 4,
) -> Figure:
    """Draws a contact sheet, 10 inches wide: films row by row, each with its title.

    Args:
        films: uint8 ``(H, W)`` each, of any sizes, at least one.
        titles: one per film.
        masks: one per film: ``(h, w)`` in [0, 1], such as rotated boxes, outlined at 0.5; or
            ``None``.
        columns: films side by side, at least 1.

    Raises:
        ValueError: no films, no columns, or not one title and mask per film.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.figures import film_sheet
        >>> from chexnet.files import read_image
        >>> paths = sorted(Path("data/phantom/jpg").glob("*.jpg"))[:4]
        >>> film_sheet([read_image(path) for path in paths], columns=2).savefig("sheet.png")
    """
    titles = [""] * len(films) if titles is None else titles
    masks = [None] * len(films) if masks is None else masks
    numbers = {len(films), len(titles), len(masks)}
    if len(numbers) > 1 or min(numbers) < 1 or columns < 1:
        raise ValueError(
            f"{len(films)} films, {len(titles)} titles, {len(masks)} masks, columns={columns}: "
            "expected equal numbers, none of them 0"
        )
    columns = min(columns, len(films))
    rows = math.ceil(len(films) / columns)
    tallest = max(film.shape[0] / film.shape[1] for film in films)
    lines = 1 + max(title.count("\n") for title in titles)
    # A row is at most twice as high as it is wide, so that one narrow film does not stretch it.
    height = rows * (_SHEET / columns * min(tallest, 2.0) + 0.16 * lines)
    figure = Figure(figsize=(_SHEET, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, film, title, mask in zip(axes, films, titles, masks, strict=False):
        show_film(film, ax=ax).set_title(title, fontsize=8)
        if mask is not None and mask.max() > 0.5:
            extent = (0, film.shape[1], 0, film.shape[0])
            ax.contour(mask, [0.5], colors=[BOX_COLOR], linewidths=1.5, extent=extent)
    for ax in axes[len(films) :]:
        ax.set_axis_off()
    return plain_text(figure)


def conversion_sheet(
    films: pd.DataFrame, source: str | Path, jpg_folder: str | Path, *, count: int = 4
) -> Figure:
    """Draws unusual films of a conversion in pairs: stored values and JPG.

    Args:
        films: from `chexnet.dicom.convert_folder`.
        source: the folder of films that was converted.
        jpg_folder: the folder of the JPGs.
        count: maximum number of pairs. First come re-encoded films, one for each kind of storage
            and reason, then one of each rare size, then the darkest and the brightest.

    Raises:
        ValueError: no film was converted, or ``count`` is below 1.

    Example:
        >>> from chexnet.dicom import read_films
        >>> from chexnet.figures import conversion_sheet
        >>> folder = "data/phantom/study/stage_2_train_images"
        >>> sheet = conversion_sheet(read_films("data/phantom/jpg"), folder, "data/phantom/jpg")
        >>> len(sheet.axes)
        8
    """
    pictures, titles = [], []
    for film in unusual_films(films, jpg_folder, count=count).itertuples():
        stored = stored_values(Path(source) / str(film.file))
        converted = read_image(Path(jpg_folder) / f"{film.image_id}.jpg")
        pictures += [shrink(stored, _SHOWN), shrink(converted, _SHOWN)]
        titles += [f"stored: {film.stored}", f"JPG: {film.why}"]
    titles = [textwrap.fill(title, 44, max_lines=2, placeholder="") for title in titles]
    return film_sheet(pictures, titles=titles)


def unusual_films(films: pd.DataFrame, jpg_folder: str | Path, *, count: int = 4) -> pd.DataFrame:
    """Rows of ``films`` that deserve a look, in the order of `conversion_sheet`, and ``why``."""
    made = films[films["status"] != "failed"].sort_values("image_id", ignore_index=True)
    check_number("count", count, integer=True, least=1)
    if not len(made):
        raise ValueError(f"films: none of {len(films)} was converted; expected 1 or more")
    encoded = made[made["status"] == "encoded"].drop_duplicates(["stored", "reason"])
    encoded = encoded.assign(why=encoded["reason"].astype(str))
    size = made["rows"].astype(int).astype(str) + " x " + made["columns"].astype(int).astype(str)
    same = size.map(size.value_counts())
    rare = made.assign(why="rare size, " + size)[same < same.max()]
    rare = rare.loc[same[rare.index].sort_values(kind="stable").index].drop_duplicates("why")
    some = made.iloc[:: math.ceil(len(made) / _SAMPLED)]
    paths = [Path(jpg_folder) / f"{image_id}.jpg" for image_id in some["image_id"]]
    mean = pd.Series([read_image(path).mean() for path in paths], some.index).sort_values()
    # By turns: the darkest, the brightest, the second darkest and so on.
    order = np.stack([mean.index, mean.index[::-1]], axis=1).ravel()[: 2 * count]
    why = [f"{word}, mean {mean[row]:.0f}" for row, word in zip(order, cycle(_WORDS))]
    extreme = made.loc[order].assign(why=why)
    return pd.concat([encoded, rare, extreme]).drop_duplicates("image_id").head(count)


def stored_values(path: str | Path) -> np.ndarray:
    """A PNG, JPG or first frame of a DICOM file as a picture, uint8 ``(H, W)``; of colors the mean.

    There is no window, inversion or rescaling: the range of the stored bits becomes 0 to 255.
    """
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        film = pydicom.dcmread(path, force=True)  # also without the preamble
        values, bits = pixel_array(film, index=0).astype(np.float32), film.BitsStored
        if film.PixelRepresentation:  # (0028,0103): signed
            values += 2.0 ** (bits - 1)
    else:
        bits = 8 * values.dtype.itemsize
    if values.ndim == 3:
        values = values[..., :3].mean(axis=-1)
    return np.clip(values / (2.0**bits - 1) * 255, 0, 255).astype(np.uint8)
