"""Figures of runs with names that look like formulas, and with maps that are not finite."""

import io

import numpy as np
import pytest
from matplotlib.text import Text

from chexnet.evaluation import evaluate, evaluate_maps
from chexnet.explorer import explore
from chexnet.figures import (
    NO_MAP,
    compare_figure,
    decision_figure,
    film_sheet,
    prediction_figure,
    reliability_figure,
    report_page,
    results_figure,
    roc_figure,
    score_histogram,
    subgroup_figure,
)  # fmt: skip
from tests.made_up_run import change_scores, write_films, write_run

FILM = np.full((8, 8), 100, np.uint8)


def test_names_are_text(tmp_path):
    """A class, a folder and a view with $ in their names are no formulas."""
    name = r"$\frac{1}$ <b>"
    its = {"classes": ("Pneumonia", name), "view": r"$\view$"}
    run = write_films(write_run(tmp_path / r"$\x$", films=60, **its))
    evaluate(run, n_bootstrap=5)
    evaluate_maps(run, n_bootstrap=5)
    draw = [roc_figure, reliability_figure, decision_figure, score_histogram, subgroup_figure]
    figures = [one(run, class_name=name) for one in (*draw, report_page)]
    figures += [results_figure(run.folder, class_name=name), film_sheet([FILM], titles=[name])]
    figures += [compare_figure(run, run, class_name=name)]
    figures += [prediction_figure(FILM, np.ones((2, 2)), name, score=0.5, run=run, class_name=name)]
    for figure in figures:
        figure.savefig(io.BytesIO())
    assert name in [text.get_text() for text in figures[0].findobj(Text)]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A run with one test film whose map is NaN, its id, and the maps before."""
    run = write_films(write_run(tmp_path_factory.mktemp("runs") / "run", films=60))
    _, test = run.scored_films()
    image_id = test.sort_values("y_score")["image_id"].iloc[-1]
    ids, maps = run.maps()
    change_scores(run, maps=np.where((ids == image_id)[:, None, None, None], np.nan, maps))
    return run, image_id, maps[ids != image_id]


def test_one_map_of_nan(broken):
    """A film whose map is NaN is shown without it, and the others by their own scale."""
    run, image_id, _ = broken
    others = [name for name in run.scored_films()[1]["image_id"] if name != image_id][:1]
    figure = results_figure(run.folder, image_ids=[image_id, *others], boxes=False)
    picture, other = (
        next(ax for ax in figure.axes if ax.get_label().endswith(name)).images[0].get_array()
        for name in (image_id, *others)
    )
    np.testing.assert_array_equal(picture[..., 0], picture[..., 2])  # gray
    assert (other[..., 0] != other[..., 2]).any()
    assert [text.get_text() for text in figure.findobj(Text)].count(NO_MAP) == 1


def test_explorer_of_nan(broken):
    """The explorer shows the film without map and IoU, and gives the others theirs."""
    run, image_id, maps = broken
    gallery = explore(run).gallery
    row = gallery.films.index[gallery.films["image_id"] == image_id][0]
    assert gallery.scale("CAM") <= np.max(maps)
    film = gallery.overlay(row, boxes=False)
    np.testing.assert_array_equal(film[..., 0], film[..., 2])
    assert NO_MAP in gallery.facts(row, position="", threshold=0.5)
    iou = gallery.iou("CAM")
    assert np.isnan(iou[row]).all()
    assert np.isfinite(iou).any()


def test_evaluation_of_nan(broken):
    """The evaluation names the film."""
    run, image_id, _ = broken
    with pytest.raises(ValueError, match=rf"maps\.npz: 1 films whose map has NaN.*{image_id}"):
        evaluate_maps(run)
