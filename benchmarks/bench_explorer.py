"""How soon a change is seen in the explorer.

    python benchmarks/bench_explorer.py output/demo

In the kernel: from the change to what is sent to the page. On the screen: from the click or the key
to the frame in which JupyterLab shows the answer, and while a slider or the image is dragged the
time between frames; that needs what ``make test-browser`` installs.
"""

import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chexnet.explorer import explore
from chexnet.explorer.panel import Explorer
from chexnet.runs import Run

ROOT = Path(__file__).parents[1]
TIMES = 40
LONG = 60_000  # milliseconds
# What a person does, and to which element of the page; until the page has drawn the answer.
_MEASURE = """async ([kind, words]) => {
    const panel = document.querySelector(".chexnet-explorer");
    const view = panel.querySelector(".chexnet-view");
    const labelled = (kind) => [...panel.querySelectorAll(kind)].find(
        (one) => one.innerText.includes(words));
    const press = (target, key) => target.dispatchEvent(
        new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
    await new Promise((done) => setTimeout(done, 400)); // a person looks, too
    const before = view.dataset.shown;
    const shown = new Promise((done) => {
        const look = () => view.dataset.shown !== before
            && (view.removeEventListener("chexnet-drawn", look), done());
        view.addEventListener("chexnet-drawn", look);
    });
    const begun = performance.now();
    if (kind === "key") press(view, words);
    if (kind === "button") labelled("button").click();
    if (kind === "tick") labelled("label").querySelector("input").click();
    if (kind === "slide") press(labelled(".widget-hslider").querySelector(".noUi-handle"),
        "ArrowLeft");
    await shown;
    await new Promise(requestAnimationFrame);
    return performance.now() - begun;
}"""
_WATCH = """() => {
    const view = document.querySelector(".chexnet-view");
    window.drawn = [];
    let last = null;
    view.addEventListener("chexnet-drawn", () => {
        if (view.dataset.shown !== last) window.drawn.push(performance.now());
        last = view.dataset.shown;
    });
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
        "decision threshold": median_of(timed(step(panel.decision_threshold, 0.05))),
        "map threshold": median_of(timed(next_map_threshold)),
        "CLAHE": median_of(timed(flip(panel.clahe))),
    }


def on_screen(run: Path) -> dict[str, str]:
    """Milliseconds until JupyterLab shows some of those changes."""
    from tests.browser.jupyter import chromium, jupyter_server, write_notebook

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        shutil.copytree(run, home / "output" / "demo", ignore=shutil.ignore_patterns("*.keras"))
        code = "from chexnet.explorer.panel import explore\nexplore('output/demo')"
        write_notebook(home / "look.ipynb", code)
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
                "key b: reference boxes": ("key", "b"),
                "key +: zoom": ("key", "+"),
                "key right arrow: next image": ("key", "ArrowRight"),
                "key left arrow: previous image": ("key", "ArrowLeft"),
                "button: next image": ("button", "next"),
                "tick: CLAHE": ("tick", "CLAHE"),
                "slider step: map threshold": ("slide", "map threshold"),
                "slider step: overlay opacity": ("slide", "overlay opacity"),
            }
            times: dict[str, list[float]] = {what: [] for what in changes}
            for what, how in changes.items():
                page.evaluate(_MEASURE, how)  # once to warm up
                # Some steps take a slider to its end, and the zoom.
                for _ in range(5 if "slider" in what or "zoom" in what else TIMES):
                    times[what].append(page.evaluate(_MEASURE, how))
            drags = {
                "drag of a slider: overlay opacity": _slider_of(page, "overlay opacity"),
                "drag of a slider: map threshold": _slider_of(page, "map threshold"),
                "drag on the image: window and level": _image_of(page),
            }
            page.evaluate(_WATCH)
            gaps = {what: _gaps_of_drag(page, *place) for what, place in drags.items()}
    texts = {what: f"{statistics.median(its):.0f} | {max(its):.0f}" for what, its in times.items()}
    for what, its in gaps.items():
        texts[f"{what}, between frames"] = f"{statistics.median(its):.0f} | {max(its):.0f}"
    return texts


def _slider_of(page: Any, words: str) -> tuple:
    """Where a slider's handle is, its farther end, and the button to drag it with."""
    slider = page.locator(".chexnet-explorer .widget-hslider", has_text=words)
    handle, track = (
        slider.locator(part).bounding_box() for part in (".noUi-handle", ".noUi-target")
    )
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    middle = track["x"] + track["width"] / 2
    return (x, y), (track["x"] + (0.95 if x < middle else 0.05) * track["width"], y), "left"


def _image_of(page: Any) -> tuple:
    box = page.locator("canvas.overlay").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    return (x, y), (x - 180, y + 40), "right"


def _gaps_of_drag(page: Any, start: tuple, end: tuple, button: str) -> list[float]:
    """Milliseconds between the frames while the mouse goes there and back twice in two seconds.

    A slider has 20 steps: slower, the time between frames would be that between its steps.
    """
    page.mouse.move(*start)
    page.mouse.down(button=button)
    page.evaluate("window.drawn = []")
    began = time.perf_counter()
    while (share := (time.perf_counter() - began) / 2) < 1:
        way = 1 - abs(1 - 4 * share % 2)
        x, y = (a + way * (b - a) for a, b in zip(start, end, strict=True))
        page.mouse.move(x, y)
    page.mouse.up(button=button)
    drawn = page.evaluate("window.drawn")
    return [later - one for one, later in itertools.pairwise(drawn)]


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
