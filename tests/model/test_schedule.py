import numpy as np
import pytest

from chexnet.backend import keras
from chexnet.model import warmup_schedule


def test_the_schedule_rises_linearly_and_falls_by_cosine():
    rate = warmup_schedule(1e-3, steps_per_epoch=10, epochs=12, warmup_epochs=2)
    values = np.array([float(keras.ops.convert_to_numpy(rate(step))) for step in range(121)])
    assert values[0] == pytest.approx(1e-5)
    np.testing.assert_allclose(np.diff(values[:20]), np.diff(values[:20])[0], rtol=1e-3)
    assert values.argmax() == 20
    assert values[20] == pytest.approx(1e-3)
    # Half-way through the 100 falling steps the cosine is at (1 + 0.01) / 2 of the peak.
    assert values[70] == pytest.approx(0.505e-3, rel=1e-3)
    assert values[120] == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 0.0, "steps_per_epoch": 1, "epochs": 2, "warmup_epochs": 1},
        {"learning_rate": 1.0, "steps_per_epoch": 0, "epochs": 2, "warmup_epochs": 1},
        {"learning_rate": 1.0, "steps_per_epoch": 1, "epochs": 2, "warmup_epochs": 2},
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match="expected a"):
        warmup_schedule(arguments.pop("learning_rate"), **arguments)
