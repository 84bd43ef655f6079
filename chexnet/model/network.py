"""DenseNet121 with one sigmoid per class: its graph, its freezing and warm-up.

Layer names that the rest of the package relies on: ``film`` (input), ``relu`` (last feature map),
``avg_pool``, ``predictions`` (the head). The architecture is CheXNet's (Rajpurkar et al. 2017,
arXiv:1711.05225, section 2.1) on DenseNet121 (Huang et al. 2017, arXiv:1608.06993).
"""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from chexnet.model.weights import read_weights, set_start
from chexnet.model.xrayvision import BATCHNORM_EPSILON

# The channel statistics of ImageNet, as keras.applications.densenet.preprocess_input uses them
# ("torch" mode), for pixels in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Keras' default of 0.99 needs some 500 steps before the moving statistics have forgotten their
# start; an epoch on a few hundred films has 30.
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
    """Builds the network as one flat graph, normalisation inside.

    Args:
        image_size: side S of the square input, pixels, at least 32.
        class_names: one sigmoid output each, in this order; unique, not empty.
        weights: ``"imagenet"`` (Keras downloads them; where it cannot, a warning is given and the
            weights are random), ``None`` for random weights, the path of a ``.keras`` or
            ``.weights.h5`` file of the same architecture, or one of TorchXRayVision's:
            ``"torchxrayvision:densenet121-res224-rsna"`` (`xrayvision.NAMES` lists them)
            or ``"torchxrayvision:<path of its .pt file>"``. The last kind keeps that library's
            input scaling inside the network, on one channel, and its head for the classes of the
            same name.
        map_stride: pixels between two positions of the last feature map: 32 as published, or 16,
            for which the last transition does not pool.
        dropout: share of the pooled features dropped in training, 0 (as published) up to 1.
        batchnorm_momentum: share of the moving statistics that a step of training keeps, 0 up to 1.
        precision: Keras' dtype policy of the layers between normalisation and pooling:
            ``"float32"``, ``"mixed_bfloat16"`` or ``"mixed_float16"``. Weights, scores and the
            mean of the map stay float32.

    Returns:
        A model from uint8-valued grey films ``(N, S, S, 1)``, 0 to 255, any dtype, to
        probabilities float32 ``(N, C)``.

    Raises:
        ValueError: an argument is outside what is stated above, or the file at ``weights`` holds
            a network of another shape; every layer that differs is named.
        FileNotFoundError: there is no file at ``weights``.
        ImportError: TorchXRayVision is asked for and not installed.
        ConnectionError: TorchXRayVision cannot download the file.
    """
    shares = {"dropout": dropout, "batchnorm_momentum": batchnorm_momentum}
    _check_architecture(image_size, class_names, map_stride, shares, precision)
    start = read_weights(weights)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)  # keras.applications knows no other way
    try:
        backbone = _backbone(
            image_size, map_stride, batchnorm_momentum, grey=start is not None and start.grey
        )
    finally:
        keras.config.set_dtype_policy(policy)
    features = layers.GlobalAveragePooling2D(name="avg_pool", dtype="float32")(backbone.output)
    if dropout:
        features = layers.Dropout(dropout, name="dropout", dtype="float32")(features)
    head = layers.Dense(len(class_names), activation="sigmoid", name="predictions", dtype="float32")
    model = keras.Model(backbone.input, head(features), name="chexnet")
    if start is not None:
        set_start(model, start, class_names)
    return model


