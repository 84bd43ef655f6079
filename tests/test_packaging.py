"""`pip install .` brings what the package needs and nothing else; the requirement files agree."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import chexnet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# What only a user of that extra imports, by the file that imports it.
OF_AN_EXTRA = {
    "dicom/codecs.py": EXTRAS["decoders"],
    "explorer/panel.py": EXTRAS["notebooks"],
    "explorer/turns.py": EXTRAS["notebooks"],
    "explorer/upload.py": EXTRAS["notebooks"],
    "model/xrayvision.py": EXTRAS["torchxrayvision"] + EXTRAS["backends"],
    "cam/gradient.py": EXTRAS["backends"],
    "training/distribution.py": EXTRAS["backends"],
    "export/network.py": EXTRAS["onnx"] + EXTRAS["openvino"],
    "export/results.py": EXTRAS["dicom-out"],
}


def lines_of(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def plain(requirement: str) -> str:
    """The distribution's name as PyPI compares names."""
    return re.split(r"[\[~=<>! ]", requirement)[0].lower().replace("_", "-")


def test_requirements():
    """The requirements are those of the package, its notebooks and its tests."""
    listed = {line.split("#")[0].strip() for line in lines_of(ROOT / "requirements.txt")}
    extras = [
        requirement
        for name in ("decoders", "onnx", "openvino", "litert", "dicom-out", "notebooks", "dev")
        for requirement in EXTRAS[name]
    ]
    assert listed == {*PROJECT["dependencies"], *extras}


def test_every_requirement_has_a_reason():
    for line in lines_of(ROOT / "requirements.txt"):
        assert re.fullmatch(r"[\w.-]+(~=|>=)\S+ +# .+", line), line


def test_constraints_pin_every_requirement():
    pins = dict(line.split("==") for line in lines_of(ROOT / "constraints.txt"))
    pinned = {plain(name) for name in pins}
    extras = [requirement for names in EXTRAS.values() for requirement in names]
    wanted = {plain(name) for name in (*PROJECT["dependencies"], *extras)}
    assert wanted - pinned <= {"torchxrayvision"}  # needs torch; tested where it is installed


def test_imports_are_declared():
    """The package imports what it declares and declares what it imports."""
    owner = {
        name: {plain(one) for one in names} for name, names in packages_distributions().items()
    }
    used = set()
    for path in (ROOT / "chexnet").rglob("*.py"):
        extra = OF_AN_EXTRA.get(path.relative_to(ROOT / "chexnet").as_posix(), [])
        allowed = {plain(one) for one in (*PROJECT["dependencies"], *extra)}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                continue
            for module in {one.split(".")[0] for one in modules} - {"chexnet", "traitlets"}:
                if module in sys.stdlib_module_names or module not in owner:
                    continue  # not installed here: torch, jax
                assert owner[module] & allowed, f"{path.name} imports {module}"
                used |= owner[module]
    # Pillow is pydicom's JPEG decoder, TensorBoard belongs to Keras' callback of that name.
    unused = {plain(one) for one in PROJECT["dependencies"]} - used
    assert unused <= {"pillow", "tensorboard"}


def test_version_and_types():
    """The version is that of the citation and the types are shipped."""
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == chexnet.__version__
    assert (ROOT / "chexnet" / "py.typed").is_file()
