"""The original's generator, written anew from its description, to be measured beside ours."""

from pathlib import Path

import cv2
import imgaug.augmenters as iaa
import numpy as np
from PIL import Image
from skimage.transform import resize

ORIGINAL_BATCH = 4


class OriginalGenerator:
    """The original's batches, from their description.

    A film is decoded to three equal channels, equalised three times, resized in float64 by
    scikit-image and put into a batch of four; one of six augmentations of imgaug in float64; then
    ImageNet's mean and deviation.
    """

    def __init__(self, size: int) -> None:
        """Of films ``size`` pixels square."""
        self.size = size
        self.augmenter = iaa.OneOf(
            [
                iaa.Fliplr(0.5),
                iaa.Affine(rotate=(-10, 10)),
                iaa.Identity(),
                iaa.GaussianBlur(sigma=(0.0, 1.0)),
                iaa.Affine(shear=(-16, 16)),
                iaa.Affine(translate_px={"x": (-20, 20), "y": (-20, 20)}),
            ]
        )

    def film(self, path: Path) -> np.ndarray:
        """Float64 ``(S, S, 3)`` in [0, 1]."""
        colour = np.asarray(Image.open(path).convert("RGB"))
        clahe = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))
        equalised = np.stack([clahe.apply(colour[..., channel]) for channel in range(3)], axis=-1)
        return resize(equalised / 255.0, (self.size, self.size))

    def batch(self, paths: list[Path]) -> np.ndarray:
        """Float64 ``(n, S, S, 3)``, as the network gets it."""
        films = self.augmenter.augment_images(np.stack([self.film(path) for path in paths]))
        return (films - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
