"""What the map says together with where opacities lie: evidence of a film plus prior knowledge.

A class activation map is the network's evidence at each position, a logit. By Bayes' rule evidence
and the prior odds of a position add up in logits; the prior is how often the radiologists' boxes of
the training films cover it. Against the best fixed area, which is the prior alone, the gain is what
the pixels of the film have added.
"""

import numpy as np
import pandas as pd

from chexnet.box_prior import BoxPrior
from chexnet.localization import mean_iou_by_threshold
from chexnet.overlap import min_max, upsample

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
    return min_max(upsample(maps, prior.share.shape)) + np.float32(weight) * odds


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
