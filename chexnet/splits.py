"""Patient-disjoint, stratified splits and folds, and the files that keep them."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from chexnet.files import check_number, read_table, refuse, summarize, write_atomic
from chexnet.labels import check_boxes, class_names

__all__ = ["check_disjoint", "folds_by_patient", "read_split", "split_by_patient", "write_split"]

ALSO_STRATIFY = ("detailed_class", "view")  # after the classes
SPLITS = ("train", "val", "test")
# A split is made of equal folds: as few as meet its shares to 0.2 points, since time grows with
# the number of folds, and at most 100.
CLOSE_ENOUGH, MOST_FOLDS = 0.002, 100
# Share of the images. The time grows with the number of strata, and 14 classes make thousands.
SMALLEST_STRATUM = 1 / 300
# Rare positive images are in few folds; so often those are dealt out until every split has some.
ATTEMPTS = 1000


def split_by_patient(
    images: pd.DataFrame,
    *,
    train: float = 0.8,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    stratify: Sequence[str] | None = None,
) -> pd.Series:
    """Splits images so that no patient is in two splits and the splits are alike.

    Equal folds from `sklearn.model_selection.StratifiedGroupKFold` are dealt out to the splits. The
    result depends on the images and the seed, not on the order of rows.

    A column ``official_split``, where there is one, decides instead: its ``test`` is the test
    split, and its ``val``, if it has any, is the validation split. Without it, ``train`` and
    ``val`` divide the official ``train`` in their proportion. The share ``test`` is not used.
    Drop the column for a split by shares.

    Args:
        images: one row an image: ``image_id``, ``patient_id``, and the columns to balance.
        train: share of images, above 0.
        val: share of images, above 0.
        test: share of images; 0 if the test set is kept elsewhere. The three sum to 1.
        seed: 0 or above.
        stratify: columns to balance, the most important first; a missing value counts as a value.
            By default the classes, then those of ``detailed_class`` and ``view`` that there are.

    Returns:
        str Series ``"train"``, ``"val"`` or ``"test"`` named ``split``; index as ``images``.
        Without any ``patient_id``, images are split one by one, with a warning.

    Raises:
        ValueError: the shares do not sum to 1, an image is listed twice, there are fewer patients
            than splits, the training split has one value only of a class, ``official_split`` is
            incomplete or has a patient in two splits, or another argument is not as stated.

    Warns:
        UserWarning: another split has one value only of a class.

    Example:
        >>> import pandas as pd
        >>> images = pd.DataFrame({"image_id": [f"film-{k}" for k in range(40)]})
        >>> images["patient_id"] = [f"patient-{k // 2}" for k in range(40)]
        >>> from chexnet.splits import split_by_patient
        >>> split_by_patient(images, train=0.5, val=0.25, test=0.25).value_counts().to_dict()
        {'train': 20, 'test': 10, 'val': 10}
    """
    asked = {"train": train, "val": val, "test": test}
    for name, share in asked.items():
        check_number(name, share)
    if min(train, val) <= 0 or test < 0 or not np.isclose(sum(asked.values()), 1):
        raise ValueError(
            f"train={train}, val={val}, test={test}: expected train and val above 0, test 0 or "
            "above, and a sum of 1"
        )
    _check(images)
    if "official_split" in images:
        split = _official(images, asked, seed, stratify)
    else:
        split = _by_shares(images, asked, seed, stratify)
    check_disjoint(images, split)
    _check_classes(images, split)
    return split


def _official(
    images: pd.DataFrame, shares: dict[str, float], seed: int, stratify: Sequence[str] | None
) -> pd.Series:
    """The official split; validation is taken from its training part if it has none."""
    split = images["official_split"].rename("split")
    rows = images[~split.isin(SPLITS)]
    wrong = [f"{row.image_id} ({row.official_split})" for row in rows.itertuples()]
    refuse("images", wrong, "images with another official_split", ", ".join(SPLITS))
    absent = {"train", "test"} - set(split)
    if absent:
        raise ValueError(
            f"images: official_split has no {summarize(sorted(absent))} images; without this "
            "column, images are split by the shares"
        )
    if "val" not in set(split):
        rest = images[split == "train"]
        of_both = shares["train"] + shares["val"]
        shares = {name: shares[name] / of_both for name in ("train", "val")}
        split = split.copy()
        split[rest.index] = _by_shares(rest, shares, seed, stratify)
    return split


def _by_shares(
    images: pd.DataFrame, shares: dict[str, float], seed: int, stratify: Sequence[str] | None
) -> pd.Series:
    shares = {name: share for name, share in shares.items() if share}
    patients = _patient_of(images).nunique()
    few = f"images: {patients} patients with {len(images)} images are too few for {shares}"
    if patients < len(shares):
        raise ValueError(few)
    counts = _folds_of_splits(np.array(list(shares.values())), patients)
    folds = _folds(images, sum(counts), seed, stratify)
    split = pd.Series(_splits_of_folds(images, folds, shares, counts, seed)[folds], images.index)
    if set(split) != set(shares):
        raise ValueError(f"{few}: a split would be empty")
    return split.rename("split")


def _splits_of_folds(
    images: pd.DataFrame, folds: np.ndarray, shares: Iterable[str], counts: np.ndarray, seed: int
) -> np.ndarray:
    """The split of each fold: at random, but so that each split has both values of every class."""
    values = [images[name] == value for name in class_names(images) for value in (0, 1)]
    present = np.array([np.bincount(folds, value, counts.sum()) > 0 for value in values])
    rng, best, fewest = np.random.default_rng(seed), np.empty(0), np.inf
    for _ in range(ATTEMPTS):
        # The patients with the most images are always in the first folds, so these go to any split.
        names = rng.permutation(np.repeat(list(shares), counts))
        lacking = sum(
            (len(values) if name == "train" else 1) * (~present[:, names == name].any(axis=1)).sum()
            for name in shares
            if values
        )
        if lacking < fewest:
            best, fewest = names, lacking
        if not lacking:
            break
    return best


def _one_value(images: pd.DataFrame, split: pd.Series) -> list[tuple[str, str, str]]:
    """Class, split and counts of positive images, where a split has one value only of a class."""
    found = []
    for name in class_names(images):
        known = images[name].notna()
        table = images.loc[known, name].groupby(split[known]).agg(["sum", "size"]).astype(int)
        table = table.reindex([part for part in SPLITS if part in set(split)], fill_value=0)
        counts = [f"{part} {table['sum'][part]} of {table['size'][part]}" for part in table.index]
        for part in table.index[(table["sum"] == 0) | (table["sum"] == table["size"])]:
            found.append((name, part, ", ".join(counts)))
    return found


def _check_classes(images: pd.DataFrame, split: pd.Series) -> None:
    """Refuses a training split with one value only of a class; warns of other such splits."""
    found = _one_value(images, split)
    untaught = [f"{name} (positive: {counts})" for name, part, counts in found if part == "train"]
    expected = "images with label 1 and with label 0; otherwise leave the class out"
    refuse("images", untaught, "classes with one value only in the training split", expected)
    if found:
        named = dict.fromkeys(f"{name} (positive: {counts})" for name, _, counts in found)
        warnings.warn(
            f"{len(named)} classes have one value only in a split, which then has no AUROC: "
            f"{summarize(named)}; another seed or other shares may divide them better",
            stacklevel=3,
        )


def folds_by_patient(
    images: pd.DataFrame, *, folds: int, seed: int = 0, stratify: Sequence[str] | None = None
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
        ValueError: a patient is in two splits, an image has none, a box is outside its film, or
            the training split has one value only of a class.

    Example:
        >>> from chexnet.splits import read_split, write_split
        >>> images, boxes = read_split("data/phantom")
        >>> [path.name for path in write_split("data/copy", images, boxes)]
        ['images.csv', 'boxes.csv']
    """
    check_disjoint(images, images["split"])
    check_boxes(images, boxes)
    _check_classes(images, images["split"])
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


