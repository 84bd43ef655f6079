"""Films a second in each runtime, and of a folder scored with it, on this machine.

    python benchmarks/bench_runtimes.py [run folder] [folder of DICOM films] [--size 320]

By default the run is output/demo and the films are synthetic, of 1,024 pixels. With ``--size`` its
network takes films of another size: speed does not depend on how well it then scores. All that is
measured takes turns; a rate is the best of the rounds, since other work on the machine only slows
it.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chexnet.export import export_model, open_run, precisions
from chexnet.model import build_chexnet
from chexnet.phantom import write_phantom_study
from chexnet.predict import Predictor, predict_folder
from chexnet.runs import Run

FILMS, BATCH, SINGLE, ROUNDS = 48, 16, 8, 5
KERAS = "Keras (TensorFlow)"


def at_size(run: Run, size: int, folder: Path) -> Run:
    """A copy of a run whose network takes films of another size."""
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("earlier", "exported"))
    weights = run.folder / "model.keras"
    build_chexnet(size, class_names=run.class_names, weights=weights, map_stride=16).save(
        folder / "model.keras"
    )
    copy = Run(folder)
    copy.write_json("preparation.json", copy.read_json("preparation.json") | {"image_size": size})
    return copy


def predictors(run: Run, folder: Path) -> dict[str, Predictor]:
    """The run in each runtime that is installed here; OpenVINO twice.

    Args:
        run: a finished run.
        folder: the networks are exported into it.
    """
    found = {KERAS: Predictor(run.folder)}
    for runtime, name, suffix in (
        ("onnx", "ONNX Runtime", ".onnx"),
        ("openvino", "OpenVINO, float32", ".xml"),
        ("litert", "LiteRT", ".tflite"),
    ):
        try:
            found[name] = Predictor(export_model(run, folder / f"model{suffix}"))
        except ImportError as error:
            print(f"{name}: not measured: {error}")
            continue
        if len(precisions(runtime)) > 1:
            fastest = open_run(run, runtime).fingerprint.split()[-1]
            if fastest != "f32":
                found[f"OpenVINO, {fastest}"] = Predictor(run.folder, runtime=runtime)
    return found


def rate(films: int, work: Callable[[], object]) -> float:
    """Films a second."""
    began = time.perf_counter()
    work()
    return films / (time.perf_counter() - began)


def measure(predictor: Predictor, films: list[Path]) -> tuple[float, float, float]:
    """Rates of the network alone, one film or a batch at a time, and of a folder."""
    size, forward = predictor.facts.preparation["image_size"], predictor._forward
    one, many = (np.zeros((count, size, size, 1), np.uint8) for count in (1, BATCH))
    with tempfile.TemporaryDirectory() as target:
        return (
            rate(SINGLE, lambda: [forward(one) for _ in range(SINGLE)]),
            rate(FILMS, lambda: [forward(many) for _ in range(FILMS // BATCH)]),
            rate(
                len(films),
                lambda: predict_folder(
                    predictor, films, target, overlays=False, batch_size=BATCH, progress=False
                ),
            ),
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", nargs="?", default="output/demo")
    parser.add_argument("films", nargs="?", type=Path)
    parser.add_argument("--size", type=int, help="pixels; by default those of the run")
    given = parser.parse_args()
    run = Run(given.run)
    if not (run.folder / "features.npz").is_file():
        print(f"runtimes: not measured: no finished run in {run.folder}")
        return
    with tempfile.TemporaryDirectory() as scratch:
        if given.size:
            run = at_size(run, given.size, Path(scratch) / "output" / "run")
        if given.films is None:
            study = write_phantom_study(Path(scratch) / "study", films=FILMS, film_size=1024)
            given.films = study / "stage_2_train_images"
        films = sorted(given.films.iterdir())[:FILMS]
        size = run.read_json("preparation.json")["image_size"]
        found = predictors(run, Path(scratch))
        rounds = [
            {name: measure(predictor, films) for name, predictor in found.items()}
            for _ in range(ROUNDS + 1)
        ][1:]  # the first compiles and allocates
    print(
        f"| {size} px, films/s | batch 1 | batch {BATCH} | x Keras | `predict_folder` | share |\n"
        "|---|---|---|---|---|---|"
    )
    best = {name: [max(r[name][k] for r in rounds) for k in range(3)] for name in found}
    for name, (single, batched, whole) in best.items():
        times, share = batched / best[KERAS][1], whole / batched
        print(
            f"| {name} | {single:.1f} | {batched:.1f} | {times:.2f} | {whole:.1f} | {share:.2f} |"
        )


if __name__ == "__main__":
    main()
