"""The area under the ROC curve, its interval, and comparing two."""

from chexnet.auroc.curve import (
    Auroc,
    AurocDifference,
    auroc,
    bootstrap_auroc,
    compare_auroc,
    roc_curve,
)
from chexnet.auroc.intervals import (
    N_BOOTSTRAP,
    mean_interval,
    bootstrap_patients,
    percentile_interval,
    resample,
    wilson_interval,
)

__all__ = [
    "N_BOOTSTRAP", "Auroc", "AurocDifference", "auroc", "bootstrap_auroc", "bootstrap_patients",
    "compare_auroc", "mean_interval", "percentile_interval", "resample", "roc_curve",
    "wilson_interval",
]  # fmt: skip
