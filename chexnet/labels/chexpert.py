"""The label tables of CheXpert (Irvin et al. 2019, arXiv:1901.07031)."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from chexnet.files import path_id, refuse
from chexnet.labels.checks import (
    check_images,
    chosen_classes,
    find_csv,
    no_boxes,
    parse_ages,
    parse_labels,
    parse_sexes,
    read_csv,
)

TABLES = {"train": "train.csv", "test": "valid.csv"}
OBSERVATIONS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion"),
    *("Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture", "Support Devices"),
)
# Such as CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg
PATH = r"^(?:.*/)?(?P<file>(?:train|valid)/(?P<patient>patient\d+)/study\d+/view\d+_\w+\.\w+)$"
UNCERTAIN = {"ignore": "", "ones": "1", "zeros": "0"}
UNMENTIONED = {"zeros": "0", "ignore": ""}
PART_OF = "CheXpert"


def read_chexpert(
    folder: str | Path,
    uncertain: str = "ignore",
    *,
    unmentioned: str = "zeros",
    lateral: bool = False,
    classes: Sequence[str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads the labels of CheXpert: 223,414 training images of 64,540 patients, 14 observations.

    A label says what the radiology report says: 1 present, 0 absent, -1 uncertain, blank not
    mentioned.

    Args:
        folder: ``CheXpert-v1.0`` or ``CheXpert-v1.0-small``, with ``train.csv`` and, where it
            exists, ``valid.csv``. Each may be gzipped. The images are not needed.
        uncertain: what -1 becomes: "ignore" a missing label, "ones" 1, "zeros" 0. U-Ignore,
            U-Ones and U-Zeros of Irvin et al., section 3.1.
        unmentioned: what a blank becomes: "zeros" 0, as Irvin et al. count it (table 1), or
            "ignore" a missing label. Then most absent findings are missing, and few negative
            images are left. A blank ``No Finding`` is always 0, since it is never negative.
        lateral: whether to keep lateral images too; their ``view`` is ``LATERAL``.
        classes: some of the 14 observations, in the order wanted; by default all.

    Returns:
        Images, one row each, sorted by id: ``image_id`` (`chexnet.files.path_id` of the path in
        ``folder``: convert with ``ids="path"``), ``patient_id``, ``view`` (AP, PA, LL or RL),
        ``sex``, ``age`` in years (90 is 90 or older), one column for each class, and, with
        ``valid.csv``, ``official_split``: ``train``, and ``test`` for ``valid.csv``, whose 234
        images three radiologists have labeled.
        Boxes: none, an empty table.

    Raises:
        FileNotFoundError: there is no ``train.csv``.
        ValueError: an argument or a value in a file is not one of those named above.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.labels import read_chexpert
        >>> folder = Path("data/chexpert")
        >>> folder.mkdir()
        >>> _ = (folder / "train.csv").write_text('''Path,Sex,Age,Frontal/Lateral,AP/PA,Edema
        ... CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,Male,68,Frontal,AP,1.0
        ... CheXpert-v1.0/train/patient00002/study1/view1_frontal.jpg,Female,87,Frontal,AP,-1.0
        ... CheXpert-v1.0/train/patient00003/study1/view1_frontal.jpg,Female,40,Frontal,PA,''')
        >>> images, _ = read_chexpert(folder, classes=["Edema"])
        >>> images[["image_id", "age", "Edema"]].to_numpy().tolist()
        [['train_patient00001_study1_view1_frontal', 68, 1.0],
         ['train_patient00002_study1_view1_frontal', 87, nan],
         ['train_patient00003_study1_view1_frontal', 40, 0.0]]
    """
    for name, value, known in (
        ("uncertain", uncertain, UNCERTAIN),
        ("unmentioned", unmentioned, UNMENTIONED),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
    names = chosen_classes(classes, OBSERVATIONS)
    options = {"-1.0": UNCERTAIN[uncertain], "": UNMENTIONED[unmentioned]}
    parts = []
    for part, name in TABLES.items():
        path = find_csv(Path(folder), name)
        if part == "train" or path.is_file():
            rows = _read_part(path, names, options, lateral)
            parts.append(rows.assign(official_split=part))
    images = pd.concat(parts, ignore_index=True)
    if len(parts) < len(TABLES):
        images = images.drop(columns="official_split")
    return check_images(Path(folder), images), no_boxes()


def _read_part(
    path: Path, names: list[str], options: dict[str, str], lateral: bool
) -> pd.DataFrame:
    facts = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA"]
    rows = read_csv(path, [*facts, *names], part_of=PART_OF)
    sides = rows["Frontal/Lateral"].fillna("blank")
    refuse(path, sides[~sides.isin(["Frontal", "Lateral"])], "other views", "Frontal or Lateral")
    if not lateral:
        rows = rows[sides == "Frontal"]
    parts = rows["Path"].str.extract(PATH)
    expected = "such as CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
    refuse(path, rows["Path"].fillna("blank")[parts["file"].isna()], "other paths", expected)
    image_ids = parts["file"].map(path_id)
    cells = rows[names].fillna("")
    if "No Finding" in cells:
        cells["No Finding"] = cells["No Finding"].replace("", "0")
    cells = cells.replace({"-1": "-1.0"}).replace(options).replace("", None)
    return pd.DataFrame(
        {
            "image_id": image_ids,
            "patient_id": parts["patient"],
            "view": rows["AP/PA"].where(rows["Frontal/Lateral"] == "Frontal", "LATERAL"),
            "sex": parse_sexes(path, rows["Sex"]),
            "age": parse_ages(path, rows["Age"]),
        }
    ).join(parse_labels(path, image_ids, cells))
