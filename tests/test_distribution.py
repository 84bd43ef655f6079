import socket
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers

from chexnet.distribution import (
    data_parallel,
    devices_and_process,
    for_scoring,
    shared,
    shared_rows,
    whole_batch_statistics,
)
from tests.alone import finish, need, start
from tests.on_devices import BATCH, FILMS, trained, trained_in_a_run, write_films

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


def test_two_processes_on_loopback_train_as_one_does(study, tmp_path):
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
    results = [tmp_path / f"{process}.npz" for process in (0, 1)]
    finish(
        *(
            start(
                "tests.on_devices", study, result, KERAS_DISTRIBUTION_PROCESS_ID=str(process),
                **settings,
            )
            for process, result in enumerate(results)
        )
    )  # fmt: skip
    one = trained(study, augmented=False)
    for result in map(np.load, results):
        assert result["devices"] == 2
        assert_alike(result, one)


@pytest.mark.parametrize("devices", [2, 3, 4, 8])
@pytest.mark.parametrize("films", [1, 5, 6, 8, 24])
def test_every_device_gets_as_many_films_and_every_film_comes_as_often(devices, films):
    processes = 2 if devices % 2 == 0 else 1
    shares = [shared_rows(np.arange(films), devices, processes, p) for p in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) % (devices // processes) == 0
    everywhere = np.concatenate(shares)
    assert len(everywhere) // devices <= films
    assert set(np.bincount(everywhere)) == {len(everywhere) // films}


def test_a_batch_that_can_be_shared_is_not_repeated():
    rows = np.array([7, 3, 5, 1])
    np.testing.assert_array_equal(shared_rows(rows, 4, 2, 0), [7, 3])
    np.testing.assert_array_equal(shared_rows(rows, 4, 2, 1), [5, 1])


def test_on_one_device_nothing_is_set_and_nothing_copied():
    film = keras.Input((4, 4, 1))
    model = keras.Model(film, layers.BatchNormalization(name="norm")(film))
    sequence = object()
    with data_parallel() as devices:
        assert devices == 1
        assert devices_and_process() == (1, 1, 0)
        assert shared(sequence) is sequence
        with for_scoring(model) as scored:
            assert scored is model
        with whole_batch_statistics(model):
            assert not model.get_layer("norm").synchronized


def test_several_devices_on_torch_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    two = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 2))
    monkeypatch.setitem(sys.modules, "torch", two)
    with pytest.raises(ValueError, match="set CUDA_VISIBLE_DEVICES to one"), data_parallel():
        pass
