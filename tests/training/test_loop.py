import inspect
import json

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from sklearn.metrics import roc_auc_score

from chexnet.generator import AugmentedImageSequence, ImageStore, default_augmenter
from chexnet.model import build_chexnet, load_chexnet
from chexnet.runs import Run
from chexnet.training import WeightedCrossentropy, default_optimizer, recipe, record_scores, train
from chexnet.training.callbacks import AurocCallback, EpochLog

SIZE = 32


def make_study(folder):
    """120 films of noise; the positives have a bright square where their box is."""
    draw = np.random.default_rng(0)
    images, boxes = [], []
    for index in range(120):
        film = draw.normal(90, 12, (SIZE, SIZE)).clip(0, 255).astype(np.uint8)
        positive = index % 3 == 0
        if positive:
            x, y = draw.integers(2, SIZE - 12, 2)
            film[y : y + 10, x : x + 10] = 210
            boxes.append((f"film{index:03d}", x, y, 10, 10))
        cv2.imwrite(str(folder / f"film{index:03d}.jpg"), film, [cv2.IMWRITE_JPEG_QUALITY, 100])
        split = "train" if index < 72 else "val" if index < 96 else "test"
        images.append((f"film{index:03d}", f"p{index}", int(positive), SIZE, SIZE, split))
    images = pd.DataFrame(
        images, columns=["image_id", "patient_id", "Pneumonia", "rows", "columns", "split"]
    )
    boxes = pd.DataFrame(boxes, columns=["image_id", "x", "y", "width", "height"])
    store = ImageStore(
        folder, images["image_id"], image_size=SIZE, clip_limit=None, cache=folder / "cache"
    )
    return folder, images, boxes, store


