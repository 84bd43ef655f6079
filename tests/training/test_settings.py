"""What `train` refuses before it touches anything, and what it holds a resumed training against."""

import json
import re

import imgaug.augmenters as iaa
import imgaug.parameters as iap
import keras
import numpy as np
import pytest
from keras import layers, ops

from chexnet.generator import AugmentedImageSequence, ImageStore, default_augmenter
from chexnet.training import WeightedCrossentropy, default_optimizer, loop, train
from chexnet.training.resume import data_settings
from tests.training.test_loop import SIZE, new_run, sequences, tiny_network


def files_of(run):
    return {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 0, "an integer >= 1"),
        ("epochs", 2.5, "an integer >= 1"),
        ("epochs", True, "an integer >= 1"),
        ("epochs", np.True_, "an integer >= 1"),
        ("epochs", "12", "an integer >= 1"),
        ("epochs", None, "an integer >= 1"),
        ("head_epochs", -1, "an integer >= 0"),
        ("learning_rate", 0.0, "a number > 0"),
        ("learning_rate", float("nan"), "a number > 0"),
        ("learning_rate", float("inf"), "a number > 0"),
        ("learning_rate", np.float32(-1), "a number > 0"),
        ("learning_rate", "1e-3", "a number > 0"),
        ("learning_rate", None, "a number > 0"),
        ("learning_rate", True, "a number > 0"),
        ("learning_rate", [1e-3], "a number > 0"),
        ("head_learning_rate", -1e-3, "a number > 0"),
        ("box_weight", -1.0, "a number >= 0"),
        ("box_weight", "1", "a number >= 0"),
        ("best_from", 1.0, "a number >= 0 and < 1"),
        ("best_from", None, "a number >= 0 and < 1"),
        ("max_minutes", 0, "a number > 0"),
        ("max_minutes", "60", "a number > 0"),
    ],
)
def test_number_out_of_range(
    study, tmp_path, name, value, expected
):  # fmt: skip
    """A number out of range is refused before anything is touched."""
    training, validation = sequences(study)
    run = new_run(study, tmp_path / "run")
    before = files_of(run)
    message = re.escape(f"{name}={value!r}: expected {expected}") + "$"
    with pytest.raises(ValueError, match=message):
        train(tiny_network(), training, validation, run, **{"epochs": 1} | {name: value})
    assert files_of(run) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": 5}, "optimizer"),
        ({"optimizer": "steepest"}, "steepest"),
        ({"loss": "hinges"}, "hinges"),
    ],
)
def test_unknown_to_keras(
    study, tmp_path, wrong, message
):  # fmt: skip
    """What Keras does not know is refused before anything is touched."""
    training, validation = sequences(study)
    run = new_run(study, tmp_path / "run")
    before = files_of(run)
    with pytest.raises(ValueError, match=message):
        train(tiny_network(), training, validation, run, epochs=1, **wrong)
    assert files_of(run) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("learning_rate", 0.0), ("steps_per_epoch", 0), ("epochs", 0), ("warmup_epochs", -1)),
        *(("warmup_epochs", 0.5), ("warmup_epochs", "2"), ("weight_decay", "0.01")),
    ],
)
def test_the_default_optimizer_checks_its_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}: expected"):
        default_optimizer(**{"steps_per_epoch": 5, "epochs": 2} | {name: value})


def test_default_learning_rate():
    """The default learning rate rises linearly and falls by cosine."""
    rate = default_optimizer(1e-3, steps_per_epoch=10, epochs=12)._learning_rate
    values = np.array([float(ops.convert_to_numpy(rate(step))) for step in range(121)])
    assert values[0] == pytest.approx(1e-5)
    np.testing.assert_allclose(np.diff(values[:20]), np.diff(values[:20])[0], rtol=1e-3)
    assert values.argmax() == 20
    assert values[20] == pytest.approx(1e-3)
    # Half-way through the 100 falling steps the cosine stands at (1 + 0.01) / 2 of the peak.
    assert values[70] == pytest.approx(0.505e-3, rel=1e-3)
    assert values[120] == pytest.approx(1e-5, rel=1e-3)


def test_the_default_optimizer_decays_kernels_only():
    network = tiny_network()
    optimizer = default_optimizer(steps_per_epoch=5, epochs=2)
    optimizer.build(network.trainable_variables)
    decayed = [v.name for v in network.trainable_variables if optimizer._use_weight_decay(v)]
    assert decayed == ["kernel", "kernel", "kernel"]


def test_numbers_of_numpy_are_taken_as_pythons(study, tmp_path):
    training, validation = sequences(study)
    training.batch_size = np.int64(36)
    run = new_run(study, tmp_path / "run")
    given = {
        "epochs": np.int64(2), "head_epochs": np.int32(1), "learning_rate": np.float32(1e-3),
        "head_learning_rate": np.float32(1e-3), "box_weight": np.float32(0),
        "best_from": np.float32(0.5), "max_minutes": np.float32(60),
        "loss": WeightedCrossentropy(np.float32([2])),
    }  # fmt: skip
    history = train(tiny_network(), training, validation, run, **given)
    assert len(history) == 3
    settings = json.loads((run.folder / "training.json").read_text())["settings"]
    assert settings["learning_rate"] == float(np.float32(1e-3))
    again = train(tiny_network(), training, validation, run, resume=True, **given)
    assert len(again) == 3


