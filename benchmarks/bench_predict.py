"""Scoring a folder, compared with the network alone, on this machine.

    python benchmarks/bench_predict.py [folder of DICOM films of the RSNA challenge]

Without a folder the films are synthetic, of 1,024 pixels. Folder and network take turns. The
network has random weights: time does not depend on them.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from chexnet.cam import exact_forward
from chexnet.model import build_chexnet
from chexnet.phantom import write_phantom_study
from chexnet.predict import Predictor, predict_folder

SIZES, BATCH, FILMS, ROUNDS = (160, 224, 320), 16, 96, 3


def main() -> None:
    """Prints the table."""
    keras.utils.set_random_seed(0)
    print("| network input | network alone, films/s | folder, films/s | share | asked for |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        if len(sys.argv) > 1:
            folder = Path(sys.argv[1])
        else:
            study = write_phantom_study(home / "study", films=FILMS, film_size=1024)
            folder = study / "stage_2_train_images"
        films = sorted(folder.iterdir())[:FILMS]
        for size in SIZES:
            model = build_chexnet(size, weights=None, map_stride=16)
            model.save(home / "model.keras")
            predictor, forward = Predictor(home / "model.keras"), exact_forward(model)
            batch = np.zeros((BATCH, size, size, 1), np.uint8)
            forward(batch)  # compiles
            predictor.score([predictor.read(films[0])], batch_size=BATCH)
            alone, whole = [], []
            for number in range(ROUNDS):
                began = time.perf_counter()
                for _ in range(FILMS // BATCH):
                    forward(batch)
                alone.append(FILMS / (time.perf_counter() - began))
                target = home / f"{size}-{number}"
                began = time.perf_counter()
                predict_folder(
                    predictor, films, target, overlays=False, batch_size=BATCH, progress=False
                )
                whole.append(FILMS / (time.perf_counter() - began))
            share = statistics.median(b / a for a, b in zip(alone, whole, strict=True))
            speeds = f"{statistics.median(alone):.1f} | {statistics.median(whole):.1f}"
            print(f"| {size} px | {speeds} | {share:.2f} | 0.90 |", flush=True)


if __name__ == "__main__":
    main()
