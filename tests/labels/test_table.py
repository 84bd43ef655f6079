import re

import cv2
import numpy as np
import pandas as pd
import pytest

from chexnet.dicom import image_ids
from chexnet.labels import add_film_facts, class_names, read_table

CSV = """file,patient,view,sex,age,fold,Mass,Edema
a.png,p1,PA,Male,57,train,1,0
b.png,p1,AP,F,058Y,train,0,
sub/c.jpg,p2,,Unknown,,valid,0.0,1.0
sub/d.jpg,,pa,O,414,test,1,1
"""
BOXES = """file,class_name,x,y,width,height
d,Edema,1,2,3.5,4
d,Mass,1,2,3.5,4
a.png,Mass,5,6,7,8
b.png,,,,,
"""
COLUMNS = {"image": "file", "labels": ["Mass", "Edema"]}


@pytest.fixture
def study(tmp_path):
    """Four pictures of 32 x 48 pixels, labels.csv and boxes.csv."""
    (tmp_path / "sub").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48), np.uint8)
    for name in ("a.png", "b.png", "sub/c.jpg", "sub/d.jpg"):
        cv2.imwrite(str(tmp_path / name), pixels)
    (tmp_path / "labels.csv").write_text(CSV)
    (tmp_path / "boxes.csv").write_text(BOXES)
    return tmp_path


def test_labels_facts_patients_and_a_given_split_are_read(study):
    facts = {name: name for name in ("patient", "view", "sex", "age")}
    images, _ = read_table(study / "labels.csv", **COLUMNS, **facts, split="fold")
    expected = pd.DataFrame(
        {
            "image_id": ["a", "b", "c", "d"],
            "patient_id": ["p1", "p1", "p2", None],
            "view": ["PA", "AP", None, "PA"],
            "sex": ["M", "F", None, "O"],
            "age": [57, 58, None, None],
            "Mass": [1, 0, 0, 1],
            "Edema": [0, np.nan, 1, 1],
            "official_split": ["train", "train", "val", "test"],
        }
    )
    pd.testing.assert_frame_equal(images, expected, check_dtype=False)
    assert images.dtypes[["Mass", "Edema"]].tolist() == [np.int64, np.float64]
    assert class_names(images) == ["Mass", "Edema"]


def test_only_the_columns_that_are_named_are_read(study):
    images, boxes = read_table(study / "labels.csv", image="file", labels=["Edema"])
    assert list(images) == ["image_id", "patient_id", "Edema"]
    assert images["patient_id"].isna().all()
    assert boxes.empty
    assert list(boxes) == ["image_id", "class_name", "x", "y", "width", "height"]


def test_boxes_have_classes_and_rows_without_numbers_are_skipped(study):
    _, boxes = read_table(study / "labels.csv", **COLUMNS, boxes=study / "boxes.csv")
    assert boxes.to_numpy().tolist() == [
        ["a", "Mass", 5, 6, 7, 8],
        ["d", "Edema", 1, 2, 3.5, 4],
        ["d", "Mass", 1, 2, 3.5, 4],
    ]
    (study / "own.csv").write_text("file,left,top,w,h\nd,1,2,3,4\n")
    options = {"image": "file", "labels": ["Mass"], "box": ["left", "top", "w", "h"]}
    _, boxes = read_table(study / "labels.csv", **options, boxes=study / "own.csv")
    assert boxes.to_numpy().tolist() == [["d", "Mass", 1, 2, 3, 4]]


@pytest.mark.parametrize("value", ["c.jpg", "c", "sub/c", "images/sub/c.jpg", r"sub\c.jpg"])
def test_names_of_an_image(study, value):
    """An image may be named by its path, by the end of it, or without suffix."""
    (study / "labels.csv").write_text(f"image,Mass\n{value},1\nb,0\n")
    images, _ = read_table(study / "labels.csv", labels=["Mass"])
    assert images["image_id"].tolist() == ["b", "c"]


