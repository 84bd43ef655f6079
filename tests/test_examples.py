"""Every public name has an example in its docstring, and every example runs.

The examples use the files that ``make demo`` leaves, so a user can paste them: here a small study
and a made-up run lie at the same paths.
"""

import doctest
import importlib
import inspect
import warnings

import pytest

from chexnet.dicom import convert_folder, read_films
from chexnet.evaluation import evaluate, evaluate_maps
from chexnet.labels import add_film_facts, read_rsna
from chexnet.phantom import write_phantom_study
from chexnet.splits import split_by_patient, write_split
from tests.made_up_run import write_films, write_history, write_model, write_run
from tests.test_house import ROOMS


def public_names(room: str) -> list[str]:
    module = importlib.import_module(f"chexnet.{room}")
    return [
        name
        for name in module.__all__
        if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name))
    ]


NAMES = [(room, name) for room in ROOMS for name in public_names(room)]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with ``data/phantom`` and ``output/demo`` as notebooks 01 to 04 leave them."""
    root = tmp_path_factory.mktemp("project")
    study, data = root / "data" / "phantom" / "study", root / "data" / "phantom"
    write_phantom_study(study, films=40, seed=0, film_size=256)
    convert_folder(study / "stage_2_train_images", data / "jpg", progress=False)
    images, boxes = read_rsna(study)
    images = add_film_facts(images, read_films(data / "jpg"))
    images["split"] = split_by_patient(images, train=0.6, val=0.2, test=0.2, seed=0)
    write_split(data, images, boxes)
    run = write_model(write_history(write_films(write_run(root / "output" / "demo"))))
    evaluate(run, n_bootstrap=20)
    evaluate_maps(run, n_bootstrap=20)
    return root


@pytest.mark.parametrize(("room", "name"), NAMES, ids=lambda part: part)
def test_a_public_name_has_an_example_that_runs(room, name, project, monkeypatch):
    monkeypatch.chdir(project)
    thing = getattr(importlib.import_module(f"chexnet.{room}"), name)
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(thing, name, globs={})
    assert example.examples, f"chexnet.{room}.{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # As in pyproject.toml: TensorFlow's EagerTensor.__array__ on NumPy >= 2.4.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        runner.run(example, out=said.append, clear_globs=False)
    assert not runner.failures, "".join(said)
