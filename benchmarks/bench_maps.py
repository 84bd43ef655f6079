"""What a class activation map costs on top of the score: 3,000 films, DenseNet121 on this machine.

    python benchmarks/bench_maps.py

Scoring alone and scoring with maps take turns on the same films, so that whatever else the machine
does falls on both. The weights and films are random: time does not depend on them.
"""

import statistics
import time
from collections.abc import Callable

import keras
import numpy as np

from chexnet.cam import class_activation_map
from chexnet.model import build_chexnet

SIDE, BATCH, AT_ONCE, ROUNDS = 96, 30, 300, 10  # 10 rounds of 300 films are 3,000


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Prints the table."""
    keras.utils.set_random_seed(0)
    model = build_chexnet(SIDE, weights=None, map_stride=16)
    films = np.random.default_rng(0).integers(0, 256, (AT_ONCE, SIDE, SIDE, 1), dtype=np.uint8)

    def score() -> np.ndarray:
        return model.predict(films, batch_size=BATCH, verbose=0)

    def both() -> tuple[np.ndarray, np.ndarray]:
        return class_activation_map(model, films, batch_size=BATCH)

    for work in (score, both):  # compiles
        work()
    np.testing.assert_allclose(both()[0], score(), atol=1e-5)
    times = {score: [], both: []}
    for number in range(ROUNDS):
        turns = list(times)
        for work in turns[:: 1 if number % 2 else -1]:
            times[work].append(seconds(work))
    print(f"| {AT_ONCE * ROUNDS:,} films of {SIDE} pixels | seconds | times scoring | asked for |")
    print("|---|---|---|---|")
    for what, work, limit in (
        ("scored alone", score, ""),
        ("scored and mapped, CAM", both, "at most 1.15"),
    ):
        ratio = statistics.median(b / a for a, b in zip(times[score], times[work], strict=True))
        print(f"| {what} | {sum(times[work]):.1f} | {ratio:.2f} | {limit} |")


if __name__ == "__main__":
    main()
