import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from chexnet import runs
from chexnet.cam import METHODS, class_activation_map
from chexnet.generator import ImageStore
from chexnet.runs import Run
from chexnet.training import record_scores

SPLITS = ["train", "val", "test"] * 4


def small_model() -> keras.Model:
    """A flat network with the layers that the methods ask for."""
    keras.utils.set_random_seed(0)
    film = keras.Input((32, 32, 1))
    x = layers.Rescaling(1 / 255)(film)
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.AveragePooling2D(2, name="pool2_pool")(x)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = layers.AveragePooling2D(2, name="pool3_pool")(x)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = layers.Identity(name="pool4_pool")(x)
    x = layers.ReLU(name="relu")(layers.Conv2D(4, 3, padding="same")(x))
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.Model(film, layers.Dense(1, activation="sigmoid", name="predictions")(x))


@pytest.fixture
def study(tmp_path):
    """A run, and a store and a folder with its films."""
    folder, rng = tmp_path / "jpg", np.random.default_rng(0)
    folder.mkdir()
    images = pd.DataFrame({"image_id": [f"film{n}" for n in range(12)], "split": SPLITS})
    images["Pneumonia"] = rng.integers(0, 2, 12)
    for image_id in images["image_id"]:
        film = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{image_id}.jpg"), film)
    boxes = pd.DataFrame(columns=["image_id", "x", "y", "width", "height"])
    settings = {"class_names": ["Pneumonia"]}
    run = Run.create(tmp_path / "run", settings=settings, images=images, boxes=boxes)
    store = ImageStore(folder, images["image_id"], image_size=32, progress=False)
    return run, store, folder


def test_the_maps_of_the_methods_asked_for_are_stored(study):
    run, store, folder = study
    model = small_model()
    predictions = record_scores(run, model, store, folder, methods=METHODS, batch_size=3)
    assert run.map_methods == list(METHODS)
    assert predictions["split"].value_counts().to_dict() == {"val": 4, "test": 4}
    for method, side in (("CAM", 4), ("HiResCAM", 4), ("Grad-CAM", 4), ("LayerCAM", 8)):
        ids, maps = run.maps(method)
        assert ids.tolist() == predictions["image_id"].tolist()
        assert maps.shape == (8, 1, side, side)
        scores, expected = class_activation_map(model, store[ids], method=method)
        np.testing.assert_allclose(maps[:, 0], expected, atol=1e-5)
        np.testing.assert_allclose(predictions["y_score"], scores[:, 0], atol=1e-5)


def test_the_exact_maps_are_stored_whatever_else_is(study):
    run, store, folder = study
    record_scores(run, small_model(), store, folder, methods=["LayerCAM"])
    assert run.map_methods == ["CAM", "LayerCAM"]


def test_an_unknown_method_is_refused_before_anything_is_written(study):
    run, store, folder = study
    with pytest.raises(ValueError, match=r"method='magic': expected one of \['CAM', 'HiResCAM'"):
        record_scores(run, small_model(), store, folder, methods=["magic"])
    assert not (run.folder / "predictions.csv").exists()
    assert not (run.folder / "films").exists()


def files_of(run):
    """The content of all files of a run that scoring writes."""
    names = ("predictions.csv", "maps.npz", "features.npz", "preparation.json")
    paths = [run.folder / name for name in names] + sorted((run.folder / "films").iterdir())
    return {path.name: path.read_bytes() for path in paths}


def test_killed_scoring(study, monkeypatch):
    """Interrupted at each of its writes: old and new are not mixed, and the next run completes."""
    run, store, folder = study
    model, write = small_model(), runs.write_atomic
    record_scores(run, model, store, folder)
    wanted = files_of(run)
    (run.folder / "scoring.json").unlink()  # or the scores would be loaded
    run.write_json("metrics.json", {"of": "these scores"})

    def interrupted(path, data):
        nonlocal left
        if not left:
            path.with_name(f".{path.name}.1.part").write_bytes(data[:9])  # as a kill leaves it
            raise KeyboardInterrupt
        left -= 1
        write(path, data)

    monkeypatch.setattr(runs, "write_atomic", interrupted)
    for writes in range(len(wanted)):
        left = writes
        with pytest.raises(KeyboardInterrupt):
            record_scores(run, model, store, folder)
        # Four films are written first, then the maps, then the scores, and two files more.
        if writes in (4, 5):
            with pytest.raises(FileNotFoundError, match=r"(maps\.npz|predictions\.csv): missing"):
                run.maps()
            with pytest.raises(FileNotFoundError, match=r"predictions\.csv: missing"):
                run.predictions  # noqa: B018
            assert not (run.folder / "metrics.json").exists()
        elif writes > 5:
            assert len(run.maps()[0]) == len(run.predictions)
            assert not (run.folder / "preparation.json").exists()
    monkeypatch.undo()
    record_scores(run, model, store, folder)
    assert files_of(run) == wanted
    assert not list(run.folder.rglob("*.part"))
    assert [path.parent.name for path in run.folder.glob("earlier/*/metrics.json")] == ["1"]


def test_nothing_is_scored_twice_until_something_has_changed(study, capsys):
    run, store, folder = study
    model = small_model()
    first = record_scores(run, model, store, folder)
    assert "loaded" not in capsys.readouterr().out
    (run.folder / "films" / "film8.jpg").write_bytes(b"as it was left")

    def is_loaded(model, store, **options):
        again = record_scores(run, model, store, folder, **options)
        return "scored before" in capsys.readouterr().out, again

    loaded, again = is_loaded(model, store)
    assert loaded
    pd.testing.assert_frame_equal(again, first)
    assert (run.folder / "films" / "film8.jpg").read_bytes() == b"as it was left"
    assert not is_loaded(model, store, methods=["HiResCAM"])[0]
    model.get_layer("predictions").bias.assign([1.0])
    assert not is_loaded(model, store)[0]
    assert is_loaded(model, store)[0]
    sharper = ImageStore(folder, store.image_ids, image_size=32, clip_limit=3.0, progress=False)
    assert not is_loaded(model, sharper)[0]
    run.write_table("predictions.csv", first.assign(y_score=0.5))
    assert not is_loaded(model, sharper)[0]
    (run.folder / "films" / "film8.jpg").unlink()
    assert not is_loaded(model, sharper)[0]
    assert (run.folder / "films" / "film8.jpg").is_file()
