"""The chest of the phantom: what lies in the beam of one schematic film, summed as attenuation.

Body units: u to the right of the film, v downwards; the film's edges lie at -1 and 1 for a patient
of middle size who stands straight. Attenuation has no unit: 0 is air, about 1 a thick abdomen.
"""

from typing import NamedTuple

import cv2
import numpy as np

from chexnet.phantom.drawing import (
    CANVAS,
    curve,
    distance_inside,
    ellipse,
    fill,
    noise,
    stroke,
    stroke_tapered,
)

# The side wall of a lung from the spine over the top down to the diaphragm, in body units.
WALL = [(0.10, -0.52), (0.16, -0.68), (0.28, -0.76), (0.42, -0.68), (0.56, -0.45), (0.66, -0.10)]
WALL += [(0.71, 0.22)]


class Chest(NamedTuple):
    """A chest on the canvas.

    Attributes:
        pose: float (2, 3), the map from body units to canvas pixels.
        soft: float32 (CANVAS, CANVAS), attenuation of the soft tissue, were the lungs without air.
        bone: float32 (CANVAS, CANVAS), attenuation of the bones.
        air: float32 (2, CANVAS, CANVAS), share of the beam that is lung, 0 to 1: right, left lung.
        vessels: float32 (CANVAS, CANVAS), the vessels' share of the lung, 0 to 1.
        lungs: bool (2, CANVAS, CANVAS), where the right and the left lung are seen.
    """

    pose: np.ndarray
    soft: np.ndarray
    bone: np.ndarray
    air: np.ndarray
    vessels: np.ndarray
    lungs: np.ndarray


class Stance(NamedTuple):
    """How a patient stands or lies before the detector: the same arguments to every drawing.

    Attributes:
        pose: float (2, 3), the affine map from body units to canvas pixels.
        breath: depth of the lungs, as a share of a middle breath.
        turn: shift of the middle of the body, in body units, by a turn about its long axis.
        bed: taken in bed (AP), not standing (PA).
    """

    pose: np.ndarray
    breath: float
    turn: float
    bed: bool


def draw_body(rng: np.random.Generator, sex: str) -> dict[str, float]:
    """Draws what stays with a patient from film to film: sizes, as shares of a middle body."""
    return {
        "width": rng.uniform(0.92, 1.08),
        "lung": rng.uniform(0.95, 1.07),
        "tissue": rng.uniform(0.8, 1.25),
        "flesh": rng.uniform(0.03, 0.075),  # depth at which the trunk is thick, share of the film
        "heart": rng.uniform(0.85, 1.08),
        "knob": rng.uniform(0.6, 1.3),
        "bone": rng.uniform(0.7, 1.3),
        "slope": rng.uniform(0.7, 1.3),
        "vessels": rng.uniform(0.75, 1.25),
        "breast": rng.uniform(0.2, 1.0) if sex == "F" else rng.uniform(0.0, 0.3),
    }


def draw_chest(
    body: dict[str, float], rng: np.random.Generator, *, view: str, raised: int = 0
) -> Chest:
    """Draws a chest without disease.

    Args:
        body: the patient, from `draw_body`; a disease of form (a large heart) is a changed body.
        rng: what differs from film to film: position, breath, vessels.
        view: "PA" (standing, deep breath, shoulder blades aside) or "AP" (in bed: shallow breath,
            a larger heart, since it lies farther from the detector, and a less straight position).
        raised: -1 or 1 for a raised diaphragm on the film's left or right, 0 for none.

    Returns:
        The chest on the canvas.
    """
    stance = _stance(body, rng, bed=view == "AP")
    pose = stance.pose
    lungs = [_lung(side, stance, 0.16 * (raised == side), rng) for side in (-1, 1)]
    middle = _mediastinum(body, stance)
    # No lung is even: one side, the bases or the tops hold less air, and nobody calls it opacity.
    haze = rng.uniform(0.03, 0.20) * noise(rng, 4) + rng.normal(0, 0.08) * _ramp(rng)
    even = np.clip((1 - haze) * rng.uniform(0.8, 1.0), 0.35, 1.0)
    seen = np.stack([fill(outline, pose, blur=1.2) for outline in lungs]) * (1 - 0.93 * middle)

    soft = body["tissue"] * _soft_tissue(body, rng, stance)
    soft *= 0.80 + np.maximum(0.10 * middle, 0.22 * _abdomen(lungs, rng, stance))
    soft *= 1 - 0.24 * _airways(stance)
    soft *= 1 + rng.normal(0, 0.10) * _ramp(rng)  # a beam that is not centred
    soft *= 1 + 0.06 * noise(rng, 4) + 0.012 * noise(rng, 40)
    bone = body["bone"] * _bones(body, rng, stance)
    vessels = body["vessels"] * _vessels(rng, stance)
    layers = (layer.astype(np.float32) for layer in (soft, bone, even * seen, vessels))
    return Chest(pose, *layers, seen > 0.5)


