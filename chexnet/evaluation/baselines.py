"""Non-imaging baselines: scores from view, sex and age alone, without the image.

Bedridden patients are filmed from the front (AP), others standing (PA). A network that has only
learnt to recognize the view therefore seems to detect pneumonia. A useful model must have a higher
AUROC than these baselines.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from chexnet.dicom import OLDEST

UNKNOWN = "unknown"


def view_scores(train: pd.DataFrame, films: pd.DataFrame, label: str) -> np.ndarray:
    """Prevalence of the finding among training films of the same view, ``(films,)``.

    A view that training never saw gets the overall prevalence.
    """
    train = train.dropna(subset=label)
    prevalence = train[label].groupby(known(train["view"])).mean()
    return known(films["view"]).map(prevalence).fillna(train[label].mean()).to_numpy(np.float64)


def view_sex_age_scores(train: pd.DataFrame, films: pd.DataFrame, label: str) -> np.ndarray:
    """Logistic regression on view, sex and age, fitted on the training films, ``(films,)``."""
    train = train.dropna(subset=label)
    middle = plausible_age(train["age"]).median()

    def facts(frame: pd.DataFrame) -> pd.DataFrame:
        columns = pd.get_dummies(
            pd.DataFrame({"view": known(frame["view"]), "sex": known(frame["sex"])}), dtype=float
        )
        decades = (plausible_age(frame["age"]).fillna(middle) - middle) / 10
        # Quadratic: the very young and the old are both filmed for other reasons.
        return columns.assign(age=decades.fillna(0), age_squared=decades.fillna(0) ** 2)

    seen = facts(train)
    model = LogisticRegression(max_iter=1000).fit(seen, train[label])
    asked = facts(films).reindex(columns=seen.columns, fill_value=0.0)
    return model.predict_proba(asked)[:, 1]


def known(values: pd.Series) -> pd.Series:
    """Text values, with "unknown" where there is none."""
    return values.astype(object).where(values.notna(), UNKNOWN).astype(str)


def plausible_age(age: pd.Series) -> pd.Series:
    """Ages in years as floats, NaN where missing or above `chexnet.dicom.OLDEST`."""
    years = pd.to_numeric(age, errors="coerce").astype(np.float64)
    return years.where(years.between(0, OLDEST))


@dataclass(frozen=True)
class Baseline:
    """A score that is computed without the image, by a function such as `view_scores`."""

    title: str
    columns: tuple[str, ...]  # of images.csv, which it needs
    scores: Callable[[pd.DataFrame, pd.DataFrame, str], np.ndarray]


# By their key in ``metrics.json``.
BASELINES = {
    "view": Baseline("view position", ("view",), view_scores),
    "view_sex_age": Baseline("view + sex + age", ("view", "sex", "age"), view_sex_age_scores),
}
# Titles of the baselines that localization is compared with, by their key in ``metrics.json``.
LOCATION_BASELINES = {
    "fixed_point": "best fixed point",
    "random_point": "random point",
    "fixed_mask": "best fixed mask",
}
