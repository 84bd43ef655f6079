import warnings

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from keras.src.applications import densenet
from keras.src.legacy.saving import legacy_h5_format

from chexnet.model import build_chexnet, weights_in_reach
from chexnet.model import weights as weights_module
from chexnet.model.weights import read_weights
from tests.eager import forward


def test_no_weights_is_no_start():
    assert read_weights(None) is None


def test_imagenet_out_of_reach_is_one_warning_and_random_weights(monkeypatch):
    def no_internet(**_):
        raise Exception("URL fetch failure on https://example: None -- refused")

    weights_module._imagenet_arrays.cache_clear()
    monkeypatch.setattr(weights_module.keras.applications, "DenseNet121", no_internet)
    advice = r"random weights.*densenet/densenet121_\S+_notop\.h5 on.*save.*\.keras/models"
    with pytest.warns(UserWarning, match=advice):
        assert weights_in_reach("imagenet") is None
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        assert weights_in_reach("imagenet") is None
    assert not again
    weights_module._imagenet_arrays.cache_clear()


def test_another_failure_of_imagenet_is_not_swallowed(monkeypatch):
    def broken(**_):
        raise RuntimeError("out of memory")

    weights_module._imagenet_arrays.cache_clear()
    monkeypatch.setattr(weights_module.keras.applications, "DenseNet121", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        weights_in_reach("imagenet")


def test_imagenet_weights_reach_the_backbone(monkeypatch, tmp_path):
    """A stand-in for the download, in the layout of Keras 2 that the ImageNet files have."""
    donor = keras.applications.DenseNet121(
        include_top=False, weights=None, input_shape=(32, 32, 3), name="donor"
    )
    with h5py.File(tmp_path / "stand-in.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, donor)
    asked = []

    def download(name, *_, **__):
        asked.append(name)
        return str(tmp_path / "stand-in.h5")

    monkeypatch.setattr(densenet.file_utils, "get_file", download)
    weights_module._imagenet_arrays.cache_clear()
    built = build_chexnet(32, weights="imagenet", map_stride=16)
    weights_module._imagenet_arrays.cache_clear()
    assert asked == ["densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"]
    for layer in donor.layers:
        if layer.weights:
            taken = built.get_layer(layer.name).get_weights()
            assert all(map(np.array_equal, layer.get_weights(), taken)), layer.name


@pytest.mark.parametrize("name", ["ours.keras", "ours.weights.h5"])
def test_weights_come_from_a_file_of_ours(name, small, films, tmp_path):
    path = tmp_path / name
    small.save(path) if name.endswith(".keras") else small.save_weights(path)
    copy = build_chexnet(64, weights=path)
    np.testing.assert_allclose(forward(copy, films), forward(small, films), atol=1e-6)


def test_dropout_and_a_finer_map_take_the_same_file(small, tmp_path):
    small.save_weights(tmp_path / "ours.weights.h5")
    fine = build_chexnet(64, map_stride=16, dropout=0.2, weights=tmp_path / "ours.weights.h5")
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            fine.get_layer("bn").get_weights(), small.get_layer("bn").get_weights(), strict=True
        )
    )
    fine.save(tmp_path / "with_dropout.keras")  # holds a state of chance, which is no weight
    again = build_chexnet(64, weights=tmp_path / "with_dropout.keras")
    assert all(
        np.array_equal(a, b) for a, b in zip(again.get_weights(), small.get_weights(), strict=True)
    )


@pytest.mark.parametrize("name", ["one.keras", "one.weights.h5"])
def test_weights_of_another_head_are_refused_by_layer(name, small, tmp_path):
    path = tmp_path / name
    small.save(path) if name.endswith(".keras") else small.save_weights(path)
    with pytest.raises(ValueError, match=r"class_names=\('a', 'b'\)") as refused:
        build_chexnet(64, class_names=("a", "b"), weights=path)
    assert str(refused.value).splitlines()[1:] == [
        "predictions: [(1024, 2), (2,)] here, [(1024, 1), (1,)] there"
    ]


@pytest.mark.parametrize("name", ["other.keras", "other.weights.h5"])
def test_another_network_is_refused_with_all_its_layers(name, small, tmp_path):
    film = keras.Input((64, 64, 1))
    x = layers.Conv2D(64, 7, use_bias=False, name="conv1_conv")(film)
    x = layers.Conv2D(8, 1, name="of_another_kind")(x)
    x = layers.GlobalAveragePooling2D()(x)
    other = keras.Model(film, layers.Dense(1, name="predictions")(x))
    path = tmp_path / name
    other.save(path) if name.endswith(".keras") else other.save_weights(path)
    with pytest.raises(ValueError, match=name) as refused:
        build_chexnet(64, weights=path)
    told = str(refused.value).splitlines()[1:]
    weighted = [layer.name for layer in small.layers if layer.weights]
    assert [line.split(":")[0] for line in told] == [*weighted[1:], "of_another_kind"]
    assert "predictions: [(1024, 1), (1,)] here, [(8, 1), (1,)] there" in told
    assert "bn: [(1024,), (1024,), (1024,), (1024,)] here, None there" in told


def test_what_is_no_file_of_weights_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_chexnet(32, weights=tmp_path / "nowhere.keras")
    for name in ("half.keras", "half.weights.h5"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 half a file")
        with pytest.raises(ValueError, match=rf"{name}: not a readable file"):
            build_chexnet(32, weights=tmp_path / name)
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected None, 'imagenet', 'torchxrayvision:"):
        build_chexnet(32, weights=tmp_path / "model.pt")
