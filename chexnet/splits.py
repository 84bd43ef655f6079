"""Patient-disjoint, stratified splits and folds, and the files that keep them."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from chexnet.files import read_table, refuse, summarize, write_atomic

__all__ = ["check_disjoint", "folds_by_patient", "read_split", "split_by_patient", "write_split"]

STRATIFY = ("Pneumonia", "detailed_class", "view")
# A split is made of equal folds: as few as meet its shares to 0.2 points, since time grows with
# the number of folds, and at most 100.
CLOSE_ENOUGH, MOST_FOLDS = 0.002, 100


def split_by_patient(
    images: pd.DataFrame,
    *,
    train: float = 0.8,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    stratify: Sequence[str] = STRATIFY,
) -> pd.Series:
    """Splits images so that no patient is in two splits and the splits are alike.

    Equal folds from `sklearn.model_selection.StratifiedGroupKFold` are dealt out to the splits. The
    result depends on the images and the seed, not on the order of rows.

    Args:
        images: one row an image: ``image_id``, ``patient_id`` and those columns of ``stratify``
            that are known.
        train: share of images, above 0.
        val: share of images, above 0.
        test: share of images; 0 if the test set is kept elsewhere. The three sum to 1.
        seed: 0 or above.
        stratify: columns to balance, the most important first; a missing value counts as a value.

    Returns:
        str Series ``"train"``, ``"val"`` or ``"test"`` named ``split``; index as ``images``.
        Without any ``patient_id``, images are split one by one, with a warning.

    Raises:
        ValueError: the shares do not sum to 1, an image is listed twice, or there are fewer
            patients than splits.

    Example:
        >>> import pandas as pd
        >>> images = pd.DataFrame({"image_id": [f"film-{k}" for k in range(40)]})
        >>> images["patient_id"] = [f"patient-{k // 2}" for k in range(40)]
        >>> from chexnet.splits import split_by_patient
        >>> split_by_patient(images, train=0.5, val=0.25, test=0.25).value_counts().to_dict()
        {'train': 20, 'test': 10, 'val': 10}
    """
    asked = {"train": train, "val": val, "test": test}
    if min(train, val) <= 0 or test < 0 or not np.isclose(sum(asked.values()), 1):
        raise ValueError(
            f"train={train}, val={val}, test={test}: expected train and val above 0, test 0 or "
            "above, and a sum of 1"
        )
    _check(images)
    shares = {name: share for name, share in asked.items() if share}
    patients = _patient_of(images).nunique()
    few = f"images: {patients} patients with {len(images)} images are too few for {shares}"
    if patients < len(shares):
        raise ValueError(few)
    counts = _folds_of_splits(np.array(list(shares.values())), patients)
    # The patients with the most images are always in the first folds, so these go to any split.
    names = np.random.default_rng(seed).permutation(np.repeat(list(shares), counts))
    split = pd.Series(names[_folds(images, len(names), seed, stratify)], images.index, name="split")
    if set(split) != set(shares):
        raise ValueError(f"{few}: a split would be empty")
    return split


def folds_by_patient(
    images: pd.DataFrame, *, folds: int, seed: int = 0, stratify: Sequence[str] = STRATIFY
) -> pd.Series:
    """Divides images into equal folds for cross-validation, as `split_by_patient` does.

    Args:
        images: as for `split_by_patient`.
        folds: 2 up to the number of patients.
        seed: 0 or above.
        stratify: as for `split_by_patient`.

    Returns:
        int Series 0 to ``folds - 1`` named ``fold``; index as ``images``.

    Raises:
        ValueError: an argument has another value than stated above, or an image is listed twice.

    Example:
        >>> import pandas as pd
        >>> images = pd.DataFrame({"image_id": [f"film-{k}" for k in range(30)]})
        >>> images["patient_id"] = [f"patient-{k // 2}" for k in range(30)]
        >>> from chexnet.splits import folds_by_patient
        >>> folds_by_patient(images, folds=3).value_counts().to_dict()
        {0: 10, 2: 10, 1: 10}
    """
    _check(images)
    return pd.Series(_folds(images, folds, seed, stratify), images.index, name="fold")


def check_disjoint(images: pd.DataFrame, split: pd.Series) -> None:
    """Makes sure that no patient and no image is in two splits.

    Args:
        images: ``image_id`` and ``patient_id``; an image without patient counts as one of its own.
        split: the split or fold of each row; index as ``images``.

    Raises:
        ValueError: patients are in two splits, or a row has no split.

    Example:
        >>> import pandas as pd
        >>> images = pd.DataFrame({"image_id": ["a", "b"], "patient_id": ["1", "1"]})
        >>> from chexnet.splits import check_disjoint
        >>> check_disjoint(images, pd.Series(["train", "test"]))
        Traceback (most recent call last):
        ...
        ValueError: 1 patients in two splits: patient 1 (train and test)
    """
    if not split.index.equals(images.index) or split.isna().any():
        raise ValueError("check_disjoint: expected a split for every row, with the same index")
    for column, ids in (("images", images["image_id"]), ("patients", _patient_of(images))):
        splits = split.groupby(ids.to_numpy()).unique()
        shared = splits[splits.map(len) > 1]
        if len(shared):
            named = [f"{name} ({' and '.join(map(str, both))})" for name, both in shared.items()]
            raise ValueError(f"{len(shared)} {column} in two splits: {summarize(named)}")


def write_split(folder: str | Path, images: pd.DataFrame, boxes: pd.DataFrame) -> tuple[Path, Path]:
    """Writes what the training reads: ``images.csv`` and ``boxes.csv``.

    Args:
        folder: made if need be.
        images: one row an image, with ``image_id`` and ``split``.
        boxes: ``image_id, x, y, width, height``; those of images not in ``images`` are left out.

    Returns:
        the paths of the two files.

    Raises:
        ValueError: a patient is in two splits, or an image has none.

    Example:
        >>> from chexnet.splits import read_split, write_split
        >>> images, boxes = read_split("data/phantom")
        >>> [path.name for path in write_split("data/copy", images, boxes)]
        ['images.csv', 'boxes.csv']
    """
    check_disjoint(images, images["split"])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = boxes[boxes["image_id"].isin(images["image_id"])]
    paths = folder / "images.csv", folder / "boxes.csv"
    for path, table in zip(paths, (images, kept), strict=True):
        write_atomic(path, table.to_csv(index=False).encode())
    return paths


def read_split(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads what `write_split` wrote.

    Args:
        folder: holds ``images.csv`` and ``boxes.csv``.

    Returns:
        images and boxes; ``image_id`` and ``patient_id`` are text.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file lacks a column, or a patient is in two splits.

    Example:
        >>> from chexnet.splits import read_split
        >>> images, boxes = read_split("data/phantom")
        >>> sorted(images["split"].unique())
        ['test', 'train', 'val']
    """
    images = _read(Path(folder) / "images.csv", ["image_id", "split"])
    boxes = _read(Path(folder) / "boxes.csv", ["image_id", "x", "y", "width", "height"])
    try:
        check_disjoint(images, images["split"])
    except ValueError as error:
        raise ValueError(f"{Path(folder) / 'images.csv'}: {error}") from None
    return images, boxes


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; notebook 02 (write_split) writes it")
    table = read_table(path)
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
    return table


