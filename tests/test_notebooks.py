import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
from papermill.exceptions import PapermillExecutionError

from chexnet.labels import class_names
from chexnet.phantom import write_phantom_study
from chexnet.runs import Run
from chexnet.splits import read_split
from tests.test_house import NOTEBOOKS, ROOT

spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
execute = importlib.util.module_from_spec(spec)
spec.loader.exec_module(execute)


def test_a_parameter_that_no_notebook_has_stops_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"unknown parameter IMAGE_SISE; expected BATCH_SIZE"):
        execute.execute("demo", {"IMAGE_SISE": 224}, root=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"), [("IMAGE_SIZE", "large"), ("SOURCE", 3), ("TRAIN", "most"), ("RUN", "other")]
)
def test_a_value_of_the_wrong_kind_stops_before_any_work(name, value):
    with pytest.raises(ValueError, match=name):
        execute.check_parameters({name: value})


def test_whole_numbers_fit_shares_and_none_fits_everywhere():
    execute.check_parameters({"TEST": 0, "EPOCHS": None, "WEIGHTS": "imagenet"})


@pytest.mark.parametrize("study", ["../..", "/tmp/study", "", "a/b"])
def test_study_is_a_plain_name(study, tmp_path):
    """A study is a folder under data/, and nothing is written elsewhere."""
    with pytest.raises(ValueError, match="STUDY: invalid image_id"):
        execute.execute("demo", {"STUDY": study}, root=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("run", ["../elsewhere", "/tmp/run", ""])
def test_a_run_is_a_plain_name_under_output(run, tmp_path):
    with pytest.raises(ValueError, match="--run"):
        execute.execute(run, {}, root=tmp_path)


def test_study_with_a_broken_first_film(tmp_path):
    """The first two notebooks run on a study whose first film is broken, and name that film."""
    study = write_phantom_study(tmp_path / "study", films=24, film_size=128)
    broken = min((study / "stage_2_train_images").glob("*.dcm"))
    broken.write_bytes(broken.read_bytes()[:2000])
    given = {"STUDY": "small", "SOURCE": str(study)}
    execute.execute("trial", given, notebooks=NOTEBOOKS[:2], root=tmp_path)
    table = (tmp_path / "data" / "small" / "images.csv").read_text()
    assert len(table.splitlines()) == 24  # a header and 23 films
    assert broken.stem not in table
    told = nbformat.read(tmp_path / "output" / "trial" / "notebooks" / "01_convert.ipynb", 4)
    assert broken.stem in json.dumps(told)


FINDINGS = ["Consolidation", "Cardiomegaly", "Atelectasis"]
FACTS = {"labels": FINDINGS, "boxes": "boxes.csv"} | {
    name: name for name in ("patient", "view", "sex", "age")
}


@pytest.mark.parametrize(
    ("dataset", "options"), [("chestxray14", {"classes": FINDINGS}), ("table", FACTS)]
)
def test_png_films_with_three_findings(tmp_path, dataset, options):
    """The first two notebooks run on PNG films with three findings."""
    study = write_phantom_study(tmp_path / "study", films=60, film_size=64, layout=dataset)
    given = {"STUDY": "other", "SOURCE": str(study), "DATASET": dataset, "OPTIONS": options}
    execute.execute("trial", given, notebooks=NOTEBOOKS[:2], root=tmp_path)
    images, boxes = read_split(tmp_path / "data" / "other")
    assert len(images) == 60
    assert class_names(images) == FINDINGS
    assert images[FINDINGS].isna().any(axis=None) == (dataset == "table")
    assert images[["view", "sex", "age", "patient_id"]].notna().all(axis=None)
    assert (images[["rows", "columns"]] == 64).all(axis=None)
    assert set(boxes["class_name"]) == {"Consolidation"}
    if dataset == "chestxray14":
        assert ((images["split"] == "test") == (images["official_split"] == "test")).all()


def write_notebook(path, code):
    """A notebook with the parameters RUN and SEED, and one more cell."""
    parameters = "RUN = 'demo'\nSEED = 0"
    cells = [nbformat.v4.new_code_cell(source) for source in (parameters, code)]
    cells[0].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(book, path)
    return path


def test_executed_notebooks_of_the_previous_run_are_kept_with_it(tmp_path):
    folder = tmp_path / "output" / "trial"
    lines = [
        "import pandas as pd",
        "from chexnet.runs import Run",
        "images = pd.DataFrame({'image_id': ['a'], 'split': ['test']})",
        "boxes = pd.DataFrame(columns=['image_id', 'x', 'y', 'width', 'height'])",
        "settings = {'class_names': ['Pneumonia'], 'seed': SEED}",
        "Run.create(f'output/{RUN}', settings=settings, images=images, boxes=boxes)",
    ]
    codes = {"01_before.ipynb": "print(SEED)", "03_start.ipynb": "\n".join(lines)}
    notebooks = [write_notebook(tmp_path / name, code) for name, code in codes.items()]
    for seed in (1, 2):
        execute.execute("trial", {"SEED": seed}, notebooks=notebooks, root=tmp_path)
    for place, seed in ((folder, 2), (folder / "earlier" / "1", 1)):
        assert Run(place).config["settings"]["seed"] == seed
        for notebook in notebooks:
            executed = (place / "notebooks" / notebook.name).read_text()
            assert f"SEED = {seed}" in executed
    assert not (folder / "notebooks.part").exists()
    notebooks[0].write_text(notebooks[0].read_text().replace("print(SEED)", "1 / 0"))
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        execute.execute("trial", {"SEED": 3}, notebooks=notebooks, root=tmp_path)
    assert "SEED = 2" in (folder / "notebooks" / notebooks[0].name).read_text()
    assert "SEED = 3" in (folder / "notebooks.part" / notebooks[0].name).read_text()


class RunOfNumbers:
    folder = ROOT / "output" / "demo"
    class_names = ("Pneumonia",)

    def __init__(self, auroc, reason, hit_rate):
        block = {"auroc": auroc, "n": 60} | ({"reason": reason} if reason else {})
        metrics = {
            "classes": {"Pneumonia": {"test": block}},
            "localization": {"Pneumonia": {"hit_rate": hit_rate}},
        }
        self.current_metrics = metrics.get


def test_lines_of_the_summary():
    """The last lines are the figure, the AUROC and the hit rate."""
    number = {"value": 0.851, "low": 0.7, "high": 0.95}
    run = RunOfNumbers(number, None, {**number, "n": 18})
    figure, auroc, hits = execute.summary(run).splitlines()
    assert figure.endswith("output/demo/figures/results.png")
    assert auroc == "test AUROC of Pneumonia, 95 % interval: 0.85 (0.70-0.95), 60 films"
    assert hits == "localization hit rate, 95 % interval: 0.85 (0.70-0.95), 18 films"


def test_what_cannot_be_measured_is_a_dash_with_its_reason():
    none = {"value": None, "low": None, "high": None, "n": 0, "reason": "no films with boxes"}
    _, auroc, hits = execute.summary(RunOfNumbers(None, "no positive film", none)).splitlines()
    assert auroc.endswith("– (no positive film), 60 films")
    assert hits.endswith("– (no films with boxes), 0 films")


def test_published_widgets():
    """Of a widget the picture is published, and of a progress bar nothing."""
    bar = {"output_type": "display_data", "data": {execute.WIDGET: {}, "text/plain": "0%"}}
    panel = {"output_type": "execute_result", "data": {execute.WIDGET: {}, "image/jpeg": "x"}}
    assert not execute._is_kept(bar)
    assert execute._is_kept(panel)


IN_A_PROCESS = """
import sys
from pathlib import Path
from tests.test_notebooks import execute
execute.execute(sys.argv[1], {}, notebooks=[Path(sys.argv[2])], root=Path(sys.argv[3]))
"""


def start(run, notebook, root, temporary, stderr=subprocess.DEVNULL):
    """Executes a notebook in another process whose temporary folder is ``temporary``."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    return subprocess.Popen(
        [sys.executable, "-c", IN_A_PROCESS, run, str(notebook), str(root)],
        env=environment, cwd=root, stdout=subprocess.DEVNULL, stderr=stderr,
    )  # fmt: skip


WAIT = """
import pathlib, time
pathlib.Path(RUN).touch()
while not pathlib.Path("go").exists(): time.sleep(0.05)
"""


@pytest.fixture
def temporary():
    """A temporary folder with a short path, as sockets need."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_sockets(tmp_path, temporary):
    """Executions at once in one project do not meet; what a killed one left is removed."""
    (tmp_path / "output").mkdir()
    notebook = write_notebook(tmp_path / "01_wait.ipynb", WAIT)
    processes = [start(run, notebook, tmp_path, temporary) for run in ("a", "b", "killed")]
    until = time.monotonic() + 300
    while not all((tmp_path / run).exists() for run in ("a", "b", "killed")):
        assert time.monotonic() < until, "the kernels do not start"
        time.sleep(0.05)
    folders = [path for path in temporary.iterdir() if path.name.startswith("chexnet-")]
    assert len(folders) == 3
    again = start("a", notebook, tmp_path, temporary, stderr=subprocess.PIPE)
    assert b"another process is executing the notebooks of this run" in again.communicate()[1]
    processes[2].kill()
    processes[2].wait(timeout=60)
    (tmp_path / "go").touch()
    for process in processes[:2]:
        assert process.wait(timeout=300) == 0
    assert start("killed", notebook, tmp_path, temporary).wait(timeout=300) == 0
    assert not [path for path in temporary.iterdir() if path.name.startswith("chexnet-")]
    assert not list(tmp_path.glob("*kernel*"))
    for run in ("a", "b", "killed"):
        assert (tmp_path / "output" / run / "notebooks" / notebook.name).is_file()
