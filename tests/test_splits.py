import numpy as np
import pandas as pd
import pytest

from chexnet.labels import read_rsna
from chexnet.splits import (
    _folds_of_splits,
    check_disjoint,
    folds_by_patient,
    read_split,
    split_by_patient,
    write_split,
)


def study(films=600, patients=380, seed=0):
    """Films of patients, some with many; sicker patients have more films, and lie down more."""
    draw = np.random.default_rng(seed)
    weight = draw.pareto(2.5, patients) + 0.3
    owner = np.concatenate(
        [np.arange(patients), draw.choice(patients, films - patients, p=weight / weight.sum())]
    )
    sick = draw.random(films) < 0.15 + 0.3 * (weight[owner] > 1)
    other = np.where(draw.random(films) < 0.4, "No Lung Opacity / Not Normal", "Normal")
    table = pd.DataFrame(
        {
            "image_id": [f"film{k:04d}" for k in range(films)],
            "patient_id": [f"{k:08d}" for k in owner],
            "Pneumonia": sick.astype(int),
            "detailed_class": np.where(sick, "Lung Opacity", other),
            "view": np.where(draw.random(films) < 0.3 + 0.4 * sick, "AP", "PA"),
        }
    )
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


def shares_of(images, split, column, value):
    return (images[column] == value).groupby(split.to_numpy()).mean()


def assert_alike(images, split, most):
    for column in ("Pneumonia", "detailed_class", "view"):
        for value in images[column].unique():
            whole = (images[column] == value).mean()
            shares = shares_of(images, split, column, value)
            assert (shares - whole).abs().max() <= most, f"{column} {value}: {shares.to_dict()}"


@pytest.mark.parametrize("seed", range(5))
def test_small_study(seed):
    """A small study is split by patient into splits that are alike."""
    images = study(seed=seed)
    split = split_by_patient(images, seed=seed)
    check_disjoint(images, split)
    counts = split.value_counts()
    assert counts["train"] == pytest.approx(480, abs=3)
    assert counts["val"] == pytest.approx(60, abs=3)
    assert counts["test"] == pytest.approx(60, abs=3)
    assert_alike(images, split, 0.03)  # two films of sixty


def test_the_split_has_the_index_of_the_images():
    images = study().set_index(pd.Index(range(5000, 5600)))
    split = split_by_patient(images)
    assert split.index.equals(images.index)
    assert split.name == "split"
    assert set(split) == {"train", "val", "test"}


def test_the_order_of_rows_does_not_matter_and_the_seed_does():
    images = study()
    split = split_by_patient(images, seed=3)
    turned = images.sample(frac=1, random_state=9)
    assert split_by_patient(turned, seed=3).sort_index().equals(split)
    assert split_by_patient(images, seed=3).equals(split)
    assert not split_by_patient(images, seed=4).equals(split)


def test_prevalence_does_not_drift_along_sorted_ids():
    images = study().sort_values("Pneumonia").reset_index(drop=True)
    images["image_id"] = [f"film{k:04d}" for k in range(len(images))]  # ids sorted by class
    assert_alike(images, split_by_patient(images), 0.03)


def test_patients_with_many_films_reach_every_split():
    # The splitter always puts the patient with the most films into the first fold.
    images = study(200, 130)
    films_of = images["patient_id"].map(images["patient_id"].value_counts())
    busiest = images.index[films_of == films_of.max()][0]
    places = pd.Series([split_by_patient(images, seed=seed)[busiest] for seed in range(60)])
    assert 0.6 < (places == "train").mean() < 0.95
    assert set(places) == {"train", "val", "test"}


def test_other_fractions_are_kept():
    counts = split_by_patient(study(), train=0.5, val=0.3, test=0.2).value_counts()
    assert counts.to_dict() == pytest.approx({"train": 300, "val": 180, "test": 120}, abs=3)


def test_a_test_set_kept_aside_needs_no_test_split():
    split = split_by_patient(study(), train=0.75, val=0.25, test=0)
    assert split.value_counts().to_dict() == pytest.approx({"train": 450, "val": 150}, abs=3)


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.2), (1.0, 0, 0), (0, 0.5, 0.5), (1.2, 0.1, -0.3)])
def test_fractions_that_make_no_sense_are_refused(shares):
    with pytest.raises(ValueError, match="a sum of 1"):
        split_by_patient(study(), **dict(zip(("train", "val", "test"), shares, strict=True)))


def test_too_few_patients_are_an_error():
    images = study().assign(patient_id="00000001")
    with pytest.raises(ValueError, match="1 patients with 600 images are too few"):
        split_by_patient(images)


