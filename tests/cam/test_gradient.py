"""Our gradient maps against those of `pytorch-grad-cam` on the same weights and films.

What it gave was recorded by ``references/make_pytorch_grad_cam.py``, in an environment of its own.
"""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from chexnet.cam import class_activation_map, upsample_map

RECORDED = Path(__file__).parents[1] / "references" / "pytorch_grad_cam.npz"
CLASSES = (0, 1)
# Names in the recording.
RECORDED_NAMES = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
}


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    with np.load(RECORDED, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model(theirs) -> keras.Model:
    """The same network in Keras, with the recorded weights."""
    film = keras.Input((24, 24, 1))
    x = layers.Conv2D(6, 3, padding="same", name="first")(film)
    x = layers.ReLU(name="below")(x)
    x = layers.AveragePooling2D(2)(x)
    x = layers.Conv2D(8, 3, padding="same", name="second")(x)
    x = layers.BatchNormalization(epsilon=1e-3, name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    model = keras.Model(film, layers.Dense(2, activation="sigmoid", name="predictions")(x))
    for layer, name, parts in (
        ("first", "first", ("weight", "bias")),
        ("second", "second", ("weight", "bias")),
        ("norm", "norm", ("weight", "bias", "running_mean", "running_var")),
        ("predictions", "head", ("weight", "bias")),
    ):
        weights = [theirs[f"weight/{name}.{part}"] for part in parts]
        model.get_layer(layer).set_weights(weights)
    return model


@pytest.fixture(scope="module")
def ours(model, theirs) -> dict[tuple[str, str], np.ndarray]:
    """Maps of every class by method and layer, ``(N, C, h, w)``."""
    return {
        (method, layer): class_activation_map(
            model, theirs["films"], method=RECORDED_NAMES[method], layer=layer, class_index=None
        )[1]
        for method in RECORDED_NAMES
        for layer in ("below", "relu")
    }


def stretched(maps: np.ndarray) -> np.ndarray:
    """Their scaling: each map to [0, 1], with their guard against a constant one."""
    maps = maps - maps.min((1, 2), keepdims=True)
    return maps / (1e-7 + maps.max((1, 2), keepdims=True))


def test_the_recording(theirs):
    """The recording says what made it and holds maps that are not all alike."""
    assert [str(theirs[f"version/{name}"]) for name in ("grad-cam", "torch", "torchvision")] == [
        "1.5.7",
        "2.15.0",
        "0.29.2",
    ]
    assert RECORDED.stat().st_size < 300_000
    for layer in ("below", "relu"):
        raw = [theirs[f"raw/{method}/{layer}/0"].ravel() for method in RECORDED_NAMES]
        alike = np.corrcoef(raw) > 0.9999
        # At the last feature map the gradient is the same everywhere, so Grad-CAM is HiResCAM.
        assert alike.sum() == len(raw) + 2 * (layer == "relu")


def test_both_frameworks_give_the_same_logits(model, theirs):
    head = model.get_layer("predictions")
    pooled = keras.Model(model.inputs[0], head.input).predict(theirs["films"], verbose=0)
    logits = pooled @ theirs["weight/head.weight"] + theirs["weight/head.bias"]
    np.testing.assert_allclose(logits, theirs["logits"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("index", CLASSES)
@pytest.mark.parametrize("layer", ["below", "relu"])
@pytest.mark.parametrize("method", RECORDED_NAMES)
def test_the_sum_over_channels_is_theirs(ours, theirs, method, layer, index):
    maps = ours[method, layer][:, index]
    expected = theirs[f"raw/{method}/{layer}/{index}"]
    size = np.abs(expected).max()
    assert size > 1e-2
    # Grad-CAM++ there adds 1e-6 to the divisor of equation 19.
    tolerance = 1e-3 if method == "gradcam++" else 1e-5
    np.testing.assert_allclose(maps, expected, atol=tolerance * size)


@pytest.mark.parametrize("index", CLASSES)
@pytest.mark.parametrize("layer", ["below", "relu"])
@pytest.mark.parametrize("method", RECORDED_NAMES)
def test_recorded_maps(ours, theirs, method, layer, index):
    """They stretch each map to [0, 1] film by film; `normalize_map` only divides by a scale."""
    maps = ours[method, layer][:, index]
    shown = stretched(upsample_map(stretched(np.maximum(maps, 0)), 24))
    expected = theirs[f"shown/{method}/{layer}/{index}"]
    np.testing.assert_allclose(shown, expected, atol=2e-3 if method == "gradcam++" else 1e-4)
