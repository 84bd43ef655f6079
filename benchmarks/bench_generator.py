"""Speed of training batches at 512 pixels: ours, the original's generator, and a memory copy.

One core, one OpenCV thread, JPGs and cache in memory (``/dev/shm`` if it exists), so that the disk
is not measured. The generators are measured in turn; each figure is the minimum over the repeats,
because other work on the machine can only lengthen it. Our first epoch includes building the
`ImageStore`. The row of two threads needs two idle cores.

    CHEXNET_RSNA_DIR=<folder> python benchmarks/bench_generator.py
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import product
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
from bench_convert import HEADER
from keras.src.trainers.data_adapters.py_dataset_adapter import OrderedEnqueuer
from original_generator import ORIGINAL_BATCH, OriginalGenerator

from chexnet.dicom import convert_folder
from chexnet.generator import AugmentedImageSequence, ImageStore, default_augmenter
from chexnet.model import build_chexnet
from chexnet.phantom import write_phantom_study

SIZE, BATCH = 512, 16
POOL_EPOCHS = 5
SHORT_TRIES = 10  # per round, of what takes a fraction of a second
STUDY = 30_000  # films
AHEAD = 2  # batches that may be ready in `waiting`: far fewer than its steps


def jpgs(scratch: Path) -> tuple[Path, str]:
    """A folder of JPGs from genuine or synthetic films, and a description of them."""
    if folder := os.environ.get("CHEXNET_RSNA_DIR"):
        source, what = Path(folder), "genuine films"
    else:
        source, what = scratch / "study", "synthetic films"
        write_phantom_study(source, films=100)
    convert_folder(source / "stage_2_train_images", scratch / "jpg", progress=False)
    return scratch / "jpg", what


def our_batches(
    folder: Path,
    films: list[Path],
    cache: Path,
    workers: int = 1,
    batch_size: int = BATCH,
    size: int = SIZE,
) -> AugmentedImageSequence:
    """Batches as in training, on one core; builds the store if the cache has none."""
    images = pd.DataFrame({"image_id": [film.stem for film in films]})
    images["Pneumonia"] = np.arange(len(films)) % 2
    given = {"image_size": size, "cache": cache, "workers": 1, "progress": False}
    store = ImageStore(folder, images["image_id"], **given)
    return AugmentedImageSequence(
        store, images, class_names=("Pneumonia",), batch_size=batch_size, shuffle=True,
        augmenter=default_augmenter(size), workers=workers,
    )  # fmt: skip


def milliseconds(work: Callable[[], object], films: int) -> float:
    """Wall time per film."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began) / films


def through(batches: AugmentedImageSequence) -> None:
    """One epoch in this thread."""
    for index in range(len(batches)):
        batches[index]
    batches.epoch += 1


def through_pool(batches: AugmentedImageSequence, workers: int) -> None:
    """`POOL_EPOCHS` epochs in threads; one epoch hardly takes longer than starting them."""
    asked = product(range(batches.epoch, batches.epoch + POOL_EPOCHS), range(len(batches)))
    with ThreadPoolExecutor(workers) as pool:
        sum(pool.map(lambda place: len(batches.batch(*place)[0]), asked))
    batches.epoch += POOL_EPOCHS


def through_original(films: list[Path], workers: int) -> None:
    """One epoch of the original's batches, in threads."""
    batches = [films[start:][:ORIGINAL_BATCH] for start in range(0, len(films), ORIGINAL_BATCH)]
    generator = OriginalGenerator(SIZE)
    with ThreadPoolExecutor(workers) as pool:
        sum(pool.map(lambda batch: len(generator.batch(batch)), batches))


class Endless(keras.utils.PyDataset):
    """The batches of an epoch again and again, without Keras' pause between two epochs."""

    num_batches = None

    def __init__(self, batches: keras.utils.PyDataset, *, max_queue_size: int = 8) -> None:
        super().__init__(workers=batches.workers, max_queue_size=max_queue_size)
        self.batches = batches

    def __getitem__(self, index: int) -> tuple:
        return self.batches[index % len(self.batches)]


def fetched(batches: keras.utils.PyDataset) -> Iterator[tuple]:
    """Batches from the queue that ``fit`` uses (private in Keras); close it at the end."""
    queue = OrderedEnqueuer(batches, batches.workers, max_queue_size=batches.max_queue_size)
    queue.start()
    try:
        yield from queue.get()
    finally:
        queue.stop()


def through_queue(batches: AugmentedImageSequence) -> None:
    """One epoch, as ``fit`` fetches it."""
    with closing(fetched(batches)) as fed:
        for _ in range(len(batches)):
            next(fed)
    batches.epoch += 1


def one_round(folder: Path, films: list[Path], some: list[Path], cache: Path) -> dict[str, float]:
    """Milliseconds per film of each generator, once."""
    made = {
        "original": milliseconds(lambda: through_original(some, 1), len(some)),
        "original two": milliseconds(lambda: through_original(some, 2), len(some)),
        "first": milliseconds(lambda: through(our_batches(folder, films, cache)), len(films)),
    }
    batches = our_batches(folder, films, cache)
    source = batches.store[films[0].stem].repeat(BATCH, axis=0)
    target = np.empty_like(source)
    copies = 200
    ways = {
        "later": (lambda: through(batches), len(films)),
        "one": (lambda: through_pool(batches, 1), POOL_EPOCHS * len(films)),
        "two": (lambda: through_pool(batches, 2), POOL_EPOCHS * len(films)),
        "copy": (lambda: [np.copyto(target, source) for _ in range(copies)], copies * BATCH),
    }
    tries = [{way: milliseconds(*work) for way, work in ways.items()} for _ in range(SHORT_TRIES)]
    made |= {way: min(one[way] for one in tries) for way in ways}
    shutil.rmtree(cache)
    return made


