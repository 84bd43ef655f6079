import io
import json
import re
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from chexnet import runs
from chexnet.files import write_atomic
from chexnet.runs import Run, data_fingerprint, set_aside
from tests.made_up_run import write_run

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
    return Run.create(tmp_path / "output" / "run", settings=settings, images=IMAGES, boxes=BOXES)


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
    ids = PREDICTIONS["image_id"]
    run.write_scores(PREDICTIONS, ids, {"LayerCAM": MAPS[..., :1], "CAM": MAPS}, bias=BIAS)
    assert run.map_methods == ["CAM", "LayerCAM"]
    ids, again = run.maps()
    assert list(ids) == ["b", "007"]
    np.testing.assert_array_equal(again, MAPS)
    np.testing.assert_array_equal(run.maps_of(["007"], "test", "LayerCAM"), MAPS[1:, ..., :1])
    np.testing.assert_array_equal(run.maps_of(["007", "b"], "scored"), MAPS[::-1])
    with pytest.raises(ValueError, match=r"method='HiResCAM', expected one of \['CAM', 'LayerCAM'"):
        run.maps("HiResCAM")
    run.write_film("b", np.full((2000, 1600), 128, dtype=np.uint8))
    film = run.film("b")
    assert film.shape == (1024, 819)
    assert np.abs(film.astype(int) - 128).max() <= 1
    stripes = np.zeros((3072, 3072), np.uint8)
    stripes[:, ::3] = 255
    run.write_film("b", stripes)  # three columns become one, their mean
    assert np.abs(run.film("b").astype(int) - 85).max() <= 2


def test_maps_of_another_scoring(run, monkeypatch):
    """Maps of one scoring are not used with the scores of another."""
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
    with pytest.raises(FileNotFoundError, match=r"predictions\.csv: missing"):
        run.maps()
    earlier = Run(run.folder / "earlier" / "1")
    np.testing.assert_array_equal(earlier.maps()[1], MAPS)


def test_folder_is_locked_until_complete(tmp_path, monkeypatch):
    """Nobody else can take a folder before the run is complete on disk."""
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


def test_run_made_anew(run):
    """A run made anew is not mixed with the one before and loses nothing."""
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


def test_trained_run_is_opened_again(run):
    """A trained run is opened again only with its settings and data."""
    settings = {"class_names": ["Pneumonia"], "seed": 1}
    options = {"settings": settings, "images": IMAGES, "boxes": BOXES}
    run.write_json("training.json", {})
    run.write_json("metrics.json", {})
    Run.create(run.folder, **options, resume=True)
    assert not (run.folder / "earlier").exists()
    changes = [{"settings": {**settings, "seed": 2}}, {"images": IMAGES.assign(Pneumonia=1)}]
    changes += [{"boxes": BOXES.assign(x=2.0)}]
    for number, change in enumerate(changes, 1):
        again = Run.create(run.folder, **(options | change), resume=True)
        assert (again.folder / "earlier" / str(number)).is_dir()
        assert not (again.folder / "training.json").exists()
        again.write_json("training.json", {})


