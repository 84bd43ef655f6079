"""Where the boxes of the training films lie: baselines for localization, and a prior for maps.

Opacities lie in lungs, so even a fixed point hits many boxes. A map is useful only if it finds them
better than the best fixed point and the best fixed mask.

A class activation map is the evidence at each position, a logit. By Bayes' rule evidence and prior
log-odds add up. The prior is how often boxes of training films cover a position.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from chexnet.cam import min_max, upsample_map
from chexnet.evaluation.localization import LEVELS, choose_map_threshold, iou_at
from chexnet.labels import box_masks

_CANVAS = 128  # pixels a side; 8 pixels of an RSNA film each
_FILMS_AT_ONCE = 128  # keeps masks and maps below 40 MB
# Weight of the prior's log-odds, added to a map normalized to [0, 1]; 0 is the map alone.
WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0)
_RARE = 0.01  # added to both odds: keeps the logarithm finite where no training film has a box


@dataclass(frozen=True)
class BoxPrior:
    """The best predictions that are the same for every film, fitted on ``n_films`` with boxes."""

    point: tuple[float, float]  # x, y, shares of the film's width and height
    mask: np.ndarray  # bool (128, 128)
    share: np.ndarray  # float32 (128, 128), of the films with a box there
    n_films: int


def fit_box_prior(boxes: pd.DataFrame, images: pd.DataFrame) -> BoxPrior:
    """Fits the prior on the training films ``images`` that have boxes.

    The point is where most films have a box. The mask is where at least a share of the films has
    one; of the shares, in steps of 2 % of the highest, it is the one with the largest mean IoU.
    """
    ids = images.loc[images["image_id"].isin(boxes["image_id"]), "image_id"].to_numpy()
    if not len(ids):
        raise ValueError(f"none of the {len(images)} training films has a box")
    total = np.zeros((_CANVAS, _CANVAS))
    for start in range(0, len(ids), _FILMS_AT_ONCE):
        some = ids[start : start + _FILMS_AT_ONCE]
        total += box_masks(boxes, images, some, _CANVAS).sum(axis=0, dtype=np.float64)
    share = (total / len(ids)).astype(np.float32)
    row, column = np.divmod(int(share.argmax()), _CANVAS)
    levels = (LEVELS * share.max()).astype(np.float32)
    maps = np.broadcast_to(share, (len(ids), *share.shape))
    iou = iou_at(maps, ids, boxes, images, levels, canvas=_CANVAS)
    best = levels[iou.mean(axis=0).argmax()]
    point = (float(column + 0.5) / _CANVAS, float(row + 0.5) / _CANVAS)
    return BoxPrior(point, mask=share >= best, share=share, n_films=len(ids))


def fixed_mask_iou(
    prior: BoxPrior, boxes: pd.DataFrame, images: pd.DataFrame, image_ids: ArrayLike
) -> np.ndarray:
    """IoU of the fixed mask with the boxes of films, float64 ``(N,)``."""
    maps = np.broadcast_to(prior.mask, (np.size(image_ids), *prior.mask.shape))
    return iou_at(maps, image_ids, boxes, images, [1], canvas=_CANVAS)[:, 0]


def guided_maps(maps: np.ndarray, prior: BoxPrior, weight: float) -> np.ndarray:
    """Maps min-max normalized film by film, plus the weighted log-odds of the prior.

    Float32 ``(N, 128, 128)``, for one threshold for all films.
    """
    odds = np.log((prior.share + _RARE) / (1 - prior.share + _RARE))
    guided = np.empty((len(maps), _CANVAS, _CANVAS), np.float32)
    for start in range(0, len(maps), _FILMS_AT_ONCE):  # a few at a time: they are large
        some = slice(start, start + _FILMS_AT_ONCE)
        guided[some] = min_max(upsample_map(maps[some], _CANVAS)) + np.float32(weight) * odds
    return guided


def choose_guidance(
    maps: np.ndarray,
    image_ids: ArrayLike,
    boxes: pd.DataFrame,
    images: pd.DataFrame,
    prior: BoxPrior,
) -> tuple[float, float]:
    """The weight (of `WEIGHTS`) and threshold with the largest mean IoU, for validation films."""
    found = {}
    for weight in WEIGHTS:
        guided = guided_maps(maps, prior, weight)
        found[weight] = choose_map_threshold(guided, image_ids, boxes, images, normalize=False)
    best = max(WEIGHTS, key=lambda weight: found[weight][1])
    return best, found[best][0]