def _folds(
    images: pd.DataFrame, folds: int, seed: int, stratify: Sequence[str] | None
) -> np.ndarray:
    """The fold of each image, int ``(N,)``."""
    check_number("folds", folds, integer=True, least=2)
    check_number("seed", seed, integer=True, least=0)
    if stratify is None:
        columns = [*class_names(images), *(name for name in ALSO_STRATIFY if name in images)]
    else:
        columns = list(stratify)
        refuse("stratify", set(columns) - set(images), "unknown columns", ", ".join(images))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    strata = _strata(images, columns, folds)
    found = np.empty(len(images), int)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # see _strata
        for fold, (_, rows) in enumerate(splitter.split(images, strata, _patient_of(images))):
            found[rows] = fold
    return found


def _strata(images: pd.DataFrame, columns: Sequence[str], folds: int) -> pd.Series:
    """Each image's combination of values; one of too few images counts as the commonest.

    A single value that is rare in its column stays: rare positive images go to different folds.
    """
    strata = pd.Series("", images.index)
    for column in columns:
        values = images[column].astype(object).where(images[column].notna(), "missing").astype(str)
        finer = strata + "|" + values
        common = finer.groupby(strata).transform(lambda values: values.mode()[0])
        rare = values.map(values.value_counts()) < folds
        enough = finer.map(finer.value_counts()) >= max(folds, len(images) * SMALLEST_STRATUM)
        strata = finer.where(rare | enough, common)
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
