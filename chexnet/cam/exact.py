"""Class activation maps: where on a film the evidence for a class lies.

The class activation map of Zhou et al. 2016 (arXiv:1512.04150, equation 2) is exact for this
network: the head is linear in the mean of the last feature maps, so applying the head's kernel
*before* the mean gives a map whose mean, plus the bias, is the logit. The gradient-based methods
are for layers further down.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from tqdm.auto import tqdm

from chexnet.cam.gradient import GRADIENT_METHODS, gradient_forward

if TYPE_CHECKING:
    import keras


# One network with two outputs for each model asked about, so that a second call does not compile
# again; it goes when the model goes.
_two_output_models: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


class Batches(Protocol):
    """What a ``keras.utils.PyDataset`` is: batch k is ``x``, or a tuple that begins with ``x``."""

    def __len__(self) -> int:
        """Number of batches."""

    def __getitem__(self, index: int) -> np.ndarray | tuple:
        """Batch ``index``."""


def class_activation_map(
    model: "keras.Model",
    images: np.ndarray | Batches,
    *,
    class_index: int | None = 0,
    batch_size: int = 32,
    method: str = "cam",
    layer: str = "relu",
) -> tuple[np.ndarray, np.ndarray]:
    """Scores films and maps the evidence for a class, both from one forward pass.

    Args:
        model: a flat graph with layers ``relu`` (last feature map, channels last), ``avg_pool``
            and ``predictions`` (a Dense layer on the mean of the features).
        images: uint8-valued films ``(N, S, S, 1)``, 0 to 255; or their batches in order (a
            ``keras.utils.PyDataset`` that does not shuffle or augment).
        class_index: column of the head, 0 to C - 1; ``None`` maps every class.
        batch_size: films in one pass; not used where ``images`` are batches already.
        method: ``"cam"``, exact, from the head's kernel; or one that weighs features by the
            gradient of the logit: ``"gradcam"`` (arXiv:1610.02391, eq. 1-2), ``"gradcam++"``
            (arXiv:1710.11063, eq. 19 and 14), ``"layercam"`` (Jiang et al. 2021,
            doi:10.1109/TIP.2021.3089943, eq. 6-8), ``"hirescam"`` (arXiv:2011.08891, eq. 4).
            Each is given before its final ReLU, which `heat` applies, so no sign is lost.
        layer: the features to map; ``"cam"`` allows ``"relu"`` only. For the others everything
            after the layer must depend on the layer alone (``pool3_pool`` and ``pool4_pool`` do).

    Returns:
        scores float32 ``(N, C)``, probabilities 0 to 1, of every class; and raw maps float32
        ``(N, h, w)``, or ``(N, C, h, w)`` with ``class_index=None``. For ``"cam"`` they are in
        logits: ``maps.mean((1, 2)) + bias[class_index]`` is the logit of the score.

    Raises:
        ValueError: the model lacks a layer, or an argument is outside what is stated above.
    """
    classes = _check_head(model)
    if class_index is not None and not 0 <= class_index < classes:
        raise ValueError(
            f"class_index={class_index}: the head has {classes} classes, so 0 to {classes - 1} "
            "or None are allowed"
        )
    if method not in ("cam", *GRADIENT_METHODS):
        raise ValueError(f"method={method!r}: allowed are 'cam', {str(GRADIENT_METHODS)[1:-1]}")
    if method == "cam" and layer != "relu":
        raise ValueError(f"layer={layer!r}: method='cam' is defined for layer 'relu' only")
    wanted = list(range(classes)) if class_index is None else [class_index]
    if method == "cam":
        forward = _exact_forward(model, classes, wanted)
    else:
        forward = gradient_forward(model, layer=layer, method=method, class_indices=wanted)
    scores, maps = _in_batches(forward, images, batch_size, model.input_shape)
    return scores, maps if class_index is None else maps[:, 0]


def _check_head(model: "keras.Model") -> int:
    names = {one.name for one in model.layers}
    missing = [name for name in ("relu", "avg_pool", "predictions") if name not in names]
    if missing:
        raise ValueError(
            f"model {model.name!r} has no layer named {missing}; allowed are models whose last "
            "feature map is 'relu', then 'avg_pool', then the Dense layer 'predictions'"
        )
    features = model.get_layer("relu").output.shape
    kernel = tuple(model.get_layer("predictions").kernel.shape)
    if len(features) != 4 or features[-1] != kernel[0]:
        raise ValueError(
            f"model {model.name!r}: layer 'relu' gives {features} and the kernel of 'predictions' "
            f"is {kernel}; allowed are (N, h, w, channels) and (channels, classes)"
        )
    return kernel[1]


def _exact_forward(model: "keras.Model", classes: int, wanted: list[int]) -> Callable:
    # Imported here: figures and the explorer use upsample_map and heat without a model, and
    # loading Keras takes longer than drawing the results figure.
    import keras

    head = model.get_layer("predictions")
    if model not in _two_output_models:
        # A Dense layer acts on the last axis, so on a feature map it is the head at each position.
        at_each_position = keras.layers.Dense(classes, use_bias=False, dtype="float32")
        maps = at_each_position(model.get_layer("relu").output)
        both = keras.Model(model.inputs[0], [head.output, maps])
        _two_output_models[model] = both, at_each_position
    both, at_each_position = _two_output_models[model]
    # A copy: JAX refuses a network in which two variables share one buffer.
    at_each_position.set_weights([np.array(keras.ops.convert_to_numpy(head.kernel))])

    def forward(films: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, maps = both.predict_on_batch(films)
        return scores, np.moveaxis(maps[..., wanted], -1, 1)  # (n, h, w, C) to (n, C, h, w)

    return forward


def _in_batches(
    forward: Callable, images: np.ndarray | Batches, batch_size: int, input_shape: tuple
) -> tuple[np.ndarray, np.ndarray]:
    if hasattr(images, "shape"):
        _check_films(images, input_shape)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: allowed is 1 or more")
        starts = range(0, len(images), batch_size)
        batches: Sequence = [images[start : start + batch_size] for start in starts]
    else:
        batches = images
    if not len(batches):
        raise ValueError("images: none given; at least one film is needed")
    scores, maps, full = [], [], 0
    # Shown only where there is something to wait for.
    with tqdm(desc="maps", unit=" films", delay=2) as bar:
        for index in range(len(batches)):
            films = batches[index]
            films = np.asarray(films[0] if isinstance(films, tuple | list) else films)
            _check_films(films, input_shape)
            count, full = len(films), max(full, len(films))
            # The last batch is filled up: another shape would compile the network once more.
            padding = [(0, full - count)] + [(0, 0)] * (films.ndim - 1)
            batch_scores, batch_maps = forward(np.pad(films, padding))
            scores.append(np.asarray(batch_scores, np.float32)[:count])
            maps.append(np.asarray(batch_maps, np.float32)[:count])
            bar.total = full * (len(batches) - 1) + (count if index else full)
            bar.update(count)
    return np.concatenate(scores), np.concatenate(maps)


def _check_films(films: np.ndarray, input_shape: tuple) -> None:
    wanted = tuple(input_shape[1:])
    fits = len(films.shape) == len(wanted) + 1 and all(
        w in (None, f) for w, f in zip(wanted, films.shape[1:], strict=True)
    )
    if not fits or not len(films):
        raise ValueError(f"images has shape {tuple(films.shape)}: allowed is (N, *{wanted}), N > 0")


# Method and layer by name. Grad-CAM at the last layer would be the exact map times a positive
# number, for the head is linear in the mean; so the others look at layers below it, which see more
# detail and less of what it means. Every layer here is one that the whole network passes through.
METHODS = {
    "CAM": ("cam", "relu"),
    "HiResCAM": ("hirescam", "pool4_pool"),
    "Grad-CAM": ("gradcam", "pool3_pool"),
    "LayerCAM": ("layercam", "pool2_pool"),
}
