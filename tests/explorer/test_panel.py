import base64

import cv2
import numpy as np
import pytest

from chexnet.cam import METHODS
from chexnet.evaluation import OUTCOMES, evaluate_maps, outcome_table
from chexnet.explorer import explore
from chexnet.explorer.gallery import SORTS, Gallery, jpg
from chexnet.explorer.panel import Explorer
from chexnet.figures import blend
from chexnet.generator import equalise
from chexnet.runs import Run
from tests.alone import run_without_keras
from tests.made_up_run import write_run


def with_films(run: Run) -> Run:
    """Grey films with a white upper left corner."""
    rng = np.random.default_rng(0)
    for film in run.images.query("split == 'test'").itertuples():
        coarse = rng.integers(60, 120, (film.rows // 64, film.columns // 64), dtype=np.uint8)
        pixels = cv2.resize(coarse, (film.columns, film.rows))
        pixels[: film.rows // 4, : film.columns // 4] = 255
        run.write_film(film.image_id, pixels)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "made-up"
    run = with_films(write_run(folder, films=160, signal=0.5))
    evaluate_maps(run, n_bootstrap=20)
    return run


@pytest.fixture
def gallery(run) -> Gallery:
    return Gallery(run)


@pytest.fixture
def panel(run) -> Explorer:
    return explore(run)


def ids(panel: Explorer) -> list[str]:
    """Every film of the present choice, by turning them over."""
    found = [panel.image_id]
    while True:
        panel.turn(1)
        if panel.image_id == found[-1]:
            return found
        found.append(panel.image_id)


def shown(data: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(int)


@pytest.mark.parametrize("outcome", list(OUTCOMES))
def test_an_outcome_shows_its_films_and_no_others_by_falling_score(run, panel, outcome):
    films, _ = outcome_table(run)
    its = films[films["outcome"] == outcome].sort_values("y_score", ascending=False)
    panel.outcome.value = outcome
    assert ids(panel) == its["image_id"].tolist()
    assert f'<p class="outcome {outcome}">{OUTCOMES[outcome][0]}</p>' in panel.view.side


def test_all_films_are_shown_once_and_sorted_by_score_at_first(run, panel):
    films = outcome_table(run)[0].sort_values("y_score", ascending=False)
    assert ids(panel) == films["image_id"].tolist()


def test_by_disagreement_the_surest_mistake_comes_first(run, panel):
    panel.sort.value = "disagreement"
    films, _ = outcome_table(run)
    apart = (films["y_true"] - films["y_score"]).abs()
    assert panel.image_id == films["image_id"][apart.idxmax()]


def test_by_iou_the_worst_comes_first_and_films_without_boxes_last_either_way(gallery):
    cut = 8
    iou = gallery.iou("CAM", cut)
    boxed = np.isfinite(iou).sum()
    for reverse in (False, True):
        rows = gallery.order("all", "iou", threshold=0.5, cut=cut, reverse=reverse)
        assert np.isfinite(iou[rows[:boxed]]).all()
        assert np.isnan(iou[rows[boxed:]]).all()
        assert (np.diff(iou[rows[:boxed]]) * (-1 if reverse else 1) >= 0).all()


def test_next_and_previous_stop_at_the_ends_and_arrow_keys_do_as_the_buttons(panel):
    panel.outcome.value = "FP"
    films = ids(panel)
    assert len(films) > 2
    panel.next.click()
    assert panel.image_id == films[-1]
    panel.previous.click()
    assert panel.image_id == films[-2]
    for key, expected in (
        ("ArrowRight", -1),
        ("ArrowLeft", -2),
        ("ArrowUp", -3),
        ("ArrowDown", -2),
    ):
        panel.view._handle_custom_msg({"key": key}, [])
        assert panel.image_id == films[expected]
    panel.turn(-1000)
    assert panel.image_id == films[0]
    assert f'class="position">1 of {len(films)} false positives<' in panel.view.side


def test_the_first_thresholds_are_those_chosen_on_validation(run, panel):
    films, words = outcome_table(run)
    assert f"Decision threshold {panel.decision.value:.3g} (" in words
    assert (panel.gallery.outcomes(panel.decision.value) == films["outcome"]).all()
    chosen = run.metrics["localization"]["thresholds"]["logit"]
    assert panel.cut.label == f"{chosen:.2f} (validation)"


def test_another_threshold_moves_films_to_other_outcomes_and_keeps_the_film_at_hand(panel):
    panel.outcome.value = "TN"
    panel.turn(3)
    before = panel.image_id
    panel.decision.value = 0.99
    assert panel.image_id == before
    assert "FP 0" in panel.view.side
    panel.decision.value = 0.0
    assert panel.image_id is None
    assert panel.view.film == panel.view.overlay == b""
    assert "no true negatives from a score of 0.000 on" in panel.view.side
    panel.turn(1)  # nothing to turn
    panel.decision.value = 0.99
    assert panel.image_id is not None


def test_the_film_shown_is_the_stored_file_byte_for_byte_or_equalised(run, panel):
    stored = (run.folder / "films" / f"{panel.image_id}.jpg").read_bytes()
    assert panel.view.film == stored
    panel.clahe.value = True
    expected = equalise(run.film(panel.image_id))
    assert np.abs(shown(panel.view.film)[..., 0] - expected.astype(int)).max() <= 6
    assert panel.view.film != stored


def test_the_overlay_is_the_film_where_there_is_no_heat_and_no_box(run, panel):
    panel.boxes.value = False
    panel.opacity.value = 0
    film = run.film(panel.image_id).astype(int)
    assert np.abs(shown(panel.view.overlay) - film[..., np.newaxis]).max() <= 4
    assert (shown(panel.view.overlay)[:100, :50] > 250).all()  # upright: white is upper left


def test_the_overlay_has_the_colours_of_the_results_figure(run, gallery):
    maps, row = gallery.maps("CAM"), 5
    image_id = gallery.films["image_id"][row]
    all_ids, exact = run.maps()
    cam = exact[list(all_ids).index(image_id), 0]
    expected = blend(run.film(image_id), cam, scale=float(maps.scale[0]))
    found = gallery.overlay(row, boxes=False, cut=0)
    assert np.abs(found.astype(int) - expected).max() <= 6


def test_heat_below_the_cut_is_left_out_and_its_border_drawn(run, gallery):
    maps = gallery.maps("CAM")
    hottest = maps.image_ids[maps.levels.max(axis=(1, 2, 3)).argmax()]
    row = gallery.films["image_id"].tolist().index(hottest)
    film = run.film(gallery.films["image_id"][row])
    areas = []
    for cut in (4, 10, 16):
        picture = gallery.overlay(row, boxes=False, cut=cut)
        heated = (picture != film[..., np.newaxis]).any(axis=-1)
        areas.append(heated.sum())
        assert (picture[heated] == 255).all(axis=-1).sum() > 20
    assert areas[0] > areas[1] > areas[2] > 0


def test_boxes_are_where_the_table_says_on_a_film_stored_at_half_its_size(run, gallery):
    row = int(gallery.order("TP", "score", threshold=gallery.threshold)[0])
    with_boxes, without = (
        gallery.overlay(row, opacity=0, boxes=boxes).astype(int) for boxes in (True, False)
    )
    blue = with_boxes[..., 2] - with_boxes[..., 0] > 60
    assert not (without[..., 2] - without[..., 0] > 60).any()
    box = run.boxes.set_index("image_id").loc[gallery.films["image_id"][row]]
    rows, columns = np.nonzero(blue)
    expected = [box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]]
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(found, np.clip(np.array(expected, float) / 2, 0, None), atol=2.5)


def test_the_words_beside_a_film_are_those_of_the_run_folder(run, panel):
    panel.outcome.value = "FN"
    film = run.predictions.set_index("image_id").loc[panel.image_id]
    side = panel.view.side
    assert f"score {film['y_score']:.3f}, called from {panel.decision.value:.3f} on" in side
    assert f"{film['view']} · {film['sex']} · {film['age']} y" in side
    assert f'<p class="image-id">{panel.image_id}</p>' in side
    row = int(np.flatnonzero(panel.gallery.films["image_id"] == panel.image_id)[0])
    assert f"IoU {panel.gallery.iou('CAM', panel.cut.value)[row]:.2f} with the boxes" in side
    counts = outcome_table(run)[0]["outcome"].value_counts()
    assert " · ".join(f"{name} {counts[name]}" for name in OUTCOMES) in side


def test_hit_or_miss_is_whether_the_brightest_point_lies_in_a_box(run, gallery):
    all_ids, maps = run.maps()
    boxes, seen = run.boxes.set_index("image_id"), set()
    for row in np.flatnonzero(np.isfinite(gallery.iou("CAM", 0))):
        image_id = gallery.films["image_id"][row]
        cam = maps[list(all_ids).index(image_id), 0]
        down, right = np.unravel_index(cam.argmax(), cam.shape)
        x, y, box = (right + 0.5) * 128, (down + 0.5) * 128, boxes.loc[image_id]
        inside = box.x <= x < box.x + box.width and box.y <= y < box.y + box.height
        facts = gallery.facts(int(row), position="", threshold=0.5)
        assert ("inside a box (hit)" in facts) == inside
        seen.add(inside)
    assert seen == {True, False}


def test_the_histogram_counts_every_film_and_marks_score_and_threshold(gallery):
    svg = gallery.histogram_svg(0.25, 0.5)
    bars = [part for part in svg.split("<rect ")[1:] if 'height="0.0"' not in part]
    y, score = gallery.films["y_true"], gallery.films["y_score"]
    counts = [np.histogram(score[y == label], 20, (0, 1))[0] for label in (1, 0)]
    assert len(bars) == sum((count > 0).sum() for count in counts)
    assert 'd="M75.0 -2V' in svg  # a quarter of 300
    assert 'class="here" d="M150.0' in svg


def test_what_a_table_says_cannot_become_a_script(tmp_path):
    run = write_run(tmp_path / "run", films=40, detailed_class="<script>alert(1)</script>")
    side = explore(with_films(run)).view.side
    assert "<script>" not in side
    assert "&lt;script&gt;" in side


def test_another_method_is_offered_with_a_model_and_a_failure_is_told(run, panel, tmp_path):
    assert panel.method.options == ("CAM",)
    other = with_films(write_run(tmp_path / "run", films=40))
    (other.folder / "model.keras").write_bytes(b"no model")
    panel = explore(other)
    assert list(panel.method.options) == list(METHODS)
    before = panel.view.overlay
    panel.method.value = "LayerCAM"
    assert panel.method.value == "CAM"
    assert panel.view.overlay == before


def test_a_page_without_a_kernel_gets_a_picture_small_enough_for_a_notebook(run, panel):
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    picture = base64.b64decode(bundle["image/jpeg"])
    height, width = run.film(panel.image_id).shape
    assert shown(picture).shape == (height, 2 * width, 3)
    assert len(bundle["image/jpeg"]) < 400_000


def test_a_run_and_its_folder_are_both_explored_and_anything_else_is_refused(run, tmp_path):
    assert explore(run.folder).image_id == explore(str(run.folder)).image_id
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        explore(tmp_path)
    with pytest.raises(ValueError, match=r"class_name='Mass': expected one of \['Pneumonia'\]"):
        explore(run, class_name="Mass")
    with pytest.raises(ValueError, match="colormap='rainbow2'"):
        explore(run, colormap="rainbow2")


def test_an_unknown_order_is_refused_by_name(gallery):
    with pytest.raises(ValueError, match="outcome='XX'"):
        gallery.order("XX", "score", threshold=0.5)
    with pytest.raises(ValueError, match="sort='luck'"):
        gallery.order("all", "luck", threshold=0.5)
    assert list(SORTS) == ["score", "iou", "disagreement"]


def test_a_picture_survives_its_jpg_to_a_few_grey_values():
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (256, 256))
    assert np.abs(shown(jpg(smooth)) - smooth.astype(int)).max() <= 8


def test_exploring_loads_no_keras(run):
    run_without_keras(
        f"from chexnet.explorer.panel import explore; explore({str(run.folder)!r}).turn(1)"
    )
