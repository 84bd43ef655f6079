"""What a file of weights may hold: checked in its directories, before Keras opens it.

Keras believes what a file declares: one of a few kilobytes may unpack to, or ask for, more than the
memory. A DenseNet-121 has 7 million weights in 28 MB and a configuration of 0.4 MB, 9 deep.
"""

import io
import json
import math
import re
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import ArrayLike

from chexnet.backend import keras
from chexnet.files import refuse

MOST_BYTES = 2**28  # of all members of a .keras file, and of all arrays of an HDF5 file
_MOST_MEMBERS, _MOST_OBJECTS = 100, 20_000
_LONGEST_CONFIG, _DEEPEST = 4_000_000, 64  # bytes; lists and dicts in each other, groups likewise
_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def check_archive(path: Path) -> None:
    """Raises a ValueError unless a ``.keras`` or ``.weights.h5`` file has a plausible size.

    Args:
        path: of an existing file.

    Raises:
        ValueError: members, arrays or the configuration are too large, too many or nested too
            deep, or data are in another file; without the path.
        OSError, zipfile.BadZipFile: the file cannot be read.
    """
    if not path.name.endswith(".keras"):
        _limit("the file", path.stat().st_size)
        _check_arrays(path)
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > _MOST_MEMBERS:
            raise ValueError(f"{len(members)} members; expected at most {_MOST_MEMBERS}")
        _limit("the archive", sum(member.file_size for member in members))
        for member in members:
            if member.filename.endswith(".json"):
                _check_depth(member.filename, archive.read(member))
            elif member.filename.endswith(".h5"):
                _check_arrays(io.BytesIO(archive.read(member)))


def check_network(path: Path) -> None:
    """Raises a ValueError if the network of a ``.keras`` file has more weights than fit the bound.

    Keras would make them all before it notices that the file does not have them. It builds the
    network without making them (0.5 s) in a stateless scope, which remembers them to be made later;
    by thread, so that they are forgotten with this one.

    Args:
        path: of a file that `check_archive` has passed.

    Raises:
        ValueError: too many weights; without the path. Otherwise the errors of Keras.
    """
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    with ThreadPoolExecutor(1) as thread:
        weights = thread.submit(_count_weights, config).result()
    _limit("the network", 4 * weights)


def _count_weights(config: Mapping[str, object]) -> int:
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object(config, safe_mode=True)
        return sum(math.prod(variable.shape) for variable in model.variables)


def check_finite(source: object, arrays: Mapping[str, Iterable[ArrayLike]]) -> None:
    """Raises a ValueError that names the layers of weights that are NaN or infinite."""
    wrong = [
        name for name, its in arrays.items() if not all(np.isfinite(array).all() for array in its)
    ]
    refuse(source, wrong, "layers with weights that are NaN or infinite")


def _limit(what: str, size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{what} has {size / 1e6:.0f} MB; expected at most {MOST_BYTES / 1e6:.0f}")


def _check_depth(name: str, content: bytes) -> None:
    if len(content) > _LONGEST_CONFIG:
        raise ValueError(f"{name} has {len(content)} bytes; expected at most {_LONGEST_CONFIG}")
    plain = np.frombuffer(_JSON_STRING.sub(b"", content), np.uint8)
    opened, closed = (np.isin(plain, list(brackets)) for brackets in (b"[{", b"]}"))
    deepest = int((opened.astype(int) - closed).cumsum().max(initial=0))
    if deepest > _DEEPEST:
        raise ValueError(f"{name} is nested {deepest} deep; expected at most {_DEEPEST}")


def _check_arrays(file: Path | io.BytesIO) -> None:
    size = objects = 0
    with h5py.File(file, "r") as root:
        pending: list[tuple[h5py.Group, int]] = [(root, 1)]
        while pending:
            group, depth = pending.pop()
            objects += len(group)
            if objects > _MOST_OBJECTS or depth > _DEEPEST:
                raise ValueError(
                    f"more than {_MOST_OBJECTS} arrays and groups, or nested more than {_DEEPEST} "
                    "deep"
                )
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{name}: a link; expected arrays in the file itself")
                found = group[name]
                if isinstance(found, h5py.Group):
                    pending.append((found, depth + 1))
                elif found.external or found.is_virtual:
                    raise ValueError(f"{name}: its data are in another file")
                else:
                    # A chunk is read whole, and may be larger than its array.
                    chunk = math.prod(found.chunks or ()) * found.dtype.itemsize
                    size += max(found.nbytes, chunk)
                    _limit("the file", size)
