import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pandas as pd
import pytest

from chexnet.dicom import read_film
from chexnet.files import locked
from chexnet.generator import ImageStore, apply_clahe
from chexnet.generator import store as images
from chexnet.generator.store import CACHES_KEPT, prepare_film

IDS = [f"film{index}" for index in range(6)]


def write_film(folder, image_id, shape=(64, 64), seed=0):
    draw = np.random.default_rng([seed, *image_id.encode()])
    film = cv2.GaussianBlur(draw.integers(0, 256, shape, dtype=np.uint8), (0, 0), 3)
    film = cv2.normalize(film, None, 20, 220, cv2.NORM_MINMAX)
    assert cv2.imwrite(str(folder / f"{image_id}.jpg"), film)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "jpg"
    folder.mkdir()
    for image_id in IDS:
        write_film(folder, image_id)
    return folder


def open_store(folder, image_ids=IDS, **options):
    return ImageStore(folder, image_ids, **{"image_size": 16, "progress": False, **options})


def caches(folder):
    return sorted((folder.parent / "cache").iterdir())


def build_in_a_process(folder, both_build, results):
    """Builds a store, and waits at the first film until the other process is there too."""
    early, prepare = [], images.prepare_film

    def prepare_together(*given, **more):
        if not early:
            # Before waiting: after it the other one may be done first.
            early.append(sorted(path.name for path in (folder.parent / "cache").glob("films-*")))
            both_build.wait()
        return prepare(*given, **more)

    images.prepare_film = prepare_together
    results.put((open_store(folder, workers=1)[IDS].tobytes(), early))


def test_clahe_before_resizing(folder):
    """CLAHE is applied at the film's own size before the resize."""
    film = cv2.imread(str(folder / "film3.jpg"), cv2.IMREAD_GRAYSCALE)
    assert film.shape == (64, 64)
    expected = cv2.resize(apply_clahe(film), (16, 16), interpolation=cv2.INTER_AREA)
    pixels = open_store(folder)[["film3"]]
    assert pixels.shape == (1, 16, 16, 1)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels[0, ..., 0], expected)


def test_clahe_can_be_left_out(folder):
    film = cv2.imread(str(folder / "film3.jpg"), cv2.IMREAD_GRAYSCALE)
    plain = open_store(folder, clip_limit=None)["film3"][0, ..., 0]
    assert np.array_equal(plain, cv2.resize(film, (16, 16), interpolation=cv2.INTER_AREA))
    assert not np.array_equal(plain, open_store(folder)["film3"][0, ..., 0])


def test_a_film_that_is_not_square_is_stretched():
    film = np.zeros((40, 80), np.uint8)
    film[:, 40:] = 200
    prepared = prepare_film(film, 8, clip_limit=None)
    assert prepared.tolist() == [[0] * 4 + [200] * 4] * 8


def test_genuine_films_are_opencvs_clahe_and_resize(rsna_dir, tmp_path):
    paths = sorted((rsna_dir / "stage_2_train_images").iterdir())[:12]
    for path in paths:
        assert cv2.imwrite(str(tmp_path / f"{path.stem}.jpg"), read_film(path).pixels)
    ids = [path.stem for path in paths]
    store = ImageStore(tmp_path, ids, image_size=224, cache=tmp_path / "cache", progress=False)
    clahe = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))
    for image_id, pixels in zip(ids, store[ids], strict=True):
        film = clahe.apply(cv2.imread(str(tmp_path / f"{image_id}.jpg"), cv2.IMREAD_GRAYSCALE))
        assert np.array_equal(
            pixels[..., 0], cv2.resize(film, (224, 224), interpolation=cv2.INTER_AREA)
        )


def test_threads_apply_clahe_to_films_of_their_own():
    films = np.random.default_rng(2).integers(0, 256, (40, 96, 96)).astype(np.uint8)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(apply_clahe, films))
    assert np.array_equal(together, [apply_clahe(film) for film in films])


@pytest.mark.parametrize("film", [np.zeros((8, 8)), np.zeros((8, 8, 1), np.uint8)])
def test_clahe_of_something_else_than_a_film_is_refused(film):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W\), got"):
        apply_clahe(film)


