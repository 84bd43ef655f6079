import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from chexnet.evaluation import (
    OUTCOMES,
    choose_thresholds,
    evaluate,
    evaluate_maps,
    outcome_table,
)
from chexnet.figures import results_figure
from chexnet.runs import Run
from tests.alone import run_without_keras
from tests.made_up_run import change_scores, write_films, write_run

LEFT, RIGHT = ("TP", "TN"), ("FN", "FP")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return write_films(
        write_run(tmp_path_factory.mktemp("runs") / "made-up", films=240, signal=0.5)
    )


@pytest.fixture(scope="module")
def figure(run) -> Figure:
    figure = results_figure(run.folder)
    FigureCanvasAgg(figure).draw()
    return figure


def films_on(figure: Figure) -> dict[str, list]:
    """Outcome to the axes that show films of it."""
    shown = {outcome: [] for outcome in OUTCOMES}
    for ax in figure.axes:
        outcome = ax.get_label().split(" ")[0]
        if outcome in shown:
            shown[outcome].append(ax)
    return shown


def ids_on(figure: Figure) -> dict[str, list[str]]:
    shown = films_on(figure)
    return {
        outcome: [ax.get_label().split(" ")[1] for ax in axes] for outcome, axes in shown.items()
    }


def caption(figure: Figure) -> str:
    return " ".join(figure.texts[0].get_text().split())


def titles(figure: Figure) -> str:
    words = [*figure.texts[1:], *(text for ax in figure.axes for text in ax.texts)]
    return " | ".join(" ".join(text.get_text().split()) for text in words)


def test_red_line_between_right_and_wrong(figure):
    """Right calls stand left of the red line, and wrong ones stand right of it."""
    (line,) = figure.artists
    (x, again), (low, high) = line.get_xdata(), line.get_ydata()
    red, green, blue = (int(line.get_color()[i : i + 2], 16) for i in (1, 3, 5))
    assert x == again
    assert red > 200 > 100 > max(green, blue)
    shown = films_on(figure)
    counts = {outcome: len(axes) for outcome, axes in shown.items()}
    assert counts == {"TP": 4, "FN": 3, "TN": 4, "FP": 3}
    for outcome in LEFT:
        assert all(ax.get_position().x1 < x for ax in shown[outcome])
    for outcome in RIGHT:
        assert all(ax.get_position().x0 > x for ax in shown[outcome])
    boxes = [ax.get_position() for axes in shown.values() for ax in axes]
    assert low < min(box.y0 for box in boxes)
    assert high > max(box.y1 for box in boxes)


def test_films_with_the_finding_stand_above_those_without(figure):
    shown = films_on(figure)
    above = [ax.get_position().y0 for outcome in ("TP", "FN") for ax in shown[outcome]]
    below = [ax.get_position().y1 for outcome in ("TN", "FP") for ax in shown[outcome]]
    assert min(above) > max(below)


def test_outcome_of_every_film(run, figure):
    """Every film stands with the outcome that its score and its label give."""
    films = run.predictions.set_index("image_id")
    val = films[films["split"] == "val"]
    threshold = choose_thresholds(val["y_true"], val["y_score"])["youden"]
    for outcome, ids in ids_on(figure).items():
        for image_id in ids:
            film = films.loc[image_id]
            assert film["split"] == "test"
            assert (film["y_score"] >= threshold) == (outcome in ("TP", "FP"))
            assert film["y_true"] == (outcome in ("TP", "FN"))


def test_score_and_id_are_written_under_each_film(run, figure):
    scores = run.predictions.set_index("image_id")["y_score"]
    for axes in films_on(figure).values():
        for ax in axes:
            image_id = ax.get_label().split(" ")[1]
            first, *_, last = ax.get_xlabel().split("\n")
            assert first.startswith(f"score {scores[image_id]:.2f}")
            assert last.endswith(image_id[:8])


