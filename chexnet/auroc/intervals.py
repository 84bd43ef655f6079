"""Confidence intervals that other modules share: patients drawn with replacement, and Wilson's.

Films of one patient are not independent: the unit that is drawn is the patient, never the film.
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

LEVEL = 0.95  # every interval of the project
N_BOOTSTRAP = 2000  # enough for stable 2.5 % tails: Efron & Tibshirani 1993, section 13.3


def bootstrap_patients(
    groups: np.ndarray, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws patients with replacement, each time as many as there are.

    Args:
        groups: ``(N,)`` patient id of each film.
        n_bootstrap: how many bootstrap samples.
        seed: the same seed and number of patients give the same draws.

    Returns:
        ``codes`` int ``(N,)``, the number of each film's patient, and ``counts`` uint16
        ``(n_bootstrap, patients)``, how often a patient was drawn: ``counts[b][codes]`` are the
        weights of the films in sample ``b``.

    Raises:
        ValueError: no film, a film without a patient, or fewer than one draw.
    """
    groups = np.asarray(groups)
    if groups.ndim != 1 or groups.size == 0:
        raise ValueError(f"groups is one patient id a film, shape (N,), not {groups.shape}")
    missing = sum(group is None or group != group for group in groups.tolist())
    if missing:
        raise ValueError(f"groups: {missing} of {groups.size} films have no patient id")
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap={n_bootstrap}: expected 1 or more")
    names, codes = np.unique(groups.astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = np.empty((n_bootstrap, len(names)), np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
    return codes, counts


def resample(
    statistic: Callable[[np.ndarray], np.ndarray | float], codes: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """A statistic on every bootstrap sample.

    Args:
        statistic: takes the films' weights, float64 ``(N,)``, and gives a number or an array; NaN
            where the sample does not define it.
        codes: patient number of each film, from `bootstrap_patients`.
        counts: how often each patient was drawn, from `bootstrap_patients`.

    Returns:
        float64 ``(n_bootstrap, ...)``.
    """
    return np.array([statistic(row[codes].astype(np.float64)) for row in counts])


def percentile_interval(samples: np.ndarray) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of a bootstrap distribution.

    Samples without a value (a draw without a positive film) are left out.

    Returns:
        low, high; NaN where no sample has a value.
    """
    samples = np.asarray(samples, np.float64)
    samples = samples[np.isfinite(samples)]
    if samples.size == 0:
        return np.nan, np.nan
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_interval(
    values: np.ndarray, groups: np.ndarray, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> dict[str, float | int | str | None]:
    """A mean over films with its interval by patient.

    Where a share of films is 0 or 1, every sample gives the same, as if it were certain. Wilson's
    interval with the patients as trials takes its place.

    Args:
        values: ``(N,)``, one number a film, or bool for a share of films.
        groups: ``(N,)``, patient id of each film.
        n_bootstrap: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        ``value, low, high, n``; without films ``None`` in place of numbers, and a ``reason``.
    """
    values = np.asarray(values)
    if values.size == 0:
        return {"value": None, "low": None, "high": None, "n": 0, "reason": "no films"}
    codes, counts = bootstrap_patients(groups, n_bootstrap=n_bootstrap, seed=seed)
    # A mean needs only each patient's sum and number of films: two matrix products.
    total = counts @ np.bincount(codes, weights=values)
    low, high = percentile_interval(total / (counts @ np.bincount(codes).astype(np.float64)))
    if values.dtype == bool and values.all() == values.any():
        patients = counts.shape[1]
        low, high = wilson_interval(patients * values.all(), patients)
    return {"value": float(values.mean()), "low": low, "high": high, "n": int(values.size)}


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), without continuity correction.

    Returns:
        low, high in [0, 1].

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials} is not a proportion")
    interval = stats.binomtest(int(successes), int(trials)).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)