def test_preparing_a_film_leaves_it_as_it_is(folder):
    film = cv2.imread(str(folder / "film3.jpg"), cv2.IMREAD_GRAYSCALE)
    before = film.copy()
    prepare_film(film, 16)
    assert np.array_equal(film, before)


@pytest.mark.parametrize("kind", [list, np.array, pd.Series, tuple])
def test_films_come_in_the_order_asked_for(folder, kind):
    store = open_store(folder)
    asked = ["film4", "film0", "film4"]
    pixels = store[kind(asked)]
    assert np.array_equal(pixels, np.concatenate([store[[image_id]] for image_id in asked]))


def test_the_store_says_what_it_holds(folder):
    store = open_store(folder, pd.Series(IDS))
    assert len(store) == 6
    assert store.image_ids == IDS
    assert store.image_size == 16


def test_a_batch_is_a_copy_that_may_be_changed(folder):
    store = open_store(folder)
    before = store[IDS]
    store[IDS][:] = 0
    assert np.array_equal(store[IDS], before)


def test_an_unknown_id_is_named(folder):
    with pytest.raises(KeyError, match="film9"):
        open_store(folder)[["film0", "film9"]]


def test_missing_films_are_named_before_any_work(folder):
    with pytest.raises(FileNotFoundError, match=r"7 of 13.*film6\.jpg.*film10\.jpg and 2 more"):
        open_store(folder, [f"film{index}" for index in range(13)])
    assert not (folder.parent / "cache").exists()


@pytest.mark.parametrize("cut", [0, 30, 400])
def test_undecodable_films(folder, cut):
    """Films that cannot be decoded are all named and leave no cache."""
    for name in ("film1.jpg", "film4.jpg"):
        path = folder / name
        path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        ValueError, match=r"2 of 6 films cannot be decoded: .*film1\.jpg.*film4\.jpg"
    ):
        open_store(folder)
    assert caches(folder) == []


def test_a_file_that_only_ends_like_a_jpg_is_named(folder):
    (folder / "film2.jpg").write_bytes(b"no picture\xff\xd9")
    with pytest.raises(ValueError, match=r"film2\.jpg: not a JPEG file"):
        open_store(folder)


def test_too_little_room_is_an_error_before_any_film_is_read(folder, monkeypatch):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr(images, "read_image", None)
    with pytest.raises(OSError, match=r"cache: the cache of 0\.2 MB was not written .*0\.0 MB are"):
        open_store(folder, image_size=200)
    assert caches(folder) == []


BUILD_ON_A_FULL_DISK = """
import resource, signal, sys
from chexnet.generator import ImageStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
ImageStore(sys.argv[1], sys.argv[2:], image_size=200, progress=False)
"""


def test_full_disk(folder):
    # The largest size of a file stands for the size of a disk.
    """A disk that fills while the cache is written is an error too."""
    pytest.importorskip("resource")
    run = subprocess.run(
        [sys.executable, "-c", BUILD_ON_A_FULL_DISK, str(folder), *IDS],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    assert re.search(
        r"OSError: .*cache: the cache of 0\.2 MB was not written .*File too large.*Choose another",
        run.stderr,
    )
    assert caches(folder) == []


def before_each_film(monkeypatch, act):
    """Does something whenever a film is about to be prepared."""
    prepare = images.prepare_film

    def act_and_prepare(*given, **more):
        act()
        return prepare(*given, **more)

    monkeypatch.setattr(images, "prepare_film", act_and_prepare)


def test_films_that_change_while_they_are_read_make_no_cache(folder, monkeypatch):
    before_each_film(monkeypatch, lambda: write_film(folder, "film5", seed=9))
    with pytest.raises(OSError, match="films changed while they were read"):
        open_store(folder, workers=1)
    assert caches(folder) == []


@pytest.mark.parametrize("image_id", ["../film0", "/etc/passwd", "a\0b", "a" * 300, "", ".hidden"])
def test_an_id_that_is_no_plain_name_is_refused(folder, image_id):
    with pytest.raises(ValueError, match="invalid image_id"):
        open_store(folder, ["film0", image_id])


def test_an_id_given_twice_is_refused(folder):
    with pytest.raises(ValueError, match="duplicate image_ids: film0"):
        open_store(folder, ["film0", "film1", "film0"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 4},
        {"clip_limit": 0},
        {"clip_limit": float("nan")},
        {"clip_limit": float("inf")},
        {"tiles": 0},
        {"tiles": 8.0},
        {"image_size": 16.7},
        {"workers": 0},
        {"image_ids": []},
    ],
)
def test_settings_that_make_no_sense_are_refused(folder, wrong):
    with pytest.raises(ValueError, match=r"ImageStore|expected"):
        open_store(folder, **wrong)


