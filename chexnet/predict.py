"""A film, or a folder of films, to scores, maps and warnings.

A film is read, enhanced and resized by the functions that prepare the training films. Not for
clinical use.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from chexnet.cam import exact_forward
from chexnet.dicom import FilmError, film_to_jpg, image_ids
from chexnet.evaluation import ORIENTATIONS, apply_temperature, feature_distance, orientation
from chexnet.export import (
    Facts,
    describe_run,
    is_exported,
    open_exported,
    open_run,
    write_dicom_results,
)
from chexnet.figures import blend, prediction_figure
from chexnet.files import (
    check_number,
    decode_jpeg,
    locked,
    path_id,
    read_table,
    shrink,
    summarize,
    write_atomic,
)
from chexnet.generator import prepare_film
from chexnet.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Prediction", "Predictor", "predict_folder"]

UNUSUAL = 99.0  # percentile among validation films above which a film is called unusual
_STRETCH = 0.1  # share by which a film may be narrower or wider than any training film
_SAVE_EVERY = 5.0  # seconds; writing a table of 100,000 films takes half a second
_OVERLAY_SIDE = 512  # pixels of the longer side, as for the films of a run
_BOOKKEEPING = ("source_bytes", "source_time_ns", "predictor")


@dataclass
class Prediction:
    """What a `Predictor` returns for one film.

    Attributes:
        source: the file, or ``"array"``.
        scores: by class, 0 to 1.
        calibrated: by class, the calibrated probability, 0 to 1; None without a run.
        thresholds: by class, the decision threshold; None without a run.
        positive: by class, whether the score is at or above the threshold; None without a run.
        maps: by class, the raw class activation map float32 ``(h, w)`` in logits. Its mean plus
            the bias of the head is the logit of the score.
        film: uint8 ``(H, W)``, 0 = black.
        header: ``view``, ``sex``, ``age`` in years, each None if not known; ``rows`` and
            ``columns`` in pixels.
        percentile: share of the validation films, in %, that are closer to the training films
            than this film is; None without a run.
        warnings: what was done to the film when it was read, and in what it differs from the
            training films.
        facts: what is known of the model.
        predictor: fingerprint of the `Predictor`.
        run: of the model, or None.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.predict import Predictor
        >>> film = min(Path("data/phantom/study/stage_2_train_images").iterdir())
        >>> found = Predictor("output/demo")(film)
        >>> found.calibrated["Pneumonia"] <= 1
        True
        >>> found.figure().savefig("prediction.png")
    """

    source: str
    scores: dict[str, float]
    calibrated: dict[str, float | None]
    thresholds: dict[str, float | None]
    positive: dict[str, bool | None]
    maps: dict[str, np.ndarray]
    film: np.ndarray
    header: dict[str, Any]
    percentile: float | None
    warnings: tuple[str, ...]
    facts: Facts
    predictor: str
    run: Run | None

    def __str__(self) -> str:
        """One line a class, then the warnings."""
        lines = [self.source]
        for name, score in self.scores.items():
            line = f"{name}: score {score:.3f}"
            if (calibrated := self.calibrated[name]) is not None:
                line += f", calibrated probability {calibrated:.2f}"
            if (threshold := self.thresholds[name]) is not None:
                decision = "positive" if self.positive[name] else "negative"
                line += f", {decision} (decision threshold {threshold:.3f})"
            lines.append(line)
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])

    def figure(self, class_name: str | None = None) -> "Figure":
        """The film, its map, and its score among those of the run's test films.

        Args:
            class_name: the class; ``None`` is the first.

        Raises:
            ValueError: the model has no such class, or its run was trained again.
        """
        name = next(iter(self.scores)) if class_name is None else class_name
        if name not in self.scores:
            raise ValueError(f"class_name={name!r}: expected one of {list(self.scores)}")
        run, known = self.run, self.facts.run
        if run and known and run.fingerprint("model.keras") != known["model"]:
            raise ValueError(f"{run.folder}: trained again since; make a new Predictor")
        run = run if run and "classes" in run.metrics else None
        return prediction_figure(
            self.film, self.maps[name], str(self), score=self.scores[name], run=run,
            class_name=name, scale=self.facts.map_scales[name],
        )  # fmt: skip


class _ReadFilm(NamedTuple):
    source: str
    pixels: np.ndarray  # uint8 (H, W)
    prepared: np.ndarray  # uint8 (S, S), for the network
    header: dict[str, Any]
    remarks: tuple[str, ...]


class Predictor:
    """Scores films as the films of a run were scored.

    Attributes:
        class_names: the classes of the head, in order.
        run: the run, or None.
        facts: what is known of the model: preparation, thresholds, temperatures.
        thresholds: by class, the decision threshold (Youden index on validation); None without a
            run, or where none can be chosen.
        fingerprint: 16 hexadecimal digits, of the weights and the facts.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.predict import Predictor
        >>> predictor = Predictor("output/demo")
        >>> film = min(Path("data/phantom/study/stage_2_train_images").iterdir())
        >>> found = predictor(film)
        >>> list(found.scores), found.maps["Pneumonia"].ndim, found.header["rows"]
        (['Pneumonia'], 2, 256)
    """

    def __init__(
        self,
        source: str | Path,
        *,
        class_names: Sequence[str] | None = None,
        runtime: str = "keras",
    ) -> None:
        """Loads a network.

        Args:
            source: a run folder; a file that `chexnet.export.export_model` wrote, which is run
                without Keras; a ``.keras`` file of this project; or ``"torchxrayvision:<name>"``
                (see `chexnet.model.build_chexnet`). The last two have no thresholds, no temperature
                and no training films to compare with.
            class_names: of a ``.keras`` file, one for each score.
            runtime: of a run: ``"keras"``, or another of `chexnet.export.open_run`.

        Raises:
            FileNotFoundError: there is no such run or file, or the run is not finished.
            ImportError: the runtime is not installed.
            ValueError: the file is not a model, or ``class_names`` or ``runtime`` does not fit.
        """
        network = _open(source, class_names, runtime)
        self.run, self.facts, self._forward = network.run, network.facts, network.forward
        self.class_names, self.thresholds = self.facts.class_names, self.facts.thresholds
        self._training = _TrainingFilms(self.facts, self.run)
        facts = asdict(self.facts) | {"run": None}  # a run may be renamed
        content = network.weights + json.dumps(facts).encode()
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

    def __call__(self, film: str | Path | np.ndarray) -> Prediction:
        """Scores one film.

        Args:
            film: a DICOM, PNG or JPG file; or an array uint8 ``(H, W)``, 0 = black = air.

        Raises:
            FilmError: the file is not a film; the message names file and reason.
            OSError: the file cannot be opened.
            ValueError: the array has another type or shape.
        """
        return self.score([self.read(film)])[0]

    def read(self, film: str | Path | np.ndarray) -> _ReadFilm:
        """Reads and prepares a film for `score`; safe to call from several threads."""
        if isinstance(film, np.ndarray):
            if film.dtype != np.uint8 or film.ndim != 2 or not film.size:
                raise ValueError(
                    f"film: array {film.dtype} {film.shape}; expected uint8 (H, W), 0 = black"
                )
            source, pixels, facts = "array", film, dict[str, Any]()
        else:
            jpg, facts = film_to_jpg(film)
            source, pixels = str(film), decode_jpeg(jpg)
        header = {name: facts.get(name) for name in ("view", "sex", "age")}
        header |= {"rows": pixels.shape[0], "columns": pixels.shape[1]}
        remarks = (facts["reason"],) if facts.get("reason") else ()
        prepared = prepare_film(pixels, **self.facts.preparation)
        return _ReadFilm(source, pixels, prepared, header, remarks)

    def score(self, films: Sequence[_ReadFilm], *, batch_size: int = 1) -> list[Prediction]:
        """Scores films from `read` in one forward pass.

        Args:
            films: at least one.
            batch_size: the batch is filled up to it, since each other size is compiled anew.
        """
        batch = np.stack([film.prepared for film in films])[..., np.newaxis]
        padding = [(0, max(batch_size - len(films), 0)), (0, 0), (0, 0), (0, 0)]
        scores, maps, features = self._forward(np.pad(batch, padding))
        rows = zip(
            films, scores, maps, repeat(None) if features is None else features, strict=False
        )
        return [self._prediction(*row) for row in rows]

    def _prediction(
        self, film: _ReadFilm, scores: np.ndarray, maps: np.ndarray, features: np.ndarray | None
    ) -> Prediction:
        by_class = dict(zip(self.class_names, map(float, scores), strict=True))
        calibrated: dict[str, float | None] = dict.fromkeys(by_class)
        positive: dict[str, bool | None] = dict.fromkeys(by_class)
        for name, score in by_class.items():
            threshold, temperature = self.thresholds[name], self.facts.temperatures[name]
            if temperature is not None:
                calibrated[name] = float(apply_temperature(score, temperature))
            if threshold is not None:
                positive[name] = score >= threshold
        percentile = self._training.percentile(features)
        warnings = film.remarks + self._training.warnings(film, percentile)
        return Prediction(
            film.source, by_class, calibrated, dict(self.thresholds), positive,
            dict(zip(self.class_names, maps, strict=True)), film.pixels, film.header, percentile,
            warnings, self.facts, self.fingerprint, self.run,
        )  # fmt: skip


class _TrainingFilms:
    """What the training films of a model are like, as far as that is known."""

    def __init__(self, facts: Facts, run: Run | None) -> None:
        stored = {} if run is None else run.read_arrays("features.npz")
        self._gaussian = {name: stored[name] for name in ("mean", "precision") if stored}
        self._val_distances = stored.get("val_distances")
        self._regression = facts.orientation
        self._image_size = facts.preparation["image_size"]
        known = facts.training_films or {}
        self._views = set(known.get("views", ()))
        self._ratios = known.get("width_by_height") or (0.0, np.inf)

    def percentile(self, features: np.ndarray | None) -> float | None:
        """Share of the validation films, in %, that are closer than a film with these features."""
        if features is None or self._val_distances is None:
            return None
        distance = feature_distance(features[np.newaxis], **self._gaussian)[0]
        closer = np.searchsorted(self._val_distances, distance)
        return float(100 * closer / len(self._val_distances))

    def warnings(self, film: _ReadFilm, percentile: float | None) -> tuple[str, ...]:
        """Sentences that say in what a film differs; none where no training films are known."""
        if self._regression is None:
            return ()
        found = []
        view, rows, columns = (film.header[name] for name in ("view", "rows", "columns"))
        if view is not None and self._views and view not in self._views:
            seen = ", ".join(sorted(self._views))
            found.append(f"view {view}; the training films are {seen}")
        if min(rows, columns) < self._image_size:
            size = f"{self._image_size} x {self._image_size}"
            found.append(f"{columns} x {rows} pixels; the network sees {size}")
        low, high = self._ratios
        ratio = columns / rows
        if not low * (1 - _STRETCH) <= ratio <= high * (1 + _STRETCH):
            found.append(
                f"width / height is {ratio:.2f}; that of the training films is {low:.2f} to "
                f"{high:.2f}"
            )
        looks = orientation(film.prepared, **self._regression)
        if looks != ORIENTATIONS[0]:
            found.append(f"looks {looks}")
        if percentile is not None and percentile > UNUSUAL:
            found.append(
                f"unlike the training films: further from them than {percentile:.0f} % of the "
                "validation films"
            )
        return tuple(found)


class _Network(NamedTuple):
    """A network with what is needed to use it."""

    # Films uint8-valued (N, S, S, 1) to scores (N, C), maps (N, C, h, w) and features (N, F).
    forward: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray | None]]
    facts: Facts
    weights: bytes  # what identifies the weights
    run: Run | None = None


def _open(source: str | Path, class_names: Sequence[str] | None, runtime: str) -> _Network:
    path = Path(source)
    if is_exported(path):
        exported = open_exported(path)
        return _Network(exported.forward, exported.facts, exported.fingerprint.encode())
    is_run = path.suffix != ".keras" and not str(source).startswith("torchxrayvision:")
    if runtime != "keras":
        if not is_run:
            raise ValueError(f"{source}: runtime={runtime!r}, expected a run folder, or 'keras'")
        run = Run(path)
        exported = open_run(run, runtime)
        return _Network(exported.forward, exported.facts, exported.fingerprint.encode(), run)
    # Imported here: exported networks and tables of predictions are read without Keras.
    from chexnet.model import load_chexnet, load_torchxrayvision

    if str(source).startswith("torchxrayvision:"):
        model, names = load_torchxrayvision(str(source))
        # These networks were trained without CLAHE.
        facts = Facts(names, {"image_size": model.input_shape[1], "clip_limit": None})
        return _Network(exact_forward(model), facts, str(source).encode())
    if is_run:
        run = Run(path)
        model = load_chexnet(run.folder / "model.keras")
        content = (run.folder / "model.keras").read_bytes()
        return _Network(exact_forward(model), describe_run(run), content, run)
    model = load_chexnet(path)
    scores = model.output_shape[-1]
    names = list(class_names or ["Pneumonia", *(f"class {k}" for k in range(2, scores + 1))])
    if len(names) != scores:
        raise ValueError(f"{path}: class_names={names}, but the model has {scores} scores")
    facts = Facts(names, {"image_size": model.input_shape[1]})
    return _Network(exact_forward(model), facts, path.read_bytes())


class _File(NamedTuple):
    """A file to score."""

    file: str
    path: Path
    image_id: str
    size: int
    time_ns: int


def predict_folder(
    model: str | Path | Predictor,
    films: str | Path | Iterable[str | Path],
    target: str | Path,
    *,
    shard: str = "1/1",
    overlays: bool = True,
    dicom: bool = False,
    batch_size: int = 16,
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores all films of a folder.

    Writes ``target/predictions.csv`` (``predictions-3-of-16.csv`` for shard 3/16), one row a file,
    and ``target/overlays/<class>/<image_id>.jpg``. If it was stopped in any way, the next call goes
    on; films that are scored and unchanged are not scored again, unless a file of theirs that is
    asked for is missing. The overlay of a film that is scored without it, or fails, is removed;
    that of a film that is gone stays.

    Args:
        model: a `Predictor`, or what it takes as ``source``.
        films: a folder, whose subfolders are searched, or several files and folders.
        target: made if missing.
        shard: ``"k/n"``: only every n-th film, from the k-th on, k from 1 to n. Processes with
            different k may share ``target``.
        overlays: write the overlays.
        dicom: also write the results of each film as DICOM objects into
            ``target/dicom/<image_id>-<model>/`` (`chexnet.export.write_dicom_results`).
        batch_size: films in a forward pass.
        workers: threads that read films; by default one a core.
        progress: show a bar.

    Returns:
        The table, sorted by ``file``: ``image_id``; ``status``, ``"scored"`` or ``"failed"``;
        ``reason`` of a failure; ``score_<class>``, ``calibrated_<class>``, ``positive_<class>`` for
        each class (see `Prediction`); ``percentile``; ``warnings``; ``view, sex, age, rows,
        columns``; with ``dicom``, that column, ``"written"`` or the reason why there are no
        objects; and book-keeping (``source_bytes, source_time_ns, predictor``).

    Raises:
        FileNotFoundError: no film was found, or a path does not exist.
        ValueError: an argument has another value than stated above.
        BlockingIOError: another process is working on this shard.

    Example:
        >>> from chexnet.predict import predict_folder
        >>> films = "data/phantom/study/stage_2_train_images"
        >>> table = predict_folder("output/demo", films, "output/predictions", progress=False)
        >>> table["status"].value_counts().to_dict()
        {'scored': 40}
    """
    check_number("batch_size", batch_size, integer=True, least=1)
    workers = cv2.getNumberOfCPUs() if workers is None else workers
    check_number("workers", workers, integer=True, least=1)
    number, of = _shard(shard)
    target = Path(target)
    files = _list_files([films] if isinstance(films, str | Path) else films)[number - 1 :: of]
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    target.mkdir(parents=True, exist_ok=True)
    path = target / table_name(shard)
    with locked(path.with_name(f".{path.name}.lock"), f"{path}: another process is writing it"):
        rows = _done_rows(path, files, predictor, overlays=overlays, dicom=dicom)
        todo = [file for file in files if file.file not in rows]
        # In this order: an overlay is there only beside the row that it belongs to.
        _write(path, rows, predictor.class_names)
        for folder in target.glob("overlays/*"):
            for file in todo:
                (folder / f"{file.image_id}.jpg").unlink(missing_ok=True)
        saved = time.monotonic()
        bar = tqdm(total=len(todo), unit=" films", disable=not (progress and todo))
        try:
            with ThreadPoolExecutor(workers) as pool, bar:
                for batch in _batches(pool, predictor, todo, batch_size):
                    scored = [(f, found) for f, found in batch if isinstance(found, Prediction)]
                    if overlays:  # before their rows: a film with a row is not done again
                        list(pool.map(lambda one: _write_overlays(one[0], one[1], target), scored))
                    rows |= {f.file: _row(f, found, predictor.fingerprint) for f, found in batch}
                    for f, found in scored if dicom else ():
                        rows[f.file]["dicom"] = _write_dicom(f, found, target)
                    bar.update(len(batch))
                    if time.monotonic() - saved > _SAVE_EVERY:
                        _write(path, rows, predictor.class_names)
                        saved = time.monotonic()
        finally:
            _write(path, rows, predictor.class_names)
    return read_table(path)


