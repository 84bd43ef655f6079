import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from chexnet.evaluation import evaluate, evaluate_maps, interval_text, outperforms_baselines
from chexnet.figures import report_page
from tests.made_up_run import change_scores, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "made-up"
    run = write_run(folder, signal=0.8, classes=("Pneumonia", "Edema"))
    evaluate(run, n_bootstrap=50)
    evaluate_maps(run, n_bootstrap=50)
    return run


@pytest.fixture(scope="module")
def page(run):
    page = report_page(run)
    FigureCanvasAgg(page).draw()
    return page


def words(page) -> list[str]:
    return [text.get_text() for part in [page, *page.subfigs] for text in part.texts]


def test_the_page_has_all_charts_in_order(page):
    assert [ax.get_title() for ax in page.axes] == [
        "ROC curve",
        "Precision-recall curve",
        "Reliability diagram",
        "Decision curve",
        "Score distribution",
        "Subgroup AUROC and non-imaging baselines",
        "Pointing-game accuracy (hit rate)",
        "Mean IoU of CAM and boxes",
    ]


def test_each_part_has_something_drawn(page):
    for ax in page.axes:
        assert ax.has_data()


def test_panels_do_not_overlap(page):
    """No panel with its legend lies over another or off the page."""
    boxes = [ax.get_tightbbox() for ax in page.axes]
    for number, box in enumerate(boxes):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= page.bbox.width + 1
        assert box.y1 <= page.bbox.height + 1
        for other in boxes[number + 1 :]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(width, height) < 3  # pixels of 100 to the inch


def test_head_of_the_page(run, page):
    """The head states the images, the macro average and the comparison with the baselines."""
    found = run.metrics["classes"]["Pneumonia"]
    said = " ".join(words(page)).replace("\n", " ")
    assert "made-up: Pneumonia" in said
    assert f"{found['test']['n']} test images of {found['test']['n_patients']} patients" in said
    assert f"macro average: AUROC {interval_text(run.metrics['overall']['macro'])}" in said
    assert outperforms_baselines(found)[1] in said


def test_page_without_boxes_or_maps(run, tmp_path):
    """A class without boxes has no word about them, and maps not evaluated are said to be so."""
    page = report_page(run, class_name="Edema")
    assert [ax.get_title() for ax in page.axes][-1].startswith("Subgroup AUROC")
    assert not any("box" in text or "maps" in text for text in words(page))
    bare = write_run(tmp_path / "bare", films=120)
    evaluate(bare, n_bootstrap=20)
    assert "– The maps are not evaluated." in words(report_page(bare))


def test_a_run_of_which_little_is_known_still_has_its_page(tmp_path):
    poor = write_run(tmp_path / "poor", films=60)
    change_scores(poor, predictions=poor.read_table("predictions.csv").assign(y_true=0))
    evaluate(poor, n_bootstrap=20)
    evaluate_maps(poor, n_bootstrap=20)
    page = report_page(poor)
    FigureCanvasAgg(page).draw()
    assert any("No comparison with non-imaging" in text for text in words(page))


def test_the_page_is_saved_as_a_picture_and_for_print(run):
    page = report_page(run)
    for suffix in ("png", "pdf"):
        assert run.write_figure(f"report.{suffix}", page).stat().st_size > 20_000
    width, height = page.get_size_inches()
    assert np.isclose(width, 10.5)
    assert 1.2 < height / width < 1.5  # A4 is 1.41


def test_a_run_that_is_not_evaluated_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.json: classes is missing"):
        report_page(write_run(tmp_path / "bare", films=40))
