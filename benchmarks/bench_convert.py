"""Converting films: ours, the original's way (decode and encode), and the limit (a file copy).

One core, files in memory (``/dev/shm`` where there is one) so that the disk's moods are left out,
every film written under a new name, the three ways taken in turn. Each film counts with the least
of its repeats: whatever else the machine does can only lengthen a measurement, as in
`bench_generator`. The folder of 30,000 is on disk and takes 5 GB for a while.

    CHEXNET_RSNA_DIR=<folder> python benchmarks/bench_convert.py
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from pydicom.pixels import pixel_array

from chexnet.dicom import convert_folder
from chexnet.dicom.convert import convert_film
from chexnet.dicom.table import Source

HEADER = (
    "| figure | ours | the original's way | limit | ratios | asked for |\n|---|---|---|---|---|---|"
)
ASKED = "10 x faster"


def decode_and_encode(source: Path, target: Path) -> None:
    """The original: pydicom's pixel array, written by OpenCV at its default quality.

    By Pillow, the fastest decoder: pylibjpeg, where it is installed, takes ten times as long.
    """
    cv2.imwrite(str(target), pixel_array(source, decoding_plugin="pillow"))


def one_film(films: list[Path], folder: Path, repeats: int) -> str:
    """Milliseconds of one film, each way: the mean over films of the least of the repeats."""
    ways: dict[str, Callable[[Path, Path], object]] = {
        "ours": lambda film, out: convert_film(Source(film.name, str(film), film.stem, 0, 0), out),
        "original": lambda film, out: decode_and_encode(film, out / f"{film.stem}.jpg"),
        "copy": lambda film, out: shutil.copyfile(film, out / film.name),
    }
    times = {way: np.empty((repeats, len(films))) for way in ways}
    for repeat in range(repeats):
        out = folder / str(repeat)
        for way in ways:
            (out / way).mkdir(parents=True)
        for number, film in enumerate(films):
            for way, work in ways.items():
                began = time.perf_counter()
                work(film, out / way)
                times[way][repeat, number] = time.perf_counter() - began
        shutil.rmtree(out)
    ours, original, copy = (1000 * times[way].min(axis=0).mean() for way in times)
    return (
        f"| converting one genuine film ({len(films)} films, {repeats} times) | {ours:.2f} ms "
        f"| {original:.2f} ms | copy {copy:.2f} ms "
        f"| {original / ours:.1f} x faster, {ours / copy:.1f} x a copy | {ASKED} |"
    )


def second_run(films: list[Path], folder: Path, count: int) -> str:
    """Seconds of a run that finds everything done, over as many names for the films at hand."""
    source, target = folder / "films", folder / "jpg"
    source.mkdir()
    for number in range(count):
        # Hard links: as many files to look at, without their space.
        os.link(films[number % len(films)], source / f"film-{number:06d}.dcm")
    began = time.perf_counter()
    first = convert_folder(source, target, progress=False)
    between = time.perf_counter()
    again = convert_folder(source, target, progress=False)
    spent = time.perf_counter() - between
    assert (first["status"] == "copied").all() and first["new"].all() and not again["new"].any()
    return (
        f"| folder of {count} films | {between - began:.1f} s, then {spent:.2f} s when all is done "
        f"| | | {count / (between - began):.0f} films a second "
        "| 30,000 films checked in under 5 s |"
    )


def beside(films: list[Path], scratch: str) -> list[Path]:
    """Copies on the disk that is written to: links to them are possible there."""
    folder = Path(scratch) / "genuine"
    folder.mkdir()
    return [Path(shutil.copyfile(film, folder / film.name)) for film in films]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--films", type=int, default=100, help="genuine films to time")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--folder-films", type=int, default=30_000, help="0 leaves it out")
    arguments.add_argument("--scratch", help="where to write; by default temporary folders")
    chosen = arguments.parse_args()
    print(HEADER)
    if not (folder := os.environ.get("CHEXNET_RSNA_DIR")):
        print(f"| converting | not measured: CHEXNET_RSNA_DIR is not set | | | | {ASKED} |")
        return
    films = sorted((Path(folder) / "stage_2_train_images").glob("*.dcm"))
    cv2.setNumThreads(1)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=chosen.scratch or memory) as scratch:
        print(one_film(beside(films[: chosen.films], scratch), Path(scratch), chosen.repeats))
    if chosen.folder_films:
        with tempfile.TemporaryDirectory(dir=chosen.scratch) as scratch:
            copies = beside(films[: chosen.films], scratch)
            print(second_run(copies, Path(scratch), chosen.folder_films))


if __name__ == "__main__":
    main()
