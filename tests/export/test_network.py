"""The exported network gives the scores and maps of Keras, in each format, for any batch."""

import errno
import json
import shutil

import keras
import numpy as np
import pandas as pd
import pytest

from chexnet.cam import exact_forward
from chexnet.cli import main
from chexnet.export import describe_run, export_model, network, of_run, open_exported, open_run
from chexnet.model import build_chexnet, load_chexnet, with_outputs_for_export
from chexnet.predict import Predictor, predict_folder
from chexnet.runs import Run
from tests.alone import need, run_without_keras
from tests.made_up_run import small_network, write_films, write_model, write_run

TARGETS = {
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "litert": "model.tflite",
    "tf_saved_model": "saved",
}
LIBRARIES = {
    "onnx": ("onnxruntime", "tf2onnx"),
    "openvino": ("openvino",),
    "litert": ("ai_edge_litert",),
    "tf_saved_model": (),
}
CLASSES = ("Pneumonia", "Effusion")


def write_small_run(folder, **changes):
    """A made-up run of two classes with the small network."""
    return write_model(write_films(write_run(folder, films=60, classes=CLASSES, **changes)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_small_run(tmp_path_factory.mktemp("export") / "output" / "run")


@pytest.fixture(scope="module")
def films():
    return np.random.default_rng(0).integers(0, 256, (19, 32, 32, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Exports a run once a format."""
    done = {}

    def export(name):
        for library in LIBRARIES[name]:
            need(library, f"pip install 'chexnet[{name}]'")
        if name not in done:
            done[name] = export_model(run, tmp_path_factory.mktemp(name) / TARGETS[name])
        return done[name]

    return export


@pytest.mark.parametrize("name", TARGETS)
def test_score_and_map_are_those_of_keras_for_any_batch(name, run, exported, films):
    scores, maps, _ = exact_forward(load_chexnet(run.folder / "model.keras"))(films)
    assert scores.std() > 1e-3
    assert maps.std() > 1e-2
    forward = open_exported(exported(name)).forward
    for count in (1, 3, 19, 8, 2):
        ours = forward(films[:count])
        np.testing.assert_allclose(ours[0], scores[:count], atol=1e-5)
        np.testing.assert_allclose(ours[1], maps[:count], atol=1e-5)
        assert ours[2] is None


@pytest.mark.parametrize("name", TARGETS)
def test_what_a_program_needs_is_in_the_file_and_beside_it(name, run, exported):
    path = exported(name)
    facts = open_exported(path).facts
    beside = json.loads(path.with_name(f"{path.name}.json").read_text())
    predictor = Predictor(run.folder)
    assert facts == predictor.facts
    assert beside["class_names"] == list(CLASSES)
    assert beside["preparation"] == {"image_size": 32, "clip_limit": 2.0, "tiles": 8}
    assert beside["thresholds"] == predictor.thresholds
    assert beside["temperatures"]["Effusion"] > 0
    assert beside["run"]["model"] == run.fingerprint("model.keras")
    assert "Not for clinical use" in beside["note"]
    assert beside["format"] == name
    assert beside["checked"]["films"].endswith("test films of the run")
    assert 0 <= beside["checked"]["greatest_error"]["map"] <= 1e-4


def test_an_onnx_file_has_one_input_and_two_outputs_score_first(exported):
    path = exported("onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    assert [(one.name, one.shape) for one in session.get_inputs()] == [
        ("film", ["batch", 32, 32, 1])
    ]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [
        ("score", ["batch", 2]),
        ("map", ["batch", 2, 4, 4]),
    ]


def test_check_on_validation_films(run, tmp_path, monkeypatch):
    """The check is made on validation films where they are at hand."""
    need("onnxruntime", "pip install 'chexnet[onnx]'")
    folder = tmp_path / "jpg"
    shutil.copytree(run.folder / "films", folder)
    val = run.images.query("split == 'val'")["image_id"]
    film = next(folder.iterdir())
    for image_id in val:
        shutil.copyfile(film, folder / f"{image_id}.jpg")
    path = export_model(run, tmp_path / "a.onnx", films=folder)
    beside = json.loads(path.with_name("a.onnx.json").read_text())
    assert beside["checked"]["films"] == f"{len(val)} validation films"
    (folder / f"{val.iloc[1]}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{val.iloc[1]}\.jpg"):
        export_model(run, tmp_path / "b.onnx", films=folder)


def test_an_export_that_is_wrong_is_an_error_and_leaves_no_file(run, tmp_path, monkeypatch):
    need("openvino", "pip install 'chexnet[openvino]'")

    def with_another_bias(model, **options):
        plain = with_outputs_for_export(model, **options)
        bias = plain.get_layer("predictions").bias
        bias.assign(np.asarray(bias) + 0.01)
        return plain

    monkeypatch.setattr("chexnet.model.with_outputs_for_export", with_another_bias)
    with pytest.raises(ValueError, match=r"model\.xml: score differs by .* expected 0\.0001"):
        export_model(run, tmp_path / "model.xml")
    assert not list(tmp_path.iterdir())


def test_lower_precision(films, tmp_path):
    """A network trained in a lower precision is exported in float32."""
    model = small_network(CLASSES, precision="mixed_bfloat16")
    plain = with_outputs_for_export(model)
    assert {layer.compute_dtype for layer in plain.layers} == {"float32"}
    difference = np.abs(plain.predict(films, verbose=0)["score"] - model.predict(films, verbose=0))
    assert 0 < difference.max() < 0.01
    run = write_small_run(tmp_path / "run")
    model.save(run.folder / "model.keras")
    path = export_model(run, tmp_path / "model.onnx")
    exact = small_network(CLASSES).predict(films, verbose=0)
    np.testing.assert_allclose(open_exported(path).forward(films)[0], exact, atol=1e-5)


def test_the_outputs_for_export_are_those_of_the_exact_map(films):
    model = small_network(CLASSES)
    scores, maps, features = exact_forward(model)(films)
    outputs = with_outputs_for_export(model, features=True).predict(films, verbose=0)
    np.testing.assert_allclose(outputs["score"], scores, atol=1e-6)
    np.testing.assert_allclose(outputs["map"], maps, atol=1e-5)
    np.testing.assert_allclose(outputs["features"], features, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "name", "message"),
    [
        ("model.h5", None, "expected a file name that ends with .onnx, .xml, .tflite"),
        ("model.onnx", "openvino", "format='openvino', expected a name that ends with .xml"),
        ("model.onnx", "torch", "format='torch': expected one of"),
    ],
)
def test_a_format_or_name_that_does_not_fit_is_refused(run, tmp_path, target, name, message):
    with pytest.raises(ValueError, match=message):
        export_model(run, tmp_path / target, format=name)


def test_nothing_is_overwritten(run, tmp_path):
    for existing, target in (("a.onnx", "a.onnx"), ("b.bin", "b.xml"), ("c.json", "c")):
        (tmp_path / existing).write_text("mine")
        with pytest.raises(FileExistsError, match=existing):
            export_model(run, tmp_path / target)
        assert (tmp_path / existing).read_text() == "mine"


def test_an_export_of_a_killed_process_is_made_again(run, tmp_path):
    """In the run's own folder, whatever it has left."""
    need("onnxruntime", "pip install 'chexnet[onnx]'")
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("exported"))
    copy = Run(folder)
    exported = folder / "exported" / copy.fingerprint("model.keras")[:16]
    (exported / ".export-left").mkdir(parents=True)
    (exported / "model.onnx.json").write_text("{}")
    open_run(copy, "onnx")
    assert {path.name for path in exported.iterdir()} == {
        *("model.onnx", "model.onnx.json", ".lock"),
    }
    assert json.loads((exported / "model.onnx.json").read_text())["format"] == "onnx"


def test_a_full_disk_is_named(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(network._WRITE, "onnx", full)
    with pytest.raises(OSError, match=r"No space left on device: .*model\.onnx"):
        export_model(run, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_of_somebody_else_is_refused(tmp_path):
    for name, library in (("a.onnx", "onnxruntime"), ("a.xml", "openvino")):
        need(library, f"pip install {library}")
        (tmp_path / name).write_text("<net/>")
        with pytest.raises(ValueError, match=f"{name}: not a network that chexnet export wrote"):
            open_exported(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.tflite"):
        open_exported(tmp_path / "missing.tflite")


def test_missing_runtime(exported, monkeypatch):
    """A runtime that is not installed is named with its remedy."""
    path = exported("onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime is not installed; pip install 'chexnet"):
        open_exported(path)


@pytest.mark.parametrize("name", ["onnx", "openvino", "litert"])
def test_a_predictor_has_the_results_of_the_run(name, run, exported):
    predictor, reference = Predictor(exported(name)), Predictor(run.folder)
    assert predictor.run is None
    assert predictor.fingerprint != reference.fingerprint
    for path in sorted((run.folder / "films").iterdir())[:3]:
        found, expected = predictor(path), reference(path)
        assert found.positive == expected.positive
        for kind in ("scores", "calibrated"):
            assert getattr(found, kind) == pytest.approx(getattr(expected, kind), abs=1e-5)
        for one in CLASSES:
            np.testing.assert_allclose(found.maps[one], expected.maps[one], atol=1e-5)
        kept = [text for text in expected.warnings if "further from them" not in text]
        assert list(found.warnings) == kept
        assert found.facts.map_scales == expected.facts.map_scales
        assert len(found.figure("Effusion").axes) == 2


@pytest.mark.parametrize("name", ["onnx", "openvino", "litert"])
def test_an_exported_network_scores_films_without_keras(name, run, exported, tmp_path):
    folder = run.folder / "films"
    run_without_keras(
        "from chexnet.predict import predict_folder; "
        f"t = predict_folder({str(exported(name))!r}, {str(folder)!r}, {str(tmp_path)!r}); "
        "assert (t['status'] == 'scored').all()"
    )
    table = pd.read_csv(tmp_path / "predictions.csv")
    expected = predict_folder(run.folder, folder, tmp_path / "keras", progress=False)
    np.testing.assert_allclose(table["score_Effusion"], expected["score_Effusion"], atol=1e-5)
    assert table["percentile"].isna().all()


def test_a_run_in_another_runtime_keeps_its_percentiles(run, tmp_path):
    need("onnxruntime", "pip install 'chexnet[onnx]'")
    folder = run.folder / "films"
    fast = predict_folder(Predictor(run.folder, runtime="onnx"), folder, tmp_path / "a")
    keras_ = predict_folder(run.folder, folder, tmp_path / "b", progress=False)
    pd.testing.assert_frame_equal(
        fast.drop(columns="predictor"), keras_.drop(columns="predictor"), atol=1e-5
    )
    (model,) = (run.folder / "exported").glob("*/model.onnx")
    before = model.stat().st_mtime_ns
    open_run(run, "onnx")
    assert model.stat().st_mtime_ns == before


def test_the_fastest_precision_that_is_exact_enough_is_taken(run, tmp_path, monkeypatch):
    need("openvino", "pip install 'chexnet[openvino]'")
    folder = tmp_path / "output" / "run"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("exported"))
    copy = Run(folder)
    assert open_run(copy, "openvino").fingerprint.endswith(" f32")  # no validation films
    (jpg,) = ((tmp_path / "data" / "jpg"),)
    jpg.mkdir(parents=True)
    film = next((folder / "films").iterdir())
    for image_id in copy.images.query("split == 'val'")["image_id"]:
        shutil.copyfile(film, jpg / f"{image_id}.jpg")

    rows = []
    for precision, speed, difference, auroc in (
        ("f32", 1.0, 0.0, [0.9, None]),
        ("bf16", 3.0, 0.03, [0.9, None]),
        ("f16", 2.0, 0.01, [0.899, None]),
        ("i8", 4.0, 0.01, [0.89, None]),
    ):
        rows.append(
            {
                "precision": precision,
                "films_per_second": speed,
                "score_difference": difference,
                "auroc": auroc,
            }
        )
    names, facts = [row["precision"] for row in rows], describe_run(copy)
    monkeypatch.setattr(of_run, "precisions", lambda runtime: names)
    monkeypatch.setattr(of_run, "_measure", lambda *a: rows)
    path = next((folder / "exported").glob("*/model.xml"))
    assert of_run._fastest(copy, path, "openvino", facts) == "f16"
    record = json.loads(path.with_name("precision.json").read_text())
    assert record["chosen"] == "f16"
    assert record["most_score_difference"] == 0.02
    monkeypatch.setattr(of_run, "_measure", None)  # not measured twice
    assert of_run._fastest(copy, path, "openvino", facts) == "f16"
    monkeypatch.setattr(of_run, "_measure", lambda *a: rows[:1])
    monkeypatch.setattr(of_run, "processor", lambda runtime: "another")
    assert of_run._fastest(copy, path, "openvino", facts) == "f32"


def test_what_is_measured_of_a_precision_is_true(run, films, exported):
    labels = np.array([[0, 1], [1, np.nan], [0, 0], [1, 1], [0, 1.0]])
    films = films[: len(labels)]
    (row,) = of_run._measure(exported("openvino"), films, labels, ["f32"])
    scores = exact_forward(load_chexnet(run.folder / "model.keras"))(films)[0]
    pairs = [(a, b) for a in (1, 3) for b in (0, 2, 4)]
    expected = np.mean([scores[a, 0] > scores[b, 0] for a, b in pairs])
    assert row["auroc"][0] == pytest.approx(expected)
    assert row["score_difference"] == 0
    assert row["films_per_second"] > 0


def test_runtime_of_what_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="expected a run folder, or 'keras'"):
        Predictor(run.folder / "model.keras", runtime="onnx")
    with pytest.raises(ValueError, match="expected one of"):
        Predictor(run.folder, runtime="tensorrt")


def test_the_commands_export_and_predict(run, tmp_path, capsys):
    need("onnxruntime", "pip install 'chexnet[onnx]'")
    target = tmp_path / "model.onnx"
    assert main(["export", str(run.folder), str(target)]) == 0
    assert "greatest error on" in capsys.readouterr().out
    assert main(["export", str(run.folder), str(target)]) == 2
    assert f"{target}: exists" in capsys.readouterr().err
    film = str(min((run.folder / "films").iterdir()))
    out = ["--out", str(tmp_path / "out"), "--quiet"]
    assert main(["predict", str(target), film, *out]) == 0
    assert "1 films: 1 scored" in capsys.readouterr().out


def test_another_backend_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND=jax: expected tensorflow"):
        export_model(run, tmp_path / "model.onnx")


def test_genuine_films_are_scored_alike_by_the_large_network(tmp_path, rsna_dir):
    """The whole network, real films: Keras and ONNX Runtime."""
    need("onnxruntime", "pip install 'chexnet[onnx]'")
    run = write_model(write_films(write_run(tmp_path / "run", films=60)))
    build_chexnet(32, weights=None).save(run.folder / "model.keras")
    films = sorted((rsna_dir / "stage_2_train_images").glob("*.dcm"))[:3]
    exported = Predictor(export_model(run, tmp_path / "model.onnx"))
    predictor = Predictor(run.folder / "model.keras")
    for film in films:
        found, expected = exported(film), predictor(film)
        assert found.scores == pytest.approx(expected.scores, abs=1e-5)
        np.testing.assert_allclose(found.maps["Pneumonia"], expected.maps["Pneumonia"], atol=1e-4)


def test_films_without_a_folder_are_named(tmp_path):
    run = write_model(write_run(tmp_path / "run", films=60))
    with pytest.raises(FileNotFoundError, match="give their folder as films="):
        network.check_films(run, Predictor(run.folder).facts, None)
