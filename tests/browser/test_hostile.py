"""HTML in every text of a run that comes from a user's files: it is shown as text, never run.

The same run has two classes, and a second run to compare with: their controls are tested here.
"""

import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from chexnet.evaluation import evaluate, evaluate_maps
from chexnet.explorer.gallery import Gallery
from chexnet.runs import Run
from tests.browser.conftest import SCREENS, write_films
from tests.browser.jupyter import ROOT, write_notebook
from tests.browser.test_explorer import LONG, run_all
from tests.made_up_run import write_model, write_run

BAD = "<img src=x onerror=window.attacked=1>"


@pytest.fixture(scope="module")
def hostile(home) -> Run:
    """A run whose every text is HTML, a second one with such a name, and two notebooks."""
    texts = dict.fromkeys(("detailed_class", "view", "sex", "age"), BAD)
    texts["patient_id"] = lambda films: BAD + films["patient_id"]
    run = write_run(
        home / "output" / "hostile", films=240, classes=("Pneumonia", BAD), signal=0.5, **texts
    )
    write_films(run)
    evaluate(run, n_bootstrap=20)
    evaluate_maps(run, n_bootstrap=20)
    write_model(run)
    shutil.copytree(run.folder, home / "output" / BAD)
    test = run.images.query("split == 'test'")["image_id"]
    notes = pd.DataFrame({"image_id": [*test, BAD], "flag": 1, "note": BAD})
    notes.to_csv(run.folder / "flags.csv", index=False)
    lines = [
        "from chexnet.explorer import explore",
        "from chexnet.files import enter_project",
        "from chexnet.figures import show_table",
        "from chexnet.runs import Run",
        "enter_project()",
        "run = Run('output/hostile')",
        f"display(show_table(run.images.head(3).rename(columns={{'view': {BAD!r}}})))",
        f"explore(run, compare={f'output/{BAD}'!r})",
    ]
    write_notebook(home / "notebooks" / "hostile.ipynb", "\n".join(lines))
    page = nbformat.read(ROOT / "notebooks" / "06_predict.ipynb", as_version=4)
    for cell in page.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            assert 'RUN = "demo"' in cell.source
            cell.source = cell.source.replace('RUN = "demo"', 'RUN = "hostile"')
    nbformat.write(page, home / "notebooks" / "hostile_06.ipynb")
    return run


def assert_text_only(page: Page) -> None:
    """Nothing of it has become an element or has been run."""
    page.wait_for_timeout(300)
    assert page.locator("img[onerror], img[src=x]").count() == 0
    assert page.evaluate("window.attacked") is None


@pytest.mark.parametrize("kind", ["lab", "voila"])
def test_html_in_a_run_is_text_in_the_explorer(page, server, hostile, kind):
    panel = run_all(page, server, kind, "hostile")
    expect(page.get_by_role("columnheader", name=BAD)).to_be_visible()
    view = panel.view
    expect(view.locator(".label")).to_have_text(BAD)
    expect(view.locator(".header")).to_have_text(f"{BAD} · {BAD} · {BAD}")
    note = panel.root.locator(".widget-text", has_text="note").locator("input")
    expect(note).to_have_value(BAD)
    panel.fill("jump to", BAD)
    expect(view.locator(".message")).to_contain_text(BAD)
    panel.choose("left", f"run {BAD}")
    caption = view.locator("canvas.film + figcaption")
    expect(caption).to_contain_text(f"run {BAD}: CAM, score ")
    # A copy of the run, at the threshold chosen on validation: the same picture on both sides.
    np.testing.assert_allclose(
        panel.picture("film").astype(int), panel.picture("overlay").astype(int), atol=3
    )
    assert panel.difference("film", hostile.film(panel.text("image-id"))) > 12
    panel.choose("class", BAD)
    expect(view.locator(".histogram")).to_contain_text(f"with {BAD[:19]}… ")
    panel.choose("left", "image only")
    assert_text_only(page)
    panel.screenshot("10-html-is-text")


@pytest.mark.parametrize("kind", ["lab", "voila"])
def test_the_class_the_order_and_the_ticks_are_chosen(page, server, hostile, kind):
    """The list is that of the class and of the order chosen; the film stays with the class."""
    panel = run_all(page, server, kind, "hostile")
    gallery, other = Gallery(hostile), Gallery(hostile, BAD)
    near = gallery.chosen_map_threshold
    ids = gallery.films["image_id"].to_numpy()
    for sort, key in (("IoU, lowest first", "iou"), ("largest error first", "error")):
        panel.choose("sort by", sort)
        order = gallery.order("all", key, threshold=gallery.threshold, map_threshold=near)
        panel.wait_for("image-id", ids[order[0]])
        panel.click("next")
        panel.wait_for("image-id", ids[order[1]])
        panel.click("previous")
        panel.wait_for("image-id", ids[order[0]])
    panel.tick("reverse order")
    last = gallery.order("all", "error", threshold=gallery.threshold, reverse=True)[0]
    panel.wait_for("image-id", ids[last])
    panel.choose("class", BAD)
    films = other.films.set_index("image_id")
    expect(panel.view.locator(".score")).to_contain_text(f"score {films['y_score'][ids[last]]:.3f}")
    counts = pd.Series(other.outcomes(other.threshold)).value_counts()
    expect(panel.view.locator(".counts")).to_contain_text(f"TP {counts['TP']} · FN {counts['FN']}")
    assert panel.text("image-id") == ids[last]
    panel.choose("class", "Pneumonia")
    film = hostile.film(ids[last])
    panel.tick("heat map")
    panel.tick("reference boxes")
    panel.tick("invert")
    for name in ("film", "overlay"):
        panel.wait_for_picture(name, 255 - film)
    panel.click("keys")
    expect(panel.view.locator("table.help")).to_be_visible()


def test_html_is_text_in_notebook_06(page, server, hostile, tmp_path):
    """HTML in a run and in a file is text on the page of notebook 06."""
    film = next((hostile.folder / "films").glob("*.jpg"))
    picture, text = tmp_path / f"{BAD}.jpg", tmp_path / f"{BAD}.txt"
    shutil.copy(film, picture)
    text.write_text(BAD)
    page.goto(
        f"{server.url}voila/render/notebooks/hostile_06.ipynb?token={server.token}", timeout=LONG
    )
    panel = page.locator(".chexnet-upload")
    for path, words in ((picture, f"{BAD}: score "), (text, f"Error: {text.name}")):
        with page.expect_file_chooser(timeout=LONG) as chooser:
            panel.get_by_role("button").click(timeout=LONG)
        chooser.value.set_files(path)
        expect(panel).to_contain_text(words, timeout=LONG)
        expect(panel).to_contain_text(path.name)
        assert_text_only(page)
        page.screenshot(path=SCREENS / f"upload html {path.suffix[1:]}.png", full_page=True)
    expect(page.get_by_role("columnheader", name=f"score_{BAD}")).to_be_visible()
    panel.get_by_role("combobox").wait_for(state="hidden")
