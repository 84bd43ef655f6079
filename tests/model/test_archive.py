"""Files of weights that would fill the memory, never end, or hold no numbers."""

import io
import json
import re
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from chexnet.model import build_chexnet, load_chexnet

KINDS = ("network.keras", "network.weights.h5")


def network():
    """A tiny network with the layers that a network of ours must have."""
    film = keras.Input((8, 8, 1))
    x = layers.ReLU(name="relu")(layers.Conv2D(4, 3, name="convolution")(film))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(film, layers.Dense(1, activation="sigmoid", name="predictions")(x))


@pytest.fixture
def saved(tmp_path):
    """A file of weights of the kind asked for, maybe with other arrays."""

    def save(name, change=None):
        path, model = tmp_path / name, network()
        (model.save if name.endswith(".keras") else model.save_weights)(path)
        if change is not None and name.endswith(".h5"):
            with h5py.File(path, "r+") as file:
                change(file)
        elif change is not None:
            buffer = io.BytesIO(member(path, "model.weights.h5"))
            with h5py.File(buffer, "r+") as file:
                change(file)
            replace(path, "model.weights.h5", buffer.getvalue())
        return path

    return save


def member(path, name):
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def replace(path, name, content):
    """Writes an archive again, with another content of one member."""
    with zipfile.ZipFile(path) as archive:
        members = {one: archive.read(one) for one in archive.namelist()} | {name: content}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one, its in members.items():
            archive.writestr(one, its)


def assert_refused(path, message):
    """It is refused by `load_chexnet` (a .keras file) and as weights to start from."""
    with pytest.raises(ValueError, match=rf"{re.escape(path.name)}: .*{message}") as raised:
        build_chexnet(32, weights=path)
    assert len(str(raised.value)) < 1000
    if path.name.endswith(".keras"):
        with pytest.raises(ValueError, match=rf"{re.escape(path.name)}: .*{message}"):
            load_chexnet(path)


def test_plain_files(saved):
    """What Keras has saved is read."""
    model = load_chexnet(saved("network.keras"))
    assert model.output_shape == (None, 1)
    for name in KINDS:
        with pytest.raises(ValueError, match="does not fit this network"):
            build_chexnet(32, weights=saved(name))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape, chunks", [(2**29, 2**10), (4, 2**29)])
def test_declared_array(saved, name, shape, chunks):
    """An array of 2 GiB that is declared only takes no memory, nor does such a chunk."""

    def declare(file):
        file.create_dataset("large", (shape,), "f4", chunks=(chunks,), maxshape=(None,))

    assert_refused(saved(name, declare), "the file has 2147 MB; expected at most 268")


def test_bomb(saved):
    """An archive that has 300 MB is not unpacked."""
    path = saved("network.keras")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(300_000_000))
    assert_refused(path, r"the archive has 300 MB")


def test_many_members(saved):
    """So is one with thousands of members."""
    path = saved("network.keras")
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(200):
            archive.writestr(f"assets/{number}", b"")
    assert_refused(path, "203 members; expected at most 100")


def test_large_weights_file(saved, monkeypatch):
    """A .weights.h5 file that is too large is not opened."""
    path = saved("network.weights.h5")
    with path.open("ab") as file:
        file.truncate(300_000_000)
    monkeypatch.setattr(h5py, "File", None)
    assert_refused(path, "the file has 300 MB")


def test_nested_config(saved):
    """Brackets in strings do not count, others do."""
    path = saved("network.keras")
    config = member(path, "config.json")
    noted = json.loads(config) | {"note": "[{" * 100}
    replace(path, "config.json", json.dumps(noted).encode())
    load_chexnet(path)
    replace(path, "config.json", b"[" * 100_000 + b"]" * 100_000)
    assert_refused(path, "config.json is nested 100000 deep; expected at most 64")
    replace(path, "config.json", config + b" " * 5_000_000)
    assert_refused(path, "config.json has .* bytes")


def test_large_network(saved):
    """A configuration that asks for 8 TB of weights, and the network after it."""
    path = saved("network.keras")
    config = member(path, "config.json")
    assert b'"units": 1,' in config
    replace(path, "config.json", config.replace(b'"units": 1,', b'"units": 400000000000,'))
    with pytest.raises(ValueError, match=r"network\.keras: .*the network has 8000000 MB"):
        load_chexnet(path)
    load_chexnet(saved("network.keras"))


def other_file(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(bytes(64))
    return path


@pytest.mark.parametrize("kind", ["soft", "external", "storage", "virtual", "loop", "many"])
@pytest.mark.parametrize("name", KINDS)
def test_links(saved, tmp_path, name, kind):
    """Arrays are in the file itself, each once, in not too many groups."""

    def change(file):
        if kind == "soft":
            file["link"] = h5py.SoftLink("/layers")
        elif kind == "external":
            file["link"] = h5py.ExternalLink(str(other_file(tmp_path)), "/")
        elif kind == "storage":
            parts = [(str(other_file(tmp_path)), 0, 64)]
            file.create_dataset("link", (16,), "f4", external=parts)
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource(str(other_file(tmp_path)), "a", (4,))
            file.create_virtual_dataset("link", layout)
        elif kind == "loop":
            file["link"] = file["/"]
        else:
            for number in range(20_001):
                file.create_group(f"g{number}")

    expected = {"loop": "nested more than 64 deep", "many": "more than 20000 arrays"}
    assert_refused(saved(name, change), expected.get(kind, "link: (a link|its data)"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", KINDS)
def test_not_finite(saved, name, value):
    """Weights that are no numbers are refused by layer."""

    def change(file):
        def spoil(_, found):
            if isinstance(found, h5py.Dataset) and found.shape == (3, 3, 1, 4):
                found[0, 0, 0, 0] = value

        file.visititems(spoil)

    message = "1 layers with weights that are NaN or infinite: convolution"
    assert_refused(saved(name, change), message)


def test_damaged_archive(saved, tmp_path):
    """A file that is cut anywhere is a short error."""
    path = saved("network.keras")
    whole = path.read_bytes()
    cut = tmp_path / "cut.keras"
    for length in (0, 10, len(whole) // 2, len(whole) - 30):
        cut.write_bytes(whole[:length])
        assert_refused(cut, "")
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 255
    cut.write_bytes(changed)
    with pytest.raises(ValueError, match=r"cut\.keras"):
        load_chexnet(cut)
    shutil.copy(path, tmp_path / "whole.keras")
    load_chexnet(tmp_path / "whole.keras")