def load_chexnet(path: str | Path) -> keras.Model:
    """Reads a saved network, in Keras' safe mode (no code in the file is run).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a network saved by this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no saved model here; notebook 03 writes model.keras")
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a readable .keras model ({error})") from error
    missing = {"relu", "predictions"} - {layer.name for layer in model.layers}
    if missing:
        raise ValueError(f"{path}: has no layer named {sorted(missing)}; not a chexnet model")
    return model


def map_size(model: keras.Model) -> tuple[int, int]:
    """Rows and columns of the last feature map, and so of a class activation map."""
    return tuple(model.get_layer("relu").output.shape[1:3])


def set_backbone_trainable(model: keras.Model, trainable: bool) -> None:
    """Freezes or frees every layer below the head; compile again afterwards.

    A frozen BatchNormalization also stops updating its statistics and uses them in training, so
    the features that the head sees in its warm-up are those of inference.
    """
    for layer in model.layers:
        if layer.name != "predictions":
            layer.trainable = trainable


class LocationLogits(layers.Layer):
    """The class activation map as a logit at each position: ``scale * map + offset``.

    The map is the head's own kernel applied before pooling, so learning where teaches the same
    kernel that says whether. The image's logit is the *mean* of the map, which a small opacity
    can only raise by being very bright; the learnt scale and offset keep the two demands apart.
    Both are used in training alone and are not part of the saved network.
    """

    def __init__(self, head: layers.Dense, class_index: int, **kwargs: object) -> None:
        """Shares the kernel of ``head``, column ``class_index``."""
        super().__init__(**kwargs)
        self.head = head
        self.class_index = class_index

    def build(self, input_shape: tuple) -> None:
        """Makes the two scalars; 1 and -2: the map as it is, a prior of 12 % inside a box."""
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.offset = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(-2.0), name="offset"
        )

    def call(self, features: keras.KerasTensor) -> keras.KerasTensor:
        """Features ``(N, h, w, channels)`` to logits ``(N, h, w, 1)``."""
        column = self.head.kernel[:, self.class_index : self.class_index + 1]
        return ops.matmul(features, ops.cast(column, features.dtype)) * self.scale + self.offset

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """One logit a position."""
        return (*input_shape[:-1], 1)


def with_location_output(model: keras.Model, *, class_index: int = 0) -> keras.Model:
    """The same network with a second output to train on the radiologists' boxes.

    Args:
        model: from `build_chexnet`; all its layers and weights are shared.
        class_index: the class that the boxes belong to.

    Returns:
        A model with outputs ``{"predictions": (N, C) probabilities, "location": (N, h, w, 1)
        logits}``.
    """
    features = model.get_layer("relu").output
    head = model.get_layer("predictions")
    location = LocationLogits(head, class_index, name="location", dtype="float32")(features)
    return keras.Model(model.input, {"predictions": model.output, "location": location})


def _check_architecture(
    image_size: int,
    class_names: Sequence[str],
    map_stride: int,
    shares: dict[str, float],
    precision: str,
) -> None:
    if image_size < 32:
        raise ValueError(f"image_size={image_size}: DenseNet121 needs at least 32 pixels a side")
    if isinstance(class_names, str) or not class_names or len(set(class_names)) < len(class_names):
        raise ValueError(f"class_names={class_names!r}: allowed is a sequence of different names")
    if map_stride not in (16, 32):
        raise ValueError(f"map_stride={map_stride}: allowed are 16 and 32")
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}={share}: allowed is 0 <= {name} < 1")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: allowed are {PRECISIONS}")


def _backbone(
    image_size: int, map_stride: int, batchnorm_momentum: float, *, grey: bool
) -> keras.Model:
    film = keras.Input((image_size, image_size, 1), name="film")
    backbone = keras.applications.DenseNet121(
        include_top=False,
        weights=None,
        input_tensor=_scaled_as_torchxrayvision(film) if grey else _normalised_as_imagenet(film),
    )
    if map_stride == 16:
        backbone = keras.models.clone_model(backbone, clone_function=_without_last_pooling)
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = batchnorm_momentum
            if grey:
                layer.epsilon = BATCHNORM_EPSILON
    return backbone


def _normalised_as_imagenet(film: keras.KerasTensor) -> keras.KerasTensor:
    grey = layers.Rescaling(1 / 255, name="rescaling", dtype="float32")(film)
    rgb = layers.Concatenate(name="grey_to_rgb", dtype="float32")([grey, grey, grey])
    return layers.Normalization(
        mean=IMAGENET_MEAN,
        variance=np.square(IMAGENET_STD),
        name="imagenet_normalisation",
        dtype="float32",
    )(rgb)


def _scaled_as_torchxrayvision(film: keras.KerasTensor) -> keras.KerasTensor:
    # torchxrayvision.utils.normalize: (2 * pixel / 255 - 1) * 1024. Folding this into a kernel for
    # ImageNet's three channels would be wrong at the border, where both pad with their own zero.
    return layers.Rescaling(2 * 1024 / 255, offset=-1024, name="rescaling", dtype="float32")(film)


def _without_last_pooling(layer: layers.Layer) -> layers.Layer:
    if layer.name == "pool4_pool":
        return layers.Identity(name=layer.name)
    return layer.__class__.from_config(layer.get_config())
