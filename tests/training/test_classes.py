"""Training of several classes: missing labels, boxes of some classes, no boxes at all."""

import json

import keras
import numpy as np
import pandas as pd
import pytest

from chexnet.runs import Run
from chexnet.training import record_scores, train
from chexnet.training.callbacks import AurocCallback
from tests.training.test_loop import Scripted, compiled_network, new_run, sequences, tiny_network

CLASSES = ("Edema", "Pneumonia", "Mass")


@pytest.fixture(scope="module")
def several(study):
    """Three classes: boxes for one, on half of its films; labels missing, on another all."""
    folder, images, boxes, store = study
    rng = np.random.default_rng(0)
    images = images.assign(Edema=1 - images["Pneumonia"], Mass=rng.integers(0, 2, len(images)))
    for name in ("Edema", "Mass"):
        images[name] = images[name].where(rng.random(len(images)) < 0.8)
    images.loc[images["split"] == "val", "Mass"] = np.nan
    boxes = boxes.iloc[::2].assign(class_name="Pneumonia")
    return folder, images, boxes, store


def weights_of(network):
    return np.concatenate([np.ravel(weights) for weights in network.get_weights()])


def trained_weights(study, folder, *, box_weight, **boxes):
    batches, val = sequences(study, **boxes)
    network, run = tiny_network(), new_run(study, folder)
    train(network, batches, val, run, epochs=2, learning_rate=1e-2, box_weight=box_weight)
    return weights_of(network), json.loads((run.folder / "training.json").read_text())


def test_without_boxes_training_is_that_of_box_weight_0(study, tmp_path):
    plain, record = trained_weights(study, tmp_path / "plain", box_weight=0.0)
    assert record["location_loss"] == "No location loss: box_weight is 0."
    empty = {"boxes": study[2][:0], "map_size": (8, 8)}
    without, record = trained_weights(study, tmp_path / "without", box_weight=1.0, **empty)
    assert record["location_loss"] == "No location loss: no positive training film has a box."
    assert np.array_equal(plain, without)
    boxed = {"boxes": study[2], "map_size": (8, 8)}
    others, record = trained_weights(study, tmp_path / "boxed", box_weight=1.0, **boxed)
    expected = "Location loss: Pneumonia on 24 films with boxes and 48 without the finding."
    assert record["location_loss"] == expected
    assert not np.array_equal(plain, others)


def test_boxes_of_one_class_in_three(several, tmp_path):
    """Three classes with boxes of one go from training to metrics."""
    folder, images, boxes, store = several
    settings = {"class_names": list(CLASSES)}
    run = Run.create(tmp_path / "run", settings=settings, images=images, boxes=boxes)
    batches, val = sequences(several, class_names=CLASSES, boxes=boxes, map_size=(8, 8))
    network = tiny_network(classes=3)
    with pytest.warns(UserWarning, match="no films with and without Mass; the AUROC that"):
        history = train(
            network, batches, val, run, epochs=8, learning_rate=1e-2, box_weight=1.0, best_from=0.7
        )
    assert np.isfinite(history[["loss", "location_loss", "val_loss"]]).all(axis=None)
    sentence = json.loads((run.folder / "training.json").read_text())["location_loss"]
    assert sentence == (
        "Location loss: Pneumonia on 12 films with boxes and 48 without the finding; none for "
        "Edema, Mass (no boxes)."
    )
    predictions = record_scores(run, network, store, folder)
    stored = pd.read_csv(run.folder / "predictions.csv")
    assert stored["y_true"].isna().sum() == images.query("split != 'train'")[
        list(CLASSES)
    ].isna().sum(axis=None)
    assert predictions["y_true"].isna().sum() == stored["y_true"].isna().sum()


def test_loss_of_keras_with_missing_labels(several, tmp_path):
    """A loss of Keras with missing labels is refused before training."""
    batches, val = sequences(several, class_names=CLASSES)
    run = new_run(several, tmp_path / "run")
    for loss in ("binary_crossentropy", keras.losses.BinaryFocalCrossentropy()):
        with pytest.raises(ValueError, match=r"does not take missing labels, .* Edema \(\d+\), "):
            train(tiny_network(classes=3), batches, val, run, epochs=1, loss=loss)
    assert not (run.folder / "history.csv").exists()


def test_epoch_with_missing_labels(several, tmp_path):
    """The epoch is chosen by the classes and films whose labels are known."""
    batches, val = sequences(several, class_names=CLASSES)
    scores = np.full((24, 3), 0.5)
    scores[:, 0] = np.where(np.isnan(val.labels[:, 0]), 0.99, val.labels[:, 0] * 0.8 + 0.1)

    class Three(Scripted):
        def predict(self, batches, verbose):
            return scores

    run = new_run(several, tmp_path / "run")
    with pytest.warns(UserWarning, match="without Mass"):
        callback = AurocCallback(Three([]), val, run, batches=batches)
    callback.set_model(compiled_network())
    logs = {"loss": 1.0}
    callback.on_epoch_end(0, logs)
    assert logs["val_auroc"] == (1.0 + 0.5) / 2
    assert logs["val_loss"] == pytest.approx((-np.log(0.9) - np.log(0.5)) / 2)
