"""Weights of a DenseNet121 of TorchXRayVision, as arrays under the layer names of our network.

The library (Cohen et al. 2022, arXiv:2111.00595) is imported only here and only when asked for;
``pip install chexnet[torchxrayvision]`` installs it. Its networks take one gray channel scaled to
-1024..1024 and were trained at 224 pixels.
"""

import importlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

PREFIX = "torchxrayvision:"
# Its DenseNet121s, each named by the films that it was trained on (torchxrayvision/models.py).
NAMES = tuple(
    f"densenet121-res224-{films}"
    for films in ("all", "nih", "pc", "chex", "rsna", "mimic_nb", "mimic_ch")
)
# torch's default, which the library keeps; keras.applications has 1.001e-5.
BATCHNORM_EPSILON = 1e-5

# Our names of the modules that occur once, and of the parts of a dense layer.
_ONCE = {
    "features.conv0": "conv1_conv",
    "features.norm0": "conv1_bn",
    "features.norm5": "bn",
    "classifier": "predictions",
}
_PARTS = {"norm1": "0_bn", "conv1": "1_conv", "norm2": "1_bn", "conv2": "2_conv"}
# The order of a layer's arrays in Keras: scale, offset, mean, variance; kernel, bias.
_ROLES = ("weight", "bias", "running_mean", "running_var")
_NOT_WEIGHTS = ("num_batches_tracked", "op_threshs")

# How a file written by torch before 1.6 begins: torch.serialization's magic number, pickled.
_BEFORE_TORCH_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What may be called while such a file is read, apart from torch's own kinds of storage.
_CALLED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


def load_xrayvision(
    name: str,
) -> tuple[dict[str, list[np.ndarray]], dict[str, tuple[np.ndarray, float]]]:
    """Reads one of `NAMES`, downloaded by the library if need be, or the ``.pt`` file of one.

    Returns `chexnet.model.weights.Start.arrays` and ``head``.
    """
    path = Path(name)
    if name not in NAMES:
        if path.suffix != ".pt":
            raise ValueError(
                f"weights={PREFIX + name}: expected after {PREFIX!r} one of {', '.join(NAMES)}, or "
                "the path of a .pt file of one of them"
            )
        if not path.is_file():
            raise FileNotFoundError(f"weights={PREFIX + name}: no such file")
    models = _library(name)
    if name in NAMES:
        path = _downloaded(models, name)
    state = read_checkpoint(path)
    layers = translated(state, path)
    classes = _classes(models, path)
    shapes = [array.shape for array in layers["predictions"]]
    expected = [(1024, len(classes)), (len(classes),)]
    if shapes != expected:
        raise ValueError(f"{path}: classifier with shapes {shapes}; expected {expected}")
    kernel, bias = layers.pop("predictions")
    head = {
        class_name: (kernel[:, index], float(bias[index]))
        for index, class_name in enumerate(classes)
        if class_name  # the library leaves the name of an untrained output empty
    }
    return layers, head


