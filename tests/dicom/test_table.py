"""Tests of which files are films and how their table is kept."""

import os

import numpy as np
import pandas as pd
import pydicom
import pytest

from chexnet.dicom import image_ids, read_films
from chexnet.dicom.table import COLUMNS, Source, as_table, find_files, row_of, write_films
from chexnet.files import path_id
from tests.dicom.films import DEFLATED, SECRET, film_bytes

GREY = np.zeros((4, 4), np.uint8)
FILM = film_bytes(GREY)
SOURCE = Source("a/b.dcm", "/films/a/b.dcm", "b", 12, 1795372201959539379)


def files_of(folder, leave_out="nowhere", ids="name"):
    found, refused = find_files(folder.resolve(), folder.resolve() / leave_out, ids)
    return {f.file: f.image_id for f in found}, {row["file"]: row["reason"] for row in refused}


def write_all(folder, *names, data=FILM):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_every_file_below_the_folder_is_found_in_order(tmp_path):
    write_all(
        tmp_path, "b.dcm", "a.dcm", "deep/er/c.DCM", "deep/IM0001", "1.2.840.10008", "jpg/x.jpg"
    )
    found, refused = files_of(tmp_path, leave_out="jpg")
    assert found == {
        "1.2.840.10008": "1.2.840.10008",
        "a.dcm": "a",
        "b.dcm": "b",
        "deep/IM0001": "IM0001",
        "deep/er/c.DCM": "c",
    }
    assert list(found) == sorted(found)
    assert refused == {}


def test_names_that_cannot_be_an_id_give_one_by_their_path(tmp_path):
    unsafe = ["ä.dcm", "a b.dcm", ".hidden.dcm", "x" * 200 + ".dcm", "-x.dcm", "n\nl.dcm"]
    write_all(tmp_path, *unsafe)
    (tmp_path / os.fsdecode(b"\xff.dcm")).write_bytes(FILM)
    found, refused = files_of(tmp_path)
    assert refused == {}
    assert found == {file: path_id(file) for file in [*unsafe, "\\xff.dcm"]}
    assert len(set(found.values())) == 7
    assert found["a b.dcm"].startswith("a_b-") and found["ä.dcm"].startswith("a-")


def test_carriage_return(tmp_path):
    """A carriage return in a path survives being written to the table."""
    write_all(tmp_path, "x\ry/a.dcm", "b\r.dcm")
    found, refused = find_files(tmp_path, tmp_path / "nowhere")
    table = as_table([*(row_of(film, "copied") for film in found), *refused])
    write_films(tmp_path, table)
    pd.testing.assert_frame_equal(read_films(tmp_path), table)
    assert table["file"].tolist() == ["b\\r.dcm", "x\\ry/a.dcm"]


def test_links_and_no_files(tmp_path):
    """Links that lead out and things that are no files are refused."""
    folder, outside = tmp_path / "films", tmp_path / "outside"
    write_all(folder, "real/a.dcm")
    write_all(outside, "secret.dcm")
    (folder / "out.dcm").symlink_to(outside / "secret.dcm")
    (folder / "outfolder").symlink_to(outside)
    (folder / "infolder").symlink_to(folder / "real")
    (folder / "in.dcm").symlink_to(folder / "real" / "a.dcm")
    (folder / "gone.dcm").symlink_to(folder / "none.dcm")
    (folder / "round.dcm").symlink_to(folder / "round.dcm")
    os.mkfifo(folder / "pipe.dcm")
    found, refused = files_of(folder)
    assert found == {"in.dcm": "in", "real/a.dcm": "a"}
    assert (
        refused["out.dcm"]
        == refused["outfolder"]
        == ("a link that leads out of the folder; not followed")
    )
    assert refused["infolder"] == "a link to a folder; not followed"
    assert refused["pipe.dcm"] == "not a regular file"
    assert refused["gone.dcm"].startswith("cannot be read")
    assert refused["round.dcm"].startswith("cannot be read")


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    """It is a row with the reason, without the whole path; the films beside it are found."""
    write_all(tmp_path, "a.dcm", "locked/b.dcm")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found, refused = files_of(tmp_path)
    assert found == {"a.dcm": "a"}
    assert refused == {"locked/": "cannot be read: Permission denied"}


