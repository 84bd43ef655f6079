"""One film and folders of films: the same score as in the run, and a row for every file."""

import dataclasses
import json
import shutil
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest

from chexnet import predict
from chexnet.cam import shared_scale
from chexnet.cli import main
from chexnet.dicom import FilmError, convert_folder, read_films
from chexnet.evaluation import (
    ORIENTATIONS,
    calibrated_scores,
    chosen_threshold,
    evaluate,
    evaluate_maps,
    feature_distance,
    fit_familiarity,
)
from chexnet.explorer import upload_panel
from chexnet.figures import blend
from chexnet.files import read_image, read_table
from chexnet.generator import ImageStore
from chexnet.labels import add_film_facts, read_rsna
from chexnet.phantom import write_phantom_study
from chexnet.predict import Predictor, predict_folder
from chexnet.runs import Run
from chexnet.splits import split_by_patient
from chexnet.training import record_scores
from tests.alone import run_without_keras
from tests.training.test_loop import tiny_network

SIZE = 32


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A study, its JPGs and a scored run with random weights, without CLAHE."""
    home = tmp_path_factory.mktemp("home")
    write_phantom_study(home / "study", films=24, film_size=128)
    convert_folder(home / "study" / "stage_2_train_images", home / "jpg", progress=False)
    images, boxes = read_rsna(home / "study")
    images = add_film_facts(images, read_films(home / "jpg"))
    images["split"] = split_by_patient(images, train=0.5, val=0.25, test=0.25)
    settings = {"class_names": ["Pneumonia"]}
    run = Run.create(home / "run", settings=settings, images=images, boxes=boxes)
    model = tiny_network()
    model.save(run.folder / "model.keras")
    ids = images["image_id"]
    store = ImageStore(home / "jpg", ids, image_size=SIZE, clip_limit=None, progress=False)
    record_scores(run, model, store, home / "jpg")
    evaluate(run, n_bootstrap=20)
    return home


@pytest.fixture(scope="module")
def predictor(home):
    return Predictor(home / "run")


@pytest.fixture
def folder(home, tmp_path):
    """Three films, one of them broken, and a text file."""
    films = sorted((home / "study" / "stage_2_train_images").iterdir())[:3]
    for film in films:
        (tmp_path / "films" / film.name).parent.mkdir(exist_ok=True)
        (tmp_path / "films" / film.name).write_bytes(film.read_bytes())
    broken = tmp_path / "films" / films[2].name
    broken.write_bytes(broken.read_bytes()[:1500])
    (tmp_path / "films" / "notes.txt").write_text("not a film")
    return tmp_path / "films"


def test_score_of_the_run(home, predictor):
    """A film of the run has the score of the run from its JPG and from its DICOM."""
    scored = predictor.run.predictions.iloc[[0, 5, -1]]
    for film in scored.itertuples():
        dicom = home / "study" / "stage_2_train_images" / f"{film.image_id}.dcm"
        jpg = home / "jpg" / f"{film.image_id}.jpg"
        for source in (dicom, jpg, read_image(jpg)):
            found = predictor(source).scores["Pneumonia"]
            assert abs(found - film.y_score) <= 1e-6
        assert predictor(dicom).header["view"] == film.view


def test_clahe_is_that_of_the_run(home, predictor):
    """The same film with the default CLAHE has another score, so the test above can fail."""
    film = min((home / "jpg").glob("*.jpg"))
    other = Predictor(home / "run" / "model.keras")
    assert abs(other(film).scores["Pneumonia"] - predictor(film).scores["Pneumonia"]) > 1e-4


def test_threshold_and_temperature_are_those_of_the_run(home, predictor):
    films = calibrated_scores(predictor.run)
    threshold = chosen_threshold(predictor.run)[0]
    for film in films.iloc[[0, -1]].itertuples():
        found = predictor(home / "jpg" / f"{film.image_id}.jpg")
        assert found.thresholds == {"Pneumonia": threshold}
        assert found.positive == {"Pneumonia": film.y_score >= threshold}
        assert found.calibrated["Pneumonia"] == pytest.approx(film.probability, abs=1e-5)


def test_a_map_explains_its_score(home, predictor):
    found = predictor(min((home / "jpg").glob("*.jpg")))
    bias = predictor.run.read_arrays("maps.npz")["bias"][0]
    logit = found.maps["Pneumonia"].mean() + bias
    assert 1 / (1 + np.exp(-logit)) == pytest.approx(found.scores["Pneumonia"], abs=1e-5)


def test_a_16_bit_png_and_a_color_film_are_scored(tmp_path, home, predictor):
    film = read_image(min((home / "jpg").glob("*.jpg")))
    deep, color = tmp_path / "deep.png", tmp_path / "color.png"
    cv2.imwrite(str(deep), film.astype(np.uint16) * 257)
    cv2.imwrite(str(color), np.stack([film, film // 2, 255 - film], axis=-1))
    expected = predictor(film).scores["Pneumonia"]
    assert predictor(deep).scores["Pneumonia"] == pytest.approx(expected, abs=0.02)
    assert any("color" in warning for warning in predictor(color).warnings)


@pytest.mark.parametrize(
    "array", [np.zeros((8, 8)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8), np.uint8)]
)
def test_an_array_that_is_no_film_is_refused(predictor, array):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W\), 0 = black"):
        predictor(array)


def test_a_file_that_is_no_film_is_refused_by_name(folder, predictor):
    with pytest.raises(FilmError, match=r"notes\.txt"):
        predictor(folder / "notes.txt")


def test_what_differs_from_the_training_films_is_said(home, predictor):
    film = predictor.read(min((home / "jpg").glob("*.jpg")))

    def warnings(percentile=0.0, **changes):
        changed = film._replace(header={**film.header, "view": "PA"} | changes)
        return predictor._training.warnings(changed, percentile)

    assert warnings(99.0) == warnings(view=None) == ()
    assert warnings(view="LL") == ("view LL; the training films are AP, PA",)
    assert "20 x 20 pixels" in warnings(rows=20, columns=20)[0]
    assert "width / height is 2.00" in warnings(columns=256)[0]
    assert "further from them than 100 %" in warnings(100.0)[0]


def test_a_film_that_is_turned_or_inverted_is_said(home, predictor):
    said = []
    for path in sorted((home / "jpg").glob("*.jpg"))[:6]:
        film = read_image(path)
        copies = [*(np.rot90(film, turns) for turns in range(4)), 255 - film]
        for copy in copies:
            said.append([w for w in predictor(np.ascontiguousarray(copy)).warnings if "looks" in w])
    expected = [[], *([f"looks {name}"] for name in ORIENTATIONS[1:])]
    assert said == expected * 6


def test_distance_is_that_of_mahalanobis():
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 3.0, 0.5])
    train = rng.normal(size=(200_000, 3)) * spread
    films = rng.integers(0, 256, (10, 32, 32), dtype=np.uint8)
    fitted = fit_familiarity(train, train[:100], films)
    limits = {name: fitted[name] for name in ("mean", "precision")}
    far = feature_distance(np.array([[0, 0, 0], [0, 6, 0], [3, 3, 0]]), **limits)
    np.testing.assert_allclose(far, [0, 2, np.sqrt(9 + 1)], atol=0.05)
    assert (np.diff(fitted["val_distances"]) >= 0).all()


def test_noise(predictor):
    """Noise is further from the training films than validation."""
    noise = np.random.default_rng(0).integers(0, 2, (32, 32), dtype=np.uint8)
    found = predictor(np.kron(noise, np.full((4, 4), 255, np.uint8)))
    assert found.percentile == 100
    assert "unlike the training films" in found.warnings[-1]


def test_a_bad_film_is_a_row(folder, tmp_path, predictor):
    table = predict_folder(predictor, folder, tmp_path / "out", progress=False)
    assert table["status"].tolist() == ["scored", "scored", "failed", "failed"]
    assert table["reason"].iloc[3] == "not a DICOM, PNG or JPG file"
    again = read_table(tmp_path / "out" / "predictions.csv")
    pd.testing.assert_frame_equal(table, again)
    assert list(table) == [
        *("file", "image_id", "status", "reason"),
        *("score_Pneumonia", "calibrated_Pneumonia", "positive_Pneumonia"),
        *("percentile", "warnings", "view", "sex", "age", "rows", "columns"),
        *predict._BOOKKEEPING,
    ]
    scale = predictor.facts.map_scales["Pneumonia"]
    for row in table[table["status"] == "scored"].itertuples():
        found = predictor(row.file)
        assert row.score_Pneumonia == pytest.approx(found.scores["Pneumonia"], abs=1e-6)
        assert row.calibrated_Pneumonia == pytest.approx(found.calibrated["Pneumonia"], abs=1e-5)
        assert row.positive_Pneumonia == found.positive["Pneumonia"]
        assert row.percentile == found.percentile
        facts = {name: getattr(row, name) for name in ("view", "sex", "age", "rows", "columns")}
        assert facts == found.header
        overlay = tmp_path / "out" / "overlays" / "Pneumonia" / f"{row.image_id}.jpg"
        picture = cv2.imread(str(overlay))[..., ::-1].astype(int)
        assert picture.shape == (128, 128, 3)
        expected = blend(found.film, found.maps["Pneumonia"], scale=scale)
        assert np.abs(picture - expected.astype(int)).mean() < 8


def test_stopped_run(folder, tmp_path, predictor, monkeypatch):
    """A stopped run goes on and a changed film is scored again."""
    calls = []
    score = Predictor.score

    def stop_at_the_second(self, films, **how):
        if calls:
            raise KeyboardInterrupt
        calls.append(len(films))
        return score(self, films, **how)

    monkeypatch.setattr(Predictor, "score", stop_at_the_second)
    how = {"batch_size": 1, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        predict_folder(predictor, folder, tmp_path / "out", **how)
    assert len(read_table(tmp_path / "out" / "predictions.csv")) == 1
    monkeypatch.setattr(Predictor, "score", score)
    first = predict_folder(predictor, folder, tmp_path / "out", **how)
    assert (first["status"] == "scored").sum() == 2

    monkeypatch.setattr(Predictor, "score", stop_at_the_second)
    again = predict_folder(predictor, folder, tmp_path / "out", **how)
    pd.testing.assert_frame_equal(first, again)
    film = min(folder.glob("*.dcm"))
    other = sorted(folder.glob("*.dcm"))[1]
    film.write_bytes(other.read_bytes())
    with pytest.raises(KeyboardInterrupt):
        predict_folder(predictor, folder, tmp_path / "out", **how)


def test_shards_share_the_films(folder, tmp_path, predictor):
    parts = [
        predict_folder(predictor, folder, tmp_path / "out", shard=f"{k}/3", progress=False)
        for k in (1, 2, 3)
    ]
    together = pd.concat(parts)
    assert together["file"].is_unique
    assert len(together) == 4
    assert {path.name for path in (tmp_path / "out").glob("*.csv")} == {
        f"predictions-{k}-of-3.csv" for k in (1, 2, 3)
    }


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", ""])
def test_a_shard_that_cannot_be_is_refused(folder, tmp_path, predictor, shard):
    with pytest.raises(ValueError, match="expected k/n"):
        predict_folder(predictor, folder, tmp_path / "out", shard=shard)


def test_files_of_the_same_name_get_ids_of_their_own(folder, tmp_path, predictor):
    other = tmp_path / "more" / min(folder.glob("*.dcm")).name
    other.parent.mkdir()
    other.write_bytes(min(folder.glob("*.dcm")).read_bytes())
    for number, given in enumerate(([folder, other], [other, folder])):
        table = predict_folder(predictor, given, tmp_path / f"out{number}", progress=False)
        assert len(table) == 5
        assert table["image_id"].is_unique


def test_two_at_once_are_refused(folder, tmp_path, predictor, monkeypatch):
    inside, leave = threading.Event(), threading.Event()
    read = Predictor.read

    def wait(self, film):
        inside.set()
        leave.wait(30)
        return read(self, film)

    monkeypatch.setattr(Predictor, "read", wait)
    out = tmp_path / "out"
    first = threading.Thread(target=predict_folder, args=(predictor, folder, out))
    first.start()
    assert inside.wait(30)
    with pytest.raises(BlockingIOError, match=r"predictions\.csv: another process"):
        predict_folder(predictor, folder, out)
    leave.set()
    first.join()
    assert len(read_table(out / "predictions.csv")) == 4


def test_a_table_of_somebody_else_is_not_overwritten(folder, tmp_path, predictor):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a table of predictions"):
        predict_folder(predictor, folder, tmp_path / "out")
    assert (tmp_path / "out" / "predictions.csv").read_text() == "a,b\n1,2\n"


def test_a_model_of_another_kind_is_refused(home, tmp_path):
    with pytest.raises(ValueError, match="the model has 1 scores"):
        Predictor(home / "run" / "model.keras", class_names=["A", "B"])
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        Predictor(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"class_names": ["A"]}}))
    with pytest.raises(FileNotFoundError, match=r"model\.keras"):
        Predictor(tmp_path)


def test_the_command_scores_and_says_what_failed(home, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["predict", str(home / "run"), str(folder), "--out", str(out), "--quiet"]) == 1
    said, errors = capsys.readouterr()
    assert f"4 films: 2 scored, 2 failed; table: {out / 'predictions.csv'}" in said
    assert "notes.txt" in errors
    film = str(min(folder.glob("*.dcm")))
    assert main(["predict", str(home / "run"), film, "--out", str(out / "one"), "--quiet"]) == 0
    assert main(["predict", str(home / "run"), "missing", "--out", str(out)]) == 2
    assert "missing: no such file or folder" in capsys.readouterr().err


def test_the_command_converts(home, folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "jpg"), "--quiet"]) == 1
    assert "4 films: 2 copied, 0 encoded, 2 failed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    assert "examples:" in capsys.readouterr().out


def test_a_figure_shows_film_map_and_score(home, predictor):
    found = predictor(min((home / "jpg").glob("*.jpg")))
    film, overlay, histogram = found.figure().axes
    assert [ax.get_title() for ax in (film, overlay)] == ["film", "evidence (class activation map)"]
    legend = [text.get_text() for text in histogram.get_legend().get_texts()]
    assert f"this film {found.scores['Pneumonia']:.2f}" in legend
    with pytest.raises(ValueError, match="expected one of"):
        found.figure("Edema")


def test_color_scale_of_the_figure(home, predictor, monkeypatch):
    """It is that of the run's test maps, as in the results figure and the explorer."""
    monkeypatch.setattr(predict, "prediction_figure", lambda *_, **given: given)
    given = predictor(min((home / "jpg").glob("*.jpg"))).figure()
    _, test = predictor.run.scored_films()
    maps = predictor.run.maps_of(test["image_id"], "test")[:, 0]
    assert given["scale"] == shared_scale(maps) != shared_scale(predictor.run.maps()[1][:, 0])
    assert given["class_name"] == "Pneumonia"