def tiny_network(seed=0, *, classes=1, precision="float32"):
    """The layers that training relies on, on a backbone of two convolutions."""
    keras.utils.set_random_seed(seed)
    film = keras.Input((SIZE, SIZE, 1), name="film")
    x = layers.Rescaling(1 / 255, dtype="float32")(film)
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", dtype=precision)(x)
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, dtype=precision)(x)
    x = layers.BatchNormalization(momentum=0.9, dtype=precision)(x)
    x = layers.Activation("relu", name="relu", dtype=precision)(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool", dtype="float32")(x)
    head = layers.Dense(classes, activation="sigmoid", name="predictions", dtype="float32")
    return keras.Model(film, head(x))


def sequences(study, *, batch_size=16, class_names=("Pneumonia",), **training):
    _, images, _, store = study
    options = {"class_names": class_names, "batch_size": batch_size, "seed": 0, "workers": 1}
    return (
        AugmentedImageSequence(
            store, images[images["split"] == "train"], shuffle=True, **options, **training
        ),
        AugmentedImageSequence(store, images[images["split"] == "val"], shuffle=False, **options),
    )


def new_run(study, folder, *, resume=False):
    _, images, boxes, _ = study
    settings = {"class_names": ["Pneumonia"]}
    return Run.create(folder, settings=settings, images=images, boxes=boxes, resume=resume)


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    """A run of both phases, with boxes, and its network."""
    run = new_run(study, tmp_path_factory.mktemp("runs") / "boxes")
    network = tiny_network()
    batches, val = sequences(study, boxes=study[2], map_size=(8, 8))
    history = train(
        network, batches, val, run, head_epochs=1, epochs=8,
        learning_rate=1e-2, box_weight=1.0,
        callbacks=[keras.callbacks.TensorBoard(run.folder / "tensorboard", write_graph=False)],
    )  # fmt: skip
    return run, network, history


def compiled_network():
    network = tiny_network()
    network.compile("adam")
    return network


class Scripted:
    """Stands for a network: its predictions are a list, one entry an epoch."""

    def __init__(self, scores):
        self.scores = iter(scores)

    def predict(self, batches, verbose):
        return np.array(next(self.scores))[:, None]

    def save(self, path):
        path.write_text("a network")


def test_the_callback_keeps_the_epoch_with_the_best_auroc(study, tmp_path):
    run = new_run(study, tmp_path / "run")
    _, val = sequences(study)
    truth = np.concatenate([val[k][1] for k in range(len(val))])[:, 0]
    chance = np.full(len(truth), 0.5)
    right = np.where(truth == 1, 0.9, 0.1)
    network = Scripted([chance, right, 1 - right])
    callback = AurocCallback(network, val, run, batches=val)
    callback.set_model(compiled_network())
    seen, saved = [], []
    for epoch in range(3):
        logs = {"loss": 1.0}
        callback.on_epoch_end(epoch, logs)
        seen.append(logs["val_auroc"])
        path = run.folder / "model.keras"
        saved.append(path.stat().st_mtime_ns)
    assert seen == [0.5, 1.0, 0.0]
    assert callback.best == 1.0
    assert saved[0] < saved[1] == saved[2]
    assert [path.name for path in run.folder.glob("*.part*")] == []


def test_a_lucky_early_epoch_does_not_win(study, tmp_path):
    run = new_run(study, tmp_path / "run")
    _, val = sequences(study)
    truth = np.concatenate([val[k][1] for k in range(len(val))])[:, 0]
    right = np.where(truth == 1, 0.9, 0.1)
    nearly = np.where(np.arange(len(truth)) == truth.argmax(), 0.05, right)  # one film is missed
    callback = AurocCallback(
        Scripted([right, nearly, nearly]), val, run, batches=val, first_epoch=1
    )
    callback.set_model(compiled_network())
    saved = []
    for epoch in range(3):
        logs = {"loss": 1.0}
        callback.on_epoch_end(epoch, logs)
        saved.append(logs["saved"])
    assert saved == [1, 1, 0]
    assert 0.5 < callback.best < 1


@pytest.mark.parametrize("part", ["training", "validation"])
def test_split_of_one_class(study, tmp_path, part):
    """A split with one class only is refused before any training."""
    _, images, _, store = study
    options = {"class_names": ("Pneumonia",), "batch_size": 8, "shuffle": False, "workers": 1}
    both = AugmentedImageSequence(store, images, **options)
    one = AugmentedImageSequence(store, images[images["Pneumonia"] == 0], **options)
    batches, val = (one, both) if part == "training" else (both, one)
    with pytest.raises(ValueError, match=rf"{part}: \d+ films, all with the same Pneumonia"):
        AurocCallback(tiny_network(), val, new_run(study, tmp_path / "run"), batches=batches)


def test_a_loss_that_is_not_a_number_stops_the_run(study, tmp_path):
    run = new_run(study, tmp_path / "run")
    batches, val = sequences(study)
    with pytest.raises(FloatingPointError, match=r"epoch 1: the loss is"):
        train(tiny_network(), batches, val, run, epochs=2, learning_rate=1e30)


def test_a_single_epoch_needs_no_warmup(study, tmp_path):
    batches, val = sequences(study)
    run = new_run(study, tmp_path / "run")
    history = train(tiny_network(), batches, val, run, epochs=1)
    assert list(history["saved"]) == [1]


def test_validation_as_for_training(study, tmp_path):
    """Validation that is shuffled, augmented or boxed is refused."""
    _, images, boxes, store = study
    run = new_run(study, tmp_path / "run")
    batches, _ = sequences(study)
    common = {"class_names": ("Pneumonia",), "batch_size": 16, "seed": 0}
    for wrong in (
        {"shuffle": True},
        {"shuffle": False, "augmenter": default_augmenter(SIZE)},
        {"shuffle": False, "boxes": boxes, "map_size": (8, 8)},
    ):
        val = AugmentedImageSequence(store, images[images["split"] == "val"], **wrong, **common)
        with pytest.raises(ValueError, match="neither shuffled nor augmented"):
            train(tiny_network(), batches, val, run, epochs=1)


def test_training_goes_through_both_phases_and_learns(trained):
    _, _, history = trained
    assert list(history["phase"]) == ["head"] + ["all"] * 8
    assert list(history["epoch"]) == list(range(1, 10))
    assert history["val_auroc"].max() > 0.95
    assert history["learning_rate"].iloc[0] == pytest.approx(1e-3)
    assert history["learning_rate"].iloc[1:].max() == pytest.approx(1e-2, rel=0.05)


def test_saved_network(trained, study):
    """The saved network is that of the best epoch and the returned one."""
    run, network, history = trained
    kept = history[history["saved"] == 1].iloc[-1]
    late = history[history["epoch"] > 1 + int(0.6 * 8)]
    assert kept["val_auroc"] == late["val_auroc"].max()
    _, val = sequences(study)
    truth = np.concatenate([val[k][1] for k in range(len(val))])
    for model in (network, load_chexnet(run.folder / "model.keras")):
        score = roc_auc_score(truth, model.predict(val, verbose=0))
        assert score == pytest.approx(kept["val_auroc"], abs=1e-9)


def test_the_run_folder_holds_history_and_tensorboard(trained):
    run, _, history = trained
    pd.testing.assert_frame_equal(run.history, history)
    assert list((run.folder / "tensorboard").rglob("events*"))


def test_learning_from_boxes_puts_the_heat_into_them(trained, study):
    run, network, _ = trained
    folder, _, boxes, store = study
    record_scores(run, network, store, folder)
    ids, maps = run.maps()
    places = boxes.set_index("image_id")
    hits = []
    for image_id, cam in zip(ids, maps[:, 0], strict=True):
        if image_id in places.index:
            row, column = np.unravel_index(cam.argmax(), cam.shape)
            box = places.loc[image_id] / 4  # 32 pixels of film, 8 positions of map
            hits.append(
                box.x - 1 <= column <= box.x + box.width and box.y - 1 <= row <= box.y + box.height
            )
    assert np.mean(hits) > 0.8


def test_scores_and_maps_of_a_trained_network_agree_to_the_logit(trained, study):
    run, network, _ = trained
    predictions = record_scores(run, network, study[3], study[0])
    with np.load(run.folder / "maps.npz", allow_pickle=False) as stored:
        logit = stored["maps/CAM"][:, 0].mean((1, 2)) + stored["bias"][0]
    score = predictions["y_score"].to_numpy()
    np.testing.assert_allclose(np.log(score / (1 - score)), logit, atol=1e-4)


def test_record_scores_writes_one_row_a_film_and_the_test_films(trained, study):
    run, network, _ = trained
    record_scores(run, network, study[3], study[0])
    predictions = run.predictions
    assert not predictions["image_id"].duplicated().any()
    assert predictions["split"].value_counts().to_dict() == {"val": 24, "test": 24}
    films = {path.stem for path in (run.folder / "films").glob("*.jpg")}
    assert films == set(predictions.loc[predictions["split"] == "test", "image_id"])
    assert predictions["y_score"].between(0, 1).all()


def test_callbacks_of_keras_see_the_auroc_and_change_the_rate(study, tmp_path):
    run = new_run(study, tmp_path / "run")
    batches, val = sequences(study)
    history = train(
        tiny_network(), batches, val, run, epochs=5, optimizer=keras.optimizers.SGD(1e-8),
        callbacks=[keras.callbacks.ReduceLROnPlateau("val_auroc", mode="max", patience=3)],
    )  # fmt: skip
    # The rate at which an epoch was trained; the first epoch is the best.
    rates = history["learning_rate"].to_numpy()
    np.testing.assert_allclose(rates, [1e-8, 1e-8, 1e-8, 1e-8, 1e-9], rtol=1e-5)


def test_boxes_asked_for_but_not_given_is_an_error(study, tmp_path):
    batches, val = sequences(study)
    run = new_run(study, tmp_path / "run")
    with pytest.raises(ValueError, match="have no boxes"):
        train(tiny_network(), batches, val, run, epochs=1, box_weight=1.0)
    wrong, val = sequences(study, boxes=study[2], map_size=(4, 4))
    with pytest.raises(ValueError, match=r"map_size=\(4, 4\)"):
        train(tiny_network(), wrong, val, run, epochs=1, box_weight=1.0)


def test_recipe_without_head_phase():
    """The recipe has no head phase where nothing was learnt before."""
    scratch, imagenet = recipe(None)["training"], recipe("imagenet")["training"]
    assert scratch["head_epochs"] == 0 < imagenet["head_epochs"]
    assert scratch["learning_rate"] > imagenet["learning_rate"]


def test_the_recipe_can_be_written_down_and_is_understood():
    settings = recipe(None)
    json.dumps(settings)
    default_augmenter(64, **settings["augmentation"])
    assert set(settings["training"]) <= set(inspect.signature(train).parameters)
    assert set(settings["model"]) <= set(inspect.signature(build_chexnet).parameters)


def test_an_optimizer_is_taken_as_keras_takes_it(study, tmp_path):
    training, validation = sequences(study)
    named = {"class_name": "SGD", "config": {"learning_rate": 1e-4}}
    for number, optimizer in enumerate((keras.optimizers.SGD(1e-4), named)):
        history = train(
            tiny_network(), training, validation, new_run(study, tmp_path / f"run-{number}"),
            epochs=3, optimizer=optimizer,
        )  # fmt: skip
        assert history["learning_rate"].tolist() == pytest.approx([1e-4] * 3)


def test_an_optimizer_that_was_used_before_is_refused(study, tmp_path):
    training, validation = sequences(study)
    used = keras.optimizers.SGD(1e-4, name="used")
    used.build(tiny_network().trainable_variables)
    run = new_run(study, tmp_path / "run")
    with pytest.raises(ValueError, match="optimizer=used: expected a new one"):
        train(tiny_network(), training, validation, run, epochs=1, optimizer=used)


def test_training_ends_when_the_auroc_no_longer_rises(study, tmp_path):
    training, validation = sequences(study)
    run = new_run(study, tmp_path / "run")
    history = train(
        tiny_network(), training, validation, run, epochs=30, learning_rate=1e-12,
        callbacks=[
            keras.callbacks.EarlyStopping("val_auroc", mode="max", patience=2, start_from_epoch=3)
        ],
    )  # fmt: skip
    assert len(history) == 6  # counted from the fourth epoch: that one, then two not better
    ended = json.loads((run.folder / "training.json").read_text())["ended"]
    assert ended == "a callback stopped it after epoch 6"
    assert not (run.folder / "checkpoints").exists()


def test_training_ends_before_it_would_pass_its_time(study, tmp_path):
    training, validation = sequences(study)
    run = new_run(study, tmp_path / "run")
    options = {"epochs": 50, "head_epochs": 1}
    history = train(tiny_network(), training, validation, run, max_minutes=1e-4, **options)
    assert len(history) == 1
    ended = json.loads((run.folder / "training.json").read_text())["ended"]
    assert ended == "max_minutes=0.0001 reached"
    assert (run.folder / "model.keras").is_file()


def test_two_phases(study, tmp_path):
    """The first phase trains the head alone and the second everything."""
    training, validation = sequences(study)
    network = tiny_network()
    at_start = [np.array(weight) for weight in network.get_weights()]
    changed = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            now = [np.array(weight) for weight in network.get_weights()]
            same = [np.array_equal(a, b) for a, b in zip(at_start, now, strict=True)]
            changed.append(same.count(False))

    run = new_run(study, tmp_path / "run")
    train(network, training, validation, run, head_epochs=1, epochs=1, callbacks=[Watch()])
    assert changed == [2, len(at_start)]  # the head's kernel and bias, then every weight


def test_the_films_of_a_batch_without_a_finite_loss_are_named(study, tmp_path):
    training, validation = sequences(study)
    run = new_run(study, tmp_path / "run")
    network = tiny_network()
    training.labels = training.labels.copy()
    training.labels[training.rows(0, 2)[3]] = np.inf
    with pytest.raises(FloatingPointError) as error:
        train(network, training, validation, run, epochs=2)
    assert "epoch 1: the loss is -inf after batch 2" in str(error.value)
    for image_id in training.image_ids[training.rows(0, 2)]:
        assert image_id in str(error.value)
    assert training.image_ids[training.rows(0, 1)[0]] not in str(error.value)


@pytest.mark.parametrize(
    ("precision", "scaled"), [("mixed_float16", True), ("mixed_bfloat16", False)]
)
def test_half_precision(study, tmp_path, precision, scaled):
    """Half precision is trained with a scaled loss where it needs one."""
    network = tiny_network(precision=precision)
    training, validation = sequences(study)
    used = []
    told = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: used.append(type(told.model.optimizer).__name__)
    )
    history = train(
        network, training, validation, new_run(study, tmp_path / "run"), epochs=4,
        learning_rate=1e-2, callbacks=[told],
    )  # fmt: skip
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert (used[-1] == "LossScaleOptimizer") == scaled
    assert {weight.dtype for weight in network.weights} == {"float32"}


