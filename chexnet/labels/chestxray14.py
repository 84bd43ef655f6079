"""The label tables of NIH ChestX-ray14 (Wang et al. 2017, arXiv:1705.02315)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from chexnet.files import refuse
from chexnet.labels.checks import (
    check_images,
    check_labels_of_boxes,
    chosen_classes,
    find_csv,
    no_boxes,
    parse_ages,
    parse_boxes,
    parse_sexes,
    read_csv,
)

TABLES, BOXES = "Data_Entry_2017*.csv", "BBox_List_2017.csv"
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)
NO_FINDING = "No Finding"
IN_BOXES = {"Infiltrate": "Infiltration"}  # the box file's own name of a class
PART_OF = "NIH ChestX-ray14"


def read_chestxray14(
    folder: str | Path, classes: Sequence[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads the labels of NIH ChestX-ray14: 112,120 images of 30,805 patients, 14 classes.

    The labels come from radiology reports, and none is missing: a finding that is not listed
    counts as absent. Boxes exist for 880 images and 8 classes only.

    Args:
        folder: with ``Data_Entry_2017.csv`` or ``Data_Entry_2017_v2020.csv`` (if both, the latter
            is read), and, where they exist, ``BBox_List_2017.csv``, ``train_val_list.txt`` and
            ``test_list.txt``. Each CSV file may be gzipped. The images are not needed.
        classes: some of the 14 classes, in the order wanted; by default all.

    Returns:
        Images, one row each, sorted by id: ``image_id`` (the file's name without ``.png``),
        ``patient_id`` (eight digits, as of `read_rsna`, whose films are some of these), ``view``,
        ``sex``, ``age`` (years; above 120 is missing), one int column of 0 and 1 for each class,
        and, with the two lists, ``official_split`` (``train`` or ``test``).
        Boxes, one row each: ``image_id, class_name`` and ``x, y, width, height``, in pixels of the
        1024 x 1024 PNG, not of ``OriginalImage[Width, Height]`` in the table.

    Raises:
        FileNotFoundError: there is no ``Data_Entry_2017*.csv``, or one of the lists only.
        ValueError: a file has an unknown, missing, duplicate or contradictory value; it is named.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.labels import read_chestxray14
        >>> folder = Path("data/nih")
        >>> folder.mkdir()
        >>> header = "Image Index,Finding Labels,Patient ID,Patient Age,Patient Sex,View Position"
        >>> _ = (folder / "Data_Entry_2017_v2020.csv").write_text(header + '''
        ... 00000001_000.png,Mass|Nodule,1,57,M,PA
        ... 00000002_000.png,No Finding,2,80,F,AP''')
        >>> images, boxes = read_chestxray14(folder, classes=["Mass"])
        >>> images[["image_id", "patient_id", "Mass"]].to_numpy().tolist()
        [['00000001_000', '00000001', 1], ['00000002_000', '00000002', 0]]
    """
    folder = Path(folder)
    path = find_csv(folder, TABLES)
    columns = ["Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position"]
    rows = read_csv(path, columns, part_of=PART_OF)
    sex = "Patient Sex" if "Patient Sex" in rows else "Patient Gender"
    if sex not in rows:
        raise ValueError(f"{path}: expected a column Patient Sex or Patient Gender")
    patients = rows["Patient ID"].fillna("")
    refuse(path, patients[~patients.str.fullmatch(r"\d+")], "invalid Patient IDs", "digits")
    images = pd.DataFrame(
        {
            "image_id": _ids(path, rows["Image Index"]),
            "patient_id": patients.str.zfill(8),
            "view": rows["View Position"],
            "sex": parse_sexes(path, rows[sex]),
            "age": parse_ages(path, rows["Patient Age"]),
        }
    )
    names = chosen_classes(classes, FINDINGS)
    images = images.join(_findings(path, rows["Finding Labels"].fillna("blank"), names))
    official = _official_split(folder, images["image_id"])
    if official is not None:
        images["official_split"] = official
    images = check_images(path, images)
    return images, _boxes(folder, images)


def _ids(path: Path, names: pd.Series) -> pd.Series:
    names = names.fillna("")
    refuse(path, names[~names.str.endswith(".png")], "names of no PNG", "such as 00000001_000.png")
    return names.str.removesuffix(".png")


def _findings(path: Path, listed: pd.Series, classes: list[str]) -> pd.DataFrame:
    """One column of 0 and 1 for each class, from texts such as ``Mass|Nodule``."""
    found = listed.str.get_dummies("|")
    unknown = set(found.columns) - {NO_FINDING, *FINDINGS}
    refuse(path, sorted(unknown), "unknown findings", f"{', '.join(FINDINGS)} or {NO_FINDING}")
    if NO_FINDING in found:
        both = (found[NO_FINDING] == 1) & (found.sum(axis=1) > 1)
        refuse(path, listed[both], f"lists of findings with {NO_FINDING}", "one or the other")
    return found.reindex(columns=classes, fill_value=0).astype(np.int64)


def _official_split(folder: Path, image_ids: pd.Series) -> pd.Series | None:
    """``train`` or ``test`` for each image, from the two lists; None without them."""
    paths = {part: folder / name for part, name in LISTS.items()}
    if not any(path.is_file() for path in paths.values()):
        return None
    parts = []
    for part, path in paths.items():
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: missing; expected both of {', '.join(LISTS.values())}"
            )
        names = pd.Series(path.read_text(encoding="utf-8").split(), dtype=str)
        parts.append(pd.Series(part, _ids(path, names).drop_duplicates()))
    split = pd.concat(parts)
    both = split.index[split.index.duplicated()]
    refuse(paths["test"], both, f"images that are in {LISTS['train']} too", "one of the lists")
    absent = image_ids[~image_ids.isin(split.index)]
    refuse(paths["test"], absent, f"images that are neither here nor in {LISTS['train']}")
    return image_ids.map(split)


def _boxes(folder: Path, images: pd.DataFrame) -> pd.DataFrame:
    """The boxes of the images' classes; none without the file."""
    path, columns = find_csv(folder, BOXES), list(no_boxes())
    if not path.is_file():
        return no_boxes()
    rows = read_csv(path, ["Image Index", "Finding Label"])
    if rows.shape[1] < len(columns):
        raise ValueError(f"{path}: {rows.shape[1]} columns; expected {len(columns)}")
    # The header calls the last four "Bbox [x", "y", "w", "h]".
    boxes = rows.iloc[:, : len(columns)].set_axis(columns, axis=1)
    boxes["image_id"] = _ids(path, boxes["image_id"])
    boxes["class_name"] = boxes["class_name"].replace(IN_BOXES)
    unknown = boxes["class_name"].fillna("blank")
    refuse(path, unknown[~unknown.isin(FINDINGS)], "unknown findings", ", ".join(FINDINGS))
    boxes = parse_boxes(path, boxes[boxes["class_name"].isin(images.columns)])
    check_labels_of_boxes(path, boxes, images)
    return boxes
