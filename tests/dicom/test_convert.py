"""Tests of a folder of films on its way to a folder of JPGs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from chexnet.dicom import (
    FilmError,
    convert_folder,
    film_to_jpg,
    image_ids,
    read_film,
    read_films,
)
from chexnet.dicom import convert as converting
from chexnet.files import locked
from tests.dicom.damaged import check, for_damaged_films, fuzz
from tests.dicom.films import (
    DEFLATED,
    J2K,
    JPEG,
    SECRET,
    bombs,
    film_bytes,
    jpeg_bytes,
    whole_films,
)

ROOT = Path(__file__).parents[2]
GREY = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64).astype(np.uint8)
DEEP = (GREY.astype(np.uint16) * 200).clip(0, 60000)


@pytest.fixture
def films(tmp_path):
    """A folder of two films that are copied, two that are encoded and two that fail."""
    folder = tmp_path / "films"
    (folder / "deep").mkdir(parents=True)
    (folder / "plain.dcm").write_bytes(film_bytes(GREY, syntax=JPEG))
    (folder / "frames.dcm").write_bytes(film_bytes(GREY, syntax=JPEG, frames=3))
    (folder / "deep" / "wide.dcm").write_bytes(film_bytes(DEEP, syntax=J2K))
    (folder / "raw").write_bytes(film_bytes(GREY, PatientAge="", ViewPosition="???"))
    (folder / "cut.dcm").write_bytes(film_bytes(GREY)[:-500])
    (folder / "letter.txt").write_text("Dear colleague")
    return folder


def convert(source, target, **options):
    return convert_folder(source, target, progress=False, workers=1, **options)


def content(folder):
    """The files of a folder, without the lock's."""
    paths = sorted(path for path in folder.iterdir() if path.name != ".films.lock")
    return {path.name: path.read_bytes() for path in paths}


def test_every_file_has_a_row_and_every_film_a_jpg(films, tmp_path):
    table = convert(films, tmp_path / "jpg").set_index("file")
    assert table["status"].to_dict() == {
        "cut.dcm": "failed",
        "deep/wide.dcm": "encoded",
        "frames.dcm": "copied",
        "letter.txt": "failed",
        "plain.dcm": "copied",
        "raw": "encoded",
    }
    assert table["reason"].to_dict() == {
        "cut.dcm": "truncated: 2572 bytes do not fill 48 x 64 pixels",
        "deep/wide.dcm": "spread from its lowest to its highest value (0 to 51000)",
        "frames.dcm": "first of 3 frames",
        "letter.txt": "not a DICOM, PNG or JPG file",
        "plain.dcm": "",
        "raw": "pixels as stored",
    }
    made = table[table["status"] != "failed"]
    assert set(made["rows"]) == {48} and set(made["columns"]) == {64}
    assert made.loc["plain.dcm", ["view", "sex", "age"]].tolist() == ["PA", "F", 51]
    assert pd.isna(made.loc["raw", "view"]) and pd.isna(made.loc["raw", "age"])
    assert table.loc["cut.dcm", ["rows", "view", "quality"]].isna().all()
    assert sorted(content(tmp_path / "jpg")) == sorted(
        ["films.csv", "plain.jpg", "frames.jpg", "wide.jpg", "raw.jpg"]
    )
    for image_id, file in zip(made["image_id"], made.index, strict=True):
        opened = cv2.imread(str(tmp_path / "jpg" / f"{image_id}.jpg"), cv2.IMREAD_UNCHANGED)
        expected = read_film(films / file).pixels
        if made.loc[file, "status"] == "copied":
            assert np.array_equal(opened, expected)
        else:
            assert np.abs(opened.astype(int) - expected).mean() < 3


def test_the_table_that_is_returned_is_the_one_on_disk(films, tmp_path):
    table = convert(films, tmp_path / "jpg")
    assert table["new"].sum() == 4
    pd.testing.assert_frame_equal(table.drop(columns="new"), read_films(tmp_path / "jpg"))
    first = ["image_id", "file", "status", "reason", "rows", "columns", "view", "sex", "age"]
    assert list(table.columns[:9]) == first