def beside_the_original(folder: Path, what: str, chosen: argparse.Namespace) -> list[str]:
    """First and later epochs, and two threads."""
    films = sorted(folder.glob("*.jpg"))[: chosen.films]
    some = films[: chosen.original_films]
    rounds = [
        one_round(folder, films, some, folder.parent / f"cache{number}")
        for number in range(chosen.repeats + 1)
    ][1:]  # the first round warms up
    ms = {way: min(one[way] for one in rounds) for way in rounds[0]}
    lines = [
        f"| {epoch} at {SIZE} px ({len(films)} {what}) | {ms[way]:.2f} ms a film "
        f"| {ms['original']:.1f} ms | copy {ms['copy']:.4f} ms | "
        f"{ms['original'] / ms[way]:.0f} x faster, {ms[way] / ms['copy']:.0f} x a copy | {least} |"
        for epoch, way, least in (
            ("first epoch, store built", "first", "14 x"),
            ("later epochs", "later", "150 x"),
        )
    ]
    ours, originals = ms["one"] / ms["two"], ms["original"] / ms["original two"]
    threads = (
        f"| two worker threads against one, later epochs | {ms['two']:.2f} ms a film, one "
        f"{ms['one']:.2f} ms | {ms['original two']:.1f} ms, one {ms['original']:.1f} ms | 2 x "
        f"| {ours:.2f} x, the original {originals:.2f} x | 1.7 x |"
    )
    return [*lines, threads]


def own_memory() -> int:
    """Memory of this process alone, in bytes (RssAnon)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(x.split()[1]) for x in status.splitlines() if x.startswith("RssAnon"))


def memory(batches: AugmentedImageSequence) -> str:
    """Memory of the process while it reads as many films as the whole study has."""
    if not Path("/proc/self/status").exists():
        return f"| memory over {STUDY} films | not measured: no /proc | | | | 1.5 GiB |"
    seen, films = [own_memory()], 0
    while films < STUDY:
        through_queue(batches)
        films += len(batches.image_ids)
        seen.append(own_memory())
    third = len(seen) // 3
    grown = max(seen[-third:]) - max(seen[1 : 1 + third])
    return (
        f"| memory of the process (RssAnon) while iterating over {films} films at {SIZE} px "
        f"| at most {max(seen) / 2**30:.2f} GiB, {seen[0] / 2**30:.2f} before | | "
        f"| last third against first: {grown / 2**20:+.0f} MiB | flat, below 1.5 GiB |"
    )


def gpu() -> bool:
    """Whether the backend of Keras has a GPU."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_available()
    try:
        return bool(keras.distribution.list_devices("gpu"))
    except RuntimeError:  # JAX, without a GPU
        return False


def waiting(batches: AugmentedImageSequence, device: str, steps: int) -> str:
    """Share of training in which DenseNet121 waits for the next batch.

    The share is the time between the request and the arrival of each batch, divided by the total
    time. The network is compiled before the queue starts, and the clock starts with the first
    batch. So the queue of `AHEAD` batches is almost empty at the start and cannot hide a slow
    generator.
    """
    model = build_chexnet(SIZE, weights=None)
    # XLA takes minutes to compile on a CPU.
    jit = "auto" if device == "GPU" else False
    model.compile("adam", loss="binary_crossentropy", jit_compile=jit)
    model.train_on_batch(*batches[0])  # compiles
    with closing(fetched(Endless(batches, max_queue_size=AHEAD))) as fed:
        batch = next(fed)
        waited, began = 0.0, time.perf_counter()
        for _ in range(steps):
            model.train_on_batch(*batch)  # returns the loss, so the step is complete
            asked = time.perf_counter()
            batch = next(fed)
            waited += time.perf_counter() - asked
        spent = time.perf_counter() - began
    return (
        f"| share of training in which the model waits for data, {device}, {batches.workers} "
        f"threads, batch {batches.batch_size}, {AHEAD} ahead | {100 * waited / spent:.3f} % of "
        f"{spent:.1f} s, {steps} steps | | | | below 2 % |"
    )


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--films", type=int, default=160, help="an epoch of ours")
    arguments.add_argument("--original-films", type=int, default=24, help="an epoch of theirs")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=10, help="of training; 0 leaves it out")
    chosen = arguments.parse_args()
    cv2.setNumThreads(1)
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    print(HEADER)
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        folder, what = jpgs(Path(scratch))
        for line in beside_the_original(folder, what, chosen):
            print(line, flush=True)
        films = sorted(folder.glob("*.jpg"))
        batches = our_batches(folder, films, Path(scratch) / "cache", workers=2)
        print(memory(batches), flush=True)
        if chosen.steps:
            device = "GPU" if gpu() else "CPU"
            size = BATCH if device == "GPU" else ORIGINAL_BATCH
            whole = films[: len(films) // size * size]  # another shape would be compiled again
            batches = our_batches(folder, whole, Path(scratch) / "cache", 2, batch_size=size)
            print(waiting(batches, device, chosen.steps))
            if device == "CPU":
                print("| the same on a GPU | not measured (no GPU) | | | | below 2 % |")
        del batches


if __name__ == "__main__":
    main()
