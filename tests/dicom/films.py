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
RAW, IMPLICIT, BIG, DEFLATED, JPEG, J2K, RLE, SV1 = (
    f"1.2.840.10008.1.2{end}" for end in (".1", "", ".2", ".1.99", ".4.50", ".4.90", ".5", ".4.70")
)


def jpeg_bytes(pixels: np.ndarray, *, codec: str = "JPEG", remark: str = "", **options) -> bytes:
    """A JPEG or JPEG 2000 stream, with a comment in it."""
    stream = io.BytesIO()
    more = {"comment": remark} if codec == "JPEG" and remark else {}
    Image.fromarray(pixels).save(stream, codec, **more, **options)
    return stream.getvalue()


def lossless_jpeg(pixels: np.ndarray, *, bits: int = 12, rows_per_restart: int = 0) -> bytes:
    """A lossless JPEG stream (ITU-T T.81 annex H), predicted from the left, all codes of 5 bits."""
    rows, columns = pixels.shape
    scan, coded = b"", ""
    for row, column in np.ndindex(rows, columns):
        anew = row % (rows_per_restart or rows) == 0
        if anew and row and not column:
            scan += _stuffed(coded) + bytes((0xFF, 0xD0 + (row // rows_per_restart - 1) % 8))
            coded = ""
        before = (
            pixels[row, column - 1] if column else 1 << bits - 1 if anew else pixels[row - 1, 0]
        )
        difference = (int(pixels[row, column]) - int(before) + 32768) % 65536 - 32768
        category = abs(difference).bit_length()
        coded += f"{category:05b}"
        if 0 < category < 16:  # below zero, the bits of the number less one (T.81 F.1.2.1)
            value = difference if difference > 0 else difference + 2**category - 1
            coded += f"{value:0{category}b}"
    restarts = (
        struct.pack(">HHH", 0xFFDD, 4, columns * rows_per_restart) if rows_per_restart else b""
    )
    return b"".join(
        [
            struct.pack(">HHHBHHB3B", 0xFFD8, 0xFFC3, 11, bits, rows, columns, 1, 1, 0x11, 0),
            struct.pack(">HHB16B", 0xFFC4, 36, 0, *[0] * 4, 17, *[0] * 11) + bytes(range(17)),
            restarts + struct.pack(">HH6B", 0xFFDA, 8, 1, 1, 0, 1, 0, 0),
            scan + _stuffed(coded) + b"\xff\xd9",
        ]
    )


def _stuffed(bits: str) -> bytes:
    """Coded data, filled up with ones, and a zero behind each byte FF (T.81 F.1.2.3)."""
    whole = bits + "1" * (-len(bits) % 8)
    return int(whole, 2).to_bytes(len(whole) // 8).replace(b"\xff", b"\xff\0")


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


def palette(entries: np.ndarray) -> dict[str, object]:
    """Elements of a film whose values are looked up in a palette of grays."""
    more: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color in ("Red", "Green", "Blue"):
        more[f"{color}PaletteColorLookupTableDescriptor"] = [len(entries), 0, 16]
        more[f"{color}PaletteColorLookupTableData"] = entries.astype("<u2").tobytes()
    return more


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
        film_bytes(across, **palette(np.arange(256) * 257)),
        film_bytes(deep, syntax=SV1, PixelData=encapsulate([lossless_jpeg(deep)]), **twelve),
    ]
    names = ["CT_small", "MR_small_RLE", "JPEG2000", "examples_overlay", "SC_rgb_small_odd_jpeg"]
    names += ["MR_small_jpeg_ls_lossless", "SC_rgb_jpeg_gdcm"]
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
