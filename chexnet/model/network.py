"""DenseNet121 with one sigmoid a class: building, loading, freezing, a second output for boxes.

Layer names that the rest of the package relies on: ``film`` (input), ``relu`` (last feature map),
``avg_pool``, ``predictions`` (the head). The architecture is CheXNet's (Rajpurkar et al. 2017,
arXiv:1711.05225, section 2.1) on DenseNet121 (Huang et al. 2017, arXiv:1608.06993).
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from chexnet.backend import keras
from chexnet.files import check_number, shorten
from chexnet.model.archive import check_archive, check_finite, check_network
from chexnet.model.weights import read_weights, set_start
from chexnet.model.xrayvision import BATCHNORM_EPSILON

layers, ops = keras.layers, keras.ops

# The channel statistics of ImageNet, as keras.applications.densenet.preprocess_input uses them
# ("torch" mode), for pixels in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# With Keras' default of 0.99 the moving statistics depend on their initial values for some 500
# steps; an epoch on a few hundred films has 30.
BATCHNORM_MOMENTUM = 0.9

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def build_chexnet(
    image_size: int,
    *,
    class_names: Sequence[str] = ("Pneumonia",),
    weights: str | Path | None = "imagenet",
    map_stride: int = 32,
    dropout: float = 0.0,
    batchnorm_momentum: float = BATCHNORM_MOMENTUM,
    precision: str = "float32",
) -> keras.Model:
    """Builds the network as one flat graph that normalizes its input.

    Args:
        image_size: side S of the square input, pixels, at least 32.
        class_names: one sigmoid output each, in this order; unique, not empty.
        weights: ``None`` (random), ``"imagenet"`` (random, with a warning, if Keras cannot download
            them), the path of a ``.keras`` or ``.weights.h5`` file of the same architecture,
            ``"torchxrayvision:densenet121-res224-rsna"`` (`xrayvision.NAMES` has all), or
            ``"torchxrayvision:<path of its .pt file>"``. With the last two the network has that
            library's input scaling, on one channel, and its head for classes of the same name.
        map_stride: pixels between two positions of the last feature map: 32 as published, or 16,
            for which the last transition does not pool.
        dropout: share of the pooled features dropped in training, 0 (as published) to below 1.
        batchnorm_momentum: share of the moving statistics that a training step keeps, 0 to below 1.
        precision: dtype policy of the layers from normalization to the map: ``"float32"``,
            ``"mixed_bfloat16"`` or ``"mixed_float16"``. Weights and scores are always float32.

    Returns:
        A model from gray films ``(N, S, S, 1)`` of any dtype, 0 to 255, to probabilities float32
        ``(N, C)``.

    Raises:
        ValueError: an argument is out of range, or the file at ``weights`` has another
            architecture; each layer that differs is named.
        FileNotFoundError: there is no file at ``weights``.
        ImportError: TorchXRayVision is not installed.
        ConnectionError: TorchXRayVision cannot download the file.

    Example:
        >>> from chexnet.model import build_chexnet
        >>> model = build_chexnet(64, class_names=("Pneumonia", "Effusion"), weights=None)
        >>> model.input_shape, model.output_shape
        ((None, 64, 64, 1), (None, 2))
    """
    check_number("image_size", image_size, integer=True, least=32)
    check_number("dropout", dropout, least=0, below=1)
    check_number("batchnorm_momentum", batchnorm_momentum, least=0, below=1)
    if isinstance(class_names, str) or not class_names or len(set(class_names)) < len(class_names):
        raise ValueError(f"class_names={class_names!r}: expected a sequence of different names")
    if map_stride not in (16, 32):
        raise ValueError(f"map_stride={map_stride!r}: expected 16 or 32")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {PRECISIONS}")
    start = read_weights(weights)
    gray = start is not None and start.gray
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)  # keras.applications knows no other way
    try:
        backbone = _backbone(image_size, map_stride, batchnorm_momentum, gray=gray)
    finally:
        keras.config.set_dtype_policy(policy)
    features = layers.GlobalAveragePooling2D(name="avg_pool", dtype="float32")(backbone.output)
    if dropout:
        features = layers.Dropout(dropout, name="dropout", dtype="float32")(features)
    head = layers.Dense(len(class_names), "sigmoid", name="predictions", dtype="float32")
    model = keras.Model(backbone.input, head(features), name="chexnet")
    if start is not None:
        set_start(model, start, class_names)
    return model


def load_chexnet(path: str | Path) -> keras.Model:
    """Loads a network from a ``.keras`` file in Keras' safe mode: no code in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a network saved by this project, is damaged, unpacks to more
            than 268 MB, or has weights that are NaN or infinite.

    Example:
        >>> from chexnet.model import build_chexnet, load_chexnet
        >>> build_chexnet(32, weights=None).save("model.keras")
        >>> load_chexnet("model.keras").output_shape
        (None, 1)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no saved model here; notebook 03 writes model.keras")
    try:
        check_archive(path)
        check_network(path)
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable .keras model ({shorten(error)})") from error
    missing = {"relu", "predictions"} - {layer.name for layer in model.layers}
    if missing:
        raise ValueError(f"{path}: has no layer named {sorted(missing)}; not a chexnet model")
    check_finite(path, {layer.name: layer.get_weights() for layer in model.layers})
    return model