def test_the_second_opening_reads_the_cache_and_no_film(folder, monkeypatch):
    first = open_store(folder)
    monkeypatch.setattr(cv2, "imdecode", None)
    second = open_store(folder)
    assert second.path == first.path
    assert np.array_equal(second[IDS], first[IDS])


@pytest.mark.parametrize("change", ["pixels", "clip_limit", "tiles", "image_size", "order"])
def test_whatever_changes_the_pixels_makes_another_cache(folder, change):
    first = open_store(folder)
    if change == "pixels":
        write_film(folder, "film0", seed=1)
        other = open_store(folder)
    elif change == "order":
        other = open_store(folder, IDS[::-1])
        assert np.array_equal(other[IDS], first[IDS])
    else:
        value = {"clip_limit": 3.0, "tiles": 4, "image_size": 24}[change]
        other = open_store(folder, **{change: value})
    assert other.path != first.path
    if change == "pixels":
        assert not np.array_equal(other[["film0"]], first[["film0"]])
        assert np.array_equal(other[IDS[1:]], first[IDS[1:]])


def test_a_film_touched_but_equal_in_size_is_read_again(folder):
    first = open_store(folder)
    facts = (folder / "film0.jpg").stat()
    os.utime(folder / "film0.jpg", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert open_store(folder).path != first.path


def test_films_of_another_folder(folder, tmp_path):
    """Films of another folder do not pass for those of the first."""
    cache, other = tmp_path / "shared", tmp_path / "other"
    other.mkdir()
    for image_id in IDS:  # as many bytes, of the same time, under the same name
        path = folder / f"{image_id}.jpg"
        data = path.read_bytes()
        flipped = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)[::-1]
        jpg = cv2.imencode(".jpg", flipped)[1].tobytes()
        size = max(len(data), len(jpg)) + 4
        for place, content in ((path, data), (other / path.name, jpg)):
            remark = size - len(content)
            length = (remark - 2).to_bytes(2, "big")
            place.write_bytes(content[:2] + b"\xff\xfe" + length + bytes(remark - 4) + content[2:])
            os.utime(place, ns=(0, 1_000_000_000))
    first, second = open_store(folder, cache=cache), open_store(other, cache=cache)
    assert first.path != second.path
    assert not np.array_equal(first[IDS], second[IDS])


@pytest.mark.parametrize("length", [0, 10, 128, 700, -1])
def test_a_truncated_cache_is_refused_until_it_is_deleted(folder, length):
    store = open_store(folder)
    expected, path = store[IDS], store.path
    del store
    data = path.read_bytes()
    path.write_bytes(data[:length])
    with pytest.raises(ValueError, match=f"{path.name}: truncated"):
        open_store(folder)
    assert path.read_bytes() == data[:length]
    path.unlink()
    assert np.array_equal(open_store(folder)[IDS], expected)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "write",
    [
        lambda path, pixels: np.save(path, pixels[:5]),
        lambda path, pixels: np.save(path, pixels.astype(np.float32)),
        lambda path, pixels: path.write_bytes(b"PK\x03\x04" + bytes(1660)),
        lambda path, pixels: np.save(path, np.array([{}]), allow_pickle=True),
    ],
    ids=["fewer", "type", "zip", "pickle"],
)
def test_a_cache_that_holds_something_else_is_refused(folder, write):
    path = open_store(folder).path
    write(path, np.load(path))
    with pytest.raises(ValueError, match=f"{path.name}: truncated or overwritten"):
        open_store(folder)


@pytest.mark.parametrize("clip_limit", [2, np.float32(2)])
def test_a_limit_written_in_another_type_is_the_same_cache(folder, clip_limit):
    assert open_store(folder, clip_limit=clip_limit).path == open_store(folder).path


def test_stale_caches_do_not_pile_up(folder):
    for seed in range(CACHES_KEPT + 3):
        write_film(folder, "film0", seed=seed)
        latest = open_store(folder).path
    kept = caches(folder)
    assert len(kept) == CACHES_KEPT
    assert latest in kept