def test_films_of_one_name_get_ids_by_their_path(tmp_path):
    write_all(tmp_path, "one/a.dcm", "two/a.dcm", "three/A.dcm", "b.dcm")
    ids = {"one/a.dcm": "one_a", "two/a.dcm": "two_a", "three/A.dcm": "three_A", "b.dcm": "b"}
    assert files_of(tmp_path) == (ids, {})
    assert image_ids(tmp_path) == ids


def test_paths_that_give_one_id_get_a_hash_each(tmp_path):
    clashing = ["one/a.dcm", "ONE/A.dcm", "one_a.dcm"]
    write_all(tmp_path, *clashing, "one/b.dcm", "ONE/b.png", data=FILM)
    found, _ = files_of(tmp_path)
    assert found == {
        # Their names are the same, then their paths.
        "one/a.dcm": path_id("one/a.dcm", unique=True),
        "ONE/A.dcm": path_id("ONE/A.dcm", unique=True),
        "one_a.dcm": "one_a",
        "one/b.dcm": path_id("one/b.dcm", unique=True),
        "ONE/b.png": path_id("ONE/b.png", unique=True),
    }


def test_umlauts(tmp_path):
    """Films that differ in the coding of an umlaut only are refused."""
    write_all(tmp_path, "\u00fc.dcm", "u\u0308.dcm", "u.dcm")
    found, refused = files_of(tmp_path)
    assert found == {"u.dcm": "u"}
    assert refused == {
        "\u00fc.dcm": "same image_id as u\u0308.dcm; neither is converted",
        "u\u0308.dcm": "same image_id as \u00fc.dcm; neither is converted",
    }


def test_a_name_that_looks_like_an_escaped_one_is_refused(tmp_path):
    write_all(tmp_path, r"\xff.dcm")
    (tmp_path / os.fsdecode(b"\xff.dcm")).write_bytes(FILM)
    found, refused = files_of(tmp_path)
    assert found == {}
    assert refused == {r"\xff.dcm": r"same image_id as \xff.dcm; neither is converted"}


def test_a_report_beside_a_film_does_not_take_its_id(tmp_path):
    write_all(tmp_path, "deep/a.dcm")
    write_all(tmp_path, "deep/a.txt", "b.txt", "deep/b.txt", data=b"No pneumonia.")
    found, refused = files_of(tmp_path)
    assert found.pop("deep/a.dcm") == "a"
    assert sorted(found.values()) == ["b", "deep_a", "deep_b"] and refused == {}


def test_ids_by_path_and_by_uid(tmp_path):
    write_all(tmp_path, "one/a.dcm")
    uid = str(pydicom.dcmread(tmp_path / "one/a.dcm").SOPInstanceUID)
    assert image_ids(tmp_path, "path") == {"one/a.dcm": "one_a"}
    assert image_ids(tmp_path, "uid") == {"one/a.dcm": uid}
    write_all(tmp_path, "two/a.dcm", data=film_bytes(GREY, syntax=DEFLATED, SOPInstanceUID="1.2.9"))
    assert image_ids(tmp_path, "uid") == {"one/a.dcm": uid, "two/a.dcm": "1.2.9"}
    with pytest.raises(ValueError, match=r"ids='stem': expected 'name', 'path' or 'uid'"):
        image_ids(tmp_path, "stem")
    with pytest.raises(NotADirectoryError, match="none: not a folder"):
        image_ids(tmp_path / "none")


