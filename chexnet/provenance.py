"""What a run was made with: data, versions, commit."""

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import pandas as pd

_DISTRIBUTIONS = (
    "tensorflow",
    "keras",
    "numpy",
    "pandas",
    "pydicom",
    "opencv-python",
    "numba",
    "pyimgaug",
)


def data_fingerprint(images: pd.DataFrame, boxes: pd.DataFrame) -> str:
    """SHA-256 over ids, labels, splits and boxes, whatever the order of their rows."""
    digest = hashlib.sha256()
    for frame in (images, boxes):
        columns = sorted(frame.columns)
        text = frame[columns].astype(str).sort_values(columns).to_csv(index=False)
        digest.update(text.encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of the libraries that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` where it was changed since; None outside git."""
    try:
        answer = subprocess.run(
            [
                "git",
                "-C",
                str(Path(__file__).parent),
                "describe",
                "--always",
                "--dirty",
                "--abbrev=40",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
