"""A trained network as a file for other runtimes, checked when it is written."""

import json
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from chexnet.cam import exact_forward
from chexnet.export.facts import Facts, describe_run
from chexnet.export.runtimes import (
    ASSETS,
    FACTS,
    FORMATS,
    Exported,
    fingerprint,
    format_of,
    open_exported,
)
from chexnet.files import naming, read_image
from chexnet.generator import prepare_film
from chexnet.runs import Run

if TYPE_CHECKING:
    from chexnet.backend import keras

TOLERANCE = 1e-4  # greatest error of score and of map, in logits, that an export may have
SCRATCH = ".export-"  # begins the name of a folder of files that are not complete
_CHECKED = 32  # films; the error hardly depends on the film


def export_model(
    run: str | Path | Run,
    target: str | Path,
    *,
    format: str | None = None,
    films: str | Path | None = None,
) -> Path:
    """Writes the network of a run for another runtime, and checks it there.

    The file has one input, films ``film (N, S, S, 1)`` from 0 to 255 for any N, and two outputs:
    ``score (N, C)``, probabilities, and ``map (N, C, h, w)``, logits. What else a program needs
    (`Facts`) is inside the file and, with the greatest error of the check, in ``<target>.json``.

    Args:
        run: a run, or its folder.
        target: the file, or for a SavedModel the folder. It must not exist.
        format: ``"onnx"``, ``"openvino"``, ``"litert"`` or ``"tf_saved_model"``; None goes by how
            ``target`` ends: ``.onnx``, ``.xml``, ``.tflite``, or nothing.
        films: folder of the study's JPGs, for the check on validation films; by default
            ``data/<study>/jpg`` beside ``output/``. If they are not there, the test films that the
            run keeps are taken.

    Returns:
        ``target``.

    Raises:
        FileNotFoundError: the run is not finished, or has no films.
        FileExistsError: there is something at ``target``.
        ImportError: the runtime is not installed.
        ValueError: the format is unknown; Keras has another backend than TensorFlow; or score or
            map differ by more than 1e-4 from those of Keras, and nothing is written.

    Example:
        >>> from chexnet.export import export_model
        >>> path = export_model("output/demo", "model.onnx", format="onnx")
        >>> path.with_name("model.onnx.json").is_file()
        True
    """
    run, target = run if isinstance(run, Run) else Run(run), Path(target)
    name = _checked_format(target, format)
    weights = [target.with_suffix(".bin")] if name == "openvino" else []
    for path in (target, *weights, _sidecar(target)):
        if path.exists():
            raise FileExistsError(f"{path}: exists; nothing was written")
    return write_network(run, target, name, films)


def _sidecar(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def write_network(
    run: Run, target: Path, name: str, folder: str | Path | None, *, features: bool = False
) -> Path:
    """`export_model`, if asked for with the features as a third output; replaces files."""
    from chexnet.backend import keras
    from chexnet.model import load_chexnet, with_outputs_for_export

    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"export with KERAS_BACKEND={keras.backend.backend()}: expected tensorflow"
        )
    facts = describe_run(run)
    films, source = check_films(run, facts, folder)
    model = load_chexnet(run.folder / "model.keras")
    plain = with_outputs_for_export(model, features=features)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=target.parent) as scratch:
        written = Path(scratch) / "done" / target.name
        written.parent.mkdir()
        with naming(target):
            _WRITE[name](plain, facts, Path(scratch) / target.name, written)
        single = model.get_layer("relu").compute_dtype == "float32"
        expected = exact_forward(model)(films) if single else _in_float32(plain, films)
        errors = _errors(open_exported(written), films, expected)
        for output, error in errors.items():
            if not error <= TOLERANCE:
                raise ValueError(
                    f"{target}: {output} differs by {error:.1e} from that of Keras on {source}; "
                    f"expected {TOLERANCE} at most, nothing was written"
                )
        checked = {"films": source, "tolerance": TOLERANCE, "greatest_error": errors}
        content = {"format": name, "sha256": fingerprint(written), **facts.as_dict()}
        content |= {"checked": checked}
        with naming(target):
            _sidecar(written).write_text(json.dumps(content, indent=2))
        # The weights of OpenVINO first, the JSON last: what is named ``target`` is complete.
        for path in sorted(written.parent.iterdir()):
            path.replace(target.parent / path.name)
    return target


def _checked_format(target: Path, name: str | None) -> str:
    if name is not None and name not in FORMATS:
        raise ValueError(f"format={name!r}: expected one of {list(FORMATS)}")
    by_name = format_of(target)
    if name not in (None, by_name):
        suffix = FORMATS[name][0] or "nothing"
        raise ValueError(f"{target}: format={name!r}, expected a name that ends with {suffix}")
    return by_name