def with_dropout(share, momentum=0.9, **options):
    """The tiny network with another dropout, momentum or precision."""
    network = tiny_network(**options)
    network.layers[4].momentum = momentum
    pooled = layers.Dropout(share)(network.get_layer("avg_pool").output)
    return keras.Model(network.input, network.get_layer("predictions")(pooled))


def test_classes_in_the_same_order(
    study, tmp_path
):  # fmt: skip
    """Training and validation have the same classes in the same order."""
    folder, images, *rest = study
    study = (folder, images.assign(Left=np.arange(120) % 2), *rest)
    training, same = sequences(study, class_names=("Pneumonia", "Left"))
    _, turned = sequences(study, class_names=("Left", "Pneumonia"))
    run = new_run(study, tmp_path / "run")
    both = r"train has class_names=\('Pneumonia', 'Left'\), val has \('Left', 'Pneumonia'\)"
    with pytest.raises(ValueError, match=both):
        train(tiny_network(classes=2), training, turned, run, epochs=1)
    with pytest.raises(ValueError, match="the model's head has 1 scores"):
        train(tiny_network(), training, same, run, epochs=1)


def test_accumulation_on_several_devices(
    study, tmp_path, monkeypatch
):  # fmt: skip
    """Gradients are not accumulated on several devices of TensorFlow."""
    monkeypatch.setattr(loop, "devices_and_process", lambda: (2, 1, 0))
    training, validation = sequences(study)
    run = new_run(study, tmp_path / "run")
    optimizer = keras.optimizers.Adam(gradient_accumulation_steps=3)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=3 on 2 devices"):
        train(tiny_network(), training, validation, run, epochs=1, optimizer=optimizer)


def everything(study):
    """The fingerprints of one training, with an augmenter that draws ahead and calls functions."""
    augmenter = iaa.Sequential(
        [
            default_augmenter(SIZE, contrast=0.1),
            iaa.Sometimes(0.3, iaa.Affine(rotate=(-3, 3))),
            iaa.BlendAlphaMask(iaa.RegularGridMaskGen((2, 4), (2, 4)), iaa.Add((1, 9))),
            iaa.Lambda(lambda images, *_: images),
            iaa.Add(iap.FrequencyNoise()),
        ],
        random_order=True,
    )
    batches, val = sequences(study, augmenter=augmenter, boxes=study[2], map_size=(8, 8))
    return data_settings(with_dropout(0.2), batches, val), batches


def test_the_same_training_has_the_same_fingerprints_again(study):
    first, batches = everything(study)
    assert json.loads(json.dumps(first)) == first
    batches[0]  # the augmenter draws
    again, _ = everything(study)
    assert again == first
    assert data_settings(with_dropout(0.2), batches, sequences(study)[1]) == first


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("augmenter", {"augmenter": default_augmenter(SIZE, rotation=9.0)}),
        ("augmenter", {"augmenter": None}),
        ("boxes", {"moved": 1}),
        ("boxes", {"map_size": (4, 4)}),
        ("network", {"share": 0.3}),
        ("network", {"momentum": 0.8}),
        ("network", {"precision": "mixed_bfloat16"}),
        ("network", {"classes": 2}),
    ],
)
def test_what_a_training_works_on_is_told_apart(study, part, change):
    usual = default_augmenter(SIZE)

    def of(moved=0, map_size=(8, 8), augmenter=usual, share=0.2, **network):
        boxes = study[2].assign(x=study[2]["x"] - moved)
        batches, val = sequences(study, augmenter=augmenter, boxes=boxes, map_size=map_size)
        return data_settings(with_dropout(share, **network), batches, val)

    base, other = of(), of(**change)
    assert [name for name in base if base[name] != other[name]] == [part]


def test_augmenters_of_imgaug_are_told_apart(study):
    augmenters = [
        iaa.Affine(rotate=(-3, 3)),
        iaa.Affine(rotate=(-3, 4)),
        iaa.Affine(rotate=(-3, 3), order=0),
        iaa.Lambda(lambda images, *_: images),
        iaa.Lambda(lambda images, *_: images[::-1]),
    ]
    found = set()
    for augmenter in augmenters:
        batches, val = sequences(study, augmenter=augmenter)
        found.add(data_settings(tiny_network(), batches, val)["augmenter"])
    assert len(found) == len(augmenters)


def test_films_prepared_otherwise_are_told_apart(study):
    folder, images, _, _ = study
    options = {"class_names": ("Pneumonia",), "batch_size": 16, "shuffle": False}
    found = []
    for size, clip_limit in ((SIZE, None), (SIZE, 2.0), (SIZE // 2, None)):
        other = ImageStore(
            folder, images["image_id"], image_size=size, clip_limit=clip_limit,
            cache=folder / "cache", progress=False,
        )  # fmt: skip
        batches = AugmentedImageSequence(other, images, **options)
        found.append(data_settings(tiny_network(), batches, batches))
    plain, equalised, smaller = found
    assert plain["films"] == equalised["films"]
    assert plain["pixels"] != equalised["pixels"]
    assert (plain["image_size"], smaller["image_size"]) == (SIZE, SIZE // 2)
