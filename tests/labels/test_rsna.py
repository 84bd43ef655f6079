import json
import re

import numpy as np
import pandas as pd
import pytest

from chexnet.labels import add_film_facts, read_rsna
from chexnet.labels.rsna import CLASSES, LABELS, MAPPING, read_nih_mapping

ROWS = [
    # patientId, x, y, width, height, Target, class
    ("c", "264", "152.5", "213", "379", "1", "Lung Opacity"),
    ("c", "562", "152", "256", "453", "1", "Lung Opacity"),
    ("a", "", "", "", "", "0", "Normal"),
    ("b", "", "", "", "", "0", "No Lung Opacity / Not Normal"),
    ("d", "10", "20", "30", "40", "1", "Lung Opacity"),
]
PATIENTS = {"a": "00000007", "b": "00000007", "c": "00019124", "d": "00000001"}


def write_study(folder, rows=ROWS, class_rows=None, patients=PATIENTS):
    labels = ["patientId,x,y,width,height,Target", *(",".join(row[:6]) for row in rows)]
    (folder / LABELS).write_text("\n".join(labels) + "\n")
    if class_rows is None:
        class_rows = [(row[0], row[6]) for row in rows]
    classes = ["patientId,class", *(",".join(row) for row in class_rows)]
    (folder / CLASSES).write_text("\n".join(classes) + "\n")
    if patients is not None:
        write_mapping(folder, patients)
    return folder


def write_mapping(folder, patients):
    listed = [
        {"img_id": f"{patient}_000.png", "subset_img_id": film, "SOPInstanceUID": ""}
        for film, patient in patients.items()
    ]
    (folder / MAPPING).write_text(json.dumps(listed))


def changed(row, **cells):
    names = ["patientId", "x", "y", "width", "height", "Target", "class"]
    return tuple(cells.get(name, value) for name, value in zip(names, row, strict=True))


def test_one_row_is_one_film_and_one_row_is_one_box(tmp_path):
    images, boxes = read_rsna(write_study(tmp_path))
    assert images.to_dict("list") == {
        "image_id": ["a", "b", "c", "d"],
        "patient_id": ["00000007", "00000007", "00019124", "00000001"],
        "Pneumonia": [0, 0, 1, 1],
        "detailed_class": [
            "Normal",
            "No Lung Opacity / Not Normal",
            "Lung Opacity",
            "Lung Opacity",
        ],
    }
    assert images["Pneumonia"].dtype == np.int64
    assert boxes.to_dict("list") == {
        "image_id": ["c", "c", "d"],
        "x": [264, 562, 10],
        "y": [152.5, 152, 20],
        "width": [213, 256, 30],
        "height": [379, 453, 40],
    }
    assert (boxes.dtypes.iloc[1:] == np.float64).all()


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    (tmp_path / "turned").mkdir()
    one = read_rsna(write_study(tmp_path))
    other = read_rsna(write_study(tmp_path / "turned", ROWS[::-1]))
    for table, turned in zip(one, other, strict=True):
        pd.testing.assert_frame_equal(table, turned)


def test_without_the_mapping_the_patients_are_unknown(tmp_path):
    images, _ = read_rsna(write_study(tmp_path, patients=None))
    assert images["patient_id"].isna().all()


def test_films_that_the_mapping_leaves_out(tmp_path):
    """Films that the mapping leaves out are patients of their own."""
    write_study(tmp_path, patients={"a": "00000007", "c": "00019124"})
    with pytest.warns(UserWarning, match=r"2 of 4 images are missing.*own: b, d"):
        images, _ = read_rsna(tmp_path)
    assert images["patient_id"].tolist() == ["00000007", "film-b", "00019124", "film-d"]


def test_a_study_without_any_opacity_cannot_be_learned(tmp_path):
    message = rf"{LABELS}: 1 classes that cannot be learned: Pneumonia \(all labels are 0\)"
    with pytest.raises(ValueError, match=message):
        read_rsna(write_study(tmp_path, ROWS[2:4]))


