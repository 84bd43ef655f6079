"""Finding boxes without looking: where the boxes of the training films lie.

Opacities lie in lungs, so a point that is the same on every film already hits most boxes. A map is
worth looking at only if it finds them better than that.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexnet.boxes import box_masks
from chexnet.overlap import LEVELS, overlaps

_CANVAS = 128  # pixels a side; 8 pixels of an RSNA film each
_FILMS_AT_ONCE = 512  # keeps the masks below 40 MB


@dataclass(frozen=True)
class BoxPrior:
    """The best guesses that are the same on every film.

    Attributes:
        point: x, y of the best fixed point, shares of the film's width and height.
        mask: bool ``(128, 128)``, the best fixed area.
        share: float32 ``(128, 128)``, the share of training films with a box there.
        n_films: training films with boxes that it was fitted on.
    """

    point: tuple[float, float]
    mask: np.ndarray
    share: np.ndarray
    n_films: int


def fit_box_prior(boxes: pd.DataFrame, films: pd.DataFrame) -> BoxPrior:
    """Learns where boxes lie; hand it the training films.

    The point is where most films have a box. The area is where at least a share of the films has
    one; the share is the one (in steps of 2 % of the highest) that gives the largest mean IoU.

    Args:
        boxes: ``image_id, x, y, width, height``, pixels of the original films.
        films: ``image_id, rows, columns`` of the training films; boxes of others are left out.

    Returns:
        point and area.

    Raises:
        ValueError: no training film has a box.
    """
    ids = films.loc[films["image_id"].isin(boxes["image_id"]), "image_id"].to_numpy()
    if not len(ids):
        raise ValueError(f"none of the {len(films)} training films has a box")
    chunks = [ids[start : start + _FILMS_AT_ONCE] for start in range(0, len(ids), _FILMS_AT_ONCE)]
    total = sum(
        box_masks(boxes, films, chunk, _CANVAS).sum(axis=0, dtype=np.float64) for chunk in chunks
    )
    share = (total / len(ids)).astype(np.float32)
    row, column = np.divmod(int(share.argmax()), _CANVAS)
    levels = (LEVELS * share.max()).astype(np.float32)
    areas = (share.ravel()[:, np.newaxis] >= levels).astype(np.float32)  # (pixels, levels)
    gained = np.zeros(len(levels))
    for chunk in chunks:
        masks = box_masks(boxes, films, chunk, _CANVAS).reshape(len(chunk), -1)
        shared = masks @ areas
        union = masks.sum(axis=1, keepdims=True) + areas.sum(axis=0) - shared
        gained += (shared / union).sum(axis=0)
    level = levels[gained.argmax()]
    point = (float(column + 0.5) / _CANVAS, float(row + 0.5) / _CANVAS)
    return BoxPrior(point=point, mask=share >= level, share=share, n_films=len(ids))


def fixed_mask_iou(
    prior: BoxPrior, boxes: pd.DataFrame, films: pd.DataFrame, image_ids: np.ndarray
) -> np.ndarray:
    """IoU of the fixed area with the boxes of films, float64 ``(N,)``."""
    masks = box_masks(boxes, films, image_ids, prior.mask.shape)
    mark = np.broadcast_to(prior.mask.astype(np.float32), masks.shape)
    return overlaps(mark, masks, np.array([0.5]))[0][:, 0]
