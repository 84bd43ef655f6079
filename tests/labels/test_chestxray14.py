import re

import pytest

from chexnet.labels import class_names, read_chestxray14
from chexnet.labels.chestxray14 import FINDINGS
from chexnet.splits import check_disjoint, split_by_patient

TABLE = """Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,\
View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],
00000001_000.png,Cardiomegaly,0,1,058Y,M,PA,2682,2749,0.143,0.143,
00000001_001.png,Cardiomegaly|Infiltration,1,1,011M,M,AP,2894,2729,0.143,0.143,
00000002_000.png,No Finding,0,2,414Y,F,PA,2500,2048,0.168,0.168,
"""
BOXES = """Image Index,Finding Label,Bbox [x,y,w,h],,,
00000001_001.png,Infiltrate,225.5,547,86.75,79,,,
00000001_000.png,Cardiomegaly,1,2,3,4,,,
"""
CLASSES = ["Infiltration", "Cardiomegaly"]


def write(folder, table=TABLE, boxes=BOXES, train="00000001_000.png\n00000001_001.png\n",
          test="00000002_000.png\n"):  # fmt: skip
    (folder / "Data_Entry_2017.csv").write_text(table)
    for name, text in (
        ("BBox_List_2017.csv", boxes),
        ("train_val_list.txt", train),
        ("test_list.txt", test),
    ):
        if text is not None:
            (folder / name).write_text(text)
    return folder


def test_columns(tmp_path):
    """Findings become one column a class and patients eight digits."""
    images, boxes = read_chestxray14(write(tmp_path), CLASSES)
    assert images.to_dict("list") == {
        "image_id": ["00000001_000", "00000001_001", "00000002_000"],
        "patient_id": ["00000001", "00000001", "00000002"],
        "view": ["PA", "AP", "PA"],
        "sex": ["M", "M", "F"],
        "age": [58, 0, None],
        "Infiltration": [0, 1, 0],
        "Cardiomegaly": [1, 1, 0],
        "official_split": ["train", "train", "test"],
    }
    assert class_names(images) == CLASSES
    assert boxes.to_numpy().tolist() == [
        ["00000001_000", "Cardiomegaly", 1, 2, 3, 4],
        ["00000001_001", "Infiltration", 225.5, 547, 86.75, 79],
    ]


def test_table_of_2020(tmp_path):
    """The table of 2020 names and writes the columns otherwise."""
    text = TABLE.replace("Gender", "Sex").replace("058Y", "57").replace(",\n", "\n")
    (write(tmp_path) / "Data_Entry_2017_v2020.csv").write_text(text)
    images, _ = read_chestxray14(tmp_path, CLASSES)
    assert images["age"][0] == 57


def test_boxes_of_classes_that_are_not_wanted_are_left_out(tmp_path):
    _, boxes = read_chestxray14(write(tmp_path), ["Cardiomegaly"])
    assert boxes["class_name"].tolist() == ["Cardiomegaly"]


def test_boxes_and_lists_may_be_missing(tmp_path):
    images, boxes = read_chestxray14(write(tmp_path, boxes=None, train=None, test=None), CLASSES)
    assert "official_split" not in images
    assert list(boxes) == ["image_id", "class_name", "x", "y", "width", "height"]
    assert boxes.empty