def test_one_film_as_the_folder(films, tmp_path):
    """One film gives the JPG and the facts that the folder gives."""
    table = convert(films, tmp_path / "jpg")
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        if row["status"] == "failed":
            with pytest.raises(
                FilmError, match=re.escape(f"{films / row['file']}: {row['reason']}")
            ):
                film_to_jpg(films / row["file"])
            continue
        jpg, facts = film_to_jpg(films / row["file"])
        assert jpg == (tmp_path / "jpg" / f"{row['image_id']}.jpg").read_bytes()
        assert facts == {name: row[name] for name in facts}
        assert set(row) - set(facts) == {
            *("image_id", "file", "new"),
            *("jpg_bytes", "source_bytes", "source_time_ns", "version"),
        }
    with pytest.raises(FileNotFoundError, match="none"):
        film_to_jpg(films / "none")


def test_genuine_films_are_copied_with_their_facts(rsna_dir, tmp_path):
    source = tmp_path / "films"
    source.mkdir()
    for film in sorted((rsna_dir / "stage_2_train_images").iterdir())[:20]:
        shutil.copy(film, source)
    table = convert(source, tmp_path / "jpg")
    assert set(table["status"]) == {"copied"}
    for row in table.itertuples():
        ds = pydicom.dcmread(source / row.file)
        opened = cv2.imread(str(tmp_path / "jpg" / f"{row.image_id}.jpg"), cv2.IMREAD_UNCHANGED)
        assert row.image_id == ds.PatientID
        assert (row.view, row.sex, str(row.age)) == (ds.ViewPosition, ds.PatientSex, ds.PatientAge)
        assert np.array_equal(opened, ds.pixel_array)


def test_pydicoms_own_files_each_give_a_row(tmp_path):
    source = Path(get_testdata_file("CT_small.dcm", download=False)).parent
    table = convert(source, tmp_path / "jpg")
    assert len(table) == sum(path.is_file() for path in source.rglob("*"))
    assert table["status"].isin(["encoded", "failed"]).all()
    assert (table["reason"] != "").all()
    made = table[table["status"] == "encoded"]
    assert len(made) >= 30
    for row in made.itertuples():
        with Image.open(tmp_path / "jpg" / f"{row.image_id}.jpg") as image:
            assert (image.height, image.width, image.mode) == (row.rows, row.columns, "L")


def test_a_bar_shows_films_a_second_and_the_time_left(films, tmp_path, capfd):
    convert_folder(films, tmp_path / "jpg", workers=1)
    assert re.search(r" 6/6 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+film/s\]", capfd.readouterr().err)
    convert(films, tmp_path / "other")
    assert capfd.readouterr().err == ""


def test_a_second_run_touches_no_film_and_changes_nothing(films, tmp_path, monkeypatch):
    first = convert(films, tmp_path / "jpg")
    before = content(tmp_path / "jpg")
    seen = []
    monkeypatch.setattr(converting, "read_bytes", lambda path: seen.append(path) or b"no film")
    again = convert(films, tmp_path / "jpg")
    # Failed films are tried again: a decoder may have been installed meanwhile.
    assert sorted(Path(path).name for path in seen) == ["cut.dcm", "letter.txt"]
    assert not again["new"].any()
    assert content(tmp_path / "jpg").keys() == before.keys()
    assert again["status"].tolist() == first["status"].tolist()


def test_what_has_changed_is_made_again_and_nothing_else(films, tmp_path):
    target = tmp_path / "jpg"
    convert(films, target)
    (target / "frames.jpg").unlink()
    (target / "wide.jpg").write_bytes(b"half")
    (films / "plain.dcm").write_bytes(film_bytes(255 - GREY, syntax=JPEG))
    table = convert(films, target).set_index("image_id")
    assert table.index[table["new"]].tolist() == ["wide", "frames", "plain"]
    assert (target / "plain.jpg").read_bytes() == jpeg_bytes(255 - GREY)
    assert content(target) == content_of_clean_run(films, tmp_path)


