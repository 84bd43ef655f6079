"""Calibration: temperature scaling, Brier score, expected calibration error, reliability."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, special

from chexnet.auroc import N_BOOTSTRAP, bootstrap, estimate, wilson_interval
from chexnet.files import check_number
from chexnet.runs import Run

BINS = 10
# Scores come from a float32 sigmoid: closer to 0 or 1 than this they carry no information.
_CLOSEST = float(np.finfo(np.float32).eps)
_TEMPERATURES = (0.05, 20.0)


def fit_temperature(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """The temperature with the largest likelihood (Guo et al. 2017, section 4.2), in [0.05, 20].

    Fit it on validation films. All logits are divided by one number, so their order, and with it
    the AUROC, stays the same. Above 1 the scores were overconfident.
    """
    y_true, logit = np.asarray(y_true, np.float64), _logit(y_score)
    if len(np.unique(y_true)) < 2:
        raise ValueError(
            f"a temperature needs films of both classes, but all {len(y_true)} labels are equal"
        )

    def negative_log_likelihood(log_temperature: float) -> float:
        scaled = logit / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - y_true * scaled))

    found = optimize.minimize_scalar(
        negative_log_likelihood,
        bounds=np.log(_TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def apply_temperature(y_score: ArrayLike, temperature: float) -> np.ndarray:
    """Scores ``(N,)`` in [0, 1] with their logits divided by a temperature.

    Example:
        >>> from chexnet.evaluation import apply_temperature
        >>> apply_temperature([0.5, 0.9], 2.0).round(2)
        array([0.5 , 0.75])
    """
    check_number("temperature", temperature, above=0)
    return special.expit(_logit(y_score) / temperature)


def calibrated_scores(run: Run, *, class_name: str | None = None) -> pd.DataFrame:
    """The scores of a run as calibrated probabilities.

    A new film's score is calibrated by `apply_temperature` with the same temperature.

    Args:
        run: with predictions; it need not be evaluated.
        class_name: which class; ``None`` is the run's first.

    Returns:
        the validation and test films of `Run.scored_films` with ``temperature``, fitted on the
        validation films, and ``probability``, in [0, 1].

    Raises:
        ValueError: the class is unknown, or validation has films of one class only.

    Example:
        >>> from chexnet.evaluation import calibrated_scores
        >>> from chexnet.runs import Run
        >>> calibrated_scores(Run("output/demo"))["probability"].between(0, 1).all()
        np.True_
    """
    name = run.chosen_class(class_name)
    val, test = run.scored_films(name)
    try:
        temperature = fit_temperature(val["y_true"], val["y_score"])
    except ValueError as error:
        raise ValueError(f"{run.folder}: no temperature for {name!r}, {error}") from error
    films = pd.concat([val, test], ignore_index=True)
    probability = apply_temperature(films["y_score"], temperature)
    return films.assign(temperature=temperature, probability=probability)


def reliability_table(y_true: ArrayLike, probability: ArrayLike) -> pd.DataFrame:
    """The numbers of a reliability diagram, in 10 bins of equal numbers of films.

    One row a bin: ``n, probability`` (mean), ``observed`` (share positive), and ``low, high``,
    Wilson's interval of it. Films with equal probability share a bin.
    """
    y_true, probability = np.asarray(y_true), np.asarray(probability, np.float64)
    bin_of = _bins(probability)
    rows = []
    for number in range(bin_of.max() + 1):
        inside = bin_of == number
        positives, n = int(y_true[inside].sum()), int(inside.sum())
        rows.append((n, probability[inside].mean(), positives / n, *wilson_interval(positives, n)))
    return pd.DataFrame(rows, columns=["n", "probability", "observed", "low", "high"])


def calibration_errors(
    y_true: ArrayLike,
    probability: ArrayLike,
    groups: ArrayLike,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, dict]:
    """Brier score and expected calibration error (ECE, equal-mass bins), with intervals by patient.

    On a finite set even a perfectly calibrated model has an ECE above 0. ``if_calibrated`` has the
    mean and the 97.5 % quantile of its ECE, with labels drawn from the probabilities. An ECE below
    that quantile is no evidence of miscalibration. For the same reason the bootstrap interval of
    the ECE is biased upwards.
    """
    y, probability = np.asarray(y_true, np.float64), np.asarray(probability, np.float64)
    bin_of = _bins(probability)

    def brier_and_ece(weight: np.ndarray, y: np.ndarray = y) -> np.ndarray:
        gap = probability - y
        # In a bin, n × |mean probability - share positive| is the sum of the gaps.
        in_bins = np.abs(np.bincount(bin_of, weights=weight * gap))
        return np.array([(weight * gap**2).sum(), in_bins.sum()]) / weight.sum()

    samples = bootstrap(brier_and_ece, groups, n_bootstrap=n_bootstrap, seed=seed)
    once, rng = np.ones(len(y)), np.random.default_rng(seed)
    calibrated = [
        brier_and_ece(once, rng.random(len(y)) < probability)[1] for _ in range(n_bootstrap)
    ]
    limits = {"mean": float(np.mean(calibrated)), "high": float(np.quantile(calibrated, 0.975))}
    brier, ece = map(estimate, brier_and_ece(once), samples.T)
    return {"brier": brier, "ece": ece | {"if_calibrated": limits}}


def _bins(probability: np.ndarray) -> np.ndarray:
    """The bin of each film ``(N,)``, numbered from 0 without gaps."""
    edges = np.quantile(probability, np.arange(1, BINS) / BINS)
    # With ties a bin between two equal edges is empty; np.unique numbers the others.
    return np.unique(np.searchsorted(edges, probability), return_inverse=True)[1]


def _logit(y_score: ArrayLike) -> np.ndarray:
    score = np.asarray(y_score, np.float64)
    if not ((score >= 0) & (score <= 1)).all():
        raise ValueError("scores to calibrate: expected probabilities in [0, 1]")
    return special.logit(np.clip(score, _CLOSEST, 1 - _CLOSEST))