def test_films_without_a_uid_of_their_own_are_refused(tmp_path):
    write_all(tmp_path, "one/a.dcm", "two/a.dcm")
    plain = film_bytes(GREY, SOPInstanceUID="1.2.3.45")
    for uid in ("1.2.3.45", "../..//x", f"{SECRET:.8}"):
        name = f"{uid:.3}.dcm".replace("/", "_")
        write_all(tmp_path, name, data=plain.replace(b"1.2.3.45", uid.encode()))
    write_all(tmp_path, "none.dcm", data=film_bytes(GREY, SOPInstanceUID=""))
    write_all(tmp_path, "letter.txt", data=b"Dear colleague")
    found, refused = files_of(tmp_path, ids="uid")
    assert found == {"1.2.dcm": "1.2.3.45"}
    assert refused == {
        ".._.dcm": "no valid SOP Instance UID",
        "Zyx.dcm": "no valid SOP Instance UID",
        "letter.txt": "not a DICOM, PNG or JPG file",
        "none.dcm": "no valid SOP Instance UID",
        "one/a.dcm": "same SOP Instance UID as two/a.dcm; neither is converted",
        "two/a.dcm": "same SOP Instance UID as one/a.dcm; neither is converted",
    }


def test_a_folder_of_converted_jpgs_is_not_searched(tmp_path):
    write_all(tmp_path, "a.dcm")
    write_all(tmp_path, "jpg/a.jpg")
    write_films(tmp_path / "jpg", as_table([row_of(SOURCE, "copied")]))
    said = {"jpg/": "JPGs of convert_folder; not searched"}
    assert files_of(tmp_path) == ({"a.dcm": "a"}, said)
    assert files_of(tmp_path, leave_out="jpg") == ({"a.dcm": "a"}, {})
    assert files_of(tmp_path / "jpg")[0] == {"a.jpg": "a"}


def test_the_table_is_read_as_it_was_written(tmp_path):
    rows = [
        row_of(
            SOURCE, "copied", rows=2048, columns=2500, view="PA", sex="F", jpg_bytes=9, version=1
        ),
        row_of(SOURCE._replace(file="NA", image_id="nan"), "failed", 'a, "reason"'),
        row_of(SOURCE._replace(file='"a\n.dcm', image_id="007"), "encoded", age=7, quality=95),
    ]
    table = as_table(rows)
    write_films(tmp_path, table)
    pd.testing.assert_frame_equal(read_films(tmp_path), table)
    assert list(table["file"]) == ['"a\n.dcm', "NA", "a/b.dcm"]
    assert list(table.columns) == list(COLUMNS)
    assert table["image_id"].tolist() == ["007", "nan", "b"]
    assert table["age"].isna().tolist() == [False, True, True]
    before = (tmp_path / "films.csv").stat().st_mtime_ns
    write_films(tmp_path, table)
    assert (tmp_path / "films.csv").stat().st_mtime_ns == before


def test_a_table_of_someone_else_is_refused(tmp_path):
    (tmp_path / "films.csv").write_text("title,year\nDrive,2011\n")
    with pytest.raises(ValueError, match=r"films\.csv: not a table of convert_folder"):
        read_films(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_films(tmp_path / "none")


@pytest.mark.parametrize("number", ["48.5", "9" * 19, "9" * 40, "x"])
def test_a_number_that_cannot_be_one_makes_it_no_table(tmp_path, number):
    write_films(tmp_path, as_table([row_of(SOURCE, "copied", rows=2048)]))
    table = tmp_path / "films.csv"
    table.write_text(table.read_text().replace("2048", number))
    with pytest.raises(ValueError, match=r"films\.csv: not a table of convert_folder"):
        read_films(tmp_path)


def test_image_ids_says_which_files_it_leaves_out(tmp_path):
    folder, outside = tmp_path / "films", tmp_path / "film.dcm"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(b"")
    outside.write_bytes(b"")
    (folder / "b.dcm").symlink_to(outside)
    with pytest.warns(RuntimeWarning, match=r"1 files are left out, such as b\.dcm \(a link that"):
        assert image_ids(folder) == {"a.dcm": "a"}
