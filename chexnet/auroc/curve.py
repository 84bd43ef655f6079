"""The area under the ROC curve (AUROC), its 95 % interval, and the comparison of two.

The AUROC is the Mann-Whitney statistic, ties counted half: the probability that a positive film
has a higher score than a negative one. It is computed from scores, never from thresholded labels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from chexnet.auroc.intervals import LEVEL, N_BOOTSTRAP, bootstrap, percentile_interval

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

    def estimate(self) -> dict[str, float]:
        """``value, low, high``, as in ``metrics.json``."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class AurocDifference:
    """AUROC of one score minus AUROC of another on the same films."""

    value_a: float
    value_b: float
    difference: float
    low: float  # ends of the difference's 95 % interval
    high: float
    z: float  # difference over its standard error
    p: float  # two-sided, of z
    method: str

    def estimate(self) -> dict[str, float]:
        """``value`` (the difference), ``low, high, p``, as in ``metrics.json``."""
        return {"value": self.difference, "low": self.low, "high": self.high, "p": self.p}


def auroc(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
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
        strata: ``(N,)``, such as the fold or class of each film. The value is then the mean of the
            AUROCs within strata; needs ``groups``.
        n_bootstrap: bootstrap samples; those with one class only are left out.
        seed: of the bootstrap.

    Returns:
        the AUROC, its interval, the number of films of each class and the method.

    Raises:
        ValueError: all labels (of a stratum) are equal, a label is not 0 or 1, a score is NaN, or
            lengths differ.

    Example:
        >>> from chexnet.auroc import auroc
        >>> y, score = [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]
        >>> auroc(y, score).value
        0.75
        >>> auroc(y, score, groups=["a", "b", "c", "d"], strata=[1, 2, 1, 2]).value
        1.0
    """
    y, score = _checked(y_true, y_score, groups, strata)
    area = _mean_auroc(y, score, strata)
    value = area(np.ones(len(y)))
    if groups is None:
        error = _delong_error(_placements(y, score))
        low, high = np.clip([value - _Z * error, value + _Z * error], 0, 1).tolist()
    else:
        samples = bootstrap(area, groups, n_bootstrap=n_bootstrap, seed=seed)
        low, high = percentile_interval(samples)
    positive = int(y.sum())
    return Auroc(value, low, high, positive, len(y) - positive, _method(groups))


def compare_auroc(
    y_true: ArrayLike,
    score_a: ArrayLike,
    score_b: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> AurocDifference:
    """Paired comparison of two scores of the same films.

    Without ``groups``: the test of DeLong, DeLong & Clarke-Pearson 1988. With patient ids: the
    difference on bootstrap samples of patients; ``z`` divides it by their standard deviation.
    Arguments and errors are those of `auroc`; both scores are ``(N,)``.

    Returns:
        both AUROCs, their difference with its 95 % interval, ``z`` and ``p``.

    Example:
        >>> from chexnet.auroc import compare_auroc
        >>> gap = compare_auroc([0, 0, 1, 1], [0.1, 0.4, 0.5, 0.8], [0.1, 0.4, 0.3, 0.8])
        >>> gap.difference
        0.25
    """
    y, a = _checked(y_true, score_a, groups, strata)
    _, b = _checked(y_true, score_b)
    area_a, area_b = _mean_auroc(y, a, strata), _mean_auroc(y, b, strata)
    value_a, value_b = area_a(np.ones(len(y))), area_b(np.ones(len(y)))
    difference = value_a - value_b
    if groups is None:
        # The variance of a difference is that of the differences of the placement values.
        pairs = zip(_placements(y, a), _placements(y, b), strict=True)
        error = _delong_error(first - second for first, second in pairs)
        low, high = difference - _Z * error, difference + _Z * error
    else:

        def gap(weight: np.ndarray) -> float:
            return area_a(weight) - area_b(weight)

        samples = bootstrap(gap, groups, n_bootstrap=n_bootstrap, seed=seed)
        low, high = percentile_interval(samples)
        defined = samples[np.isfinite(samples)]
        error = float(defined.std(ddof=1)) if len(defined) > 1 else np.nan
    if error:
        z = difference / error
    else:  # the same ranking twice, or two perfect ones in opposite order
        z = float(np.copysign(np.inf, difference)) if difference else 0.0
    p = float(2 * stats.norm.sf(abs(z)))
    return AurocDifference(value_a, value_b, difference, low, high, z, p, _method(groups))


def _mean_auroc(
    y: np.ndarray, score: np.ndarray, strata: ArrayLike | None
) -> Callable[[np.ndarray], float]:
    """The mean of the AUROCs within strata as a function of the films' weights ``(N,)``."""
    if strata is None:
        return _weighted_auroc(y, score)
    names, codes = np.unique(strata, return_inverse=True)
    parts = [np.flatnonzero(codes == code) for code in range(len(names))]
    areas = [(rows, _weighted_auroc(y[rows], score[rows])) for rows in parts]
    return lambda weight: sum(area(weight[rows]) for rows, area in areas) / len(areas)


def _weighted_auroc(y: np.ndarray, score: np.ndarray) -> Callable[[np.ndarray], float]:
    """The AUROC as a function of the films' weights ``(N,)``; scores are sorted once.

    It gives NaN where one class has no weight.
    """
    if len(np.unique(y)) < 2:
        why = f"all {y.size} labels are {y[0]}" if y.size else "there are no films"
        raise ValueError(f"AUROC needs films of both classes, but {why}")
    positives, negatives = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    negatives = negatives[np.argsort(score[negatives], kind="stable")]
    # How many negative films have a lower score than each positive film, and how many at most its.
    lower, most = (
        np.searchsorted(score[negatives], score[positives], side) for side in ("left", "right")
    )
    ties = (lower != most).any()
    total = np.zeros(len(negatives) + 1)  # weight of the first k negative films

    def area(weight: np.ndarray) -> float:
        np.cumsum(weight[negatives], out=total[1:])
        positive = weight[positives]
        below = (total[lower] + total[most]) / 2 if ties else total[lower]
        pairs = positive.sum() * total[-1]
        # A sum, not a dot product: BLAS would split it over threads, slower at this length.
        return float((positive * below).sum() / pairs) if pairs else np.nan

    return area


def _placements(y: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the other class that a film is ranked correctly against, ties half.

    Sun & Xu 2014, IEEE Signal Processing Letters 21(11), eq. 3-8: the rank of a film among all
    minus its rank in its own class is its rank among the other class. So two sorts replace
    m × n comparisons. Returned are those of the positive films ``(m,)`` and of the negative ones
    ``(n,)``; the mean of either is the AUROC.
    """
    positive, negative = score[y == 1], score[y == 0]
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    m, n = len(positive), len(negative)
    above = (ranks[:m] - stats.rankdata(positive)) / n
    below = 1 - (ranks[m:] - stats.rankdata(negative)) / m
    return above, below


def _delong_error(placements: Iterable[np.ndarray]) -> float:
    """Standard error from the placement values of both classes; NaN if a class has one film."""
    variances = [v.var(ddof=1) / len(v) if len(v) > 1 else np.nan for v in placements]
    return float(np.sqrt(sum(variances)))


def _method(groups: ArrayLike | None) -> str:
    return "DeLong" if groups is None else "bootstrap by patient"


def _checked(
    y_true: ArrayLike,
    y_score: ArrayLike,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    y, score = np.asarray(y_true), np.asarray(y_score, np.float64)
    for name, values in (("y_score", score), ("groups", groups), ("strata", strata)):
        if values is not None and (y.ndim != 1 or np.shape(values) != y.shape):
            raise ValueError(
                f"y_true has shape {y.shape}, {name} {np.shape(values)}: expected (N,), "
                "one value a film"
            )
    if strata is not None and groups is None:
        raise ValueError("strata: expected groups too, for the interval")
    unexpected = np.setdiff1d(y, (0, 1))
    if unexpected.size:
        raise ValueError(f"y_true has {unexpected[:3].tolist()}: expected labels 0 or 1")
    infinite = (~np.isfinite(score)).sum()
    if infinite:
        raise ValueError(f"y_score: {infinite} of {score.size} are NaN or infinite")
    return y.astype(np.int8), score
