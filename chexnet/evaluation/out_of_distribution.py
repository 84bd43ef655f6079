"""How far a film is from the training films, as the network sees them.

The Mahalanobis distance of the pooled features to the mean of the training films, as in Lee et al.
2018 (arXiv:1807.03888), with one Gaussian for all classes. The covariance of 1,024 features from
few films is estimated with the shrinkage of Ledoit and Wolf 2004
(doi:10.1016/S0047-259X(03)00096-4).
"""

import numpy as np
from sklearn.covariance import LedoitWolf


def fit_feature_distance(train: np.ndarray, val: np.ndarray) -> dict[str, np.ndarray]:
    """Fits the distance on training films and keeps the distances of validation films.

    Args:
        train: pooled features of training films, float ``(N, F)``, at least two films.
        val: those of validation films, float ``(M, F)``.

    Returns:
        float32 ``mean (F,)``, ``precision (F, F)`` (the inverse covariance), and
        ``val_distances (M,)``, sorted.
    """
    covariance = LedoitWolf().fit(train)
    fitted = {
        "mean": covariance.location_.astype(np.float32),
        "precision": covariance.precision_.astype(np.float32),
    }
    return fitted | {"val_distances": np.sort(feature_distance(val, **fitted))}


def feature_distance(features: np.ndarray, mean: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The Mahalanobis distance of each film to the training films, float32 ``(N,)``."""
    gap = np.asarray(features, np.float32) - mean
    return np.sqrt(np.maximum(np.einsum("nf,fg,ng->n", gap, precision, gap, optimize=True), 0))