def test_names_that_are_in_two_folders_need_their_path(study):
    (study / "other").mkdir()
    (study / "other" / "c.jpg").write_bytes((study / "sub" / "c.jpg").read_bytes())
    (study / "labels.csv").write_text("image,Mass\nc.jpg,1\nb,0\n")
    message = "1 images of which there are several: c.jpg (other/c.jpg and sub/c.jpg); expected"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_table(study / "labels.csv", labels=["Mass"])
    (study / "labels.csv").write_text("image,Mass\nsub/c.jpg,1\nother/c.jpg,0\n")
    images, _ = read_table(study / "labels.csv", labels=["Mass"])
    ids = image_ids(study)
    assert set(images["image_id"]) == {ids["sub/c.jpg"], ids["other/c.jpg"]}
    images, _ = read_table(study / "labels.csv", labels=["Mass"], ids="path")
    assert images["image_id"].tolist() == ["other_c", "sub_c"]


def test_other_file_of_its_name(study):
    """The image of an id is not taken for another file of its name."""
    (study / "a.txt").write_text("notes on a.png")
    (study / "labels.csv").write_text("image,Mass\na,1\nb,0\n")
    images, _ = read_table(study / "labels.csv", labels=["Mass"])
    assert images["image_id"].tolist() == ["a", "b"]


def test_folders_and_gzip(study, tmp_path):
    """Images and table may lie in different folders and the table be gzipped."""
    table = tmp_path / "tables" / "labels.csv.gz"
    table.parent.mkdir()
    pd.read_csv(study / "labels.csv").to_csv(table, index=False)
    images, _ = read_table(table, **COLUMNS, folder=study)
    assert len(images) == 4
    with pytest.raises(NotADirectoryError, match="nowhere"):
        read_table(table, **COLUMNS, folder=study / "nowhere")


