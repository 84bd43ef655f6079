"""imagecodecs as a decoder of pydicom, for lossless JPEG, 12-bit JPEG and JPEG-LS.

It has libjpeg-turbo 3 and CharLS. Of the decoders that pydicom knows, GDCM ends the whole process
at some damaged streams, and pylibjpeg-libjpeg is under the GPL.
"""

import importlib.util

from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSTransferSyntaxes

NAME = "imagecodecs"
# pydicom asks a module of a decoder for this name.
DECODER_DEPENDENCIES = dict.fromkeys(
    (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, *JPEGLSTransferSyntaxes), (NAME,)
)


def is_available(uid: str) -> bool:
    """Whether films of a transfer syntax can be decoded."""
    return uid in DECODER_DEPENDENCIES and importlib.util.find_spec(NAME) is not None


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytes:
    """The values of a compressed frame, color by pixel; pydicom calls this."""
    import imagecodecs

    is_ls = runner.transfer_syntax in JPEGLSTransferSyntaxes
    pixels = (imagecodecs.jpegls_decode if is_ls else imagecodecs.jpeg8_decode)(frame)
    runner.set_option("bits_allocated", 8 * pixels.itemsize)
    runner.set_option("planar_configuration", 0)
    return pixels.tobytes()


for _syntax in DECODER_DEPENDENCIES:
    get_decoder(_syntax).add_plugin(NAME, (__name__, decode_frame.__name__))
