"""A synthetic study in the layout of Kaggle's RSNA archive, of ChestX-ray14 or of a table."""

from chexnet.phantom.study import write_phantom_study

__all__ = ["write_phantom_study"]
