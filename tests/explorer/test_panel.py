import base64
import io
import re
import threading
from pathlib import Path

import cv2
import ipywidgets
import numpy as np
import pandas as pd
import pytest
import tqdm.notebook

from chexnet.cam import upsample_map
from chexnet.evaluation import OUTCOMES, evaluate_maps, outcome_table
from chexnet.explorer import explore
from chexnet.explorer import gallery as gallery_module
from chexnet.explorer.gallery import Gallery, jpg
from chexnet.explorer.panel import Explorer
from chexnet.figures import BAR_GRAY, BOX_COLOR, RISE, blend
from chexnet.generator import apply_clahe
from chexnet.runs import Run
from tests.alone import run_without_keras
from tests.made_up_run import change_scores, write_films, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "made-up"
    run = write_films(write_run(folder, films=160, signal=0.5))
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


def static_picture(panel: Explorer) -> np.ndarray:
    """What a page without a kernel shows: the film and its overlay, side by side."""
    bundle = panel._repr_mimebundle_()
    return shown(base64.b64decode(bundle["image/jpeg"]))


def values(pane: dict) -> np.ndarray:
    return np.frombuffer(pane["map"], np.float32).reshape(pane["shape"])


@pytest.mark.parametrize("outcome", list(OUTCOMES))
def test_films_of_an_outcome(run, panel, outcome):
    """An outcome shows its films and no others, by falling score."""
    films, _ = outcome_table(run)
    its = films[films["outcome"] == outcome].sort_values("y_score", ascending=False)
    panel.outcome.value = outcome
    assert ids(panel) == its["image_id"].tolist()
    assert f'<p class="outcome {outcome}">{OUTCOMES[outcome][0]}</p>' in panel.view.side


def test_all_films_are_shown_once_and_sorted_by_score_at_first(run, panel):
    films = outcome_table(run)[0].sort_values("y_score", ascending=False)
    assert ids(panel) == films["image_id"].tolist()


def test_by_error_the_surest_mistake_comes_first(run, panel):
    panel.sort.value = "error"
    films, _ = outcome_table(run)
    apart = (films["y_true"] - films["y_score"]).abs()
    assert panel.image_id == films["image_id"][apart.idxmax()]


def test_order_by_iou(gallery):
    """By IoU the worst comes first, or last if reversed; films without boxes always come last."""
    threshold = gallery.map_thresholds("CAM")[8]
    iou = gallery.iou("CAM")[:, 8]
    boxed = np.isfinite(iou).sum()
    for reverse in (False, True):
        rows = gallery.order("all", "iou", threshold=0.5, map_threshold=threshold, reverse=reverse)
        assert np.isfinite(iou[rows[:boxed]]).all()
        assert np.isnan(iou[rows[boxed:]]).all()
        assert (np.diff(iou[rows[:boxed]]) * (-1 if reverse else 1) >= 0).all()


def test_next_previous_and_arrow_keys(panel):
    """Next and previous stop at the ends, and the arrow keys do the same as the buttons."""
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
    assert f"Decision threshold {panel.decision_threshold.value:.3g} (" in words
    assert (panel.gallery.outcomes(panel.decision_threshold.value) == films["outcome"]).all()
    chosen = run.metrics["localization"]["Pneumonia"]["thresholds"]["logit"]
    assert panel.map_threshold.label == f"{chosen:.2f} (from validation)"
    assert panel.map_threshold.value == chosen


def test_change_of_decision_threshold(panel):
    """Another threshold moves films to other outcomes; the film stays while its outcome does."""
    panel.outcome.value = "TN"
    panel.turn(3)
    before = panel.image_id
    panel.decision_threshold.value = 0.99
    assert panel.image_id == before
    assert "FP 0" in panel.view.side
    panel.decision_threshold.value = 0.0
    assert panel.image_id is None
    assert (panel.view.film, panel.view.left, panel.view.right) == (b"", {}, {})
    assert "No true negatives at threshold 0.000" in panel.view.side
    panel.turn(1)  # nothing to turn
    panel.decision_threshold.value = 0.99
    assert panel.image_id is not None


