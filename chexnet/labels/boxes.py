"""Radiologists' boxes: scaled to another image size, as masks, and whether a point lies in one."""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from chexnet.files import refuse, summarize

BOX = ["x", "y", "width", "height"]
_ROUNDING = 1e-9  # share of a film: a millionth of a pixel
_MANY = 10  # boxes; of the RSNA films' boxes, 4 % are in the upper left quarter


def boxes_of_class(
    boxes: pd.DataFrame, class_name: str, class_names: Sequence[str]
) -> pd.DataFrame:
    """The boxes of one class. In a table without ``class_name`` all are of the first class.

    Args:
        boxes: a box table, with or without ``class_name``.
        class_name: which class.
        class_names: all classes of the study or run, in order.

    Example:
        >>> import pandas as pd
        >>> from chexnet.labels import boxes_of_class
        >>> boxes = pd.DataFrame({"image_id": ["a", "b"], "class_name": ["Mass", "Nodule"]})
        >>> boxes_of_class(boxes, "Nodule", ["Mass", "Nodule"])["image_id"].tolist()
        ['b']
    """
    if "class_name" in boxes:
        return boxes[boxes["class_name"] == class_name]
    return boxes if class_name == class_names[0] else boxes[:0]


def check_boxes(images: pd.DataFrame, boxes: pd.DataFrame) -> None:
    """Compares boxes with the size of their films, before anything is trained on them.

    Args:
        images: ``image_id, rows, columns``; films without a size are not checked.
        boxes: ``image_id, x, y, width, height`` in pixels of the original films.

    Raises:
        ValueError: the center of a box is outside its film.

    Warns:
        UserWarning: a box extends over the edge of its film by more than a pixel (only what is
            inside counts), or all boxes are in the upper left quarter of their films.

    Example:
        >>> import pandas as pd
        >>> from chexnet.labels import check_boxes
        >>> images = pd.DataFrame({"image_id": ["a"], "rows": [512], "columns": [512]})
        >>> boxes = pd.DataFrame({"image_id": ["a"], "x": [800], "y": [90]})
        >>> check_boxes(images, boxes.assign(width=100, height=100))
        Traceback (most recent call last):
        ...
        ValueError: boxes: 1 boxes outside their film: a (x=800, y=90, width=100, height=100; film
        512 x 512 pixels); expected: pixels of the original film
    """
    if not {"rows", "columns"} <= set(images.columns):
        return
    sizes = images[["image_id", "rows", "columns"]].dropna()
    boxes = boxes.merge(sizes, on="image_id")
    named = pd.Series(
        [
            f"{box.image_id} (x={box.x:g}, y={box.y:g}, width={box.width:g}, "
            f"height={box.height:g}; film {box.columns:g} x {box.rows:g} pixels)"
            for box in boxes.itertuples()
        ],
        boxes.index,
        dtype=str,
    )
    right, bottom = boxes["x"] + boxes["width"], boxes["y"] + boxes["height"]
    outside = (boxes["x"] + right > 2 * boxes["columns"]) | (
        boxes["y"] + bottom > 2 * boxes["rows"]
    )
    refuse("boxes", named[outside], "boxes outside their film", "pixels of the original film")
    over = (right > boxes["columns"] + 1) | (bottom > boxes["rows"] + 1)
    if over.any():
        warnings.warn(
            f"boxes: {over.sum()} of {len(boxes)} boxes extend over the edge of their film; only "
            f"the part inside counts: {summarize(named[over])}",
            stacklevel=2,
        )
    quarter = (right <= boxes["columns"] / 2) & (bottom <= boxes["rows"] / 2)
    if len(boxes) >= _MANY and quarter.all():
        warnings.warn(
            f"boxes: all {len(boxes)} boxes are in the upper left quarter of their films, as if "
            f"they were in pixels of smaller ones: {summarize(named)}",
            stacklevel=2,
        )


