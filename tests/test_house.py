"""The rules of the house that a machine can hold."""

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
# A module imports only modules that stand before it (the design's table).
ORDER = [
    "header",
    "jpeg",
    "greyscale",
    "dataset",
    "film",
    "filmtable",
    "workers",
    "dicom",
    "labels",
    "boxes",
    "splits",
    "canvas",
    "anatomy",
    "findings",
    "phantom",
    "clahe",
    "filmcache",
    "images",
    "warp",
    "augmentation",
    "generator",
    "distribution",
    "xrayvision",
    "weights",
    "model",
    "provenance",
    "runs",
    "intervals",
    "auroc",
    "averages",
    "operating_points",
    "outcomes",
    "calibration",
    "confounders",
    "evaluation",
    "gradcam",
    "cam",
    "overlap",
    "detection",
    "box_prior",
    "localization",
    "guided_maps",
    "map_report",
    "out_of_fold",
    "report",
    "mapcache",
    "optimizers",
    "losses",
    "checkpoints",
    "callbacks",
    "recipes",
    "training_settings",
    "training",
    "scoring",
    "cross_validation",
    "overlay",
    "sheets",
    "chart_parts",
    "charts",
    "forests",
    "evidence_page",
    "figures",
    "browsing",
    "explorer",
]
KERAS = {
    "generator",
    "distribution",
    "weights",
    "model",
    "gradcam",
    "cam",
    "optimizers",
    "losses",
    "checkpoints",
    "callbacks",
    "training_settings",
    "training",
    "scoring",
    "cross_validation",
}
# Keras has no gradient and no devices that all its backends share, so one module each asks the
# backend for its own; and torch alone reads what torch has written.
BACKENDS = {"distribution", "gradcam", "xrayvision"}
MATPLOTLIB = {"overlay", "chart_parts", "charts", "forests", "evidence_page", "figures", "sheets"}
MODULES = sorted(path for path in (ROOT / "chexnet").glob("*.py") if path.stem != "__init__")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def python_of(cell) -> ast.Module:
    """A cell's code without IPython's magics."""
    lines = cell.source.splitlines()
    return ast.parse("\n".join(line for line in lines if not line.startswith("%")))


def imports_of(path: Path) -> set[str]:
    """Every module imported anywhere in a file, in full, relative imports refused."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports relatively"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_stands_in_the_order():
    assert [path.stem for path in MODULES] == sorted(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_what_stands_above_it(path):
    ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("chexnet.")} & set(
        ORDER
    )
    below = [name for name in ours if ORDER.index(name) >= ORDER.index(path.stem)]
    assert not below


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_keras_and_matplotlib_stay_where_they_belong(path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert "keras" not in roots or path.stem in KERAS
    assert "matplotlib" not in roots or path.stem in MATPLOTLIB
    assert path.stem in BACKENDS or not roots & {"tensorflow", "jax", "torch"}
    # One module reads pickles that others wrote, with a reader that calls nothing but torch's
    # makers of tensors.
    assert "pickle" not in roots or path.stem == "xrayvision"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_fits_on_a_few_screens(path):
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-backends.txt"])
def test_every_requirement_is_pinned_and_says_what_it_is_for(name):
    for line in (ROOT / name).read_text().splitlines():
        assert re.fullmatch(r"[\w.-]+(\[\w+\])?(~=|>=)\S+ +# .+", line), line


def test_python_is_the_version_that_the_readme_names():
    assert sys.version_info[:2] >= (3, 11)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_is_short_and_defines_nothing(self, path):
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        lines = sorted(len(cell.source.splitlines()) for cell in cells)
        assert len(cells) <= 15
        assert lines[len(lines) // 2] <= 5
        for cell in cells:
            tree = python_of(cell)
            assert not any(
                isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(tree)
            )
            assert "sys.path" not in cell.source

    def test_has_one_cell_of_at_most_eight_plain_parameters(self, path):
        cells = nbformat.read(path, as_version=4).cells
        tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
        assert len(tagged) == 1
        body = python_of(tagged[0]).body
        assert 1 <= len(body) <= 8
        for statement in body:
            assert isinstance(statement, ast.Assign)
            ast.literal_eval(statement.value)

    def test_is_committed_executed_and_under_a_megabyte(self, path):
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert all(cell.execution_count for cell in cells)
        assert not any(out.output_type == "error" for cell in cells for out in cell.outputs)
        assert path.stat().st_size < 1_000_000


def test_there_are_five_notebooks_in_order():
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["01_convert", "02_split", "03_train", "04_evaluate", "05_visualize"]
