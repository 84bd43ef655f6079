"""Annotation files to one table of images and one table of boxes."""

from chexnet.labels.boxes import (
    box_masks, boxes_by_film, boxes_of_class, check_boxes, masks_by_film, points_in_boxes,
    scale_boxes,
)  # fmt: skip
from chexnet.labels.checks import class_names
from chexnet.labels.chestxray14 import read_chestxray14
from chexnet.labels.chexpert import read_chexpert
from chexnet.labels.facts import add_film_facts
from chexnet.labels.rsna import read_rsna
from chexnet.labels.study import film_folder, read_study
from chexnet.labels.table import read_table

__all__ = [
    "add_film_facts", "box_masks", "boxes_by_film", "boxes_of_class", "check_boxes", "class_names",
    "film_folder", "masks_by_film", "points_in_boxes", "read_chestxray14", "read_chexpert",
    "read_rsna", "read_study", "read_table", "scale_boxes",
]  # fmt: skip
