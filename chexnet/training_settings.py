"""What a training is asked for: checked before anything is touched, and told from another's."""

import hashlib
import json
import math
from collections.abc import Iterator
from numbers import Integral

import keras
import numpy as np

from chexnet.distribution import devices_and_process
from chexnet.generator import AugmentedImageSequence
from chexnet.losses import balancing_weights
from chexnet.model import map_size
from chexnet.optimizers import SCHEDULES


def as_python(settings: dict) -> dict:
    """The settings with NumPy's scalars as Python's, which can be written as JSON."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in settings.items()
    }


def check_settings(
    settings: dict,
    model: keras.Model,
    train: AugmentedImageSequence,
    val: AugmentedImageSequence,
) -> None:
    """Refuses what `chexnet.training.train` cannot work with.

    Args:
        settings: its keyword arguments.
        model: what is trained.
        train: batches of the training split.
        val: batches of the validation split.

    Raises:
        ValueError: an argument is outside what is allowed, or two do not go together.
    """
    for name, (is_allowed, allowed) in _ALLOWED.items():
        if not is_allowed(settings[name]):
            raise ValueError(f"{name}={settings[name]!r}: allowed is {allowed}")
    devices, processes, _ = devices_and_process()
    accumulation, minutes = settings["gradient_accumulation"], settings["max_minutes"]
    if minutes is not None and processes > 1:
        raise ValueError(
            f"max_minutes={minutes} with {processes} processes: each has a clock of its own, and "
            "one that ends alone leaves the others waiting; set epochs for the time instead"
        )
    if accumulation > 1 and devices > 1 and keras.backend.backend() == "tensorflow":
        raise ValueError(
            f"gradient_accumulation={accumulation} on {devices} devices: TensorFlow's "
            "MirroredStrategy cannot do both; set gradient_accumulation=1 or train on one device"
        )
    if train.class_names != val.class_names:
        raise ValueError(
            f"train has class_names={train.class_names}, val has {val.class_names}: allowed are "
            "the same in the same order"
        )
    if model.output_shape[-1] != len(train.class_names):
        raise ValueError(
            f"class_names={train.class_names}: the model's head has {model.output_shape[-1]} scores"
        )
    if settings["box_weight"] and train.map_size is None:
        raise ValueError(
            f"box_weight={settings['box_weight']}, but the training batches carry no boxes: give "
            "the sequence boxes= and map_size=, or set box_weight=0"
        )
    if train.map_size is not None and tuple(train.map_size) != map_size(model):
        raise ValueError(f"map_size={train.map_size}: the model's map has {map_size(model)}")


def positive_weights(
    given: float | str | None, train: AugmentedImageSequence
) -> list[float] | None:
    """One weight a class, as `chexnet.losses.score_loss` takes them."""
    if given == "balanced":
        return balancing_weights(train.labels, train.class_names)
    if given is None or isinstance(given, int | float):
        return None if given is None else [given] * len(train.class_names)
    raise ValueError(f"positive_weight={given!r}: allowed are a number, 'balanced' or None")


def fingerprints(
    model: keras.Model, train: AugmentedImageSequence, val: AugmentedImageSequence
) -> dict[str, str | int]:
    """What a training works on, in a form that is the same in every process.

    Returns:
        digests: ``films`` (ids, labels, and the pixels of the first, which show how all were
        prepared), ``boxes``, ``augmenter`` (by the first batch, which depends on the seed alone)
        and ``network`` (its layers, neither weights nor names, which count up in a session); and
        ``image_size``.
    """
    films = [
        [batches.class_names, batches.image_ids.tolist(), batches.labels.tolist()]
        for batches in (train, val)
    ]
    boxes = {image_id: its_boxes.tolist() for image_id, its_boxes in train._boxes.items()}
    layers = [
        [type(layer).__name__, {k: v for k, v in layer.get_config().items() if k not in _FREE}]
        for layer in _layers(model)
    ]
    augmented, _ = train.batch(0, 0)
    return {
        "films": _digest(films, train.store[train.image_ids[:1]]),
        "image_size": train.store.image_size,
        "boxes": _digest([train.map_size, boxes]),
        "augmenter": _digest([], augmented),
        "network": _digest(layers),
    }


def _layers(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else [layer]


def _digest(facts: list, pixels: np.ndarray | None = None) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    if pixels is not None:
        digest.update(pixels.tobytes())
    return digest.hexdigest()


def _whole(least: int, value: object) -> bool:
    return isinstance(value, Integral) and value >= least


_FREE = ("name", "trainable")  # of a layer: the first counts up, the second changes with the phase
_SHARE = (lambda value: 0 <= value < 1, "0 to below 1")
_FROM_ZERO = (lambda value: 0 <= value < math.inf, "a number from 0")
_ABOVE_ZERO = (lambda value: 0 < value < math.inf, "a number above 0")
_WHOLE_FROM_ZERO = (lambda value: _whole(0, value), "a whole number from 0")
_WHOLE_FROM_ONE = (lambda value: _whole(1, value), "a whole number from 1")
_ALLOWED = {
    "epochs": _WHOLE_FROM_ONE,
    "head_epochs": _WHOLE_FROM_ZERO,
    "learning_rate": _ABOVE_ZERO,
    "head_learning_rate": _ABOVE_ZERO,
    "warmup_epochs": _WHOLE_FROM_ZERO,
    "schedule": (lambda value: value in SCHEDULES, f"one of {SCHEDULES}"),
    "weight_decay": _FROM_ZERO,
    "weight_average": _SHARE,
    "box_weight": _FROM_ZERO,
    "best_from": _SHARE,
    "patience": (lambda value: value is None or _whole(1, value), "a whole number from 1 or None"),
    "max_minutes": (lambda value: value is None or value > 0, "a number above 0 or None"),
    "gradient_accumulation": _WHOLE_FROM_ONE,
}
