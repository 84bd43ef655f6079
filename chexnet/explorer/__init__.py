"""The interactive viewer of a run."""

from chexnet.explorer.panel import explore

__all__ = ["explore"]
