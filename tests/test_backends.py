"""The same saved weights on every backend of Keras; `make test-backends` installs them."""

import numpy as np
import pytest

from tests.alone import finish, need, start
from tests.on_backend import FILMS, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    return folder


@pytest.fixture(scope="module")
def on_tensorflow(study):
    result = study / "tensorflow.npz"
    finish(start("tests.on_backend", study, result, KERAS_BACKEND="tensorflow"))
    return np.load(result)


@pytest.fixture(scope="module", params=["jax", "torch"])
def elsewhere(request, study):
    need(request.param)
    result = study / f"{request.param}.npz"
    finish(start("tests.on_backend", study, result, KERAS_BACKEND=request.param))
    result = np.load(result)
    assert result["backend"] == request.param
    return result


def test_scores_from_the_same_saved_weights_agree(elsewhere, on_tensorflow):
    assert on_tensorflow["scores"].shape == (FILMS, 1)
    assert on_tensorflow["scores"].std() > 0.05  # so 1e-4 is small
    np.testing.assert_allclose(elsewhere["scores"], on_tensorflow["scores"], atol=1e-4)


@pytest.mark.parametrize("maps", ["maps", "grad_maps"])
def test_maps_agree(elsewhere, on_tensorflow, maps):
    largest = np.abs(on_tensorflow[maps]).max()
    assert largest > 1
    np.testing.assert_allclose(elsewhere[maps], on_tensorflow[maps], atol=1e-4 * largest)


def test_a_training_step_has_the_same_loss_of_scores_and_boxes(elsewhere, on_tensorflow):
    assert on_tensorflow["losses"].shape == (1, 2)
    np.testing.assert_allclose(elsewhere["losses"], on_tensorflow["losses"], atol=1e-4)


def test_a_training_step_gives_the_same_weights(elsewhere, on_tensorflow):
    step = np.abs(on_tensorflow["weights"] - on_tensorflow["weights_before"])
    assert np.median(step) > 9e-4  # so 1e-4 is small
    # Adam's first step has its full size also where a gradient is nothing but rounding: some signs
    # then differ, and those weights by twice the learning rate.
    differing = np.abs(elsewhere["weights"] - on_tensorflow["weights"])
    assert np.mean(differing > 1e-4) < 0.005
    assert differing.max() < 2.1e-3


def test_the_evaluation_has_the_same_auroc(elsewhere, on_tensorflow):
    assert on_tensorflow["auroc"].shape == (2,)
    np.testing.assert_allclose(elsewhere["auroc"], on_tensorflow["auroc"], atol=1e-4)
