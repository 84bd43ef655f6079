import keras
import numpy as np
import pytest
from keras import layers

from chexnet.cam import class_activation_map
from chexnet.model import (
    build_chexnet,
    load_chexnet,
    map_size,
    with_location_output,
)
from tests.eager import forward


def test_the_normalisation_inside_is_that_of_keras_applications(small, films):
    inside = keras.Model(small.input, small.get_layer("imagenet_normalisation").output)
    rgb = np.repeat(films, 3, axis=-1).astype("float32")
    expected = keras.applications.densenet.preprocess_input(rgb)
    assert np.abs(forward(inside, films) - expected).max() < 1e-5


def test_flat_graph(small):
    """The graph is flat and its layers have the names relied on."""
    names = [layer.name for layer in small.layers]
    assert names[0] == "film"
    assert names[-3:] == ["relu", "avg_pool", "predictions"]
    assert not any(isinstance(layer, keras.Model) for layer in small.layers)


def test_it_is_keras_densenet121_when_given_the_same_weights(small, films):
    reference = keras.applications.DenseNet121(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    backbone = keras.Model(small.input, small.get_layer("relu").output)
    reference.set_weights(backbone.get_weights())
    rgb = np.repeat(films, 3, axis=-1).astype("float32")
    expected = forward(reference, keras.applications.densenet.preprocess_input(rgb))
    np.testing.assert_allclose(forward(backbone, films), expected, atol=1e-4)


def test_saved_and_loaded_it_gives_the_same_scores_in_safe_mode(small, films, tmp_path):
    small.save(tmp_path / "model.keras")
    loaded = load_chexnet(tmp_path / "model.keras")
    np.testing.assert_allclose(forward(loaded, films), forward(small, films), atol=1e-6)
    assert loaded.get_layer("relu").output.shape == (None, 2, 2, 1024)


def test_uint8_and_float_films_score_alike(small, films):
    as_float = forward(small, films.astype("float32"))
    np.testing.assert_allclose(forward(small, films), as_float, atol=1e-6)


def test_class_names_decide_the_head():
    head = build_chexnet(32, class_names=("Pneumonia", "Effusion", "Mass"), weights=None)
    assert head.output.shape == (None, 3)
    assert head.get_layer("predictions").activation is keras.activations.sigmoid


def test_stride_16_has_twice_the_positions_and_the_same_weights(small):
    fine = build_chexnet(64, weights=None, map_stride=16)
    assert map_size(small) == (2, 2)
    assert map_size(fine) == (4, 4)
    assert [w.shape for w in fine.weights] == [w.shape for w in small.weights]


def test_batch_normalisation_forgets_its_start_within_an_epoch(small):
    momenta = {
        layer.momentum for layer in small.layers if isinstance(layer, layers.BatchNormalization)
    }
    assert momenta == {0.9}


def test_the_location_output_is_the_class_activation_map_scaled(small, films):
    both = with_location_output(small)
    out = forward(both, films)
    features = forward(keras.Model(small.input, small.get_layer("relu").output), films)
    cam = features @ small.get_layer("predictions").get_weights()[0]
    np.testing.assert_allclose(out["location"], cam - 2.0, atol=1e-4)  # scale 1, offset -2
    np.testing.assert_allclose(out["predictions"], forward(small, films), atol=1e-6)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_chexnet(tmp_path / "nowhere.keras")
    (tmp_path / "half.keras").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(ValueError, match=r"half\.keras"):
        load_chexnet(tmp_path / "half.keras")
    keras.Sequential([keras.Input((2,)), layers.Dense(1)]).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="not a chexnet model"):
        load_chexnet(tmp_path / "other.keras")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"image_size": 16}, "image_size=16"),
        ({"image_size": "64"}, "image_size='64': expected an integer >= 32"),
        ({"image_size": 64.0}, "image_size=64.0: expected an integer >= 32"),
        ({"image_size": 64, "dropout": None}, "dropout=None: expected a number >= 0 and < 1"),
        ({"image_size": 64, "class_names": "Pneumonia"}, "class_names"),
        ({"image_size": 64, "class_names": ()}, "class_names"),
        ({"image_size": 64, "map_stride": 8}, "map_stride=8"),
        ({"image_size": 64, "dropout": 1.0}, "dropout=1.0"),
        ({"image_size": 64, "batchnorm_momentum": 1.0}, "batchnorm_momentum=1.0"),
    ],
)
def test_an_impossible_architecture_is_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        build_chexnet(arguments.pop("image_size"), weights=None, **arguments)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(small, films, tmp_path, precision):
    """Mixed precision keeps weights, scores and the mean of the map in float32."""
    mixed = build_chexnet(64, weights=None, precision=precision)
    mixed.set_weights(small.get_weights())
    assert keras.config.dtype_policy().name == "float32"
    assert {weight.dtype for weight in mixed.weights} == {"float32"}
    assert mixed.get_layer("relu").compute_dtype == precision.removeprefix("mixed_")
    scores, maps = class_activation_map(mixed, films)
    logits = np.log(scores / (1 - scores))[:, 0]
    np.testing.assert_allclose(maps.mean((1, 2)), logits, atol=1e-5)  # the bias is 0
    np.testing.assert_allclose(scores, forward(small, films), atol=0.02)
    mixed.save(tmp_path / "model.keras")
    again = load_chexnet(tmp_path / "model.keras")
    np.testing.assert_allclose(forward(again, films), scores, atol=1e-6)


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="precision='float64': expected one of"):
        build_chexnet(64, weights=None, precision="float64")