def check_films(run: Run, facts: Facts, folder: str | Path | None) -> tuple[np.ndarray, str]:
    """Some films of a run as its network sees them, ``(N, S, S, 1)``, and what they are."""
    ids, folder = validation_films(run, folder)
    if ids:
        source = f"{len(ids[:_CHECKED])} validation films"
        return read_prepared(folder, ids[:_CHECKED], facts), source
    ids = sorted(path.stem for path in (run.folder / "films").glob("*.jpg"))[:_CHECKED]
    if not ids:
        raise FileNotFoundError(f"{folder}: no validation films; give their folder as films=")
    return read_prepared(run.folder / "films", ids, facts), f"{len(ids)} test films of the run"


def validation_films(run: Run, folder: str | Path | None) -> tuple[list[str], Path]:
    """Ids of the validation films whose JPGs are at hand, and their folder.

    Raises:
        FileNotFoundError: ``folder`` was given and lacks one.
    """
    study = run.config["settings"].get("study", "")
    place = Path(folder or run.folder.resolve().parents[1] / "data" / study / "jpg")
    ids = run.images.query("split == 'val'")["image_id"]
    missing = [image_id for image_id in ids if not (place / f"{image_id}.jpg").is_file()]
    if missing and folder is not None:
        raise FileNotFoundError(f"{place / missing[0]}.jpg: a validation film is missing")
    return [] if missing else list(ids), place


def read_prepared(folder: Path, ids: list[str], facts: Facts) -> np.ndarray:
    """Films as the network sees them, uint8 ``(N, S, S, 1)``."""

    def read(image_id: str) -> np.ndarray:
        return prepare_film(read_image(folder / f"{image_id}.jpg"), **facts.preparation)

    with ThreadPoolExecutor(cv2.getNumberOfCPUs()) as pool:
        return np.stack(list(pool.map(read, ids)))[..., np.newaxis]


def _in_float32(plain: "keras.Model", films: np.ndarray) -> tuple[np.ndarray, ...]:
    """What Keras computes in float32 for a network that was trained in a lower precision."""
    outputs = plain.predict_on_batch(films)
    return outputs["score"], outputs["map"]


def _errors(
    exported: Exported, films: np.ndarray, expected: tuple[np.ndarray, ...]
) -> dict[str, float]:
    """The greatest error of score and map; the first film alone, the others in one batch."""
    parts = [exported.forward(part) for part in (films[:1], films[1:]) if len(part)]
    found = [np.concatenate(outputs) for outputs in list(zip(*parts, strict=True))[:2]]
    return {
        name: float(np.abs(ours - theirs).max())
        for name, ours, theirs in zip(("score", "map"), found, expected, strict=False)
    }


def _keras_export(plain: "keras.Model", path: Path, name: str) -> None:
    from chexnet.backend import keras

    film = keras.InputSpec(shape=plain.inputs[0].shape, dtype="float32", name="film")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converters, about NumPy
        plain.export(str(path), format=name, input_signature=[film], verbose=False)


def _write_onnx(plain: "keras.Model", facts: Facts, raw: Path, path: Path) -> None:
    import onnx

    _keras_export(plain, raw, "onnx")
    model = onnx.load(raw)
    outputs = {output.name: output for output in model.graph.output}
    del model.graph.output[:]
    model.graph.output.extend(outputs[name] for name in plain.output)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.doc_string = facts.as_dict()["note"]
    onnx.helper.set_model_props(model, {FACTS: json.dumps(facts.as_dict())})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _write_openvino(plain: "keras.Model", facts: Facts, raw: Path, path: Path) -> None:
    import openvino

    _keras_export(plain, raw, "openvino")
    model = openvino.Core().read_model(raw)
    model.set_rt_info(json.dumps(facts.as_dict()), ["chexnet", FACTS])
    openvino.save_model(model, path, compress_to_fp16=False)


def _write_litert(plain: "keras.Model", facts: Facts, raw: Path, path: Path) -> None:
    _keras_export(plain, raw, "litert")
    shutil.copyfile(raw, path)
    # The format's way to carry other files: a ZIP archive behind the network.
    with zipfile.ZipFile(path, "a") as associated:
        associated.writestr(FACTS, json.dumps(facts.as_dict()))


def _write_saved_model(plain: "keras.Model", facts: Facts, raw: Path, path: Path) -> None:
    _keras_export(plain, path, "tf_saved_model")
    (path / ASSETS).mkdir()
    (path / ASSETS / FACTS).write_text(json.dumps(facts.as_dict(), indent=2))


_WRITE: dict[str, Callable[[Any, Facts, Path, Path], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "litert": _write_litert,
    "tf_saved_model": _write_saved_model,
}
