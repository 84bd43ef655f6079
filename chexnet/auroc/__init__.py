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
    DRAWS,
    mean_interval,
    patient_draws,
    percentile_interval,
    resample,
    wilson_interval,
)

__all__ = [
    "DRAWS", "Auroc", "AurocDifference", "auroc", "bootstrap_auroc", "compare_auroc",
    "mean_interval", "patient_draws", "percentile_interval", "resample", "roc_curve",
    "wilson_interval",
]  # fmt: skip
