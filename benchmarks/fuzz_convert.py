"""Damaged films by the thousand: each must give a row, none may crash, hang or eat the memory.

    python benchmarks/fuzz_convert.py --films 10000

Films of every kind that the converter reads are made, then bits are flipped, pieces cut out,
doubled or overwritten, lengths and sizes made to lie, by hypothesis and its seed. A film that
is made into a JPG must open at the size in its row, and nothing private may be in JPG or row.
"""

import argparse
import faulthandler
import io
import json
import resource
import struct
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
from PIL import Image
from pydicom.config import disable_value_validation
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from chexnet.dicom import FilmError
from chexnet.dicom.convert import convert_film
from chexnet.dicom.film import film_of
from chexnet.dicom.header import elements, file_meta
from chexnet.dicom.table import Source

SLOWEST, LARGEST = 10.0, 2**30  # seconds a film, bytes of memory: what the converter promises
NUMBERS = [0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]
SECRET = "Zyxomma^Geheim"  # a name that occurs nowhere else
RAW, IMPLICIT, BIG, DEFLATED, JPEG, J2K, RLE = (
    f"1.2.840.10008.1.2{end}" for end in (".1", "", ".2", ".1.99", ".4.50", ".4.90", ".5")
)


def jpeg_bytes(pixels: np.ndarray, *, codec: str = "JPEG", remark: str = "", **options) -> bytes:
    """A JPEG or JPEG 2000 stream, with a comment in it."""
    stream = io.BytesIO()
    more = {"comment": remark} if codec == "JPEG" and remark else {}
    Image.fromarray(pixels).save(stream, codec, **more, **options)
    return stream.getvalue()