def load_torchxrayvision(name: str) -> tuple[keras.Model, list[str]]:
    """A network of TorchXRayVision with its own head, and the names of its classes.

    Args:
        name: ``"torchxrayvision:"`` and one of the library's DenseNet-121s, such as
            ``densenet121-res224-rsna``, or the path of its ``.pt`` file. Errors are those of
            `build_chexnet`.

    Returns:
        the network, for films of 224 pixels that were not enhanced by CLAHE; its classes.

    Example:
        >>> from chexnet.model import load_torchxrayvision
        >>> load_torchxrayvision("torchxrayvision:missing.pt")
        Traceback (most recent call last):
        ...
        FileNotFoundError: weights=torchxrayvision:missing.pt: no such file
    """
    start = read_weights(name)
    if start is None or not start.head:
        raise ValueError(f"{name}: expected torchxrayvision:<name>")
    names = list(start.head)
    return build_chexnet(224, class_names=names, weights=name), names


def map_size(model: keras.Model) -> tuple[int, int]:
    """Rows and columns of the last feature map, and so of a class activation map.

    Example:
        >>> from chexnet.model import build_chexnet, map_size
        >>> map_size(build_chexnet(64, weights=None, map_stride=16))
        (4, 4)
    """
    return tuple(model.get_layer("relu").output.shape[1:3])


