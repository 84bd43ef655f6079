"""Class activation maps."""

from chexnet.cam.exact import METHODS, class_activation_map
from chexnet.cam.maps import (
    CANVAS,
    brightest_points,
    heat,
    min_max,
    shared_scale,
    upsample,
    upsample_map,
)

__all__ = [
    "CANVAS", "METHODS", "brightest_points", "class_activation_map", "heat", "min_max",
    "shared_scale", "upsample", "upsample_map",
]  # fmt: skip