def test_mean_of_the_weights(study, tmp_path, monkeypatch):
    """The mean of the weights is kept and training is not changed by it."""
    after_each_batch = []
    really = EpochLog.on_train_batch_end

    def remember(self, index, logs=None):
        really(self, index, logs)
        after_each_batch.append(self.model.trainable_variables[0].numpy())

    monkeypatch.setattr(EpochLog, "on_train_batch_end", remember)
    options = {"epochs": 2, "best_from": 0.5}
    histories = []
    for average in ({}, {"use_ema": True, "ema_momentum": 0.6}):
        after_each_batch.clear()
        training, validation = sequences(study)
        network = tiny_network()
        run = new_run(study, tmp_path / f"run-{len(histories)}")
        optimizer = default_optimizer(1e-2, steps_per_epoch=5, epochs=2, **average)
        histories.append(train(network, training, validation, run, optimizer=optimizer, **options))
    expected = after_each_batch[0]
    for latest in after_each_batch[1:]:
        expected = 0.6 * expected + 0.4 * latest
    assert len(after_each_batch) == 10
    np.testing.assert_allclose(network.trainable_variables[0].numpy(), expected, rtol=1e-5)
    assert np.abs(expected - after_each_batch[-1]).max() > 1e-3
    np.testing.assert_array_equal(histories[0]["loss"], histories[1]["loss"])
    saved = load_chexnet(run.folder / "model.keras").predict(validation, verbose=0)
    found = roc_auc_score(validation.labels, saved)
    assert histories[1]["val_auroc"].iloc[-1] == pytest.approx(found)


