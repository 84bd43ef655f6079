"""A training step on a GPU in bfloat16: on one batch, on our generator's, and in plain PyTorch.

Keras runs on the backend that ``KERAS_BACKEND`` names, PyTorch beside it on the same card. Without
a GPU nothing is measured, and the table says so; ``--anyway`` runs it on the CPU all the same, to
see that it works. PyTorch's DenseNet121 is torchvision's, which only this asks for:
``.venv/bin/pip install --constraint constraints.txt --editable '.[backends]' torchvision``.

    KERAS_BACKEND=jax CHEXNET_RSNA_DIR=<folder> python benchmarks/bench_gpu.py
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import keras
import numpy as np
from bench_generator import Endless, fetched, gpu, jpgs, our_batches

from chexnet.model import build_chexnet

SIZES = (224, 512)
WARM_UP = 3  # steps that compile and fill the queue
ROWS = (
    "training step, one batch again and again",
    "the same with batches from our generator (asked for: 95 % of it)",
    "DenseNet121 in PyTorch, channels-last, compiled, one batch again and again",
)


def keras_speed(model: keras.Model, batches: Iterator[tuple], steps: int) -> float:
    """Films a second."""
    for _ in range(WARM_UP):
        model.train_on_batch(*next(batches))
    began, films = time.perf_counter(), 0
    for _ in range(steps):
        batch = next(batches)
        model.train_on_batch(*batch)  # returns the loss as a number, so the step has ended
        films += len(batch[0])
    return films / (time.perf_counter() - began)


def torch_speed(batch: tuple, steps: int, device: str) -> float:
    """Films a second of torchvision's DenseNet121, the batch sent from the host at each step."""
    import torch
    import torchvision

    network = torchvision.models.densenet121(num_classes=1)
    network = network.to(device, memory_format=torch.channels_last).train()
    compiled = torch.compile(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    loss_of = torch.nn.BCEWithLogitsLoss()

    def step() -> float:
        films = torch.from_numpy(batch[0]).to(device).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        films = (films.float() / 255 - 0.45) / 0.225
        films = films.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = compiled(films)
        loss = loss_of(logits.float(), torch.from_numpy(batch[1]).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(WARM_UP):
        step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * len(batch[0]) / (time.perf_counter() - began)


def measured(size: int, chosen: argparse.Namespace, folder: Path, cache: Path) -> list[str]:
    """What stands beside each of `ROWS`."""
    films = sorted(folder.glob("*.jpg"))
    if len(films) < chosen.batch:
        raise SystemExit(f"{len(films)} films are fewer than --batch {chosen.batch}")
    films = films[: len(films) // chosen.batch * chosen.batch]  # batches of one shape
    batches = our_batches(
        folder, films, cache, workers=chosen.workers, batch_size=chosen.batch, size=size
    )
    one = batches[0]
    keras.backend.clear_session()
    model = build_chexnet(size, weights=None, precision="mixed_bfloat16")
    model.compile("adamw", loss="binary_crossentropy", jit_compile="auto" if gpu() else False)
    alone = keras_speed(model, iter(lambda: one, None), chosen.steps)
    with closing(fetched(Endless(batches))) as fed:
        with_data = keras_speed(model, fed, chosen.steps)
    found = [f"{alone:.1f}", f"{with_data:.1f} ({100 * with_data / alone:.0f} %)"]
    try:
        torch = torch_speed(one, chosen.steps, "cuda" if gpu() else "cpu")
    except ImportError as error:
        found.append(f"not measured: {error}")
    else:
        found.append(f"{torch:.1f} (Keras: {alone / torch:.2f} ×)")
    return found


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="in pixels")
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--workers", type=int, default=8, help="threads of the generator")
    arguments.add_argument("--anyway", action="store_true", help="on the CPU, if there is no GPU")
    chosen = arguments.parse_args()
    columns = {}
    if gpu() or chosen.anyway:
        with tempfile.TemporaryDirectory() as scratch:
            folder, _ = jpgs(Path(scratch))
            for size in chosen.sizes:
                columns[size] = measured(size, chosen, folder, Path(scratch) / "cache")
    else:
        columns = {size: ["not measured: no GPU"] * len(ROWS) for size in chosen.sizes}
    heads = [f"films a second at {size} px" for size in columns]
    print(f"| bfloat16, {keras.backend.backend()}, batch {chosen.batch} | {' | '.join(heads)} |")
    print(f"|---|{'---|' * len(heads)}")
    for row, cells in zip(ROWS, np.transpose(list(columns.values())), strict=True):
        print(f"| {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
