"""Right or wrong: which outcome each test film of a run has at a threshold."""

import numpy as np
import pandas as pd

from chexnet.operating_points import RULES, choose_thresholds
from chexnet.runs import Run

# An outcome's name, the label of its films, and what the model did with them.
OUTCOMES = {
    "TP": ("true positive", 1, "with {}, found"),
    "FN": ("false negative", 1, "with {}, missed"),
    "TN": ("true negative", 0, "without {}, called negative"),
    "FP": ("false positive", 0, "without {}, called positive"),
}


def outcome_table(
    run: Run, *, class_name: str | None = None, threshold: float | str = "youden"
) -> tuple[pd.DataFrame, str]:
    """Which test films the model got right.

    Args:
        run: with predictions.
        class_name: which class; ``None`` is the run's first.
        threshold: a film is called positive at this score or above; or the name of a rule of
            `chexnet.operating_points.RULES`, which is applied to validation.

    Returns:
        the predictions of the test films with ``outcome`` (TP, FN, TN or FP), one row a film; and
        a sentence that says from which score on a film is called positive, and why.

    Raises:
        ValueError: an unknown class or rule, no test film, or no threshold to be had.
    """
    class_name, predictions, films = scored_films(run, class_name)
    why = "as asked for"
    if isinstance(threshold, str):
        threshold, why = chosen_threshold(run, class_name, threshold, predictions)
    films = films.assign(outcome=outcomes_at(films["y_true"], films["y_score"], threshold))
    return films, f"{class_name} is called at a score of {threshold:.3g} or above: {why}."


def scored_films(run: Run, class_name: str | None) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """The class's name, its predictions, and those of its test films alone.

    Raises:
        ValueError: an unknown class, or no test film.
    """
    class_name = run.chosen_class(class_name)
    predictions = run.predictions.query("class_name == @class_name")
    films = predictions[predictions["split"] == "test"]
    if not len(films):
        raise ValueError(f"{run.folder / 'predictions.csv'}: no test film of {class_name!r}")
    return class_name, predictions, films


def header_text(film: pd.Series | tuple) -> str:
    """View, sex and age of a film, as far as they are known: ``PA · F · 54 y``."""
    facts = [getattr(film, name, None) for name in ("view", "sex", "age")]
    known = [fact for fact in facts if pd.notna(fact)]
    return " · ".join(fact if isinstance(fact, str) else f"{fact:.0f} y" for fact in known)


def outcomes_at(y_true: pd.Series, y_score: pd.Series, threshold: float) -> np.ndarray:
    """TP, FN, TN or FP for each film, str ``(N,)``; at the threshold itself a film is called."""
    called = np.asarray(y_score) >= threshold
    right, wrong = np.where(called, "TP", "TN"), np.where(called, "FP", "FN")
    return np.where(called == (np.asarray(y_true) == 1), right, wrong)


def chosen_threshold(
    run: Run, class_name: str, rule: str, predictions: pd.DataFrame
) -> tuple[float, str]:
    """The threshold of a rule of `chexnet.operating_points.RULES`, and the rule in words.

    Args:
        run: evaluated or not; where it is, its ``metrics.json`` is taken at its word.
        class_name: which class.
        rule: name of a rule.
        predictions: of the class, validation included.

    Raises:
        ValueError: an unknown rule, or no threshold to be had on validation.
    """
    if rule not in RULES:
        raise ValueError(f"threshold={rule!r}: allowed are a number and {sorted(RULES)}")
    val = predictions[predictions["split"] == "val"]
    points = run.metrics.get("classes", {}).get(class_name, {}).get("operating_points", {})
    try:
        chosen = (
            points[rule]["threshold"]
            if rule in points
            else choose_thresholds(val["y_true"], val["y_score"])[rule]
        )
    except ValueError as error:
        raise ValueError(
            f"{run.folder}: no threshold can be chosen for {class_name!r}, {error}; give a number "
            "as threshold="
        ) from error
    if chosen is None:
        raise ValueError(
            f"{run.folder}: on validation no threshold fulfils {rule!r}, {RULES[rule]}; give a "
            "number as threshold="
        )
    return chosen, f"{RULES[rule]}, chosen on {len(val)} validation films"