class _LocationLogits(keras.layers.Layer):
    """The map of each class as logits ``(N, h, w, C)``: ``scale * map + offset``.

    The map is the head's kernel applied before pooling, so its loss trains the kernel that gives
    the score. The logit of the score is the *mean* of the map, which a small opacity raises only
    with very high values; the trained scale and offset of each class separate the two. They are not
    saved.
    """

    def __init__(self, head: keras.layers.Dense, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.head = head

    def build(self, input_shape: tuple) -> None:
        classes = self.head.kernel.shape[1:]
        # At first the map unchanged, and a prior of 12 % in a box.
        self.scale = self.add_weight(shape=classes, initializer="ones", name="scale")
        start = keras.initializers.Constant(-2.0)
        self.offset = self.add_weight(shape=classes, initializer=start, name="offset")

    def call(self, features: keras.KerasTensor) -> keras.KerasTensor:
        return ops.matmul(features, self.head.kernel) * self.scale + self.offset


def with_location_output(model: keras.Model) -> keras.Model:
    """The same network with a second output, to train on boxes.

    Args:
        model: from `build_chexnet`; its layers and weights are shared.

    Returns:
        A model with outputs ``predictions``: probabilities ``(N, C)``, and ``location``: logits
        ``(N, h, w, C)``.

    Example:
        >>> from chexnet.model import build_chexnet, with_location_output
        >>> with_location_output(build_chexnet(64, weights=None)).output["location"].shape
        (None, 2, 2, 1)
    """
    features = model.get_layer("relu").output
    head = model.get_layer("predictions")
    location = _LocationLogits(head, name="location", dtype="float32")(features)
    return keras.Model(model.input, {"predictions": model.output, "location": location})


def with_outputs_for_export(model: keras.Model, *, features: bool = False) -> keras.Model:
    """A float32 copy of a network whose outputs are the score and the map, in plain layers.

    ONNX Runtime refuses the constants of ``Normalization`` (they become inputs of the graph), so
    ``Rescaling`` with the same numbers takes its place.

    Args:
        model: from `build_chexnet` or `load_chexnet`, trained in any precision.
        features: also output the mean of the last feature map, ``(N, F)``.

    Returns:
        A model with outputs ``score``: probabilities ``(N, C)``, ``map``: logits ``(N, C, h, w)``,
        and ``features`` if asked for. They are those of `chexnet.cam.exact_forward`.

    Example:
        >>> from chexnet.model import build_chexnet, with_outputs_for_export
        >>> with_outputs_for_export(build_chexnet(64, weights=None)).output["map"].shape
        (None, 1, 2, 2)
    """
    copy = keras.models.clone_model(model, clone_function=_plain_float32)
    copy.set_weights(model.get_weights())
    kernel = keras.ops.convert_to_numpy(copy.get_layer("predictions").kernel)
    evidence = layers.Conv2D(kernel.shape[1], 1, use_bias=False, name="evidence")
    last = copy.get_layer("relu").output
    outputs = {"score": copy.output, "map": layers.Permute((3, 1, 2), name="map")(evidence(last))}
    evidence.set_weights([kernel[np.newaxis, np.newaxis]])
    if features:
        outputs["features"] = layers.GlobalAveragePooling2D(name="features")(last)
    return keras.Model(copy.inputs[0], outputs)


def _plain_float32(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A copy of a layer for `with_outputs_for_export`."""
    config = layer.get_config()
    if not isinstance(layer, layers.Normalization):
        return layer.__class__.from_config(config | {"dtype": "float32"})
    mean, std = np.ravel(config["mean"]), np.sqrt(np.ravel(config["variance"]))
    numbers = {"scale": (1 / std).tolist(), "offset": (-mean / std).tolist()}
    return layers.Rescaling(**numbers, name=layer.name, dtype="float32")


def _backbone(
    image_size: int, map_stride: int, batchnorm_momentum: float, *, gray: bool
) -> keras.Model:
    film = keras.Input((image_size, image_size, 1), name="film")
    pixels = _normalized(film, gray=gray)
    backbone = keras.applications.DenseNet121(include_top=False, weights=None, input_tensor=pixels)
    if map_stride == 16:
        backbone = keras.models.clone_model(backbone, clone_function=_without_last_pooling)
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = batchnorm_momentum
            if gray:
                layer.epsilon = BATCHNORM_EPSILON
    return backbone


def _normalized(film: keras.KerasTensor, *, gray: bool) -> keras.KerasTensor:
    if gray:
        # torchxrayvision.utils.normalize: (2 * pixel / 255 - 1) * 1024. In a kernel for ImageNet's
        # three channels this would be wrong at the border, where both pad with their own zero.
        scale = 2 * 1024 / 255
        return layers.Rescaling(scale, offset=-1024, name="rescaling", dtype="float32")(film)
    scaled = layers.Rescaling(1 / 255, name="rescaling", dtype="float32")(film)
    rgb = layers.Concatenate(name="grey_to_rgb", dtype="float32")([scaled] * 3)
    statistics = {"mean": IMAGENET_MEAN, "variance": np.square(IMAGENET_STD)}
    return layers.Normalization(**statistics, name="imagenet_normalisation", dtype="float32")(rgb)


def _without_last_pooling(layer: keras.layers.Layer) -> keras.layers.Layer:
    if layer.name == "pool4_pool":
        return layers.Identity(name=layer.name)
    return layer.__class__.from_config(layer.get_config())