def test_a_run_set_aside_starts_anew_and_no_run_is_nothing(run, tmp_path):
    set_aside(run.folder)
    assert [path.name for path in run.folder.iterdir() if path.is_dir()] == ["earlier"]
    set_aside(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(run, monkeypatch):
    run.write_json("metrics.json", {"auroc": 0.8})

    def disk_full(self, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", disk_full)
    with pytest.raises(OSError, match="no space"):
        run.write_json("metrics.json", {"auroc": 0.9})
    assert json.loads((run.folder / "metrics.json").read_text()) == {"auroc": 0.8}
    assert not list(run.folder.glob(".metrics*"))


def test_outdated_metrics(run):
    """Metrics are gone once a file they were made from has changed."""
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


def test_metrics_without_sources(run):
    """Metrics that do not say what they were made from are not used."""
    run.write_json("metrics.json", {"classes": {"a": 1}})
    assert run.metrics == {}


def test_not_a_number_never_becomes_json(run):
    with pytest.raises(ValueError, match="JSON"):
        run.write_json("metrics.json", {"auroc": float("nan")})


def test_arrays_of_objects_are_refused_for_they_would_be_pickled(run):
    with pytest.raises(ValueError, match="allow_pickle"):
        run.write_arrays("maps.npz", image_id=np.array(["a", None], dtype=object))


def test_what_is_missing_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        Run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"history\.csv"):
        _ = run.history
    with pytest.raises(FileNotFoundError, match="nobody"):
        run.film("nobody")
    assert run.metrics == {}


def test_invalid_study(tmp_path):
    """A study with a film twice or a column missing is refused."""
    twice = pd.concat([IMAGES, IMAGES.head(1)])
    with pytest.raises(ValueError, match="duplicate image_ids: a"):
        Run.create(tmp_path / "r", settings={}, images=twice, boxes=BOXES)
    with pytest.raises(ValueError, match="split"):
        Run.create(tmp_path / "r", settings={}, images=IMAGES.drop(columns="split"), boxes=BOXES)


def test_study_with_an_invalid_id(tmp_path):
    """The error names the table."""
    wrong = IMAGES.assign(image_id=["a", "b", "../c"])
    with pytest.raises(ValueError, match=r"^images: invalid image_id '\.\./c'"):
        Run.create(tmp_path / "r", settings={}, images=wrong, boxes=BOXES)


def test_write_figure(run):
    """A figure is saved in the format of its suffix, with the options of matplotlib."""
    figure = Figure(figsize=(2, 1))
    path = run.write_figure("one.png", figure, dpi=50)
    assert path == run.folder / "figures" / "one.png"
    assert image.imread(path).shape == (50, 100, 4)
    assert run.write_figure("one.pdf", figure).read_bytes().startswith(b"%PDF")


def test_config_is_plain_json(run):
    text = (run.folder / "config.json").read_text()
    assert json.loads(text)["settings"] == {"class_names": ["Pneumonia"], "seed": 1}


OTHER = {"class_names": ["Pneumonia"], "seed": 2}


def test_owner(run):
    """A run whose folder has got another run writes nothing more, whatever it writes."""
    Run.create(run.folder, settings=OTHER, images=IMAGES, boxes=BOXES)
    before = sorted(path.name for path in run.folder.rglob("*"))
    for write in (
        lambda: run.write_scores(PREDICTIONS, ["b", "007"], {"CAM": MAPS}, bias=BIAS),
        lambda: run.write_table("history.csv", IMAGES),
        lambda: run.write_json("training.json", {}),
        lambda: run.write_metrics({}, {}),
        lambda: run.write_arrays("features.npz", a=BIAS),
        lambda: run.write_film("b", np.zeros((8, 8), np.uint8)),
        run.set_results_aside,
        run.lock().__enter__,
    ):
        with pytest.raises(ValueError, match=r"another run was started here .*earlier/"):
            write()
    assert sorted(path.name for path in run.folder.rglob("*")) == before


def test_same_settings_other_owner(run):
    """Two runs with the same settings and data are two runs."""
    settings = run.config["settings"]
    again = Run.create(run.folder, settings=settings, images=IMAGES, boxes=BOXES)
    assert again.config["run_id"] != run.config["run_id"]
    with pytest.raises(ValueError, match="another run was started here"):
        run.write_json("training.json", {})
    again.write_json("training.json", {})


def test_lock_waits_for_a_write(run, monkeypatch):
    """A training that starts while an evaluation writes its file waits for that."""
    waits, locked = [], runs.locked
    monkeypatch.setattr(
        runs, "locked", lambda *which, wait=0: waits.append(wait) or locked(*which, wait=wait)
    )
    with run.lock():
        run.write_json("training.json", {})
    Run.create(run.folder, settings={}, images=IMAGES, boxes=BOXES)
    set_aside(run.folder)
    assert len(waits) == 4
    assert min(waits) > 0


@pytest.mark.parametrize("moved", [False, True])
def test_removed_under_lock(run, moved):
    """So is one that goes while it is changed."""
    with pytest.raises(FileNotFoundError, match="this run was removed or moved"), run.lock():
        shutil.move(run.folder, f"{run.folder}-away") if moved else shutil.rmtree(run.folder)
        run.film_path("007").read_bytes()
    with (
        pytest.raises(FileNotFoundError, match="missing"),
        Run.create(run.folder, settings={}, images=IMAGES, boxes=BOXES).lock(),
    ):
        run.read_json("training.json")


def test_removed_folder(run):
    """A run folder that is removed midway is not made again by halves."""
    shutil.rmtree(run.folder)
    with pytest.raises(FileNotFoundError, match="this run was removed or moved"):
        run.write_json("training.json", {})
    assert not run.folder.exists()


def test_creates_at_once(tmp_path):
    """Of several creates at the same moment, the folder has the last one's files, no mixture."""
    folder, start = tmp_path / "run", threading.Barrier(6)
    created, refused = [], []

    def create(number):
        images = IMAGES.assign(image_id=[f"{number}-{row}" for row in range(3)])
        settings = {"class_names": ["Pneumonia"], "seed": number}
        start.wait()
        try:
            Run.create(folder, settings=settings, images=images, boxes=BOXES)
            created.append(number)
        except BlockingIOError:
            refused.append(number)

    threads = [threading.Thread(target=create, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) + len(refused) == 6
    places = [folder, *(folder / "earlier").glob("*")]
    assert len(places) == len(created) > 0
    for place in places:
        run = Run(place)
        assert set(run.images["image_id"].str[0]) == {str(run.config["settings"]["seed"])}


def test_killed_while_setting_aside(run, monkeypatch):
    """What was moved before and after the kill is one run again."""
    run.write_table("history.csv", IMAGES)
    really, moves = Path.replace, []

    def killed(self, target):
        if len(moves) == 2:
            raise KeyboardInterrupt
        moves.append(self.name)
        return really(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Run.create(run.folder, settings=OTHER, images=IMAGES, boxes=BOXES)
    monkeypatch.undo()
    assert moves == ["images.csv", "boxes.csv"]
    Run.create(run.folder, settings=OTHER, images=IMAGES, boxes=BOXES)
    assert [path.name for path in (run.folder / "earlier").iterdir()] == ["1"]
    earlier = Run(run.folder / "earlier" / "1")
    assert earlier.config["settings"]["seed"] == 1
    assert len(earlier.images) == len(earlier.history) == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": OTHER}, r"\(other settings: seed was 1\)"),
        (
            {"settings": OTHER | {"seed": 1, "training": {"epochs": 24}}},
            r"\(other settings: training.epochs was None\)",
        ),
        ({"boxes": BOXES.assign(x=2.0)}, r"\(other films, labels, splits or boxes\)"),
        ({"images": IMAGES.assign(Pneumonia=1)}, r"\(other films, labels, splits or boxes\)"),
        ({"pixels": "1"}, r"\(other pixels of the films\)"),
        ({"pixels": None}, r"\(other pixels of the films\)"),
        ({"resume": False}, r"\(resume=False\)"),
    ],
)
def test_not_resumed(tmp_path, changes, reason):
    """A run is resumed with the same settings, data and pixels only, and says what it did."""
    given = {"settings": {"class_names": ["Pneumonia"], "seed": 1}, "images": IMAGES}
    given |= {"boxes": BOXES, "pixels": "0", "resume": True}
    folder = tmp_path / "run"
    first = Run.create(folder, **given)
    assert first.origin == "new run"
    first.write_json("training.json", {})
    assert Run.create(folder, **given).origin == "resumed"
    assert not (folder / "earlier").exists()
    origin = Run.create(folder, **(given | changes)).origin
    assert re.fullmatch(f"new run; the previous one is in .*earlier/1 {reason}", origin)
    assert (folder / "earlier" / "1" / "training.json").is_file()


def test_not_resumed_states(run):
    """Without an epoch a run is not resumed, nor is a damaged one; an evaluated one is."""
    given = {"settings": run.config["settings"], "images": IMAGES, "boxes": BOXES, "resume": True}
    origin = Run.create(run.folder, **given).origin
    assert origin.endswith("earlier/1 (no epoch was completed)")
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "epoch-0001.npz").touch()
    again = Run.create(run.folder, **given)
    assert again.origin == "resumed"
    again.write_json("training.json", {})
    shutil.rmtree(run.folder / "checkpoints")
    again.write_json("metrics.json", {})
    assert Run.create(run.folder, **given).origin == "resumed"
    (run.folder / "config.json").write_text("{")
    assert "config.json: damaged" in Run.create(run.folder, **given).origin
    (run.folder / "config.json").write_text("{}")
    origin = Run.create(run.folder, **given).origin
    assert "earlier/3 (" in origin and "config.json: no settings" in origin


