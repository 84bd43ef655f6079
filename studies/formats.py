"""Scores and maps of a run in every format to which it can be exported, compared with Keras.

python -m studies.formats output/rsna --films data/rsna/jpg
"""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from chexnet.cam import exact_forward
from chexnet.export import describe_run, export_model, open_exported, precisions
from chexnet.files import read_image
from chexnet.generator import prepare_film
from chexnet.model import load_chexnet
from chexnet.runs import Run

TARGETS = {
    "tf_saved_model": "saved",
    "litert": "model.tflite",
    "openvino": "model.xml",
    "onnx": "model.onnx",
}
BATCH = 16


def outputs(forward, films: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and maps of all films."""
    parts = [forward(films[k : k + BATCH])[:2] for k in range(0, len(films), BATCH)]
    scores, maps = (np.concatenate(one) for one in zip(*parts, strict=True))
    return scores, maps


def row(name: str, size: float, found: tuple, expected: tuple) -> str:
    """A row of the table."""
    errors = [np.abs(a - b).max() for a, b in zip(found, expected, strict=True)]
    return f"| {name} | {size:.0f} MB | {errors[0]:.1e} | {errors[1]:.1e} |"


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--films", type=Path, required=True, help="folder of the study's JPGs")
    given = parser.parse_args()
    run = Run(given.run)
    preparation = describe_run(run).preparation

    def read(path: Path) -> np.ndarray:
        return prepare_film(read_image(path), **preparation)

    with ThreadPoolExecutor(2) as pool:
        films = np.stack(list(pool.map(read, sorted(given.films.glob("*.jpg")))))[..., np.newaxis]
    expected = outputs(exact_forward(load_chexnet(run.folder / "model.keras")), films)
    print(f"{len(films)} films of {films.shape[1]} pixels\n")
    print("| format, precision | size | greatest difference of score | of map (logits) |")
    print("|---|---|---|---|")
    for name, target in TARGETS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = export_model(run, Path(folder) / target, films=given.films)
            size = sum(part.stat().st_size for part in Path(folder).rglob("*") if part.is_file())
            for precision in precisions(name):
                found = outputs(open_exported(path, precision=precision).forward, films)
                print(row(f"{name}, {precision}", size / 1e6, found, expected), flush=True)


if __name__ == "__main__":
    main()