def _ramp(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    line = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    return np.cos(angle) * line[None, :] + np.sin(angle) * line[:, None]


def _stance(body: dict[str, float], rng: np.random.Generator, *, bed: bool) -> Stance:
    tilt = np.deg2rad(rng.normal(0, 3.0 if bed else 1.5))
    zoom = CANVAS / 2 * (rng.uniform(0.88, 1.14) if bed else rng.uniform(0.96, 1.18))
    scale = np.diag([zoom * body["width"], zoom])
    rotation = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    centre = CANVAS / 2 + rng.normal(0, 0.045 if bed else 0.025, 2) * CANVAS
    breath = body["lung"] * (rng.uniform(0.80, 0.96) if bed else rng.uniform(0.92, 1.06))
    turn = float(np.clip(rng.normal(0, 0.03 if bed else 0.012), -0.06, 0.06))
    return Stance(np.column_stack([rotation @ scale, centre]), breath, turn, bed)


def _deep(points: list[tuple[float, float]], breath: float) -> list[tuple[float, float]]:
    """Stretches points of the lungs downwards from their tops, as a breath does."""
    return [(u, -0.76 + (v + 0.76) * breath) for u, v in points]


def _wide(side: int, turn: float) -> list[float]:
    """What mirrors a point to its side; the side turned to the detector is the narrower one."""
    return [side * (1 + side * 1.2 * turn), 1]


def _lung(side: int, stance: Stance, raised: float, rng: np.random.Generator) -> np.ndarray:
    """The outline of one lung, (80, 2), wall then dome; behind the heart it goes to the spine."""
    base = 0.06 * (side == 1) - raised - rng.uniform(0, 0.04)  # the liver lifts the right dome
    corner = (0.735, 0.56 + rng.uniform(-0.03, 0.03) + 0.5 * base)
    dome = [corner, (0.67, 0.485 + base), (0.53, 0.405 + base), (0.36, 0.385 + base)]
    dome += [(0.20, 0.43 + base), (0.06, 0.50 + base)]
    outline = [curve(_deep(part, stance.breath)) for part in ([*WALL, corner], dome)]
    return np.vstack(outline) * _wide(side, stance.turn) + [stance.turn, 0]


def _mediastinum(body: dict[str, float], stance: Stance) -> np.ndarray:
    """Heart, great vessels and all between the lungs, float32 canvas, 0 to 1."""
    h = body["heart"] * (1.12 if stance.bed else 1.0)
    knob = 0.12 + 0.05 * body["knob"]  # the arch of the aorta
    left = [(0.10, -0.9), (0.10, -0.55), (knob, -0.42), (knob - 0.005, -0.33), (0.135, -0.25)]
    left += [(0.17, -0.14), (0.27 * h, 0.03), (0.40 * h, 0.22), (0.45 * h, 0.38), (0.42 * h, 0.60)]
    right = [(-0.19 * h, 0.60), (-0.215 * h, 0.28), (-0.20 * h, 0.10), (-0.14, -0.10)]
    right += [(-0.12, -0.40), (-0.10, -0.62), (-0.10, -0.9)]
    outline = np.vstack([curve(_deep(border, stance.breath), 60) for border in (left, right)])
    return fill(outline + np.array([1.6 * stance.turn, 0]), stance.pose, blur=1.6)


def _soft_tissue(body: dict[str, float], rng: np.random.Generator, stance: Stance) -> np.ndarray:
    """Thickness of trunk, neck, arms and breasts, 0 to about 1.1, float32 canvas."""
    spread = rng.uniform(0.0, 0.12) if stance.bed else rng.uniform(0.1, 0.35)  # of the arms
    droop = rng.uniform(-0.05, 0.08)
    outer = [(0.20, -1.6), (0.20, -1.02), (0.34, -0.90), (0.70, -0.82 + droop)]
    outer += [(0.98, -0.66 + droop), (1.12 + 0.3 * spread, -0.30), (1.20 + spread, 0.25)]
    outer += [(1.26 + 1.3 * spread, 0.8)]
    inner = [(0.98 + 1.3 * spread, 0.8), (0.93 + spread, 0.25), (0.87 + 0.2 * spread, -0.06)]
    trunk = [(0.845, -0.02), (0.83, 0.2), (0.84, 0.55), (0.86, 1.0), (0.88, 1.7)]
    half = np.vstack([curve(outer), inner, curve(trunk)])
    depth = distance_inside(np.vstack([half, half[::-1] * [-1, 1]]), stance.pose)
    layer = cv2.GaussianBlur(1 - np.exp(-depth / (body["flesh"] * CANVAS)), (0, 0), 1.5)
    drop = rng.uniform(0.22, 0.42)
    for side in (-1, 1):
        breast = ellipse(0.40 * side, drop, 0.33, 0.32)
        layer += 0.15 * body["breast"] * fill(breast, stance.pose, blur=7)
    return layer


def _abdomen(lungs: list[np.ndarray], rng: np.random.Generator, stance: Stance) -> np.ndarray:
    """What is thicker below the domes, with some air in the stomach; float32 canvas, 0 to 1."""
    right, left = lungs[0][40:], lungs[1][40:]
    sides = [[-1, right[0, 1]]], right, left[::-1], [[1, left[0, 1]], [1, 1.7], [-1, 1.7]]
    layer = fill(np.vstack(sides), stance.pose, blur=6)
    if rng.random() < 0.6:
        u, v = left[20] + [rng.normal(0.02, 0.05), 0.09]
        bubble = ellipse(u, v, rng.uniform(0.06, 0.14), rng.uniform(0.03, 0.06))
        layer -= rng.uniform(0.4, 0.9) * fill(bubble, stance.pose, blur=2.5)
    return layer


def _bones(body: dict[str, float], rng: np.random.Generator, stance: Stance) -> np.ndarray:
    """Ribs, collar bones, shoulder blades, upper arms and spine, float32 canvas."""
    pose, unit = stance.pose, stance.pose[1, 1]
    rise = rng.uniform(-0.05, 0.07) - 0.05 * stance.bed
    inward = 0.13 * stance.bed  # in bed the shoulder blades lie before the lungs
    collar = [(0.06, -0.56), (0.22, -0.57 + 0.3 * rise), (0.5, -0.68 + rise), (0.84, -0.7 + rise)]
    blade = [(0.86, -0.66), (0.66 - inward, -0.60), (0.66 - inward, -0.40)]
    blade += [(0.78 - inward, -0.08), (0.84 - 0.5 * inward, -0.25), (0.90, -0.55)]
    arm = np.array([(0.97, -0.60), (1.03, -0.42), (1.12, 0.5)])
    sides = ([-1, 1], [1, 1])
    collars = [curve(collar, 24) * side + [2.2 * stance.turn, 0] for side in sides]
    blades = [curve(blade) * side for side in sides]
    heads = [ellipse(0.97, -0.60, 0.08, 0.08) * side for side in sides]
    back, front = _ribs(body, stance)
    bones = 0.14 * _tubular(back, 0.052 * unit, pose) + 0.06 * _tubular(front, 0.046 * unit, pose)
    bones += 0.12 * _tubular(collars, 0.055 * unit, pose)
    bones += 0.10 * _tubular([arm * side for side in sides], 0.085 * unit, pose)
    bones += sum(0.11 * fill(head, pose, blur=2.5) for head in heads)
    bones += sum(0.06 * fill(outline, pose, blur=2) for outline in blades)
    bones += 0.05 * stroke(blades, 0.018 * unit, pose, blur=1.2)
    return bones + 0.11 * _spine(stance)


def _ribs(body: dict[str, float], stance: Stance) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The ribs' arches at the back and in front, each (24, 2)."""
    back, front = [], []
    wall_u, wall_v = np.transpose([(0.28, -0.8), *WALL[2:], (0.74, 0.6)])
    for rib in range(10):
        top = -0.78 + 0.122 * rib
        end = top + body["slope"] * (0.10 + 0.012 * rib)
        reach = 0.015 + float(np.interp(end, wall_v, wall_u))
        arch = [(0.05, top + 0.02), (0.16, top - 0.01), (0.45 * reach + 0.08, top)]
        arch += [(0.85 * reach, 0.55 * top + 0.45 * end), (reach, end + 0.05)]
        fore = [(reach, end + 0.05), (0.88 * reach, end + 0.17)]
        fore += [(0.62 * reach, end + 0.25), (0.40 * reach, end + 0.29)]
        for side in (-1, 1):
            wide, shift = _wide(side, stance.turn), [stance.turn, 0]
            back.append(curve(_deep(arch, stance.breath), 24) * wide + shift)
            if 0 < rib < 7:
                front.append(curve(_deep(fore, stance.breath), 24) * wide + shift)
    return back, front


def _tubular(paths: list[np.ndarray], width: float, pose: np.ndarray) -> np.ndarray:
    """Bones seen from the side: a pale marrow between two bright edges of cortex."""
    return stroke(paths, width, pose) - 0.4 * stroke(paths, max(1, width - 4), pose)


def _spine(stance: Stance) -> np.ndarray:
    turn, unit = stance.turn, stance.pose[1, 1]
    column = stroke([np.array([(turn, -1.4), (turn, 1.4)])], 0.17 * unit, stance.pose, blur=3)
    levels = np.arange(-1.3, 1.3, 0.115)
    disks = [np.array([(turn - 0.07, level), (turn + 0.07, level)]) for level in levels]
    return column - 0.25 * stroke(disks, 0.022 * unit, stance.pose, blur=1.5)


def _airways(stance: Stance) -> np.ndarray:
    """The windpipe and its two branches, float32 canvas, 0 to 1."""
    u, unit, pose = 1.8 * stance.turn, stance.pose[1, 1], stance.pose
    trachea = curve([(0.0, -1.1), (u, -0.8), (u + 0.01, -0.5), (u + 0.01, -0.30)])
    right = curve([(u + 0.01, -0.32), (u - 0.06, -0.22), (u - 0.13, -0.12)])
    left = curve([(u + 0.01, -0.32), (u + 0.08, -0.24), (u + 0.18, -0.17)])
    bronchi = stroke([right, left], 0.048 * unit, pose, blur=2)
    return np.maximum(stroke([trachea], 0.075 * unit, pose, blur=2), bronchi)


def _vessels(rng: np.random.Generator, stance: Stance) -> np.ndarray:
    """Branching vessels, thick at the hilum, thin and faint at the edge; float32 canvas, 0 to 1."""
    side = np.repeat([-1, 1], 11)
    root = np.array(_deep([(0.15, -0.10), (0.15, -0.16)], stance.breath))
    start = root[(side + 1) // 2]
    angle = np.tile(np.linspace(-1.35, 1.55, 11), 2) + rng.normal(0, 0.1, 22)  # 0 points outwards
    width = np.full(22, 0.019 * stance.pose[1, 1])
    lines, widths, shift = [], [], np.array([stance.turn, 0])
    while len(width):
        bend = angle + rng.normal(0, 0.15, len(width))
        length = rng.uniform(0.09, 0.16, len(width))
        end = start + length[:, None] * np.stack([np.cos(bend), np.sin(bend)], axis=1)
        mirror = np.stack([side, np.ones_like(side)], axis=1)
        lines.append(np.stack([start * mirror, end * mirror], axis=1) + shift)
        widths.append(width)
        twig = rng.random(len(width)) < 0.75
        aside = bend + rng.uniform(0.4, 0.8, len(width)) * rng.choice([-1, 1], len(width))
        angle = np.concatenate([bend, aside[twig]])
        width = np.concatenate([0.80 * width, 0.66 * width[twig]])
        start, side = np.concatenate([end, end[twig]]), np.concatenate([side, side[twig]])
        thick = width >= 0.9
        start, angle, width, side = start[thick], angle[thick], width[thick], side[thick]
    lines, widths = np.concatenate(lines), np.concatenate(widths)
    return stroke_tapered(lines, widths, stance.pose, full=5.5, blur=1.1)
