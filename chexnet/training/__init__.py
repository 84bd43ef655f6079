"""Training of a run that survives interruption, and the scores of a run."""

from chexnet.training.distribution import data_parallel
from chexnet.training.loop import train
from chexnet.training.losses import MaskedCrossentropy, WeightedCrossentropy
from chexnet.training.overrides import override_recipe
from chexnet.training.recipes import default_optimizer, recipe
from chexnet.training.scoring import record_scores

__all__ = [
    "MaskedCrossentropy", "WeightedCrossentropy", "data_parallel", "default_optimizer",
    "override_recipe", "recipe", "record_scores", "train",
]  # fmt: skip
