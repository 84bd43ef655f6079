"""What the evaluation costs at the size of the RSNA study: 26,684 films of 11,410 patients.

    python benchmarks/bench_evidence.py

Made-up scores, maps and boxes: the time depends on their number, not on what they show.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from chexnet.auroc import auroc, compare_auroc
from chexnet.evaluation import localization_scores
from chexnet.evaluation.calibration import calibration_errors
from chexnet.evaluation.localization import choose_map_threshold
from chexnet.evaluation.operating_points import decision_curve
from chexnet.evaluation.prior import fit_box_prior
from chexnet.evaluation.scores import average_precision

FILMS, PATIENTS, WITH_BOXES, TEST_WITH_BOXES = 26_684, 11_410, 6_012, 600


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall time."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Prints the table."""
    rng = np.random.default_rng(0)
    y = (rng.random(FILMS) < 0.225).astype(int)
    score = 1 / (1 + np.exp(-rng.normal(size=FILMS) - y))
    other = 1 / (1 + np.exp(-rng.normal(size=FILMS) - y))
    patients = rng.integers(PATIENTS, size=FILMS)
    ids = np.array([f"{number:05d}" for number in range(WITH_BOXES)])
    films = pd.DataFrame({"image_id": ids, "rows": 1024, "columns": 1024})
    corner, size = rng.integers(100, 600, (2, WITH_BOXES)), rng.integers(100, 400, (2, WITH_BOXES))
    boxes = pd.DataFrame(
        {"image_id": ids, "x": corner[0], "y": corner[1], "width": size[0], "height": size[1]}
    )
    test = ids[:TEST_WITH_BOXES]
    maps = rng.normal(size=(TEST_WITH_BOXES, 16, 16)).astype(np.float32)
    rows = {
        "AUROC and DeLong's interval": (lambda: auroc(y, score), 21, 0.2),
        "AUROC, 2,000 bootstrap samples of patients": (
            lambda: auroc(y, score, groups=patients),
            3,
            10,
        ),
        "two scores compared, DeLong": (lambda: compare_auroc(y, score, other), 21, None),
        "two scores compared, 2,000 samples": (
            lambda: compare_auroc(y, score, other, groups=patients),
            3,
            None,
        ),
        "Brier score and ECE, 2,000 samples": (
            lambda: calibration_errors(y, score, patients),
            1,
            None,
        ),
        "average precision, 2,000 samples": (
            lambda: average_precision(y, score, patients),
            1,
            None,
        ),
        "decision curve, 19 points, 2,000 samples": (
            lambda: decision_curve(y, score, patients),
            1,
            None,
        ),
        "best fixed point and mask, 6,012 films": (lambda: fit_box_prior(boxes, films), 1, None),
        "map threshold on 600 films, 49 tried": (
            lambda: choose_map_threshold(maps, test, boxes, films),
            3,
            None,
        ),
        "600 maps compared with boxes": (
            lambda: localization_scores(maps, test, boxes, films, threshold=0.5),
            3,
            None,
        ),
    }
    print("| what | seconds | asked for |\n|---|---|---|")
    for what, (work, repeats, limit) in rows.items():
        taken = seconds(work, repeats)
        print(f"| {what} | {taken:.3f} | {'' if limit is None else f'below {limit:g}'} |")


if __name__ == "__main__":
    main()
