"""PNG and JPG pictures of films, as data sets and hospitals export them.

They say nothing of view, sex or age. What rotates them (EXIF) is not followed: boxes are in stored
pixels.
"""

import contextlib
import io
import struct
from typing import Any

import cv2
import numpy as np
from PIL import Image

from chexnet.dicom.header import FilmError, check_size, library_errors
from chexnet.dicom.jpeg import check_jpeg, read_jpeg_frame
from chexnet.files import PNG, SOI, decode_jpeg

_JPEG = SOI + b"\xff"  # and the first byte of another marker (ITU-T T.81 B.1.1.3)
_PNG_COLORS = {0: "gray", 2: "color", 3: "palette", 4: "gray and alpha", 6: "color and alpha"}
_PNG_SAMPLES = {0: 1, 2: 3, 3: 4, 4: 4, 6: 4}  # of a pixel as OpenCV decodes it
_JPEG_COLORS = {1: "gray", 3: "color", 4: "CMYK"}
_ORIENTATION = 0x0112  # EXIF 2.3, 4.6.4
# Of a pixel's 255 shades, between its strongest and its weakest color. A tinted scan has less than
# 40 on average; a photograph or a color map has more in most pixels.
_STRONG_COLOR = 40
_MANY = 0.1  # of the pixels; a marker or a line of text in color has fewer


# Pixels, how they were stored, and remarks: what is in the `Film` of a picture.
_Picture = tuple[np.ndarray, dict[str, Any], list[str]]


def looks_like_picture(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a PNG or JPG."""
    return head.startswith((_JPEG, PNG))


def read_picture(data: bytes) -> _Picture:
    """Decodes a PNG or JPG file.

    Color becomes gray (ITU-R BT.601). 16 bits are spread from the lowest to the highest value, as
    those of a DICOM film without window: some exports use 0 to 4,095 of them, others all.
    Transparent pixels become black.

    Returns:
        uint8 (H, W), 0 = black; ``Film.original``; and ``Film.remarks``, without that on one shade.

    Raises:
        FilmError: it is damaged, truncated, too large, or of a kind that cannot be decoded.
    """
    pixels, original, remarks = _read_png(data) if data.startswith(PNG) else _read_jpeg(data)
    with contextlib.suppress(Exception):  # EXIF that Pillow cannot read rotates nothing
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
        if isinstance(orientation, int) and 2 <= orientation <= 8:
            remarks.append(f"EXIF orientation {orientation} not applied")
    return pixels, original, remarks


def _stored(kind: str, colors: str, bits: int, steps: list[str]) -> dict[str, Any]:
    known = {"transfer_syntax": kind, "photometric": colors, "bits": bits}
    return known | {"signed": False, "frames": 1, "steps": tuple(steps)}


def _read_png(data: bytes) -> _Picture:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise FilmError("truncated or damaged: its PNG has no header")
    columns, rows, bits, kind = struct.unpack(">IIBB", data[16:26])
    check_size(rows, columns, _PNG_SAMPLES.get(kind, 4))
    if b"IEND" not in data:
        raise FilmError("truncated: its PNG has no end")
    pixels = None
    with contextlib.suppress(cv2.error):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise FilmError("truncated or damaged: its PNG cannot be decoded")
    steps = []
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        # OpenCV decodes gray and alpha as color and alpha.
        pixels, alpha = pixels[..., : 1 if kind == 4 else 3], pixels[..., 3:]
        opaque = 2 ** (8 * pixels.itemsize) - 1
        if alpha.min() < opaque:
            pixels = (pixels * (alpha / opaque) + 0.5).astype(pixels.dtype)
            steps.append("transparent pixels made black")
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1] if pixels.shape[2] == 3 else pixels[..., 0]
    gray, made, remarks = color_to_gray(pixels)
    steps += made
    if gray.dtype == np.uint16:
        lowest, highest = int(gray.min()), int(gray.max())
        shades = (np.arange(65536) - lowest) / max(highest - lowest, 1) * 255
        gray = np.rint(shades.clip(0, 255)).astype(np.uint8)[gray]
        steps.append(f"spread from its lowest to its highest value ({lowest} to {highest})")
    return gray, _stored("PNG", _PNG_COLORS.get(kind, "color"), bits, steps), remarks


def _read_jpeg(data: bytes) -> _Picture:
    kind, bits, rows, columns, samples = read_jpeg_frame(data)
    check_size(rows, columns, 1)  # it is decoded to gray
    if bits != 8 or kind not in ("baseline", "extended", "progressive"):
        raise FilmError(f"a {kind} JPEG of {bits} bits; expected 8, baseline or progressive")
    check_jpeg(data, rows, columns)
    with library_errors("damaged: its JPEG cannot be decoded"):
        pixels = decode_jpeg(data)
    steps: list[str] = []
    remarks: list[str] = []
    if samples > 1:
        small = cv2.imdecode(
            np.frombuffer(data, np.uint8),
            cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION,
        )
        if small is not None:
            _, steps, remarks = color_to_gray(small[..., ::-1])
    colors = _JPEG_COLORS.get(samples, "color")
    return pixels, _stored(f"JPEG {kind}", colors, bits, steps), remarks


def color_to_gray(pixels: np.ndarray) -> tuple[np.ndarray, list[str], list[str]]:
    """Color to gray (ITU-R BT.601).

    Args:
        pixels: RGB (H, W, 3), or gray (H, W), of 8 or 16 bits.

    Returns:
        (H, W) of the same type; what was done; and a remark if it has the colors of a photograph.
    """
    if pixels.ndim == 2:
        return pixels, [], []
    chroma = pixels.max(axis=2) - pixels.min(axis=2)
    if not chroma.any():
        return np.ascontiguousarray(pixels[..., 0]), ["color made gray"], []
    gray = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    white = 2 ** (8 * pixels.itemsize) - 1
    share = (chroma > _STRONG_COLOR / 255 * white).mean()
    strong = [f"{share:.0%} of its pixels have strong colors: is it a radiograph?"]
    return gray, ["color made gray"], strong if share > _MANY else []
