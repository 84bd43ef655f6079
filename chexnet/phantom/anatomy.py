"""The phantom's chest without disease, as the attenuation of the X-ray beam.

Attenuation has no unit: 0 is air, about 1 a thick abdomen. For body units see `drawing`.
"""

from typing import NamedTuple

import numpy as np

from chexnet.phantom.drawing import CANVAS, Points, curve, fill, noise, stroke

SIDES = np.array([[-1, 1], [1, 1]])  # mirror a shape to the film's left and right
# The outer wall of a lung from the spine over the apex down to the diaphragm.
WALL = [(0.10, -0.52), (0.16, -0.68), (0.28, -0.76), (0.42, -0.68), (0.56, -0.45), (0.66, -0.10)]
WALL += [(0.71, 0.22)]
# The outline of half the trunk: neck, shoulder, side.
TRUNK = [(0.20, -1.6), (0.20, -1.02), (0.34, -0.90), (0.70, -0.82), (1.00, -0.62), (1.00, -0.25)]
TRUNK += [(0.88, 0.1), (0.84, 0.55), (0.86, 1.0), (0.88, 1.7)]


class Chest(NamedTuple):
    """A chest on the canvas; float32 (CANVAS, CANVAS), with 2 lungs first: right and left."""

    soft: np.ndarray  # attenuation of soft tissue, as if lungs held no air
    bone: np.ndarray  # attenuation of bones
    air: np.ndarray  # of each lung: share of the beam that is lung, 0 to 1
    vessels: np.ndarray  # share of the lung that is vessel, 0 to 1
    lungs: np.ndarray  # bool, where each lung is visible


def draw_body(rng: np.random.Generator) -> dict[str, float]:
    """Draws what is the same on all films of a patient, relative to an average body."""
    return {
        "width": rng.uniform(0.92, 1.08),
        "lung": rng.uniform(0.95, 1.07),
        "tissue": rng.uniform(0.8, 1.25),
        "heart": rng.uniform(0.85, 1.08),
        "bone": rng.uniform(0.7, 1.3),
        "slope": rng.uniform(0.7, 1.3),
    }


def draw_chest(
    body: dict[str, float], rng: np.random.Generator, *, view: str, raised: int = 0
) -> Chest:
    """Draws a chest; ``body`` is the patient, ``rng`` draws position, breath and vessels.

    PA is standing, with a deep breath; AP in bed, with a shallow one and a larger heart, since it
    is farther from the detector. ``raised`` is -1 or 1 for a diaphragm raised on the film's left or
    right.
    """
    bed = view == "AP"
    pose = _pose(body, rng, bed)
    unit = pose[1, 1]  # pixels
    breath = body["lung"] * (rng.uniform(0.80, 0.96) if bed else rng.uniform(0.92, 1.06))
    lungs = [_lung(side, breath, 0.16 * (raised == side), rng) for side in (-1, 1)]
    middle = _mediastinum(body["heart"] * (1.12 if bed else 1.0), breath, pose)
    # No lung is even: a side, the bases or the apices hold less air without being opaque.
    haze = rng.uniform(0.03, 0.20) * noise(rng, 4) + 0.08 * noise(rng, 2)
    even = np.clip((1 - haze) * rng.uniform(0.8, 1.0), 0.35, 1.0)
    seen = np.stack([fill(outline, pose, blur=1.2) for outline in lungs]) * (1 - 0.93 * middle)

    half = curve(TRUNK)
    trunk = np.vstack([half, half[::-1] * SIDES[0]])
    right, left = lungs[0][40:], lungs[1][40:]  # the domes of the diaphragm
    corners = [[-1, right[0, 1]]], right, left[::-1], [[1, left[0, 1]], [1, 1.7], [-1, 1.7]]
    abdomen = fill(np.vstack(corners), pose, blur=6)
    trachea = stroke([curve([(0.0, -1.1), (0.0, -0.7), (0.01, -0.3)])], 0.075 * unit, pose, blur=2)
    soft = body["tissue"] * fill(trunk, pose, blur=1.5) * fill(trunk, pose, blur=20)
    soft *= 0.80 + np.maximum(0.10 * middle, 0.22 * abdomen) - 0.2 * trachea
    soft *= 1 + 0.08 * noise(rng, 2) + 0.06 * noise(rng, 4) + 0.012 * noise(rng, 40)
    bone = body["bone"] * _bones(body["slope"], breath, pose)
    vessels = _vessels(rng, breath, pose)
    return Chest(soft, bone, (even * seen).astype(np.float32), vessels, seen > 0.5)


def _pose(body: dict[str, float], rng: np.random.Generator, bed: bool) -> np.ndarray:
    tilt = np.deg2rad(rng.normal(0, 3.0 if bed else 1.5))
    zoom = CANVAS / 2 * (rng.uniform(0.88, 1.14) if bed else rng.uniform(0.96, 1.18))
    rotation = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    center = CANVAS / 2 + rng.normal(0, 0.045 if bed else 0.025, 2) * CANVAS
    return np.column_stack([rotation @ np.diag([zoom * body["width"], zoom]), center])