def test_film_is_the_stored_file(run, panel):
    """The film shown is the stored file byte for byte, or the film with CLAHE."""
    stored = (run.folder / "films" / f"{panel.image_id}.jpg").read_bytes()
    assert panel.view.film == stored
    panel.clahe.value = True
    expected = apply_clahe(run.film(panel.image_id))
    assert np.abs(shown(panel.view.film)[..., 0] - expected.astype(int)).max() <= 6
    assert panel.view.film != stored


def test_overlay_without_heat_and_boxes(run, panel):
    """The overlay is the film, upright, where there is no heat and no box."""
    panel.boxes.value = False
    panel.opacity.value = 0
    film = cv2.resize(run.film(panel.image_id), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    picture = static_picture(panel)[:, film.shape[1] :]
    assert np.abs(picture - film[..., np.newaxis].astype(int)).max() <= 4
    assert (picture[:100, :50] > 250).all()  # upright: white is upper left


def test_the_overlay_has_the_colours_of_the_results_figure(run, gallery):
    row = 5
    image_id = gallery.films["image_id"][row]
    all_ids, exact = run.maps()
    cam = exact[list(all_ids).index(image_id), 0]
    expected = blend(run.film(image_id), cam, scale=gallery.scale("CAM"))
    np.testing.assert_array_equal(gallery.overlay(row, boxes=False), expected)


def test_map_threshold_and_border(run, gallery):
    """The map below the threshold is not shown, and its border is drawn in white."""
    row = int(gallery.maps("CAM").max(axis=(1, 2)).argmax())
    film = run.film(gallery.films["image_id"][row])
    areas = []
    for threshold in gallery.map_thresholds("CAM")[4:17:6]:
        picture = gallery.overlay(row, boxes=False, map_threshold=threshold)
        changed = (picture != film[..., np.newaxis]).any(axis=-1)
        areas.append(changed.sum())
        assert (picture[changed] == 255).all(axis=-1).sum() > 20
    assert areas[0] > areas[1] > areas[2] > 0


def test_boxes_are_where_the_table_says(run, gallery):
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
    np.testing.assert_allclose(found, np.clip(np.array(expected, float), 0, None), atol=4.5)
    assert gallery.stored_boxes(row) == [[box["x"], box["y"], box["width"], box["height"]]]


def test_the_words_beside_a_film_are_those_of_the_run_folder(run, panel):
    panel.outcome.value = "FN"
    film = run.predictions.set_index("image_id").loc[panel.image_id]
    side = panel.view.side
    threshold = panel.decision_threshold.value
    assert f"score {film['y_score']:.3f} &lt; {threshold:.3f} → negative" in side
    assert f"{film['view']} · {film['sex']} · {film['age']} y" in side
    assert f'<p class="image-id">{panel.image_id}</p>' in side
    row = int(np.flatnonzero(panel.gallery.films["image_id"] == panel.image_id)[0])
    iou = panel.gallery.iou("CAM")[row, panel.map_threshold.index]
    assert f"IoU {iou:.2f}; peak" in side
    counts = outcome_table(run)[0]["outcome"].value_counts()
    assert " · ".join(f"{name} {counts[name]}" for name in OUTCOMES) in side
    panel.outcome.value = "TP"
    assert f" ≥ {threshold:.3f} → positive" in panel.view.side


def test_hit_or_miss_is_whether_the_peak_lies_in_a_box(run, gallery):
    all_ids, maps = run.maps()
    boxes, seen = run.boxes.set_index("image_id"), set()
    for row in np.flatnonzero(np.isfinite(gallery.iou("CAM")[:, 0])):
        image_id = gallery.films["image_id"][row]
        cam = maps[list(all_ids).index(image_id), 0]
        down, right = np.unravel_index(cam.argmax(), cam.shape)
        x, y, box = (right + 0.5) * 128, (down + 0.5) * 128, boxes.loc[image_id]
        inside = box.x <= x < box.x + box.width and box.y <= y < box.y + box.height
        facts = gallery.facts(int(row), position="", threshold=0.5)
        assert ("peak inside the box (pointing game: hit)" in facts) == inside
        assert ("peak outside the box (pointing game: miss)" in facts) != inside
        seen.add(inside)
    assert seen == {True, False}


def test_histogram_of_scores(gallery):
    """The histogram counts every film and marks the score and the threshold."""
    svg = gallery.histogram_svg(0.25, 0.5)
    bars = [part for part in svg.split("<rect ")[1:] if 'height="0.0"' not in part]
    y, score = gallery.films["y_true"], gallery.films["y_score"]
    counts = [np.histogram(score[y == label], 20, (0, 1))[0] for label in (1, 0)]
    assert len(bars) == sum((count > 0).sum() for count in counts)
    assert 'd="M75.0 -2V' in svg  # a quarter of 300
    assert 'class="here" d="M150.0' in svg


def test_what_a_table_says_cannot_become_a_script(tmp_path):
    run = write_run(tmp_path / "run", films=40, detailed_class="<script>alert(1)</script>")
    side = explore(write_films(run)).view.side
    assert "<script>" not in side
    assert "&lt;script&gt;" in side


def test_iou_is_that_of_the_evaluation(run, panel):
    """The mean IoU at the threshold from validation is the one that the evaluation reports."""
    report = run.metrics["localization"]["Pneumonia"]["mean_iou_logit"]
    iou = panel.gallery.iou("CAM")[:, panel.map_threshold.index]
    assert np.nanmean(iou) == pytest.approx(report["value"], abs=1e-6)
    labels = panel.gallery.films["y_true"].to_numpy()
    np.testing.assert_array_equal(np.isnan(iou), labels == 0)


def test_each_class_has_its_own_maps_scale_and_iou(tmp_path):
    run = write_run(tmp_path / "two", films=60, classes=("Pneumonia", "Mass"))
    ids, maps = run.maps()
    maps[:, 1] = maps[:, 1] / 100 - 3
    change_scores(run, maps=maps)
    gallery = Gallery(run, "Mass")
    row = list(ids).index(gallery.films["image_id"][2])
    np.testing.assert_array_equal(gallery.maps("CAM")[2], maps[row, 1])
    assert gallery.scale("CAM") == 1  # no evidence anywhere
    labelled = gallery.films["y_true"] == 1
    assert (np.isfinite(gallery.iou("CAM")).any(axis=1) <= labelled).all()
    assert gallery.chosen_map_threshold is None


@pytest.fixture
def several(tmp_path):
    """Three classes, boxes of the first; a third of Mass unlabeled, validation has no Hernia."""
    names = ("Pneumonia", "Mass", "Hernia")
    run = write_films(write_run(tmp_path / "several", films=160, signal=0.5, classes=names))
    films = run.read_table("predictions.csv")
    mass, hernia = films["class_name"] == "Mass", films["class_name"] == "Hernia"
    truth = films["y_true"].mask(mass & (films.index % 3 == 0))
    change_scores(run, predictions=films.assign(y_true=truth.mask(hernia, 0)))
    evaluate_maps(run, n_bootstrap=20)
    return run


def test_change_of_class(several):
    """Another class keeps the film and the controls, and has its own thresholds."""
    panel = explore(several)
    panel.sort.value, panel.opacity.value = "iou", 0.3
    mass = Gallery(several, "Mass")
    while panel.image_id not in set(mass.films["image_id"]):
        panel.turn(1)
    film, first = panel.image_id, panel.view.right
    panel.decision_threshold.value = 0.9
    sent = []
    panel.view.observe(lambda change: sent.append(change["new"]), names="side")
    panel.class_name.value = "Mass"
    assert len(sent) == 1  # no half of the change was shown
    assert panel.image_id == film
    assert (panel.sort.value, panel.opacity.value) == ("iou", 0.3)
    assert panel.decision_threshold.value == pytest.approx(mass.threshold, abs=1e-3)
    row = int(np.flatnonzero(mass.films["image_id"] == film)[0])
    threshold = panel.map_threshold.value
    assert panel.view.right == mass.pane(row, map_threshold=threshold) != first
    assert "with mass" in panel.view.side
    assert "reference boxes" not in panel.view.side
    assert panel.boxes.layout.display == "none"
    panel.class_name.value = "Pneumonia"
    assert (panel.image_id, panel.boxes.layout.display) == (film, None)
    assert panel.view.right == first


def test_films_whose_label_is_missing_are_not_shown(several):
    panel = explore(several, class_name="Mass")
    labels = several.read_table("predictions.csv").query("class_name == 'Mass'")
    known = labels.query("split == 'test'").dropna(subset="y_true")["image_id"]
    assert sorted(ids(panel)) == sorted(known)


def test_class_that_cannot_be_shown(several):
    """If a class cannot be shown, the panel says why and stays at the class before."""
    panel = explore(several)
    film = panel.image_id
    panel.class_name.value = "Hernia"
    assert "no threshold can be chosen for &#x27;Hernia&#x27;" in panel.view.side
    assert (panel.class_name.value, panel.image_id) == ("Pneumonia", film)


def test_one_class_has_no_selector(panel, several):
    assert panel.class_name.layout.display == "none"
    assert explore(several).class_name.layout.display is None


def test_stored_saliency_methods(tmp_path):
    """The stored methods are offered, and the threshold keeps its share of the scale."""
    run = write_films(write_run(tmp_path / "run", films=160, signal=0.5))
    ids, maps = run.maps()
    finer = 100 * upsample_map(maps, (16, 8))
    predictions, bias = run.read_table("predictions.csv"), np.zeros(1, np.float32)
    run.write_scores(predictions, ids, {"CAM": maps, "LayerCAM": finer}, bias=bias)
    evaluate_maps(run, n_bootstrap=20)
    panel = explore(run)
    assert panel.method.options == ("CAM", "LayerCAM")
    first, share = panel.view.right, panel.map_threshold.value / panel.gallery.scale("CAM")
    sent = []
    panel.view.observe(lambda change: sent.append(change["new"]), names="right")
    panel.method.value = "LayerCAM"
    assert len(sent) == 1  # no other threshold was shown for a moment
    row = panel._rows[0]
    threshold = panel.map_threshold.value
    assert threshold / panel.gallery.scale("LayerCAM") == pytest.approx(share, abs=0.026)
    expected = panel.gallery.pane(row, method="LayerCAM", map_threshold=threshold)
    assert panel.view.right == expected != first
    assert expected["title"] == "LayerCAM"
    assert panel.map_threshold.description == "map threshold [%]"
    panel.sort.value = "iou"
    panel.sort.value = "score"
    panel.method.value = "CAM"
    assert panel.view.right == first
    assert panel.map_threshold.label.endswith("(from validation)")


def test_maps_of_other_scores_are_not_shown(tmp_path):
    run = write_films(write_run(tmp_path / "run", films=60))
    predictions = run.read_table("predictions.csv")
    run.write_table("predictions.csv", predictions.assign(y_score=predictions["y_score"] / 2))
    with pytest.raises(ValueError, match=r"maps\.npz: made with other scores"):
        explore(run)


def test_picture_without_a_kernel(run, panel):
    """A page without a kernel gets a picture that is small enough for a notebook."""
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    picture = base64.b64decode(bundle["image/jpeg"])
    assert run.film(panel.image_id).shape == (1024, 512)
    assert shown(picture).shape == (512, 512, 3)
    assert len(bundle["image/jpeg"]) < 400_000


def test_arguments_of_explore(run, tmp_path):
    """A run and its folder are both explored, and anything else is refused."""
    assert explore(run.folder).image_id == explore(str(run.folder)).image_id
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        explore(tmp_path)
    with pytest.raises(ValueError, match=r"class_name='Mass': expected one of \['Pneumonia'\]"):
        explore(run, class_name="Mass")
    with pytest.raises(ValueError, match="'rainbow2' is not a valid value"):
        explore(run, colormap="rainbow2")


def test_a_picture_survives_its_jpg_to_a_few_grey_values():
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (256, 256))
    assert np.abs(shown(jpg(smooth)) - smooth.astype(int)).max() <= 8


