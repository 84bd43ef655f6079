"""The area under the ROC curve (AUROC), its 95 % interval, and the comparison of two.

The AUROC is the Mann-Whitney statistic, ties counted half: the probability that a positive film
has a higher score than a negative one. It is computed from scores, never from thresholded labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from chexnet.auroc.intervals import LEVEL, N_BOOTSTRAP, bootstrap, estimate, percentile_interval

_Z = float(stats.norm.ppf((1 + LEVEL) / 2))


@dataclass(frozen=True)
class Auroc:
    """An AUROC with its 95 % interval.

    Attributes:
        value: area under the ROC curve, in [0, 1].
        low: lower end of the interval; NaN where it is not defined.
        high: upper end of the interval.
        n_positive: films with label 1.
        n_negative: films with label 0.
        method: ``"DeLong"`` or ``"bootstrap by patient"``.

    Example:
        >>> from chexnet.auroc import Auroc
        >>> print(Auroc(0.851, 0.8, 0.9, 60, 140, "DeLong"))
        0.85 (0.80-0.90)
    """

    value: float
    low: float
    high: float
    n_positive: int
    n_negative: int
    method: str

    def __str__(self) -> str:
        """For a table: ``0.85 (0.80-0.90)``."""
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True)
class AurocDifference:
    """AUROC of one score minus AUROC of another on the same films.

    Attributes:
        value_a: AUROC of the first score.
        value_b: AUROC of the second.
        difference: ``value_a - value_b``.
        low: lower end of the difference's 95 % interval.
        high: upper end of it.
        z: difference over its standard error.
        p: two-sided p-value of ``z``.
        method: as in `Auroc`.
    """

    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    z: float
    p: float
    method: str


def auroc(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Auroc:
    """AUROC with a 95 % interval.

    Without ``groups`` it is DeLong's interval, cut at 0 and 1, as in R's pROC; its variance comes
    from ranks in O(n log n). It is NaN with one positive or one negative film. Where the scores
    separate the classes perfectly, both intervals have no width.

    Args:
        y_true: ``(N,)`` labels, 0 or 1.
        y_score: ``(N,)`` scores, any range, higher for more likely positive.
        groups: ``(N,)`` patient id of each film, for a bootstrap by patient.
        n_bootstrap: bootstrap samples; those with one class only are left out.
        seed: of the bootstrap.

    Returns:
        the AUROC, its interval, the number of films of each class and the method.

    Raises:
        ValueError: all labels are equal, a label is not 0 or 1, a score is NaN, or lengths differ.

    Example:
        >>> from chexnet.auroc import auroc
        >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).value
        0.75
        >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], groups=["a", "a", "b", "c"]).method
        'bootstrap by patient'
    """
    y, score = _checked(y_true, y_score)
    positive, negative = _placements(y, score)
    value = float(positive.mean())
    if groups is None:
        error = np.sqrt(_mean_variance(positive) + _mean_variance(negative))
        low, high = np.clip([value - _Z * error, value + _Z * error], 0, 1).tolist()
    else:
        area = _weighted_auroc(y, score)
        samples = bootstrap(area, _patients(groups, y), n_bootstrap=n_bootstrap, seed=seed)
        low, high = percentile_interval(samples)
    return Auroc(value, low, high, len(positive), len(negative), _method(groups))


def compare_auroc(
    y_true: ArrayLike,
    score_a: ArrayLike,
    score_b: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> AurocDifference:
    """Paired comparison of two scores of the same films.

    Without ``groups``: the test of DeLong, DeLong & Clarke-Pearson 1988. With patient ids: the
    difference on bootstrap samples of patients; ``z`` divides it by their standard deviation.

    Args:
        y_true: ``(N,)`` labels, 0 or 1.
        score_a: ``(N,)`` first score.
        score_b: ``(N,)`` second score.
        groups: ``(N,)`` patient id of each film, or ``None``.
        n_bootstrap: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        both AUROCs, their difference with its 95 % interval, ``z`` and ``p``.

    Raises:
        ValueError: as in `auroc`.

    Example:
        >>> from chexnet.auroc import compare_auroc
        >>> gap = compare_auroc([0, 0, 1, 1], [0.1, 0.4, 0.5, 0.8], [0.1, 0.4, 0.3, 0.8])
        >>> gap.difference
        0.25
    """
    y, a = _checked(y_true, score_a)
    _, b = _checked(y_true, score_b)
    (positive_a, negative_a), (positive_b, negative_b) = _placements(y, a), _placements(y, b)
    value_a, value_b = float(positive_a.mean()), float(positive_b.mean())
    difference = value_a - value_b
    if groups is None:
        # The variance of a difference is that of the differences of the placement values.
        variance = _mean_variance(positive_a - positive_b) + _mean_variance(negative_a - negative_b)
        error = float(np.sqrt(variance))
        low, high = difference - _Z * error, difference + _Z * error
    else:
        area_a, area_b = _weighted_auroc(y, a), _weighted_auroc(y, b)
        samples = bootstrap(
            lambda weight: area_a(weight) - area_b(weight),
            _patients(groups, y),
            n_bootstrap=n_bootstrap,
            seed=seed,
        )
        error = _standard_error(samples)
        low, high = percentile_interval(samples)
    z, p = _z_and_p(difference, error)
    return AurocDifference(value_a, value_b, difference, low, high, z, p, _method(groups))


def mean_auroc(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    strata: ArrayLike,
    groups: ArrayLike,
    minus: ArrayLike | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, float]:
    """The mean of the AUROCs within strata, such as folds or classes, with interval by patient.

    Args:
        y_true: ``(N,)`` labels, 0 or 1.
        y_score: ``(N,)`` scores.
        strata: ``(N,)``, such as the fold of each film; only films of one stratum are compared.
        groups: ``(N,)`` patient id of each film.
        minus: ``(N,)``, other scores, whose AUROCs are subtracted.
        n_bootstrap: bootstrap samples; those with one class only in a stratum are left out.
        seed: of the bootstrap.

    Returns:
        ``value, low, high``; of a difference also ``p``, as in `compare_auroc`.

    Raises:
        ValueError: as in `auroc`, of any stratum.

    Example:
        >>> from chexnet.auroc import mean_auroc
        >>> y, score, fold = [0, 1, 0, 1], [0.1, 0.3, 0.8, 0.7], [1, 1, 2, 2]
        >>> mean_auroc(y, score, strata=fold, groups=["a", "b", "c", "d"])["value"]
        0.5
    """
    y, strata = np.asarray(y_true), np.asarray(strata)
    parts = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    areas = [
        (sign, rows, _weighted_auroc(*_checked(y[rows], np.asarray(scores)[rows])))
        for rows in parts
        for sign, scores in ((1, y_score), (-1, minus))
        if scores is not None
    ]

    def mean(weight: np.ndarray) -> float:
        return sum(sign * area(weight[rows]) for sign, rows, area in areas) / len(parts)

    samples = bootstrap(mean, _patients(groups, y), n_bootstrap=n_bootstrap, seed=seed)
    found = estimate(mean(np.ones(len(y))), samples)
    if minus is not None:
        found["p"] = _z_and_p(found["value"], _standard_error(samples))[1]
    return found


def _weighted_auroc(y: np.ndarray, score: np.ndarray) -> Callable[[np.ndarray], float]:
    """The AUROC as a function of the films' weights ``(N,)``; scores are sorted once.

    It gives NaN where one class has no weight.
    """
    order = np.argsort(score, kind="stable")
    y, score = y[order], score[order]
    starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])  # films that tie share a rank

    def area(weight: np.ndarray) -> float:
        weight = weight[order]
        positive = weight * y
        negative = weight - positive
        if len(starts) < len(y):
            positive = np.add.reduceat(positive, starts)
            negative = np.add.reduceat(negative, starts)
        below = np.cumsum(negative)
        pairs = positive.sum() * below[-1]
        # A sum, not a dot product: BLAS would split it over threads, slower at this length.
        return float((positive * (below - negative / 2)).sum() / pairs) if pairs else np.nan

    return area


def _standard_error(samples: np.ndarray) -> float:
    defined = samples[np.isfinite(samples)]
    return float(defined.std(ddof=1)) if len(defined) > 1 else np.nan


def _z_and_p(difference: float, error: float) -> tuple[float, float]:
    """A difference over its standard error, and the two-sided p-value of that."""
    if error > 0 or np.isnan(error):
        z = difference / error
    else:  # the same ranking twice, or two perfect ones in opposite order
        z = float(np.sign(difference)) * np.inf if difference else 0.0
    return z, float(2 * stats.norm.sf(abs(z)))


def _placements(y: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the other class that a film is ranked correctly against, ties half.

    Sun & Xu 2014, IEEE Signal Processing Letters 21(11), eq. 3-8: the rank of a film among all
    minus its rank in its own class is its rank among the other class. So two sorts replace
    m × n comparisons.

    Returns:
        of the positive films ``(m,)`` and of the negative ones ``(n,)``; the mean of either is
        the AUROC.
    """
    positive, negative = score[y == 1], score[y == 0]
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    m, n = len(positive), len(negative)
    above = (ranks[:m] - stats.rankdata(positive)) / n
    below = 1 - (ranks[m:] - stats.rankdata(negative)) / m
    return above, below


