"""The area under the ROC curve, its 95 % interval, and the comparison of two.

The value is the Mann-Whitney statistic with ties counted half: the chance that a positive film
scores above a negative one. It is computed from scores, never from thresholded labels.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from sklearn import metrics as sklearn_metrics

from chexnet.auroc.intervals import (
    LEVEL,
    N_BOOTSTRAP,
    bootstrap_patients,
    percentile_interval,
    resample,
)

_Z = float(stats.norm.ppf((1 + LEVEL) / 2))


@dataclass(frozen=True)
class Auroc:
    """An AUROC and how sure it is.

    Attributes:
        value: area under the ROC curve, in [0, 1].
        low: lower end of the 95 % interval; NaN where it is not defined.
        high: upper end of it.
        n_positive: films with label 1.
        n_negative: films with label 0.
        method: ``"DeLong"`` or ``"bootstrap by patient"`` (``"bootstrap by film"`` without ids).
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
    """Two scores on the same films: AUROC of the first minus AUROC of the second.

    Attributes:
        value_a: AUROC of the first score.
        value_b: AUROC of the second.
        difference: ``value_a - value_b``.
        low: lower end of the difference's 95 % interval.
        high: upper end of it.
        z: difference over its standard error.
        p: two-sided p-value of ``z``.
        method: ``"DeLong"`` or ``"bootstrap by patient"``.
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
    y_true: np.ndarray,
    y_score: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    interval: str | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Auroc:
    """The AUROC of scores, with a 95 % interval.

    DeLong's interval is the plain normal one, cut at 0 and 1, as R's pROC gives it; its variance
    comes from ranks in O(n log n). It is NaN with a single positive or negative film, and has no
    width when the scores separate the classes perfectly, which no resampling can mend.

    Args:
        y_true: ``(N,)`` labels, 0 or 1.
        y_score: ``(N,)`` scores, any range, higher for more likely positive.
        groups: ``(N,)`` patient id of each film. With it the interval is a bootstrap by patient.
        interval: ``"delong"`` or ``"bootstrap"``; ``None`` takes the bootstrap where ``groups``
            are given. The bootstrap without ``groups`` draws single films.
        n_bootstrap: bootstrap samples; one without both classes is left out.
        seed: of the bootstrap.

    Returns:
        The value, its interval, the films of each class and the method.

    Raises:
        ValueError: one class only, a label other than 0 or 1, a NaN score, lengths that differ.
    """
    y, score = _checked(y_true, y_score)
    if interval is None:
        interval = "delong" if groups is None else "bootstrap"
    if interval not in ("delong", "bootstrap"):
        raise ValueError(f'interval is "delong" or "bootstrap", not {interval!r}')
    positive, negative = _placements(y, score)
    value = float(positive.mean())
    if interval == "delong":
        variance = _mean_variance(positive) + _mean_variance(negative)
        low, high = value - _Z * np.sqrt(variance), value + _Z * np.sqrt(variance)
        low, high = np.clip([low, high], 0, 1).tolist()
        method = "DeLong"
    else:
        codes, counts = bootstrap_patients(_units(groups, y), n_bootstrap=n_bootstrap, seed=seed)
        low, high = percentile_interval(bootstrap_auroc(y, score, codes, counts))
        method = _bootstrap_name(groups)
    return Auroc(value, low, high, len(positive), len(negative), method)


def compare_auroc(
    y_true: np.ndarray,
    score_a: np.ndarray,
    score_b: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> AurocDifference:
    """Two scores of the same films compared, paired.

    Without ``groups``: the test of DeLong, DeLong & Clarke-Pearson 1988. With patient ids: the
    difference on bootstrap samples of patients; ``z`` divides by their standard deviation.

    Args:
        y_true: ``(N,)`` labels, 0 or 1.
        score_a: ``(N,)`` first score.
        score_b: ``(N,)`` second score.
        groups: ``(N,)`` patient id of each film, or ``None``.
        n_bootstrap: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        Both values, their difference with its 95 % interval, ``z`` and ``p``.

    Raises:
        ValueError: as in `auroc`.
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
        method = "DeLong"
    else:
        codes, counts = bootstrap_patients(_units(groups, y), n_bootstrap=n_bootstrap, seed=seed)
        samples = bootstrap_auroc(y, a, codes, counts) - bootstrap_auroc(y, b, codes, counts)
        defined = samples[np.isfinite(samples)]
        error = float(defined.std(ddof=1)) if len(defined) > 1 else np.nan
        low, high = percentile_interval(samples)
        method = _bootstrap_name(groups)
    if error > 0 or np.isnan(error):
        z = difference / error
    else:  # the same ranking twice, or two that separate the classes perfectly, one upside down
        z = float(np.sign(difference)) * np.inf if difference else 0.0
    p = float(2 * stats.norm.sf(abs(z)))
    return AurocDifference(value_a, value_b, difference, low, high, z, p, method)