@pytest.mark.filterwarnings("ignore:1 classes have one value only in a split")
@pytest.mark.parametrize("seed", range(20))
def test_twenty_films_and_rare_values_can_be_split(seed):
    images = study(20, 14, seed)
    images.loc[:1, "detailed_class"] = "Rare"
    split = split_by_patient(images, train=0.6, val=0.2, test=0.2, seed=seed)
    check_disjoint(images, split)
    counts = split.value_counts()
    # One patient may have six of the films.
    assert counts.to_dict() == pytest.approx({"train": 12, "val": 4, "test": 4}, abs=3)


@pytest.mark.filterwarnings("ignore:1 classes have one value only in a split")
@pytest.mark.parametrize("patients", [3, 4, 5, 7])
def test_as_many_patients_as_splits_are_enough(patients):
    images = study(3 * patients, patients)
    split = split_by_patient(images)
    check_disjoint(images, split)
    assert set(split) == {"train", "val", "test"}


def test_shares_are_met_whatever_they_are():
    split = split_by_patient(study(2000, 2000), train=0.83, val=0.15, test=0.02)
    expected = {"train": 0.83, "val": 0.15, "test": 0.02}
    assert split.value_counts(normalize=True).to_dict() == pytest.approx(expected, abs=0.005)


def test_closest_folds():
    # 9 folds are closer to the shares than 14 folds, 8 + 1 + 5.
    """Where few patients cannot meet the shares, the closest folds are taken."""
    assert _folds_of_splits(np.array([0.57, 0.1, 0.33]), 14).tolist() == [5, 1, 3]


def test_a_film_listed_once_per_box_is_refused():
    images = study()
    with pytest.raises(ValueError, match="duplicate image_ids: film"):
        split_by_patient(pd.concat([images, images[:3]], ignore_index=True))


def without_patients():
    return [study().drop(columns="patient_id"), study().assign(patient_id=None)]


@pytest.mark.parametrize("images", without_patients(), ids=["no column", "all missing"])
def test_without_patients(images):
    """Without patients, it is split by film and says what that costs."""
    with pytest.warns(UserWarning, match=r"split is by image.*several splits.*too good.*mapping"):
        split = split_by_patient(images)
    assert split.value_counts()["test"] == 60
    assert_alike(images, split, 0.02)


def test_split_by_film():
    """A split by film would show the same patients on both sides."""
    images = study()
    with pytest.warns(UserWarning, match="by image"):
        split = split_by_patient(images.drop(columns="patient_id"))
    with pytest.raises(ValueError, match="patients in two splits"):
        check_disjoint(images, split)


def test_films_without_patient_are_patients_of_their_own():
    images = study()
    images.loc[:9, "patient_id"] = None
    with pytest.warns(UserWarning, match="10 of 600 images have no patient_id"):
        split = split_by_patient(images)
    check_disjoint(images, split)


def test_a_missing_view_counts_as_a_view():
    images = study()
    images.loc[images["image_id"] < "film0100", "view"] = None
    split = split_by_patient(images)
    unknown = images["view"].isna().groupby(split).mean()
    assert unknown.to_dict() == pytest.approx(dict.fromkeys(unknown.index, 1 / 6), abs=0.03)


def test_any_columns_can_be_balanced_or_none():
    images = study().assign(site=lambda table: table["image_id"].str[-1] < "3")
    split = split_by_patient(images, stratify=("site",))
    assert shares_of(images, split, "site", True).to_dict() == pytest.approx(
        dict.fromkeys(["train", "val", "test"], 0.3), abs=0.02
    )
    assert split_by_patient(images, stratify=()).value_counts()["val"] == pytest.approx(60, abs=2)


def with_positives(positives, films=100):
    labels = np.arange(films) < positives
    images = study(films, films).assign(Pneumonia=labels.astype(int), Rare=0.0)
    images.loc[images.index % 3 == 0, "Rare"] = 1
    return images.drop(columns="detailed_class")


@pytest.mark.parametrize("seed", range(10))
def test_rare_positives(seed):
    """Three positive images of a hundred reach all three splits."""
    images = with_positives(3)
    split = split_by_patient(images, train=0.6, val=0.2, test=0.2, seed=seed)
    assert images["Pneumonia"].groupby(split).sum().to_dict() == {"test": 1, "train": 1, "val": 1}


def test_too_rare_positives():
    """Where rare positives cannot reach every split, the counts are said."""
    message = (
        r"1 classes have one value only in a split.*: "
        r"Pneumonia \(positive: train \d of 80, val \d of 10, test \d of 10\);"
    )
    with pytest.warns(UserWarning, match=message):
        split_by_patient(with_positives(2))


