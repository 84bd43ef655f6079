"""The network of a run in another runtime, in the fastest precision that is exact enough."""

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from chexnet.auroc import auroc
from chexnet.export.facts import Facts, describe_run
from chexnet.export.network import SCRATCH, read_prepared, validation_films, write_network
from chexnet.export.runtimes import FORMATS, Exported, open_exported, precisions, processor
from chexnet.files import locked, write_atomic
from chexnet.runs import Run

# What a lower precision may change on validation. Two trainings of one network that differ in
# their random numbers only have AUROCs that differ by 0.01.
MOST_SCORE, MOST_AUROC = 0.02, 0.002
_MOST_FILMS = 1024  # validation films, of which the first are taken
_BATCH, _TIMES = 16, 5


def open_run(run: Run, runtime: str) -> Exported:
    """The network of a run in another runtime.

    It is exported into ``exported/`` of the run when it is first asked for, with the features as a
    third output. OpenVINO then computes in the fastest precision of this processor with which, on
    the validation films, no score differs from that in float32 by more than 0.02 and no AUROC by
    more than 0.002; what was measured is in ``precision.json`` there. Where those films are not
    at hand it computes in float32, as the others always do.

    Args:
        run: a finished run.
        runtime: ``"onnx"``, ``"openvino"`` or ``"litert"``.

    Raises:
        ImportError: the runtime is not installed.
        ValueError: the runtime is unknown, or as `export_model`.

    Example:
        >>> from chexnet.export import open_run
        >>> from chexnet.runs import Run
        >>> open_run(Run("output/demo"), "tensorrt")
        Traceback (most recent call last):
        ...
        ValueError: runtime='tensorrt': expected one of ['keras', 'onnx', 'openvino', 'litert']
    """
    known = [name for name, (suffix, _, _) in FORMATS.items() if suffix]
    if runtime not in known:
        raise ValueError(f"runtime={runtime!r}: expected one of {['keras', *known]}")
    facts = describe_run(run)
    folder = run.folder / "exported" / run.fingerprint("model.keras")[:16]
    path = folder / f"model{FORMATS[runtime][0]}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"{folder}: another process is exporting"):
        if not path.exists():
            for left in folder.glob(f"{SCRATCH}*"):  # by a killed process
                shutil.rmtree(left)
            write_network(run, path, runtime, None, features=True)
        precision = "f32" if len(precisions(runtime)) == 1 else _fastest(run, path, runtime, facts)
    return open_exported(path, precision=precision)._replace(facts=facts)


def _fastest(run: Run, path: Path, runtime: str, facts: Facts) -> str:
    """The precision that was measured on this processor before, or is now."""
    record = path.with_name("precision.json")
    names = precisions(runtime)
    here: dict[str, Any] = {"processor": processor(runtime), "precisions": names}
    if record.is_file():
        found = json.loads(record.read_text())
        if here.items() <= found.items():
            return found["chosen"]
    ids, films_folder = validation_films(run, None)
    if not ids:
        return "f32"
    ids = ids[:_MOST_FILMS]
    films = read_prepared(films_folder, ids, facts)
    labels = run.images.set_index("image_id").loc[ids, run.class_names].to_numpy(float)
    measured = _measure(path, films, labels, names)
    exact = [row["precision"] for row in measured if _is_exact_enough(row, measured[0])]
    speed = {row["precision"]: row["films_per_second"] for row in measured}
    chosen = max(exact, key=speed.__getitem__)
    content = here | {"chosen": chosen, "films": len(ids), "measured": measured}
    content |= {"most_score_difference": MOST_SCORE, "most_auroc_difference": MOST_AUROC}
    write_atomic(record, json.dumps(content, indent=2).encode())
    return chosen


def _measure(
    path: Path, films: np.ndarray, labels: np.ndarray, names: list[str]
) -> list[dict[str, Any]]:
    """Scores and speed in each precision; ``labels (N, C)`` with NaN for a missing one."""
    rows, exact = [], np.empty(0)
    for name in names:
        forward = open_exported(path, precision=name).forward
        scores = np.concatenate(
            [forward(films[k : k + _BATCH])[0] for k in range(0, len(films), _BATCH)]
        )
        exact = scores if name == "f32" else exact
        seconds = []
        for _ in range(_TIMES):
            began = time.perf_counter()
            forward(films[:_BATCH])
            seconds.append(time.perf_counter() - began)
        rows.append(
            {
                "precision": name,
                "films_per_second": len(films[:_BATCH]) / statistics.median(seconds),
                "score_difference": float(np.abs(scores - exact).max()),
                "auroc": [_auroc(*column) for column in zip(labels.T, scores.T, strict=True)],
            }
        )
    return rows


def _auroc(y_true: np.ndarray, y_score: np.ndarray) -> float | None:
    """The AUROC of the films with a label; None if they are of one class only."""
    known = ~np.isnan(y_true)
    if len(np.unique(y_true[known])) < 2:
        return None
    return float(auroc(y_true[known], y_score[known]).value)


def _is_exact_enough(row: dict[str, Any], exact: dict[str, Any]) -> bool:
    pairs = zip(row["auroc"], exact["auroc"], strict=True)
    changes = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    return row["score_difference"] <= MOST_SCORE and max(changes, default=0) <= MOST_AUROC
