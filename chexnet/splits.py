"""Patient-disjoint, stratified splits and folds."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from chexnet.files import summarize, write_atomic

STRATIFY = ("Pneumonia", "detailed_class", "view")
# Patients who hold this share of the films, those with the most first, are placed by lot; the rest
# are placed where they are needed most.
BY_LOT = 0.5


def split_by_patient(
    images: pd.DataFrame,
    *,
    train: float = 0.8,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    stratify: Sequence[str] = STRATIFY,
) -> pd.Series:
    """Splits films so that no patient stands in two splits and the splits are alike.

    Alike in size (by films), in the share of each value of each stratum and of each combination of
    them. Depends on the films and the seed, not on the order of rows.

    Args:
        images: one row a film: ``image_id``, ``patient_id`` and, as far as they are there, the
            columns of ``stratify``.
        train: share of films, above 0.
        val: share of films, above 0.
        test: share of films; 0 where the test films were set aside before. The three sum to 1.
        seed: 0 or above.
        stratify: columns to balance; a missing value counts as a value.

    Returns:
        str Series ``"train"``, ``"val"`` or ``"test"`` named ``split``; index as ``images``.
        Without any ``patient_id`` it is split by film, with a warning.

    Raises:
        ValueError: the shares do not sum to 1, a film is listed twice, or there are too few
            patients for a film in each split.
    """
    shares = {"train": train, "val": val, "test": test}
    if min(train, val) <= 0 or test < 0 or not np.isclose(sum(shares.values()), 1):
        raise ValueError(
            f"train={train}, val={val}, test={test}; allowed are train and val above 0, test from "
            "0, together 1"
        )
    names = np.array([name for name, share in shares.items() if share])
    places = _place(images, np.array([shares[name] for name in names]), seed, stratify)
    return pd.Series(names[places], images.index, name="split")


def folds_by_patient(
    images: pd.DataFrame, *, folds: int, seed: int = 0, stratify: Sequence[str] = STRATIFY
) -> pd.Series:
    """Divides films into equal folds for cross-validation, as `split_by_patient` does.

    Args:
        images: as for `split_by_patient`.
        folds: 2 or more.
        seed: 0 or above.
        stratify: columns to balance.

    Returns:
        int Series 0 to ``folds - 1`` named ``fold``; index as ``images``.

    Raises:
        ValueError: as `split_by_patient`.
    """
    if folds < 2:
        raise ValueError(f"folds={folds}; allowed is 2 or more")
    places = _place(images, np.full(folds, 1 / folds), seed, stratify)
    return pd.Series(places, images.index, name="fold")


def check_disjoint(images: pd.DataFrame, split: pd.Series) -> None:
    """Makes sure that no patient and no film stands in two splits.

    Args:
        images: ``image_id`` and ``patient_id``; a film without patient counts as one of its own.
        split: the split or fold of each row; index as ``images``.

    Raises:
        ValueError: patients stand in two splits; or a row has no split.
    """
    if not split.index.equals(images.index) or split.isna().any():
        raise ValueError("check_disjoint: every row of images needs its split, with the same index")
    for column, ids in (("films", images["image_id"]), ("patients", _patient_of(images))):
        splits = split.groupby(ids.to_numpy()).unique()
        shared = splits[splits.map(len) > 1]
        if len(shared):
            named = [f"{name} ({' and '.join(map(str, both))})" for name, both in shared.items()]
            raise ValueError(f"{len(shared)} {column} stand in two splits: {summarize(named)}")


def _place(
    images: pd.DataFrame, shares: np.ndarray, seed: int, stratify: Sequence[str]
) -> np.ndarray:
    twice = images.loc[images["image_id"].duplicated(), "image_id"].unique()
    if len(twice):
        raise ValueError(f"images: films listed more than once: {summarize(twice)}")
    _warn_of_films_without_patient(images)
    patients, names = pd.factorize(_patient_of(images), sort=True)
    films = _strata(images, [column for column in stratify if column in images])
    held_by = np.zeros((len(names), films.shape[1]))  # films of each patient, by stratum
    np.add.at(held_by, patients, films)
    of_patient = _greedy(held_by, shares, np.random.default_rng(seed))
    places = of_patient[patients]
    if len(np.unique(places)) < len(shares):
        raise ValueError(
            f"images: {len(names)} patients with {len(images)} films are too few for splits of "
            f"{shares.round(3).tolist()}: one would be empty"
        )
    return places


def _greedy(held_by: np.ndarray, shares: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    films = held_by[:, 0]
    order = draw.permutation(len(held_by))
    order = order[np.argsort(-films[order], kind="stable")]
    # Always giving the patient with most films where there is most room would give all such
    # patients, the sickest, to train. By lot, test has its share of them; those with few films,
    # who come last, even out what the lot has done.
    before = np.cumsum(films[order]) - films[order]
    wanted = shares[:, np.newaxis] * held_by.sum(axis=0)  # (splits, strata)
    held = np.zeros_like(wanted)
    places = np.empty(len(held_by), int)
    for patient, by_lot in zip(order, before < BY_LOT * films.sum(), strict=True):
        new = held_by[patient]
        chance = shares * (held[:, 0] + new[0] <= wanted[:, 0])
        if by_lot and chance.any():
            place = draw.choice(len(shares), p=chance / chance.sum())
        else:
            # What this patient adds to the chi-square distance between held and wanted.
            place = np.argmin(((2 * (held - wanted) + new) * new / wanted).sum(axis=1))
        places[patient] = place
        held[place] += new
    return places


def _strata(images: pd.DataFrame, columns: list[str]) -> np.ndarray:
    values = images[columns].astype(object).where(images[columns].notna(), "missing").astype(str)
    parts = [pd.Series(1.0, images.index)]  # the number of films is the first stratum
    parts += [pd.get_dummies(values[column], dtype=float) for column in columns]
    if len(columns) > 1:
        parts.append(pd.get_dummies(values.agg("|".join, axis=1), dtype=float))
    return pd.concat(parts, axis=1).to_numpy()


def _patient_of(images: pd.DataFrame) -> pd.Series:
    own = "film " + images["image_id"].astype(str)
    if "patient_id" not in images:
        return own
    known = images["patient_id"].notna()
    return own.where(~known, "patient " + images["patient_id"].astype(str))


def _warn_of_films_without_patient(images: pd.DataFrame) -> None:
    if "patient_id" not in images or images["patient_id"].isna().all():
        warnings.warn(
            "no patient_id is known, so the split is by film: films of one patient will land on "
            "both sides, the network may know the patient instead of the disease, and the test "
            "score will be too good. Behind the 26,684 films of RSNA stand about 11,400 patients. "
            "Put RSNA's mapping (pneumonia-challenge-dataset-mappings_2018.json) beside the CSV "
            "files.",
            stacklevel=4,
        )
    elif images["patient_id"].isna().any():
        unknown = images.loc[images["patient_id"].isna(), "image_id"]
        warnings.warn(
            f"{len(unknown)} of {len(images)} films have no patient_id and count as a patient of "
            f"their own: {summarize(unknown)}",
            stacklevel=4,
        )


def write_split(folder: str | Path, images: pd.DataFrame, boxes: pd.DataFrame) -> tuple[Path, Path]:
    """Writes what notebook 03 trains on: ``images.csv`` and ``boxes.csv``.

    Args:
        folder: made if need be.
        images: one row a film, with ``image_id`` and ``split``.
        boxes: ``image_id, x, y, width, height``; those of films not in ``images`` are left out.

    Returns:
        the paths of the two files.

    Raises:
        ValueError: a patient stands in two splits, or a film has none.
    """
    check_disjoint(images, images["split"])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = boxes[boxes["image_id"].isin(images["image_id"])]
    write_atomic(folder / "images.csv", images.to_csv(index=False).encode())
    write_atomic(folder / "boxes.csv", kept.to_csv(index=False).encode())
    return folder / "images.csv", folder / "boxes.csv"
