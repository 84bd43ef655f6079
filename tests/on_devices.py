"""One training, to be run in a process of its own on any backend and number of devices.

    KERAS_BACKEND=jax XLA_FLAGS=--xla_force_host_platform_device_count=2 \
        python -m tests.on_devices <folder of the study> <result.npz>

``TF_CPU_DEVICES=2`` does for TensorFlow what ``XLA_FLAGS`` does for JAX, and Keras'
``KERAS_DISTRIBUTION_*`` make it one of several processes.
"""

import os
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
from keras import layers

from chexnet.generator import AugmentedImageSequence, ImageStore, default_augmenter
from chexnet.model import load_chexnet
from chexnet.runs import Run
from chexnet.training import data_parallel, train
from chexnet.training.distribution import shard, single_device_copy, whole_batch_statistics

SIZE, FILMS, BATCH = 32, 21, 8  # the last batch has 5: two devices cannot share it


def write_films(folder: Path) -> None:
    """Noise, brighter where positive."""
    draw = np.random.default_rng(0)
    images = []
    for index in range(FILMS):
        film = draw.normal(90 + 60 * (index % 3 == 0), 40, (SIZE, SIZE)).clip(0, 255)
        cv2.imwrite(str(folder / f"film{index:02d}.jpg"), film.astype(np.uint8))
        images.append((f"film{index:02d}", int(index % 3 == 0)))
    pd.DataFrame(images, columns=["image_id", "Pneumonia"]).to_csv(folder / "images.csv")


def network() -> keras.Model:
    """The layers that training relies on, with weights drawn by NumPy: every backend's alike."""
    film = keras.Input((SIZE, SIZE, 1), name="film")
    x = layers.Rescaling(1 / 255)(film)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    model = keras.Model(film, layers.Dense(1, activation="sigmoid", name="predictions")(x))
    draw = np.random.default_rng(1)
    model.set_weights([draw.uniform(0.1, 0.6, weight.shape) for weight in model.weights])
    return model


class Losses(keras.callbacks.Callback):
    """The mean loss since the epoch began, after each batch but the last."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        if batch < FILMS // BATCH:  # Keras counts the films of a repeated batch as often
            self.values.append(float(logs["loss"]))


def trained(folder: Path, *, augmented: bool) -> dict[str, np.ndarray]:
    """Two epochs of three steps: losses, weights and the scores afterwards."""
    images = pd.read_csv(folder / "images.csv")
    store = ImageStore(folder, images["image_id"], image_size=SIZE, clip_limit=None)
    options = {"class_names": ("Pneumonia",), "batch_size": BATCH, "seed": 0, "workers": 1}
    augmenter = default_augmenter(image_size=SIZE) if augmented else None
    batches = AugmentedImageSequence(store, images, shuffle=True, augmenter=augmenter, **options)
    plain = AugmentedImageSequence(store, images, shuffle=False, **options)
    losses = Losses()
    # Before the first epoch Keras fetches a batch to build from, on all backends but TensorFlow on
    # one device, and calls that an epoch; so the epoch is set, as `chexnet.training.train` does.
    told = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(batches, "epoch", epoch)
    )
    with data_parallel() as devices:
        model = network()
        model.compile(keras.optimizers.SGD(0.5), loss="binary_crossentropy")
        with whole_batch_statistics(model):
            model.fit(shard(batches), epochs=2, shuffle=False, callbacks=[told, losses], verbose=0)
        with single_device_copy(model) as scored:
            scores = scored.predict(plain, verbose=0)
            config = str(scored.get_config())
    return {
        "devices": devices,
        "losses": np.array(losses.values),
        "weights": np.concatenate([weight.ravel() for weight in model.get_weights()]),
        "scores": scores[:, 0],
        "config": config,
    }


def trained_in_a_run(
    folder: Path, run_folder: Path, **options_of_training: object
) -> dict[str, np.ndarray]:
    """The same by `chexnet.training.train`, with its checkpoints and its best epoch."""
    images = pd.read_csv(folder / "images.csv").assign(split="train")
    boxes = pd.DataFrame(columns=["image_id", "x", "y", "width", "height"])
    store = ImageStore(folder, images["image_id"], image_size=SIZE, clip_limit=None)
    options = {"class_names": ("Pneumonia",), "batch_size": BATCH, "seed": 0, "workers": 1}
    batches = AugmentedImageSequence(store, images, shuffle=True, **options)
    plain = AugmentedImageSequence(store, images, shuffle=False, **options)
    settings = {"class_names": ["Pneumonia"]}
    run = Run.create(run_folder, settings=settings, images=images, boxes=boxes)
    with data_parallel() as devices:
        model = network()
        history = train(
            model, batches, plain, run, head_epochs=1, epochs=2,
            optimizer=keras.optimizers.Adam(1e-2), best_from=0.5, **options_of_training,
        )  # fmt: skip
    return {
        "devices": devices,
        "losses": history["val_loss"].to_numpy(),
        "weights": np.concatenate([weight.ravel() for weight in model.get_weights()]),
        "scores": load_chexnet(run.folder / "model.keras").predict(plain, verbose=0)[:, 0],
        "config": (run.folder / "training.json").read_text(),
    }


if __name__ == "__main__":
    if "TF_CPU_DEVICES" in os.environ:
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * int(os.environ["TF_CPU_DEVICES"]),
        )
    if "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ:
        keras.distribution.initialize()
    source, result, *given = sys.argv[1:]
    if "train" in given:
        np.savez(result, **trained_in_a_run(Path(source), Path(result).with_suffix("")))
    else:
        np.savez(result, **trained(Path(source), augmented="augmented" in given))