def _mean_variance(values: np.ndarray) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else np.nan


def _method(groups: ArrayLike | None) -> str:
    return "DeLong" if groups is None else "bootstrap by patient"


def _patients(groups: ArrayLike, y: np.ndarray) -> np.ndarray:
    patients = np.asarray(groups)
    if patients.shape != y.shape:
        raise ValueError(
            f"groups has shape {patients.shape}, y_true {y.shape}: expected one id a film"
        )
    return patients


def _checked(y_true: ArrayLike, y_score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, score = np.asarray(y_true), np.asarray(y_score, np.float64)
    if y.ndim != 1 or y.shape != score.shape:
        raise ValueError(
            f"y_true has shape {y.shape}, y_score {score.shape}: expected (N,), one number a film"
        )
    unexpected = [value for value in np.unique(y) if value not in (0, 1)]
    if unexpected:
        raise ValueError(f"y_true has {unexpected[:3]}: expected labels 0 or 1")
    if not np.isfinite(score).all():
        raise ValueError(
            f"y_score: {(~np.isfinite(score)).sum()} of {score.size} are NaN or infinite"
        )
    y = y.astype(np.int8)
    if len(np.unique(y)) < 2:
        why = f"all {y.size} labels are {y[0]}" if y.size else "there are no films"
        raise ValueError(f"AUROC needs films of both classes, but {why}")
    return y, score