def _folds(images: pd.DataFrame, folds: int, seed: int, stratify: Sequence[str]) -> np.ndarray:
    """The fold of each image, int ``(N,)``."""
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    strata = _strata(images, [column for column in stratify if column in images], folds)
    found = np.empty(len(images), int)
    for fold, (_, rows) in enumerate(splitter.split(images, strata, _patient_of(images))):
        found[rows] = fold
    return found


def _strata(images: pd.DataFrame, columns: Sequence[str], folds: int) -> pd.Series:
    """Each image's combination of values; a rare one, below one a fold, counts as the commonest."""
    strata = pd.Series("", images.index)
    for column in columns:
        values = images[column].astype(object).where(images[column].notna(), "missing").astype(str)
        finer = strata + "|" + values
        common = finer.groupby(strata).transform(lambda values: values.mode()[0])
        strata = finer.where(finer.map(finer.value_counts()) >= folds, common)
    return strata


def _folds_of_splits(shares: np.ndarray, patients: int) -> np.ndarray:
    """How many equal folds each split gets, at least one, to meet its share."""
    options = []
    for folds in range(len(shares), min(MOST_FOLDS, patients) + 1):
        counts = np.maximum(np.rint(shares * folds), 1).astype(int)
        counts[shares.argmax()] += folds - counts.sum()
        error = np.abs(counts / folds - shares).max()
        options.append((max(error, CLOSE_ENOUGH), folds, counts))
    return min(options, key=lambda option: option[:2])[-1]


def _check(images: pd.DataFrame) -> None:
    """Refuses images listed twice; warns of images without patient."""
    refuse("images", images.loc[images["image_id"].duplicated(), "image_id"], "duplicate image_ids")
    if "patient_id" not in images or images["patient_id"].isna().all():
        warnings.warn(
            "no patient_id is known, so the split is by image: images of one patient will be in "
            "several splits, and the test score will be too good. For RSNA, put the mapping "
            "(pneumonia-challenge-dataset-mappings_2018.json) beside the CSV files.",
            stacklevel=3,
        )
    elif images["patient_id"].isna().any():
        unknown = images.loc[images["patient_id"].isna(), "image_id"]
        warnings.warn(
            f"{len(unknown)} of {len(images)} images have no patient_id and count as a patient of "
            f"their own: {summarize(unknown)}",
            stacklevel=3,
        )


def _patient_of(images: pd.DataFrame) -> pd.Series:
    own = "image " + images["image_id"].astype(str)
    if "patient_id" not in images:
        return own
    return own.where(images["patient_id"].isna(), "patient " + images["patient_id"].astype(str))
