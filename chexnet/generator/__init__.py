"""JPGs to augmented batches, threaded and reproducible."""

from typing import TYPE_CHECKING

from chexnet.generator.augmentation import augmented_examples, default_augmenter
from chexnet.generator.store import ImageStore, apply_clahe, prepare_film

if TYPE_CHECKING:
    from chexnet.generator.sequence import AugmentedImageSequence

__all__ = [
    "AugmentedImageSequence", "ImageStore", "apply_clahe", "augmented_examples",
    "default_augmenter", "prepare_film",
]  # fmt: skip


def __getattr__(name: str) -> type:
    # Keras takes seconds to load; who only prepares films or shows them does without it.
    if name == "AugmentedImageSequence":
        from chexnet.generator.sequence import AugmentedImageSequence

        return AugmentedImageSequence
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
