"""Class activation maps."""

from chexnet.cam.exact import METHODS, class_activation_map
from chexnet.cam.maps import CANVAS, min_max, normalize_map, peak_points, shared_scale, upsample_map

__all__ = [
    "CANVAS", "METHODS", "class_activation_map", "min_max", "normalize_map", "peak_points",
    "shared_scale", "upsample_map",
]  # fmt: skip