WRONG = {
    "1 images that are not in the folder: e.png; expected": ("a.png,p1", "e.png,p1"),
    "1 images that are not in the folder: other/c.jpg": ("sub/c.jpg", "other/c.jpg"),
    "1 images that are not in the folder: a.dcm": ("a.png", "a.dcm"),
    "1 images that are not in the folder: blank": ("a.png,p1", ",p1"),
    "1 images with more than one row: a; expected: one row an image": ("b.png", "a.png"),
    "1 images with another label: b.png (Mass=-1); expected: 0, 1 or blank": ("0,\n", "-1,\n"),
    "1 images with another label: b.png (Mass=2)": ("0,\n", "2,\n"),
    "1 images with another label: b.png (Mass=nan)": ("0,\n", "nan,\n"),
    "1 images with another label: b.png (Mass=0.5)": ("0,\n", "0.5,\n"),
    "1 images with another label: b.png (Edema=yes)": ("0,\n", "0,yes\n"),
    "1 classes that cannot be learned: Mass (all labels are 0)": ("1,0\n", "0,0\n"),
    "1 classes that cannot be learned: Edema (all labels are 1)": (",1,0\n", ",1,\n"),
    "1 invalid ages: young; expected: years": ("57", "young"),
    "1 unknown sexes: X; expected: M, F, O": ("Male", "X"),
    "1 other splits: a.png (left); expected: train, val": ("57,train", "57,left"),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_value_is_named_with_file_and_image(study, message):
    old, new = WRONG[message]
    text = CSV.replace(old, new, 1)
    if "all labels are 0" in message:
        text = text.replace("1,1\n", "0,1\n")
    assert text != CSV
    (study / "labels.csv").write_text(text)
    facts = {name: name for name in ("patient", "view", "sex", "age")}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_table(study / "labels.csv", **COLUMNS, **facts, split="fold")
    assert str(study / "labels.csv") in str(error.value)


WRONG_BOXES = {
    "1 images that are not in the folder: e": ("d,Edema", "e,Edema"),
    "1 unknown classes: Hernia; expected: Mass, Edema": ("d,Edema", "d,Hernia"),
    "1 boxes of images whose label is 0: a (Edema); expected": ("a.png,Mass", "a.png,Edema"),
    "1 films with a box that is not four numbers: d": ("3.5,4\n", "3.5,\n"),
    "1 films with an impossible box: d": ("3.5,4\n", "0,4\n"),
    "1 films with a duplicate row: d": ("d,Mass", "d,Edema"),
    "columns file, class, x": ("class_name", "class"),
}


@pytest.mark.parametrize("message", WRONG_BOXES)
def test_a_wrong_box_is_named_with_file_and_image(study, message):
    old, new = WRONG_BOXES[message]
    (study / "boxes.csv").write_text(BOXES.replace(old, new, 1))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_table(study / "labels.csv", **COLUMNS, boxes=study / "boxes.csv")
    assert str(study / "boxes.csv") in str(error.value)


def test_a_box_of_an_image_without_label_row_is_refused(study):
    (study / "labels.csv").write_text(CSV.replace("sub/d.jpg,,pa,O,414,test,1,1\n", ""))
    with pytest.raises(ValueError, match="1 images with a box and no label: d"):
        read_table(study / "labels.csv", **COLUMNS, boxes=study / "boxes.csv")


def test_missing_column_or_file(study):
    """A missing column or file and a column with two roles are named."""
    with pytest.raises(ValueError, match=r"labels.csv: columns file, .*; expected image, Mass"):
        read_table(study / "labels.csv", labels=["Mass"])
    with pytest.raises(FileNotFoundError, match=r"none.csv: missing"):
        read_table(study / "none.csv", labels=["Mass"])
    for labels, facts in ([], {}), (["Mass", "Mass"], {}), (["Mass"], {"view": "Mass"}):
        with pytest.raises(ValueError, match="one role for each column"):
            read_table(study / "labels.csv", image="file", labels=labels, **facts)


def test_a_column_that_is_no_label_is_not_taken_for_a_class():
    images = pd.DataFrame({"image_id": ["a", "b"], "Mass": [0, 1], "site": ["north", "south"]})
    with pytest.raises(ValueError, match=r"no label: site \(north\), site \(south\); exp"):
        class_names(images)


@pytest.mark.parametrize("name", ["image_id", "rows", "fold"])
def test_a_class_with_the_name_of_another_column_is_refused(study, name):
    """It would be overwritten, or not be a class."""
    table = study / "labels.csv"
    table.write_text(table.read_text().replace("Edema", name))
    with pytest.raises(ValueError, match=rf"labels\.csv: 1 labels with .* another column: {name};"):
        read_table(table, image="file", labels=["Mass", name])


def test_a_table_without_rows_is_refused(study):
    (study / "labels.csv").write_text("file,Mass\n")
    with pytest.raises(ValueError, match=r"labels\.csv: no rows"):
        read_table(study / "labels.csv", image="file", labels=["Mass"])


def test_table_before_film(study):
    """The table says view, sex and age, and the film fills the gaps."""
    images, _ = read_table(study / "labels.csv", **COLUMNS, view="view", sex="sex")
    films = pd.DataFrame({"image_id": list("abcd"), "status": "copied", "reason": ""})
    films = films.assign(rows=32, columns=48, view=None, sex=None, age=None)
    films.loc[films["image_id"].isin(["a", "c"]), ["view", "sex", "age"]] = "LL", "O", 33
    images = add_film_facts(images, films).set_index("image_id")
    assert images["view"].tolist() == ["PA", "AP", "LL", "PA"]
    assert images["sex"].tolist() == ["M", "F", "O", "O"]
    assert images["age"].dropna().to_dict() == {"a": 33, "c": 33}
    assert images[["rows", "columns"]].drop_duplicates().to_numpy().tolist() == [[32, 48]]
