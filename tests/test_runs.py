import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chexnet import runs
from chexnet.files import write_atomic
from chexnet.runs import Run, data_fingerprint

IMAGES = pd.DataFrame(
    {
        "image_id": ["a", "b", "007"],
        "patient_id": ["00000001", "00000001", "00000002"],
        "Pneumonia": [0, 1, 0],
        "view": ["PA", "AP", "AP"],
        "split": ["train", "val", "test"],
    }
)
BOXES = pd.DataFrame({"image_id": ["b"], "x": [1.0], "y": [2.0], "width": [3.0], "height": [4.0]})


@pytest.fixture
def run(tmp_path):
    settings = {"class_names": ["Pneumonia"], "seed": 1}
    return Run.create(tmp_path / "run", settings=settings, images=IMAGES, boxes=BOXES)


def test_a_run_says_what_it_was_made_from(run):
    assert run.config["settings"]["seed"] == 1
    assert run.config["films"] == {"train": 1, "val": 1, "test": 1}
    assert len(run.config["data_fingerprint"]) == 64
    assert run.config["versions"]["keras"].startswith("3.")
    assert run.class_names == ["Pneumonia"]


def test_ids_with_leading_zeros_stay_text(run):
    assert list(Run(run.folder).images["image_id"]) == ["a", "b", "007"]
    assert run.images["patient_id"].iloc[0] == "00000001"


PREDICTIONS = pd.DataFrame(
    {
        "image_id": ["b", "007"],
        "split": ["val", "test"],
        "class_name": "Pneumonia",
        "y_true": [1, 0],
        "y_score": [0.75, 0.25],
    }
)
MAPS = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 1, 2, 2)
BIAS = np.zeros(1, np.float32)


def test_predictions_come_with_the_facts_of_their_films(run):
    run.write_table("predictions.csv", PREDICTIONS)
    assert list(run.predictions["view"]) == ["AP", "AP"]
    assert list(run.predictions["patient_id"]) == ["00000001", "00000002"]


def test_maps_and_films_come_back_as_they_were_stored(run):
    run.write_scores(PREDICTIONS, ["b", "007"], {"LayerCAM": MAPS[..., :1], "CAM": MAPS}, bias=BIAS)
    assert run.map_methods == ["CAM", "LayerCAM"]
    ids, again = run.maps()
    assert list(ids) == ["b", "007"]
    np.testing.assert_array_equal(again, MAPS)
    np.testing.assert_array_equal(run.maps_of(["007"], "test", "LayerCAM"), MAPS[1:, ..., :1])
    with pytest.raises(ValueError, match=r"method='HiResCAM', expected one of \['CAM', 'LayerCAM'"):
        run.maps("HiResCAM")
    run.write_film("b", np.full((1000, 800), 128, dtype=np.uint8))
    film = run.film("b")
    assert film.shape == (512, 410)
    assert np.abs(film.astype(int) - 128).max() <= 1


