"""Notebook 06 as a page: a film is uploaded, its score and map appear."""

import re

import cv2
import pytest
from playwright.sync_api import Page, expect

from chexnet.phantom import write_phantom_study
from chexnet.predict import Predictor
from tests.browser.conftest import SCREENS

LONG = 180_000  # milliseconds: a cold kernel on a busy machine imports for a while


@pytest.fixture(scope="module")
def dicom(tmp_path_factory):
    study = write_phantom_study(tmp_path_factory.mktemp("study"), films=12, film_size=256)
    return min((study / "stage_2_train_images").glob("*.dcm"))


def test_a_dicom_a_png_and_a_text_file_are_uploaded(page: Page, server, home, dicom, tmp_path):
    png, text = tmp_path / "film.png", tmp_path / "notes.txt"
    predictor = Predictor(home / "output" / "demo")
    found = predictor(dicom)
    cv2.imwrite(str(png), found.film)
    text.write_text("This is not a film.")
    page.goto(
        f"{server.url}voila/render/notebooks/06_predict.ipynb?token={server.token}", timeout=LONG
    )
    panel = page.locator(".chexnet-upload")
    for path in (dicom, png):
        with page.expect_file_chooser(timeout=LONG) as chooser:
            panel.get_by_role("button").click(timeout=LONG)
        chooser.value.set_files(path)
        score = re.compile(rf"{path.name}.*score {predictor(path).scores['Pneumonia']:.3f}")
        expect(panel).to_contain_text(score, timeout=LONG)
        picture = panel.locator("img")
        expect(picture).to_be_visible(timeout=LONG)
        drawn = "() => document.querySelector('.chexnet-upload img').naturalWidth > 500"
        page.wait_for_function(drawn, timeout=LONG)
        page.screenshot(path=SCREENS / f"upload {path.suffix[1:]}.png", full_page=True)
    with page.expect_file_chooser(timeout=LONG) as chooser:
        panel.get_by_role("button").click()
    chooser.value.set_files(text)
    expect(panel).to_contain_text("Error: notes.txt", timeout=LONG)
    expect(picture).to_be_hidden()