def scale_boxes(
    boxes: pd.DataFrame,
    rows: ArrayLike,
    columns: ArrayLike,
    size: int | tuple[int, ...],
) -> pd.DataFrame:
    """Scales boxes from the original film to another size.

    Args:
        boxes: with ``x, y, width, height`` (left, top; pixels of the original film).
        rows: height of the original film, or of each box's film, in the order of ``boxes``.
        columns: its width.
        size: new size as ``(height, width, ...)``, such as an array's shape, or one side if square.

    Returns:
        a copy of ``boxes`` with the four columns as float in pixels of the new size.

    Raises:
        ValueError: ``rows`` or ``columns`` is 0, negative or missing.

    Example:
        >>> import pandas as pd
        >>> from chexnet.labels import scale_boxes
        >>> boxes = pd.DataFrame({"x": [256], "y": [512], "width": [128], "height": [64]})
        >>> scale_boxes(boxes, 1024, 1024, 512).to_numpy().tolist()
        [[128.0, 256.0, 64.0, 32.0]]
    """
    height, width = (size, size) if isinstance(size, int | np.integer) else size[:2]
    rows, columns = np.asarray(rows, dtype=float), np.asarray(columns, dtype=float)
    if not (np.all(rows > 0) and np.all(columns > 0)):
        raise ValueError("scale_boxes: expected rows and columns above 0 for every film")
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
        boxes: ``image_id, x, y, width, height`` in pixels of the original films; boxes of films
            not in ``image_ids`` are ignored.
        images: ``image_id, rows, columns`` of the films with boxes.
        image_ids: ``(n,)``, films in the order of the result.
        size: the grid as ``(h, w)``, or one side if square.

    Returns:
        float32 ``(n, h, w)`` in [0, 1]; zeros for a film without boxes. The shares are exact and an
        overlap counts once.

    Raises:
        ValueError: as `boxes_by_film`.

    Example:
        >>> from chexnet.labels import box_masks
        >>> from chexnet.splits import read_split
        >>> images, boxes = read_split("data/phantom")
        >>> box_masks(boxes, images, images["image_id"][:2], (8, 8)).shape
        (2, 8, 8)
    """
    height, width = (size, size) if isinstance(size, int | np.integer) else size
    its_boxes = boxes_by_film(boxes[boxes["image_id"].isin(image_ids)], images)
    return masks_by_film(its_boxes, image_ids, (height, width))


def masks_by_film(
    boxes: dict[str, np.ndarray],
    image_ids: Sequence[str] | np.ndarray | pd.Series,
    size: tuple[int, int],
) -> np.ndarray:
    """What `box_masks` returns, from boxes that `boxes_by_film` has prepared once.

    Args:
        boxes: from `boxes_by_film`.
        image_ids: as in `box_masks`.
        size: the grid as ``(h, w)``.

    Example:
        >>> import numpy as np
        >>> from chexnet.labels import masks_by_film
        >>> masks_by_film({"a": np.array([[0, 0, 0.5, 1]])}, ["a"], (1, 2))
        array([[[1., 0.]]], dtype=float32)
    """
    masks = np.zeros((len(image_ids), *size), np.float32)
    for mask, image_id in zip(masks, image_ids, strict=True):
        if image_id in boxes:
            mask[:] = coverage(boxes[image_id], size)
    return masks


def boxes_by_film(boxes: pd.DataFrame, images: pd.DataFrame) -> dict[str, np.ndarray]:
    """Boxes of each film as shares of its width and height.

    Args:
        boxes: ``image_id, x, y, width, height`` in pixels of the original films.
        images: ``image_id, rows, columns`` of the films with boxes.

    Returns:
        image_id to float ``(k, 4)``: x, y, width, height in [0, 1].

    Raises:
        ValueError: a film with boxes is not in ``images`` or has no rows and columns there.

    Example:
        >>> from chexnet.labels import boxes_by_film
        >>> from chexnet.splits import read_split
        >>> images, boxes = read_split("data/phantom")
        >>> shares = boxes_by_film(boxes, images)
        >>> shares[boxes["image_id"][0]].shape[1]
        4
    """
    films = images.drop_duplicates("image_id").set_index("image_id")
    sizes = films.reindex(columns=["rows", "columns"]).reindex(boxes["image_id"])
    unknown = sizes.index[sizes.isna().any(axis=1)].unique()
    if len(unknown):
        raise ValueError(f"images: no rows and columns of films with boxes: {summarize(unknown)}")
    shares = scale_boxes(boxes, sizes["rows"].to_numpy(), sizes["columns"].to_numpy(), 1)
    # Not groupby, which takes a hundred times as long.
    shares = shares.sort_values("image_id", kind="stable")
    names, starts = np.unique(shares["image_id"].to_numpy(str), return_index=True)
    parts = np.split(shares[BOX].to_numpy(dtype=float), starts[1:])
    return dict(zip(names.tolist(), parts, strict=False))


def coverage(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Share of each cell of a grid ``(h, w)`` that one film's boxes cover, float64 in [0, 1].

    Boxes are ``(k, 4)``, shares of the film; what lies outside the film is ignored.
    """
    height, width = size
    x, y, box_width, box_height = boxes.T
    left, right = (width * edge.clip(0, 1) for edge in (x, x + box_width))
    top, bottom = (height * edge.clip(0, 1) for edge in (y, y + box_height))
    across = (np.minimum(right, right[:, None]) > np.maximum(left, left[:, None])) & (
        np.minimum(bottom, bottom[:, None]) > np.maximum(top, top[:, None])
    )
    if across.sum() == across.trace():  # none overlaps another: the sum of width times height
        columns, rows = (
            (np.minimum(end[:, None], cells + 1) - np.maximum(start[:, None], cells)).clip(0)
            for start, end, cells in (
                (left, right, np.arange(width)),
                (top, bottom, np.arange(height)),
            )
        )
        return rows.T @ columns
    # The edges of boxes and cells divide the film into rectangles, each wholly inside or outside a
    # box and a cell. So the sum of their areas is exact, and an overlap counts once.
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


def points_in_boxes(
    points: np.ndarray, image_ids: np.ndarray, boxes: pd.DataFrame, images: pd.DataFrame
) -> np.ndarray:
    """Whether each film's point lies in one of its boxes (pointing game).

    A box includes its left and upper edge, not its right and lower one.

    Args:
        points: ``(N, 2)``: x, y as shares of the film's width and height; NaN lies in no box.
        image_ids: ``(N,)``, the film of each point.
        boxes: as in `box_masks`.
        images: as in `box_masks`.

    Returns:
        bool ``(N,)``.

    Raises:
        ValueError: as `boxes_by_film`.

    Example:
        >>> import numpy as np
        >>> from chexnet.labels import points_in_boxes
        >>> from chexnet.splits import read_split
        >>> images, boxes = read_split("data/phantom")
        >>> box = boxes.iloc[0]
        >>> point = np.array([[box["x"] + 1, box["y"] + 1]]) / 256
        >>> points_in_boxes(point, [box["image_id"]], boxes, images)
        array([ True])
    """
    shares = boxes_by_film(boxes[boxes["image_id"].isin(image_ids)], images)
    inside = np.zeros(len(points), bool)
    for row, (point, image_id) in enumerate(zip(points, image_ids, strict=True)):
        if image_id in shares:
            # A point on an edge must not fall off it by the rounding of shares.
            beyond = point + _ROUNDING - shares[image_id][:, :2]
            inside[row] = ((beyond >= 0) & (beyond < shares[image_id][:, 2:])).all(axis=1).any()
    return inside
