"""Radiologists' boxes on another canvas: scaled, or as the share of each cell that they cover."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from chexnet.files import summarize


def scale_boxes(
    boxes: pd.DataFrame,
    rows: int | Sequence[int] | pd.Series,
    columns: int | Sequence[int] | pd.Series,
    size: int | tuple[int, ...],
) -> pd.DataFrame:
    """Boxes in pixels of the original film, in pixels of another canvas.

    Args:
        boxes: with ``x, y, width, height`` (left, top; original pixels).
        rows: height of the original film, or of each box's film, in the order of ``boxes``.
        columns: its width.
        size: the canvas as ``(height, width)`` (an array's shape will do), or one side if square.

    Returns:
        a copy of ``boxes`` with the four columns as float in pixels of the canvas.

    Raises:
        ValueError: a film has no height or width above 0.
    """
    height, width = (size, size) if isinstance(size, int | np.integer) else size[:2]
    rows, columns = np.asarray(rows, dtype=float), np.asarray(columns, dtype=float)
    if not (np.all(rows > 0) and np.all(columns > 0)):
        raise ValueError("scale_boxes: rows and columns of every film must be above 0")
    across, down = width / columns, height / rows
    return boxes.assign(
        x=boxes["x"] * across,
        y=boxes["y"] * down,
        width=boxes["width"] * across,
        height=boxes["height"] * down,
    )


def box_masks(
    boxes: pd.DataFrame,
    images: pd.DataFrame,
    image_ids: Sequence[str] | np.ndarray | pd.Series,
    size: int | tuple[int, int],
) -> np.ndarray:
    """Share of each cell of a grid that the boxes of a film cover together.

    Args:
        boxes: ``image_id, x, y, width, height`` in original pixels; may name other films too.
        images: ``image_id, rows, columns`` of at least the films asked for that have boxes.
        image_ids: films, in the order of the result.
        size: the grid as ``(h, w)``, or one side if square.

    Returns:
        float32 ``(n, h, w)`` in [0, 1]; exact, overlapping boxes count once; zero for a film
        without boxes.

    Raises:
        ValueError: a film with boxes is not in ``images`` or has no rows and columns there.
    """
    height, width = (size, size) if isinstance(size, int | np.integer) else size
    its_boxes = boxes_by_film(boxes[boxes["image_id"].isin(image_ids)], images)
    return masks_by_film(its_boxes, image_ids, (height, width))


def masks_by_film(
    boxes: dict[str, np.ndarray],
    image_ids: Sequence[str] | np.ndarray | pd.Series,
    size: tuple[int, int],
) -> np.ndarray:
    """What `box_masks` gives, from boxes as `boxes_by_film` has them, once for many grids."""
    masks = np.zeros((len(image_ids), *size), np.float32)
    for mask, image_id in zip(masks, image_ids, strict=True):
        if image_id in boxes:
            mask[:] = coverage(boxes[image_id], size)
    return masks


def boxes_by_film(boxes: pd.DataFrame, images: pd.DataFrame) -> dict[str, np.ndarray]:
    """Boxes of each film as shares of its width and height.

    Args:
        boxes: ``image_id, x, y, width, height`` in original pixels.
        images: ``image_id, rows, columns`` of at least the films of ``boxes``.

    Returns:
        image_id to float ``(k, 4)``: x, y, width, height in [0, 1].

    Raises:
        ValueError: a film with boxes is not in ``images`` or has no rows and columns there.
    """
    films = images.drop_duplicates("image_id").set_index("image_id")[["rows", "columns"]]
    sizes = films.reindex(boxes["image_id"])
    unknown = sizes.index[sizes.isna().any(axis=1)].unique()
    if len(unknown):
        raise ValueError(f"images: no rows and columns of films with boxes: {summarize(unknown)}")
    shares = scale_boxes(boxes, sizes["rows"].to_numpy(), sizes["columns"].to_numpy(), 1)
    return {
        image_id: group[["x", "y", "width", "height"]].to_numpy(dtype=float)
        for image_id, group in shares.groupby("image_id")
    }


def coverage(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Share of each cell of a grid over the film that some boxes cover together.

    Args:
        boxes: float ``(k, 4)``: x, y, width, height as shares of the film, as `boxes_by_film` has
            them; what lies outside the film is cut off.
        size: the grid as ``(h, w)``.

    Returns:
        float64 ``(h, w)`` in [0, 1].
    """
    height, width = size
    # Box and cell borders together cut the canvas into rectangles that lie wholly inside or outside
    # a box and a cell, so summing areas is exact and an overlap counts once.
    x, y, box_width, box_height = boxes.T
    left, right = (width * edge.clip(0, 1) for edge in (x, x + box_width))
    top, bottom = (height * edge.clip(0, 1) for edge in (y, y + box_height))
    xs = np.unique(np.concatenate([np.arange(width + 1), left, right]))
    ys = np.unique(np.concatenate([np.arange(height + 1), top, bottom]))
    inside = np.zeros((len(ys) - 1, len(xs) - 1))
    for a, b, c, d in zip(
        *(np.searchsorted(ys, edge) for edge in (top, bottom)),
        *(np.searchsorted(xs, edge) for edge in (left, right)),
        strict=True,
    ):
        inside[a:b, c:d] = 1
    area = inside * np.diff(ys)[:, np.newaxis] * np.diff(xs)
    area = np.add.reduceat(area, np.searchsorted(ys, np.arange(height)), axis=0)
    return np.add.reduceat(area, np.searchsorted(xs, np.arange(width)), axis=1)


_ROUNDING = 1e-9  # share of a film: a millionth of a pixel


def points_in_boxes(
    points: np.ndarray, image_ids: np.ndarray, boxes: pd.DataFrame, films: pd.DataFrame
) -> np.ndarray:
    """Whether each film's point lies in one of its boxes (the pointing game).

    A box holds its left and upper edge, not its right and lower one.

    Args:
        points: ``(N, 2)``: x, y as shares of the film; NaN lies in no box.
        image_ids: ``(N,)``, the film of each point.
        boxes: ``image_id, x, y, width, height``, pixels of the original film.
        films: ``image_id, rows, columns`` of the films.

    Returns:
        bool ``(N,)``.
    """
    boxes = boxes[boxes["image_id"].isin(image_ids)]
    share = unit_boxes(boxes, films)
    # A point on an edge must not fall off it by the rounding of shares.
    where = pd.DataFrame(np.asarray(points, np.float64) + _ROUNDING, columns=["px", "py"])
    where["image_id"] = np.asarray(image_ids, dtype=object)
    both = share.merge(where.drop_duplicates("image_id"), on="image_id")
    inside = (
        (both["px"] >= both["x"])
        & (both["px"] < both["x"] + both["width"])
        & (both["py"] >= both["y"])
        & (both["py"] < both["y"] + both["height"])
    )
    return np.isin(where["image_id"].to_numpy(str), both.loc[inside, "image_id"].to_numpy(str))


def unit_boxes(boxes: pd.DataFrame, films: pd.DataFrame) -> pd.DataFrame:
    """Boxes with ``x, y, width, height`` as shares of their film's width and height.

    Raises:
        ValueError: a film with boxes has no size in ``films``.
    """
    sizes = films.drop_duplicates("image_id").set_index("image_id")[["rows", "columns"]]
    sizes = sizes.reindex(boxes["image_id"])
    if sizes.isna().any(axis=None):
        unknown = sizes.index[sizes.isna().any(axis=1)].unique()
        raise ValueError(f"{len(unknown)} films with boxes have no size, such as {unknown[0]}")
    return scale_boxes(boxes, sizes["rows"].to_numpy(), sizes["columns"].to_numpy(), 1)
