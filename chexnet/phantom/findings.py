"""The phantom's opacities with their boxes, and the exposure of the film.

An opacity is lung that lost its air, and nothing else. The exposure is chosen after the opacity is
drawn and varies widely, so that the brightness of a film hardly depends on it.
"""

import cv2
import numpy as np

from chexnet.phantom.anatomy import Chest
from chexnet.phantom.drawing import CANVAS, noise

# How much of the soft tissue's attenuation a lung full of air takes away.
LUNG_AIR = 0.75
# A box encloses the opacity where it has this share of its own greatest density.
BOX_SHARE = 0.35
# The quantile of the lungs' gray values that the exposure sets. A lower one would make the lungs of
# films with opacity brighter than others, a higher one the rest of such films darker.
LUNG_QUANTILE = 0.55

Box = tuple[int, int, int, int]  # x, y, width, height in pixels of the canvas


def add_opacities(chest: Chest, rng: np.random.Generator) -> tuple[Chest, np.ndarray]:
    """Consolidates parts of one lung or both; returns the chest and boxes (n, 4), each a `Box`."""
    air = chest.air.copy()
    boxes: list[Box] = []
    while not boxes:  # until one covers enough lung to get a box
        for side in (0, 1) if rng.random() < 0.55 else (int(rng.integers(2)),):
            lost, box = _consolidation(chest.lungs[side], rng)
            if box is not None:
                air[side] *= 1 - lost
                boxes.append(box)
    return chest._replace(air=air), np.array(boxes, dtype=float)


def _consolidation(lung: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Box | None]:
    """One consolidation of one lung: the share of air lost, float32 canvas, and its box."""
    left, top, width, height = cv2.boundingRect(lung.astype(np.uint8))
    rows, columns = np.nonzero(lung[::4, ::4])
    # The lower half of the lung is affected more often than its top.
    weight = 0.35 + np.clip((4 * rows - top) / max(1, height), 0, 1)
    pick = rng.choice(len(rows), p=weight / weight.sum())
    y, x = 4 * rows[pick], 4 * columns[pick]
    half_x = CANVAS * rng.uniform(0.08, 0.18)
    half_y = CANVAS * np.clip(rng.lognormal(np.log(0.165), 0.42), 0.08, 0.36)
    # Towards the middle of the lung, so that most of the ellipse is lung.
    x += 0.5 * (left + width / 2 - x)
    y += min(0.0, top + height - 0.4 * half_y - y) + max(0.0, top + 0.5 * half_y - y)

    grid = np.arange(CANVAS, dtype=np.float32)
    across, down = (grid[None, :] - x) / half_x, (grid[:, None] - y) / half_y
    level = 1.0 - np.sqrt((across + rng.uniform(-0.5, 0.5) * down) ** 2 + down**2)
    level += 0.30 * noise(rng, 9) + 0.16 * noise(rng, 22)
    lost = 1 / (1 + np.exp(-level / rng.uniform(0.10, 0.22)))
    lost *= np.clip(0.80 + 0.16 * noise(rng, 30) + 0.14 * noise(rng, 70), 0.25, 1.0)
    lost = cv2.GaussianBlur(lost, (0, 0), 1.5) * rng.uniform(0.50, 0.92)
    return _boxed(lost, lung, rng)


def _boxed(
    lost: np.ndarray, lung: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, Box | None]:
    """The largest connected part of an opacity, and the box that a reader would draw."""
    dense = (cv2.GaussianBlur(lost * lung, (0, 0), 4) > BOX_SHARE * lost.max()).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(dense)
    if count < 2:
        return lost, None
    largest = 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])
    x, y, width, height, area = stats[largest]
    if min(width, height) < 0.08 * CANVAS or area < 0.008 * CANVAS**2:
        return lost, None
    around = cv2.dilate((parts == largest).astype(np.float32), np.ones((13, 13)))
    lost = lost * cv2.GaussianBlur(around, (0, 0), 5)
    shake = np.round(rng.normal(0, 0.02, 4) * [width, height, width, height]).astype(int)
    x0, y0 = max(0, x + shake[0]), max(0, y + shake[1])
    x1, y1 = min(CANVAS, x + width + shake[2]), min(CANVAS, y + height + shake[3])
    return lost, (x0, y0, x1 - x0, y1 - y0)


def expose(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Turns attenuation into gray values, float32 canvas, 0 (air) to about 255.

    The tone curve is fitted to the film as detectors do, to gray levels drawn for each film.
    """
    air = np.minimum(1.0, chest.air.sum(axis=0)) * (1 - 0.35 * chest.vessels)
    beam = chest.soft * (1 - LUNG_AIR * air) + chest.bone
    gray = 1 - np.exp(-rng.uniform(0.8, 1.3) * np.maximum(beam, 0))
    gray /= np.quantile(gray[::4, ::4], 0.92)
    dense, lung = rng.uniform(185, 238), rng.uniform(55, 115)
    inside = chest.lungs[:, ::4, ::4].any(axis=0)
    level = float(np.quantile(gray[::4, ::4][inside], LUNG_QUANTILE))
    power = np.clip(np.log(lung / dense) / np.log(min(level, 0.95)), 0.5, 3.0)
    return (dense * gray**power).astype(np.float32)
