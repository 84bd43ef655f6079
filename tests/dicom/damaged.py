"""Films with random damage, and what the converter promises of any file."""

import faulthandler
import io
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pydicom
from PIL import Image

from chexnet.dicom.convert import convert_film
from chexnet.dicom.film import film_of
from chexnet.dicom.table import Source
from tests.dicom.films import SECRET, bombs, whole_films

SLOWEST = 10.0  # seconds of the processor a film: what the converter promises
HANGS = 300  # seconds by the clock, after which the process ends with a traceback
NUMBERS = [0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]


def element_places(film: bytes) -> list[tuple[int, int, int]]:
    """Tag, offset and length of the elements that pydicom finds, none where it gives up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ds = pydicom.dcmread(io.BytesIO(film))
        except Exception:
            return []
    return [
        (element.tag, element.value_tell, element.length)
        for part in (ds.file_meta, ds)
        for element in part.values()
        if isinstance(element, pydicom.dataelem.RawDataElement) and element.value_tell < len(film)
    ]


@st.composite
def damaged_films(draw: st.DrawFn, films: list[bytes]) -> bytes:
    """A film with one or two kinds of damage."""
    data = bytearray(draw(st.sampled_from(films)))
    # Places are drawn evenly; hypothesis itself prefers the ends of a range.
    chance = draw(st.randoms(use_true_random=True))
    for _ in range(draw(st.integers(1, 2))):
        # Headers are where damage does most: half of it goes into what follows the file meta.
        header = len(data) > 2000 and chance.random() < 0.5
        place = chance.randrange(340, 1840) if header else chance.randrange(len(data))
        size = chance.randrange(1, 200)
        kind = draw(st.sampled_from(["flips", "flip", "cut", "double", "end", "number", "length"]))
        if kind in ("flips", "flip"):
            data[place] ^= 1 << chance.randrange(8)
            for _ in range(chance.randrange(8) if kind == "flips" else 0):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del data[place : place + size]
        elif kind == "double":
            data[place:place] = data[place : place + size] * draw(st.integers(1, 3))
        elif kind == "end":
            del data[max(place, 140) :]
        elif kind == "number":
            number, width = draw(st.sampled_from(NUMBERS)), draw(st.sampled_from([2, 4]))
            data[place : place + width] = number.to_bytes(4, "little")[:width]
        elif found := element_places(bytes(data)):  # a length or size that lies
            tag, offset, length = chance.choice(found)
            at = offset if tag >> 16 == 0x0028 and length == 2 else offset - 2
            data[at : at + 2] = draw(st.sampled_from([0, 1, 3, 4000, 65535])).to_bytes(2, "little")
        if len(data) < 200:
            break
    return bytes(data)


def for_damaged_films(count: int, seed: int, work: Callable[[bytes], object]) -> None:
    """Calls ``work`` with as many damaged films; with one made smaller once it raises."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(damaged_films(whole_films()))
    def on_each(film: bytes) -> None:
        work(film)

    on_each()


def check(data: bytes, row: dict[str, object], folder: Path) -> None:
    """Holds a row and its JPG against what is promised of them.

    Raises:
        AssertionError: a promise is broken.
    """
    assert row["status"] in ("copied", "encoded", "failed"), row
    texts = json.dumps(row)
    path = folder / f"{row['image_id']}.jpg"
    assert path.exists() == (row["status"] != "failed"), row
    assert bool(row["reason"]) or row["status"] == "copied", row
    if path.exists():
        jpg = path.read_bytes()
        assert jpg[:2] == b"\xff\xd8" and jpg[-2:] == b"\xff\xd9"
        assert SECRET.encode() not in jpg
        with Image.open(path) as image:
            assert (image.mode, image.height, image.width) == ("L", row["rows"], row["columns"])
        if row["status"] == "copied":
            expected = film_of(data).pixels
            with Image.open(path) as image:
                assert np.array_equal(np.asarray(image), expected), row
    assert SECRET not in texts and "19330221" not in texts, row


def fuzz(films: int, seed: int, folder: Path) -> dict[str, object]:
    """Converts bombs and damaged films one after the other.

    Returns:
        ``statuses`` and ``reasons`` (numbers of films), ``slowest`` in seconds.

    Raises:
        AssertionError: a promise is broken; the film that did it is left as ``film.dcm``.
    """
    statuses, reasons, times = Counter(), Counter(), []
    path = folder / "film.dcm"

    def convert(data: bytes) -> None:
        path.write_bytes(data)
        (folder / "film.jpg").unlink(missing_ok=True)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        began = time.process_time()  # a busy machine changes nothing
        row = convert_film(Source("film.dcm", str(path), "film", len(data), 0), folder)
        times.append(time.process_time() - began)
        faulthandler.cancel_dump_traceback_later()
        assert times[-1] < SLOWEST, f"{times[-1]:.1f} s: {row}"
        check(data, row, folder)
        statuses[row["status"]] += 1
        if row["status"] == "failed":
            reasons["".join(c for c in row["reason"] if not c.isdigit())] += 1

    first = bombs()
    for bomb in first.values():
        convert(bomb)
    for_damaged_films(films - len(first), seed, convert)
    return {"statuses": statuses, "reasons": reasons, "slowest": max(times)}
