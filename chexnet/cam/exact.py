"""Class activation maps: where on a film the evidence for a class lies.

The class activation map of Zhou et al. 2016 (arXiv:1512.04150, equation 2) is exact for this
network: the head is linear in the mean of the last feature maps, so applying the head's kernel
*before* the mean gives a map whose mean, plus the bias, is the logit. The gradient-based methods
are for layers below the last one.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from chexnet.files import check_number

if TYPE_CHECKING:
    from chexnet.backend import keras

# Each method and the layer that it maps by default. At the last layer, "relu", Grad-CAM is the
# exact map times a positive number, because the head is linear in the mean. The gradient methods
# therefore map layers below it, which show more detail but are further from the decision. The
# whole network passes through each of these layers.
METHODS = {
    "CAM": "relu",
    "HiResCAM": "pool4_pool",
    "Grad-CAM": "pool3_pool",
    "Grad-CAM++": "pool3_pool",
    "LayerCAM": "pool2_pool",
}

# For each model, a model with the scores and the last features as outputs, so that a second call
# does not compile again. An entry goes when its model goes.
_with_features: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


# Like a ``keras.utils.PyDataset``: a batch is ``x``, or a tuple that begins with ``x``.
Batches = Sequence[np.ndarray | tuple]
# Films (N, S, S, 1) to scores (N, C), maps (N, C, h, w) and features (N, F).
Forward = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def class_activation_map(
    model: "keras.Model",
    images: np.ndarray | Batches,
    *,
    class_index: int | None = 0,
    batch_size: int = 32,
    method: str = "CAM",
    layer: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores films and maps the evidence for a class.

    Args:
        model: a flat graph with layers ``relu`` (last feature map, channels last), ``avg_pool``
            and ``predictions`` (a Dense layer on the mean of the features).
        images: uint8-valued films ``(N, S, S, 1)``, 0 to 255; or their batches in order (a
            ``keras.utils.PyDataset`` that does not shuffle or augment).
        class_index: column of the head, 0 to C - 1; ``None`` maps every class.
        batch_size: films per forward pass; ignored where ``images`` are batches already.
        method: ``"CAM"``, exact, from the head's kernel; or a method that weights features by the
            gradient of the logit: ``"Grad-CAM"`` (Selvaraju et al. 2017, arXiv:1610.02391, eq.
            1-2), ``"Grad-CAM++"`` (Chattopadhyay et al. 2018, arXiv:1710.11063, eq. 19 and 14),
            ``"LayerCAM"`` (Jiang et al. 2021, doi:10.1109/TIP.2021.3089943, eq. 6-8),
            ``"HiResCAM"`` (Draelos and Carin 2020, arXiv:2011.08891, eq. 4). Maps are returned
            before the method's final ReLU, so no sign is lost.
        layer: the features to map; ``None`` takes the method's layer in `METHODS`. ``"CAM"`` is
            defined for ``"relu"`` only. For the others everything after the layer must depend on
            the layer alone.

    Returns:
        scores float32 ``(N, C)``, probabilities 0 to 1, of every class; and raw maps float32
        ``(N, h, w)``, or ``(N, C, h, w)`` with ``class_index=None``. For ``"CAM"`` they are in
        logits: ``maps.mean((1, 2)) + bias[class_index]`` is the logit of the score.

    Raises:
        ValueError: the model lacks a layer, or an argument is not as described above.

    Example:
        >>> import numpy as np
        >>> from chexnet.cam import class_activation_map
        >>> from chexnet.model import build_chexnet
        >>> model = build_chexnet(32, weights=None)
        >>> scores, maps = class_activation_map(model, np.zeros((2, 32, 32, 1)))
        >>> scores.shape, maps.shape
        ((2, 1), (2, 1, 1))
    """
    classes = _check_head(model)
    if class_index is not None:
        check_number("class_index", class_index, integer=True, least=0, most=classes - 1)
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {list(METHODS)}")
    if method == "CAM" and layer not in (None, "relu"):
        raise ValueError(f"layer={layer!r}: expected 'relu' for method='CAM'")
    columns = list(range(classes)) if class_index is None else [class_index]
    if method == "CAM":
        scores, maps, _ = score_films(model, images, batch_size=batch_size)
        maps = maps[:, columns]
    else:
        from chexnet.cam.gradient import gradient_forward

        forward = gradient_forward(model, layer or METHODS[method], method, columns)
        scores, maps = _in_batches(forward, images, batch_size, model.input_shape[1:])
    return scores, maps if class_index is None else maps[:, 0]