def content_of_clean_run(films, tmp_path):
    convert(films, tmp_path / "clean")
    return content(tmp_path / "clean")


def test_another_quality_concerns_encoded_films_only(films, tmp_path):
    convert(films, tmp_path / "jpg")
    before = content(tmp_path / "jpg")
    table = convert(films, tmp_path / "jpg", quality=50).set_index("image_id")
    assert sorted(table.index[table["new"]]) == ["raw", "wide"]
    assert len(before["wide.jpg"]) > table.loc["wide", "jpg_bytes"]


@pytest.mark.parametrize("quality", [0, 101, 90.0, np.float64(90), "90", None, True])
def test_an_invalid_quality_is_refused_at_once(films, tmp_path, quality):
    says = re.escape(f"quality={quality!r}: expected an integer from 1 to 100")
    with pytest.raises(ValueError, match=says):
        convert(films, tmp_path / "jpg", quality=quality)
    assert not (tmp_path / "jpg").exists()


def test_a_quality_of_numpys_is_as_good_as_pythons(films, tmp_path):
    first = convert(films, tmp_path / "jpg", quality=np.int64(90))
    again = convert(films, tmp_path / "jpg", quality=90)
    assert first["new"].sum() == 4 and not again["new"].any()


@pytest.mark.parametrize("answer", [cv2.error("(-4:Insufficient memory)"), (False, None)])
def test_a_film_that_opencv_cannot_encode_is_a_failed_row(films, tmp_path, monkeypatch, answer):
    def imencode(*_):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(cv2, "imencode", imencode)
    table = convert(films, tmp_path / "jpg").set_index("image_id")
    assert table.loc["raw", "status"] == table.loc["wide", "status"] == "failed"
    assert table.loc["raw", "reason"] == (
        "OpenCV makes no JPG of its (48, 64) pixels (65,500 a side at most)"
    )
    assert table.loc["plain", "status"] == "copied"


def test_a_film_that_no_longer_gives_a_picture_loses_its_old_one(films, tmp_path):
    convert(films, tmp_path / "jpg")
    (tmp_path / "jpg" / "mine.jpg").write_bytes(b"not the converter's")
    (films / "plain.dcm").write_bytes(b"overwritten")
    table = convert(films, tmp_path / "jpg").set_index("file")
    assert table.loc["plain.dcm", "status"] == "failed"
    assert sorted(content(tmp_path / "jpg")) == [
        *("films.csv", "frames.jpg", "mine.jpg", "raw.jpg", "wide.jpg")
    ]


def only(folder, file, data):
    """A folder with one film."""
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_bytes(data)
    return folder


def test_another_film_of_the_same_name(tmp_path):
    """A new film of the same name gives both another id and leaves no old JPG."""
    source, target = only(tmp_path / "films", "one/a.dcm", film_bytes(GREY)), tmp_path / "jpg"
    assert convert(source, target)["image_id"].tolist() == ["a"]
    only(source, "two/a.dcm", film_bytes(255 - GREY))
    again = convert(source, target)
    assert again["image_id"].tolist() == ["one_a", "two_a"] and again["new"].all()
    assert sorted(content(target)) == ["films.csv", "one_a.jpg", "two_a.jpg"]
    assert not convert(source, target)["new"].any()
    shutil.rmtree(source / "two")
    assert convert(source, target)["image_id"].tolist() == ["a"]
    assert sorted(content(target)) == ["a.jpg", "films.csv", "two_a.jpg"]