def test_a_training_split_with_one_value_of_a_class_is_refused(tmp_path):
    images = with_positives(3)
    images["split"] = np.where(images["Pneumonia"] == 1, "val", "train")
    message = r"in the training split: Pneumonia \(positive: train 0 of 97, val 3 of 3\); expected"
    with pytest.raises(ValueError, match=message):
        write_split(tmp_path, images, BOXES)
    images["Pneumonia"] = 0
    with pytest.raises(ValueError, match=r"train 0 of 80, val 0 of 10, test 0 of 10\)"):
        split_by_patient(images)
    images["Pneumonia"] = np.nan
    with pytest.raises(ValueError, match=r"train 0 of 0, val 0 of 0, test 0 of 0\)"):
        split_by_patient(images)


def test_several_classes():
    """Several classes with missing labels are balanced and a missing one is no negative."""
    images = study(1200, 900).rename(columns={"Pneumonia": "Mass"})
    draw = np.random.default_rng(1)
    images["Edema"] = (draw.random(1200) < 0.1).astype(float)
    images.loc[draw.random(1200) < 0.2, "Edema"] = np.nan
    images.loc[images["view"] == "AP", "Only PA"] = np.nan
    images.loc[images["view"] == "PA", "Only PA"] = images["Mass"]
    split = split_by_patient(images)
    for name in ("Mass", "Edema"):
        shares = images[name].groupby(split).mean()
        assert (shares - images[name].mean()).abs().max() < 0.03
    images["split"] = np.where(images["view"] == "AP", "train", "val")
    images["patient_id"] = images["image_id"]
    with pytest.raises(ValueError, match=r"Only PA \(positive: train 0 of 0, val"):
        write_split("nowhere", images, BOXES[:0])


def official(images, seed=0):
    patients = np.sort(images["patient_id"].unique())
    test = np.random.default_rng(seed).permutation(patients)[: len(patients) // 4]
    return images.assign(official_split=np.where(images["patient_id"].isin(test), "test", "train"))


def test_official_test_set():
    """The official test set is kept and validation comes from the official training set."""
    images = official(study())
    split = split_by_patient(images, train=0.8, val=0.2, test=0)
    check_disjoint(images, split)
    assert split.name == "split"
    assert ((split == "test") == (images["official_split"] == "test")).all()
    rest = split[images["official_split"] == "train"]
    assert (rest == "val").mean() == pytest.approx(0.2, abs=0.01)
    # The share of test is not used: 0.8 to 0.1 is 8 to 1.
    rest = split_by_patient(images)[images["official_split"] == "train"]
    assert (rest == "val").mean() == pytest.approx(1 / 9, abs=0.01)


def test_an_official_validation_set_is_kept():
    images = official(study())
    images["official_split"] = (
        images["patient_id"]
        .str[-1]
        .map(lambda digit: {"0": "val", "1": "test"}.get(digit, "train"))
    )
    assert split_by_patient(images).equals(images["official_split"].rename("split"))


def test_an_official_split_that_cannot_be_followed_is_refused():
    images = official(study())
    wrong = images.copy()
    wrong.loc[3, "official_split"], wrong.loc[5, "official_split"] = None, "valid"
    message = (
        r"^images: 2 images with another official_split: film\d+ \((nan|None)\), film\d+ \(valid\)"
    )
    with pytest.raises(ValueError, match=message):
        split_by_patient(wrong)
    for only, absent in (("train", "test"), ("test", "train")):
        with pytest.raises(ValueError, match=f"official_split has no {absent} images; without"):
            split_by_patient(images.assign(official_split=only))
    twice = images["patient_id"].value_counts().index[0]
    row = images.index[images["patient_id"] == twice][0]
    images["official_split"] = images["official_split"].replace("test", "train")
    images.loc[row, "official_split"] = "test"
    with pytest.raises(ValueError, match=f"1 patients in two splits: patient {twice}"):
        split_by_patient(images)


def test_overlap_is_found_and_named():
    images = study(30, 15)
    split = split_by_patient(images, train=0.6, val=0.2, test=0.2)
    check_disjoint(images, split)
    twice = images["patient_id"].value_counts().index[0]
    rows = images.index[images["patient_id"] == twice]
    split[rows[0]], split[rows[1]] = "train", "test"
    with pytest.raises(ValueError, match=rf"1 patients in two splits: patient {twice}"):
        check_disjoint(images, split)
    with pytest.raises(ValueError, match="same index"):
        check_disjoint(images, split[1:])
    again = pd.concat([images, images[:1]], ignore_index=True)
    other = pd.concat([split, pd.Series(["val"])], ignore_index=True)
    other[0] = "train"
    with pytest.raises(ValueError, match="1 images in two splits"):
        check_disjoint(again, other)


def test_folds_are_patient_disjoint_and_alike():
    images = study()
    folds = folds_by_patient(images, folds=5, seed=1)
    check_disjoint(images, folds)
    assert sorted(folds.unique()) == [0, 1, 2, 3, 4]
    assert folds.dtype.kind == "i"
    assert folds.name == "fold"
    moved = folds_by_patient(images.set_index(images.index + 7), folds=5, seed=1)
    assert moved.equals(folds.set_axis(images.index + 7))
    assert folds.value_counts().tolist() == pytest.approx([120] * 5, abs=3)
    assert_alike(images, folds, 0.02)
    with pytest.raises(ValueError, match="folds=1: expected an integer >= 2"):
        folds_by_patient(images, folds=1)


BOXES = pd.DataFrame(
    [("0001", 1.5, 2.0, 3.0, 4.0), ("other", 0.0, 0.0, 1.0, 1.0)],
    columns=["image_id", "x", "y", "width", "height"],
)


def test_a_split_that_was_written_is_read_again_with_ids_as_text(tmp_path):
    images = study(40, 30)
    images["image_id"] = [f"{k:04d}" for k in range(40)]
    images["age"] = np.arange(40.0)
    images.loc[3, ["patient_id", "view"]] = None, "NA"
    with pytest.warns(UserWarning, match="1 of 40"):
        images["split"] = split_by_patient(images, train=0.6, val=0.2, test=0.2)
    paths = write_split(tmp_path / "new" / "data", images, BOXES)
    assert [path.name for path in paths] == ["images.csv", "boxes.csv"]
    again, boxes = read_split(tmp_path / "new" / "data")
    pd.testing.assert_frame_equal(again, images, check_dtype=False)
    assert again["image_id"].tolist() == images["image_id"].tolist()
    pd.testing.assert_frame_equal(boxes, BOXES[:1], check_dtype=False)


def test_patient_in_two_splits(tmp_path):
    """A split with a patient in two parts is neither written nor read."""
    images = study(40, 30)
    images["split"] = split_by_patient(images, train=0.6, val=0.2, test=0.2)
    write_split(tmp_path, images, BOXES)
    images["split"] = np.where(np.arange(40) % 2, "train", "test")
    with pytest.raises(ValueError, match="patients in two splits"):
        write_split(tmp_path, images, BOXES)
    images.to_csv(tmp_path / "images.csv", index=False)
    with pytest.raises(ValueError, match=r"images\.csv: \d+ patients in two splits"):
        read_split(tmp_path)


def test_boxes_outside_their_films_are_not_written(tmp_path):
    images = study(40, 30).assign(rows=64, columns=64)
    images["split"] = split_by_patient(images, train=0.6, val=0.2, test=0.2)
    box = pd.DataFrame({"image_id": images["image_id"][:1], "x": 60, "y": 5})
    with pytest.raises(ValueError, match=r"1 boxes outside their film: film.*film 64 x 64 pixels"):
        write_split(tmp_path, images, box.assign(width=10, height=10))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "column"), [("images.csv", "split"), ("boxes.csv", "width")])