WRONG_ROWS = {
    "films with Target 1 and no box: c": (0, {"x": "", "y": "", "width": "", "height": ""}),
    "films with Target 1 and no box: d": (4, {"height": ""}),
    "films with Target 0 and a box: a": (2, {"x": "1"}),
    "films with another Target: a (2); expected: 0 or 1": (2, {"Target": "2"}),
    "films with another Target: a (nan)": (2, {"Target": ""}),
    "films with Target 0 and 1: c": (
        0,
        {"Target": "0", "x": "", "y": "", "width": "", "height": ""},
    ),
    "films with an impossible box: d; expected: x and y from 0": (4, {"width": "0"}),
    "films with an impossible box: c": (1, {"height": "-3"}),
    "1 films with an impossible box: d;": (4, {"x": "-0.5"}),
    "films with an impossible box: d": (4, {"y": "inf"}),
    "films with a box that is not four numbers: d": (4, {"x": "ten"}),
    "films with a duplicate row: c": (1, {"x": "264", "y": "152.5", "width": "213",
                                             "height": "379"}),
    "films with another class: b (Ill); expected: Lung Opacity | No Lung": (3, {"class": "Ill"}),
    "films whose class contradicts the Target": (3, {"class": "Lung Opacity"}),
    "films with two classes: c": (0, {"class": "Normal"}),
    "invalid image_id '../b'": (3, {"patientId": "../b"}),
    "invalid image_id '/b'": (3, {"patientId": "/b"}),
    "invalid image_id 'nan'": (3, {"patientId": ""}),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG_ROWS)
def test_what_cannot_be_is_refused_with_file_and_film(tmp_path, message):
    position, cells = WRONG_ROWS[message]
    rows = list(ROWS)
    rows[position] = changed(rows[position], **cells)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_rsna(write_study(tmp_path, rows))
    assert str(tmp_path) in str(error.value)
    assert ".csv" in str(error.value)


def test_a_film_without_box_listed_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a duplicate row: a"):
        read_rsna(write_study(tmp_path, [*ROWS, ROWS[2]]))


def test_films_in_one_file_only_are_named(tmp_path):
    classes = [(row[0], row[6]) for row in ROWS]
    with pytest.raises(ValueError, match=rf"{LABELS}: 1 films that are not in .*: d"):
        read_rsna(write_study(tmp_path, class_rows=classes[:-1]))
    with pytest.raises(ValueError, match=rf"{CLASSES}: 1 films that are not in .*: e"):
        read_rsna(write_study(tmp_path, class_rows=[*classes, ("e", "Normal")]))


@pytest.mark.parametrize("name", [LABELS, CLASSES])
def test_a_missing_file_is_named(tmp_path, name):
    write_study(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read_rsna(tmp_path)


@pytest.mark.parametrize(("old", "new"), [("width", "w"), ("patientId,", "")])
def test_a_missing_column_is_refused(tmp_path, old, new):
    path = write_study(tmp_path) / LABELS
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"stage_2_train_labels.csv: columns .*expected patientId"):
        read_rsna(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b'a,b\n"'])
def test_a_file_that_is_no_csv_is_named(tmp_path, data):
    (write_study(tmp_path) / LABELS).write_bytes(data)
    with pytest.raises(ValueError, match=LABELS):
        read_rsna(tmp_path)