def test_id_that_goes_to_another_film(tmp_path, monkeypatch):
    """An id that goes to another film never shows the earlier one."""
    source, target = only(tmp_path / "films", "one/a.dcm", film_bytes(GREY)), tmp_path / "jpg"
    convert(source, target)
    (source / "a.dcm").write_bytes(film_bytes(GREY)[:-500])
    table = convert(source, target).set_index("file")
    assert table.loc["a.dcm", ["image_id", "status"]].tolist() == ["a", "failed"]
    assert sorted(content(target)) == ["films.csv", "one_a.jpg"]
    # The same if the run is killed before it converts anything.
    shutil.rmtree(target)
    (source / "a.dcm").unlink()
    convert(source, target)
    (source / "a.dcm").write_bytes(film_bytes(255 - GREY))
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(converting, "map_films", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        convert(source, target)
    assert sorted(content(target)) == ["films.csv"]
    convert(source, target)
    assert sorted(content(target)) == ["a.jpg", "films.csv", "one_a.jpg"]


def test_another_rule_for_ids_replaces_the_jpgs(films, tmp_path):
    target = tmp_path / "jpg"
    convert(films, target)
    table = convert(films, target, ids="path").set_index("file")
    assert table.index[table["new"]].tolist() == ["deep/wide.dcm"]
    assert sorted(content(target)) == [
        *("deep_wide.jpg", "films.csv", "frames.jpg", "plain.jpg", "raw.jpg")
    ]
    for number, file in enumerate(["plain.dcm", "raw", "frames.dcm", "deep/wide.dcm"]):
        film = pydicom.dcmread(films / file)
        film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number}"
        film.save_as(films / file)
    table = convert(films, target, ids="uid").set_index("file")
    assert table.loc["raw", "image_id"] == "1.2.1" and table.loc["raw", "status"] == "encoded"
    assert table.loc["letter.txt", "reason"].startswith("not a DICOM, PNG")
    assert len(list(target.glob("*.jpg"))) == 4 and not (target / "raw.jpg").exists()
    assert not convert(films, target, ids="uid")["new"].any()
    convert(films, target)
    assert sorted(content(target)) == [
        "films.csv",
        "frames.jpg",
        "plain.jpg",
        "raw.jpg",
        "wide.jpg",
    ]
    with pytest.raises(ValueError, match="ids='stem': expected 'name', 'path' or 'uid'"):
        convert(films, target, ids="stem")


def test_a_hospitals_disc_is_converted_whole(tmp_path):
    """A DICOMDIR, files without suffix, one name in each folder, spaces, umlauts, a viewer."""
    disc, target = tmp_path / "disc", tmp_path / "jpg"
    names = ["PAT1/IM000001", "PAT1/IM000002", "PAT2/IM000001", "Müller, Änne/Thorax p.a..dcm"]
    for number, name in enumerate(names):
        (disc / name).parent.mkdir(parents=True, exist_ok=True)
        (disc / name).write_bytes(film_bytes(DEEP, InstanceNumber=number))
    listing = get_testdata_file("DICOMDIR", download=False)
    shutil.copy(listing, disc / "DICOMDIR")
    (disc / "AUTORUN.INF").write_text("[autorun]")
    table = convert(disc, target).set_index("file")
    assert table.loc[names, "status"].eq("encoded").all()
    assert table.loc[names[:3], "image_id"].tolist() == [
        "PAT1_IM000001",
        "IM000002",
        "PAT2_IM000001",
    ]
    assert re.fullmatch("Muller_Anne_Thorax_p.a.-[0-9a-f]{8}", table.loc[names[3], "image_id"])
    assert sorted(target.glob("*.jpg")) == sorted(
        target / f"{image_id}.jpg" for image_id in table.loc[names, "image_id"]
    )
    assert table.loc["DICOMDIR", "reason"] == "a DICOMDIR, the table of contents of a disc; no film"
    assert table.loc["AUTORUN.INF", "status"] == "failed"
    assert table.index.map(image_ids(disc)).tolist() == table["image_id"].tolist()


