import gc
import weakref

import keras
import numpy as np
import pytest
from keras import layers

from chexnet.cam import (
    METHODS,
    class_activation_map,
    exact_forward,
    normalize_map,
    upsample_map,
)
from chexnet.model import build_chexnet, load_chexnet

CLASSES = 3


def small_model(seed: int = 0, **head) -> keras.Model:
    keras.utils.set_random_seed(seed)
    film = keras.Input((32, 32, 1))
    x = layers.Rescaling(1 / 255)(film)
    x = layers.Conv2D(6, 3, strides=4, padding="same", activation="relu", name="below")(x)
    x = layers.Conv2D(5, 3, strides=2, padding="same", name="conv")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dropout(0.5, name="dropout")(x)
    x = layers.Dense(CLASSES, activation="sigmoid", name="predictions", **head)(x)
    model = keras.Model(film, x, name="small")
    model.get_layer("predictions").bias.assign(np.array([-0.5, 0.25, 1.0]))
    return model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def films():
    return np.random.default_rng(0).integers(0, 256, (7, 32, 32, 1), dtype=np.uint8)


def logits(scores: np.ndarray) -> np.ndarray:
    return np.log(scores) - np.log1p(-scores)


def bias_of(model: keras.Model) -> np.ndarray:
    return keras.ops.convert_to_numpy(model.get_layer("predictions").bias)


def test_mean_of_the_map_is_the_logit(model, films):
    """The mean of the map plus the bias is the logit of each class."""
    scores, maps = class_activation_map(model, films, class_index=None)
    assert maps.shape == (7, CLASSES, 4, 4)
    np.testing.assert_allclose(maps.mean((2, 3)) + bias_of(model), logits(scores), atol=1e-4)


def test_the_identity_holds_for_densenet_after_save_and_load(tmp_path):
    # Never again, 5: class_weights[index] took a row of the kernel for a column of it.
    keras.utils.set_random_seed(1)
    build_chexnet(64, class_names=("a", "b"), weights=None).save(tmp_path / "model.keras")
    model = load_chexnet(tmp_path / "model.keras")
    model.get_layer("predictions").bias.assign(np.array([0.7, -2.0]))
    films = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 1), dtype=np.uint8)
    scores, maps, _ = exact_forward(model)(films)
    assert maps.shape == (2, 2, 2, 2)
    np.testing.assert_allclose(maps.mean((2, 3)) + bias_of(model), logits(scores), atol=1e-4)


def test_map_by_hand(model, films):
    """The map is the sum over channels of feature times kernel, worked by hand."""
    features = keras.Model(model.inputs[0], model.get_layer("relu").output).predict(
        films, verbose=0
    )
    kernel = keras.ops.convert_to_numpy(model.get_layer("predictions").kernel)
    expected = sum(features[..., channel] * kernel[channel, 2] for channel in range(5))
    maps = class_activation_map(model, films, class_index=2)[1]
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_scores_are_those_of_the_model(model, films):
    """Scores are those of the model for every class, whichever is mapped."""
    scores, maps = class_activation_map(model, films, class_index=1)
    np.testing.assert_allclose(scores, model.predict(films, verbose=0), atol=1e-6)
    assert scores.dtype == maps.dtype == np.float32
    assert scores.shape == (7, CLASSES)
    assert maps.shape == (7, 4, 4)


def test_an_opacity_that_moves_down_the_film_moves_down_the_map(model):
    # Rows and columns are told apart only where the opacity is off the diagonal.
    films = np.zeros((2, 32, 32, 1), np.uint8)
    films[0, 26:30, 2:6] = 255
    films[1, 2:6, 26:30] = 255
    maps = class_activation_map(model, films, class_index=0)[1]
    nothing = class_activation_map(model, np.zeros_like(films[:1]), class_index=0)[1][0]
    changed = np.abs(maps - nothing).reshape(2, 2, 2, 2, 2).sum((2, 4))  # quarters of the film
    assert changed[0, 1, 0] > 0.9 * changed[0].sum() > 0
    assert changed[1, 0, 1] > 0.9 * changed[1].sum() > 0


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_result_does_not_depend_on_the_batch_size(model, films, batch_size):
    expected = class_activation_map(model, films)
    found = class_activation_map(model, films, batch_size=batch_size)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