def _breathed(points: Points, breath: float) -> Points:
    """Stretches points downwards from the apices of the lungs, as a breath does."""
    return [(u, -0.76 + (v + 0.76) * breath) for u, v in points]


def _lung(side: int, breath: float, raised: float, rng: np.random.Generator) -> np.ndarray:
    """The outline of one lung, (80, 2), wall then dome; behind the heart it reaches the spine."""
    base = 0.06 * (side == 1) - raised - rng.uniform(0, 0.04)  # the liver lifts the right dome
    corner = (0.735, 0.56 + rng.uniform(-0.03, 0.03) + 0.5 * base)
    dome = [corner, (0.67, 0.485 + base), (0.53, 0.405 + base), (0.36, 0.385 + base)]
    dome += [(0.20, 0.43 + base), (0.06, 0.50 + base)]
    return np.vstack([curve(_breathed(p, breath)) for p in ([*WALL, corner], dome)]) * [side, 1]


def _mediastinum(heart: float, breath: float, pose: np.ndarray) -> np.ndarray:
    """Heart, great vessels and all else between the lungs, float32 canvas, 0 to 1."""
    left = [(0.10, -0.9), (0.10, -0.55), (0.17, -0.42), (0.165, -0.33), (0.135, -0.25)]
    left += [(0.17, -0.14), (0.27 * heart, 0.03), (0.40 * heart, 0.22), (0.45 * heart, 0.38)]
    left += [(0.42 * heart, 0.60)]
    right = [(-0.19 * heart, 0.60), (-0.215 * heart, 0.28), (-0.20 * heart, 0.10), (-0.14, -0.10)]
    right += [(-0.12, -0.40), (-0.10, -0.62), (-0.10, -0.9)]
    outline = np.vstack([curve(_breathed(border, breath), 60) for border in (left, right)])
    return fill(outline, pose, blur=1.6)


def _bones(slope: float, breath: float, pose: np.ndarray) -> np.ndarray:
    """Ribs, collar bones and spine, float32 canvas."""
    unit = pose[1, 1]
    back, front = [], []
    wall_u, wall_v = np.transpose([(0.28, -0.8), *WALL[2:], (0.74, 0.6)])
    for rib in range(10):
        top = -0.78 + 0.122 * rib
        end = top + slope * (0.10 + 0.012 * rib)
        reach = 0.015 + float(np.interp(end, wall_v, wall_u))
        arch = [(0.05, top + 0.02), (0.16, top - 0.01), (0.45 * reach + 0.08, top)]
        arch += [(0.85 * reach, 0.55 * top + 0.45 * end), (reach, end + 0.05)]
        back += [curve(_breathed(arch, breath), 24) * side for side in SIDES]
        if 0 < rib < 7:
            fore = [(reach, end + 0.05), (0.88 * reach, end + 0.17)]
            fore += [(0.62 * reach, end + 0.25), (0.40 * reach, end + 0.29)]
            front += [curve(_breathed(fore, breath), 24) * side for side in SIDES]
    collar = curve([(0.06, -0.56), (0.22, -0.57), (0.5, -0.68), (0.84, -0.7)], 24)
    spine = np.array([(0, -1.4), (0, 1.4)])
    disks = [np.array([(-0.07, level), (0.07, level)]) for level in np.arange(-1.3, 1.3, 0.115)]
    bones = 0.11 * stroke(back, 0.052 * unit, pose) + 0.05 * stroke(front, 0.046 * unit, pose)
    bones += 0.10 * stroke([collar * side for side in SIDES], 0.055 * unit, pose)
    bones += 0.11 * stroke([spine], 0.17 * unit, pose, blur=3)
    return bones - 0.03 * stroke(disks, 0.022 * unit, pose, blur=1.5)


def _vessels(rng: np.random.Generator, breath: float, pose: np.ndarray) -> np.ndarray:
    """Vessels that branch from the hila, thinner and fainter outwards; float32 canvas, 0 to 1."""
    layer = np.zeros((CANVAS, CANVAS), np.float32)
    for side in SIDES:
        start = np.tile(_breathed([(0.15, -0.13)], breath), (11, 1))
        angle = np.linspace(-1.35, 1.55, 11)  # 0 points outwards
        for width in (5, 4, 3, 2, 1):
            length = rng.uniform(0.09, 0.17, len(angle))
            end = start + length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
            lines = np.stack([start, end], axis=1) * side
            layer = np.maximum(layer, width / 5 * stroke(lines, width, pose))
            start = np.repeat(end, 2, axis=0)
            angle = np.repeat(angle, 2) + rng.normal(0, 0.35, 2 * len(angle))
    return layer