def test_file_beside_a_film(films, tmp_path):
    """What lies beside a film or took its place does not keep its old JPG."""
    target = tmp_path / "jpg"
    convert(films, target)
    (films / "plain.dcm").write_bytes(b"overwritten")
    (films / "plain.txt").write_text("Dear colleague")
    (films / "frames.dcm").unlink()
    (films / "frames.dcm").symlink_to(tmp_path / "elsewhere.dcm")
    (films / "raw").unlink()
    (tmp_path / "raw").write_bytes(film_bytes(GREY))
    (films / "raw").symlink_to(tmp_path / "raw")
    table = convert(films, target).set_index("file")
    assert table.index[table["status"] != "failed"].tolist() == ["deep/wide.dcm"]
    assert sorted(content(target)) == ["films.csv", "wide.jpg"]


def test_a_jpg_stays_where_another_file_now_gives_it(films, tmp_path):
    convert(films, tmp_path / "jpg")
    (films / "plain.dcm").write_bytes(b"overwritten")
    (films / "plain").write_bytes(film_bytes(GREY))
    table = convert(films, tmp_path / "jpg").set_index("file")
    assert table.loc[["plain.dcm", "plain"], "status"].tolist() == ["failed", "encoded"]
    assert (tmp_path / "jpg" / "plain.jpg").exists()


@pytest.mark.parametrize("moment", ["_remove_outdated", "as_table"])
def test_outdated_jpg(films, tmp_path, monkeypatch, moment):
    """An outdated JPG is removed even if the run that found it was killed."""

    def kill(*_):
        raise KeyboardInterrupt

    convert(films, tmp_path / "jpg")
    (films / "plain.dcm").write_bytes(b"overwritten")
    monkeypatch.setattr(converting, "_SAVE_EVERY", 0.0)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(converting, moment, kill)
        convert(films, tmp_path / "jpg")
    convert(films, tmp_path / "jpg")
    assert not (tmp_path / "jpg" / "plain.jpg").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, AttributeError])
def test_a_run_that_stops_has_saved_what_it_made(films, tmp_path, monkeypatch, error):
    def stop(path):
        if Path(path).name == "raw":
            raise error
        return read_bytes(path)

    read_bytes = converting.read_bytes
    with monkeypatch.context() as stopping:
        stopping.setattr(converting, "read_bytes", stop)
        if error is not OSError:  # which is the film's own
            with pytest.raises(error):
                convert(films, tmp_path / "jpg")
        else:
            convert(films, tmp_path / "jpg")
    made = read_films(tmp_path / "jpg").query("status != 'failed'")
    assert set(made["image_id"]) == {"wide", "frames", "plain"}
    again = convert(films, tmp_path / "jpg")
    assert again.loc[again["new"], "image_id"].tolist() == ["raw"]


def test_a_table_is_saved_during_a_run(films, tmp_path, monkeypatch):
    seen = []

    def look(path):
        if (tmp_path / "jpg" / "films.csv").exists():
            seen.append(len(read_films(tmp_path / "jpg")))
        return read_bytes(path)

    read_bytes = converting.read_bytes
    monkeypatch.setattr(converting, "read_bytes", look)
    convert(films, tmp_path / "one")
    assert not seen
    monkeypatch.setattr(converting, "_SAVE_EVERY", 0.0)
    convert(films, tmp_path / "jpg")
    assert seen == sorted(seen) and seen[-1] == 3


def test_a_folder_in_the_place_of_a_jpg_fails_its_film_alone(films, tmp_path):
    convert(films, tmp_path / "jpg")
    (tmp_path / "jpg" / "plain.jpg").unlink()
    (tmp_path / "jpg" / "plain.jpg").mkdir()
    table = convert(films, tmp_path / "jpg").set_index("image_id")
    assert table.loc["plain", "status"] == "failed"
    assert (table["status"] != "failed").sum() == 3


