"""Annotation files to one table of images and one table of boxes."""

import json
import re
import warnings
from pathlib import Path

import pandas as pd

from chexnet.files import check_image_id, refuse, summarize

# The files of Kaggle's 'RSNA Pneumonia Detection Challenge' (2018), and RSNA's own mapping.
LABELS = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
BOX = ["x", "y", "width", "height"]
# Shih et al. 2019, doi:10.1148/ryai.2019180041: every film is of one of three classes.
OPACITY = "Lung Opacity"
DETAILED_CLASSES = (OPACITY, "No Lung Opacity / Not Normal", "Normal")
# An NIH file is 'patient_follow-up.png', Wang et al. 2017, arXiv:1705.02315.
NIH_FILE = re.compile(r"(\d{8})_\d{3}\.png")
# What the converter knows of a film (DICOM tags 0018,5101; 0010,0040; 0010,1010; 0028,0010 and 11).
FACTS = ["view", "sex", "age", "rows", "columns"]


def read_rsna(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads the annotations of the RSNA challenge as Kaggle hands them out.

    `LABELS` has one row a box, so a film comes up to four times; `CLASSES` repeats its rows the
    same way. The complete files hold 30,227 rows of 26,684 films, 6,012 of them with opacity.

    Args:
        folder: holds `LABELS` and `CLASSES` and, for the patients, `MAPPING`.

    Returns:
        Images, one row a film, sorted by id: ``image_id`` (RSNA's ``patientId``, which names an
        image), ``patient_id`` (NIH's eight digits as str; None for all without `MAPPING`),
        ``Pneumonia`` (int, 0 or 1), ``detailed_class`` (one of `DETAILED_CLASSES`).
        Boxes, one row each: ``image_id`` and ``x, y, width, height`` (left, top; float, pixels of
        the original film).

    Raises:
        FileNotFoundError: one of the two CSV files is missing.
        ValueError: a file says what cannot be; file, film and what is allowed are named.
    """
    folder = Path(folder)
    rows = _read_labels(folder / LABELS)
    classes = _read_classes(folder / CLASSES)
    target = rows.groupby("patientId")["Target"].first()
    for ids, here, there in ((target.index, LABELS, CLASSES), (classes.index, CLASSES, LABELS)):
        other = classes.index if there == CLASSES else target.index
        refuse(folder / here, ids.difference(other), f"films that {there} does not know")
    contradict = target.index[(target == 1) != (classes.reindex(target.index) == OPACITY)]
    refuse(
        folder / CLASSES,
        contradict,
        f"films whose class contradicts their Target in {LABELS}",
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
    boxes = boxes.rename(columns={"patientId": "image_id"}).sort_values(["image_id", *BOX])
    return images, boxes.reset_index(drop=True)


def read_nih_mapping(path: str | Path) -> pd.Series:
    """Reads which patient of the NIH collection a film of the challenge shows.

    Args:
        path: RSNA's JSON file, a list of objects with ``subset_img_id`` (the film's id in the
            challenge) and ``img_id`` (its file at the NIH, such as ``00019124_092.png``).

    Returns:
        str Series named ``patient_id``, eight digits; index ``image_id``, sorted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such list, or names two patients for one film.
    """
    path = Path(path)
    try:
        table = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")), dtype=object)
        table = table[["subset_img_id", "img_id"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not the RSNA mapping ({error}); allowed is a JSON list of objects with "
            "subset_img_id and img_id"
        ) from None
    for image_id in table["subset_img_id"]:
        check_image_id(image_id, path)
    patient = table["img_id"].astype(str).str.extract(f"^{NIH_FILE.pattern}$", expand=False)
    bad = table.loc[patient.isna(), "img_id"]
    refuse(path, bad, "img_id that are no NIH file", "eight digits, _, three digits, .png")
    mapping = pd.Series(
        patient.to_numpy(), pd.Index(table["subset_img_id"], name="image_id"), name="patient_id"
    )
    patients = mapping.groupby(level=0).nunique()
    refuse(path, patients.index[patients > 1], "films with two patients", "one each")
    return mapping[~mapping.index.duplicated()].sort_index()


def add_film_facts(images: pd.DataFrame, films: pd.DataFrame) -> pd.DataFrame:
    """Joins what the converter knows of each film, and leaves out those it could not convert.

    Args:
        images: one row a film, with ``image_id``.
        films: the table of `chexnet.dicom.convert_folder`: ``image_id, status, reason`` and
            `FACTS`. Films that are not in ``images`` do not matter.

    Returns:
        ``images`` with the columns `FACTS`, without the films that have no JPG; a warning says
        which and why.

    Raises:
        ValueError: columns are missing, a film is there twice, or no film is left.
    """
    missing = {"image_id", "status", "reason", *FACTS} - set(films.columns)
    if missing:
        raise ValueError(f"films: no column {summarize(sorted(missing))}")
    made = films[films["status"] != "failed"]
    twice = made.loc[made["image_id"].duplicated(), "image_id"]
    refuse("films", twice, "films converted twice", "one row each")
    lost = images.loc[~images["image_id"].isin(made["image_id"]), "image_id"]
    if len(lost) == len(images):
        raise ValueError(
            f"films: none of the {len(images)} films was converted, such as {summarize(lost, 1)}"
        )
    if len(lost):
        reasons = films.drop_duplicates("image_id").set_index("image_id")["reason"]
        listed = [f"{film} ({reasons.get(film, 'no such file')})" for film in lost]
        warnings.warn(
            f"{len(lost)} of {len(images)} films have no JPG and are left out: {summarize(listed)}",
            stacklevel=2,
        )
    kept = images.drop(columns=FACTS, errors="ignore").drop(index=lost.index)
    return kept.join(made.set_index("image_id")[FACTS], on="image_id")


def _read_labels(path: Path) -> pd.DataFrame:
    rows = _read_csv(path, ["patientId", *BOX, "Target"])
    refuse(
        path,
        _film_and_value(rows, "Target", ~rows["Target"].isin(["0", "1"])),
        "Target of films",
        "0 or 1",
    )
    boxes = rows[BOX].apply(pd.to_numeric, errors="coerce")
    refuse(
        path,
        rows.loc[(boxes.isna() & rows[BOX].notna()).any(axis=1), "patientId"],
        "films with a box that is not made of numbers",
    )
    positive = rows["Target"] == "1"
    refuse(
        path,
        rows.loc[positive & boxes.isna().any(axis=1), "patientId"],
        "films with Target 1 and no box",
        "x, y, width and height in each row with Target 1",
    )
    refuse(
        path,
        rows.loc[~positive & boxes.notna().any(axis=1), "patientId"],
        "films with Target 0 and a box",
        "a box with Target 1 only",
    )
    inside = (boxes[["x", "y"]] >= 0).all(axis=1) & (boxes[["width", "height"]] > 0).all(axis=1)
    finite = boxes.abs().max(axis=1) < float("inf")
    refuse(
        path,
        rows.loc[positive & ~(inside & finite), "patientId"],
        "films with an impossible box",
        "x and y from 0, width and height above 0",
    )
    both = rows.groupby("patientId")["Target"].nunique()
    refuse(path, both.index[both > 1], "films with Target 0 and 1", "one of them")
    rows = rows.assign(Target=positive.astype(int), **boxes)
    twice = rows.loc[rows.duplicated(), "patientId"]
    refuse(path, twice, "films with the same row twice", "a box once, a film without box once")
    return rows


def _read_classes(path: Path) -> pd.Series:
    rows = _read_csv(path, ["patientId", "class"])
    strange = _film_and_value(rows, "class", ~rows["class"].isin(DETAILED_CLASSES))
    refuse(path, strange, "class of films", " | ".join(DETAILED_CLASSES))
    rows = rows.drop_duplicates()
    twice = rows.loc[rows["patientId"].duplicated(), "patientId"]
    refuse(path, twice, "films with two classes", "one each")
    return rows.set_index("patientId")["class"]


def _read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing; it comes with Kaggle's 'RSNA Pneumonia Detection Challenge'"
        )
    try:
        rows = pd.read_csv(path, dtype=str, skipinitialspace=True)
    except ValueError as error:
        raise ValueError(f"{path}: not a CSV file ({error}); allowed columns: {columns}") from None
    if set(rows.columns) != set(columns):
        raise ValueError(f"{path}: columns {', '.join(rows.columns)}; allowed are {columns}")
    for image_id in rows["patientId"]:
        check_image_id(image_id, path)
    return rows[columns]


def _film_and_value(rows: pd.DataFrame, column: str, chosen: pd.Series) -> list[str]:
    chosen_rows = rows.loc[chosen, ["patientId", column]]
    return [f"{film} ({value})" for film, value in chosen_rows.itertuples(index=False)]


def _patients(path: Path, image_ids: pd.Index) -> list[str | None]:
    if not path.is_file():
        return [None] * len(image_ids)
    patients = read_nih_mapping(path).reindex(image_ids)
    unknown = patients.index[patients.isna()]
    if len(unknown):
        warnings.warn(
            f"{path}: {len(unknown)} of {len(image_ids)} films are not in it and count as a "
            f"patient of their own: {summarize(unknown)}",
            stacklevel=3,
        )
    # NIH patients are digits only, so an own patient can never be taken for one of them.
    return [f"film-{i}" if i in unknown else patient for i, patient in patients.items()]