@pytest.mark.parametrize("name", ["workers", "batch_size"])
def test_numbers_below_1_are_refused(folder, tmp_path, predictor, name):
    with pytest.raises(ValueError, match=f"^{name}=0: expected"):
        predict_folder(predictor, folder, tmp_path / "out", **{name: 0})


def test_reading_films_needs_no_keras():
    run_without_keras("import chexnet.predict, chexnet.cli")


def test_a_batch_is_filled(predictor, monkeypatch):
    """The network sees one size of batch, since each other size is compiled anew."""
    film = predictor.read(np.full((40, 40), 90, np.uint8))
    seen, forward = [], predictor._forward

    def remember(batch):
        seen.append(batch)
        return forward(batch)

    monkeypatch.setattr(predictor, "_forward", remember)
    for films, batch_size in ((3, 4), (4, 4), (3, 2)):
        assert len(predictor.score([film] * films, batch_size=batch_size)) == films
    assert [len(batch) for batch in seen] == [4, 4, 3]
    assert (seen[0][:3] == seen[1][:3]).all()
    assert not seen[0][3].any()


def test_a_network_of_torchxrayvision(monkeypatch):
    """It is scored without CLAHE, thresholds or a run."""
    monkeypatch.setattr("chexnet.model.load_torchxrayvision", lambda name: (tiny_network(), [name]))
    predictor = Predictor("torchxrayvision:all")
    assert (predictor.class_names, predictor.run) == (["torchxrayvision:all"], None)
    assert predictor.facts.preparation == {"image_size": SIZE, "clip_limit": None}
    found = predictor(np.full((40, 40), 90, np.uint8))
    assert 0 < found.scores["torchxrayvision:all"] < 1
    assert found.positive == found.calibrated == {"torchxrayvision:all": None}
    assert (found.percentile, found.warnings) == (None, ())


