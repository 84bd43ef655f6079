import os
import re
import socket
import sys
import time
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from chexnet.model import load_chexnet
from chexnet.runs import Run
from chexnet.training import data_parallel, distribution, loop, resume
from chexnet.training.distribution import (
    devices_and_process,
    shard,
    shard_rows,
    single_device_copy,
    whole_batch_statistics,
)
from chexnet.training.resume import checkpoint_files
from tests.alone import ROOT, finish, need, start
from tests.on_devices import BATCH, FILMS, trained, trained_in_a_run, write_films
from tests.training.test_loop import make_study

TWO_DEVICES = {
    "jax": {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    },
    "tensorflow": {"KERAS_BACKEND": "tensorflow", "TF_CPU_DEVICES": "2"},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_films(folder)
    return folder


def assert_alike(result, expected):
    """The loss after each batch, every weight after six steps, and the scores."""
    assert expected["losses"].shape == (2 * (FILMS // BATCH),)
    for what in ("losses", "weights", "scores"):
        np.testing.assert_allclose(result[what], expected[what], atol=1e-4, err_msg=what)


@pytest.mark.parametrize("augmented", ["plain", "augmented"])
@pytest.mark.parametrize("backend", TWO_DEVICES)
def test_two_devices_train_as_one_does_on_the_same_global_batch(
    study, tmp_path, backend, augmented
):
    need(backend)
    finish(
        start("tests.on_devices", study, tmp_path / "two.npz", augmented, **TWO_DEVICES[backend])
    )
    two = np.load(tmp_path / "two.npz")
    assert two["devices"] == 2
    assert_alike(two, trained(study, augmented=augmented == "augmented"))
    assert "'synchronized': True" not in str(two["config"])  # would load on TensorFlow alone


@pytest.mark.parametrize("backend", TWO_DEVICES)
def test_a_whole_run_on_two_devices_is_that_on_one(study, tmp_path, backend):
    need(backend)
    finish(start("tests.on_devices", study, tmp_path / "two.npz", "train", **TWO_DEVICES[backend]))
    two = np.load(tmp_path / "two.npz")
    one = trained_in_a_run(study, tmp_path / "one")
    assert two["devices"] == 2
    assert one["losses"].shape == (3,)
    for what in ("losses", "weights", "scores"):
        np.testing.assert_allclose(two[what], one[what], atol=1e-4, err_msg=what)
    assert "all epochs done" in str(two["config"])


def two_processes():
    """The environment of each of two processes of JAX on this machine."""
    need("jax")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
    }
    return [settings | {"KERAS_DISTRIBUTION_PROCESS_ID": process} for process in ("0", "1")]


def test_two_processes(study, tmp_path):
    """Two processes on loopback train as one does on augmented films."""
    each = two_processes()
    results = [tmp_path / f"{process}.npz" for process in (0, 1)]
    finish(
        *(
            start("tests.on_devices", study, result, "augmented", **settings)
            for result, settings in zip(results, each, strict=True)
        )
    )
    one = trained(study, augmented=True)
    for result in map(np.load, results):
        assert result["devices"] == 2
        assert_alike(result, one)


def test_train_py_of_the_docs(tmp_path):
    """`train.py` of the docs goes on after a kill where both processes were."""
    two_processes()
    (tmp_path / "films").mkdir()
    _, images, boxes, _ = make_study(tmp_path / "films")
    images.to_csv(tmp_path / "images.csv", index=False)
    boxes.to_csv(tmp_path / "boxes.csv", index=False)
    programs = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.DOTALL
    )
    (program,) = [one for one in programs if "keras.distribution.initialize" in one]
    for there, here in (
        ("SIZE, settings = 160,", "SIZE, settings = 32,"),
        ("data/rsna/jpg", f"{tmp_path}/films"),
        ("data/rsna", str(tmp_path)),
        ("output/", f"{tmp_path}/"),
        ("import build_chexnet, map_size", "import map_size\nfrom tests.on_devices import network"),
        ('build_chexnet(SIZE, weights=None, **settings["model"])', "network()"),
    ):
        assert there in program
        program = program.replace(there, here)
    (tmp_path / "train_here.py").write_text(program)

    def started():
        path = os.pathsep.join([str(ROOT), str(tmp_path), *sys.path])
        return [start("train_here", PYTHONPATH=path, **each) for each in two_processes()]

    folders = [tmp_path / f"cluster-{process}" for process in (0, 1)]
    kept = [folder / "checkpoints" for folder in folders]
    processes = started()
    until = time.monotonic() + 300
    while not all(len(checkpoint_files(folder)) == 2 for folder in kept):
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate()[0][-3000:]
        assert time.monotonic() < until, "no second epoch"
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.communicate()
    newest = [checkpoint_files(folder)[0] for folder in kept]
    if newest[0].name == newest[1].name:
        newest[1].unlink()  # as if this process had been killed before it wrote it
    began = Run(folders[0]).history["seconds"][0]
    finish(*started())
    runs = [Run(folder) for folder in folders]
    assert runs[0].history["seconds"][0] == began  # else it would have started anew
    curves = [run.history.drop(columns="seconds") for run in runs]
    assert list(curves[0]["epoch"]) == list(range(1, 25))
    pd.testing.assert_frame_equal(*curves)
    assert not any((folder / "earlier").exists() for folder in folders)
    weights = [load_chexnet(folder / "model.keras").get_weights() for folder in folders]
    for mine, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("devices", [2, 3, 4, 8])
@pytest.mark.parametrize("films", [1, 5, 6, 8, 24])
def test_films_of_a_device(devices, films):
    """Every device gets as many films and every film comes as often."""
    processes = 2 if devices % 2 == 0 else 1
    shares = [shard_rows(np.arange(films), devices, processes, p) for p in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) % (devices // processes) == 0
    everywhere = np.concatenate(shares)
    assert len(everywhere) // devices <= films
    assert set(np.bincount(everywhere)) == {len(everywhere) // films}


def test_a_batch_that_can_be_shard_is_not_repeated():
    rows = np.array([7, 3, 5, 1])
    np.testing.assert_array_equal(shard_rows(rows, 4, 2, 0), [7, 3])
    np.testing.assert_array_equal(shard_rows(rows, 4, 2, 1), [5, 1])


def test_a_batch_that_the_devices_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(distribution, "devices_and_process", lambda: (4, 1, 0))
    with pytest.raises(ValueError, match=r"batch_size=6 on 4 devices: expected a multiple of 4"):
        shard(SimpleNamespace(batch_size=6))


def test_on_one_device_nothing_is_set_and_nothing_copied():
    film = keras.Input((4, 4, 1))
    model = keras.Model(film, layers.BatchNormalization(name="norm")(film))
    sequence = object()
    with data_parallel() as devices:
        assert devices == 1
        assert devices_and_process() == (1, 1, 0)
        assert shard(sequence) is sequence
        with single_device_copy(model) as scored:
            assert scored is model
        with whole_batch_statistics(model):
            assert not model.get_layer("norm").synchronized


def test_a_ceiling_on_time_is_for_one_process(study, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "devices_and_process", lambda: (2, 2, 0))
    with pytest.raises(ValueError, match=r"max_minutes=5 with 2 processes.*choose epochs"):
        trained_in_a_run(study, tmp_path / "run", max_minutes=5)


def test_ended_in_some_processes(study, tmp_path, monkeypatch):
    """A training that has ended in some processes only is refused."""
    monkeypatch.setattr(resume, "all_gather", lambda ended: [True, ended])
    with pytest.raises(ValueError, match=r"run: this training has ended in some processes"):
        trained_in_a_run(study, tmp_path / "run", resume=True)


def test_several_devices_on_torch_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    two = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 2))
    monkeypatch.setitem(sys.modules, "torch", two)
    with pytest.raises(ValueError, match="set CUDA_VISIBLE_DEVICES to one"), data_parallel():
        pass