def test_killed_build(folder, monkeypatch):
    """What a killed process left goes at once; what another is building stays."""
    cache = folder.parent / "cache"
    cache.mkdir()
    dead, building = cache / ".films-dead.part", cache / ".films-building.part"
    for path in (dead, building):
        path.write_bytes(b"unfinished")
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    with locked(building.with_suffix(".lock"), "taken"), pytest.raises(OSError, match="written"):
        open_store(folder)
    # Even where nothing could be built.
    assert sorted(path.name for path in cache.iterdir()) == [
        ".films-building.lock", ".films-building.part",
    ]  # fmt: skip


def test_fingerprint(folder):
    """It covers every pixel and which film has it, not the order or the other films."""
    store = open_store(folder)
    some = store.image_ids[:3]
    before = store.fingerprint(some)
    assert store.fingerprint(some[::-1]) == before
    assert open_store(folder, image_ids=some).fingerprint(some) == before
    assert store.fingerprint(some[:2]) != before
    with pytest.raises(KeyError, match="nobody"):
        store.fingerprint(["nobody"])
    path = folder / f"{some[2]}.jpg"
    content = path.read_bytes()
    path.write_bytes((folder / f"{some[1]}.jpg").read_bytes())
    assert open_store(folder).fingerprint(some) != before
    path.write_bytes(content)
    assert open_store(folder).fingerprint(some) == before


def test_two_processes_may_build_at_once(folder):
    context = multiprocessing.get_context("spawn")
    both_build, results = context.Barrier(2, timeout=60), context.Queue()
    processes = [
        context.Process(target=build_in_a_process, args=(folder, both_build, results))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    both = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    # Both have built, and nothing stood under the final name before it was whole.
    assert [early for _, early in both] == [[[]], [[]]]
    assert both[0][0] == both[1][0] == open_store(folder)[IDS].tobytes()
    assert len(caches(folder)) == 1


def test_the_number_of_building_threads_changes_nothing(folder, tmp_path):
    ids = [f"small{index}" for index in range(200)]
    for image_id in ids:
        write_film(folder, image_id, shape=(8, 8))
    one = open_store(folder, ids, cache=tmp_path / "one", workers=1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        many = open_store(folder, ids, cache=tmp_path / "many", workers=8)
    finally:
        sys.setswitchinterval(interval)
    assert one.path.read_bytes() == many.path.read_bytes()


def test_a_bar_shows_films_a_second_and_the_time_left(folder, capfd):
    open_store(folder, progress=True)
    assert re.search(
        r"films at 16 px.* 6/6 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+film/s\]", capfd.readouterr().err
    )
    open_store(folder, image_size=24)
    assert capfd.readouterr().err == ""


def test_many_threads_read_the_same_films(folder):
    store = open_store(folder)
    expected = store[IDS]
    barrier = threading.Barrier(8)

    def read(_):
        barrier.wait()
        return all(np.array_equal(store[IDS], expected) for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


def test_memory_of_reading(tmp_path):
    """Reading leaves the pixels out of the memory of the process."""
    if not os.path.exists("/proc/self/status"):  # noqa: PTH110
        pytest.skip("needs /proc: the memory of a process is read from it")

    def anonymous():
        with open("/proc/self/status") as status:  # noqa: PTH123
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    folder = tmp_path / "jpg"
    folder.mkdir()
    ids = [f"film{index}" for index in range(64)]
    for image_id in ids:
        write_film(folder, image_id)
    store = open_store(folder, ids, image_size=1024, clip_limit=None)  # 64 MiB of pixels
    store[ids[:4]]
    before = anonymous()
    for _ in range(5):
        for start in range(0, 64, 4):
            store[ids[start : start + 4]]
    assert anonymous() - before < 16 * 1024  # kB


def test_a_rotation_asked_for_in_exif_is_not_done(folder):
    path = folder / "film0.jpg"
    plain = open_store(folder)[["film0"]]
    # APP1 with one entry: Orientation (0x0112) = 6, turn by 90 degrees.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    assert np.array_equal(open_store(folder)[["film0"]], plain)
    turned = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert not np.array_equal(turned, cv2.imdecode(np.frombuffer(data, np.uint8), 0))
