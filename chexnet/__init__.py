"""CheXNet-style pneumonia detection on chest X-rays: films, splits, training, evidence, maps."""

__version__ = "0.2.0"