def table_name(shard: str) -> str:
    """The file name of the table that `predict_folder` writes for a shard."""
    number, of = _shard(shard)
    return "predictions.csv" if of == 1 else f"predictions-{number}-of-{of}.csv"


def _shard(text: str) -> tuple[int, int]:
    number, _, of = str(text).partition("/")
    if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
        return int(number), int(of)
    raise ValueError(f"shard={text!r}: expected k/n with k from 1 to n, such as 3/16")


def _list_files(films: Iterable[str | Path]) -> list[_File]:
    """The files of all folders and files, each with an id of its own, sorted by file."""
    found: dict[str, tuple[Path, str]] = {}
    for given in map(Path, films):
        if given.is_dir():
            ids = image_ids(given)
            found |= {str(given / file): (given / file, image_id) for file, image_id in ids.items()}
        elif given.is_file():
            found[str(given)] = (given, path_id(given.name))
        else:
            raise FileNotFoundError(f"{given}: no such file or folder")
    if not found:
        raise FileNotFoundError(f"{summarize(films)}: no films")
    times = pd.Series([image_id for _, image_id in found.values()]).value_counts()
    files = []
    for file, (path, image_id) in sorted(found.items()):
        facts = path.stat()
        unique = image_id if times[image_id] == 1 else path_id(file)
        files.append(_File(file, path, unique, facts.st_size, facts.st_mtime_ns))
    return files


