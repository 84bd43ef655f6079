"""How soon a change is seen in the explorer.

    python benchmarks/bench_explorer.py output/demo

In the kernel: from the change to the pictures that are sent. On the screen: from the click or the
key to the frame in which JupyterLab shows the new picture; that needs what ``make test-browser``
installs.
"""

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nbformat

from chexnet.explorer import explore
from chexnet.explorer.panel import Explorer
from chexnet.runs import Run

ROOT = Path(__file__).parents[1]
TIMES = 40
LONG = 60_000  # milliseconds
# What a person does, and to which element of the page; the picture that answers is awaited.
_MEASURE = """async ([kind, words]) => {
    const panel = document.querySelector(".chexnet-explorer");
    const labelled = (kind) => [...panel.querySelectorAll(kind)].find(
        (one) => one.innerText.includes(words));
    const image = panel.querySelector("img.overlay");
    const shown = new Promise((done) => image.addEventListener("load", done, {once: true}));
    const begun = performance.now();
    if (kind === "button") labelled("button").click();
    if (kind === "tick") labelled("label").querySelector("input").click();
    if (kind === "slide") labelled(".widget-hslider").querySelector(".noUi-handle").dispatchEvent(
        new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true}));
    await shown;
    await new Promise(requestAnimationFrame);
    return performance.now() - begun;
}"""


def median_of(measure: Callable[[], float]) -> str:
    """Median and longest of some milliseconds, as cells of a table."""
    times = [measure() for _ in range(TIMES)]
    return f"{statistics.median(times):.0f} | {max(times):.0f}"


def in_kernel(panel: Explorer) -> dict[str, str]:
    """Milliseconds in the kernel of each kind of change."""

    def timed(change: Callable[[], None]) -> Callable[[], float]:
        def measure() -> float:
            began = time.perf_counter()
            change()
            return (time.perf_counter() - began) * 1000

        return measure

    def flip(control: object) -> Callable[[], None]:
        return lambda: setattr(control, "value", not control.value)

    def step(control: object, size: float) -> Callable[[], None]:
        return lambda: setattr(control, "value", (control.value + size) % 1)

    def next_map_threshold() -> None:
        panel.map_threshold.index = (panel.map_threshold.index + 1) % 20

    return {
        "next image": median_of(timed(panel.next.click)),
        "overlay opacity": median_of(timed(step(panel.opacity, 0.05))),
        "decision threshold": median_of(timed(step(panel.decision_threshold, 0.05))),
        "map threshold": median_of(timed(next_map_threshold)),
        "reference boxes": median_of(timed(flip(panel.boxes))),
        "CLAHE": median_of(timed(flip(panel.clahe))),
    }


def on_screen(run: Path) -> dict[str, str]:
    """Milliseconds until JupyterLab shows some of those changes."""
    from tests.browser.jupyter import chromium, jupyter_server

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        shutil.copytree(run, home / "output" / "demo", ignore=shutil.ignore_patterns("*.keras"))
        code = "from chexnet.explorer.panel import explore\nexplore('output/demo')"
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(book, home / "look.ipynb")
        with jupyter_server(home, Path(folder) / "own") as server, chromium() as browser:
            page = browser.new_page(viewport={"width": 1500, "height": 1300})
            page.goto(f"{server.url}lab/tree/look.ipynb?token={server.token}")
            page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=LONG)
            # Its status bar tells when the kernel is there; before, JupyterLab may do nothing.
            page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=LONG)
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells").first.click()
            page.locator(".chexnet-view .image-id").wait_for(timeout=LONG)
            page.wait_for_timeout(1000)
            # The first film has boxes; on one without them nothing would change.
            changes = {
                "reference boxes": ("tick", "reference boxes"),
                "CLAHE": ("tick", "CLAHE"),
                "overlay opacity": ("slide", "overlay opacity"),
                "next image": ("button", "next"),
            }
            for what in changes.values():  # once to warm up
                page.evaluate(_MEASURE, what)
            times = {what: [] for what in changes}
            for what, how in changes.items():
                # Twelve steps take the opacity to its end.
                for _ in range(10 if what == "overlay opacity" else TIMES):
                    times[what].append(page.evaluate(_MEASURE, how))
    return {what: f"{statistics.median(its):.0f} | {max(its):.0f}" for what, its in times.items()}


def main() -> None:
    """Prints the table."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "output" / "demo")
    if not (run / "maps.npz").is_file():
        print(f"The explorer was not measured: no run in {run}")
        return
    sys.path.insert(0, str(ROOT))
    explore(run)  # the first widget of a process takes longer
    began = time.perf_counter()
    panel = explore(run)
    opened = (time.perf_counter() - began) * 1000
    began = time.perf_counter()
    panel.sort.value = "iou"
    first_sorted = (time.perf_counter() - began) * 1000
    panel.sort.value = "score"
    films = Run(run).config["films"]["test"]
    print(f"| a change in the explorer ({films} test images) | median, ms | longest | asked for |")
    print("|---|---|---|---|")
    print(f"| opened, in the kernel | {opened:.0f} | | below 1000 |")
    print(f"| sorted by IoU for the first time, in the kernel | {first_sorted:.0f} | | |")
    for what, cells in in_kernel(panel).items():
        print(f"| {what}, in the kernel | {cells} | |")
    try:
        import playwright  # noqa: F401
    except ImportError:
        print("| on the screen | not measured: make test-browser installs playwright | | |")
        return
    for what, cells in on_screen(run).items():
        print(f"| {what}, on the screen of JupyterLab | {cells} | below 100 |")


if __name__ == "__main__":
    main()