class Sequence(keras.utils.PyDataset):
    """Batches of three films and their labels, the last one shorter."""

    def __init__(self, films):
        super().__init__()
        self.films = films

    def __len__(self):
        return -(-len(self.films) // 3)

    def __getitem__(self, index):
        x = self.films[3 * index : 3 * index + 3]
        return x, np.zeros((len(x), CLASSES), np.float32)


def test_sequence_of_batches(model, films):
    """A sequence of batches gives what its films as one array give."""
    for one, other in zip(
        class_activation_map(model, Sequence(films)),
        class_activation_map(model, films),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_shorter_last_batch(films):
    """The shorter last batch is not a new shape to compile for."""
    model, shapes = small_model(), []
    below = model.get_layer("relu")
    call = below.call
    below.call = lambda x: shapes.append(tuple(x.shape)) or call(x)
    class_activation_map(model, films, batch_size=3)
    traced = set(shapes)
    class_activation_map(model, films, batch_size=3)
    assert 1 <= len(traced) <= 2  # the symbolic one of the graph, and that of the full batch
    assert set(shapes) == traced


def test_it_follows_weights_that_change_after_the_first_call(films):
    model = small_model()
    before = class_activation_map(model, films)
    head = model.get_layer("predictions")
    head.set_weights([-array for array in head.get_weights()])
    scores, maps = class_activation_map(model, films)
    np.testing.assert_allclose(maps, -before[1], atol=1e-6)
    np.testing.assert_allclose(scores, 1 - before[0], atol=1e-6)


def test_model_is_left_as_it_was(films):
    """It leaves the model as it was and does not keep it alive."""
    model = small_model()
    weights, names = model.get_weights(), [layer.name for layer in model.layers]
    class_activation_map(model, films)
    assert [layer.name for layer in model.layers] == names
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None


def test_mixed_precision(films):
    """A model in mixed precision still gives maps whose mean is the logit."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_model(dtype="float32")
    finally:
        keras.config.set_dtype_policy("float32")
    scores, maps = class_activation_map(model, films)
    assert maps.dtype == np.float32
    # The model rounds the mean of its features to bfloat16 (8 bits); the map does not.
    np.testing.assert_allclose(maps.mean((1, 2)) - 0.5, logits(scores)[:, 0], atol=1e-2)


def test_missing_layers():
    """A model without the named layers is refused with their names."""
    film = keras.Input((8, 8, 1))
    other = keras.Model(film, layers.Dense(1, name="predictions")(layers.Flatten()(film)))
    with pytest.raises(ValueError, match=r"no layer named \['relu', 'avg_pool'\]"):
        class_activation_map(other, np.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize("index", [-1, CLASSES])
def test_a_class_that_the_head_does_not_have_is_refused(model, films, index):
    with pytest.raises(ValueError, match=f"class_index={index}: expected an integer from 0 to 2"):
        class_activation_map(model, films, class_index=index)


@pytest.mark.parametrize("shape", [(0, 32, 32, 1), (2, 32, 32), (2, 32, 31, 1), (2, 32, 32, 3)])
def test_films_of_another_shape_are_refused_with_both_shapes(model, shape):
    with pytest.raises(ValueError, match=r"images has shape .*expected \(N, \*\(32, 32, 1\)\)"):
        class_activation_map(model, np.zeros(shape, np.uint8))
    if shape[0]:
        with pytest.raises(ValueError, match="images has shape"):
            class_activation_map(model, [np.zeros(shape, np.uint8)])


def test_no_batches_and_no_batch_size_are_refused(model, films):
    with pytest.raises(ValueError, match="at least one film"):
        class_activation_map(model, [])
    with pytest.raises(ValueError, match="batch_size=0"):
        class_activation_map(model, films, batch_size=0)


@pytest.mark.parametrize("method", ["Grad-CAM", "HiResCAM"])
def test_gradcam_and_hirescam_of_the_last_layer(model, films, method):
    # For global average pooling and a linear head the gradient is kernel / (h w) everywhere.
    """CAM is Grad-CAM and HiResCAM times the number of positions."""
    scores, exact = class_activation_map(model, films, class_index=None)
    again, maps = class_activation_map(model, films, class_index=None, method=method, layer="relu")
    np.testing.assert_allclose(maps * 16, exact, atol=1e-5)
    np.testing.assert_allclose(again, scores, atol=1e-6)


def test_layercam_keeps_the_channels_that_speak_for_the_class(model, films):
    features = keras.Model(model.inputs[0], model.get_layer("relu").output).predict(
        films, verbose=0
    )
    kernel = keras.ops.convert_to_numpy(model.get_layer("predictions").kernel)
    maps = class_activation_map(model, films, class_index=1, method="LayerCAM", layer="relu")[1]
    np.testing.assert_allclose(maps, features @ np.maximum(kernel[:, 1], 0) / 16, atol=1e-5)


def test_gradcam_plus_plus_follows_equation_19(model, films):
    features = keras.Model(model.inputs[0], model.get_layer("relu").output).predict(
        films, verbose=0
    )
    kernel = keras.ops.convert_to_numpy(model.get_layer("predictions").kernel)
    expected = np.zeros((7, 4, 4))
    for channel in range(5):
        gradient = kernel[channel, 0] / 16
        if gradient > 0:  # the same at every position, so is alpha
            total = features[..., channel].sum((1, 2))
            alpha = gradient**2 / (2 * gradient**2 + total * gradient**3)
            weight = 16 * alpha * gradient
            expected += weight[:, None, None] * features[..., channel]
    maps = class_activation_map(model, films, class_index=0, method="Grad-CAM++", layer="relu")[1]
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "CAM"])
def test_a_layer_further_down_gives_a_finer_map(model, films, method):
    scores, maps = class_activation_map(model, films, method=method, layer="below")
    assert maps.shape == (7, 8, 8)
    assert maps.dtype == scores.dtype == np.float32
    np.testing.assert_allclose(scores, model.predict(films, verbose=0), atol=1e-6)


def test_the_gradient_at_a_lower_layer_is_that_of_a_small_step(model, films):
    # HiResCAM sums to the derivative of the logit along the features; taken here by hand.
    below = keras.Model(model.inputs[0], model.get_layer("below").output)
    above = keras.Model(model.get_layer("below").output, model.output)
    features = below.predict(films, verbose=0).astype(np.float64)
    step = 1e-2
    up, down = (
        logits(above.predict((features * factor).astype(np.float32), verbose=0).astype(np.float64))
        for factor in (1 + step, 1 - step)
    )
    expected = (up - down)[:, 0] / (2 * step)
    maps = class_activation_map(model, films, method="HiResCAM", layer="below")[1]
    np.testing.assert_allclose(maps.sum((1, 2)), expected, atol=2e-2, rtol=2e-2)


def test_unknown_method_or_layer(model, films):
    """An unknown method and a layer that cannot be mapped are refused."""
    with pytest.raises(ValueError, match=r"method='scorecam': expected one of \['CAM', 'HiR"):
        class_activation_map(model, films, method="scorecam")
    with pytest.raises(ValueError, match="layer='below': expected 'relu'"):
        class_activation_map(model, films, layer="below")
    for layer in ("nowhere", "avg_pool"):
        with pytest.raises(ValueError, match=f"layer='{layer}': expected the name"):
            class_activation_map(model, films, method="Grad-CAM", layer=layer)


def test_a_layer_that_part_of_the_network_goes_round_is_refused():
    film = keras.Input((8, 8, 1))
    one = layers.Conv2D(2, 1, name="one")(film)
    both = layers.Concatenate()([one, layers.Conv2D(2, 1)(film)])
    pooled = layers.GlobalAveragePooling2D(name="avg_pool")(layers.ReLU(name="relu")(both))
    model = keras.Model(film, layers.Dense(1, "sigmoid", name="predictions")(pooled))
    with pytest.raises(ValueError, match="layer='one': part of the network bypasses"):
        class_activation_map(model, np.ones((1, 8, 8, 1)), method="Grad-CAM", layer="one")


def test_a_map_enlarged_to_the_film_keeps_rows_and_columns_apart():
    # Never again, 6: (h, w) handed on as (w, h).
    larger = upsample_map(np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), (40, 90))
    assert larger.shape == (40, 90)
    assert larger.dtype == np.float32
    np.testing.assert_allclose(larger, np.broadcast_to(larger[0], (40, 90)))
    np.testing.assert_allclose(larger[0, [0, 44, 45, 89]].reshape(2, 2).mean(1), [0.5, 1.5], 0.02)


def test_upsampling_by_hand():
    # Two cells of two pixels: centres at 1 and 3, pixels at 0.5, 1.5, 2.5, 3.5.
    """Bilinear values are those worked by hand with positions at cell centers."""
    np.testing.assert_allclose(upsample_map([[0.0, 4.0]], (1, 4)), [[0, 1, 3, 4]])


def test_upsampling_many_maps():
    """Many maps are enlarged at once and a map of its own size is unchanged."""
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    assert upsample_map(maps, 8).shape == (2, 3, 8, 8)
    np.testing.assert_array_equal(upsample_map(maps, (4, 5)), maps)


def test_something_that_is_no_map_or_no_size_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        upsample_map(np.zeros(3), 8)
    with pytest.raises(ValueError, match="size=0"):
        upsample_map(np.zeros((3, 3)), 0)


def test_normalized_map():
    """A normalized map is its positive part divided by its maximum."""
    np.testing.assert_allclose(
        normalize_map(np.array([[-3.0, 0.0], [1.0, 4.0]])), [[0, 0], [0.25, 1]]
    )
    assert normalize_map(np.array([[1]])).dtype == np.float32


def test_a_map_without_positive_values_is_zero_everywhere():
    # Never again, 6: dividing by the maximum made the least negative spot the hottest.
    assert not normalize_map(np.array([[-3.0, -0.1], [-2.0, -5.0]])).any()
    assert not normalize_map(np.zeros((2, 2))).any()


def test_common_scale():
    """A common scale keeps films comparable and stays below one."""
    strong, weak = np.array([[-1.0, 8.0]]), np.array([[0.5, 2.0]])
    np.testing.assert_allclose(normalize_map(strong, scale=4), [[0, 1]])
    np.testing.assert_allclose(normalize_map(weak, scale=4), [[0.125, 0.5]])
    with pytest.raises(ValueError, match="scale=0"):
        normalize_map(weak, scale=0)
