"""The phantom as a study of three findings: as ChestX-ray14 or as a table of your own, with PNGs.

Some films with a consolidation have boxes, the two other findings have none, as in ChestX-ray14.
"""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

IMAGES = "images"
# What is drawn, by the name that ChestX-ray14 has for such a finding.
FINDINGS = {
    "Consolidation": "opacity",
    "Cardiomegaly": "large heart",
    "Atelectasis": "raised diaphragm",
}
BOXED = "Consolidation"
BOXED_SHARE = 0.5  # of the films with a consolidation
MISSING_SHARE = 0.15  # of the labels of a table; ChestX-ray14's layout cannot leave a label out
TESTED = 4  # each fourth patient is in ChestX-ray14's test_list.txt

NIH_TABLE, NIH_BOXES = "Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"
NIH_LISTS = {True: "test_list.txt", False: "train_val_list.txt"}
# As in the genuine files, in which a bracket is open across several columns.
NIH_COLUMNS = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex"
NIH_COLUMNS += ",View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
NIH_BOX_COLUMNS = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
TABLE_LABELS, TABLE_BOXES = "labels.csv", "boxes.csv"

Drawn = Iterable[tuple[dict, np.ndarray, np.ndarray]]  # facts of a film, its pixels and boxes


def write_chestxray14(study: Path, drawn: Drawn) -> None:
    """Writes PNGs, ``Data_Entry_2017_v2020.csv``, ``BBox_List_2017.csv`` and the two lists."""
    rows, boxes = [NIH_COLUMNS], [NIH_BOX_COLUMNS]
    lists: dict[bool, list[str]] = {True: [], False: []}
    for film, pixels, labels, its_boxes in _with_findings(study, drawn):
        name = film["img_id"]
        patient, visit = int(name[:8]), int(name[9:12])
        found = "|".join(sorted(label for label in labels if labels[label])) or "No Finding"
        facts = film["age"], film["sex"], film["view"], *pixels.shape[::-1], 0.143, 0.143
        rows.append(",".join(map(str, (name, found, visit, patient, *facts))))
        boxes += [",".join(map(str, (name, BOXED, *box))) for box in its_boxes]
        lists[patient % TESTED == 0].append(name)
    lines = {NIH_TABLE: rows, NIH_BOXES: boxes} | {NIH_LISTS[key]: lists[key] for key in lists}
    for name, text in lines.items():
        (study / name).write_text("".join(f"{line}\n" for line in text))


def write_table(study: Path, drawn: Drawn) -> None:
    """Writes PNGs, ``labels.csv`` with some labels left blank, and ``boxes.csv``."""
    rows, boxes = [], []
    for film, _, labels, its_boxes in _with_findings(study, drawn):
        facts = {"image": film["img_id"], "patient": int(film["img_id"][:8])}
        facts |= {name: film[name] for name in ("view", "sex", "age")}
        known = {name: film["rng"].random() >= MISSING_SHARE for name in labels}
        rows.append(facts | {name: label if known[name] else "" for name, label in labels.items()})
        if known[BOXED]:
            boxes += [[film["img_id"], BOXED, *box] for box in its_boxes]
    columns = ["image", "class_name", "x", "y", "width", "height"]
    pd.DataFrame(rows).to_csv(study / TABLE_LABELS, index=False, lineterminator="\n")
    pd.DataFrame(boxes, columns=columns).to_csv(
        study / TABLE_BOXES, index=False, lineterminator="\n"
    )


def _with_findings(
    study: Path, drawn: Drawn
) -> Iterable[tuple[dict, np.ndarray, dict[str, int], list[list[int]]]]:
    """Writes each film's PNG; yields its facts, pixels, labels and boxes."""
    (study / IMAGES).mkdir()
    for film, pixels, boxes in drawn:
        cv2.imwrite(str(study / IMAGES / film["img_id"]), pixels)
        shown = {*film["findings"], *(["opacity"] * (len(boxes) > 0))}
        labels = {name: int(finding in shown) for name, finding in FINDINGS.items()}
        boxed = film["rng"].random() < BOXED_SHARE  # after all that is drawn with it
        yield film, pixels, labels, boxes.astype(int).tolist() if boxed else []
