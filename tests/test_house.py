"""The rules of the house that a machine can hold."""

import ast
from pathlib import Path

import nbformat
import pytest

from tests.alone import run_without_keras

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "chexnet"
# A room imports only rooms above it, and only through their face.
ROOMS = [
    *(
        "files",
        "dicom",
        "labels",
        "splits",
        "phantom",
        "backend",
        "generator",
        "model",
        "runs",
        "auroc",
    ),
    *("cam", "evaluation", "training", "figures", "export", "predict", "explorer", "cli"),
]
# `import chexnet.<room>` loads neither Keras nor a backend nor pyplot.
WITHOUT_KERAS = [room for room in ROOMS if room not in ("backend", "model", "training")]
# Keras has no gradient and no devices that all its backends share, so one file each asks the
# backend for its own; and torch alone reads what torch has written.
BACKENDS = {"backend.py", "training/distribution.py", "cam/gradient.py", "model/xrayvision.py"}
LONGEST = 60  # lines of a function, its docstring left out
# Functions above that, each with the reason.
LONG_FOR_A_REASON = {
    "training/loop.py:train": "the story of a training, to be read from top to bottom",
}
FILES = sorted(PACKAGE.rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def python_of(cell) -> ast.Module:
    """A cell's code without IPython's magics."""
    lines = cell.source.splitlines()
    return ast.parse("\n".join(line for line in lines if not line.startswith("%")))


def imports_of(path: Path) -> list[tuple[str, str | None]]:
    """Every module imported anywhere in a file, and the name taken from it; none relatively."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports relatively"
            found += [(node.module, alias.name) for alias in node.names]
    return found


def all_of(face: Path) -> list[str]:
    """The names in ``__all__`` of a face."""
    for node in ast.parse(face.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{face}: has no __all__")


def test_every_room_is_in_the_order_and_few_stand_at_the_door():
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 20
    rooms = {path.stem for path in entries} - {"__init__", "py"}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_rooms_above_it_through_their_face(path):
    own = room_of(path)
    for module, name in imports_of(path):
        root, *inside = module.split(".")
        if root != "chexnet" or not inside or inside[0] == own:
            continue
        assert ROOMS.index(inside[0]) < ROOMS.index(own), f"{own} stands above {inside[0]}"
        assert len(inside) == 1, f"past the face of {inside[0]}: {module}"
        assert name is not None, f"import names, not the module {module}"
        assert not name.startswith("_"), f"{module}.{name} is private"
        face = PACKAGE / inside[0] / "__init__.py"
        if face.is_file():
            assert name in all_of(face), f"{name} is not in the face of {inside[0]}"


@pytest.mark.parametrize("face", sorted(PACKAGE.glob("*/__init__.py")), ids=name_of)
def test_a_face_is_short_and_says_what_is_public(face):
    assert len(face.read_text().splitlines()) < 30
    exported = all_of(face)
    assert exported == sorted(set(exported), key=exported.index)
    # `chexnet.auroc.auroc` must be the function, whatever was imported before.
    assert not {path.stem for path in face.parent.glob("*.py")} & set(exported)


@pytest.mark.parametrize("room", WITHOUT_KERAS)
def test_a_room_that_needs_no_keras_loads_none(room):
    run_without_keras(f"import chexnet.{room}")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_backends_and_pickle_stay_where_they_belong(path):
    roots = {module.split(".")[0] for module, _ in imports_of(path)}
    assert name_of(path) in BACKENDS or not roots & {"tensorflow", "jax", "torch"}
    # One file reads pickles that others wrote, with a reader that calls nothing but torch's
    # makers of tensors.
    assert "pickle" not in roots or name_of(path) == "model/xrayvision.py"


def lines_of_functions() -> dict[str, int]:
    """Lines of each function without its docstring, by file and name."""
    found = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                documented = ast.get_docstring(node) is not None
                docstring = first.end_lineno - first.lineno + 1 if documented else 0
                lines = node.end_lineno - node.lineno + 1 - docstring
                found[f"{name_of(path)}:{node.name}"] = lines
    return found


def test_a_function_fits_on_a_screen_or_has_a_reason():
    long = {name for name, lines in lines_of_functions().items() if lines > LONGEST}
    assert long == set(LONG_FOR_A_REASON)


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


def test_there_are_six_notebooks_in_order():
    names = [path.stem for path in NOTEBOOKS]
    assert names == [
        *("01_convert", "02_split", "03_train", "04_evaluate", "05_visualize", "06_predict"),
    ]