def test_another_runtime(home, predictor, monkeypatch):
    """The run's network is exported for it; a file with a network has none."""
    asked = []

    def open_run(run, runtime):
        asked.append((run.folder, runtime))
        return SimpleNamespace(forward=None, facts=predictor.facts, fingerprint="abc")

    monkeypatch.setattr(predict, "open_run", open_run)
    assert Predictor(home / "run", runtime="onnx").run.folder == home / "run"
    assert asked == [(home / "run", "onnx")]
    with pytest.raises(ValueError, match=r"model\.keras: runtime='onnx', expected a run folder"):
        Predictor(home / "run" / "model.keras", runtime="onnx")


def test_dicom_objects_are_written_later(folder, tmp_path, predictor, monkeypatch):
    """A scored film is done again where they are asked for and missing, and only there."""
    written = []

    def write(found, source, target):
        written.append((found, source, target))
        target.mkdir(parents=True, exist_ok=True)
        (target / "report.dcm").touch()

    monkeypatch.setattr(predict, "write_dicom_results", write)
    how = {"overlays": False, "progress": False}
    first = predict_folder(predictor, folder, tmp_path / "out", **how)
    assert "dicom" not in first
    assert not (tmp_path / "out" / "overlays").exists()
    for _ in range(2):
        table = predict_folder(predictor, folder, tmp_path / "out", dicom=True, **how)
        assert table["dicom"].fillna("").tolist() == ["written", "written", "", ""]
    assert len(written) == 2
    for (found, source, target), row in zip(written, table.itertuples(), strict=False):
        assert (found.source, str(source)) == (row.file, row.file)
        name = f"{row.image_id}-{predictor.fingerprint[:8]}"
        assert target == tmp_path / "out" / "dicom" / name
    (target / "report.dcm").unlink()
    predict_folder(predictor, folder, tmp_path / "out", dicom=True, **how)
    assert len(written) == 3 and (target / "report.dcm").is_file()