def test_weights_that_overflow_in_the_last_step_name_its_films(study, tmp_path):
    training, validation = sequences(study, batch_size=36)
    run = new_run(study, tmp_path / "run")
    really = EpochLog.on_train_batch_end

    def overflow(self, index, logs=None):
        really(self, index, logs)
        if index == 1:
            kernel = self.model.get_layer("predictions").kernel
            kernel.assign(np.full(kernel.shape, np.nan))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(FloatingPointError) as error:
        patch.setattr(EpochLog, "on_train_batch_end", overflow)
        train(tiny_network(), training, validation, run, epochs=2)
    named = "epoch 1: 24 of 24 scores on validation are NaN after batch 1 with the films"
    assert named in str(error.value)
    for image_id in training.image_ids[training.rows(0, 1)]:
        assert image_id in str(error.value)
    assert training.image_ids[training.rows(0, 0)[0]] not in str(error.value)


def entropy(labels, scores):
    return -labels * np.log(scores) - (1 - labels) * np.log(1 - scores)


def focal(labels, scores):
    of_truth = np.where(labels == 1, scores, 1 - scores)
    return -((1 - of_truth) ** 2) * np.log(of_truth)


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (
            keras.losses.BinaryCrossentropy(label_smoothing=0.2),
            lambda y, p: entropy(0.8 * y + 0.1, p),
        ),
        (keras.losses.BinaryFocalCrossentropy(gamma=2.0), focal),
        ("binary_focal_crossentropy", focal),
        (WeightedCrossentropy([5.0]), lambda y, p: np.where(y == 1, 5, 1) * entropy(y, p)),
    ],
    ids=lambda loss: getattr(loss, "name", "by_name" if isinstance(loss, str) else ""),
)
def test_the_loss_is_the_one_asked_for(study, tmp_path, loss, by_hand):
    # A whole epoch is one batch, and in the head's phase the layers below work as in inference:
    # so the first loss is that of the scores before any step.
    training, validation = sequences(study, batch_size=72)
    network = tiny_network()
    network.get_layer("predictions").bias.assign([-1.0])
    labels = training.labels
    scores = network.predict(training.store[training.image_ids], verbose=0)
    run = new_run(study, tmp_path / "run")
    history = train(network, training, validation, run, head_epochs=1, epochs=1, loss=loss)
    expected = by_hand(labels, scores).mean()
    assert history["loss"].iloc[0] == pytest.approx(expected, rel=1e-4)
    assert abs(expected - entropy(labels, scores).mean()) > 0.01


