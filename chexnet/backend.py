"""Keras, loaded without the messages that TensorFlow writes when it starts.

TensorFlow's libraries write to the error stream while they load, before TF_CPP_MIN_LOG_LEVEL can
silence them. So the error stream is held back until they have found the devices. After that the
level hides information and shows warnings and errors.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator

# That oneDNN is on, that there is no GPU driver (303 is "driver library not found"), and which
# instructions the build uses. The first line announces the others.
_HARMLESS = re.compile(
    rb"absl::InitializeLog|oneDNN custom operations are on|Could not find cuda drivers"
    rb"|This TensorFlow binary is optimized|To enable the following instructions"
    rb"|failed call to cuInit.*\(303\)"
)


@contextlib.contextmanager
def without_startup_messages() -> Iterator[None]:
    """Holds back what is written to the error stream, and passes on all but `_HARMLESS`."""
    try:
        stderr = os.dup(2)
    except OSError:  # a process without an error stream
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _HARMLESS.search(line):
                    os.write(2, line)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
with without_startup_messages():
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        # The first look for devices writes too.
        tensorflow.config.list_physical_devices()

__all__ = ["keras"]
