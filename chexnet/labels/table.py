"""A table of your own: a CSV file of labels and a folder of DICOM, PNG or JPG images."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from chexnet.dicom import image_ids
from chexnet.files import refuse, stem
from chexnet.labels.boxes import BOX
from chexnet.labels.checks import (
    NOT_LABELS,
    check_images,
    check_labels_of_boxes,
    no_boxes,
    parse_ages,
    parse_boxes,
    parse_labels,
    parse_sexes,
    read_csv,
)

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_table(
    csv: str | Path,
    *,
    labels: Sequence[str],
    image: str = "image",
    patient: str | None = None,
    view: str | None = None,
    sex: str | None = None,
    age: str | None = None,
    split: str | None = None,
    folder: str | Path | None = None,
    ids: str = "name",
    boxes: str | Path | None = None,
    box: Sequence[str] = BOX,
    box_class: str = "class_name",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads labels from a CSV file with one row for each image.

    Args:
        csv: the file, UTF-8 with commas; may be gzipped.
        labels: its columns of labels, which are the classes: 1 present, 0 absent, blank missing.
        image: its column of images: an image's file name, its path below ``folder`` or the end of
            that path, or one of these without suffix.
        patient: its column of patients. Without it the patients are unknown, and images of one
            patient can be in several splits.
        view: its column of view positions, such as PA and AP.
        sex: its column of sexes: M, F, O, Male, Female, Other or Unknown.
        age: its column of ages in years; above 120 is missing.
        split: its column of a given split: train, val (or valid, validation), test.
        folder: of the images, DICOM, PNG or JPG; subfolders are searched. By default that of
            ``csv``. Give the same to `chexnet.dicom.convert_folder`.
        ids: rule for the ids of images, as given to ``convert_folder``.
        boxes: a CSV file with one row for each box, in pixels of the original image: ``image`` as
            above, and the columns ``box`` and ``box_class``. Rows without numbers are skipped.
        box: its columns of left, top, width and height.
        box_class: its column of classes; with one class in ``labels`` it may be absent.

    Returns:
        Images, one row each, sorted by id: ``image_id, patient_id``; of ``view, sex, age`` those
        named above (a DICOM file's header gives the others in `add_film_facts`); one column for
        each class, int if complete and else float with NaN; ``official_split`` with ``split``.
        Boxes, one row each: ``image_id, class_name, x, y, width, height``.

    Raises:
        FileNotFoundError: a CSV file is missing.
        NotADirectoryError: ``folder`` is not a folder.
        ValueError: there is no row, a column is missing, a label has the name of another column of
            the result, an image is not in ``folder`` or has two rows, a value is not one of those
            named above, a class has one value only, or a box is not four numbers or is on an image
            with label 0. File, image and value are named.

    Example:
        >>> from pathlib import Path
        >>> import pandas as pd
        >>> from chexnet.labels import read_table
        >>> files = sorted(path.name for path in Path("data/phantom/jpg").glob("*.jpg"))
        >>> table = pd.DataFrame({"file": files, "Edema": [0, 1] * 20})
        >>> table.to_csv("data/labels.csv", index=False)
        >>> options = {"image": "file", "labels": ["Edema"], "folder": "data/phantom/jpg"}
        >>> images, boxes = read_table("data/labels.csv", **options)
        >>> images["Edema"].value_counts().to_dict(), len(boxes)
        ({0: 20, 1: 20}, 0)
    """
    path, names = Path(csv), list(labels)
    optional = {"patient_id": patient, "view": view, "sex": sex, "age": age, "split": split}
    facts = {fact: column for fact, column in optional.items() if column is not None}
    if not names or len({*names, image, *facts.values()}) < len(names) + 1 + len(facts):
        raise ValueError(
            f"{path}: image={image!r}, labels={names}: expected one or more columns of labels, "
            "separated by commas, and one role for each column"
        )
    taken, others = [name for name in names if name in NOT_LABELS], ", ".join(NOT_LABELS)
    refuse(path, taken, "labels with the name of another column", f"a name other than {others}")
    rows = read_csv(path, [image, *facts.values(), *names])
    if rows.empty:
        raise ValueError(f"{path}: no rows; expected one for each image")
    known = _ids_by_path(Path(folder or path.parent), ids)
    images = pd.DataFrame({"image_id": _find_images(path, rows[image], known), "patient_id": None})
    for fact, column in facts.items():
        images[fact] = rows[column].str.strip()
    if view is not None:
        images["view"] = images["view"].str.upper()
    if sex is not None:
        images["sex"] = parse_sexes(path, images["sex"])
    if age is not None:
        images["age"] = parse_ages(path, images["age"])
    images = images.join(parse_labels(path, rows[image], rows[names]))
    if split is not None:
        parts = images.pop("split")
        images["official_split"] = parts.str.lower().map(SPLITS)
        wrong = rows[image] + " (" + parts.fillna("blank") + ")"
        refuse(path, wrong[images["official_split"].isna()], "other splits", ", ".join(SPLITS))
    images = check_images(path, images)
    if boxes is None:
        return images, no_boxes()
    return images, _read_boxes(Path(boxes), image, box, box_class, images, names, known)


def _ids_by_path(folder: Path, ids: str) -> dict[str, dict[str, str]]:
    """Image ids by path, for each last part of a path without suffix."""
    known: dict[str, dict[str, str]] = defaultdict(dict)
    for file, image_id in image_ids(folder, ids).items():
        known[stem(file.rpartition("/")[2])][file] = image_id
    return known


def _find_images(path: Path, values: pd.Series, known: dict[str, dict[str, str]]) -> list[str]:
    """The id of the one image that each value names."""
    found, absent, several = [], [], []
    for value in values.fillna("blank").str.replace("\\", "/"):
        name = value.rpartition("/")[2]
        # A name without suffix may have a dot: 1.2.840 is not a file of type 840.
        files = known.get(stem(name), {}) | known.get(name, {})
        ends = {file: i for file, i in files.items() if _ends_with(file, value)}
        if value in ends:
            ends = {value: ends[value]}
        elif value in ends.values():
            ends = {file: i for file, i in ends.items() if i == value}
        absent += [value] if not ends else []
        several += [f"{value} ({' and '.join(ends)})"] if len(ends) > 1 else []
        found.append(next(iter(ends.values()), ""))
    refuse(path, absent, "images that are not in the folder", "a file name or path in the folder")
    refuse(path, several, "images of which there are several", "a path that only one image has")
    return found


def _ends_with(file: str, value: str) -> bool:
    """Whether the longer of two paths ends with the shorter one, which may lack the suffix."""
    parts, wanted = file.split("/"), value.split("/")
    if wanted[-1] not in (parts[-1], stem(parts[-1])):
        return False
    return all(a == b for a, b in zip(parts[-2::-1], wanted[-2::-1], strict=False))


def _read_boxes(
    path: Path,
    image: str,
    box: Sequence[str],
    box_class: str,
    images: pd.DataFrame,
    names: list[str],
    known: dict[str, dict[str, str]],
) -> pd.DataFrame:
    classes = [box_class] if len(names) > 1 else []
    rows = read_csv(path, [image, *box, *classes])
    rows = rows[rows[list(box)].notna().any(axis=1)].reset_index(drop=True)
    boxes = rows[list(box)].set_axis(BOX, axis=1)
    boxes.insert(0, "image_id", _find_images(path, rows[image], known))
    boxes.insert(1, "class_name", rows[box_class] if box_class in rows else names[0])
    boxes = parse_boxes(path, boxes)
    check_labels_of_boxes(path, boxes, images)
    return boxes