def network_without_batch_statistics():
    keras.utils.set_random_seed(0)
    film = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255)(film)
    x = layers.Conv2D(8, 3, strides=4, activation="relu", name="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(film, layers.Dense(1, activation="sigmoid", name="predictions")(x))


def test_accumulated_batches_make_the_step_of_one_large_batch(study, tmp_path):
    kernels, steps = [], []
    for batch_size, accumulation in ((72, None), (24, 3)):
        training, validation = sequences(study, batch_size=batch_size)
        network = network_without_batch_statistics()
        optimizer = keras.optimizers.Adam(1e-2, gradient_accumulation_steps=accumulation)
        train(
            network, training, validation, new_run(study, tmp_path / str(len(steps))),
            epochs=1, optimizer=optimizer,
        )  # fmt: skip
        kernels.append(network.get_layer("predictions").kernel.numpy())
        steps.append(int(optimizer.iterations))
    np.testing.assert_allclose(*kernels, atol=1e-4)
    assert steps == [1, 1]


def test_the_step_is_compiled_where_the_model_says_so(study, tmp_path):
    training, validation = sequences(study, batch_size=72)
    network = tiny_network()
    network.jit_compile = True  # on the CPU Keras chooses False
    seen = []
    told = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: seen.append(told.model.jit_compile)
    )
    run = new_run(study, tmp_path / "run")
    train(network, training, validation, run, epochs=1, callbacks=[told])
    assert seen == [True]


def test_two_classes_are_trained_each_on_its_own_labels(study, tmp_path):
    folder, images, boxes, store = study
    images = images.assign(Normal=1 - images["Pneumonia"])
    training, validation = sequences(
        (folder, images, boxes, store), class_names=("Pneumonia", "Normal")
    )
    network = tiny_network(classes=2)
    run = new_run(study, tmp_path / "run")
    history = train(
        network, training, validation, run, epochs=4, learning_rate=1e-2,
        loss=WeightedCrossentropy(1 / training.labels.mean(axis=0) - 1), best_from=0.7,
    )  # fmt: skip
    scores = network.predict(validation, verbose=0)
    assert scores.shape == (24, 2)
    each = [roc_auc_score(*pair) for pair in zip(validation.labels.T, scores.T, strict=True)]
    assert min(each) > 0.8
    kept = history[history["saved"] == 1].iloc[-1]
    assert kept["val_auroc"] == pytest.approx(np.mean(each))
