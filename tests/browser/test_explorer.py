"""Notebook 05 in a real browser: what the explorer shows is what the run folder says."""

import base64
import re

import cv2
import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Page, TimeoutError, expect

from chexnet.explorer.gallery import Gallery, jpg
from chexnet.runs import Run
from tests.browser.conftest import SCREENS

LONG = 180_000  # milliseconds: a cold kernel on a busy machine imports for a while
PAGES = {
    "lab": "lab/tree/notebooks/05_visualize.ipynb",
    "notebook": "notebooks/notebooks/05_visualize.ipynb",
    "voila": "voila/render/notebooks/05_visualize.ipynb",
}


class Panel:
    """The explorer on a page, for a person's eyes and hands."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.root = page.locator(".chexnet-explorer")
        self.view = self.root.locator(".chexnet-view")

    def text(self, kind: str) -> str:
        return self.view.locator(f".{kind}").inner_text()

    def wait_for(self, kind: str, words: str) -> None:
        expect(self.view.locator(f".{kind}")).to_have_text(words, timeout=LONG)

    def click(self, words: str) -> None:
        self.root.get_by_role("button", name=words, exact=False).click()

    def tick(self, words: str) -> None:
        self.root.locator("label", has_text=words).click()

    def slide(self, words: str, share: float) -> None:
        """Clicks on a slider's line at a share of its length; its ends are reached by keys."""
        slider = self.root.locator(".widget-hslider", has_text=words)
        if share in (0, 1):
            slider.locator(".noUi-handle").press("End" if share else "Home")
            return
        box = slider.locator(".noUi-target").bounding_box()
        self.page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)

    def readout(self, words: str) -> float:
        its = self.root.locator(".widget-hslider", has_text=words)
        return float(its.locator(".widget-readout").inner_text())

    def picture(self, name: str) -> bytes:
        """The very bytes of the picture that is shown."""
        return base64.b64decode(
            self.view.locator(f"img.{name}").evaluate(
                """async (image) => {
                    for (let tries = 0; ; tries++) {
                        try {  // decode() fails where the next picture comes meanwhile
                            await image.decode();
                            const answer = await fetch(image.src);
                            const bytes = new Uint8Array(await answer.arrayBuffer());
                            return btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join(""));
                        } catch (error) {
                            if (tries === 20) throw error;
                        }
                    }
                }"""
            )
        )

    def wait_for_picture(self, name: str, wanted: bytes) -> None:
        for _ in range(100):
            if self.picture(name) == wanted:
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"after 10 s the {name} shown is still another one")


def decoded(data: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), 4)


def blue_at(picture: np.ndarray, x: float, y: float) -> bool:
    red, green, blue = picture[round(y), round(x)].astype(int)
    return blue - red > 60 and blue > green


def run_all(page: Page, server, kind: str) -> Panel:
    page.goto(f"{server.url}{PAGES[kind]}?token={server.token}")
    if kind != "voila":  # it runs the notebook by itself
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=LONG)
        # On a busy machine JupyterLab may ask for a kernel. Until one has started it may do
        # nothing, so a person clicks again.
        page.add_locator_handler(
            page.locator(".jp-Dialog .jp-mod-accept"),
            lambda button: button.click(),
            no_wait_after=True,
        )
        begun = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]"))
        for _ in range(LONG // 5000):
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name=re.compile("^Run All Cells")).first.click()
            try:
                begun.first.wait_for(timeout=5000)
                break
            except TimeoutError:
                continue
    panel = Panel(page)
    failed = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    panel.view.or_(failed).first.wait_for(timeout=LONG)
    assert not failed.count(), failed.first.inner_text()
    panel.view.locator(".image-id").wait_for(timeout=LONG)
    panel.root.scroll_into_view_if_needed()
    return panel


@pytest.fixture(scope="module")
def expected(home) -> dict:
    """What the run folder says, read without the explorer."""
    run = Run(home / "output" / "demo")
    threshold = run.metrics["classes"]["Pneumonia"]["operating_points"]["youden"]["threshold"]
    films = pd.read_csv(run.folder / "predictions.csv", dtype={"image_id": str})
    films = films[films["split"] == "test"].sort_values("y_score", ascending=False)
    called, ill = films["y_score"] >= threshold, films["y_true"] == 1
    counts = {
        "TP": (called & ill).sum(),
        "FN": (~called & ill).sum(),
        "TN": (~called & ~ill).sum(),
        "FP": (called & ~ill).sum(),
    }
    missed = films[~called & ill]
    assert len(missed) > 3
    words = " · ".join(f"{name} {count}" for name, count in counts.items())
    return {
        "run": run,
        "first": films["image_id"].iloc[0],
        "missed": missed["image_id"].tolist(),
        "scores": missed["y_score"].tolist(),
        "threshold": threshold,
        "counts": f"{words} of {len(films)} test images",
        "films": len(films),
    }


