"""Test films of every kind that the converter reads, with secrets in their private places."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.config import disable_value_validation
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

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


def data_set_start(film: bytes) -> int:
    """Where the data set of a film of ours begins (PS3.10 7.1), in bytes."""
    return 144 + int.from_bytes(film[140:144], "little")


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
    start = data_set_start(plain)
    empty = struct.pack("<HH2sH", 8, 5, b"CS", 0)
    many = b"1\\" * 5_000_000
    window = struct.pack("<HHI", 0x28, 0x1050, len(many)) + many
    items = 2_000_000 * struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    table = struct.pack("<HH2sHI", 0x28, 0x3010, b"SQ", 0, len(items)) + items
    endless = struct.pack("<HH2sHI", 0x28, 0x3010, b"SQ", 0, 0xFFFFFFFF) + items
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
        "a long window": _before_pixels(film_bytes(small, syntax=IMPLICIT), window),
        "RLE that unpacks to more": rle_film(small, [64], b"\x81\x00" * 400_000),
        "RLE from beyond its end": rle_film(
            np.stack([small] * 3, -1), [64, 0x0FFFFFFF, 0x0FFFFFFF], b"\x81\x00" * 400_000
        ),
    }


def _deflated(data: bytes) -> bytes:
    """A film's meta information, and a data set to inflate."""
    plain = film_bytes(np.zeros((8, 8), np.uint8), syntax=DEFLATED)
    start = data_set_start(plain)
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