def _overlay(target: Path, class_name: str, image_id: str) -> Path:
    return target / "overlays" / path_id(class_name) / f"{image_id}.jpg"


def _write_overlays(file: _File, found: Prediction, target: Path) -> None:
    """Writes a film with the map of each class; for a run, with the color scale of its figures."""
    film = shrink(found.film, _OVERLAY_SIDE)
    for name, cam in found.maps.items():
        path = _overlay(target, name, file.image_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        colors = blend(film, cam, scale=found.facts.map_scales[name])
        write_atomic(path, cv2.imencode(".jpg", colors[..., ::-1])[1].tobytes())


def _dicom_folder(target: Path, image_id: str, predictor: str) -> Path:
    return target / "dicom" / f"{image_id}-{predictor[:8]}"


def _write_dicom(file: _File, found: Prediction, target: Path) -> str:
    """Writes the DICOM objects of a film; ``"written"``, or why there are none."""
    folder = _dicom_folder(target, file.image_id, found.predictor)
    try:
        write_dicom_results(found, file.path, folder)
    except (FilmError, FileExistsError) as error:
        return str(error)
    return "written"


def _done_rows(
    path: Path, files: list[_File], predictor: Predictor, *, overlays: bool, dicom: bool
) -> dict[str, dict]:
    """The rows of an earlier call that need not be made again, by file."""
    if not path.is_file():
        return {}
    now = {
        file.file: (file.image_id, file.size, file.time_ns, predictor.fingerprint) for file in files
    }
    table = read_table(path)
    missing = {"file", "status", *_BOOKKEEPING} - set(table)
    if missing:
        raise ValueError(f"{path}: not a table of predictions, no column {sorted(missing)}")

    def is_complete(row: dict) -> bool:
        if dicom and row.get("dicom") != "written":
            return False
        names = predictor.class_names if overlays else []
        expected = [_overlay(path.parent, name, row["image_id"]) for name in names]
        if dicom:  # the report is written last
            folder = _dicom_folder(path.parent, row["image_id"], predictor.fingerprint)
            expected.append(folder / "report.dcm")
        return all(one.is_file() for one in expected)

    return {
        row["file"]: row
        for row in table.to_dict("records")
        if row["status"] == "scored"
        and tuple(row[name] for name in ("image_id", *_BOOKKEEPING)) == now.get(row["file"])
        and is_complete(row)
    }


def _batches(
    pool: ThreadPoolExecutor, predictor: Predictor, files: list[_File], size: int
) -> Iterator[list[tuple[_File, Prediction | str]]]:
    """Batches of files, each with its prediction or the reason why there is none."""

    def read(file: _File) -> _ReadFilm | str:
        try:
            return predictor.read(file.path)
        except FilmError as error:
            return str(error).removeprefix(f"{file.path}: ")
        except OSError as error:
            return f"cannot be read: {error.strerror or type(error).__name__}"

    waiting: deque[tuple[_File, Future]] = deque()
    rest = iter(files)
    while True:
        # Two batches are read while the network works on a third.
        for file in islice(rest, 3 * size - len(waiting)):
            waiting.append((file, pool.submit(read, file)))
        if not waiting:
            return
        batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        outcomes = [(file, future.result()) for file, future in batch]
        films = [film for _, film in outcomes if isinstance(film, _ReadFilm)]
        found = iter(predictor.score(films, batch_size=size) if films else [])
        yield [(file, film if isinstance(film, str) else next(found)) for file, film in outcomes]


def _row(file: _File, outcome: Prediction | str, fingerprint: str) -> dict[str, Any]:
    """A row of the table."""
    row: dict[str, Any] = {"file": file.file, "image_id": file.image_id}
    if isinstance(outcome, str):
        row |= {"status": "failed", "reason": outcome}
    else:
        row |= {"status": "scored", **outcome.header, "percentile": outcome.percentile}
        row["warnings"] = "; ".join(outcome.warnings)
        for kind in ("scores", "calibrated", "positive"):
            values = getattr(outcome, kind)
            row |= {f"{kind.removesuffix('s')}_{name}": value for name, value in values.items()}
    return row | dict(zip(_BOOKKEEPING, (file.size, file.time_ns, fingerprint), strict=True))


def _write(path: Path, rows: dict[str, dict], class_names: list[str]) -> None:
    kinds = ("score", "calibrated", "positive")
    columns = [f"{kind}_{name}" for name in class_names for kind in kinds]
    columns = ["file", "image_id", "status", "reason", *columns, "percentile", "warnings"]
    columns += ["view", "sex", "age", "rows", "columns"]
    columns += ["dicom"] if any("dicom" in row for row in rows.values()) else []
    columns += _BOOKKEEPING
    table = pd.DataFrame([rows[file] for file in sorted(rows)], columns=columns)
    write_atomic(path, table.to_csv(index=False).encode())
