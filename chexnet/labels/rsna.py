"""The annotations of the RSNA challenge, with the patients from RSNA's mapping to NIH files."""

import json
import warnings
from pathlib import Path

import pandas as pd

from chexnet.files import check_image_id, refuse, summarize
from chexnet.labels.boxes import BOX
from chexnet.labels.checks import check_images, parse_boxes, read_csv

# The files of Kaggle's 'RSNA Pneumonia Detection Challenge' (2018), and RSNA's own mapping.
LABELS = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
# Shih et al. 2019, doi:10.1148/ryai.2019180041: every film is of one of three classes.
OPACITY = "Lung Opacity"
DETAILED_CLASSES = (OPACITY, "No Lung Opacity / Not Normal", "Normal")
# An NIH file is 'patient_follow-up.png', Wang et al. 2017, arXiv:1705.02315.
NIH_FILE = r"^(\d{8})_\d{3}\.png$"
PART_OF = "Kaggle's 'RSNA Pneumonia Detection Challenge'"


def read_rsna(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads the annotations of the RSNA challenge as Kaggle distributes them.

    Both CSV files have one row per box, so up to four rows per film: 30,227 rows of 26,684 films,
    6,012 of them with opacity.

    Args:
        folder: with ``stage_2_train_labels.csv``, ``stage_2_detailed_class_info.csv`` and, for the
            patients, RSNA's mapping ``pneumonia-challenge-dataset-mappings_2018.json``.

    Returns:
        Images, one row per film, sorted by id: ``image_id`` (RSNA's ``patientId``, which names an
        image), ``patient_id`` (NIH's eight digits as str; None without the mapping),
        ``Pneumonia`` (int, 0 or 1), ``detailed_class`` (``Lung Opacity``,
        ``No Lung Opacity / Not Normal`` or ``Normal``).
        Boxes, one row each: ``image_id`` and ``x, y, width, height`` (left, top; float, pixels of
        the original film).

    Raises:
        FileNotFoundError: one of the two CSV files is missing.
        ValueError: a file contradicts itself or the other one; file and films are named.

    Example:
        >>> from chexnet.labels import read_rsna
        >>> images, boxes = read_rsna("data/phantom/study")
        >>> len(images), list(boxes)
        (40, ['image_id', 'x', 'y', 'width', 'height'])
    """
    folder = Path(folder)
    rows = _read_labels(folder / LABELS)
    classes = _read_classes(folder / CLASSES)
    target = rows.groupby("patientId")["Target"].first()
    without_class = target.index.difference(classes.index)
    refuse(folder / LABELS, without_class, f"films that are not in {CLASSES}")
    without_target = classes.index.difference(target.index)
    refuse(folder / CLASSES, without_target, f"films that are not in {LABELS}")
    contradict = target.index[(target == 1) != (classes.reindex(target.index) == OPACITY)]
    refuse(
        folder / CLASSES,
        contradict,
        f"films whose class contradicts the Target in {LABELS}",
        f"class {OPACITY!r} with Target 1, another with Target 0",
    )
    images = pd.DataFrame(
        {
            "image_id": target.index,
            "patient_id": _patients(folder / MAPPING, target.index),
            "Pneumonia": target.to_numpy(),
            "detailed_class": classes[target.index].to_numpy(),
        }
    )
    boxes = rows.loc[rows["Target"] == 1, ["patientId", *BOX]]
    boxes = boxes.rename(columns={"patientId": "image_id"})
    return check_images(folder / LABELS, images), parse_boxes(folder / LABELS, boxes)


def read_nih_mapping(path: Path) -> pd.Series:
    """The NIH patient of each film, eight digits; by film id.

    RSNA's file is a list of objects with ``subset_img_id`` (the film's id in the challenge) and
    ``img_id`` (its file at the NIH, such as ``00019124_092.png``).
    """
    try:
        table = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")), dtype=object)
        table = table[["subset_img_id", "img_id"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not the RSNA mapping ({error}); expected a JSON list of objects with "
            "subset_img_id and img_id"
        ) from None
    for image_id in table["subset_img_id"]:
        check_image_id(image_id, path)
    files = table["img_id"].astype(str)
    table["patient_id"] = files.str.extract(NIH_FILE, expand=False)
    bad = table.loc[table["patient_id"].isna(), "img_id"]
    refuse(path, bad, "img_id that are not NIH files", "eight digits, _, three digits, .png")
    patients = table.drop_duplicates(["subset_img_id", "patient_id"])
    patients = patients.set_index("subset_img_id")["patient_id"]
    twice = patients.index[patients.index.duplicated()]
    refuse(path, twice, "films with two patients", "one each")
    return patients


def _read_labels(path: Path) -> pd.DataFrame:
    """One row a box, or one without numbers for a film without box."""
    rows = _read_rows(path, ["patientId", *BOX, "Target"], ("0", "1"), "0 or 1")
    positive, blank = rows["Target"] == "1", rows[BOX].isna()
    both = rows.groupby("patientId")["Target"].transform("nunique") > 1
    for wrong, what, expected in (
        (positive & blank.any(axis=1), "Target 1 and no box", "x, y, width and height"),
        (~positive & ~blank.all(axis=1), "Target 0 and a box", "a box with Target 1 only"),
        (both, "Target 0 and 1", "one of them"),
        (rows.duplicated(), "a duplicate row", "each box once, a film without box once"),
    ):
        refuse(path, rows.loc[wrong, "patientId"], f"films with {what}", expected)
    return rows.assign(Target=positive.astype(int))


def _read_classes(path: Path) -> pd.Series:
    expected = " | ".join(DETAILED_CLASSES)
    rows = _read_rows(path, ["patientId", "class"], DETAILED_CLASSES, expected).drop_duplicates()
    twice = rows.loc[rows["patientId"].duplicated(), "patientId"]
    refuse(path, twice, "films with two classes", "one each")
    return rows.set_index("patientId")["class"]


def _read_rows(
    path: Path, columns: list[str], values: tuple[str, ...], expected: str
) -> pd.DataFrame:
    """Columns of a CSV file as text; refuses invalid ids and other values of the last column."""
    rows = read_csv(path, columns, part_of=PART_OF)[columns]
    for image_id in rows["patientId"]:
        check_image_id(image_id, path)
    last = columns[-1]
    wrong = rows.loc[~rows[last].isin(values), ["patientId", last]]
    named = [f"{film} ({value})" for film, value in wrong.itertuples(index=False)]
    refuse(path, named, f"films with another {last}", expected)
    return rows


def _patients(path: Path, image_ids: pd.Index) -> list[str | None]:
    if not path.is_file():
        return [None] * len(image_ids)
    patients = read_nih_mapping(path).reindex(image_ids)
    unknown = patients.index[patients.isna()]
    if len(unknown):
        warnings.warn(
            f"{path}: {len(unknown)} of {len(image_ids)} images are missing and count as a patient "
            f"of their own: {summarize(unknown)}",
            stacklevel=3,
        )
    # NIH patients are digits only, so "film-" cannot be one of them.
    return [f"film-{i}" if i in unknown else patient for i, patient in patients.items()]