def test_a_film_that_is_gone_keeps_its_jpg_and_loses_its_row(films, tmp_path):
    convert(films, tmp_path / "jpg")
    (films / "plain.dcm").unlink()
    assert "plain" not in set(convert(films, tmp_path / "jpg")["image_id"])
    assert (tmp_path / "jpg" / "plain.jpg").read_bytes() == jpeg_bytes(GREY)


def test_a_carriage_return_in_a_path_stops_no_later_run(films, tmp_path):
    (films / "deep").rename(films / "de\rep")
    first = convert(films, tmp_path / "jpg")
    again = convert(films, tmp_path / "jpg")
    assert first["new"].sum() == 4 and not again["new"].any()


@pytest.mark.parametrize(("left", "zeros"), [(0, 0), (20, 0), (0, 1000), (20, 1000), (360, 1000)])
def test_a_table_that_a_power_cut_damaged_is_made_anew(films, tmp_path, left, zeros):
    target = tmp_path / "jpg"
    convert(films, target)
    whole = content(target)
    (target / "films.csv").write_bytes(whole["films.csv"][:left] + b"\0" * zeros)
    with pytest.warns(RuntimeWarning, match=r"jpg/films\.csv: damaged"):
        convert(films, target)
    assert content(target) == whole


def test_a_table_cut_anywhere_is_made_anew(films, tmp_path):
    target = tmp_path / "jpg"
    convert(films, target)
    whole = content(target)
    for cut in range(160, len(whole["films.csv"]), 41):
        (target / "films.csv").write_bytes(whole["films.csv"][:cut])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            convert(films, target)
        assert content(target) == whole


def test_a_table_of_someone_else_is_neither_read_nor_overwritten(films, tmp_path):
    (tmp_path / "jpg").mkdir()
    (tmp_path / "jpg" / "films.csv").write_text("title,year\nDrive,2011\n")
    with pytest.raises(ValueError, match=r"films\.csv: not a table of convert_folder"):
        convert(films, tmp_path / "jpg")
    assert (tmp_path / "jpg" / "films.csv").read_text() == "title,year\nDrive,2011\n"


def test_a_table_does_not_decide_what_is_removed_or_written(films, tmp_path):
    target = tmp_path / "jpg"
    convert(films, target)
    (tmp_path / "precious.jpg").write_bytes(b"precious")
    forged = (target / "films.csv").read_text().replace("plain,plain.dcm", "../precious,plain.dcm")
    (target / "films.csv").write_text(forged)
    (films / "plain.dcm").write_bytes(b"overwritten")
    convert(films, target)
    assert (tmp_path / "precious.jpg").read_bytes() == b"precious"


def test_a_folder_inside_the_films_is_not_searched_for_films(films):
    first = convert(films, films / "jpg")
    again = convert(films, films / "jpg")
    assert first["file"].tolist() == again["file"].tolist()
    with pytest.raises(
        ValueError, match="expected a folder for the JPGs other than that of the films"
    ):
        convert(films, films)


def test_jpgs_of_a_conversion_are_films(films, tmp_path):
    """Its table and its lock are no damaged films."""
    made = convert(films, tmp_path / "jpg").query("status != 'failed'")["image_id"]
    again = convert(tmp_path / "jpg", tmp_path / "again")
    assert again["image_id"].tolist() == sorted(made)
    assert set(again["status"]) == {"copied"}


def test_a_folder_without_files_is_an_error(tmp_path):
    (tmp_path / "films").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no files"):
        convert(tmp_path / "films", tmp_path / "jpg")
    with pytest.raises(NotADirectoryError, match="not a folder"):
        convert(tmp_path / "none", tmp_path / "jpg")