def test_maps_of_one_scoring_are_not_used_with_the_scores_of_another(run, monkeypatch):
    run.write_scores(PREDICTIONS, ["b", "007"], {"CAM": MAPS}, bias=BIAS)
    run.write_table("predictions.csv", PREDICTIONS.assign(y_score=0.5))
    with pytest.raises(ValueError, match=r"maps\.npz: made with other scores"):
        run.maps()
    run.write_table("predictions.csv", PREDICTIONS)
    np.testing.assert_array_equal(run.maps()[1], MAPS)

    def killed(path, content):
        if path.name == "predictions.csv":
            raise KeyboardInterrupt
        write_atomic(path, content)

    monkeypatch.setattr(runs, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        run.write_scores(PREDICTIONS.assign(y_score=0.5), ["b", "007"], {"CAM": MAPS}, bias=BIAS)
    with pytest.raises(ValueError, match=r"maps\.npz: made with other scores"):
        run.maps()


def test_nobody_else_can_take_a_folder_before_the_run_is_complete_on_disk(tmp_path, monkeypatch):
    folder, written = tmp_path / "run", []

    def watched(path, content):
        with pytest.raises(BlockingIOError, match="another process"):
            Run.create(folder, settings={}, images=IMAGES, boxes=BOXES)
        written.append(path.name)
        write_atomic(path, content)

    monkeypatch.setattr(runs, "write_atomic", watched)
    Run.create(folder, settings={"class_names": ["Pneumonia"]}, images=IMAGES, boxes=BOXES)
    assert written == ["images.csv", "boxes.csv", "config.json"]
    assert not (folder / "earlier").exists()


def test_a_film_is_not_stored_outside_the_run(run):
    with pytest.raises(ValueError, match=r"films: invalid image_id .*elsewhere"):
        run.write_film("../../elsewhere", np.zeros((8, 8), np.uint8))
    assert not (run.folder.parent / "elsewhere.jpg").exists()


def test_the_fingerprint_ignores_order_and_sees_a_changed_label():
    same = data_fingerprint(IMAGES.sample(frac=1, random_state=0), BOXES)
    assert same == data_fingerprint(IMAGES, BOXES)
    assert data_fingerprint(IMAGES.assign(Pneumonia=1), BOXES) != same


def test_the_fingerprint_of_a_file_changes_with_it(run):
    before = run.fingerprint("boxes.csv")
    assert run.fingerprint("boxes.csv") == before
    assert run.fingerprint("images.csv") != before
    run.write_table("boxes.csv", BOXES.assign(x=2.0))
    assert run.fingerprint("boxes.csv") != before
    with pytest.raises(FileNotFoundError, match=r"maps\.npz"):
        run.fingerprint("maps.npz")


def test_a_run_made_anew_is_not_mixed_with_the_one_before_and_loses_nothing(run):
    run.write_json("metrics.json", {"auroc": 0.8})
    run.write_film("b", np.zeros((8, 8), np.uint8))
    (run.folder / "notebooks").mkdir()
    (run.folder / "notebooks" / "03_train.ipynb").write_text("executed")
    settings = {"class_names": ["Pneumonia"], "seed": 2}
    again = Run.create(run.folder, settings=settings, images=IMAGES, boxes=BOXES)
    assert not (again.folder / "metrics.json").exists()
    assert not (run.folder / "films").exists()
    assert not (run.folder / "notebooks").exists()
    before = Run(run.folder / "earlier" / "1")
    assert before.config["settings"]["seed"] == 1
    assert (before.folder / "metrics.json").is_file()
    assert before.film("b").shape == (8, 8)
    assert (before.folder / "notebooks" / "03_train.ipynb").read_text() == "executed"
    Run.create(run.folder, settings=settings, images=IMAGES, boxes=BOXES)
    assert (run.folder / "earlier" / "2" / "config.json").is_file()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(run, monkeypatch):
    run.write_json("metrics.json", {"auroc": 0.8})

    def disk_full(self, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", disk_full)
    with pytest.raises(OSError, match="no space"):
        run.write_json("metrics.json", {"auroc": 0.9})
    assert json.loads((run.folder / "metrics.json").read_text()) == {"auroc": 0.8}
    assert not list(run.folder.glob(".metrics*"))


def test_metrics_are_gone_once_a_file_they_were_made_from_has_changed(run):
    images, boxes = ({name: run.fingerprint(name)} for name in ("images.csv", "boxes.csv"))
    run.write_metrics({"classes": {"a": 1}, "overall": {"b": float("nan")}}, images)
    run.write_metrics({"localization": {"c": 2}}, boxes)
    assert run.metrics == {"classes": {"a": 1}, "overall": {"b": None}, "localization": {"c": 2}}
    run.write_table("images.csv", IMAGES.assign(view="PA"))
    assert run.metrics == {"localization": {"c": 2}}
    assert run.current_metrics("localization") == {"c": 2}
    with pytest.raises(ValueError, match=r"classes was made from other scores .* run evaluate"):
        run.current_metrics("classes")
    with pytest.raises(ValueError, match="subgroups is missing; run evaluate"):
        run.current_metrics("subgroups")
    run.write_metrics({"localization": {"c": 3}}, boxes)  # and what is out of date goes
    assert run.metrics == {"localization": {"c": 3}}
    assert "classes" not in json.loads((run.folder / "metrics.json").read_text())
    (run.folder / "boxes.csv").unlink()
    assert run.metrics == {}


def test_metrics_that_do_not_say_what_they_were_made_from_are_not_used(run):
    run.write_json("metrics.json", {"classes": {"a": 1}})
    assert run.metrics == {}


def test_not_a_number_never_becomes_json(run):
    with pytest.raises(ValueError, match="JSON"):
        run.write_json("metrics.json", {"auroc": float("nan")})


def test_arrays_of_objects_are_refused_for_they_would_be_pickled(run):
    with pytest.raises(ValueError, match="pickled"):
        run.write_arrays("maps.npz", image_id=np.array(["a", None], dtype=object))


def test_what_is_missing_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        Run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"history\.csv"):
        _ = run.history
    with pytest.raises(FileNotFoundError, match="nobody"):
        run.film("nobody")
    assert run.metrics == {}


def test_a_study_with_a_film_twice_or_a_column_missing_is_refused(tmp_path):
    twice = pd.concat([IMAGES, IMAGES.head(1)])
    with pytest.raises(ValueError, match="duplicate image_ids: a"):
        Run.create(tmp_path / "r", settings={}, images=twice, boxes=BOXES)
    with pytest.raises(ValueError, match="split"):
        Run.create(tmp_path / "r", settings={}, images=IMAGES.drop(columns="split"), boxes=BOXES)


def test_config_is_plain_json(run):
    text = (run.folder / "config.json").read_text()
    assert json.loads(text)["settings"] == {"class_names": ["Pneumonia"], "seed": 1}
