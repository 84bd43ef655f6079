"""The program of docs/deployment.md, run as it is there, scores as the package does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from chexnet.export import export_model
from chexnet.phantom import write_phantom_study
from chexnet.predict import Predictor
from tests.alone import ROOT, need
from tests.export.test_network import write_small_run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run, its ONNX file, and the program."""
    need("onnxruntime", "pip install 'chexnet[onnx]'")
    home = tmp_path_factory.mktemp("home")
    export_model(write_small_run(home / "run"), home / "model.onnx")
    (program,) = re.findall(
        r"```python\n(import json\n.*?)```",
        (ROOT / "docs" / "deployment.md").read_text(),
        re.DOTALL,
    )
    assert {line.split()[1].split(".")[0] for line in re.findall(r"^(?:import|from) .*", program,
            re.MULTILINE)} == {"json", "sys", "cv2", "numpy", "onnxruntime", "pydicom"}  # fmt: skip
    (home / "score.py").write_text(program)
    return home


def scores(home: Path, film: Path) -> dict[str, float]:
    """What the program prints."""
    said = subprocess.run(
        [sys.executable, home / "score.py", home / "model.onnx", film],
        check=True, capture_output=True, text=True, cwd=home, env=os.environ | {"PYTHONPATH": ""},
    ).stdout  # fmt: skip
    return {name: float(score) for name, score, _ in map(str.split, said.splitlines())}


def deep_film(path, **changes):
    """A film of 12 bits without compression."""
    rng = np.random.default_rng(0)
    film = pydicom.dcmread(min(write_phantom_study(path.parent / "s", films=4).rglob("*.dcm")))
    coarse = rng.integers(300, 3900, (8, 8)).astype(float)
    values = np.kron(coarse, np.ones((32, 32))) + rng.normal(0, 40, (256, 256))
    film.Rows, film.Columns = values.shape
    film.BitsAllocated, film.BitsStored, film.HighBit = 16, 12, 11
    film.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    film.PixelData = values.clip(0, 4095).astype(np.uint16).tobytes()
    film["PixelData"].VR = "OW"
    for name, value in changes.items():
        setattr(film, name, value)
    film.save_as(path)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"WindowCenter": 2000, "WindowWidth": 1500},
        {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 3000, "WindowWidth": 4000},
    ],
    ids=["spread", "inverted", "window", "rescaled"],
)
def test_films_of_12_bits_have_the_scores_of_the_package(home, tmp_path, changes):
    film = deep_film(tmp_path / "film.dcm", **changes)
    expected = Predictor(home / "run")(film).scores
    assert scores(home, film) == pytest.approx(expected, abs=1e-6)


def test_films_of_the_phantom_have_the_scores_of_the_package(home, tmp_path):
    predictor = Predictor(home / "run")
    films = sorted(write_phantom_study(tmp_path / "study", films=4).rglob("*.dcm"))[:2]
    for film in films:
        assert scores(home, film) == pytest.approx(predictor(film).scores, abs=1e-6)


def test_genuine_films_have_the_scores_of_the_package(home, rsna_dir):
    predictor = Predictor(home / "run")
    for film in sorted((rsna_dir / "stage_2_train_images").glob("*.dcm"))[:3]:
        assert scores(home, film) == pytest.approx(predictor(film).scores, abs=1e-6)