def test_the_page_draws_what_the_run_folder_has(run, panel):
    row = panel.gallery.films["image_id"].tolist().index(panel.image_id)
    ids, maps = run.maps()
    np.testing.assert_array_equal(
        values(panel.view.right), maps[list(ids).index(panel.image_id), 0]
    )
    assert panel.view.right["scale"] == panel.gallery.scale("CAM")
    assert panel.view.right["threshold"] == panel.gallery.chosen_map_threshold
    assert (panel.view.right["title"], panel.view.right["unit"]) == ("CAM", "logits")
    assert panel.view.left == {"title": "image"}
    assert panel.view.boxes == panel.gallery.stored_boxes(row)
    assert panel.view.name == panel.image_id
    assert not panel.view.busy
    # The colors of the page are those of the results figure.
    film, ramp = np.zeros((1, 256), np.uint8), (np.arange(256, dtype=np.float32) + 0.5)[None] / 256
    expected = blend(film, ramp, scale=1, opacity=1)[0].astype(float)
    colors = np.frombuffer(panel.view.colors, np.uint8).reshape(256, 3)
    share = (np.arange(256) / 255)[:, None] ** RISE
    assert np.abs(colors * share - expected).max() <= 2


@pytest.mark.parametrize("name", ["rise", "gray", "boxes"])
def test_numbers_of_the_page_are_those_of_the_figures(panel, name):
    script = Path(gallery_module.__file__).with_name("explorer.js").read_text()
    assert f"look.{name}" in script
    expected = {"rise": RISE, "gray": BAR_GRAY, "boxes": BOX_COLOR}
    assert panel.view.get_state()["look"] == expected


