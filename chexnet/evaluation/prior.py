"""What the map says together with where opacities lie: evidence of a film plus prior knowledge.

A class activation map is the network's evidence at each position, a logit. By Bayes' rule evidence
and the prior odds of a position add up in logits; the prior is how often the radiologists' boxes of
the training films cover it. Against the best fixed area, which is the prior alone, the gain is what
the pixels of the film have added.

Finding boxes without looking: where the boxes of the training films lie.

Opacities lie in lungs, so a point that is the same on every film already hits most boxes. A map is
worth looking at only if it finds them better than that.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexnet.cam import min_max, upsample_map
from chexnet.evaluation.localization import LEVELS, mean_iou_by_threshold, overlaps
from chexnet.labels import box_masks

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


# Weight of the prior's log-odds against a map stretched to [0, 1]; 0 is the map alone.
WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0)
_RARE = 0.01  # added to both odds: keeps the logarithm finite where no training film has a box


def guided_maps(maps: np.ndarray, prior: BoxPrior, weight: float) -> np.ndarray:
    """Each map stretched film by film to [0, 1], plus the weighted log-odds of the prior.

    Args:
        maps: ``(N, h, w)`` raw maps.
        prior: fitted on training films.
        weight: 0 or above.

    Returns:
        float32 ``(N, 128, 128)``; compare with one threshold for all films.

    Raises:
        ValueError: ``weight`` is below 0.
    """
    if weight < 0:
        raise ValueError(f"weight={weight}: allowed is 0 or above")
    odds = np.log((prior.share + _RARE) / (1 - prior.share + _RARE))
    return min_max(upsample_map(maps, prior.share.shape)) + np.float32(weight) * odds


def choose_guidance(
    maps: np.ndarray,
    image_ids: np.ndarray,
    boxes: pd.DataFrame,
    films: pd.DataFrame,
    prior: BoxPrior,
) -> tuple[float, float]:
    """The weight, and the threshold with it, of the largest mean IoU; hand it validation films.

    Args:
        maps: ``(N, h, w)`` raw maps of one class.
        image_ids: ``(N,)``, their films.
        boxes: ``image_id, x, y, width, height``, pixels of the original film.
        films: ``image_id, rows, columns``.
        prior: fitted on training films.

    Returns:
        weight (one of `WEIGHTS`) and threshold.

    Raises:
        ValueError: no film has boxes.
    """
    found = []
    for weight in WEIGHTS:
        guided = guided_maps(maps, prior, weight)
        thresholds, iou = mean_iou_by_threshold(guided, image_ids, boxes, films, heat="logit")
        found.append((iou.max(), weight, float(thresholds[iou.argmax()])))
    _, weight, threshold = max(found, key=lambda one: one[0])
    return weight, threshold
