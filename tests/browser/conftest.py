"""A run made for the test, and notebooks 05 and 06 beside it in a real browser."""

import shutil
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest

from chexnet.cam import upsample_map
from chexnet.evaluation import evaluate, evaluate_maps
from chexnet.runs import Run
from tests.browser.jupyter import ROOT, chromium, jupyter_server
from tests.made_up_run import write_model, write_run

SCREENS = ROOT / "output" / "screens"


def write_films(run: Run) -> None:
    """Smooth grey films, each with another shade in its upper left corner."""
    rng = np.random.default_rng(0)
    for number, film in enumerate(run.images.query("split == 'test'").itertuples()):
        coarse = rng.integers(60, 160, (8, 4), dtype=np.uint8)
        pixels = cv2.resize(coarse, (film.columns, film.rows), interpolation=cv2.INTER_CUBIC)
        pixels[: film.rows // 8, : film.columns // 4] = number * 7 % 256
        run.write_film(film.image_id, pixels)


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A folder as a clone has it: notebooks/, data/, output/demo/."""
    folder = tmp_path_factory.mktemp("home")
    run = write_run(folder / "output" / "demo", films=240, signal=0.5)
    write_films(run)
    ids, maps = run.maps()
    finer = np.abs(upsample_map(maps, (16, 8)))[..., ::-1].copy()
    bias = np.zeros(1, np.float32)
    table = run.read_table("predictions.csv")
    run.write_scores(table, ids, {"CAM": maps, "LayerCAM": finer}, bias=bias)
    evaluate(run, n_bootstrap=20)
    evaluate_maps(run, n_bootstrap=20)
    write_model(run)
    (folder / "notebooks").mkdir()
    shutil.copytree(run.folder / "films", folder / "data" / "phantom" / "jpg")
    for name in ("05_visualize.ipynb", "06_predict.ipynb"):
        book = nbformat.read(ROOT / "notebooks" / name, as_version=4)
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(book, folder / "notebooks" / name)
    return folder


@pytest.fixture(scope="session")
def server(home, tmp_path_factory):
    with jupyter_server(home, tmp_path_factory.mktemp("jupyter")) as server:
        yield server


@pytest.fixture(scope="session")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, request):
    """A page; what our script in it throws fails the test (Notebook 7's own does throw)."""
    context = browser.new_context(viewport={"width": 1500, "height": 1300})
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    yield page
    # What there was to see when a test failed.
    page.screenshot(path=SCREENS / f"last of {request.node.name}.png")
    context.close()
    # Widgets' modules come from blob addresses.
    assert not [error for error in errors if "blob:" in (error.stack or "")]