def test_keys_do_what_the_list_of_keys_says(panel):
    first = panel.image_id
    everything = ids(panel)
    press = panel.view._handle_custom_msg
    press({"key": "Home"}, [])
    assert panel.image_id == first
    press({"key": "PageDown"}, [])
    assert panel.image_id == everything[10]
    press({"key": "PageUp"}, [])
    press({"key": "End"}, [])
    assert panel.image_id == everything[-1]
    for key, outcome in zip("12345", ("all", *OUTCOMES), strict=True):
        press({"key": key}, [])
        assert panel.outcome.value == outcome
    for key, control in (("c", panel.clahe), ("f", panel.flag)):
        before = control.value
        press({"key": key}, [])
        assert control.value != before
    script = Path(gallery_module.__file__).with_name("explorer.js").read_text()
    for key in (*panel.view.kernel_keys, *"bhi"):  # the page does the last three by itself
        listed = {"PageUp": "Page Up", "PageDown": "Page Down"}.get(key, key)
        listed = {"Right": "→", "Left": "←", "Up": "↑", "Down": "↓"}.get(
            listed.removeprefix("Arrow"), listed
        )
        assert re.search(rf'\["[^"]*{listed}[^"]*", "', script), f"{key} is not in the list"


def test_states_sent_ahead(panel):
    """What a key will show is sent ahead, and is taken back by any change."""
    names = ("film", "name", "boxes", "left", "right", "side")
    press = panel.view._handle_custom_msg
    steps = {"ArrowRight": lambda: panel.turn(1), "ArrowLeft": lambda: panel.turn(-1)}
    steps["c"] = lambda: setattr(panel.clahe, "value", not panel.clahe.value)
    panel.turn(1)
    for key, step in steps.items():
        press({"key": "ahead"}, [])
        sent = panel.view.ahead
        assert sorted(sent) == sorted(steps)
        step()
        assert sent[key] == {name: getattr(panel.view, name) for name in names}
        assert panel.view.ahead == {}
    panel.turn(-1000)
    press({"key": "ahead"}, [])
    assert sorted(panel.view.ahead) == ["ArrowRight", "c"]  # none before the first
    panel.decision_threshold.value = 1.0
    panel.outcome.value = "TP"
    assert panel.view.ahead == {}
    press({"key": "ahead"}, [])
    assert panel.view.ahead == {}