def test_a_file_that_is_missing_or_lacks_a_column_is_named(tmp_path, name, column):
    images = study(40, 30)
    images["split"] = split_by_patient(images, train=0.6, val=0.2, test=0.2)
    write_split(tmp_path, images, BOXES)
    pd.read_csv(tmp_path / name).drop(columns=column).to_csv(tmp_path / name, index=False)
    with pytest.raises(ValueError, match=rf"{name}: no column {column}; expected image_id"):
        read_split(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}: missing"):
        read_split(tmp_path)


@pytest.fixture(scope="module")
def rsna(rsna_dir):
    """All 26,684 films with patient and view."""
    tables = rsna_dir.parent / "rsna-tables"
    images, _ = read_rsna(tables)
    headers = pd.read_csv(tables / "dicom_headers.csv").set_index("PatientID")
    return images.join(headers["ViewPosition"].rename("view"), on="image_id")


def test_the_complete_study_is_split_within_half_a_point(rsna):
    split = split_by_patient(rsna)
    check_disjoint(rsna, split)
    assert rsna.groupby("patient_id")["image_id"].size().max() > 50
    assert split.value_counts(normalize=True).to_dict() == pytest.approx(
        {"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.001
    )
    assert_alike(rsna, split, 0.005)


def test_the_mini_study_is_split_within_two_points(rsna, rsna_dir):
    mini, _ = read_rsna(rsna_dir)
    mini = mini.merge(rsna[["image_id", "view"]], on="image_id")
    for seed in range(3):
        split = split_by_patient(mini, seed=seed)
        check_disjoint(mini, split)
        assert_alike(mini, split, 0.02)
        assert split.value_counts()["test"] == pytest.approx(87.5, abs=2)
