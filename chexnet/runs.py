"""The run folder, ``output/<run>/``: everything about one training run, written atomically.

| file | what |
|---|---|
| ``config.json`` | settings, versions, git commit, fingerprint of the data |
| ``images.csv`` | every film of the study: ids, labels, view, sex, age, size, split |
| ``boxes.csv`` | the radiologists' boxes, pixels of the original film |
| ``model.keras``, ``history.csv`` | the best network, and how it came about |
| ``checkpoints/`` | where an interrupted training goes on; gone once all is done |
| ``training.json`` | why it ended, and with which settings |
| ``predictions.csv`` | ``image_id, split, class_name, y_true, y_score`` of validation and test |
| ``maps.npz`` | their class activation maps |
| ``films/`` | the test films, to draw on |
| ``explorer/`` | maps of the test films as uint8, made when they are first looked at |
| ``metrics.json``, ``figures/`` | what the evaluation found |

What a run was made with: data, versions, commit.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from chexnet.files import check_image_id, locked, read_image, read_table, write_atomic

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


FILM_FACTS = ["patient_id", "detailed_class", "view", "sex", "age", "rows", "columns"]
_MADE_BY_A_RUN = (
    *("config.json", "images.csv", "boxes.csv", "model.keras", "history.csv", "tensorboard"),
    *("checkpoints", "training.json"),
    *("predictions.csv", "maps.npz", "films", "explorer", "metrics.json", "figures"),
)
_LONGEST_SIDE = 512  # pixels of a stored film: the original's input size, enough to see an opacity


class Run:
    """One run folder: written by notebooks 03 and 04, read by 04 and 05.

    Attributes:
        folder: where it lies.
    """

    def __init__(self, folder: str | Path) -> None:
        """Opens a run that is there.

        Raises:
            FileNotFoundError: the folder or its ``config.json`` is missing.
        """
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{self.folder}: not a run folder (no config.json); notebook 03 makes one"
            )

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        settings: Mapping[str, object],
        images: pd.DataFrame,
        boxes: pd.DataFrame,
        resume: bool = False,
    ) -> "Run":
        """Starts a run: writes its settings and the tables it is about.

        Args:
            folder: made if missing. What an earlier run left there goes to ``earlier/1``,
                ``earlier/2`` and so on, so that no two runs are ever mixed and none is lost.
            settings: everything needed to repeat the run; JSON values.
            images: one row a film, with ``image_id`` and ``split`` at least.
            boxes: ``image_id, x, y, width, height``, pixels of the original film.
            resume: open the run there instead where it has these settings and this data and was
                interrupted, in its training or before its scores were judged.

        Raises:
            ValueError: a column is missing, or an ``image_id`` stands twice.
            BlockingIOError: another process is training into this folder.
        """
        for name, frame, columns in (
            ("images", images, ["image_id", "split"]),
            ("boxes", boxes, ["image_id", "x", "y", "width", "height"]),
        ):
            missing = [column for column in columns if column not in frame]
            if missing:
                raise ValueError(f"{name} has no column {missing}; it has {list(frame.columns)}")
        twice = images["image_id"][images["image_id"].duplicated()]
        if len(twice):
            raise ValueError(f"images: image_id {twice.iloc[0]} stands more than once")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        fingerprint = data_fingerprint(images, boxes)
        with _held(folder):
            if resume and _unfinished(folder, settings, fingerprint):
                return cls(folder)
            _set_aside(folder)
        config = {
            "settings": dict(settings),
            "data_fingerprint": fingerprint,
            "films": {str(k): int(v) for k, v in images["split"].value_counts().items()},
            "versions": versions(),
            "git_commit": git_commit(),
        }
        _write(folder / "config.json", json.dumps(config, indent=2, allow_nan=False).encode())
        run = cls(folder)
        run.write_table("images.csv", images)
        run.write_table("boxes.csv", boxes)
        return run

    def __repr__(self) -> str:
        """The folder, which says which run this is."""
        return f"Run({str(self.folder)!r})"

    def held(self) -> contextlib.AbstractContextManager:
        """Keeps other processes from training into this run, or putting it aside, meanwhile.

        Raises:
            BlockingIOError: another process is doing so.
        """
        return _held(self.folder)

    @property
    def config(self) -> dict:
        """Settings, versions, git commit and data fingerprint."""
        return json.loads((self.folder / "config.json").read_text())

    @property
    def class_names(self) -> list[str]:
        """The classes of the head, in order."""
        return list(self.config["settings"]["class_names"])

    def chosen_class(self, class_name: str | None) -> str:
        """``class_name``, or the run's first class where it is ``None``.

        Raises:
            ValueError: the run has no such class.
        """
        names = self.class_names
        if class_name is None:
            return names[0]
        if class_name not in names:
            raise ValueError(f"class_name={class_name!r}: allowed are {names}")
        return class_name

    @property
    def images(self) -> pd.DataFrame:
        """Every film of the study, one row each."""
        return self.read_table("images.csv")

    @property
    def boxes(self) -> pd.DataFrame:
        """The radiologists' boxes, one row each, pixels of the original film."""
        return self.read_table("boxes.csv")

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch."""
        return self.read_table("history.csv")

    @property
    def predictions(self) -> pd.DataFrame:
        """Scores of validation and test, one row a film and class, with the films' facts."""
        images = self.images
        facts = [column for column in FILM_FACTS if column in images]
        return self.read_table("predictions.csv").merge(
            images[["image_id", *facts]], on="image_id", validate="many_to_one"
        )

    @property
    def metrics(self) -> dict:
        """Results of the evaluation, without parts whose source files have changed since."""
        content = self._metrics_json()
        made_from = content.pop("made_from", {})
        return {
            part: value
            for part, value in content.items()
            if self._is_unchanged(made_from.get(part, {}))
        }

    def current_metrics(self, part: str) -> dict:
        """One part of `metrics`.

        Args:
            part: ``"classes"`` (scores) or ``"localization"`` (maps).

        Raises:
            ValueError: the run has not been evaluated, or its files have changed since.
        """
        metrics = self.metrics
        if part not in metrics:
            missing = part not in self._metrics_json()
            raise ValueError(
                f"{self.folder / 'metrics.json'}: {part} "
                + (
                    "is missing; run evaluate"
                    if missing
                    else "was made from other scores or maps; run evaluate again"
                )
                + " (notebook 04)"
            )
        return metrics[part]

    def write_metrics(self, parts: Mapping[str, object], made_from: Mapping[str, str]) -> None:
        """Writes parts of ``metrics.json``; other parts stay if they are still current.

        Args:
            parts: by name; JSON values. A NaN, which JSON does not have, becomes null.
            made_from: by file name, the `fingerprint` of each file that they were computed from.
                Take it before reading the files.
        """
        kept = self.metrics
        sources = {part: self._metrics_json()["made_from"][part] for part in kept}
        sources |= {part: dict(made_from) for part in parts}
        self.write_json("metrics.json", {**kept, **_nan_to_none(parts), "made_from": sources})

    def _metrics_json(self) -> dict:
        path = self.folder / "metrics.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def _is_unchanged(self, made_from: Mapping[str, str]) -> bool:
        """Whether all these files are there with these fingerprints; not known is no."""
        return bool(made_from) and all(
            (self.folder / name).is_file() and self.fingerprint(name) == digest
            for name, digest in made_from.items()
        )

    def fingerprint(self, *names: str) -> str:
        """SHA-256 over the named files of the run, for what is made from them to record.

        Args:
            names: files of the run folder, such as ``"predictions.csv"``; their order counts.

        Returns:
            64 hexadecimal digits; they change where a file or a name changes.

        Raises:
            FileNotFoundError: a file is missing.

        Example:
            >>> made_from = Run("output/demo").fingerprint("predictions.csv", "maps.npz")
            >>> len(made_from)
            64
        """
        digest = hashlib.sha256()
        for name in names:
            with self._existing(name).open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{name} {content}\n".encode())
        return digest.hexdigest()

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """The class activation maps of the scored films.

        Returns:
            image ids ``(N,)`` and raw maps float32 ``(N, C, h, w)``: the mean of a map plus the
            head's bias is the logit.
        """
        with np.load(self._existing("maps.npz"), allow_pickle=False) as arrays:
            return arrays["image_id"], arrays["maps"]

    def maps_of(self, image_ids: Sequence[str], what: str) -> np.ndarray:
        """The raw maps of some scored films, float32 ``(N, C, h, w)``, in the order asked for.

        Args:
            image_ids: ``(N,)``.
            what: these films in words, for the error.

        Raises:
            ValueError: a film has no map.
        """
        ids, maps = self.maps()
        rows = pd.Series(np.arange(len(ids)), index=ids).reindex(image_ids)
        if rows.isna().any():
            raise ValueError(
                f"{self.folder / 'maps.npz'}: {rows.isna().sum()} of {len(rows)} {what} films "
                f"have no map, such as {rows.index[rows.isna()][0]}"
            )
        return maps[rows.to_numpy(np.intp)]

    def film(self, image_id: str) -> np.ndarray:
        """A test film to draw on, uint8 ``(H, W)``, long side at most 512 pixels.

        Raises:
            FileNotFoundError: the run holds no such film.
        """
        return read_image(self._existing(f"films/{image_id}.jpg"))

    def read_table(self, name: str) -> pd.DataFrame:
        """Reads a CSV of the run; ids stay text."""
        return read_table(self._existing(name))

    def write_table(self, name: str, frame: pd.DataFrame) -> Path:
        """Writes a CSV into the run."""
        return _write(self.folder / name, frame.to_csv(index=False).encode())

    def write_json(self, name: str, content: Mapping[str, object]) -> Path:
        """Writes JSON into the run; a NaN is an error, for JSON has none."""
        return _write(self.folder / name, json.dumps(content, indent=2, allow_nan=False).encode())

    def write_arrays(self, name: str, **arrays: np.ndarray) -> Path:
        """Writes named arrays as ``.npz``, none of them of objects."""
        pickled = [key for key, array in arrays.items() if np.asarray(array).dtype == object]
        if pickled:
            raise ValueError(f"{name}: arrays {pickled} hold objects, which would be pickled")
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return _write(self.folder / name, buffer.getvalue())

    def write_film(self, image_id: str, pixels: np.ndarray) -> Path:
        """Stores a film uint8 ``(H, W)`` to draw on, at most 512 pixels a side, by a plain name."""
        check_image_id(image_id, self.folder / "films")
        shrink = _LONGEST_SIDE / max(pixels.shape)
        if shrink < 1:
            pixels = cv2.resize(pixels, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        return _write(self.folder / "films" / f"{image_id}.jpg", encoded.tobytes())

    def write_figure(self, name: str, figure: object, **options: object) -> Path:
        """Saves a matplotlib figure under ``figures/``; the suffix of ``name`` is its format."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format=Path(name).suffix.lstrip("."), **options)
        return _write(self.folder / "figures" / name, buffer.getvalue())

    def _existing(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: missing; the run was not finished (notebook 03 writes its files)"
            )
        return path


def _held(folder: Path) -> contextlib.AbstractContextManager:
    message = f"{folder}: another process is training into this run folder"
    return locked(folder / "training.lock", message)


def _unfinished(folder: Path, settings: Mapping[str, object], fingerprint: str) -> bool:
    """Whether the run there is this one, broken off in training or before it was judged."""
    if not (folder / "config.json").is_file():
        return False
    there = json.loads((folder / "config.json").read_text())
    asked = json.loads(json.dumps(dict(settings)))  # tuples become lists, as in the file
    if there["settings"] != asked or there["data_fingerprint"] != fingerprint:
        return False
    unjudged = (folder / "training.json").is_file() and not (folder / "metrics.json").is_file()
    return unjudged or any(folder.glob("checkpoints/*.npz"))


def _set_aside(folder: Path) -> None:
    left = [folder / name for name in _MADE_BY_A_RUN if (folder / name).exists()]
    if left:
        taken = [int(path.name) for path in (folder / "earlier").glob("[0-9]*")]
        place = folder / "earlier" / str(max(taken, default=0) + 1)
        place.mkdir(parents=True)
        for path in left:
            path.replace(place / path.name)


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path


def _nan_to_none(value: Any) -> Any:
    """JSON values with None in place of each float that is not finite."""
    if isinstance(value, Mapping):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
