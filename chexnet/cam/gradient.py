"""Gradient-based class activation maps, for layers below the one where the exact map is defined.

Each weights the features of a layer by the gradient of a class's logit and sums over channels. The
papers are named in `chexnet.cam.class_activation_map`.
"""

import weakref
from collections.abc import Callable, Sequence

import numpy as np

from chexnet.backend import keras

# For each model and layer, the network below and above the layer, so that a second call does not
# compile again. An entry goes when its model goes.
_halves: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def gradient_forward(
    model: keras.Model, layer: str, method: str, class_indices: Sequence[int]
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns a function from films ``(n, S, S, 1)`` to all scores and the maps of some classes.

    Scores are float32 ``(n, C)``, maps ``(n, len(class_indices), h, w)``, before the final ReLU.
    """
    head = model.get_layer("predictions")
    below, above = _split_at(model, layer)

    def logits_of(values: object) -> object:
        pooled = keras.ops.cast(above(values, training=False), "float32")
        return keras.ops.matmul(pooled, head.kernel) + head.bias

    def forward(films: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        activations = below.predict_on_batch(films).astype(np.float32)
        logits, gradients = _logits_and_gradients(logits_of, activations, class_indices)
        maps = [_weight_features(method, activations, gradient) for gradient in gradients]
        return keras.ops.convert_to_numpy(head.activation(logits)), np.stack(maps, axis=1)

    return forward


def _split_at(model: keras.Model, layer: str) -> tuple[keras.Model, keras.Model]:
    """The network from films to the layer's features, and from those to the head's input."""
    known = _halves.setdefault(model, {})
    if layer in known:
        return known[layer]
    features = next((one.output for one in model.layers if one.name == layer), None)
    if features is None or len(features.shape) != 4:
        raise ValueError(
            f"layer={layer!r}: expected the name of a layer of model {model.name!r} with an "
            "output (N, h, w, channels)"
        )
    below = keras.Model(model.inputs[0], features)
    try:
        above = keras.Model(features, model.get_layer("predictions").input)
    except ValueError as error:
        raise ValueError(
            f"layer={layer!r}: part of the network bypasses this layer; expected a layer that "
            "everything passes through, such as 'pool3_pool', 'pool4_pool' and 'relu'"
        ) from error
    known[layer] = below, above
    return below, above


def _logits_and_gradients(
    logits_of: Callable, activations: np.ndarray, columns: Sequence[int]
) -> tuple[object, list[np.ndarray]]:
    """Logits ``(n, C)`` as a tensor, and d logit[c] / d activations ``(n, h, w, channels)``."""
    if keras.backend.backend() == "jax":
        import jax

        logits, pull_back = jax.vjp(logits_of, keras.ops.convert_to_tensor(activations))
        units = np.eye(logits.shape[1], dtype=np.float32)
        pulled = [pull_back(jax.numpy.zeros_like(logits) + units[c])[0] for c in columns]
    elif keras.backend.backend() == "torch":
        import torch

        values = keras.ops.convert_to_tensor(activations).requires_grad_()
        with torch.enable_grad():
            logits = logits_of(values)
            pulled = [
                torch.autograd.grad(logits[:, c].sum(), values, retain_graph=True)[0]
                for c in columns
            ]
        logits = logits.detach()
    else:
        import tensorflow as tf

        values = tf.convert_to_tensor(activations)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(values)
            logits = logits_of(values)
            wanted = [logits[:, c] for c in columns]
        pulled = [tape.gradient(one, values) for one in wanted]
    return logits, [keras.ops.convert_to_numpy(one) for one in pulled]


def _weight_features(method: str, activations: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """One map ``(n, h, w)`` from activations and gradients ``(n, h, w, channels)``."""
    if method == "HiResCAM":
        weights = gradients
    elif method == "LayerCAM":
        weights = np.maximum(gradients, 0)
    elif method == "Grad-CAM":
        weights = gradients.mean((1, 2), keepdims=True)
    else:
        # Grad-CAM++, equation 19 for the exponentiated score, as in the paper: every derivative is
        # then a power of the first.
        total = activations.sum((1, 2), keepdims=True)
        below = 2 * gradients**2 + total * gradients**3
        share = np.divide(gradients**2, below, out=np.zeros_like(below), where=below != 0)
        weights = (share * np.maximum(gradients, 0)).sum((1, 2), keepdims=True)
    return (weights * activations).sum(-1)