def test_an_overlay_belongs_to_its_row(home, folder, tmp_path, predictor):
    """It is made when it is asked for and missing, and never left from another model or film."""
    out = tmp_path / "out"
    other = Predictor(home / "run" / "model.keras")

    def overlays(model, **how):
        predict_folder(model, folder, out, progress=False, **how)
        return {path.stem: path.read_bytes() for path in out.glob("overlays/*/*.jpg")}

    assert overlays(predictor, overlays=False) == {}
    first = overlays(predictor)
    assert len(first) == 2
    min(out.glob("overlays/*/*.jpg")).unlink()
    assert overlays(predictor) == first
    assert overlays(predictor, overlays=False) == first  # of the same model
    assert overlays(other, overlays=False) == {}
    changed = overlays(other)
    assert changed.keys() == first.keys() and all(changed[name] != first[name] for name in first)
    assert overlays(predictor) == first
    film = min(folder.glob("*.dcm"))
    film.write_bytes(film.read_bytes()[:1500])
    assert overlays(predictor).keys() == first.keys() - {film.stem}


def test_other_maps_give_other_overlays_and_objects(predictor, home, tmp_path):
    """What colors or outlines a map is part of what a row and the UIDs of its objects stand for."""
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    assert Predictor(run).fingerprint == predictor.fingerprint
    evaluate_maps(Run(run), n_bootstrap=2)  # chooses the map threshold
    assert Predictor(run).facts.map_thresholds != predictor.facts.map_thresholds
    assert Predictor(run).fingerprint != predictor.fingerprint


