"""Tests of the files that every room reads and writes."""

import errno
import gzip
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from chexnet import files
from chexnet.files import (
    check_image_id,
    enter_project,
    full_id,
    locked,
    path_id,
    read_image,
    read_json,
    read_table,
    refuse,
    remove_unfinished,
    short_ids,
    summarize,
    write_atomic,
)

ROOT = Path(__file__).parents[1]
HOLDING = """
import sys
from pathlib import Path
from chexnet.files import locked
with locked(Path(sys.argv[1]), "taken"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    "image_id",
    ["0004cfab-14fd-4e49-80ba-63a80b6bddd6", "00000001_000.png", "_", "a..b", "7", "x" * 128],
)
def test_a_plain_name_is_an_image_id(image_id):
    assert check_image_id(image_id, "here") == image_id


@pytest.mark.parametrize(
    "image_id",
    [
        *(
            "",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "a/b",
            "a\\b",
            "a\0b",
            "a b",
            "ä",
            "-rf",
            ".hidden",
        ),
        *("x" * 129, "x" * 300, "x\n", "C:x", "٣", None, 3, float("nan"), ["a"]),
    ],
)
def test_a_name_that_could_lead_elsewhere_is_no_image_id(image_id):
    with pytest.raises(ValueError, match=r"^a\.csv: invalid image_id .*; expected 1 to 128 of"):
        check_image_id(image_id, "a.csv")


def test_a_file_is_complete_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    write_atomic(path, b"first")

    def disk_full(self, target):
        raise OSError("full")

    monkeypatch.setattr(Path, "replace", disk_full)
    with pytest.raises(OSError, match="full"):
        write_atomic(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_synchronized_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda _: done.append("on disk"))
    monkeypatch.setattr(Path, "replace", lambda *_: done.append("named"))
    write_atomic(tmp_path / "a", b"", sync=True)
    assert done == ["on disk", "named"]


def test_unfinished_files(tmp_path, monkeypatch):
    """What a killed process left unfinished is removed and nothing else."""
    (tmp_path / "mine.part").touch()
    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        killed.setattr(Path, "unlink", lambda *_: (_ for _ in ()).throw(OSError))
        with pytest.raises(KeyboardInterrupt):
            write_atomic(tmp_path / "a.jpg", b"")
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.part"]


def test_the_id_of_a_path_is_the_path_where_that_is_safe():
    assert path_id("a.dcm") == path_id("a") == "a"
    assert path_id("p10/s50.1/x.jpg") == "p10_s50.1_x"
    assert path_id("PAT1/1.2.840.10008") == "PAT1_1.2.840.10008"


@pytest.mark.parametrize(
    ("path", "begins"),
    [
        ("Müller/Øre.dcm", "Muller__re-"),
        ("PAT 1/IM0001", "PAT_1_IM0001-"),
        (".hidden", "_hidden-"),
        ("-x", "_x-"),
        ("日本.dcm", "_-"),
        ("", "_-"),
        ("..", "_-"),
        ("a\nb", "a_b-"),
        ("\udcff.dcm", "_-"),
        ("x" * 500, "x" * 119 + "-"),
    ],
)
def test_the_id_of_another_path_ends_with_its_hash(path, begins):
    image_id = path_id(path)
    assert image_id.startswith(begins)
    assert len(image_id) == len(begins) + 8
    assert check_image_id(image_id, "path_id") == image_id


def test_paths_that_lose_the_same_characters_keep_different_ids():
    assert len({path_id(path) for path in ("a b", "a  b", "a?b", "ä b", "a_b")}) == 5
    composed, decomposed = "M\u00fcller", "Mu\u0308ller"
    assert path_id(composed) == path_id(decomposed) != path_id("Muller")
    assert path_id("a.dcm", unique=True) != path_id("a.png", unique=True)


def jpeg(pixels, suffix=".jpg"):
    return cv2.imencode(suffix, pixels)[1].tobytes()


def test_an_image_is_read_as_grey_in_stored_orientation(tmp_path):
    pixels = np.tile(np.arange(0, 240, 5, np.uint8), (32, 1))
    stream = jpeg(np.dstack([pixels] * 3))
    # EXIF that asks for a rotation by 90 degrees: tag 0x0112 is 6.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    rotated = stream[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + stream[2:]
    (tmp_path / "a.jpg").write_bytes(rotated)
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == (48, 32, 3)  # the rotation is there
    film = read_image(tmp_path / "a.jpg")
    assert (film.dtype, film.shape) == (np.uint8, (32, 48))
    assert np.abs(film.astype(int) - pixels).max() <= 3


FILM = np.zeros((32, 32), np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
NO_IMAGES = {
    "empty file$": b"",
    "not a JPEG file$": b"Dear colleague",
    r"not a JPEG file \(looks like PNG\)$": jpeg(FILM, ".png"),
    "truncated or damaged JPEG file: .*Premature end": jpeg(FILM)[:-20],
    "truncated or damaged JPEG file: .*premature end": jpeg(NOISE)[:-800] + b"\xff\xd9",
    "truncated or damaged JPEG file: ": b"\xff\xd8 no image \xff\xd9",
}


def test_bytes_behind_the_end_of_an_image_do_not_matter(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(NOISE))
    (tmp_path / "b.jpg").write_bytes(jpeg(NOISE) + bytes(5000))
    assert np.array_equal(read_image(tmp_path / "a.jpg"), read_image(tmp_path / "b.jpg"))


@pytest.mark.parametrize("kind", ["zeros", "ones", "noise", "missing", "again"])
def test_an_image_whose_second_half_is_not_its_own_is_refused(tmp_path, kind):
    stream = jpeg(NOISE)
    half, rest = stream[: len(stream) // 2], len(stream) // 2 - 2
    noise = np.random.default_rng(1).integers(0, 255, rest, np.uint8).tobytes()
    other = {"zeros": bytes(rest), "ones": b"\xff\0" * (rest // 2), "noise": noise, "missing": b""}
    other["again"] = half[-rest // 2 :]
    (tmp_path / "a.jpg").write_bytes(half + other[kind] + stream[-2:])
    with pytest.raises(ValueError, match=r"a\.jpg: truncated or damaged JPEG file"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("message", NO_IMAGES)
def test_image_that_cannot_be_read(tmp_path, message):
    """An image that cannot be read is an error that names the file."""
    path = tmp_path / "a.jpg"
    path.write_bytes(NO_IMAGES[message])
    with pytest.raises(ValueError, match=rf"a\.jpg: {message}"):
        read_image(path)
    with pytest.raises(FileNotFoundError, match=r"b\.jpg"):
        read_image(tmp_path / "b.jpg")


def test_ids_of_a_table_stay_text(tmp_path):
    (tmp_path / "a.csv").write_text("image_id,patient_id,view,age\n007,1e5,NA,50\nnan,,,\n")
    table = read_table(tmp_path / "a.csv")
    assert table["image_id"].tolist() == ["007", "nan"]
    assert table["patient_id"].tolist()[0] == "1e5" and pd.isna(table["patient_id"][1])
    assert table["view"].tolist()[0] == "NA" and pd.isna(table["view"][1])
    assert table["age"].tolist()[0] == 50 and pd.isna(table["age"][1])


def test_many_names_are_counted_and_a_few_are_listed():
    assert summarize(range(5)) == "0, 1, 2, 3, 4"
    assert summarize(range(12)) == "0, 1, 2, 3, 4 and 7 more"
    with pytest.raises(ValueError, match=r"^here: 2 odd names: a, b; expected: even ones$"):
        refuse("here", ["a", "b", "a"], "odd names", "even ones")


def test_a_lock_keeps_out_other_threads_and_other_calls(tmp_path):
    path, errors = tmp_path / "lock", []

    def take():
        try:
            with locked(path, "taken"):
                errors.append(None)
        except BlockingIOError as error:
            errors.append(str(error))

    with locked(path, "first"):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        take()
    take()
    assert errors == ["taken", "taken", None]


def test_a_lock_ends_with_its_process_even_if_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path / "lock"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError, match="in use"), locked(tmp_path / "lock", "in use"):
            pass
        other.kill()
    with locked(tmp_path / "lock", "in use"):
        pass


def test_an_error_inside_the_block_surfaces_and_ends_the_lock(tmp_path):
    with pytest.raises(TimeoutError, match="mine"), locked(tmp_path / "lock", "taken"):
        raise TimeoutError("mine")
    with locked(tmp_path / "lock", "taken"):
        pass


def test_a_lock_that_cannot_be_had_for_another_reason_says_so(tmp_path, monkeypatch):
    (tmp_path / "lock").mkdir()
    with pytest.raises(IsADirectoryError), locked(tmp_path / "lock", "taken"):
        pass
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="No locks available"), locked(tmp_path / "other", "taken"):
        pass


def test_a_notebook_finds_the_project_from_anywhere_below_it(tmp_path, monkeypatch):
    lies = tmp_path / "output" / "demo" / "notebooks"
    lies.mkdir(parents=True)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(lies)
    assert enter_project() == tmp_path == Path.cwd()


def test_outside_a_project_the_missing_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="data/ and output/"):
        enter_project()


@pytest.mark.parametrize("name", ["CON", "nul", "COM1.x", "LPT9", "Aux.tar.gz"])
def test_devices_of_windows(name):
    """The name of a device is no image id; a file with it gets another one."""
    with pytest.raises(ValueError, match=f"a.csv: invalid image_id '{name}'.*CON, NUL"):
        check_image_id(name, "a.csv")
    given = path_id(f"{name}.dcm")
    assert check_image_id(given, "path_id") == given
    assert not re.fullmatch(r"(?i)(con|nul|com1|lpt9|aux)(\..*)?", given)
    for fine in ("CONE", "NULL", "xCON", "COM10", "LPT"):
        assert check_image_id(fine, "a.csv") == fine


def test_full_disk_is_named(tmp_path):
    """An error of the disk has the name of the file that was not written."""
    path = tmp_path / "scores.csv"
    path.write_bytes(b"before")

    class FullDisk(type(Path())):
        def open(self, mode):
            file = super().open(mode)
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, file.fileno())
            os.close(full)
            return file

    with pytest.raises(OSError, match=r"No space left on device: .*scores\.csv") as raised:
        write_atomic(FullDisk(path), b"after")
    assert raised.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["scores.csv"]


def test_lock_is_no_link(tmp_path):
    """A lock that is a link is refused, and the file that it leads to is as before."""
    (tmp_path / "precious").write_text("content")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="lock"), locked(tmp_path / "lock", "taken"):
        pass
    assert (tmp_path / "precious").read_text() == "content"


def test_lock_again(tmp_path):
    """Whoever holds a FileLock may take it again; another thread waits, or is refused."""
    lock, entered = FileLock(tmp_path / "lock"), threading.Event()

    def enter():
        with locked(FileLock(tmp_path / "lock"), "taken", wait=60):
            entered.set()

    with locked(lock, "taken"), locked(lock, "taken"):
        with pytest.raises(BlockingIOError, match="taken"), locked(tmp_path / "lock", "taken"):
            pass
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.is_set()
    thread.join(timeout=60)
    assert entered.is_set()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (",".join(f"column{n}" for n in range(40_000)), "40000 columns"),
        ("," * 2_000_000, "1000001 columns or more in a first line of 1000000 bytes"),
        ("a" * 2_000_000, "1 columns or more in a first line of 1000000 bytes"),
        ("a,b\n1,2,3\n1,2,3,4\n", "not a CSV file"),
        ("", "not a CSV file"),
        ("a\n\udcff", "not a CSV file"),
    ],
)
def test_hostile_tables(tmp_path, content, message):
    """A table of far too many columns, or none at all, is refused in a short message."""
    path = tmp_path / "images.csv"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"images\.csv: {message}") as raised:
        read_table(path)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-12],
        lambda data: data[2:],
        lambda data: data[:10] + b"\xff" + data[11:],
        lambda data: data[:-8] + bytes(8),
    ],
    ids=["cut short", "no gzip file", "no deflate block", "another checksum"],
)
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    path = tmp_path / "images.csv.gz"
    data = gzip.compress(b"image_id,patient_id\n001,007\n")
    path.write_bytes(data)
    assert read_table(path).to_numpy().tolist() == [["001", "007"]]
    path.write_bytes(damage(data))
    with pytest.raises(ValueError, match=r"images\.csv\.gz: not a CSV file"):
        read_table(path)


def test_long_names_are_cut():
    """A message lists names of any length in a few lines."""
    with pytest.raises(ValueError, match="3 wrong names") as raised:
        refuse("a.csv", ["x" * 100_000, "y", "z"], "wrong names")
    assert len(str(raised.value)) < 500


def test_read_json(tmp_path, monkeypatch):
    """A JSON file that is too large is not read."""
    path = tmp_path / "a.json"
    path.write_text('{"a": [1.5, null]}')
    assert read_json(path) == {"a": [1.5, None]}
    monkeypatch.setattr(files, "_LONGEST_JSON", 10)
    with pytest.raises(ValueError, match=r"a\.json: 0 MB; expected at most 0"):
        read_json(path)


def test_short_ids_are_unique_and_lead_back():
    ids = [f"00000013_{number:03d}" for number in range(120)] + ["a", "ab", "film", "1" * 30]
    short = short_ids(ids)
    assert list(short) == sorted(ids)
    assert len(set(short.values())) == len(ids)
    assert short["00000013_005"] == "00000013_005"
    assert short["1" * 30] == "1" * 8
    assert all(full_id(short[image_id], ids, "x") == image_id for image_id in ids)
    assert short_ids(["0123456789-a", "0123456789-b"]) == {
        "0123456789-a": "0123456789-a",
        "0123456789-b": "0123456789-b",
    }
    assert short_ids(["0123456789-b", "1123456789-a"]) == {
        "0123456789-b": "01234567",
        "1123456789-a": "11234567",
    }
    assert short_ids(["0123456789-b", "0123456799-a"]) == {
        "0123456789-b": "012345678",
        "0123456799-a": "012345679",
    }


@pytest.mark.parametrize(
    ("given", "problem"),
    [("z", "begins no id"), ("", "begins no id"), ("0", "begins 2 ids: 01, 02")],
)
def test_a_beginning_that_is_not_one_id_is_refused(given, problem):
    with pytest.raises(ValueError, match=f"^jump: '{given}' {problem}; expected one of 2 image"):
        full_id(given, ["01", "02"], "jump")
