"""Confidence intervals: bootstrap over patients, and Wilson's interval of a proportion.

Films of one patient are not independent, so patients are resampled, not films.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from chexnet.files import check_number

LEVEL = 0.95  # every interval of the project
N_BOOTSTRAP = 2000  # enough for stable 2.5 % tails: Efron & Tibshirani 1993, section 13.3
# The statistics of one evaluation are of the same samples, so these are drawn once for all.
_KEPT_BYTES, _KEPT = 2**24, 16


def bootstrap(
    statistic: Callable[[np.ndarray], ArrayLike],
    groups: ArrayLike,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> np.ndarray:
    """Computes a statistic on bootstrap samples of patients.

    Each sample draws as many patients as there are, with replacement.

    Args:
        statistic: function of the films' weights, float64 ``(N,)``: how many times the film's
            patient was drawn. NaN where it is not defined.
        groups: ``(N,)`` patient id of each film.
        n_bootstrap: number of bootstrap samples.
        seed: of the random numbers, 0 or above.

    Returns:
        ``(n_bootstrap,)``, or ``(n_bootstrap, K)`` if the statistic is ``(K,)``.

    Raises:
        ValueError: there is no film, a film has no patient id, or ``n_bootstrap`` or ``seed`` is no
            such number.

    Example:
        >>> from chexnet.auroc import bootstrap
        >>> bootstrap(lambda w: w @ [1, 2, 6] / w.sum(), ["a", "a", "b"], n_bootstrap=3)
        array([6. , 3. , 1.5])
    """
    check_number("n_bootstrap", n_bootstrap, integer=True, least=1)
    check_number("seed", seed, integer=True, least=0)
    groups = np.asarray(groups)
    if groups.ndim != 1 or groups.size == 0:
        raise ValueError(f"groups has shape {groups.shape}: expected (N,), a patient id per film")
    missing = sum(group is None or group != group for group in groups.tolist())
    if missing:
        raise ValueError(f"groups: {missing} of {groups.size} films have no patient id")
    names, codes = np.unique(groups.astype(str), return_inverse=True)
    kept = len(names) * n_bootstrap * np.min_scalar_type(len(names)).itemsize <= _KEPT_BYTES
    drawn: Iterable[np.ndarray] = (_kept_counts if kept else _counts)(len(names), n_bootstrap, seed)
    return np.array([statistic(counts[codes].astype(np.float64)) for counts in drawn])


def _counts(patients: int, n_bootstrap: int, seed: int) -> Iterator[np.ndarray]:
    """How many times each patient is in each sample, ``(patients,)``."""
    rng, smallest = np.random.default_rng(seed), np.min_scalar_type(patients)
    for _ in range(n_bootstrap):
        drawn = rng.integers(patients, size=patients)
        yield np.bincount(drawn, minlength=patients).astype(smallest)


@lru_cache(_KEPT)
def _kept_counts(patients: int, n_bootstrap: int, seed: int) -> list[np.ndarray]:
    return list(_counts(patients, n_bootstrap, seed))


def percentile_interval(samples: ArrayLike) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of bootstrap samples, NaN left out; NaN if none is left."""
    defined = np.asarray(samples, np.float64)
    defined = defined[np.isfinite(defined)]
    if defined.size == 0:
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def estimate(value: float, samples: ArrayLike) -> dict[str, Any]:
    """A value with the `percentile_interval` of its bootstrap samples, as in ``metrics.json``.

    Example:
        >>> from chexnet.auroc import estimate
        >>> estimate(50, range(101))["high"]
        97.5
    """
    low, high = percentile_interval(samples)
    return {"value": float(value), "low": low, "high": high}


def no_estimate(reason: str) -> dict[str, Any]:
    """What stands in ``metrics.json`` in place of a value that is not available.

    Example:
        >>> from chexnet.auroc import no_estimate
        >>> no_estimate("no films")["reason"]
        'no films'
    """
    return {"value": None, "low": None, "high": None, "n": 0, "reason": reason}


def mean_interval(
    values: ArrayLike, groups: ArrayLike, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> dict[str, Any]:
    """A mean over films with its bootstrap interval by patient.

    If a proportion is 0 or 1, all bootstrap samples are equal and their interval has no width.
    Wilson's interval with the patients as trials replaces it. ``values`` are ``(N,)``, one number a
    film, bool for a proportion; the other arguments and errors are those of `bootstrap`.

    Returns:
        ``value, low, high, n``; without films `no_estimate`.

    Example:
        >>> from chexnet.auroc import mean_interval
        >>> mean_interval([True, True, False, True], [1, 1, 2, 3], n_bootstrap=100)["value"]
        0.75
    """
    values = np.asarray(values)
    if values.size == 0:
        return no_estimate("no films")
    samples = bootstrap(
        lambda weight: weight @ values / weight.sum(), groups, n_bootstrap=n_bootstrap, seed=seed
    )
    result = estimate(values.mean(), samples) | {"n": int(values.size)}
    if values.dtype == bool and values.all() == values.any():
        patients = len(np.unique(np.asarray(groups).astype(str)))
        result["low"], result["high"] = wilson_interval(patients * bool(values.all()), patients)
    return result


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), without continuity correction.

    Returns:
        low, high in [0, 1].

    Raises:
        ValueError: there are no trials, or more successes than trials.

    Example:
        >>> from chexnet.auroc import wilson_interval
        >>> low, high = wilson_interval(8, 10)
        >>> f"{low:.2f} to {high:.2f}"
        '0.49 to 0.94'
    """
    interval = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)
