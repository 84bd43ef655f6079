"""Executes the five notebooks in order and prints what they found.

The executed copies go to ``output/<run>/notebooks/``; the ones in git are not touched.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import papermill
from traitlets.config import Config

HERE = Path(__file__).parent
# A kernel on a local socket: nobody else on the machine can listen or speak to it.
LOCAL_SOCKET = Config({"KernelManager": {"transport": "ipc"}})
NOTEBOOKS = sorted(HERE.glob("0*.ipynb"))


def known_parameters(notebook: Path) -> set[str]:
    """Names assigned in the cell tagged ``parameters``."""
    return set(papermill.inspect_notebook(str(notebook)))


def execute(run: str, parameters: dict[str, object]) -> None:
    """Runs each notebook with those of the parameters that it knows.

    Args:
        run: name of the run folder under ``output/``.
        parameters: by name; a name that no notebook knows is an error before anything runs.

    Raises:
        SystemExit: a name is unknown.
    """
    known = {notebook: known_parameters(notebook) for notebook in NOTEBOOKS}
    unknown = set(parameters) - set().union(*known.values())
    if unknown:
        allowed = ", ".join(sorted(set().union(*known.values())))
        sys.exit(f"unknown parameter {', '.join(sorted(unknown))}; allowed are {allowed}")
    executed = HERE.parent / "output" / run / "notebooks"
    executed.mkdir(parents=True, exist_ok=True)
    given = {**parameters, "RUN": run}
    for notebook in NOTEBOOKS:
        started = time.perf_counter()
        print(f"{notebook.stem} ...", flush=True)
        papermill.execute_notebook(
            str(notebook),
            str(executed / notebook.name),
            parameters={name: given[name] for name in known[notebook] if name in given},
            cwd=str(HERE),
            kernel_name="python3",
            progress_bar=False,
            config=LOCAL_SOCKET,
        )
        print(f"{notebook.stem} done in {time.perf_counter() - started:.0f} s", flush=True)


def summary(run: str) -> str:
    """The results figure, the AUROC and the hit rate on the test split, one line each."""
    folder = HERE.parent / "output" / run
    metrics = json.loads((folder / "metrics.json").read_text())
    name, scores = next(iter(metrics["classes"].items()))
    auroc = scores["test"]["auroc"]
    hits = metrics["localization"]["hit_rate"]
    return "\n".join(
        [
            f"results figure: {folder / 'figures' / 'results.png'}",
            f"test AUROC ({name}): {auroc['value']:.3f} "
            f"(95 % interval {auroc['low']:.3f} to {auroc['high']:.3f})",
            f"localisation hit rate: {hits['value']:.2f} "
            f"(95 % interval {hits['low']:.2f} to {hits['high']:.2f}, {hits['n']} films)",
        ]
    )


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
    arguments = parser.parse_args()
    parameters = {}
    for name, value in arguments.parameter:
        try:
            parameters[name] = json.loads(value)
        except json.JSONDecodeError:
            parameters[name] = value
    execute(arguments.run, parameters)
    print(summary(arguments.run))


if __name__ == "__main__":
    main()
