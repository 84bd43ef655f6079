"""The area under the ROC curve, its interval, and comparing two."""

from chexnet.auroc.curve import Auroc, auroc, compare_auroc
from chexnet.auroc.intervals import (
    N_BOOTSTRAP, bootstrap, estimate, mean_interval, no_estimate, wilson_interval,
)  # fmt: skip

__all__ = [
    "N_BOOTSTRAP", "Auroc", "auroc", "bootstrap", "compare_auroc", "estimate", "mean_interval",
    "no_estimate", "wilson_interval",
]  # fmt: skip
