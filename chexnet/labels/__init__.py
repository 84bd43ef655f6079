"""Annotation files to one table of images and one table of boxes."""

from chexnet.labels.boxes import (
    box_masks, boxes_by_film, masks_by_film, points_in_boxes, scale_boxes,
)  # fmt: skip
from chexnet.labels.rsna import add_film_facts, read_rsna

__all__ = [
    "add_film_facts", "box_masks", "boxes_by_film", "masks_by_film", "points_in_boxes",
    "read_rsna", "scale_boxes",
]  # fmt: skip