def test_another_film_makes_no_widgets(panel, monkeypatch):
    """In a notebook a progress bar is four of them: messages that come before the film."""
    made: list[object] = []
    monkeypatch.setattr("chexnet.evaluation.localization.tqdm", tqdm.notebook.tqdm)
    ipywidgets.Widget.on_widget_constructed(made.append)
    try:
        panel.outcome.value = "TP"  # all with boxes
        panel.turn(1)
    finally:
        ipywidgets.Widget.on_widget_constructed(None)
    assert "IoU" in panel.view.side
    assert made == []


def test_a_film_is_found_by_the_beginning_of_its_id(run, panel):
    panel.outcome.value = "TN"
    positive = run.predictions.query("split == 'test' and y_true == 1")["image_id"].iloc[0]
    panel.jump.value = positive
    assert (panel.image_id, panel.outcome.value, panel.jump.value) == (positive, "all", "")
    before = panel.image_id
    panel.jump.value = "nobody"
    assert panel.image_id == before
    assert "jump to: &#x27;nobody&#x27; begins no id; expected one of" in panel.view.side
    panel.turn(1)
    assert "nobody" not in panel.view.side
    with pytest.raises(ValueError, match=r"'0' begins \d+ ids"):
        panel.go_to("0")


@pytest.fixture
def own_run(tmp_path) -> Run:
    return write_films(write_run(tmp_path / "own", films=120, signal=0.5))