@pytest.mark.parametrize("kind", list(PAGES))
def test_a_person_looks_at_the_films_that_were_missed(page, server, expected, kind):
    run, missed = expected["run"], expected["missed"]
    gallery = Gallery(run)
    row_of = {image_id: row for row, image_id in enumerate(gallery.films["image_id"])}
    threshold = gallery.chosen_map_threshold
    panel = run_all(page, server, kind)

    panel.wait_for("image-id", expected["first"])
    assert panel.text("position") == f"1 of {expected['films']} images"
    assert panel.text("counts") == expected["counts"]

    panel.click("false negatives")
    panel.wait_for("position", f"1 of {len(missed)} false negatives")
    assert panel.text("image-id") == missed[0]
    assert panel.text("outcome") == "false negative"

    panel.click("next")
    panel.wait_for("position", f"2 of {len(missed)} false negatives")
    assert panel.text("image-id") == missed[1]
    decision = f"score {expected['scores'][1]:.3f} < {expected['threshold']:.3f} → negative"
    assert panel.text("score") == decision
    film = run.images.set_index("image_id").loc[missed[1]]
    assert panel.text("header") == f"{film['view']} · {film['sex']} · {film['age']} y"
    stored = (run.folder / "films" / f"{missed[1]}.jpg").read_bytes()
    panel.wait_for_picture("film", stored)
    row = row_of[missed[1]]
    panel.wait_for_picture("overlay", jpg(gallery.overlay(row, map_threshold=threshold)))
    page.screenshot(path=SCREENS / f"{kind}-1-false-negative.png")

    # The reference box is where boxes.csv says, on a picture of half the film's size.
    box = run.boxes.set_index("image_id").loc[missed[1], ["x", "y", "width", "height"]] / 2
    shown = decoded(panel.picture("overlay"))
    edges = [
        (box["x"], box["y"] + box["height"] / 2),
        (box["x"] + box["width"] - 1, box["y"] + box["height"] / 2),
        (box["x"] + box["width"] / 2, box["y"]),
        (box["x"] + box["width"] / 2, box["y"] + box["height"] - 1),
    ]
    inside = [edge for edge in edges if 0 <= edge[0] < shown.shape[1]]
    assert len(inside) >= 3
    assert all(blue_at(shown, *edge) for edge in inside)

    panel.slide("overlay opacity", 0.25)
    panel.wait_for_picture(
        "overlay", jpg(gallery.overlay(row, map_threshold=threshold, opacity=0.25))
    )
    assert panel.readout("overlay opacity") == 0.25
    panel.slide("overlay opacity", 0)
    panel.wait_for_picture(
        "overlay", jpg(gallery.overlay(row, map_threshold=threshold, opacity=0.0))
    )
    panel.tick("reference boxes")
    without = jpg(gallery.overlay(row, map_threshold=threshold, opacity=0.0, boxes=False))
    panel.wait_for_picture("overlay", without)
    # No map and no boxes: the film itself.
    np.testing.assert_allclose(
        decoded(panel.picture("overlay")).astype(int), decoded(stored).astype(int), atol=4
    )
    page.screenshot(path=SCREENS / f"{kind}-2-nothing-on-it.png")

    panel.slide("overlay opacity", 1)
    panel.wait_for_picture(
        "overlay", jpg(gallery.overlay(row, map_threshold=threshold, opacity=1, boxes=False))
    )
    assert panel.readout("overlay opacity") == 1
    panel.tick("CLAHE")
    panel.wait_for_picture("film", gallery.film_jpg(row, clahe=True))
    page.screenshot(path=SCREENS / f"{kind}-3-clahe.png")


@pytest.mark.parametrize("kind", list(PAGES))
def test_arrow_keys_turn_the_films_over_and_leave_the_cells_alone(page, server, expected, kind):
    missed = expected["missed"]
    panel = run_all(page, server, kind)
    panel.click("false negatives")
    panel.wait_for("image-id", missed[0])
    page.keyboard.press("ArrowRight")  # the button just clicked has the focus
    panel.wait_for("image-id", missed[1])
    panel.view.locator("img.film").click()
    for key, at in (("ArrowRight", 2), ("ArrowDown", 3), ("ArrowLeft", 2), ("ArrowUp", 1)):
        page.keyboard.press(key)
        panel.wait_for("image-id", missed[at])
    if kind != "voila":
        active = page.locator(".jp-Cell.jp-mod-active")
        assert active.locator(".chexnet-view").count() == 1


def test_the_thresholds_move_films_from_one_outcome_to_another(page, server, expected):
    panel = run_all(page, server, "lab")
    panel.slide("decision threshold", 1)
    expect(panel.view.locator(".counts")).to_contain_text("TP 0 ")
    assert "FP 0 of" in panel.text("counts")
    panel.click("true positives")
    panel.wait_for("position", "No true positives at threshold 1.000")
    expect(panel.view.locator("img.film")).not_to_be_visible()
    panel.slide("decision threshold", 0)
    expect(panel.view.locator(".counts")).to_contain_text("FN 0 ")
    panel.slide("map threshold", 1)
    gallery = Gallery(expected["run"])
    row = gallery.films["image_id"].tolist().index(panel.text("image-id"))
    last = gallery.map_thresholds("CAM")[-1]
    panel.wait_for_picture("overlay", jpg(gallery.overlay(row, map_threshold=last)))
