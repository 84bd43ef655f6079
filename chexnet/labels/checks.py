"""What every reader checks, so that an error names file, image and value in the same way."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from chexnet.dicom import OLDEST, YEARS_PER_UNIT
from chexnet.files import check_image_id, read_table, refuse, summarize
from chexnet.labels.boxes import BOX, boxes_of_class

# Columns of the image table that are not labels: what a reader, the converter or a split may add.
NOT_LABELS = (
    *("image_id", "patient_id", "view", "sex", "age", "rows", "columns"),
    *("detailed_class", "official_split", "split", "fold"),
)
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


def class_names(images: pd.DataFrame) -> list[str]:
    """The label columns of an image table: all that are not a known fact, in their order.

    Args:
        images: one row an image; each label is 0, 1 or missing.

    Raises:
        ValueError: a column is neither a known fact nor a label.

    Example:
        >>> from chexnet.labels import class_names, read_rsna
        >>> images, _ = read_rsna("data/phantom/study")
        >>> class_names(images)
        ['Pneumonia']
    """
    names = [str(name) for name in images.columns if name not in NOT_LABELS]
    for name in names:
        wrong = images.loc[images[name].notna() & ~images[name].isin([0, 1]), name]
        refuse(
            "images",
            [f"{name} ({value})" for value in wrong.unique()],
            "values of a column that is no label",
            f"0, 1 or missing; columns that are not labels: {', '.join(NOT_LABELS)}",
        )
    return names


def chosen_classes(classes: Iterable[str] | None, known: Iterable[str]) -> list[str]:
    """The classes asked for, in their order; all known ones by default."""
    known = list(known)
    names = known if classes is None else list(classes)
    refuse("classes", [n for n in names if n not in known], "unknown classes", ", ".join(known))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"classes={names}: expected one or more, each once")
    return names


def no_boxes() -> pd.DataFrame:
    """An empty box table of several classes."""
    return pd.DataFrame(columns=["image_id", "class_name", *BOX]).astype(dict.fromkeys(BOX, float))


def find_csv(folder: Path, pattern: str) -> Path:
    """The last file of the pattern by name, maybe gzipped; the pattern itself if there is none."""
    return max([*folder.glob(pattern), *folder.glob(f"{pattern}.gz")], default=folder / pattern)


def read_csv(path: Path, required: Iterable[str], *, part_of: str = "") -> pd.DataFrame:
    """Reads a CSV file, also gzipped, as text; only an empty field is missing.

    Args:
        path: of the file.
        required: columns that it must have.
        part_of: the data set that it belongs to, for the error if it is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing{part_of and f'; it is part of {part_of}'}")
    rows = read_table(path, dtype=str, skipinitialspace=True, encoding="utf-8-sig")
    required = list(required)
    if not set(required) <= set(rows.columns):
        raise ValueError(
            f"{path}: columns {summarize(rows.columns)}; expected {', '.join(required)}"
        )
    return rows


def parse_labels(path: Path, image_ids: pd.Series, cells: pd.DataFrame) -> pd.DataFrame:
    """Labels as int 0 and 1, or as float with NaN where a column has blanks."""
    labels = cells.apply(lambda column: column.map(_LABELS).astype(float))
    for name in labels:
        wrong = labels[name].isna() & cells[name].notna()
        listed = image_ids[wrong] + f" ({name}=" + cells.loc[wrong, name] + ")"
        refuse(path, listed, "images with another label", "0, 1 or blank (missing)")
    whole = {name: np.int64 for name in labels if labels[name].notna().all()}
    return labels.astype(whole)


def parse_ages(path: Path, ages: pd.Series) -> pd.Series:
    """Whole years from numbers or DICOM's ``057Y``, ``011M``; above 120 is missing."""
    texts = pd.Series(ages.dropna().unique(), dtype=str)
    parts = texts.str.upper().str.extract(r"^(?P<number>\d+(?:\.\d*)?)(?P<unit>[YMWD]?)\s*$")
    refuse(path, texts[parts["number"].isna()], "invalid ages", "years, such as 57")
    years = parts["number"].astype(float) * parts["unit"].map(YEARS_PER_UNIT)
    years = np.floor(years).where(years <= OLDEST)
    return ages.map(dict(zip(texts, years, strict=True))).astype("Int64")