def test_flags_and_notes_are_stored(own_run):
    """Flags and notes are in the run folder at once, and come back in another panel."""
    panel, other = explore(own_run), explore(own_run)
    first = panel.image_id
    panel.flag.value = True
    assert panel.flag.button_style == "warning"
    panel.note.value = "  two\nlines, and a comma "
    panel.turn(1)
    second = panel.image_id
    assert (panel.flag.value, panel.note.value) == (False, "")
    other.turn(1)
    other.note.value = "from the other panel"
    panel.turn(1)
    panel.flag.value = True
    third = panel.image_id
    table = own_run.read_table("flags.csv").set_index("image_id").fillna("")
    assert table.to_dict("index") == {
        first: {"flag": 1, "note": "two lines, and a comma"},
        second: {"flag": 0, "note": "from the other panel"},
        third: {"flag": 1, "note": ""},
    }
    again = explore(own_run)
    assert (again.flag.value, again.note.value) == (True, "two lines, and a comma")
    again.flagged.value = True
    assert ids(again) == [first, third]
    assert "2 of 2 flagged images" in again.view.side
    again.flag.value = False
    assert own_run.read_table("flags.csv")["image_id"].tolist() == sorted([first, second])


def test_an_image_id_of_html_is_refused_with_its_file(own_run):
    first = explore(own_run).image_id
    for name in ("images.csv", "predictions.csv"):
        path = own_run.folder / name
        path.write_text(path.read_text().replace(first, "<img src=x onerror=attack()>"))
    with pytest.raises(ValueError, match=r"images.csv: invalid image_id '<img src=x"):
        explore(own_run.folder)


def test_flags_that_a_spreadsheet_has_changed_are_named(own_run):
    (own_run.folder / "flags.csv").write_text("image_id;flag;note\n00001;1;odd\n")
    with pytest.raises(ValueError, match=r"flags\.csv: 3 missing columns: .*expected: image_id"):
        explore(own_run)


def test_flagged_only_lists_what_another_panel_has_flagged(own_run):
    panel, other = explore(own_run), explore(own_run)
    other.turn(3)
    other.flag.value = True
    panel.flagged.value = True
    assert ids(panel) == [other.image_id]


def test_click_during_a_key_press(own_run, monkeypatch):
    """A click while a key is handled in another thread waits for it.

    Jupyter handles the messages of two controls in two threads, at the same time.
    """
    panel = explore(own_run)
    panel.flag.value = True
    facts, begun, done = Gallery.facts, threading.Event(), threading.Event()

    def slow(self, *args, position, **kwargs):
        if position.endswith("images"):
            begun.set()
            done.wait(1)
        return facts(self, *args, position=position, **kwargs)

    def send(control, data):
        control.comm.handle_msg({"content": {"data": data}, "buffers": []})

    monkeypatch.setattr(Gallery, "facts", slow)
    key = {"method": "custom", "content": {"key": "End"}}
    thread = threading.Thread(target=send, args=(panel.view, key))
    thread.start()
    begun.wait()
    send(panel.flagged, {"method": "update", "state": {"value": True}})
    done.set()
    thread.join()
    assert "1 of 1 flagged image<" in panel.view.side


