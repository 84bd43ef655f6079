import shutil

import numpy as np
import pandas as pd
import pytest

from studies import cross_validation
from studies.cross_validation import cross_validate, fold_splits
from studies.out_of_fold import out_of_fold_films, out_of_fold_maps
from tests.training.test_loop import make_study, tiny_network

RECIPE = {
    "model": {},
    "augmentation": {},
    "training": {"epochs": 1, "box_weight": 1.0},
}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """What cross_validate is given here, on a tiny network."""
    folder, images, boxes, store = make_study(tmp_path_factory.mktemp("study"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validation, "build_chexnet", lambda size, **_: tiny_network())
        yield {
            "store": store,
            "images": images,
            "boxes": boxes,
            "film_folder": folder,
            "recipe": RECIPE,
            "workers": 1,
        }


@pytest.fixture(scope="module")
def runs(options, tmp_path_factory):
    """Two folds, trained; not to be changed."""
    return cross_validate(tmp_path_factory.mktemp("cv"), folds=2, **options)


@pytest.fixture
def patients():
    """300 films of 120 patients."""
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "image_id": [f"film{index}" for index in range(300)],
            "patient_id": draw.integers(0, 120, 300).astype(str),
            "Pneumonia": draw.integers(0, 2, 300),
        }
    )


def test_every_film_is_in_the_test_split_of_one_fold(patients):
    splits = fold_splits(patients, folds=3)
    tested = sum((split == "test").astype(int) for split in splits)
    assert (tested == 1).all()


def test_no_patient_stands_on_two_sides_of_a_fold(patients):
    for split in fold_splits(patients, folds=3):
        assert set(split) == {"train", "val", "test"}
        sides = split.groupby(patients["patient_id"].to_numpy()).nunique()
        assert sides.max() == 1


def test_films_without_patients_warn_once(patients):
    with pytest.warns(UserWarning, match="split is by image") as caught:
        fold_splits(patients.drop(columns="patient_id"), folds=3)
    assert len(caught) == 1


def test_each_fold_is_a_run_that_scored_its_own_films(options, runs):
    scored = pd.concat([run.predictions.query("split == 'test'") for run in runs])
    assert sorted(scored["image_id"]) == sorted(options["images"]["image_id"])
    assert [run.config["settings"]["fold"] for run in runs] == [1, 2]


def test_a_finished_fold_is_not_trained_again(options, runs, tmp_path):
    shutil.copytree(runs[0].folder.parent, tmp_path / "cv")
    written = [(run.folder / "model.keras").stat().st_mtime_ns for run in runs]
    (tmp_path / "cv" / "fold-2" / "predictions.csv").unlink()
    again = cross_validate(tmp_path / "cv", folds=2, **options)
    assert [(run.folder / "model.keras").stat().st_mtime_ns for run in again] == written
    assert (again[1].folder / "predictions.csv").is_file()  # scored again, not trained again


def test_folds_of_other_data_are_refused(options, runs):
    images = options["images"].assign(Pneumonia=1 - options["images"]["Pneumonia"])
    with pytest.raises(ValueError, match="fold-1: trained on other films, labels, boxes or folds"):
        cross_validate(runs[0].folder.parent, folds=2, **options | {"images": images})


def test_a_fold_trained_with_other_settings_is_refused(options, runs):
    other = RECIPE | {"training": RECIPE["training"] | {"epochs": 2}}
    with pytest.raises(ValueError, match=r"fold-1: trained with another \['training'\].*epochs"):
        cross_validate(runs[0].folder.parent, folds=2, **options | {"recipe": other})


def test_films_out_of_fold(options, runs):
    """The films out of fold are judged each by its own network."""
    films, maps = out_of_fold_films(runs), out_of_fold_maps(runs)
    assert sorted(films["image_id"]) == sorted(options["images"]["image_id"])
    assert sorted(maps["image_id"]) == sorted(options["boxes"]["image_id"])
    for fold, run in enumerate(runs, 1):
        own = run.predictions.query("split == 'test'").set_index("image_id")["y_score"]
        mine = films[films["fold"] == fold].set_index("image_id")["y_score"]
        pd.testing.assert_series_equal(mine.sort_index(), own.sort_index())
    with pytest.raises(ValueError, match="in the test split of two folds"):
        out_of_fold_films([runs[0], runs[0]])