def test_older_run(run):
    """A run folder from before there were ids and fingerprints of pixels stays usable."""
    config = run.config
    del config["run_id"], config["pixels"]
    (run.folder / "config.json").write_text(json.dumps(config))
    older = Run(run.folder)
    older.write_scores(PREDICTIONS, ["b", "007"], {"CAM": MAPS}, bias=BIAS)
    assert len(older.predictions) == 2
    given = {"settings": config["settings"], "images": IMAGES, "boxes": BOXES, "resume": True}
    older.write_json("training.json", {})
    origin = Run.create(run.folder, pixels="1", **given).origin
    assert origin.endswith("(no record of the films' pixels)")


def test_rescoring_sets_aside(run):
    """New scores take with them what was made from the old ones; nothing is lost."""
    run.write_scores(PREDICTIONS, ["b", "007"], {"CAM": MAPS}, bias=BIAS)
    run.write_arrays("features.npz", mean=BIAS)
    run.write_metrics({"classes": {"Pneumonia": 1}}, {"maps.npz": run.fingerprint("maps.npz")})
    (run.folder / "figures").mkdir()
    (run.folder / "figures" / "roc.png").touch()
    run.write_film("b", np.zeros((8, 8), np.uint8))
    run.write_scores(PREDICTIONS.assign(y_score=0.5), ["b", "007"], {"CAM": -MAPS}, bias=BIAS)
    for name in ("features.npz", "metrics.json", "figures"):
        assert not (run.folder / name).exists()
    assert run.film("b").shape == (8, 8)  # the films are the same
    earlier = Run(run.folder / "earlier" / "1")
    assert earlier.metrics == {"classes": {"Pneumonia": 1}}
    assert earlier.predictions["y_score"].tolist() == [0.75, 0.25]
    np.testing.assert_array_equal(earlier.maps()[1], MAPS)
    assert (earlier.folder / "figures" / "roc.png").is_file()


