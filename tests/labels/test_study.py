"""Data sets by name, as the notebooks read them."""

import cv2
import numpy as np
import pytest

from chexnet.labels import class_names, film_folder, read_study


def test_columns_of_a_table_have_their_roles_by_name(tmp_path):
    for name in ("a", "b", "c"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((8, 8), np.uint8))
    table = "view,file,patient,Edema,Mass\nPA,a.png,1,0,1\nAP,b.png,1,1,0\nPA,c.png,2,0,\n"
    (tmp_path / "labels.csv").write_text(table)
    images, _ = read_study("table", tmp_path)
    assert images["image_id"].tolist() == ["a", "b", "c"]
    assert images["patient_id"].tolist() == ["1", "1", "2"]
    assert images["view"].tolist() == ["PA", "AP", "PA"]
    assert class_names(images) == ["Edema", "Mass"]
    images, _ = read_study("table", tmp_path, labels=["Edema"], patient=None)
    assert class_names(images) == ["Edema"]
    assert images["patient_id"].isna().all()
    (tmp_path / "labels.csv").write_text("file,patient\na.png,1\n")
    with pytest.raises(ValueError, match=r"labels=\[\]: expected one or more columns"):
        read_study("table", tmp_path)


def test_an_unknown_option_is_refused_before_the_films_are_converted(tmp_path):
    for function in (read_study, film_folder):
        with pytest.raises(ValueError, match="table: 1 unknown options: id; expected: csv, labels"):
            function("table", tmp_path, id="path")
        with pytest.raises(ValueError, match="rsna: 1 unknown options: ids; expected: none"):
            function("rsna", tmp_path, ids="path")


def test_a_table_that_is_not_separated_by_commas_is_named(tmp_path):
    (tmp_path / "labels.csv").write_text("image;Edema\na.png;1\n")
    with pytest.raises(ValueError, match=r"labels\.csv: image='image;Edema', .* by commas"):
        read_study("table", tmp_path)


def test_an_unknown_data_set_is_refused(tmp_path):
    for function in (read_study, film_folder):
        with pytest.raises(ValueError, match="dataset='mimic': expected one of rsna, "):
            function("mimic", tmp_path)