def translated(state: Mapping[str, np.ndarray], path: Path) -> dict[str, list[np.ndarray]]:
    """The library's arrays under our layer names, in Keras' order and layout, float32."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    unexpected = []
    for key, array in state.items():
        module, _, role = key.rpartition(".")
        layer = _our_layer(module)
        if layer is not None and role in _ROLES:
            # A kernel is (out, in, rows, columns) in torch, (rows, columns, in, out) in Keras.
            axes = (2, 3, 1, 0) if array.ndim == 4 else None
            layers.setdefault(layer, {})[role] = np.asarray(array, np.float32).transpose(axes)
        elif not key.endswith(_NOT_WEIGHTS):
            unexpected.append(key)
    if unexpected or {"weight", "bias"} - set(layers.get("predictions", {})):
        raise ValueError(
            f"{path}: not a DenseNet121 of TorchXRayVision; its classifier is missing, or it has "
            f"other arrays: {unexpected[:3]}"
        )
    return {
        layer: [arrays[role] for role in _ROLES if role in arrays]
        for layer, arrays in layers.items()
    }


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file written by ``torch.save``, by their name in ``state_dict``.

    No code in it is run. The library publishes whole modules, pickled before torch 1.6, which
    ``weights_only=True`` cannot read, whatever ``safe_globals`` allows. In these, each class or
    function that does not make tensors is replaced by `_Inert`.
    """
    import torch

    with path.open("rb") as file:
        old = file.read(len(_BEFORE_TORCH_1_6)) == _BEFORE_TORCH_1_6
    how: dict[str, Any] = {"weights_only": True}
    if old:
        how = {"weights_only": False, "pickle_module": _Restricted}
    try:
        with warnings.catch_warnings():
            # torch compares the source of each class with that of the class that replaces it.
            warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
            stored = torch.load(path, map_location="cpu", **how)
        tensors = stored if isinstance(stored, dict) else dict(_tensors(stored))
        return {str(name): tensor.detach().numpy() for name, tensor in tensors.items()}
    except Exception as error:  # torch has no narrower one: pickle's, zip's, its own RuntimeError
        raise ValueError(
            f"{path}: cannot be read safely as a network; expected a file of TorchXRayVision or "
            "a state_dict() written by torch.save, with dense tensors of a type that NumPy has, "
            f"such as float32 ({error})"
        ) from error


class _Inert:
    """Replaces all other classes and functions: keeps its attributes and does nothing."""

    dump_patches = False  # torch asks this of every pickled class of a module

    def __init__(self, *ignored: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Reader(pickle.Unpickler):
    """Unpickler as in the manual of the pickle module, 'Restricting Globals'."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if (module, name) in _CALLED else _Inert


class _Restricted:
    """What ``torch.load`` expects of a pickle module."""

    Unpickler = _Reader

    @staticmethod
    def load(file: BinaryIO, **options: Any) -> object:  # the numbers around the network
        return _Reader(file, **options).load()


def _tensors(module: object, prefix: str = "") -> list[tuple[str, Any]]:
    """Names and tensors as in ``module.state_dict()``."""
    own = [
        (prefix + name, tensor)
        for kind in ("_parameters", "_buffers")
        for name, tensor in getattr(module, kind, {}).items()
        if tensor is not None
    ]
    for name, child in getattr(module, "_modules", {}).items():
        own += _tensors(child, f"{prefix}{name}.")
    return own


def _our_layer(module: str) -> str | None:
    """Such as ``conv3_block5_1_conv`` for ``features.denseblock2.denselayer5.conv1``."""
    if module in _ONCE:
        return _ONCE[module]
    # Both number the blocks from the input on, Keras from 2.
    if dense := re.fullmatch(r"features\.denseblock(\d)\.denselayer(\d+)\.(\w+)", module):
        block, layer, part = dense.groups()
        return f"conv{int(block) + 1}_block{layer}_{_PARTS[part]}" if part in _PARTS else None
    if transition := re.fullmatch(r"features\.transition(\d)\.(norm|conv)", module):
        block, part = transition.groups()
        return f"pool{int(block) + 1}_{'bn' if part == 'norm' else 'conv'}"
    return None


def _library(name: str) -> ModuleType:
    try:
        with warnings.catch_warnings():  # on import it turns all warnings of the process off
            return importlib.import_module("torchxrayvision.models")
    except ImportError as error:
        raise ImportError(
            f"weights={PREFIX + name} needs TorchXRayVision, and it cannot be imported ({error}): "
            "pip install 'chexnet[torchxrayvision]'"
        ) from error


def _downloaded(models: ModuleType, name: str) -> Path:
    try:
        return Path(models.get_weights(name))
    except OSError as error:  # requests' errors are OSErrors
        raise ConnectionError(
            f"weights={PREFIX + name}: cannot be downloaded ({error}). Download "
            f"{models.model_urls[name]['weights_url']} on another computer and use "
            f"weights='{PREFIX}<path of the file>'"
        ) from error


def _classes(models: ModuleType, path: Path) -> list[str]:
    """The name of each output; a renamed file is assumed to have all classes of the library."""
    for name in NAMES:
        if models.model_urls[name]["weights_url"].endswith("/" + path.name):
            return models.model_urls[name]["labels"]
    return models.DenseNet.targets
