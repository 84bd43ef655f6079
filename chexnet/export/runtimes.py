"""Running an exported network in its own runtime, without Keras."""

import functools
import hashlib
import importlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from chexnet.export.facts import Facts, facts_from_json

# Of each format: how its name ends, the module that runs it, and what pip installs for it.
FORMATS = {
    "onnx": (".onnx", "onnxruntime", "chexnet[onnx]"),
    "openvino": (".xml", "openvino", "chexnet[openvino]"),
    "litert": (".tflite", "ai_edge_litert.interpreter", "chexnet[litert]"),
    "tf_saved_model": ("", "tensorflow", "tensorflow"),
}
FACTS = "chexnet.json"  # the facts inside a file
ASSETS = "assets.extra"  # TensorFlow's folder for what is not part of the graph
# OpenVINO computes parts of a batch side by side, each on cores of its own. On two cores this takes
# 0.9 of the time that all cores take for one batch, and 0.6 beside other work, as reading films.
_STREAMS, _PART = 8, 2
# Films float32 (N, S, S, 1), 0 to 255, to outputs by name.
_Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class Exported(NamedTuple):
    """An exported network, ready to run.

    Attributes:
        forward: films ``(N, S, S, 1)``, 0 to 255, to scores ``(N, C)``, maps ``(N, C, h, w)`` and
            features ``(N, F)``, which are None where the file does not have them; all float32.
        facts: what it needs beside the network.
        fingerprint: SHA-256 of the file, and the precision.
    """

    forward: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray | None]]
    facts: Facts
    fingerprint: str


def format_of(path: Path) -> str:
    """The format whose file names end like this one.

    Raises:
        ValueError: there is none.
    """
    for name, (suffix, _, _) in FORMATS.items():
        if path.suffix == suffix:
            return name
    endings = ", ".join(suffix for suffix, _, _ in FORMATS.values() if suffix)
    raise ValueError(f"{path}: expected a file name that ends with {endings}, or without an ending")


def open_exported(path: str | Path, *, precision: str = "f32") -> Exported:
    """Opens what `export_model` wrote, in the runtime of its format; Keras is not loaded.

    Args:
        path: ``.onnx``, ``.xml`` or ``.tflite``, or the folder of a SavedModel.
        precision: in which OpenVINO computes, one of `precisions`; the others know ``"f32"`` only.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the runtime is not installed.
        ValueError: the file is not an exported network, or the precision is unknown.

    Example:
        >>> from chexnet.export import open_exported
        >>> open_exported("missing.onnx")
        Traceback (most recent call last):
        ...
        FileNotFoundError: missing.onnx: no exported network here; chexnet export writes it
    """
    path = Path(path)
    name = format_of(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no exported network here; chexnet export writes it")
    module = _runtime(name, path)
    known = precisions(name)
    if precision not in known:
        raise ValueError(f"{path}: precision={precision!r}, expected one of {known}")
    try:
        if name == "openvino":
            run, text = _open_openvino(module, path, precision)
        else:
            run, text = _OPEN[name](module, path)
    except Exception as error:  # those of ONNX Runtime have no base of their own
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a network that chexnet export wrote ({reason})") from error

    def forward(films: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        outputs = run(np.ascontiguousarray(films, np.float32))
        return outputs["score"], outputs["map"], outputs.get("features")

    return Exported(forward, facts_from_json(text, path), f"{fingerprint(path)} {precision}")


def is_exported(path: Path) -> bool:
    """Whether this is by its name an exported file, or is the folder of an exported SavedModel.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.export import is_exported
        >>> is_exported(Path("model.onnx")), is_exported(Path("output/demo"))
        (True, False)
    """
    files = [suffix for suffix, _, _ in FORMATS.values() if suffix]
    return path.suffix in files or (path / ASSETS / FACTS).is_file()


def fingerprint(path: Path) -> str:
    """SHA-256 of an exported file; with OpenVINO's weights; of a folder, all files by name."""
    files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def precisions(name: str) -> list[str]:
    """What a format can compute in on this processor, ``"f32"`` first.

    Example:
        >>> from chexnet.export import precisions
        >>> precisions("onnx")
        ['f32']
    """
    if name != "openvino":
        return ["f32"]
    able = _runtime(name, name).Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["f32", *(kind.lower() for kind in ("BF16", "FP16") if kind in able)]


def processor(name: str) -> str:
    """The processor on which OpenVINO computes."""
    return str(_runtime(name, name).Core().get_property("CPU", "FULL_DEVICE_NAME"))


def _runtime(name: str, source: object) -> Any:
    _, module, package = FORMATS[name]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{source}: {module} is not installed; pip install '{package}'"
        ) from error


def _open_onnx(onnxruntime: Any, path: Path) -> tuple[_Run, str]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map[FACTS]
    names = [output.name for output in session.get_outputs()]
    film = session.get_inputs()[0].name
    return lambda films: dict(zip(names, session.run(names, {film: films}), strict=True)), text


def _open_openvino(openvino: Any, path: Path, precision: str) -> tuple[_Run, str]:
    core = openvino.Core()
    model = core.read_model(path)
    text = model.get_rt_info(["chexnet", FACTS]).astype(str)
    names = [output.get_any_name() for output in model.outputs]
    most = min(cv2.getNumberOfCPUs(), _STREAMS)

    @functools.cache
    def compiled(streams: int) -> Any:
        # Its default is the fastest precision that the processor has, not the one that the network
        # was trained in.
        settings = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": streams}
        return core.compile_model(model, "CPU", settings)

    def run(films: np.ndarray) -> dict[str, np.ndarray]:
        parts = [films[k : k + _PART] for k in range(0, len(films), _PART)]
        network = compiled(1 if len(parts) == 1 else most)
        requests = [network.create_infer_request() for _ in parts]
        for request, part in zip(requests, parts, strict=True):
            request.start_async([part])
        for request in requests:
            request.wait()
        return {
            name: np.concatenate([request.get_output_tensor(k).data for request in requests])
            for k, name in enumerate(names)
        }

    return run, text


def _open_litert(interpreter: Any, path: Path) -> tuple[_Run, str]:
    with zipfile.ZipFile(path) as associated:
        text = associated.read(FACTS).decode()
    threads = cv2.getNumberOfCPUs()
    network = interpreter.Interpreter(model_path=str(path), num_threads=threads)
    run = network.get_signature_runner()
    return lambda films: run(film=films), text


def _open_saved_model(tensorflow: Any, path: Path) -> tuple[_Run, str]:
    loaded = tensorflow.saved_model.load(str(path))
    text = (path / ASSETS / FACTS).read_text()
    # `loaded` must live as long as its function, whose weights it holds.
    return lambda films: {k: value.numpy() for k, value in loaded.serve(films).items()}, text


_OPEN = {"onnx": _open_onnx, "litert": _open_litert, "tf_saved_model": _open_saved_model}
