"""The run folder, ``output/<run>/``: everything about one training run.

| file | what |
|---|---|
| ``config.json`` | random id of the run, settings, versions, git commit, fingerprints of the data |
| ``images.csv`` | every film of the study: ids, labels, view, sex, age, size, split |
| ``boxes.csv`` | reference boxes, pixels of the original film |
| ``model.keras``, ``history.csv`` | the best network; loss and AUROC by epoch |
| ``checkpoints/`` | state of an interrupted training; removed at its end |
| ``training.json`` | why the training ended, and its settings |
| ``predictions.csv`` | ``image_id, split, class_name, y_true, y_score`` of validation and test |
| ``maps.npz`` | their class activation maps, by method |
| ``features.npz`` | what `chexnet.evaluation.fit_familiarity` returned |
| ``preparation.json`` | image size and CLAHE settings |
| ``scoring.json`` | what scores and maps were made from |
| ``films/`` | the test films, for figures and the explorer |
| ``flags.csv`` | a reader's flags and notes on films |
| ``metrics.json``, ``figures/`` | results of the evaluation |
| ``notebooks/`` | the executed notebooks |
| ``predictions/`` | scores and overlays of new films, from notebook 06 |
| ``exported/`` | the network for other runtimes, by its fingerprint (`chexnet.export.open_run`) |
| ``earlier/`` | previous runs of this folder, numbered |

Each file is written whole or not at all. One process at a time changes a run folder; a `Run` whose
folder has got another run since it was opened writes nothing more.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import platform
import secrets
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
from filelock import FileLock

from chexnet.files import (
    check_image_id,
    flat,
    locked,
    parse_json,
    read_image,
    read_json,
    read_table,
    refuse,
    remove_unfinished,
    shorten,
    shrink,
    write_atomic,
)
from chexnet.labels import boxes_of_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Run", "data_fingerprint", "set_aside"]

# Whose versions a result depends on.
_DISTRIBUTIONS = ("tensorflow", "keras", "numpy", "pandas", "pydicom", "opencv-python", "pyimgaug")
_FILM_FACTS = ["patient_id", "detailed_class", "view", "sex", "age", "rows", "columns"]
_SCORES = ("predictions.csv", "maps.npz", "features.npz", "preparation.json", "scoring.json")
_RESULTS = ("metrics.json", "figures")  # made from scores
_MADE_BY_A_RUN = (
    *("images.csv", "boxes.csv", "model.keras", "history.csv", "tensorboard", "checkpoints"),
    *("training.json", *_SCORES, "films", *_RESULTS, "notebooks", "predictions", "exported"),
    "flags.csv",
    "config.json",  # the last to be moved: see _set_aside
)
_SOURCES = ("images.csv", "boxes.csv", "predictions.csv", "maps.npz")  # of metrics.json
_BOXES = ("image_id", "x", "y", "width", "height")
_PREDICTIONS = ("image_id", "split", "class_name", "y_true", "y_score")
_MAPS = "maps/"  # before the method, in the names of the arrays of maps.npz
_LOCK = "training.lock"
_PATIENCE = 10.0  # seconds to wait for another process that is writing a file
# A training or scoring does not wait for another one, but for the writing of a file.
_ONE_WRITE = 1.0
_FINEST_MAP = 64  # cells along a side of the largest map of `chexnet.cam.METHODS`, at 512 pixels
_MANY_BYTES = 2**28  # of an array file other than the maps: features.npz has 5 MB
_LONGEST_SIDE = 1024  # pixels of a stored film: RSNA's own size


def data_fingerprint(images: pd.DataFrame, boxes: pd.DataFrame) -> str:
    """SHA-256 over ids, labels, splits and boxes, in hexadecimal, whatever the order of rows.

    Example:
        >>> from chexnet.runs import Run, data_fingerprint
        >>> run = Run("output/demo")
        >>> data_fingerprint(run.images, run.boxes) == data_fingerprint(run.images[::-1], run.boxes)
        True
    """
    digest = hashlib.sha256()
    for frame in (images, boxes):
        columns = sorted(frame.columns)
        text = frame[columns].astype(str).sort_values(columns).to_csv(index=False)
        digest.update(text.encode())
    return digest.hexdigest()


def set_aside(folder: str | Path) -> None:
    """Moves the files of a run to ``earlier/1``, ``earlier/2`` and so on, so that it starts anew.

    Raises:
        BlockingIOError: another process is training in this folder.

    Example:
        >>> from chexnet.runs import set_aside
        >>> set_aside("output/none")
    """
    folder = Path(folder)
    if folder.is_dir():
        with locked(folder / _LOCK, _in_use(folder), wait=_ONE_WRITE):
            _set_run_aside(folder)


class Run:
    """One run folder: notebook 03 starts it, 04 to 06 read it and add results.

    Attributes:
        folder: its path.
        origin: what `Run.create` did, in words: started a new run, and why not the one that was
            there, or resumed that one.

    Example:
        >>> from chexnet.runs import Run
        >>> run = Run("output/demo")
        >>> run.class_names
        ['Pneumonia']
        >>> sorted(run.predictions["split"].unique())
        ['test', 'val']
    """

    def __init__(self, folder: str | Path) -> None:
        """Opens an existing run.

        Raises:
            FileNotFoundError: the folder or its ``config.json`` is missing.
            ValueError: ``config.json`` is damaged.
        """
        self.folder = Path(folder)
        self.origin = "opened"
        path = self.folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder}: not a run folder (no config.json); notebook 03 makes one"
            )
        self._lock = FileLock(self.folder / _LOCK)
        self._opened = path.read_bytes()
        if not isinstance(read_json(path).get("settings"), dict):
            raise ValueError(f"{path}: no settings; expected the config.json of a run")

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        settings: Mapping[str, object],
        images: pd.DataFrame,
        boxes: pd.DataFrame,
        pixels: str | None = None,
        resume: bool = False,
    ) -> "Run":
        """Starts a run: writes its settings and tables.

        Args:
            folder: created if missing. The files of a previous run there are moved to
                ``earlier/1``, ``earlier/2`` and so on.
            settings: everything needed to repeat the run; JSON values.
            images: one row a film, with ``image_id`` and ``split`` at least.
            boxes: ``image_id, x, y, width, height``, pixels of the original film; with several
                classes ``class_name`` too.
            pixels: `chexnet.generator.ImageStore.fingerprint` of the films, so that a run is not
                resumed or scored with other ones.
            resume: open the existing run instead, if it has the same settings, data and pixels and
                has been trained, or was interrupted in training. `origin` says which.

        Raises:
            ValueError: a column is missing, an ``image_id`` is invalid or a duplicate, or
                ``config.json`` would not be JSON.
            BlockingIOError: another process is training in this folder.
        """
        _check_images("images", images)
        missing = [column for column in _BOXES if column not in boxes]
        refuse("boxes", missing, "missing columns", ", ".join(_BOXES))
        folder = Path(folder)
        config = {
            "run_id": secrets.token_hex(8),
            "settings": dict(settings),
            "data_fingerprint": data_fingerprint(images, boxes),
            "pixels": pixels,
            "films": images["split"].value_counts().to_dict(),
            "versions": _versions(),
            "git_commit": _git_commit(),
        }
        tables = {"images.csv": _csv(images), "boxes.csv": _csv(boxes)}
        written = tables | {"config.json": _json(config)}  # last: with it, the run is complete
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / _LOCK, _in_use(folder), wait=_ONE_WRITE):
            reason = _why_not_resumed(folder, config) if resume else "resume=False"
            origin = "resumed"
            if reason is not None:
                place = _set_run_aside(folder)
                origin = "new run"
                if place is not None:
                    origin += f"; the previous one is in {place} ({reason})"
                for name, content in written.items():
                    write_atomic(folder / name, content)
            run = cls(folder)
        run.origin = origin
        return run

    def __repr__(self) -> str:
        """The folder, which says which run this is."""
        return f"Run({str(self.folder)!r})"

    @contextlib.contextmanager
    def lock(self, *, wait: float = _ONE_WRITE) -> Iterator[None]:
        """Keeps others from changing the folder in a ``with`` block.

        Args:
            wait: seconds to wait for another process or thread to finish.

        Raises:
            BlockingIOError: another process or thread is changing it.
            FileNotFoundError: the folder is gone.
            ValueError: the folder has another run now.
        """
        self._check_still_there()  # or the lock would make the folder again
        with locked(self._lock, _in_use(self.folder), wait=wait):
            self._check_still_there()
            try:
                yield
            except FileNotFoundError:
                self._check_still_there()  # says so if the folder went in the meantime
                raise

    def _check_still_there(self) -> None:
        path = self.folder / "config.json"
        try:
            there = path.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.folder}: this run was removed or moved; nothing more is written into it"
            ) from None
        if there != self._opened:
            raise ValueError(
                f"{path}: another run was started here since this one was opened (the previous one "
                f"is in earlier/); open it with Run({str(self.folder)!r})"
            )

    @property
    def config(self) -> dict:
        """Settings, versions, git commit and fingerprints, as they were when it was opened."""
        return parse_json(self._opened)

    @property
    def class_names(self) -> list[str]:
        """The classes of the head, in order."""
        names = self.config["settings"].get("class_names")
        plain = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not plain or not names or len(set(names)) < len(names):
            raise ValueError(
                f"{self.folder / 'config.json'}: class_names={shorten(names)}; expected a list of "
                "different names"
            )
        return names

    def chosen_class(self, class_name: str | None) -> str:
        """``class_name``, or the run's first class where it is ``None``.

        Raises:
            ValueError: the run has no such class.
        """
        names = self.class_names
        if class_name is None:
            return names[0]
        if class_name not in names:
            raise ValueError(f"class_name={class_name!r}: expected one of {names}")
        return class_name

    @property
    def images(self) -> pd.DataFrame:
        """Every film of the study, one row each.

        Raises:
            ValueError: a column is missing, or an ``image_id`` is invalid or a duplicate.
        """
        images = self.read_table("images.csv")
        _check_images(self.folder / "images.csv", images)
        return images

    @property
    def boxes(self) -> pd.DataFrame:
        """Reference boxes of all classes, one row each, pixels of the original film."""
        return self.read_table("boxes.csv")

    def boxes_of(self, class_name: str | None = None) -> pd.DataFrame:
        """The `boxes` of one class; ``None`` is the run's first. May be empty."""
        return boxes_of_class(self.boxes, self.chosen_class(class_name), self.class_names)

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch."""
        return self.read_table("history.csv")

    @property
    def predictions(self) -> pd.DataFrame:
        """Scores of validation and test, one row a film and class, with the films' metadata.

        Raises:
            ValueError: ``predictions.csv`` has another film, class, split or label than
                ``images.csv`` and ``config.json``, a row twice, or a score outside 0 to 1.
        """
        images, table = self.images, self.read_table("predictions.csv")
        _check_predictions(self.folder / "predictions.csv", table, images, self.class_names)
        facts = [column for column in _FILM_FACTS if column in images]
        return table.merge(images[["image_id", *facts]], on="image_id", validate="many_to_one")

    def scored_films(self, class_name: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The rows of `predictions` of one class: of the validation films, and of the test films.

        Films whose label is missing are left out. A film without ``patient_id`` counts as a patient
        of its own: it gets its ``image_id``.

        Raises:
            ValueError: the class is unknown or has no test film with a label.
        """
        name = self.chosen_class(class_name)
        films = self.predictions.query("class_name == @name").dropna(subset="y_true")
        ids = films["image_id"]
        patients = films.get("patient_id", ids).fillna(ids)
        films = films.assign(patient_id=patients, y_true=films["y_true"].astype(int))
        val, test = (
            films[films["split"] == split].reset_index(drop=True) for split in ("val", "test")
        )
        if test.empty:
            raise ValueError(
                f"{self.folder / 'predictions.csv'}: no test film with a label of {name!r}"
            )
        return val, test

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
        """One part of `metrics`, by class: ``"classes"`` (scores) or ``"localization"`` (maps).

        Raises:
            ValueError: the run has not been evaluated, or its files have changed since.
        """
        metrics = self.metrics
        if part not in metrics:
            stale = part in self._metrics_json()
            reason = "was made from other scores or maps" if stale else "is missing"
            raise ValueError(
                f"{self.folder / 'metrics.json'}: {part} {reason}; run evaluate (notebook 04)"
            )
        return metrics[part]

    def write_metrics(self, parts: Mapping[str, object], made_from: Mapping[str, str]) -> None:
        """Writes parts of ``metrics.json``; other parts stay if they are still current.

        Args:
            parts: by name; JSON values. A NaN, which JSON does not have, becomes null.
            made_from: by file name, the `fingerprint` of each file that they were computed from.
                Take it before reading the files.
        """
        with self.lock(wait=_PATIENCE):  # or a part that another process writes now would be lost
            kept = self.metrics
            sources = {part: self._metrics_json()["made_from"][part] for part in kept}
            sources |= {part: dict(made_from) for part in parts}
            self.write_json("metrics.json", {**kept, **_nan_to_none(parts), "made_from": sources})

    def _metrics_json(self) -> dict:
        path = self.folder / "metrics.json"
        return read_json(path) if path.is_file() else {}

    def _is_unchanged(self, made_from: object) -> bool:
        """Whether all these files are there with these fingerprints; not known is no."""
        return (
            isinstance(made_from, dict)
            and bool(made_from)
            and set(made_from) <= set(_SOURCES)
            and self.has_files(made_from)
        )

    def has_files(self, fingerprints: Mapping[str, str]) -> bool:
        """Whether all files of these names are there with these `fingerprint` values."""
        return all(
            (self.folder / name).is_file() and self.fingerprint(name) == digest
            for name, digest in fingerprints.items()
        )

    def fingerprint(self, name: str) -> str:
        """SHA-256 of a file of the run, recorded by files that are made from it."""
        return _fingerprint(self._existing(name).read_bytes())

    @property
    def map_methods(self) -> list[str]:
        """The methods whose maps are stored; ``"CAM"`` first."""
        with self._open_maps() as arrays:
            names = [name.removeprefix(_MAPS) for name in arrays.files if name.startswith(_MAPS)]
        return sorted(names, key=lambda name: name != "CAM")

    def maps(self, method: str = "CAM") -> tuple[np.ndarray, np.ndarray]:
        """The class activation maps of the scored films, by one of `map_methods`.

        Returns:
            image ids ``(N,)`` and raw maps float32 ``(N, C, h, w)``. For ``"CAM"`` the mean of a
            map plus the head's bias is the logit.

        Raises:
            FileNotFoundError: there are no maps.
            ValueError: none of this method, or they do not belong to ``predictions.csv``.
        """
        with self._open_maps() as arrays:
            if _MAPS + method not in arrays:
                raise ValueError(
                    f"{self.folder / 'maps.npz'}: no maps of method={method!r}, expected one of "
                    f"{self.map_methods}; record_scores(..., methods=[...]) stores others"
                )
            ids, maps = arrays["image_id"], arrays[_MAPS + method]
        if ids.dtype.kind != "U" or maps.dtype.kind != "f" or maps.ndim != 4 or maps.shape[:2] != (
            len(ids), len(self.class_names),
        ):  # fmt: skip
            raise ValueError(
                f"{self.folder / 'maps.npz'}: image_id {ids.dtype} {ids.shape}, maps {maps.dtype} "
                f"{maps.shape}; expected text (N,) and float (N, {len(self.class_names)}, h, w)"
            )
        return ids, maps

    def maps_of(self, image_ids: Sequence[str], what: str, method: str = "CAM") -> np.ndarray:
        """The `maps` of some scored films ``(N,)``, in their order, float32 ``(N, C, h, w)``.

        Raises:
            ValueError: a film has no map (``what`` are these films, in words); or as `maps`.
        """
        ids, maps = self.maps(method)
        rows = pd.Series(np.arange(len(ids)), index=ids).reindex(image_ids)
        if rows.isna().any():
            raise ValueError(
                f"{self.folder / 'maps.npz'}: {rows.isna().sum()} of {len(rows)} {what} films "
                f"have no map, such as {rows.index[rows.isna()][0]}"
            )
        return maps[rows.to_numpy(np.intp)]

    def film(self, image_id: str) -> np.ndarray:
        """A test film, uint8 ``(H, W)``, long side at most 1,024 pixels."""
        return read_image(self.film_path(image_id))

    def film_path(self, image_id: str) -> Path:
        """The JPG of a test film."""
        return self._existing(f"films/{check_image_id(image_id, self.folder / 'films')}.jpg")

    def read_table(self, name: str) -> pd.DataFrame:
        """Reads a CSV of the run; ids stay text."""
        return read_table(self._existing(name))

    def write_table(self, name: str, frame: pd.DataFrame) -> Path:
        """Writes a CSV into the run."""
        return self._write(name, _csv(frame))

    def remove_unfinished(self) -> None:
        """Removes what killed processes left half written; the caller has the `lock`."""
        _remove_unfinished(self.folder)

    def set_results_aside(self) -> None:
        """Moves scores, maps and what was made from them to ``earlier/``, before they change."""
        with self.lock(wait=_PATIENCE):
            _set_aside(self.folder, (*_SCORES, *_RESULTS))

    def write_scores(
        self,
        predictions: pd.DataFrame,
        image_ids: Sequence[str],
        maps: Mapping[str, np.ndarray],
        *,
        bias: np.ndarray,
    ) -> None:
        """Writes ``maps.npz`` and ``predictions.csv``, which belong together.

        Earlier ones, and what was made from them, are moved to ``earlier/``. The maps record the
        fingerprint of the predictions. If the process is killed between the two files, `maps`
        refuses the mix.

        Args:
            predictions: ``image_id, split, class_name, y_true, y_score``, one row a film and class.
            image_ids: ``(N,)``, of the maps.
            maps: by method, raw maps float32 ``(N, C, h, w)``.
            bias: of the head, float32 ``(C,)``.

        Raises:
            ValueError: the predictions are not those of this run's films (`predictions`); nothing
                was written or moved then.
        """
        path = self.folder / "predictions.csv"
        _check_predictions(path, predictions, self.images, self.class_names)
        table = _csv(predictions)
        with self.lock(wait=_PATIENCE):
            self.set_results_aside()
            self.write_arrays(
                "maps.npz",
                image_id=np.asarray(image_ids, str),
                bias=bias,
                made_from=np.array(_fingerprint(table)),
                **{_MAPS + method: its_maps for method, its_maps in maps.items()},
            )
            self._write("predictions.csv", table)

    def read_json(self, name: str) -> dict:
        """Reads JSON of the run."""
        return read_json(self._existing(name))

    def write_json(self, name: str, content: Mapping[str, object]) -> Path:
        """Writes JSON into the run; a NaN, which JSON does not have, is an error."""
        return self._write(name, _json(content))

    def write_arrays(self, name: str, **arrays: np.ndarray) -> Path:
        """Writes named arrays as ``.npz``; an array of objects is an error."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return self._write(name, buffer.getvalue())

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Reads what `write_arrays` wrote, at most 256 MB."""
        with _open_arrays(self._existing(name), most=_MANY_BYTES) as arrays:
            return dict(arrays)

    def write_film(self, image_id: str, pixels: np.ndarray) -> Path:
        """Stores a film uint8 ``(H, W)``, shrunk to at most 1,024 pixels a side."""
        check_image_id(image_id, self.folder / "films")
        pixels = shrink(pixels, _LONGEST_SIDE)
        encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        return self._write(f"films/{image_id}.jpg", encoded.tobytes())

    def write_figure(self, name: str, figure: "Figure", **options: Any) -> Path:
        """Saves a matplotlib figure under ``figures/``; the suffix of ``name`` is its format."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format=Path(name).suffix.lstrip("."), **options)
        return self._write(f"figures/{name}", buffer.getvalue())

    def _write(self, name: str, content: bytes) -> Path:
        path = self._path(name)
        with self.lock(wait=_PATIENCE):
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, content)
        return path

    @contextlib.contextmanager
    def _open_maps(self) -> Iterator[np.lib.npyio.NpzFile]:
        path, films = self._existing("maps.npz"), len(self.images)
        largest = 4 * films * len(self.class_names) * _FINEST_MAP**2
        with _open_arrays(path, most=2**20 + 1024 * films, most_of_maps=largest) as arrays:
            made_from = arrays.get("made_from", None)
            if str(made_from) != self.fingerprint("predictions.csv") or "image_id" not in arrays:
                raise ValueError(
                    f"{path}: made with other scores than predictions.csv; score the run again "
                    "(notebook 03, record_scores)"
                )
            yield arrays

    def _path(self, name: str) -> Path:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name}: expected a file inside {self.folder}")
        return self.folder / name

    def _existing(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: missing; the run is not finished (notebook 03 writes its files)"
            )
        return path


def _fingerprint(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` if it was changed since; None outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        answer = subprocess.run(
            [*command, "--abbrev=40"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _in_use(folder: Path) -> str:
    return f"{folder}: another process is training in this run folder or scoring it"


def _why_not_resumed(folder: Path, config: Mapping[str, object]) -> str | None:
    """Why a run that is to be resumed is not the one in this folder; None if it is."""
    if not (folder / "config.json").is_file():
        return "it has no config.json"
    try:
        there = Run(folder).config
    except ValueError as error:
        return str(error)
    asked = json.loads(_json(config))
    before, now = there["settings"], asked["settings"]
    if before != now:
        before, now = flat(before), flat(now)
        names = [name for name in before | now if before.get(name) != now.get(name)]
        words = ", ".join(f"{name} was {before.get(name)}" for name in names)
        return shorten(f"other settings: {words}")
    if there.get("data_fingerprint") != asked["data_fingerprint"]:
        return "other films, labels, splits or boxes"
    if there.get("pixels") != asked["pixels"]:
        return (
            "other pixels of the films" if there.get("pixels") else "no record of the films' pixels"
        )
    if (folder / "training.json").is_file() or any(folder.glob("checkpoints/*.npz")):
        return None
    return "no epoch was completed"


def _remove_unfinished(folder: Path) -> None:
    for part in (".", "films", "figures", "checkpoints"):
        remove_unfinished(folder / part)


def _set_run_aside(folder: Path) -> Path | None:
    """Moves a whole run to the next ``earlier/<n>``, without half-written files."""
    _remove_unfinished(folder)
    return _set_aside(folder, _MADE_BY_A_RUN)


def _set_aside(folder: Path, names: Iterable[str]) -> Path | None:
    """Moves files of a run to the next ``earlier/<n>``, and returns this folder.

    Where only results are moved, copies of the tables and ``config.json`` go with them. The latter
    always comes last: if the process is killed before, the next call moves the rest into the same
    folder.
    """
    left = [folder / name for name in names if (folder / name).exists()]
    if not left:
        return None
    places = [path for path in (folder / "earlier").glob("*") if path.name.isdecimal()]
    last = max(places, key=lambda path: int(path.name), default=folder / "earlier" / "0")
    complete = not last.is_dir() or (last / "config.json").exists()
    if complete or any((last / path.name).exists() for path in left):
        last = last.with_name(str(int(last.name) + 1))
        last.mkdir(parents=True)
    for path in left:
        path.replace(last / path.name)
    for name in ("images.csv", "boxes.csv", "config.json"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, last / name)
    return last


def _check_images(source: object, images: pd.DataFrame) -> None:
    """Refuses a table of films with a column missing, or an id that is invalid or a duplicate."""
    missing = [column for column in ("image_id", "split") if column not in images]
    refuse(source, missing, "missing columns", "image_id, split")
    ids = images["image_id"]
    refuse(source, ids[ids.duplicated()], "duplicate image_ids")
    for image_id in ids:
        check_image_id(image_id, source)


def _check_predictions(
    path: Path, table: pd.DataFrame, images: pd.DataFrame, class_names: list[str]
) -> None:
    """Refuses scores that are not one number in [0, 1] for each scored film and class of a run."""
    refuse(path, set(_PREDICTIONS) - set(table), "missing columns", ", ".join(_PREDICTIONS))
    ids = table["image_id"]
    refuse(path, ids[~ids.isin(images["image_id"])], "image_ids that are not in images.csv")
    names = table["class_name"]
    refuse(path, names[~names.isin(class_names)], "unknown classes", ", ".join(class_names))
    refuse(path, ids[table.duplicated(["image_id", "class_name"])], "films with two scores")
    films = images.set_index("image_id")
    split = films["split"].reindex(ids).to_numpy()
    other = (table["split"] != split) | ~table["split"].isin(["val", "test"])
    refuse(path, ids[other], "films with another split than in images.csv", "val or test")
    score = pd.to_numeric(table["y_score"], errors="coerce")
    rows = table[~score.between(0, 1)]
    wrong = [
        f"{image_id} ({score})" for image_id, score in rows[["image_id", "y_score"]].to_numpy()
    ]
    refuse(path, wrong, "scores that are no numbers from 0 to 1")
    for name, rows in table.groupby("class_name"):
        label = pd.to_numeric(rows["y_true"], errors="coerce")
        impossible = rows["y_true"].notna() & ~label.isin([0, 1])
        refuse(
            path, rows.loc[impossible, "image_id"], f"films with another label of {name}", "0, 1"
        )
        if name in images:
            known = films[name].reindex(rows["image_id"]).astype(float).to_numpy()
            differ = label.fillna(-1).to_numpy(float) != np.nan_to_num(known, nan=-1)
            refuse(
                path, rows.loc[differ, "image_id"],
                f"films with another label of {name} than in images.csv",
            )  # fmt: skip


@contextlib.contextmanager
def _open_arrays(
    path: Path, *, most: int, most_of_maps: int | None = None
) -> Iterator[np.lib.npyio.NpzFile]:
    """Opens an ``.npz`` file whose arrays have at most ``most`` bytes; maps may have more.

    Damaged ones are a ValueError with the file's name, inside the ``with`` block too.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                is_map = most_of_maps is not None and member.filename.startswith(_MAPS)
                allowed = (most_of_maps or 0) + 2**10 if is_map else most
                if member.file_size > allowed:
                    raise ValueError(
                        f"{member.filename} unpacks to {member.file_size / 1e6:.0f} MB; expected "
                        f"at most {allowed / 1e6:.1f}"
                    )
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path}: damaged ({shorten(error)})") from error
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: damaged ({shorten(error)})") from error


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, indent=2, allow_nan=False, default=_plain).encode()


def _plain(value: object) -> object:
    """A NumPy number as Python's, a path as text; other things do not belong into JSON."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise ValueError(f"{value!r}: a {type(value).__name__}; expected a value that JSON has")


def _nan_to_none(content: Mapping[str, object]) -> dict:
    """JSON values with None in place of each float that is not finite."""
    return json.loads(json.dumps(content, default=_plain), parse_constant=lambda _: None)
