"""Where the weights of a network come from: ImageNet, TorchXRayVision, or a file of ours."""

import contextlib
import functools
import io
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from chexnet.backend import keras
from chexnet.files import shorten
from chexnet.model.archive import check_archive, check_finite
from chexnet.model.xrayvision import PREFIX, load_xrayvision

# Where Keras downloads from (keras/src/applications/densenet.py).
_IMAGENET_FILE = (
    "https://storage.googleapis.com/tensorflow/keras-applications/densenet/"
    "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"
)


class Start(NamedTuple):
    """What a network starts from."""

    source: str  # as the user gave it
    arrays: dict[str, list[np.ndarray]]  # by layer name, in the order of ``layer.weights``
    # Where ``arrays`` has no "predictions": by class name, the head's column (1024,) and bias.
    head: dict[str, tuple[np.ndarray, float]]

    @property
    def gray(self) -> bool:
        """Whether the first kernel takes one gray channel, as TorchXRayVision's do, not three."""
        first = self.arrays.get("conv1_conv")
        return first is not None and first[0].shape[2:3] == (1,)


def read_weights(weights: str | Path | None) -> Start | None:
    """Reads the ``weights`` of `chexnet.model.build_chexnet`; None where they are random."""
    if weights is None:
        return None
    if weights == "imagenet":
        arrays = _imagenet_arrays()
        return None if arrays is None else Start("imagenet", arrays, {})
    if str(weights).startswith(PREFIX):
        start = Start(str(weights), *load_xrayvision(str(weights).removeprefix(PREFIX)))
    else:
        start = Start(str(weights), _saved_arrays(Path(weights)), {})
    check_finite(f"weights={weights}", {**start.arrays, **start.head})
    return start


def weights_in_reach(weights: str | Path | None) -> str | Path | None:
    """The weights that `chexnet.model.build_chexnet` will really start from.

    They are those given, or ``None`` if those are ``"imagenet"`` and Keras can neither find nor
    download them (after one warning that says so).

    Example:
        >>> from chexnet.model import weights_in_reach
        >>> weights_in_reach("output/demo/model.keras")
        'output/demo/model.keras'
    """
    if weights == "imagenet" and _imagenet_arrays() is None:
        return None
    return weights


def set_start(model: keras.Model, start: Start, class_names: Sequence[str]) -> None:
    """Gives a network the weights to start from, or raises a ValueError and sets nothing."""
    with_head = "predictions" in start.arrays
    layers = {
        layer.name: layer
        for layer in model.layers
        if layer.weights and (with_head or layer.name != "predictions")
    }
    here = {name: [tuple(w.shape) for w in layer.weights] for name, layer in layers.items()}
    there = {name: [array.shape for array in arrays] for name, arrays in start.arrays.items()}
    differing = [
        f"{name}: {here.get(name)} here, {there.get(name)} there"
        for name in here | there
        if here.get(name) != there.get(name)
    ]
    if differing:
        raise ValueError(
            f"weights={start.source}: does not fit this network with class_names="
            f"{tuple(class_names)}; these layers differ:\n" + "\n".join(differing)
        )
    for name, layer in layers.items():
        layer.set_weights(start.arrays[name])
    if not start.head:
        return
    head = model.get_layer("predictions")
    kernel, bias = (np.array(array) for array in head.get_weights())
    for index, name in enumerate(class_names):
        if name in start.head:
            kernel[:, index], bias[index] = start.head[name]
    head.set_weights([kernel, bias])
    unknown = [name for name in class_names if name not in start.head]
    if unknown:
        warnings.warn(
            f"weights={start.source} has no class {unknown}, so this part of the head is random; "
            f"it has {sorted(start.head)}.",
            stacklevel=3,
        )


@functools.lru_cache(maxsize=1)
def _imagenet_arrays() -> dict[str, list[np.ndarray]] | None:
    # Keras raises a bare Exception for a failed download; its message tells it from other errors.
    try:
        backbone = keras.applications.DenseNet121(
            include_top=False, weights="imagenet", input_shape=(32, 32, 3)
        )
    except Exception as error:
        failed = ("URL fetch failure", "Incomplete or corrupted file")
        if not isinstance(error, OSError) and not any(text in str(error) for text in failed):
            raise
        warnings.warn(
            "The ImageNet weights cannot be downloaded, so the network starts from random weights. "
            f"To use them, download {_IMAGENET_FILE} on another computer and save it, under this "
            f"name, in the folder .keras/models of your home folder ({error}).",
            stacklevel=3,
        )
        return None
    return {layer.name: layer.get_weights() for layer in backbone.layers if layer.weights}


def _saved_arrays(path: Path) -> dict[str, list[np.ndarray]]:
    if not path.is_file():
        raise FileNotFoundError(f"weights={path}: no such file")
    if not path.name.endswith((".keras", ".weights.h5")):
        raise ValueError(
            f"weights={path}: expected None, 'imagenet', '{PREFIX}<name or path>' or a file "
            "named .keras or .weights.h5"
        )
    try:
        check_archive(path)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it has opened
            file = keras.saving.KerasFileEditor(str(path))
    except (OSError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        reason = shorten(error)
        raise ValueError(f"weights={path}: not a readable file of Keras ({reason})") from error
    arrays = {}
    # Keras numbers the layers of a kind and keeps their names in the metadata.
    for number, stored in file.weights_dict.get("layers", {}).items():
        name = file.object_metadata.get(f"/layers/{number}", {}).get("name", number)
        # Weights are numbered; other keys, such as the random state of Dropout, are left out.
        keys = sorted((key for key in stored if key.isdecimal()), key=int)
        if keys:
            arrays[name] = [stored[key] for key in keys]
    return arrays
