"""Whether a score of 0.8 means 80 %: temperature scaling, Brier score, reliability."""

import numpy as np
import pandas as pd
from scipy import optimize, special

from chexnet.auroc import (
    N_BOOTSTRAP,
    bootstrap_patients,
    percentile_interval,
    resample,
    wilson_interval,
)
from chexnet.runs import Run

BINS = 10
# Scores come from a float32 sigmoid: nearer to 0 or 1 than its spacing they say nothing more.
_CLOSEST = float(np.finfo(np.float32).eps)
_TEMPERATURES = (0.05, 20.0)


def fit_temperature(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """The temperature that makes scores most likely (Guo et al. 2017, section 4.2).

    Hand it the validation split. Dividing all logits by one number keeps their order, so AUROC and
    sensitivity at a given specificity stay as they are.

    Args:
        y_true: ``(N,)`` labels, 0 or 1, both present.
        y_score: ``(N,)`` probabilities in [0, 1].

    Returns:
        the temperature, in [0.05, 20]; above 1 where the scores were too sure of themselves.

    Raises:
        ValueError: one class only, or scores outside [0, 1].
    """
    y_true, logit = np.asarray(y_true, np.float64), _logit(y_score)
    if len(np.unique(y_true)) < 2:
        raise ValueError(
            f"a temperature needs films of both classes, but all {len(y_true)} labels are equal"
        )

    def surprise(log_temperature: float) -> float:
        logit_then = logit / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, logit_then) - y_true * logit_then))

    found = optimize.minimize_scalar(
        surprise, bounds=np.log(_TEMPERATURES), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def apply_temperature(y_score: np.ndarray, temperature: float) -> np.ndarray:
    """Scores ``(N,)`` in [0, 1] with their logits divided by a temperature."""
    if not temperature > 0:
        raise ValueError(f"temperature is above 0, not {temperature}")
    return special.expit(_logit(y_score) / temperature)


def temperature_of(run: Run, *, class_name: str | None = None) -> float:
    """The temperature of a run, fitted on its validation films.

    Args:
        run: with predictions; it need not be evaluated.
        class_name: which class; ``None`` is the run's first.

    Raises:
        ValueError: the run has no such class, or validation has films of one class only.
    """
    name = run.chosen_class(class_name)
    val = run.predictions.query("class_name == @name and split == 'val'")
    try:
        return fit_temperature(val["y_true"], val["y_score"])
    except ValueError as error:
        raise ValueError(f"{run.folder}: no temperature for {name!r}, {error}") from error


def calibrated_scores(run: Run, *, class_name: str | None = None) -> pd.DataFrame:
    """The scores of a run as probabilities, by the temperature fitted on validation.

    A new film's score ``s`` becomes ``apply_temperature(s, temperature_of(run))``.

    Args:
        run: with predictions.
        class_name: which class; ``None`` is the run's first.

    Returns:
        the class's rows of ``run.predictions``, with ``probability``, in [0, 1]. On validation
        they are fitted, on test they are not.

    Raises:
        ValueError: as in `temperature_of`.
    """
    name = run.chosen_class(class_name)
    temperature = temperature_of(run, class_name=name)
    films = run.predictions
    films = films[films["class_name"] == name].reset_index(drop=True)
    return films.assign(probability=apply_temperature(films["y_score"], temperature))


def reliability_table(
    y_true: np.ndarray, probability: np.ndarray, *, bins: int = BINS
) -> pd.DataFrame:
    """The numbers of a reliability diagram, in bins of equal numbers of films.

    Args:
        y_true: ``(N,)`` labels, 0 or 1.
        probability: ``(N,)`` in [0, 1].
        bins: how many; films with equal probability share one, so there can be fewer.

    Returns:
        one row a bin: ``n, probability`` (mean), ``observed`` (share positive), and ``low, high``,
        Wilson's interval of it.
    """
    y_true, probability = np.asarray(y_true), np.asarray(probability, np.float64)
    of = _bin_of(probability, bins)
    rows = []
    for number in range(of.max() + 1):
        inside = of == number
        positives, n = int(y_true[inside].sum()), int(inside.sum())
        low, high = wilson_interval(positives, n)
        rows.append(
            {
                "n": n,
                "probability": float(probability[inside].mean()),
                "observed": positives / n,
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)


def calibration_errors(
    y_true: np.ndarray,
    probability: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    bins: int = BINS,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Brier score and expected calibration error (equal-mass bins), with intervals by patient.

    Even a perfectly calibrated model has an ECE above 0 on a finite set; ``if_calibrated`` gives
    the mean and the 97.5 % quantile that such a model would show on as many films (labels drawn
    from the probabilities). An ECE below that quantile is no evidence of miscalibration. For the
    same reason the bootstrap interval of ECE lies rather high.

    Args:
        y_true: ``(N,)`` labels, 0 or 1.
        probability: ``(N,)`` in [0, 1].
        groups: ``(N,)`` patient ids; ``None`` draws single films.
        bins: of the ECE.
        n_bootstrap: bootstrap samples, and sets of labels drawn for ``if_calibrated``.
        seed: of the bootstrap.

    Returns:
        ``brier`` and ``ece``, each ``value, low, high``; ``ece`` also ``if_calibrated``.
    """
    y = np.asarray(y_true, np.float64)
    probability = np.asarray(probability, np.float64)
    of = _bin_of(probability, bins)
    squares, gaps = (probability - y) ** 2, probability - y

    def ece(weight: np.ndarray, gaps: np.ndarray) -> float:
        # In a bin, n × |mean probability - share positive| is the sum of the gaps.
        return float(np.abs(np.bincount(of, weights=weight * gaps)).sum() / weight.sum())

    codes, counts = bootstrap_patients(
        np.arange(len(y)) if groups is None else groups, n_bootstrap=n_bootstrap, seed=seed
    )
    samples = resample(
        lambda weight: [(weight * squares).sum() / weight.sum(), ece(weight, gaps)], codes, counts
    )
    rng, ones = np.random.default_rng(seed), np.ones(len(y))
    calibrated = [
        ece(ones, probability - (rng.random(len(y)) < probability)) for _ in range(n_bootstrap)
    ]
    result = {}
    for name, value, column in (
        ("brier", float(squares.mean()), samples[:, 0]),
        ("ece", ece(ones, gaps), samples[:, 1]),
    ):
        low, high = percentile_interval(column)
        result[name] = {"value": value, "low": low, "high": high}
    result["ece"]["if_calibrated"] = {
        "mean": float(np.mean(calibrated)),
        "high": float(np.quantile(calibrated, 0.975)),
    }
    return result


def _bin_of(probability: np.ndarray, bins: int) -> np.ndarray:
    edges = np.quantile(probability, np.arange(1, bins) / bins)
    # Numbered without gaps, for ties can leave a bin between two equal edges empty.
    return np.unique(np.searchsorted(edges, probability), return_inverse=True)[1]


def _logit(y_score: np.ndarray) -> np.ndarray:
    score = np.asarray(y_score, np.float64)
    if not ((score >= 0) & (score <= 1)).all():
        raise ValueError("scores to calibrate are probabilities in [0, 1]")
    return special.logit(np.clip(score, _CLOSEST, 1 - _CLOSEST))