@pytest.mark.parametrize(
    "choice",
    [
        *({"columns": columns} for columns in (2, 4, 7, 12, (4, 3), (1, 5), (2, 1), (1, 1))),
        {"width": "one column"},
        {"width": "one column", "columns": (1, 3), "rows": 2},
        {"width": "two columns", "caption": False},
        {"width": 14},
    ],
    ids=str,
)
def test_words_do_not_overlap(run, choice):
    """No words lie on other words, on films or on the red line, or leave the page."""
    # With one column left of the line its titles once ran over the line and the titles beyond.
    figure = results_figure(run.folder, **choice)
    FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    line = figure.artists[0].get_window_extent(renderer)
    shown = [ax for axes in films_on(figure).values() for ax in axes]
    words = [ax.xaxis.label for ax in shown] + [text for ax in figure.axes for text in ax.texts]
    words += [text for ax in figure.axes if ax not in shown for text in ax.get_xticklabels()]
    words += [text for text in figure.texts if text.get_text()]
    words = [text.get_window_extent(renderer) for text in words]
    films = [ax.images[0].get_window_extent(renderer) for ax in shown]
    page = figure.bbox
    for number, one in enumerate(words):
        assert page.x0 <= one.x0 and one.x1 <= page.x1 and page.y0 <= one.y0 and one.y1 <= page.y1
        assert not any(one.overlaps(other) for other in words[number + 1 :])
        assert not any(one.overlaps(film) for film in films)
        assert not one.overlaps(line)


def test_no_film_is_distorted_or_upside_down(run, figure):
    for axes in films_on(figure).values():
        for ax in axes:
            film = run.film(ax.get_label().split(" ")[1])
            drawn = ax.images[0].get_window_extent()
            assert drawn.height / drawn.width == pytest.approx(
                film.shape[0] / film.shape[1], rel=0.01
            )
            rows, columns = film.shape
            assert ax.get_ylim() == (rows, 0)
            assert ax.get_xlim() == (0, columns)


