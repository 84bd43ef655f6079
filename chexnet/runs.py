"""The run folder, ``output/<run>/``: everything about one training run.

| file | what |
|---|---|
| ``config.json`` | settings, versions, git commit, fingerprint of the data |
| ``images.csv`` | every film of the study: ids, labels, view, sex, age, size, split |
| ``boxes.csv`` | reference boxes, pixels of the original film |
| ``model.keras``, ``history.csv`` | the best network; loss and AUROC by epoch |
| ``checkpoints/`` | state of an interrupted training; removed at its end |
| ``training.json`` | why the training ended, and its settings |
| ``predictions.csv`` | ``image_id, split, class_name, y_true, y_score`` of validation and test |
| ``maps.npz`` | their class activation maps, by method |
| ``features.npz`` | what `chexnet.evaluation.fit_familiarity` returned |
| ``preparation.json`` | image size and CLAHE settings |
| ``films/`` | the test films, for figures |
| ``metrics.json``, ``figures/`` | results of the evaluation |
| ``notebooks/`` | the executed notebooks |
| ``earlier/`` | previous runs of this folder, numbered |

Each file is written whole or not at all.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd

from chexnet.files import check_image_id, locked, read_image, read_table, refuse, write_atomic
from chexnet.labels import boxes_of_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Run", "data_fingerprint"]

# Whose versions a result depends on.
_DISTRIBUTIONS = ("tensorflow", "keras", "numpy", "pandas", "pydicom", "opencv-python", "pyimgaug")
_FILM_FACTS = ["patient_id", "detailed_class", "view", "sex", "age", "rows", "columns"]
_MADE_BY_A_RUN = (
    *("config.json", "images.csv", "boxes.csv", "model.keras", "history.csv", "tensorboard"),
    *("checkpoints", "training.json", "predictions.csv", "maps.npz", "films"),
    *("features.npz", "preparation.json", "metrics.json", "figures", "notebooks", "predictions"),
)
_LONGEST_SIDE = 512  # pixels of a stored film: the original's input size, enough to see an opacity


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


class Run:
    """One run folder: written by notebooks 03 and 04, read by 04 and 05.

    Attributes:
        folder: its path.

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
        """Starts a run: writes its settings and tables.

        Args:
            folder: created if missing. The files of a previous run there are moved to
                ``earlier/1``, ``earlier/2`` and so on.
            settings: everything needed to repeat the run; JSON values.
            images: one row a film, with ``image_id`` and ``split`` at least.
            boxes: ``image_id, x, y, width, height``, pixels of the original film; with several
                classes ``class_name`` too.
            resume: open the existing run instead, if it has the same settings and data and was
                interrupted during training or before its evaluation.

        Raises:
            ValueError: a column is missing, or an ``image_id`` is a duplicate.
            BlockingIOError: another process is training in this folder.
        """
        for name, frame, columns in (
            ("images", images, ["image_id", "split"]),
            ("boxes", boxes, ["image_id", "x", "y", "width", "height"]),
        ):
            missing = [column for column in columns if column not in frame]
            if missing:
                raise ValueError(f"{name} has no column {missing}; it has {list(frame.columns)}")
        image_ids = images["image_id"]
        refuse("images", image_ids[image_ids.duplicated()], "duplicate image_ids")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "settings": dict(settings),
            "data_fingerprint": data_fingerprint(images, boxes),
            "films": images["split"].value_counts().to_dict(),
            "versions": _versions(),
            "git_commit": _git_commit(),
        }
        with _lock(folder):
            if resume and _can_resume(folder, config):
                return cls(folder)
            _set_aside(folder)
            _write(folder / "images.csv", _csv(images))
            _write(folder / "boxes.csv", _csv(boxes))
            _write(folder / "config.json", _json(config))  # last: with it, the run is complete
        return cls(folder)

    def __repr__(self) -> str:
        """The folder, which says which run this is."""
        return f"Run({str(self.folder)!r})"

    def lock(self) -> contextlib.AbstractContextManager:
        """Keeps others from training here in a ``with`` block; a BlockingIOError if one does."""
        return _lock(self.folder)

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
            raise ValueError(f"class_name={class_name!r}: expected one of {names}")
        return class_name

    @property
    def images(self) -> pd.DataFrame:
        """Every film of the study, one row each."""
        return self.read_table("images.csv")

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
        """Scores of validation and test, one row a film and class, with the films' metadata."""
        images = self.images
        facts = [column for column in _FILM_FACTS if column in images]
        return self.read_table("predictions.csv").merge(
            images[["image_id", *facts]], on="image_id", validate="many_to_one"
        )

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
            return arrays["image_id"], arrays[_MAPS + method]

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
        """A test film, uint8 ``(H, W)``, long side at most 512 pixels."""
        return read_image(self._existing(f"films/{image_id}.jpg"))

    def read_table(self, name: str) -> pd.DataFrame:
        """Reads a CSV of the run; ids stay text."""
        return read_table(self._existing(name))

    def write_table(self, name: str, frame: pd.DataFrame) -> Path:
        """Writes a CSV into the run."""
        return _write(self.folder / name, _csv(frame))

    def write_scores(
        self,
        predictions: pd.DataFrame,
        image_ids: Sequence[str],
        maps: Mapping[str, np.ndarray],
        *,
        bias: np.ndarray,
    ) -> None:
        """Writes ``maps.npz`` and ``predictions.csv``, which belong together.

        The maps record the fingerprint of the predictions. If the process is killed between the
        two files, `maps` refuses the mix.

        Args:
            predictions: ``image_id, split, class_name, y_true, y_score``, one row a film and class.
            image_ids: ``(N,)``, of the maps.
            maps: by method, raw maps float32 ``(N, C, h, w)``.
            bias: of the head, float32 ``(C,)``.
        """
        table = _csv(predictions)
        self.write_arrays(
            "maps.npz",
            image_id=np.asarray(image_ids, str),
            bias=bias,
            made_from=np.array(_fingerprint(table)),
            **{_MAPS + method: its_maps for method, its_maps in maps.items()},
        )
        _write(self.folder / "predictions.csv", table)

    def read_json(self, name: str) -> dict:
        """Reads JSON of the run."""
        return json.loads(self._existing(name).read_text())

    def write_json(self, name: str, content: Mapping[str, object]) -> Path:
        """Writes JSON into the run; a NaN, which JSON does not have, is an error."""
        return _write(self.folder / name, _json(content))

    def write_arrays(self, name: str, **arrays: np.ndarray) -> Path:
        """Writes named arrays as ``.npz``; an array of objects is an error."""
        pickled = [key for key, array in arrays.items() if np.asarray(array).dtype == object]
        if pickled:
            raise ValueError(f"{name}: arrays {pickled} hold objects, which would be pickled")
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return _write(self.folder / name, buffer.getvalue())

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Reads what `write_arrays` wrote."""
        with np.load(self._existing(name), allow_pickle=False) as arrays:
            return dict(arrays)

    def write_film(self, image_id: str, pixels: np.ndarray) -> Path:
        """Stores a film uint8 ``(H, W)``, shrunk to at most 512 pixels a side."""
        check_image_id(image_id, self.folder / "films")
        shrink = _LONGEST_SIDE / max(pixels.shape)
        if shrink < 1:
            pixels = cv2.resize(pixels, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        return _write(self.folder / "films" / f"{image_id}.jpg", encoded.tobytes())

    def write_figure(self, name: str, figure: "Figure", **options: Any) -> Path:
        """Saves a matplotlib figure under ``figures/``; the suffix of ``name`` is its format."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format=Path(name).suffix.lstrip("."), **options)
        return _write(self.folder / "figures" / name, buffer.getvalue())

    def _open_maps(self) -> np.lib.npyio.NpzFile:
        path = self._existing("maps.npz")
        arrays = np.load(path, allow_pickle=False)
        if str(arrays.get("made_from")) != self.fingerprint("predictions.csv"):
            arrays.close()
            raise ValueError(
                f"{path}: made with other scores than predictions.csv; score the run again "
                "(notebook 03, record_scores)"
            )
        return arrays

    def _existing(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: missing; the run is not finished (notebook 03 writes its files)"
            )
        return path


