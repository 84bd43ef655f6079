"""A contact sheet of odd films: as the file stores them beside what the conversion made of them."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
from matplotlib.figure import Figure

from chexnet.figures.overlay import film_sheet
from chexnet.files import read_image

_LOOKED_AT = 500  # films whose brightness is compared: a second, and enough to find a strange one
_SHOWN = 400  # pixels of the long side of a picture on the sheet


def odd_films(films: pd.DataFrame, jpg_folder: str | Path, *, count: int = 4) -> pd.DataFrame:
    """The films of a conversion that most deserve a look.

    Args:
        films: what `chexnet.dicom.convert_folder` returned.
        jpg_folder: where it wrote.
        count: how many at most.

    Returns:
        rows of ``films`` with ``why``: first one film of each way of storing whose pixels had to be
        changed, then one of each size that few films have, then by turns the darkest and the
        brightest (of at most 500 films, evenly spread).

    Raises:
        ValueError: no film was converted, or ``count`` is below 1.
    """
    made = films[films["status"] != "failed"].sort_values("image_id")
    if not len(made) or count < 1:
        raise ValueError(f"{len(made)} converted films, count={count}: allowed is 1 or more")
    encoded = made[made["status"] == "encoded"].drop_duplicates(["stored", "reason"])
    encoded = encoded.assign(why=encoded["reason"].astype(str))
    sizes = made.groupby(["rows", "columns"])["image_id"].transform("size")
    rare = made.assign(films=sizes)[sizes < sizes.max()].sort_values("films", kind="stable")
    rare = rare.drop(columns="films").drop_duplicates(["rows", "columns"])
    rare = rare.assign(
        why=[f"rare size, {rows:.0f} x {columns:.0f}"
             for rows, columns in zip(rare["rows"], rare["columns"], strict=True)]
    )  # fmt: skip
    some = made.iloc[:: -(-len(made) // _LOOKED_AT)]
    means = np.array([read_image(_jpg(jpg_folder, name)).mean() for name in some["image_id"]])
    by_mean = some.assign(mean=means).sort_values("mean")
    ends = [(by_mean, "dark"), (by_mean[::-1], "bright")]
    ends = [
        end.head(count).assign(rank=range(min(count, len(end))), why=f"{word}, mean " + text)
        for end, word in ends
        for text in [end.head(count)["mean"].round().astype(int).astype(str)]
    ]
    ends = pd.concat(ends).sort_values("rank", kind="stable").drop(columns=["mean", "rank"])
    return pd.concat([encoded, rare, ends]).drop_duplicates("image_id").head(count)


def conversion_sheet(
    films: pd.DataFrame, source: str | Path, jpg_folder: str | Path, *, count: int = 4
) -> Figure:
    """Odd films in pairs: the stored values, and the JPG.

    Args:
        films: what `chexnet.dicom.convert_folder` returned.
        source: the folder of DICOM files that was converted.
        jpg_folder: where the JPGs are.
        count: pairs at most; see `odd_films`.

    Raises:
        ValueError: as `odd_films`.
    """
    odd = odd_films(films, jpg_folder, count=count)
    pictures, titles = [], []
    for film in odd.itertuples():
        pictures += [
            _small(stored_values(Path(source) / film.file)),
            _small(read_image(_jpg(jpg_folder, film.image_id))),
        ]
        titles += [f"stored: {film.stored}", f"JPG: {film.why}"]
    return film_sheet(pictures, titles=["\n".join(_lines(title)) for title in titles])


def stored_values(path: str | Path) -> np.ndarray:
    """The numbers in a DICOM file as a picture, without asking what they mean.

    No window, no inversion, no rescaling: the range that the stored bits allow becomes 0 to 255.
    A film of 12 bits in which only the lower third is used is dark here, and one that stores air as
    white is a negative.

    Args:
        path: of a DICOM file that pydicom decodes.

    Returns:
        uint8 ``(H, W)``; of several frames the first, of colours the mean.
    """
    film = pydicom.dcmread(path)
    values = film.pixel_array.astype(np.float32)
    if int(getattr(film, "NumberOfFrames", 1) or 1) > 1:  # (0028,0008)
        values = values[0]
    if values.ndim == 3:
        values = values.mean(axis=-1)
    if film.PixelRepresentation:  # (0028,0103): signed
        values += 2.0 ** (film.BitsStored - 1)
    return np.clip(values / (2.0**film.BitsStored - 1) * 255, 0, 255).astype(np.uint8)


def _jpg(folder: str | Path, image_id: str) -> Path:
    return Path(folder) / f"{image_id}.jpg"


def _small(pixels: np.ndarray) -> np.ndarray:
    share = min(1, _SHOWN / max(pixels.shape))
    return cv2.resize(pixels, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)


def _lines(text: str) -> list[str]:
    """Two lines of at most 44 letters."""
    cut = text.rfind(" ", 0, 44) if len(text) > 44 else len(text)
    return [text[:cut], text[cut:].strip()[:44]]