WRONG_PREDICTIONS = {
    "duplicate": (pd.concat([PREDICTIONS, PREDICTIONS.head(1)]), "1 films with two scores: b"),
    "two_scores": (
        pd.concat([PREDICTIONS, PREDICTIONS.head(1).assign(y_score=0.1)]),
        "1 films with two scores: b",
    ),
    "unknown_id": (PREDICTIONS.assign(image_id=["b", "x"]), "not in images.csv: x"),
    "unknown_class": (PREDICTIONS.assign(class_name="Mass"), "unknown classes: Mass; .*Pneumonia"),
    "other_split": (PREDICTIONS.assign(split="test"), "another split .*: b"),
    "training_film": (
        PREDICTIONS.assign(image_id=["b", "a"], split=["val", "train"]),
        "split.*: a",
    ),
    "other_label": (PREDICTIONS.assign(y_true=[1, 1]), "another label of Pneumonia than .*: 007"),
    "no_label": (PREDICTIONS.assign(y_true=[1, None]), "another label of Pneumonia than .*: 007"),
    "label_of_2": (PREDICTIONS.assign(y_true=[2, 0]), "another label of Pneumonia: b"),
    "nan": (PREDICTIONS.assign(y_score=[0.5, np.nan]), r"from 0 to 1: 007 \(nan\)"),
    "infinite": (PREDICTIONS.assign(y_score=[np.inf, 0.5]), r"from 0 to 1: b \(inf\)"),
    "above_1": (PREDICTIONS.assign(y_score=[1.5, 0.5]), r"from 0 to 1: b \(1.5\)"),
    "text": (PREDICTIONS.assign(y_score=["high", "0.5"]), r"from 0 to 1: b \(high\)"),
    "no_column": (PREDICTIONS.drop(columns="y_true"), "missing columns: y_true"),
}