def test_the_white_corner_of_the_film_is_seen_at_the_upper_left(run):
    figure = results_figure(run.folder, opacity=0, boxes=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = np.asarray(canvas.buffer_rgba())[::-1, :, 0]  # rows from below, as positions are
    ax = films_on(figure)["TN"][0]
    box = ax.images[0].get_window_extent()

    def seen(right: float, up: float) -> int:
        return page[int(box.y0 + up * box.height), int(box.x0 + right * box.width)]

    assert seen(0.12, 0.88) > 240
    assert max(seen(0.12, 0.12), seen(0.88, 0.12), seen(0.88, 0.6)) < 130


def test_boxes_of_a_large_film_are_scaled_to_the_stored_one(tmp_path):
    # Never again, 7: boxes of a film of 2,048 pixels on a canvas of 1,024.
    run = write_run(tmp_path / "large", films=60, rows=2048, columns=1024)
    for image_id in run.images.query("split == 'test'")["image_id"]:
        run.write_film(image_id, np.zeros((2048, 1024), np.uint8))
    figure = results_figure(run.folder)
    boxes = run.boxes.set_index("image_id")
    image_id = ids_on(figure)["TP"][0]
    assert run.film(image_id).shape == (1024, 512)
    (patch,) = films_on(figure)["TP"][0].patches
    found = [*patch.get_xy(), patch.get_width(), patch.get_height()]
    np.testing.assert_allclose(found, boxes.loc[image_id, ["x", "y", "width", "height"]] / 2)


def test_films_without_boxes(run, figure):
    """Films without the finding have no box, and boxes can be left out."""
    assert not any(ax.patches for outcome in ("TN", "FP") for ax in films_on(figure)[outcome])
    without = results_figure(run.folder, boxes=False)
    assert not any(ax.patches for axes in films_on(without).values() for ax in axes)


def test_scale_of_the_colours(run):
    """One scale holds for all films and is written at the colours."""
    figure = results_figure(run.folder, scale=8.0, colormap="gray", opacity=1)
    ids, maps = run.maps()
    for axes in films_on(figure).values():
        for ax in axes:
            cam = maps[list(ids).index(ax.get_label().split(" ")[1]), 0]
            brightest = np.asarray(ax.images[0].get_array())
            hot = np.unravel_index(cam.argmax(), cam.shape)
            row, column = (hot[0] + 0.5) * 1024 / 8, (hot[1] + 0.5) * 512 / 4
            expected = 255 * min(cam.max() / 8, 1)
            film = run.film(ax.get_label().split(" ")[1])[int(row), int(column)]
            share = min(cam.max() / 8, 1) ** 0.7
            mixed = (1 - share) * film + share * expected
            assert brightest[int(row), int(column), 0] == pytest.approx(mixed, abs=6)
    assert any(
        text.get_text() == "8 or more" for ax in figure.axes for text in ax.get_xticklabels()
    )


def test_a_film_whose_map_is_below_zero_everywhere_stays_grey(tmp_path):
    # Never again, 6: divided by its own maximum, its least negative spot would glow.
    run = write_films(write_run(tmp_path / "cold", films=60))
    ids, maps = run.maps()
    cold = set(ids[::2])
    maps[::2] = -np.abs(maps[::2]) - 0.1
    for scaled in (maps, -np.abs(maps) - 0.1):  # half of the films cold, then all of them
        change_scores(run, maps=scaled)
        figure = results_figure(run.folder, rows=3)
        for axes in films_on(figure).values():
            for ax in axes:
                rgb = np.asarray(ax.images[0].get_array())
                if scaled is not maps or ax.get_label().split(" ")[1] in cold:
                    assert (rgb == rgb[..., :1]).all()
                    assert not ax.collections


def test_seed_of_the_draw(run, figure):
    """The same seed draws the same films, and another seed draws others."""
    assert ids_on(results_figure(run.folder)) == ids_on(figure)
    assert ids_on(results_figure(run.folder, seed=1)) != ids_on(figure)


def test_draw_and_order_of_predictions(run, figure, tmp_path):
    """The draw does not depend on the order of the predictions."""
    other = write_films(write_run(tmp_path / "made-up", films=240, signal=0.5))
    change_scores(other, predictions=other.read_table("predictions.csv").iloc[::-1])
    assert ids_on(results_figure(other.folder)) == ids_on(figure)


def test_by_score_the_surest_come_first(run):
    figure = results_figure(run.folder, by="score")
    films, _ = outcome_table(run)
    for outcome, ids in ids_on(figure).items():
        scores = films[films["outcome"] == outcome].set_index("image_id")["y_score"]
        expected = scores.sort_values(ascending=outcome in ("TN", "FN")).index[: len(ids)]
        assert ids == list(expected)
    assert "most confident" in caption(figure)


@pytest.mark.parametrize("by", ["hit", "miss"])
def test_selection_by_hit_or_miss(run, by):
    """By hit or miss, maps of positives peak inside or outside the box, as the labels say."""
    figure = results_figure(run.folder, by=by)
    ids, maps = run.maps()
    boxes = run.boxes.set_index("image_id")
    count = 0
    for outcome in ("TP", "FN"):
        for image_id in ids_on(figure)[outcome]:
            cam = maps[list(ids).index(image_id), 0]
            row, column = np.unravel_index(cam.argmax(), cam.shape)
            x, y, box = (column + 0.5) * 128, (row + 0.5) * 128, boxes.loc[image_id]
            inside = box.x <= x < box.x + box.width and box.y <= y < box.y + box.height
            assert inside == (by == "hit")
            count += 1
    assert count
    for outcome in ("TP", "FN"):
        assert all(ax.get_xlabel().split("\n")[0].endswith(by) for ax in films_on(figure)[outcome])


def test_selection_by_image_ids(run):
    """A list of image ids shows these films and no others, in as many rows as they need."""
    films, _ = outcome_table(run)
    chosen = [
        *films.query("outcome == 'TP'")["image_id"][:5],
        *films.query("outcome == 'FP'")["image_id"][:1],
    ]
    figure = results_figure(run.folder, image_ids=chosen[::-1], columns=(2, 1))
    found = ids_on(figure)
    assert found == {"TP": chosen[:5][::-1], "FN": [], "TN": [], "FP": chosen[5:]}
    heights = {round(ax.get_position().y0, 3) for ax in films_on(figure)["TP"]}
    assert len(heights) == 3
    assert titles(figure).count("none selected") == 2
    assert ids_on(results_figure(run.folder, image_ids=[chosen[0][:5]]))["TP"] == [chosen[0]]
    assert "selected by hand" in caption(figure)


def test_any_number_of_columns_and_rows(run):
    figure = results_figure(run.folder, columns=(2, 5), rows=2)
    counts = {outcome: len(ids) for outcome, ids in ids_on(figure).items()}
    assert counts["TP"] == counts["TN"] == 4
    assert 5 < counts["FP"] <= 10


def test_an_outcome_that_never_happens_says_none(tmp_path):
    run = write_films(write_run(tmp_path / "perfect", films=60, signal=30.0))
    figure = results_figure(run.folder)
    assert ids_on(figure)["FN"] == ids_on(figure)["FP"] == []
    assert "False negatives (0/6): none" in titles(figure)
    assert "False positives (0/" in titles(figure)


@pytest.mark.parametrize("choice", [{}, {"columns": (1, 5), "by": "score"}, {"columns": 9}])
def test_share_of_filled_places(run, tmp_path, choice):
    """At least two thirds of the places have a film, also where errors are few."""
    few = write_films(write_run(tmp_path / "few", films=160, signal=1.5))
    counts = outcome_table(few)[0]["outcome"].value_counts()
    assert counts.get("FN", 0) + counts.get("FP", 0) < 8  # few errors: once most was empty
    for one in (run, few):
        shown = films_on(results_figure(one.folder, **choice)).values()
        axes = [ax for some in shown for ax in some]
        corners = [ax.get_position(original=True).p0.round(4) for ax in axes]
        places = np.prod([len(np.unique(along)) for along in np.transpose(corners)])
        assert len(axes) >= 2 / 3 * places


def test_places_have_the_shape_of_the_films(run, figure):
    (ax, *_) = films_on(figure)["TP"]  # a film of 1024 x 512
    place, film = ax.get_position(original=True), ax.get_position()
    assert film.width / place.width == pytest.approx(0.75, abs=0.01)  # 1.5 times as high as wide


def test_a_side_without_films_leaves_its_place_to_the_other(tmp_path):
    run = write_films(write_run(tmp_path / "perfect", films=160, signal=30.0))
    shown = ids_on(results_figure(run.folder, columns=6))
    assert {outcome: len(ids) for outcome, ids in shown.items()} == {
        "TP": 6, "FN": 0, "TN": 6, "FP": 0
    }  # fmt: skip


def test_films_of_one_patient_have_ids_that_differ(tmp_path):
    run = write_run(tmp_path / "nih", films=60)
    for name in ("images.csv", "boxes.csv", "predictions.csv"):
        table = run.read_table(name)
        run.write_table(name, table.assign(image_id="00000013_" + table["image_id"].str[2:]))
    stored = np.load(run.folder / "maps.npz")
    write_again(run, [f"00000013_{image_id[2:]}" for image_id in stored["image_id"]], stored)
    figure = results_figure(write_films(run).folder)
    shown = [ax.get_xlabel() for axes in films_on(figure).values() for ax in axes]
    last = [text.replace("\n", " ").split(" ")[-1] for text in shown]
    assert len(set(last)) == len(last) > 4
    assert all(one.startswith("00000013_") for one in last)


def write_again(run: Run, ids: list[str], stored: dict) -> None:
    run.write_scores(
        run.read_table("predictions.csv"), ids, {"CAM": stored["maps/CAM"]}, bias=stored["bias"]
    )


@pytest.mark.parametrize(("width", "millimetres"), [("one column", 89), ("two columns", 183)])
def test_a_journal_gets_its_width_and_letters_that_can_be_read(run, width, millimetres):
    figure = results_figure(run.folder, width=width)
    assert figure.get_figwidth() * 25.4 == pytest.approx(millimetres)
    texts = [*figure.texts, *(ax.xaxis.label for ax in figure.axes)]
    assert min(text.get_fontsize() for text in texts) >= 6


def test_without_a_caption_its_text_is_the_label(run):
    figure, other = (results_figure(run.folder, caption=some) for some in (True, False))
    assert caption(other) == ""
    assert caption(figure) == figure.get_label() == other.get_label()
    assert other.get_figheight() < figure.get_figheight()


def test_white_line_and_runs_without_boxes(tmp_path):
    """The line is the threshold from validation; without boxes the caption names no line or box."""
    run = write_films(write_run(tmp_path / "run", films=160))
    assert "line" not in caption(results_figure(run.folder))  # not evaluated
    assert not any(ax.collections for ax in results_figure(run.folder).axes)
    evaluate_maps(run, n_bootstrap=5)
    threshold = run.metrics["localization"]["Pneumonia"]["thresholds"]["logit"]
    figure = results_figure(run.folder)
    assert f"White line: CAM threshold {threshold:.2f} (chosen on validation)" in caption(figure)
    ids, maps = run.maps()
    for axes in films_on(figure).values():
        for ax in axes:
            cam = maps[list(ids).index(ax.get_label().split(" ")[1]), 0]
            assert bool(ax.collections) == (cam.max() > threshold)
    only_negatives = outcome_table(run)[0].query("outcome == 'TN'")["image_id"].tolist()[:3]
    words = caption(results_figure(run.folder, image_ids=only_negatives))
    assert "box" not in words
    run.write_table("boxes.csv", run.boxes[:0])
    evaluate_maps(run, n_bootstrap=5)
    figure = results_figure(run.folder)
    assert not {"box", "Hit", "line"} & set(caption(figure).replace("es", "").split())
    assert not any("hit" in ax.get_xlabel() or "miss" in ax.get_xlabel() for ax in figure.axes)


def test_words_of_the_caption(run, figure):
    """The caption states the rule of the draw, the counts and the threshold."""
    films, _ = outcome_table(run)
    counts = films["outcome"].value_counts()
    words = caption(figure)
    assert f"{len(films)} test images (" in words
    for outcome, (name, *_) in OUTCOMES.items():
        assert f"{outcome} {counts[outcome]}" in words
        assert f"{name.capitalize()}s ({counts[outcome]}/" in titles(figure)
    val = run.predictions.query("split == 'val'")
    threshold = choose_thresholds(val["y_true"], val["y_score"])["youden"]
    assert f"Decision threshold {threshold:.3g} (" in words
    assert f"Youden index on {len(val)} validation images" in words
    assert "at random within each outcome (seed 0)" in words


def test_threshold_after_new_scores(tmp_path):
    """After new scores, the threshold of an earlier evaluation is not used."""
    run = write_films(write_run(tmp_path / "run", films=100))
    evaluate(run, n_bootstrap=20)
    old = run.metrics["classes"]["Pneumonia"]["operating_points"]["youden"]["threshold"]
    scores = run.read_table("predictions.csv")
    change_scores(run, predictions=scores.assign(y_score=scores["y_score"] ** 3))
    words = caption(results_figure(run.folder))
    assert f"Decision threshold {old**3:.3g} (Youden index on" in words
    films, _ = outcome_table(run)
    positive = films["outcome"].isin(["TP", "FP"])
    assert positive.equals(films["y_score"] >= old**3)


def test_given_threshold(run):
    """A threshold can be given, and a score equal to it is called positive."""
    score = float(outcome_table(run)[0]["y_score"].iloc[0])
    films, words = outcome_table(run, threshold=score)
    assert films["outcome"].iloc[0] in ("TP", "FP")
    assert "(given)" in words


def test_without_validation_the_missing_threshold_is_explained(tmp_path):
    run = write_films(write_run(tmp_path / "run", films=40))
    change_scores(run, predictions=run.read_table("predictions.csv").query("split == 'test'"))
    with pytest.raises(ValueError, match=r"no threshold can be chosen for 'Pneumonia'.*threshold="):
        results_figure(run.folder)
    assert results_figure(run.folder, threshold=0.5)


def test_each_class_has_its_own_figure(tmp_path):
    run = write_films(write_run(tmp_path / "two", films=100, classes=("Pneumonia", "Mass")))
    ids, maps = run.maps()
    maps[:, 1] = -1  # no evidence for a mass anywhere: its figure is grey
    change_scores(run, maps=maps)
    figure = results_figure(run.folder, class_name="Mass")
    for axes in films_on(figure).values():
        assert all(np.ptp(ax.images[0].get_array(), axis=-1).max() == 0 for ax in axes)
    labels = run.images.set_index("image_id")["Mass"]
    for outcome, ids in ids_on(figure).items():
        assert (labels[ids] == (outcome in ("TP", "FN"))).all()
    assert "two, Mass: " in caption(figure)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"class_name": "Mass"}, r"class_name='Mass': expected one of \['Pneumonia'\]"),
        ({"by": "luck"}, "by='luck': expected one of 'outcome', 'score', 'hit', 'miss'"),
        ({"columns": (0, 3)}, "columns=0: expected an integer >= 1"),
        ({"columns": 1}, "columns=1: expected an integer >= 2"),
        ({"columns": (1, 2, 3)}, r"columns=\(1, 2, 3\)"),
        ({"width": "page"}, "width='page': expected 'one column', 'two columns' or a number of"),
        ({"width": 2}, "width=2"),
        ({"image_ids": ["0"]}, r"image_ids: '0' begins \d+ ids: 0"),
        ({"rows": 0}, "rows=0"),
        ({"image_ids": ["nobody"]}, "image_ids: 'nobody' begins no id"),
        ({"image_ids": []}, "image_ids: none"),
        ({"threshold": "best"}, "threshold='best': expected a number or one of"),
        ({"colormap": "rainbow2"}, "'rainbow2' is not a valid value"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_by_name(run, choice, message):
    with pytest.raises(ValueError, match=message):
        results_figure(run.folder, **choice)


def test_missing_run_and_missing_film(tmp_path):
    """A folder that is no run and a film that is missing are named."""
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        results_figure(tmp_path)
    run = write_run(tmp_path / "no-films", films=40)
    with pytest.raises(FileNotFoundError, match=r"films/\d+\.jpg"):
        results_figure(run.folder)


def test_it_is_written_as_png_and_as_pdf(figure, run):
    png, pdf = (run.write_figure(f"results.{suffix}", figure, dpi=60) for suffix in ("png", "pdf"))
    assert cv2.imread(str(png)).std() > 20
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"/FontFile2" in pdf.read_bytes()  # ISO 32000-1, 9.9: a TrueType font
    assert b"/Type3" not in pdf.read_bytes()


def test_figure_without_keras_or_pyplot(run):
    """A figure is rendered again without Keras and without pyplot."""
    run_without_keras(
        "from chexnet.figures.results import results_figure; "
        f"results_figure({str(run.folder)!r}).savefig({str(run.folder / 'again.png')!r}, dpi=40)"
    )


def test_genuine_films_keep_their_shape_and_their_boxes(rsna_dir, tmp_path):
    labels = pd.read_csv(rsna_dir / "stage_2_train_labels.csv")
    boxed = labels[labels["Target"] == 1]
    ids = [*boxed["patientId"].unique()[:4], *labels.loc[labels["Target"] == 0, "patientId"][:8]]
    truth = np.isin(ids, boxed["patientId"]).astype(int)
    images = pd.DataFrame({"image_id": ids, "Pneumonia": truth, "rows": 1024, "columns": 1024})
    images["split"] = ["test", "test", "val", "val", *["test", "val"] * 4]
    boxes = boxed[boxed["patientId"].isin(ids)].rename(columns={"patientId": "image_id"})
    run = Run.create(
        tmp_path,
        settings={"class_names": ["Pneumonia"]},
        images=images,
        boxes=boxes.drop(columns="Target"),
    )
    predictions = images[["image_id", "split"]].assign(class_name="Pneumonia", y_true=truth)
    predictions["y_score"] = 0.2 + 0.6 * truth
    maps = np.zeros((12, 1, 7, 7), np.float32)
    run.write_scores(predictions, ids, {"CAM": maps}, bias=np.zeros(1, np.float32))
    for image_id in images.query("split == 'test'")["image_id"]:
        dicom = pydicom.dcmread(rsna_dir / "stage_2_train_images" / f"{image_id}.dcm")
        run.write_film(image_id, dicom.pixel_array)
    figure = results_figure(tmp_path)
    assert ids_on(figure)["TP"]
    for ax in films_on(figure)["TP"]:
        image_id = ax.get_label().split(" ")[1]
        expected = boxes.loc[boxes["image_id"] == image_id, ["x", "y", "width", "height"]]
        found = [(*p.get_xy(), p.get_width(), p.get_height()) for p in ax.patches]
        np.testing.assert_allclose(found, expected)
        np.testing.assert_array_equal(ax.images[0].get_array()[..., 0], run.film(image_id))