def test_no_figure_beside_a_run_that_was_trained_again(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    panel = upload_panel(Predictor(tmp_path / "run"))
    film = min((home / "jpg").glob("*.jpg")).read_bytes()
    panel.show("film.jpg", film)
    assert "score" in panel.text.value
    model = tiny_network()
    model.set_weights([2 * weights for weights in model.get_weights()])
    model.save(tmp_path / "run" / "model.keras")
    panel.show("film.jpg", film)
    assert "Error" in panel.text.value and "trained again since" in panel.text.value
    assert panel.picture.layout.display == "none"


@pytest.mark.parametrize("shape", [(3000, 1), (1, 3000), (1, 1)])
def test_a_film_of_any_shape_gets_an_overlay(tmp_path, predictor, shape):
    (tmp_path / "films").mkdir()
    cv2.imwrite(str(tmp_path / "films" / "thin.png"), np.full(shape, 90, np.uint8))
    table = predict_folder(predictor, tmp_path / "films", tmp_path / "out", progress=False)
    assert table["status"].tolist() == ["scored"]
    assert (tmp_path / "out" / "overlays" / "Pneumonia" / "thin.jpg").is_file()


def test_facts_of_training_films(predictor):
    """Where views and sides of the training films are not known, nothing is said of them."""
    film = predictor.read(np.full((40, 90), 90, np.uint8))
    film = film._replace(header={**film.header, "view": "LL"})

    def said(**known):
        known = {"orientation": predictor.facts.training_films["orientation"], **known}
        facts = dataclasses.replace(predictor.facts, training_films=known)
        found = predict._TrainingFilms(facts, None).warnings(film, None)
        return [text.split(";")[0] for text in found if text.split()[0] in ("view", "width")]

    assert said(views=["AP"], width_by_height=(1.0, 2.0)) == ["view LL", "width / height is 2.25"]
    assert said() == []