def film_bytes(pixels: np.ndarray, *, syntax: str = RAW, frames: int = 1, **more: object) -> bytes:
    """A DICOM file with secrets in its private places.

    Args:
        pixels: integers (H, W) or (H, W, 3).
        syntax: transfer syntax.
        frames: copies of the picture.
        more: elements by keyword, put in last; ``PixelData`` too.
    """
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = RAW if syntax == RLE else syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid(
        entropy_srcs=["film"]
    )
    ds.PatientName = ds.ReferringPhysicianName = ds.OperatorsName = SECRET
    ds.PatientID = ds.AccessionNumber = ds.StudyID = SECRET
    ds.InstitutionName = ds.StudyDescription = ds.ImageComments = SECRET
    ds.PatientBirthDate, ds.StudyDate = "19330221", "20170316"
    ds.private_block(0x0011, SECRET, create=True).add_new(1, "LO", SECRET)
    ds.RequestAttributesSequence = [Dataset()]
    ds.RequestAttributesSequence[0].RequestedProcedureDescription = SECRET
    ds.ViewPosition, ds.PatientSex, ds.PatientAge = "PA", "F", "051Y"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    ds.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    if frames > 1:
        ds.NumberOfFrames = frames
    if syntax in (JPEG, J2K):
        codec = "JPEG" if syntax == JPEG else "JPEG2000"
        options = {} if syntax == JPEG else {"no_jp2": True}
        frame = jpeg_bytes(pixels, codec=codec, remark=SECRET, **options)
        ds.PixelData = encapsulate([frame] * frames)
    else:
        native = pixels.astype(pixels.dtype.newbyteorder(">")) if syntax == BIG else pixels
        ds.PixelData = native.tobytes() * frames
    with disable_value_validation():
        for keyword, value in more.items():
            ds.pop(keyword, None)  # an element would remember to check its values
            setattr(ds, keyword, value)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 or syntax in (JPEG, J2K) else "OW"
    if syntax == RLE:
        ds.compress(RLE, pixels, generate_instance_uid=False)
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def lut(entries: np.ndarray, first: int, bits: int) -> Sequence:
    """A lookup table sequence of one item."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return Sequence([item])


def whole_films() -> list[bytes]:
    """One small film of every kind, and pydicom's own."""
    across = np.arange(64, dtype=np.uint8)[:, None] * 2 + np.arange(48, dtype=np.uint8)
    deep = across.astype(np.uint16) * 16
    window = {"WindowCenter": [1500, 900], "WindowWidth": [1200, 400]}
    twelve = {"BitsStored": 12, "HighBit": 11}
    curve = lut(np.arange(4096) ** 2 // 4096, 0, 12)
    made = [
        film_bytes(across, syntax=JPEG),
        film_bytes(across, syntax=JPEG, frames=3),
        film_bytes(across, syntax=JPEG, WindowCenter=128, WindowWidth=256),
        film_bytes(across, syntax=JPEG, PhotometricInterpretation="MONOCHROME1"),
        film_bytes(deep, PhotometricInterpretation="MONOCHROME1", **twelve, **window),
        film_bytes(deep, **twelve, ModalityLUTSequence=curve, VOILUTSequence=curve),
        film_bytes(deep.astype(np.int16) - 999, RescaleSlope=2, RescaleIntercept=-7, **window),
        film_bytes(deep, syntax=IMPLICIT, PixelPaddingValue=0, **twelve),
        film_bytes(deep, syntax=BIG, **window),
        film_bytes(deep, syntax=DEFLATED),
        film_bytes(deep, syntax=J2K),
        film_bytes(deep, syntax=RLE),
        film_bytes(np.stack([across] * 3, -1)),
    ]
    names = ["CT_small", "MR_small_RLE", "JPEG2000", "examples_overlay", "SC_rgb_small_odd_jpeg"]
    paths = (get_testdata_file(f"{name}.dcm", download=False) for name in names)
    made += made[:3] * 4  # those that are copied unseen
    return made + [Path(path).read_bytes() for path in paths if path]


def bombs() -> dict[str, bytes]:
    """Small files that say they are enormous, or take for ever to read."""
    small = np.zeros((8, 8), np.uint8)
    huge = {"Rows": 65535, "Columns": 65535}
    frame = jpeg_bytes(small)
    at = frame.index(b"\xff\xc0") + 5
    vast = frame[:at] + b"\xff\xff\xff\xff" + frame[at + 4 :]
    wide = jpeg_bytes(small, codec="JPEG2000", no_jp2=True)
    wide = wide[:8] + struct.pack(">II", 60000, 60000) + wide[16:]
    whole = encapsulate([frame])
    slow = jpeg_bytes(np.full((2000, 2000), 128, np.uint8), progressive=True)
    scans = slow[:-2] + slow[slow.rindex(b"\xff\xda") : -2] * 3000 + slow[-2:]
    plain = film_bytes(small)
    _, start = file_meta(plain)
    empty = struct.pack("<HH2sH", 8, 5, b"CS", 0)
    many = b"1\\" * 5_000_000
    window = struct.pack("<HHI", 0x28, 0x1050, len(many)) + many
    items = 2_000_000 * struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    table = struct.pack("<HH2sHI", 0x28, 0x3010, b"SQ", 0, len(items)) + items
    endless = struct.pack("<HH2sHI", 0x28, 0x3010, b"SQ", 0, 0xFFFFFFFF) + items
    other = struct.pack("<HH2sH", 2, 0x12, b"XX", 0) + plain[132:start].replace(
        b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
    )
    return {
        "many pixels": film_bytes(small, **huge),
        "many pixels, JPEG": film_bytes(small, syntax=JPEG, **huge, PixelData=encapsulate([vast])),
        "a larger JPEG": film_bytes(small, syntax=JPEG, PixelData=encapsulate([vast])),
        "a larger JPEG 2000": film_bytes(small, syntax=J2K, PixelData=encapsulate([wide])),
        "many pixels, JPEG 2000": film_bytes(
            small, syntax=J2K, Rows=60000, Columns=60000, PixelData=encapsulate([wide])
        ),
        "many frames": film_bytes(small, syntax=JPEG, frames=3, NumberOfFrames=2**31 - 1),
        "many scans": film_bytes(
            small, syntax=JPEG, Rows=2000, Columns=2000, PixelData=encapsulate([scans])
        ),
        "many fragments": film_bytes(small, syntax=JPEG, PixelData=whole[:8] + items + whole[8:]),
        "deflated zeros": _deflated(bytes(300 * 2**20)),
        "deflated elements": _deflated(empty * 4_000_000 + plain[start:]),
        "deflated items": _deflated(_before_pixels(plain[start:], table)),
        "deflated items without a length": _deflated(_before_pixels(plain[start:], endless)),
        "many elements": plain[:start] + empty * 400_000 + plain[start:],
        "much meta information": plain[:start] + b"\2\0\2\1UL\0\0" * 400_000 + plain[start:],
        "two transfer syntaxes": plain[:start] + other + _deflated(bytes(100 * 2**20))[start:],
        "a long window": _before_pixels(film_bytes(small, syntax=IMPLICIT), window),
        "RLE that unpacks to more": rle_film(small, [64], b"\x81\x00" * 400_000),
        "RLE from beyond its end": rle_film(
            np.stack([small] * 3, -1), [64, 0x0FFFFFFF, 0x0FFFFFFF], b"\x81\x00" * 400_000
        ),
    }


def _deflated(data: bytes) -> bytes:
    """A film's meta information, and a data set to inflate."""
    plain = film_bytes(np.zeros((8, 8), np.uint8), syntax=DEFLATED)
    _, start = file_meta(plain)
    deflate = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    return plain[:start] + deflate.compress(data) + deflate.flush()


def _before_pixels(film: bytes, element: bytes) -> bytes:
    at = film.rindex(struct.pack("<HH", 0x7FE0, 0x10))
    return film[:at] + element + film[at:]


def rle_film(pixels: np.ndarray, starts: list[int], segments: bytes) -> bytes:
    """A film whose RLE frame is this one."""
    film = film_bytes(pixels, syntax=RLE)
    frame = struct.pack("<16I", len(starts), *starts, *[0] * (15 - len(starts))) + segments
    fragment = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(frame)) + frame
    return film[: film.rindex(b"\xfe\xff\x00\xe0")] + fragment + b"\xfe\xff\xdd\xe0\0\0\0\0"


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
        elif found := list(elements(bytes(data), 132)):  # a length or size that lies
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
            try:
                expected = film_of(data).pixels
            except FilmError:
                return  # its picture is damaged, which nobody saw as it was not decoded
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
        faulthandler.dump_traceback_later(2 * SLOWEST, exit=True)
        began = time.perf_counter()
        row = convert_film(Source("film.dcm", str(path), "film", len(data), 0), folder)
        times.append(time.perf_counter() - began)
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


def most_memory() -> int:
    """Bytes that this process has had at most."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure begins with that of the process which started this one
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--films", type=int, default=10_000)
    arguments.add_argument("--seed", type=int, default=0)
    chosen = arguments.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(chosen.films, chosen.seed, Path(folder))
    peak = most_memory()
    for reason, count in found["reasons"].most_common():
        print(f"{count:6d}  {reason}")
    print("| films | copied | encoded | failed | slowest | memory at most | time |")
    print("|---|---|---|---|---|---|---|")
    counts = " | ".join(str(found["statuses"][name]) for name in ("copied", "encoded", "failed"))
    print(
        f"| {chosen.films} | {counts} | {1000 * found['slowest']:.0f} ms "
        f"| {peak / 2**20:.0f} MiB | {time.perf_counter() - began:.0f} s |"
    )
    if peak > LARGEST:
        raise SystemExit(f"{peak} bytes of memory; at most {LARGEST} are promised")


if __name__ == "__main__":
    main()
