"""Warm-up, fine-tuning, resume, and the scores of a run."""

from chexnet.training.distribution import data_parallel
from chexnet.training.loop import train
from chexnet.training.recipes import recipe
from chexnet.training.scoring import record_scores

__all__ = ["data_parallel", "recipe", "record_scores", "train"]