def bootstrap_auroc(
    y_true: np.ndarray, y_score: np.ndarray, codes: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """The AUROC of every bootstrap sample; scores are sorted once for all of them.

    Args:
        y_true: ``(N,)`` labels, 0 or 1.
        y_score: ``(N,)`` scores.
        codes: ``(N,)`` patient number of each film, from `intervals.bootstrap_patients`.
        counts: ``(n_bootstrap, patients)``, from `intervals.bootstrap_patients`.

    Returns:
        float64 ``(n_bootstrap,)``; NaN where a sample holds one class only.
    """
    y, score = _checked(y_true, y_score, both_classes=False)
    order = np.argsort(score, kind="stable")
    y, score = y[order], score[order]
    starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])  # films that tie share a rank

    def area(weight: np.ndarray) -> float:
        positive = weight * y
        negative = weight - positive
        if len(starts) < len(y):
            positive = np.add.reduceat(positive, starts)
            negative = np.add.reduceat(negative, starts)
        below = np.cumsum(negative)
        pairs = positive.sum() * below[-1]
        # A sum, not a dot product: BLAS would split it over threads, slower at this length.
        return (positive * (below - negative / 2)).sum() / pairs if pairs else np.nan

    return resample(area, codes[order], counts)


def roc_curve(y_true: np.ndarray, y_score: np.ndarray) -> pd.DataFrame:
    """The ROC curve, from scikit-learn, one row for each distinct score that bends it.

    Returns:
        ``false_positive_rate, sensitivity, threshold``; the first threshold is infinite (no film
        called positive), a film is called positive where its score is at or above the threshold.

    Raises:
        ValueError: as in `auroc`.
    """
    y, score = _checked(y_true, y_score)
    false_positive_rate, sensitivity, threshold = sklearn_metrics.roc_curve(y, score)
    return pd.DataFrame(
        {
            "false_positive_rate": false_positive_rate,
            "sensitivity": sensitivity,
            "threshold": threshold,
        }
    )


def _placements(y: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the other class a film stands on the right side of, ties half.

    Sun & Xu 2014, IEEE Signal Processing Letters 21(11), eq. 3-8: a film's rank among all less its
    rank among its own class is its rank among the others, so two sorts replace m × n comparisons.

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


def _units(groups: np.ndarray | None, y: np.ndarray) -> np.ndarray:
    if groups is None:
        return np.arange(len(y))
    groups = np.asarray(groups)
    if groups.shape != y.shape:
        raise ValueError(f"groups has shape {groups.shape}, y_true {y.shape}: one id a film")
    return groups


def _bootstrap_name(groups: np.ndarray | None) -> str:
    return "bootstrap by film" if groups is None else "bootstrap by patient"


def _checked(
    y_true: np.ndarray, y_score: np.ndarray, *, both_classes: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    y, score = np.asarray(y_true), np.asarray(y_score, np.float64)
    if y.ndim != 1 or y.shape != score.shape:
        raise ValueError(
            f"y_true has shape {y.shape}, y_score {score.shape}; both are (N,), one number a film"
        )
    strange = [value for value in np.unique(y) if value not in (0, 1)]
    if strange:
        raise ValueError(f"y_true holds {strange[:3]}; labels are 0 or 1")
    if not np.isfinite(score).all():
        raise ValueError(
            f"y_score: {(~np.isfinite(score)).sum()} of {score.size} are NaN or infinite"
        )
    y = y.astype(np.int8)
    if both_classes and len(np.unique(y)) < 2:
        held = f"all {y.size} labels are {y[0]}" if y.size else "there are no films"
        raise ValueError(f"AUROC needs films of both classes, but {held}")
    return y, score