def test_a_flag_that_cannot_be_written_is_said(own_run, monkeypatch):
    panel = explore(own_run)

    def refuse(*args):
        raise OSError("read-only file system")

    monkeypatch.setattr(Run, "write_table", refuse)
    panel.flag.value = True
    assert "flags.csv: not written (read-only file system)" in panel.view.side


def test_the_list_that_is_shown_is_saved_with_its_numbers(own_run, monkeypatch):
    evaluate_maps(own_run, n_bootstrap=5)
    panel = explore(own_run)
    panel.outcome.value, panel.sort.value = "TP", "iou"
    panel.note.value = "seen"
    sent = []
    monkeypatch.setattr(panel.view, "send", lambda *message: sent.append(message))
    panel.save_list.click()
    ((what, (content,)),) = sent
    assert what == {"do": "save", "name": "own-Pneumonia-TP.csv", "type": "text/csv"}
    table = pd.read_csv(io.BytesIO(content), dtype={"image_id": str})
    assert table["image_id"].tolist() == ids(panel)
    assert (table["outcome"] == "TP").all()
    assert (table["y_score"] >= panel.decision_threshold.value).all()
    assert table["iou"].is_monotonic_increasing
    assert table["note"].tolist() == ["seen", *[np.nan] * (len(table) - 1)]


def test_another_run_is_shown_beside_where_it_has_the_film(own_run, tmp_path):
    other = write_films(write_run(tmp_path / "other", films=120, signal=0.5, seed=0))
    ids_there, maps = other.maps()
    table = other.read_table("predictions.csv")
    gone = table.query("split == 'test'")["image_id"].iloc[0]
    keep = ids_there != gone
    predictions = table[table["image_id"] != gone].assign(y_score=0.25)
    change_scores(other, predictions=predictions, image_ids=ids_there[keep], maps=-maps[keep])
    panel = explore(own_run, compare=other.folder)
    assert panel.beside.options == ("image only", "CAM", "run other")
    panel.beside.value = "run other"
    left, right = panel.view.left, panel.view.right
    np.testing.assert_array_equal(values(left), -values(right))
    assert left["title"] == "run other: CAM, score 0.250"
    panel.go_to(gone)
    assert panel.view.left == {"title": "run other: image not in its test set"}
    panel.beside.value = "CAM"
    assert panel.view.left["title"] == "CAM"


def test_map_threshold_by_hand(panel):
    """Moving the slider draws the outline at another value and keeps the film; by IoU it sorts."""
    film, before = panel.image_id, panel.view.side
    highest = panel.map_threshold.options[-1]
    panel.map_threshold.value = highest[1] if isinstance(highest, tuple) else highest
    assert panel.image_id == film
    assert panel.view.side != before
    panel.sort.value = "iou"
    iou = panel.gallery.iou("CAM")[:, panel.map_threshold.index]
    row = panel.gallery.films["image_id"].tolist().index(panel.image_id)
    assert iou[row] == np.nanmin(iou)


def test_scored_again_under_the_explorer(tmp_path):
    """Old maps are not shown beside new scores: the explorer says to open it anew."""
    run = write_films(write_run(tmp_path / "run", films=60))
    gallery = Gallery(run)
    scores = run.read_table("predictions.csv")
    change_scores(run, predictions=scores.assign(y_score=scores["y_score"] / 2))
    with pytest.raises(
        ValueError, match=r"scored again since the explorer was opened; run explore"
    ):
        gallery.maps("CAM")


def test_exploring_loads_no_keras(run):
    run_without_keras(
        f"from chexnet.explorer.panel import explore; explore({str(run.folder)!r}).turn(1)"
    )
