"""A setting of a wrong type or size is a ValueError that names it, in every room."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chexnet.auroc import auroc, bootstrap
from chexnet.cam import normalize_map
from chexnet.dicom import convert_folder
from chexnet.evaluation import apply_temperature, evaluate, outcome_table, report_table
from chexnet.figures import blend, conversion_sheet, overlay_cam, results_figure
from chexnet.generator import apply_clahe, augmented_examples, default_augmenter
from chexnet.predict import predict_folder
from chexnet.runs import Run
from chexnet.splits import folds_by_patient, split_by_patient
from tests.made_up_run import write_run

FILM, MAP = np.zeros((32, 32), np.uint8), np.ones((2, 2), np.float32)
IMAGES = pd.DataFrame({"image_id": list("abcdefgh"), "patient_id": list("ABCDEFGH")})
MADE = pd.DataFrame({"image_id": ["a"], "status": ["copied"]})
STRENGTHS = ("flip", "rotation", "shear", "shift", "scale", "blur", "brightness", "contrast")
# By function, the names of settings that are numbers; those of the second group may be None.
NUMBERS = [
    (partial(bootstrap, np.sum, [1, 2]), ("n_bootstrap", "seed"), ()),
    (partial(auroc, [0, 1], [0, 1], groups=[1, 2]), ("n_bootstrap", "seed"), ()),
    (partial(apply_temperature, 0.5), ("temperature",), ()),
    (partial(normalize_map, MAP), (), ("scale",)),
    (partial(apply_clahe, FILM), ("clip_limit", "tiles"), ()),
    (partial(default_augmenter, 64), STRENGTHS, ()),
    (default_augmenter, ("image_size",), ()),
    (partial(augmented_examples, FILM, default_augmenter(32)), ("count", "seed"), ()),
    (partial(split_by_patient, IMAGES), ("train", "val", "test", "seed"), ()),
    (partial(folds_by_patient, IMAGES), ("folds",), ()),
    (partial(folds_by_patient, IMAGES, folds=2), ("seed",), ()),
    (partial(convert_folder, Path(__file__).parent, "unused"), ("quality",), ("workers",)),
    (partial(conversion_sheet, MADE, ".", "."), ("count",), ()),
    (partial(blend, FILM, MAP), ("opacity",), ("scale",)),
    (partial(overlay_cam, FILM, MAP), ("opacity",), ("scale", "threshold")),
]
CASES = [
    pytest.param(function, name, value, id=f"{index}-{name}-{value}")
    for index, (function, never_none, sometimes) in enumerate(NUMBERS)
    for name in (*never_none, *sometimes)
    for value in ("2", True, float("nan"), None, [1])
    if value is not None or name in never_none
]


@pytest.mark.parametrize(("function", "name", "value"), CASES)
@pytest.mark.filterwarnings("ignore:.*patient_id")
def test_what_is_no_number_is_named(function, name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        function(**{name: value})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), films=60)


@pytest.mark.parametrize("name", ["rows", "seed", "columns", "threshold", "scale"])
@pytest.mark.parametrize("value", [True, float("nan")])
def test_numbers_of_the_results_figure(run, name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        results_figure(run.folder, **{name: value})


def test_a_threshold_is_a_number(run):
    with pytest.raises(ValueError, match="threshold=None: expected a number"):
        outcome_table(run, threshold=None)


def test_no_tile_ends_the_process_no_more():
    with pytest.raises(ValueError, match="tiles=0: expected an integer >= 1"):
        apply_clahe(FILM, tiles=0)


@pytest.mark.parametrize("stratify", ["view", ["sight"]])
def test_columns_to_balance_that_are_not_there_are_named(stratify):
    with pytest.raises(ValueError, match=r"stratify: . unknown columns: .*expected: image_id, pat"):
        split_by_patient(IMAGES, stratify=stratify)


def test_a_shard_is_a_text(tmp_path):
    with pytest.raises(ValueError, match="shard=3: expected k/n"):
        predict_folder("run", tmp_path, tmp_path, shard=3)


def test_numbers_of_numpy_are_numbers(run, tmp_path):
    assert evaluate(run, n_bootstrap=np.int64(2))["bootstrap"]["n_bootstrap"] == 2
    settings = {"class_names": ["Pneumonia"], "seed": np.int64(3), "weights": Path("a.keras")}
    images, boxes = run.images, run.boxes
    made = Run.create(tmp_path / "made", settings=settings, images=images, boxes=boxes)
    assert made.config["settings"] == settings | {"seed": 3, "weights": "a.keras"}
    with pytest.raises(ValueError, match=r"object.*expected a value that JSON has"):
        Run.create(tmp_path / "no", settings={"loss": object()}, images=images, boxes=boxes)


def test_a_class_that_was_not_evaluated_is_named(run):
    with pytest.raises(ValueError, match="unknown classes: Nodule; expected: Pneumonia"):
        report_table(evaluate(run, n_bootstrap=2), class_name="Nodule")