def test_the_mapping_gives_eight_digits_of_the_patient(tmp_path):
    write_mapping(tmp_path, PATIENTS)
    patients = read_nih_mapping(tmp_path / MAPPING)
    assert patients.to_dict() == PATIENTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not the RSNA mapping"),
        ("3", "not the RSNA mapping"),
        ("[]", "not the RSNA mapping"),
        ('[{"img_id": "00000001_000.png"}]', "subset_img_id"),
        ('[{"img_id": "1_0.png", "subset_img_id": "a"}]', "not NIH files: 1_0.png"),
        ('[{"img_id": null, "subset_img_id": "a"}]', "not NIH files"),
        ('[{"img_id": "00000001_000.png", "subset_img_id": "../a"}]', "invalid image_id"),
        ('[{"img_id": "00000001_000.png", "subset_img_id": ["a"]}]', "invalid image_id"),
        (
            '[{"img_id": "00000001_000.png", "subset_img_id": "a"},'
            ' {"img_id": "00000002_000.png", "subset_img_id": "a"}]',
            "two patients: a",
        ),
    ],
)
def test_a_mapping_that_is_none_is_refused_by_name(tmp_path, text, message):
    (tmp_path / MAPPING).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_nih_mapping(tmp_path / MAPPING)
    assert MAPPING in str(error.value)


def films_table():
    return pd.DataFrame(
        {
            "image_id": ["d", "c", "b", "extra", "d"],
            "status": ["copied", "encoded", "failed", "copied", "failed"],
            "reason": ["", "12 bits", "truncated", "", "another d"],
            "rows": [1024, 512, None, 3, None],
            "columns": [1024, 256, None, 3, None],
            "view": ["AP", "PA", None, "AP", None],
            "sex": ["F", "M", None, "F", None],
            "age": [40, 50, None, 1, None],
            "stored": "",
        }
    )


def test_films_that_were_not_converted_are_left_out_and_named(tmp_path):
    images, _ = read_rsna(write_study(tmp_path))
    with pytest.warns(UserWarning, match=r"2 of 4 images.*a \(no such file\), b \(truncated\)"):
        joined = add_film_facts(images, films_table())
    assert joined["image_id"].tolist() == ["c", "d"]
    assert joined["rows"].tolist() == [512, 1024]
    assert joined["view"].tolist() == ["PA", "AP"]
    assert "status" not in joined
    assert list(joined)[:4] == list(images)


def test_nothing_is_said_when_every_film_was_converted(tmp_path):
    images, _ = read_rsna(write_study(tmp_path))
    facts = add_film_facts(images[2:], films_table())
    pd.testing.assert_frame_equal(add_film_facts(facts, films_table()), facts)


def test_a_film_table_that_does_not_fit_is_refused(tmp_path):
    images, _ = read_rsna(write_study(tmp_path))
    with pytest.raises(ValueError, match="no column age, view"):
        add_film_facts(images, films_table().drop(columns=["view", "age"]))
    with pytest.raises(ValueError, match="none of the 2 images"):
        add_film_facts(images[:2], films_table())
    with pytest.raises(ValueError, match="converted twice: d"):
        add_film_facts(images, films_table().assign(status="copied"))


def test_the_complete_annotations_are_30227_rows_of_26684_films(rsna_dir):
    tables = rsna_dir.parent / "rsna-tables"
    images, boxes = read_rsna(tables)
    assert len(pd.read_csv(tables / LABELS)) == 30_227
    assert len(images) == images["image_id"].nunique() == 26_684
    assert images["Pneumonia"].sum() == 6_012
    assert images["detailed_class"].value_counts().to_dict() == {
        "No Lung Opacity / Not Normal": 11_821,
        "Normal": 8_851,
        "Lung Opacity": 6_012,
    }
    assert len(boxes) == 9_555
    assert set(boxes["image_id"]) == set(images.loc[images["Pneumonia"] == 1, "image_id"])
    assert ((boxes["x"] + boxes["width"]) <= 1024).all()
    assert images["patient_id"].str.fullmatch(r"\d{8}").all()


def test_the_mini_study_is_875_films_of_790_patients(rsna_dir):
    images, boxes = read_rsna(rsna_dir)
    assert len(images) == 875
    assert images["Pneumonia"].sum() == boxes["image_id"].nunique() == 270
    assert images["patient_id"].nunique() == 790