WRONG = {
    "1 unknown findings: Broken Rib; expected: Atelectasis, ": ("No Finding", "Broken Rib"),
    "1 unknown findings: blank": ("No Finding", ""),
    "1 lists of findings with No Finding: No Finding|Mass": ("No Finding", "No Finding|Mass"),
    "1 images with more than one row: 00000001_000": ("00000001_001.png", "00000001_000.png"),
    "1 names of no PNG: 00000001_000.dcm": ("00000001_000.png", "00000001_000.dcm"),
    "invalid image_id '../00000001_000'": ("00000001_000.png", "../00000001_000.png"),
    "1 invalid Patient IDs: P2; expected: digits": (",2,414Y", ",P2,414Y"),
    "1 invalid ages: old": ("058Y", "old"),
    "1 unknown sexes: X": (",M,PA", ",X,PA"),
    "expected a column Patient Sex or Patient Gender": ("Patient Gender", "Gender"),
    "expected Image Index, Finding Labels,": ("Patient Age", "Age"),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_value_is_named_with_the_file(tmp_path, message):
    write(tmp_path, TABLE.replace(*WRONG[message], 1), boxes=None, train=None, test=None)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_chestxray14(tmp_path, CLASSES)
    assert str(tmp_path / "Data_Entry_2017.csv") in str(error.value)


WRONG_BOXES = {
    "1 unknown findings: Infarct; expected: Atelectasis": ("Infiltrate", "Infarct"),
    "1 images with a box and no label: 00000009_000": ("00000001_001", "00000009_000"),
    "1 boxes of images whose label is 0: 00000001_000 (Infiltration)": ("_001", "_000"),
    "1 films with a box that is not four numbers: 00000001_001": ("547", "x"),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG_BOXES)
def test_a_wrong_box_is_named_with_the_file(tmp_path, message):
    write(tmp_path, boxes=BOXES.replace(*WRONG_BOXES[message], 1))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_chestxray14(tmp_path, CLASSES)
    assert str(tmp_path / "BBox_List_2017.csv") in str(error.value)


def test_contradicting_lists(tmp_path):
    """Lists that contradict each other or leave images out are refused."""
    with pytest.raises(ValueError, match=r"train_val_list.txt too: 00000001_001; expected: one"):
        read_chestxray14(write(tmp_path, test="00000002_000.png\n00000001_001.png"), CLASSES)
    with pytest.raises(ValueError, match=r"neither here nor in train_val_list.txt: 00000001_001"):
        read_chestxray14(write(tmp_path, train="00000001_000.png\n"), CLASSES)
    (tmp_path / "train_val_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"train_val_list.txt: missing; expected both"):
        read_chestxray14(tmp_path, CLASSES)


def test_classes_without_positive_images(tmp_path):
    """Classes without positive images are named and can be left out."""
    with pytest.raises(ValueError, match=r"12 classes that cannot be learned: Atelectasis \(all"):
        read_chestxray14(write(tmp_path))
    with pytest.raises(ValueError, match=r"unknown classes: Covid; expected: Atelectasis, "):
        read_chestxray14(tmp_path, ["Covid"])
    with pytest.raises(ValueError, match="expected one or more, each once"):
        read_chestxray14(tmp_path, [])
    with pytest.raises(FileNotFoundError, match=r"Data_Entry_2017\*.csv: missing; it is part of"):
        read_chestxray14(tmp_path / "nowhere")


def test_the_genuine_tables_are_112120_images_of_30805_patients(label_tables):
    images, boxes = read_chestxray14(label_tables)
    assert len(images) == 112_120
    assert images["patient_id"].nunique() == 30_805
    assert (images["image_id"].str[:8] == images["patient_id"]).all()
    # As in the FAQ of the data set and in Wang et al., version 4 of 2017, with 14 classes.
    assert images[list(FINDINGS)].sum().to_dict() == {
        "Atelectasis": 11_559, "Cardiomegaly": 2_776, "Effusion": 13_317, "Infiltration": 19_894,
        "Mass": 5_782, "Nodule": 6_331, "Pneumonia": 1_431, "Pneumothorax": 5_302,
        "Consolidation": 4_667, "Edema": 2_303, "Emphysema": 2_516, "Fibrosis": 1_686,
        "Pleural_Thickening": 3_385, "Hernia": 227,
    }  # fmt: skip
    assert (images[list(FINDINGS)].sum(axis=1) == 0).sum() == 60_361  # "No Finding"
    assert images["view"].value_counts().to_dict() == {"PA": 67_310, "AP": 44_810}
    assert images["age"].notna().all()
    assert len(boxes) == 984
    assert boxes["image_id"].nunique() == 880
    assert boxes["class_name"].value_counts()["Infiltration"] == 123
    assert ((boxes["x"] + boxes["width"]) <= 1024).all()


def test_genuine_table(label_tables, tmp_path):
    """The genuine table is split with two lists and no patient is in two splits."""
    table = label_tables / "Data_Entry_2017_v2020.csv.gz"
    (tmp_path / table.name).symlink_to(table)
    images, _ = read_chestxray14(tmp_path, ["Hernia", "Pneumonia"])
    # The official lists are not part of the wheel: here every fifth patient is in the test list.
    test = images["patient_id"].str.endswith(("0", "5"))
    for name, chosen in (("train_val_list.txt", ~test), ("test_list.txt", test)):
        (tmp_path / name).write_text("\n".join(images["image_id"][chosen] + ".png"))
    images, _ = read_chestxray14(tmp_path, ["Hernia", "Pneumonia"])
    few = images[images["patient_id"].str.endswith(("0", "1", "2"))].reset_index(drop=True)
    split = split_by_patient(few)
    check_disjoint(few, split)
    assert ((split == "test") == few["patient_id"].str.endswith("0")).all()
    assert (split[split != "test"] == "val").mean() == pytest.approx(1 / 9, abs=0.002)