def parse_sexes(path: Path, sexes: pd.Series) -> pd.Series:
    """``M``, ``F`` or ``O`` (PS3.3 C.7.1.1) from these or words; ``Unknown`` is missing."""
    known = {"M": "M", "F": "F", "O": "O", "MALE": "M", "FEMALE": "F", "OTHER": "O"}
    text = sexes.str.strip().str.upper()
    found = text.map(known).astype(sexes.dtype)
    wrong = found.isna() & text.notna() & ~text.isin(["UNKNOWN", "U"])
    refuse(path, sexes[wrong], "unknown sexes", "M, F, O, Male, Female, Other or Unknown")
    return found


def check_images(path: Path, images: pd.DataFrame) -> pd.DataFrame:
    """Refuses invalid or duplicate ids and classes with one value only; returns rows by id."""
    for image_id in images["image_id"]:
        check_image_id(image_id, path)
    ids = images["image_id"]
    refuse(path, ids[ids.duplicated()], "images with more than one row", "one row an image")
    # Ids become file names, and some file systems take upper and lower case for the same.
    same = ids[ids.str.casefold().duplicated(keep=False)]
    refuse(path, same, "image_ids that differ in upper and lower case only")
    one_value = [
        f"{name} ({_only_value(images[name])})"
        for name in class_names(images)
        if images[name].nunique() < 2
    ]
    expected = "images with label 1 and images with label 0; otherwise leave the class out"
    refuse(path, one_value, "classes that cannot be learned", expected)
    return images.sort_values("image_id", kind="stable").reset_index(drop=True)


def _only_value(labels: pd.Series) -> str:
    values = labels.dropna().unique()
    return f"all labels are {values[0]:.0f}" if len(values) else "all labels are missing"


def parse_boxes(path: Path, boxes: pd.DataFrame) -> pd.DataFrame:
    """Boxes of text to float; refuses what is not four numbers, impossible or a duplicate.

    Args:
        path: of the file, for errors.
        boxes: ``image_id, x, y, width, height`` and maybe ``class_name``, as text.
    """
    numbers = boxes[BOX].apply(pd.to_numeric, errors="coerce").astype(float)
    possible = (numbers[["x", "y"]] >= 0).all(axis=1) & (numbers[BOX[2:]] > 0).all(axis=1)
    possible &= numbers.max(axis=1) < float("inf")
    for wrong, what, expected in (
        (numbers.isna().any(axis=1), "a box that is not four numbers", "x, y, width and height"),
        (~possible, "an impossible box", "x and y from 0, width and height above 0"),
        (boxes.duplicated(), "a duplicate row", "each box once"),
    ):
        refuse(path, boxes.loc[wrong, "image_id"], f"films with {what}", expected)
    by = [name for name in ("image_id", "class_name", *BOX) if name in boxes]
    return boxes.assign(**numbers).sort_values(by).reset_index(drop=True)


def check_labels_of_boxes(path: Path, boxes: pd.DataFrame, images: pd.DataFrame) -> None:
    """Refuses boxes of unknown images or classes, and boxes of a class that the image has not."""
    names = class_names(images)
    unknown = boxes.loc[~boxes["image_id"].isin(images["image_id"]), "image_id"]
    refuse(path, unknown, "images with a box and no label", "images of the label table")
    if "class_name" in boxes:
        refuse(path, set(boxes["class_name"]) - set(names), "unknown classes", ", ".join(names))
    named = []
    for name in names:
        boxed = boxes_of_class(boxes, name, names)["image_id"]
        absent = images.loc[images[name] == 0, "image_id"]
        named += [f"{image_id} ({name})" for image_id in boxed[boxed.isin(absent)]]
    refuse(path, named, "boxes of images whose label is 0", "a box where the label is 1 or missing")
