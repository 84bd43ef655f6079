"""Annotation files to one table of images and one table of boxes."""

from chexnet.labels.boxes import (
    box_masks, boxes_by_film, check_boxes, masks_by_film, points_in_boxes, scale_boxes,
)  # fmt: skip
from chexnet.labels.checks import class_names
from chexnet.labels.facts import add_film_facts
from chexnet.labels.rsna import read_rsna

__all__ = [
    "add_film_facts", "box_masks", "boxes_by_film", "check_boxes", "class_names", "masks_by_film",
    "points_in_boxes", "read_rsna", "scale_boxes",
]  # fmt: skip
