"""Scores that look at no pixel: what view, sex and age alone tell about a finding.

A sick patient is filmed lying, from the front (AP); one who walks in is filmed standing (PA). A
network that has learnt to tell the views apart therefore looks like one that finds pneumonia.
These scores are the floor under its AUROC.
"""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

UNKNOWN = "unknown"
_OLDEST = 110  # years; the NIH headers hold ages up to 155, which are slips of the pen


def view_scores(train: pd.DataFrame, films: pd.DataFrame, label: str) -> np.ndarray:
    """How often the finding is on training films of the same view.

    Args:
        train: training films, with ``view`` and the label.
        films: films to score, with ``view``.
        label: the column of 0 and 1 in ``train``.

    Returns:
        float ``(films,)`` in [0, 1]; a view that training never saw gets its overall prevalence.
    """
    prevalence = train[label].groupby(known(train["view"])).mean()
    return known(films["view"]).map(prevalence).fillna(train[label].mean()).to_numpy(np.float64)


def view_sex_age_scores(train: pd.DataFrame, films: pd.DataFrame, label: str) -> np.ndarray:
    """Logistic regression on view, sex and age, fitted on the training films.

    Args:
        train: training films, with ``view, sex, age`` and the label, which takes both values.
        films: films to score, with ``view, sex, age``.
        label: the column of 0 and 1 in ``train``.

    Returns:
        float ``(films,)`` in [0, 1].
    """
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
    """Ages in years as floats, NaN where missing or beyond 110."""
    years = pd.to_numeric(age, errors="coerce").astype(np.float64)
    return years.where(years.between(0, _OLDEST))


# The floors by name, with the facts about a film that each needs.
FLOORS = {
    "view": (view_scores, ["view"]),
    "view_sex_age": (view_sex_age_scores, ["view", "sex", "age"]),
}
