import re

import numpy as np
import pandas as pd
import pytest

from chexnet.dicom import image_ids
from chexnet.labels import class_names, read_chexpert
from chexnet.labels.chexpert import OBSERVATIONS

HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Pneumothorax"
PREFIX = "CheXpert-v1.0-small/"
TRAIN = f"""{HEADER}
{PREFIX}train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,0.0
{PREFIX}train/patient00002/study2/view1_frontal.jpg,Male,90,Frontal,PA,,-1.0,1.0
{PREFIX}train/patient00002/study2/view2_lateral.jpg,Male,90,Lateral,,,-1.0,1.0
{PREFIX}train/patient00003/study1/view1_frontal.jpg,Unknown,0,Frontal,LL,,1.0,
"""
VALID = f"""{HEADER}
{PREFIX}valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,0.0
"""
CLASSES = ["No Finding", "Edema", "Pneumothorax"]
IDS = [
    "train_patient00001_study1_view1_frontal",
    "train_patient00002_study2_view1_frontal",
    "train_patient00003_study1_view1_frontal",
    "valid_patient64541_study1_view1_frontal",
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "valid.csv").write_text(VALID)
    return tmp_path


def test_frontal_images(folder):
    """Frontal images with facts for the baselines and the expert set as test."""
    images, boxes = read_chexpert(folder, classes=CLASSES)
    expected = pd.DataFrame(
        {
            "image_id": IDS,
            "patient_id": ["patient00001", "patient00002", "patient00003", "patient64541"],
            "view": ["AP", "PA", "LL", "AP"],
            "sex": ["F", "M", None, "M"],
            "age": [68, 90, 0, 73],
            "No Finding": [1, 0, 0, 0],
            "Edema": [0, np.nan, 1, 1],
            "Pneumothorax": [0, 1, 0, 0],
            "official_split": ["train", "train", "train", "test"],
        }
    )
    pd.testing.assert_frame_equal(images, expected, check_dtype=False)
    assert class_names(images) == CLASSES
    assert boxes.empty
    (folder / "valid.csv").unlink()
    images, _ = read_chexpert(folder, classes=CLASSES)
    assert images["image_id"].tolist() == IDS[:3]
    assert "official_split" not in images


@pytest.mark.parametrize(
    ("uncertain", "unmentioned", "edema"),
    [
        ("ignore", "zeros", [0, None, 1, 1]),
        ("ones", "zeros", [0, 1, 1, 1]),
        ("zeros", "zeros", [0, 0, 1, 1]),
        ("zeros", "ignore", [None, 0, 1, 1]),
    ],
)
def test_uncertain_and_unmentioned_are_what_is_asked_for(folder, uncertain, unmentioned, edema):
    images, _ = read_chexpert(folder, uncertain, unmentioned=unmentioned, classes=CLASSES)
    found = [None if np.isnan(value) else value for value in images["Edema"]]
    assert found == edema
    assert images["No Finding"].tolist() == [1, 0, 0, 0]


def test_lateral_images_on_request(folder):
    images, _ = read_chexpert(folder, lateral=True, classes=CLASSES)
    assert images["view"].tolist() == ["AP", "PA", "LATERAL", "LL", "AP"]


def test_ids_are_those_of_the_converter(folder):
    for row in (TRAIN + VALID).splitlines():
        if row.startswith(PREFIX):
            path = folder / row.split(",")[0].removeprefix(PREFIX)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    images, _ = read_chexpert(folder, classes=CLASSES)
    assert set(images["image_id"]) <= set(image_ids(folder, "path").values())


WRONG = {
    "1 images with another label: train_patient00002_study2_view1_frontal (Edema=-2.0)": (
        ",-1.0,", ",-2.0,"),
    "1 other paths: view1_frontal.jpg; expected: such as": (
        f"{PREFIX}train/patient00001/study1/", ""),
    "1 other views: Side; expected: Frontal or Lateral": ("68,Frontal", "68,Side"),
    "1 invalid ages: old": ("68", "old"),
    "1 unknown sexes: Woman": ("Female", "Woman"),
    "1 images with more than one row: train_patient00002": ("patient00001", "patient00002"),
    "expected Path, Sex, Age, Frontal/Lateral, AP/PA, No Finding": ("Frontal/Lateral", "View"),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_value_is_named_with_the_file(folder, message):
    text = TRAIN.replace(*WRONG[message], 1)
    if "more than one" in message:
        text = text.replace("patient00002/study1", "patient00002/study2", 1)
    (folder / "train.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_chexpert(folder, classes=CLASSES)
    assert str(folder) in str(error.value)


def test_a_wrong_argument_and_a_missing_table_are_named(folder):
    with pytest.raises(ValueError, match="uncertain='maybe': expected one of ignore, ones, zeros"):
        read_chexpert(folder, "maybe")
    with pytest.raises(ValueError, match="unmentioned='ones': expected one of zeros, ignore"):
        read_chexpert(folder, unmentioned="ones")
    with pytest.raises(ValueError, match="unknown classes: Mass; expected: No Finding"):
        read_chexpert(folder, classes=["Mass"])
    (folder / "train.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.csv: missing; it is part of CheXpert"):
        read_chexpert(folder)


def test_the_genuine_table_is_223414_images_of_64540_patients(label_tables, tmp_path):
    (tmp_path / "train.csv.gz").symlink_to(label_tables / "chexpert_train.csv.gz")
    images, _ = read_chexpert(tmp_path, lateral=True)
    assert len(images) == 223_414
    assert images["patient_id"].nunique() == 64_540
    assert (images["view"] == "LATERAL").sum() == 32_387
    assert images["sex"].isna().sum() == 1
    assert (images[list(OBSERVATIONS)] == 1).sum().to_dict() == {
        "No Finding": 22_381, "Enlarged Cardiomediastinum": 10_798, "Cardiomegaly": 27_000,
        "Lung Opacity": 105_581, "Lung Lesion": 9_186, "Edema": 52_246, "Consolidation": 14_783,
        "Pneumonia": 6_039, "Atelectasis": 33_376, "Pneumothorax": 19_448,
        "Pleural Effusion": 86_187, "Pleural Other": 3_523, "Fracture": 9_040,
        "Support Devices": 116_001,
    }  # fmt: skip
    assert images["Atelectasis"].isna().sum() == 33_739
    assert images["No Finding"].notna().all()
    frontal, _ = read_chexpert(tmp_path, "ones", classes=["Atelectasis"])
    assert len(frontal) == 191_027