@pytest.mark.parametrize("wrong", WRONG_PREDICTIONS)
def test_predictions_checked(run, wrong):
    """Scores are compared with films, splits and labels when they are written and read."""
    table, message = WRONG_PREDICTIONS[wrong]
    with pytest.raises(ValueError, match=rf"predictions\.csv: .*{message}"):
        run.write_scores(table, ["b", "007"], {"CAM": MAPS}, bias=BIAS)
    assert not list(run.folder.glob("*.npz"))
    table.to_csv(run.folder / "predictions.csv", index=False)
    with pytest.raises(ValueError, match=rf"predictions\.csv: .*{message}"):
        _ = run.predictions


def test_missing_label(tmp_path):
    """A film without a label has a score and a missing label."""
    images = IMAGES.assign(Pneumonia=[0, 1, None])
    settings = {"class_names": ["Pneumonia"]}
    run = Run.create(tmp_path / "run", settings=settings, images=images, boxes=BOXES)
    table = PREDICTIONS.assign(y_true=[1, None])
    run.write_scores(table, ["b", "007"], {"CAM": MAPS}, bias=BIAS)
    assert run.predictions["y_true"].isna().tolist() == [False, True]


def test_ids_that_look_missing(tmp_path):
    """NA, None and null are ids like others."""
    images = IMAGES.assign(image_id=["NA", "None", "null"], patient_id=["nan", "NA", "None"])
    run = Run.create(tmp_path / "run", settings={}, images=images, boxes=BOXES)
    assert run.images["image_id"].tolist() == ["NA", "None", "null"]
    assert run.images["patient_id"].tolist() == ["nan", "NA", "None"]


@pytest.mark.parametrize("image_id", ["../../x", "/etc/x", "CON", ""])
def test_ids_stay_inside(run, image_id):
    """No id leads out of the run, in reading or in images.csv."""
    (run.folder.parent / "x.jpg").write_bytes(b"secret")
    with pytest.raises(ValueError, match="invalid image_id"):
        run.film(image_id)
    images = IMAGES.assign(image_id=["a", "b", image_id])
    with pytest.raises(ValueError, match="invalid image_id"):
        Run.create(run.folder, settings={}, images=images, boxes=BOXES)
    (run.folder / "images.csv").write_text(images.to_csv(index=False))
    with pytest.raises(ValueError, match=r"images\.csv: invalid image_id"):
        _ = run.images
    with pytest.raises(ValueError, match="expected a file inside"):
        run.read_json("../config.json")


HOSTILE_JSON = {
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "nested dicts": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "cut": b'{"a":',
    "list": b"[1]",
    "nan": b'{"a": NaN}',
    "bytes": b"\xff\xfe",
    "empty": b"",
}


@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_hostile_json(run, kind):
    """A damaged metrics.json or config.json is an error with its name."""
    for name, read in (
        ("metrics.json", lambda: run.metrics),
        ("training.json", lambda: run.read_json("training.json")),
        ("config.json", lambda: Run(run.folder)),
    ):
        (run.folder / name).write_bytes(HOSTILE_JSON[kind])
        with pytest.raises(ValueError, match=rf"{name}: (damaged|nested too deep|holds a|NaN)"):
            read()