def test_a_file_that_may_not_be_read_or_written_is_reported(films, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(converting, "read_bytes", refuse)
    table = convert(films, tmp_path / "jpg")
    assert set(table["reason"]) == {"cannot be read or written: Permission denied"}
    monkeypatch.undo()
    (tmp_path / "jpg" / "plain.jpg").mkdir()
    table = convert(films, tmp_path / "jpg").set_index("image_id")
    assert table.loc["plain", "reason"] == "cannot be read or written: Is a directory"
    assert table.loc["frames", "status"] == "copied"


def test_nothing_private_reaches_a_jpg_the_table_or_a_message(tmp_path, caplog, capfd):
    source, target = tmp_path / "films", tmp_path / "jpg"
    source.mkdir()
    secrets = [SECRET.encode(), b"19330221", b"20170316", SECRET.encode("utf-16-le")]
    for number, film in enumerate(whole_films()):
        (source / f"film-{number}.dcm").write_bytes(film)
        # The same film, broken so that a reason has to be given.
        (source / f"cut-{number}.dcm").write_bytes(film[: len(film) // 2])
        (source / f"odd-{number}.dcm").write_bytes(film.replace(b"PN", b"IS").replace(b"US", b"DS"))
    assert sum(SECRET.encode() in path.read_bytes() for path in source.iterdir()) > 30
    table = convert_folder(source, target, workers=1)
    written = b"".join(content(target).values()) + table.to_json().encode()
    said = "".join(capfd.readouterr()) + caplog.text
    for secret in secrets:
        assert secret not in written
        assert secret not in said.encode()


def test_damaged_films_give_a_row_each(tmp_path):
    found = fuzz(400, seed=1, folder=tmp_path)
    assert sum(found["statuses"].values()) == 400
    assert all(found["statuses"][status] > 20 for status in ("copied", "encoded", "failed"))


def test_a_folder_of_damaged_films_is_worked_through(tmp_path):
    source, damaged = tmp_path / "films", list(bombs().values())
    source.mkdir()
    for_damaged_films(100, 2, damaged.append)
    assert len(set(damaged)) > 90
    for number, film in enumerate(damaged):
        (source / f"{number}.dcm").write_bytes(film)
    table = convert(source, tmp_path / "jpg")
    assert len(table) == len(damaged)
    for row in json.loads(table.to_json(orient="records")):
        check(damaged[int(row["image_id"])], row, tmp_path / "jpg")


def noted_tasks(executor, monkeypatch):
    """The futures of all that this executor is given from now on."""
    tasks, submit = [], executor.submit
    monkeypatch.setattr(
        executor, "submit", lambda *given: tasks.append(submit(*given)) or tasks[-1]
    )
    return tasks


def test_threads_and_processes_give_what_one_process_gives(films, tmp_path, monkeypatch):
    expected = content_of_clean_run(films, tmp_path)
    with ThreadPoolExecutor(4) as threads:
        tasks = noted_tasks(threads, monkeypatch)
        convert_folder(films, tmp_path / "threads", executor=threads, progress=False)
    assert content(tmp_path / "threads") == expected
    assert len(tasks) == 6
    monkeypatch.setattr(converting, "_PATIENCE", -1.0)
    begun, start = [], converting._process
    monkeypatch.setattr(converting, "_process", lambda: begun.append(1) or start())
    convert_folder(films, tmp_path / "processes", workers=2, progress=False)
    assert content(tmp_path / "processes") == expected
    assert begun == [1, 1]


def test_dask_cluster(films, tmp_path, monkeypatch):
    """A Dask cluster of two workers gives what one process gives."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    expected = content_of_clean_run(films, tmp_path)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert len(client.scheduler_info()["workers"]) == 2
        executor = client.get_executor()
        tasks = noted_tasks(executor, monkeypatch)
        table = convert_folder(films, tmp_path / "dask", executor=executor, progress=False)
    assert content(tmp_path / "dask") == expected
    assert sum(len(task.result()) for task in tasks) == 6  # the cluster has done it all
    assert table["new"].sum() == 4


def test_a_second_run_into_the_same_folder_at_once_is_refused(films, tmp_path):
    (tmp_path / "jpg").mkdir()
    with (
        locked(tmp_path / "jpg" / ".films.lock", "ours"),
        pytest.raises(BlockingIOError, match="another process is converting into this folder"),
    ):
        convert(films, tmp_path / "jpg")
    assert len(convert(films, tmp_path / "jpg")) == 6


KILLING = """
import os, random, signal, sys, time
from pathlib import Path
from chexnet.dicom import convert as converting
from chexnet.dicom import convert_folder

source, target, clean, kills, processes = *map(Path, sys.argv[1:4]), *map(int, sys.argv[4:6])
if __name__ == "__main__":
    wanted = {path.name: path.read_bytes() for path in clean.iterdir()}
    converting._SAVE_EVERY = 0.01  # so that some are killed while they write the table
    if processes > 1:
        converting._PATIENCE = -1.0
    chance, unfinished = random.Random(0), 0
    written = lambda: len(list(target.glob("*.jpg")))
    for kill in range(kills):
        child = os.fork()
        if child == 0:
            convert_folder(source, target, workers=processes, progress=False)
            os._exit(0)
        # Killed when it has written some more films, and a moment of chance later.
        enough, ended = written() + chance.randrange(1 + 80 // kills), 0
        while not ended and written() < enough:
            ended, state = os.waitpid(child, os.WNOHANG)
        if not ended:
            time.sleep(chance.uniform(0.0, 0.01))
            os.kill(child, signal.SIGKILL)
            _, state = os.waitpid(child, 0)
        unfinished += os.WIFSIGNALED(state)
        for path in target.glob("*.jpg") if target.exists() else ():
            assert path.read_bytes() == wanted[path.name], path
        if not os.WIFSIGNALED(state):  # it was too quick: begin anew
            for path in target.iterdir():
                path.unlink()
    print(unfinished)
"""


@pytest.mark.parametrize(("kills", "processes"), [(30, 1), (3, 2)])
def test_a_run_killed_at_any_moment_ends_as_one_clean_run(tmp_path, kills, processes):
    source, target, clean = (tmp_path / name for name in ("films", "jpg", "clean"))
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000), np.uint8)
    # Large files, so that many a kill comes while one is being written.
    copied, encoded = film_bytes(noise, syntax=JPEG), film_bytes(noise, syntax=DEFLATED)
    for number in range(80):
        (source / f"{number}.dcm").write_bytes(copied if number % 8 else encoded)
    expected = convert(source, clean)
    assert set(expected["status"]) == {"copied", "encoded"}
    (tmp_path / "killing.py").write_text(KILLING)
    killed = subprocess.run(
        [
            sys.executable,
            tmp_path / "killing.py",
            source,
            target,
            clean,
            str(kills),
            str(processes),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == 0, killed.stderr
    assert int(killed.stdout) >= (20 if kills == 30 else 1)
    time.sleep(0.1)  # a worker may live a moment longer than its parent
    table = convert(source, target)
    pd.testing.assert_frame_equal(table.drop(columns="new"), expected.drop(columns="new"))
    assert content(target) == content(clean)


def test_target_emptied_midway(films, tmp_path, monkeypatch):
    """A JPG that somebody removes during the run is a failed row, and is made by the next run."""
    target, really = tmp_path / "jpg", converting._jpg_of

    def emptied(data, quality):
        for path in target.glob("*.jpg"):
            path.unlink()
        return really(data, quality)

    monkeypatch.setattr(converting, "_jpg_of", emptied)
    table = convert(films, target)
    made = table.loc[table["status"] != "failed", "image_id"]
    assert sorted(made + ".jpg") == [path.name for path in target.glob("*.jpg")]
    assert len(made) == 1
    assert (table["reason"] == "its JPG was removed while other films were converted").sum() == 3
    assert read_films(target).equals(table.drop(columns="new"))
    monkeypatch.undo()
    assert convert(films, target)["status"].isin(["copied", "encoded"]).sum() == 4
