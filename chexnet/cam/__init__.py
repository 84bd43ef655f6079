"""Class activation maps."""

from chexnet.cam.exact import (
    METHODS, class_activation_map, exact_forward, score_films,
)  # fmt: skip
from chexnet.cam.maps import CANVAS, min_max, normalize_map, peak_points, shared_scale, upsample_map

__all__ = [
    "CANVAS", "METHODS", "class_activation_map", "exact_forward", "min_max", "normalize_map",
    "peak_points", "score_films", "shared_scale", "upsample_map",
]  # fmt: skip