_MAPS = "maps/"  # before the method, in the names of the arrays of maps.npz


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


def _lock(folder: Path) -> contextlib.AbstractContextManager:
    message = f"{folder}: another process is training in this run folder"
    return locked(folder / "training.lock", message)


def _can_resume(folder: Path, config: Mapping[str, object]) -> bool:
    """Whether the folder has this run, interrupted in training or before its evaluation."""
    if not (folder / "config.json").is_file():
        return False
    there, asked = json.loads((folder / "config.json").read_text()), json.loads(_json(config))
    if any(there[key] != asked[key] for key in ("settings", "data_fingerprint")):
        return False
    evaluated = (folder / "metrics.json").is_file()
    trained = (folder / "training.json").is_file()
    return (trained and not evaluated) or any(folder.glob("checkpoints/*.npz"))


def _set_aside(folder: Path) -> None:
    left = [folder / name for name in _MADE_BY_A_RUN if (folder / name).exists()]
    if left:
        taken = [int(path.name) for path in (folder / "earlier").glob("[0-9]*")]
        place = folder / "earlier" / str(max(taken, default=0) + 1)
        place.mkdir(parents=True)
        for path in left:
            path.replace(place / path.name)


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, indent=2, allow_nan=False).encode()


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path


def _nan_to_none(content: Mapping[str, object]) -> dict:
    """JSON values with None in place of each float that is not finite."""
    return json.loads(json.dumps(content), parse_constant=lambda _: None)
