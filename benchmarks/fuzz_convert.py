"""Damaged films by the thousand: each must give a row, none may crash, hang or eat the memory.

    python -m benchmarks.fuzz_convert --films 10000

Films of every kind that the converter reads are made (``tests/dicom/films.py``), then bits are
flipped, pieces cut out, doubled or overwritten, lengths and sizes made to lie
(``tests/dicom/damaged.py``), by hypothesis and its seed. A film that is made into a JPG must open
at the size in its row, and nothing private may be in JPG or row.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from tests.dicom.damaged import fuzz

LARGEST = 2**30  # bytes of memory: what the converter promises


def most_memory() -> int:
    """Bytes that this process has had at most."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure begins with that of the process which started this one
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--films", type=int, default=10_000)
    arguments.add_argument("--seed", type=int, default=0)
    chosen = arguments.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(chosen.films, chosen.seed, Path(folder))
    peak = most_memory()
    for reason, count in found["reasons"].most_common():
        print(f"{count:6d}  {reason}")
    print("| films | copied | encoded | failed | slowest | memory at most | time |")
    print("|---|---|---|---|---|---|---|")
    counts = " | ".join(str(found["statuses"][name]) for name in ("copied", "encoded", "failed"))
    print(
        f"| {chosen.films} | {counts} | {1000 * found['slowest']:.0f} ms "
        f"| {peak / 2**20:.0f} MiB | {time.perf_counter() - began:.0f} s |"
    )
    if peak > LARGEST:
        raise SystemExit(f"{peak} bytes of memory; at most {LARGEST} are promised")


if __name__ == "__main__":
    main()