def test_config_types(run):
    """Settings and classes of another type are named."""
    config = run.config
    for names in (None, "Pneumonia", [], [1], ["a", "a"], {"a": 1}):
        settings = {"class_names": names}
        (run.folder / "config.json").write_text(json.dumps(config | {"settings": settings}))
        with pytest.raises(ValueError, match=r"config\.json: class_names=.*expected a list"):
            _ = Run(run.folder).class_names
    (run.folder / "config.json").write_text(json.dumps(config | {"settings": 3}))
    with pytest.raises(ValueError, match=r"config\.json: no settings"):
        Run(run.folder)


def test_metrics_source_is_a_source(run):
    """A metrics.json that says it was made from something else is not current."""
    for made_from in ({"metrics.json": "0"}, {"../x": "0"}, [1], "x", 3, None):
        run.write_json("metrics.json", {"classes": {}, "made_from": {"classes": made_from}})
        assert run.metrics == {}


def _npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _declared(shape, arrays):
    """An .npz file with an array of maps that declares a shape and has no data."""
    buffer, header = io.BytesIO(_npz(**arrays)), io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("maps/CAM.npy", header.getvalue())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bomb", r"maps/CAM\.npy unpacks to 268 MB"),
        ("bomb beside", r"extra\.npy unpacks to 268 MB"),
        ("types", "expected text"),
        ("another shape", "expected text"),
        ("pickled", "allow_pickle"),
        ("cut", "damaged"),
        ("not a zip", "damaged"),
        ("one array", "damaged"),
        ("declared", "damaged"),
    ],
)
def test_hostile_maps(run, kind, message):
    """A maps.npz that is damaged, of other types, or would fill the memory is refused by name."""
    run.write_scores(PREDICTIONS, ["b", "007"], {"CAM": MAPS}, bias=BIAS)
    path = run.folder / "maps.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    without_maps = {name: array for name, array in arrays.items() if name != "maps/CAM"}
    large, buffer = np.zeros(2**26, np.float32), io.BytesIO()
    np.save(buffer, MAPS)
    content = {
        "bomb": lambda: _npz(**arrays | {"maps/CAM": large}),
        "bomb beside": lambda: _npz(**arrays, extra=large),
        "types": lambda: _npz(**arrays | {"maps/CAM": MAPS.astype(str)}),
        "another shape": lambda: _npz(**arrays | {"maps/CAM": MAPS[:1]}),
        "pickled": lambda: _npz(**arrays | {"image_id": np.array(["b", 7], dtype=object)}),
        "cut": lambda: path.read_bytes()[:-30],
        "not a zip": lambda: b"maps",
        "one array": buffer.getvalue,
        "declared": lambda: _declared((2, 1, 2**14, 2**14), without_maps),
    }[kind]()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"maps\.npz: .*{message}"):
        run.maps()
    path.rename(run.folder / "features.npz")
    if kind not in ("types", "another shape"):
        with pytest.raises(ValueError, match=r"features\.npz: "):
            run.read_arrays("features.npz")


def test_half_written_files_are_not_set_aside(run):
    """What a killed training left behind is not kept with the run."""
    (run.folder / "checkpoints").mkdir()
    for name in ("epoch-0001.npz", ".epoch-0002.npz.9.part"):
        (run.folder / "checkpoints" / name).write_bytes(b"half")
    set_aside(run.folder)
    kept = run.folder / "earlier" / "1" / "checkpoints"
    assert [path.name for path in kept.iterdir()] == ["epoch-0001.npz"]


def test_scored_films(tmp_path):
    """Those of one class: validation, then test; by default of the first class."""
    run = write_run(tmp_path / "run", films=40, classes=("Pneumonia", "Mass"))
    table = run.predictions
    for given, name in ((None, "Pneumonia"), ("Pneumonia", "Pneumonia"), ("Mass", "Mass")):
        for split, films in zip(("val", "test"), run.scored_films(given), strict=True):
            expected = table[(table["class_name"] == name) & (table["split"] == split)]
            assert films["image_id"].tolist() == expected["image_id"].tolist()
            assert films["y_score"].tolist() == expected["y_score"].tolist()
            assert len(films) > 3
            assert films.index.tolist() == list(range(len(films)))
