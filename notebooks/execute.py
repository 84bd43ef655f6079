"""Executes the notebooks in order and prints what they found.

The executed copies go to ``output/<run>/notebooks/``; those of the previous run are kept with it in
``output/<run>/earlier/``. The notebooks in git are changed only with
``--publish``, which puts the copies there, cleaned, and the results figure beside the README's.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
import papermill
from traitlets.config import Config

from chexnet.evaluation import interval_text
from chexnet.files import check_image_id, locked
from chexnet.runs import Run, set_aside

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
# Means nothing on a page where no kernel runs.
WIDGET = "application/vnd.jupyter.widget-view+json"
# Parameters that name a folder under data/ or output/.
PLAIN_NAMES = ("STUDY", "RUN")


@contextlib.contextmanager
def local_socket(root: Path) -> Iterator[Config]:
    """A kernel on local sockets: nobody else on the machine can listen or speak to it.

    They are in a new temporary folder, since a path of theirs must be short and nobody else's.
    Those of killed processes are removed.

    Args:
        root: of the project; holds ``output/``.
    """
    prefix = f"chexnet-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]}-"
    with contextlib.ExitStack() as stack:
        with locked(root / "output" / ".sockets.lock", f"{root}: locked", wait=60):
            for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
                with contextlib.suppress(BlockingIOError), locked(left / "lock", "in use"):
                    shutil.rmtree(left)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
            stack.enter_context(locked(folder / "lock", f"{folder}: in use"))
        yield Config({"KernelManager": {"transport": "ipc", "ip": str(folder / "kernel")}})


def parameters_of(notebook: Path) -> dict[str, object]:
    """Names and values assigned in the cell tagged ``parameters``."""
    found = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(parameter["default"]) for name, parameter in found.items()}


def check_parameters(given: dict[str, object], notebooks: Sequence[Path] = NOTEBOOKS) -> None:
    """Refuses what would only fail after hours.

    Args:
        given: by name.
        notebooks: that are to take them.

    Raises:
        ValueError: a name that no notebook has, ``RUN`` (it has an option of its own), or a value
            of another type than the one in the notebook; ``None`` fits everywhere. Or
            a study that is not the plain name of a folder under ``data/``.
    """
    known: dict[str, object] = {}
    for notebook in notebooks:
        known |= parameters_of(notebook)
    known.pop("RUN", None)
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"unknown parameter {name}; expected {', '.join(sorted(known))}")
        kind = type(known[name])
        kinds = (int, float) if kind is float else (kind,)
        if value is not None and known[name] is not None and type(value) not in kinds:
            raise ValueError(f"{name}={value!r}: expected a value of type {kind.__name__}")
        if name in PLAIN_NAMES:
            check_image_id(value, name)


def execute(
    run: str,
    given: dict[str, object],
    *,
    notebooks: Sequence[Path] = NOTEBOOKS,
    root: Path = ROOT,
) -> None:
    """Runs each notebook with those of the parameters that it has.

    While they run, the executed copies are in ``notebooks.part/``: notebook 03 starts the run, and
    with it moves the ``notebooks/`` of the previous one to ``earlier/``. If a notebook fails, the
    copies stay there until the next execution.

    Args:
        run: plain name of the run folder under ``output/``.
        given: parameters by name, see `check_parameters`.
        notebooks: in order.
        root: holds ``data/`` and ``output/``.

    Raises:
        ValueError: the run's name or a parameter is not allowed.
        BlockingIOError: another process is executing the notebooks of this run.
    """
    check_image_id(run, "--run")
    check_parameters(given, notebooks)
    given = {**given, "RUN": run}
    for name in ("SOURCE", "WEIGHTS"):  # notebooks run in the project's folder
        if given.get(name) and Path(str(given[name])).exists():
            given[name] = str(Path(str(given[name])).resolve())
    folder = root / "output" / run
    unfinished, executed = folder / "notebooks.part", folder / "notebooks"
    unfinished.mkdir(parents=True, exist_ok=True)
    (root / "data").mkdir(exist_ok=True)
    message = f"{folder}: another process is executing the notebooks of this run"
    with locked(folder / "notebooks.lock", message):
        for notebook in notebooks:
            started = time.perf_counter()
            print(f"{notebook.stem} ...", flush=True)
            its = {name: given[name] for name in parameters_of(notebook) if name in given}
            with local_socket(root) as config:
                papermill.execute_notebook(
                    str(notebook),
                    str(unfinished / notebook.name),
                    parameters=its,
                    cwd=str(root),
                    kernel_name="python3",
                    progress_bar=False,
                    config=config,
                )
            print(f"{notebook.stem} done in {time.perf_counter() - started:.0f} s", flush=True)
        executed.mkdir(exist_ok=True)
        for notebook in notebooks:
            (unfinished / notebook.name).replace(executed / notebook.name)
        shutil.rmtree(unfinished)


def summary(run: Run) -> str:
    """The results figure, the AUROC and the hit rate on the test split, one line each."""
    name = run.class_names[0]
    test = run.current_metrics("classes")[name]["test"]
    maps = run.current_metrics("localization")[name]
    hits = maps.get("hit_rate", maps)  # without boxes there is a reason only
    lines = [f"results figure: {(run.folder / 'figures' / 'results.png').relative_to(ROOT)}"]
    for title, number, films in (
        (f"test AUROC of {name}, 95 % interval", test["auroc"] or test, test["n"]),
        ("localization hit rate, 95 % interval", hits, hits.get("n", 0)),
    ):
        reason = f" ({number['reason']})" if number.get("reason") else ""
        lines.append(f"{title}: {interval_text(number)}{reason}, {films} films")
    return "\n".join(lines)


def publish(run: Run) -> None:
    """Puts a run's executed notebooks and results figure where git keeps them.

    What differs from machine to machine is left out: the parameters that were injected, paths,
    times, what libraries write to the error stream, progress bars, and widgets, of which only the
    picture that they hold for such pages is kept.
    """
    for path in NOTEBOOKS:
        book = nbformat.read(run.folder / "notebooks" / path.name, as_version=4)
        book.metadata.pop("papermill", None)
        book.metadata.pop("widgets", None)
        book.cells = [
            cell
            for cell in book.cells
            if "injected-parameters" not in cell.metadata.get("tags", [])
        ]
        for cell in book.cells:
            for key in ("papermill", "execution"):
                cell.metadata.pop(key, None)
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if _is_kept(output)]
                for output in cell.outputs:
                    output.get("data", {}).pop(WIDGET, None)
        nbformat.write(book, path)
    (ROOT / "docs").mkdir(exist_ok=True)
    shutil.copy(run.folder / "figures" / "results.png", ROOT / "docs" / "results.png")


def _is_kept(output: dict) -> bool:
    if output["output_type"] == "stream":
        return output["name"] == "stdout"
    data = output.get("data", {})
    return WIDGET not in data or any(kind.startswith("image/") for kind in data)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="name of the run folder under output/")
    parser.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a notebook's parameter; the value is JSON, or else taken as text",
    )
    parser.add_argument(
        "--anew", action="store_true", help="train again, although the run may have ended"
    )
    parser.add_argument(
        "--publish", action="store_true", help="only put a run's notebooks into git"
    )
    arguments = parser.parse_args()
    given = {}
    for name, value in arguments.parameter:
        try:
            given[name] = json.loads(value)
        except json.JSONDecodeError:
            given[name] = value
    try:
        if arguments.anew:
            set_aside(ROOT / "output" / check_image_id(arguments.run, "--run"))
        if not arguments.publish:
            execute(arguments.run, given)
    except (BlockingIOError, ValueError) as error:
        sys.exit(str(error))
    run = Run(ROOT / "output" / arguments.run)
    if arguments.publish:
        publish(run)
    print(summary(run))


if __name__ == "__main__":
    main()
