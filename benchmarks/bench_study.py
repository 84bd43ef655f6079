"""What the tables and the results figure cost.

    CHEXNET_RSNA_DIR=../shared/rsna-mini python benchmarks/bench_study.py output/demo

The split needs the complete tables, beside ``CHEXNET_RSNA_DIR`` in ``rsna-tables``; the figure
needs a run folder.
"""

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from chexnet.figures import results_figure
from chexnet.labels import read_rsna
from chexnet.splits import split_by_patient


def seconds(work: Callable[[], object]) -> float:
    """Best wall time of three."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Prints the table."""
    print("| what | seconds | asked for |\n|---|---|---|")
    tables = Path(os.environ.get("CHEXNET_RSNA_DIR", ".")).parent / "rsna-tables"
    if tables.is_dir():
        images, _ = read_rsna(tables)
        views = pd.read_csv(tables / "dicom_headers.csv").set_index("PatientID")["ViewPosition"]
        images = images.join(views.rename("view"), on="image_id")
        taken = seconds(lambda: split_by_patient(images))
        print(f"| split of {len(images):,} films by patient | {taken:.2f} | below 5 |")
    else:
        print(f"| split of the complete study | not measured: no {tables} | below 5 |")
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "output/demo")
    if (run / "maps.npz").is_file():
        taken = seconds(lambda: results_figure(run).savefig(io.BytesIO(), dpi=150))
        print(f"| results figure from the run folder, as PNG | {taken:.2f} | below 2 |")
    else:
        print(f"| results figure from the run folder | not measured: no run in {run} | below 2 |")


if __name__ == "__main__":
    main()