def score_films(
    model: "keras.Model", images: np.ndarray | Batches, *, batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores films, maps every class by ``"CAM"``, and returns the features as well.

    Arguments and errors are those of `class_activation_map`.

    Returns:
        all float32: scores ``(N, C)``; maps ``(N, C, h, w)``; features ``(N, F)``, the mean of the
        last feature maps.

    Example:
        >>> import numpy as np
        >>> from chexnet.cam import score_films
        >>> from chexnet.model import build_chexnet
        >>> model = build_chexnet(32, weights=None)
        >>> scores, maps, features = score_films(model, np.zeros((2, 32, 32, 1)))
        >>> features.shape
        (2, 1024)
    """
    scores, maps, features = _in_batches(
        exact_forward(model), images, batch_size, model.input_shape[1:]
    )
    return scores, maps, features


def _check_head(model: "keras.Model") -> int:
    """Number of classes of a model whose head the exact map is defined for."""
    names = {one.name for one in model.layers}
    missing = [name for name in ("relu", "avg_pool", "predictions") if name not in names]
    if missing:
        raise ValueError(
            f"model {model.name!r} has no layer named {missing}; expected a model whose last "
            "feature map is 'relu', then 'avg_pool', then the Dense layer 'predictions'"
        )
    features = model.get_layer("relu").output.shape
    kernel = tuple(model.get_layer("predictions").kernel.shape)
    if len(features) != 4 or features[-1] != kernel[0]:
        raise ValueError(
            f"model {model.name!r}: the output of 'relu' has shape {features} and the kernel of "
            f"'predictions' {kernel}; expected (N, h, w, channels) and (channels, classes)"
        )
    return kernel[1]


def exact_forward(model: "keras.Model") -> Forward:
    """`score_films` for one batch, ``(N, S, S, 1)``; each new N is compiled.

    Example:
        >>> import numpy as np
        >>> from chexnet.cam import exact_forward
        >>> from chexnet.model import build_chexnet
        >>> forward = exact_forward(build_chexnet(32, weights=None))
        >>> scores, maps, features = forward(np.zeros((2, 32, 32, 1)))
        >>> maps.shape
        (2, 1, 1, 1)
    """
    # Imported here: figures and the explorer use the geometry of maps without a model.
    from chexnet.backend import keras

    _check_head(model)
    head = model.get_layer("predictions")
    if model not in _with_features:
        outputs = [head.output, model.get_layer("relu").output]
        _with_features[model] = keras.Model(model.inputs[0], outputs)
    kernel = keras.ops.convert_to_numpy(head.kernel).astype(np.float32)

    def forward(films: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores, features = _with_features[model].predict_on_batch(films)
        features = features.astype(np.float32)
        maps = np.moveaxis(features @ kernel, -1, 1)
        return scores.astype(np.float32), maps, features.mean((1, 2))

    return forward


def _in_batches(
    forward: Callable, images: np.ndarray | Batches, batch_size: int, film_shape: tuple
) -> tuple[np.ndarray, ...]:
    if hasattr(images, "shape"):
        check_number("batch_size", batch_size, integer=True, least=1)
        images = _check_films(images, film_shape)
        images = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    if not len(images):
        raise ValueError("images: no batches; expected at least one film")
    outputs, full = [], 0
    for index in tqdm(range(len(images)), desc="maps", unit=" batches", delay=2):
        batch = images[index]
        films = _check_films(batch[0] if isinstance(batch, tuple | list) else batch, film_shape)
        count, full = len(films), max(full, len(films))
        # The last batch is filled up: another shape would compile the network once more.
        padding = [(0, full - count)] + [(0, 0)] * (films.ndim - 1)
        arrays = forward(np.pad(films, padding))
        outputs.append([np.asarray(array, np.float32)[:count] for array in arrays])
    return tuple(map(np.concatenate, zip(*outputs, strict=True)))


def _check_films(films: object, film_shape: tuple) -> np.ndarray:
    array = np.asarray(films)
    fits = array.ndim == len(film_shape) + 1 and all(
        side in (None, given) for side, given in zip(film_shape, array.shape[1:], strict=True)
    )
    if not fits or not len(array):
        raise ValueError(f"images has shape {array.shape}: expected (N, *{film_shape}), N > 0")
    return array
