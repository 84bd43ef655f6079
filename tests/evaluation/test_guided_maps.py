import numpy as np
import pandas as pd
import pytest

from chexnet.cam import min_max, upsample_map
from chexnet.evaluation import localization_scores
from chexnet.evaluation.prior import choose_guidance, fit_box_prior, guided_maps

SIDE = 128


def study(n, seed, *, where):
    """Films with one box each, drawn near ``where`` (x, y), and maps that glow dimly there."""
    draw = np.random.default_rng(seed)
    corner = np.clip(draw.normal(where, 14, (n, 2)), 0, SIDE - 33).round().astype(int)
    ids = np.array([f"film{seed}-{index}" for index in range(n)])
    boxes = pd.DataFrame({"image_id": ids, "x": corner[:, 0], "y": corner[:, 1]})
    boxes = boxes.assign(width=32, height=32)
    films = pd.DataFrame({"image_id": ids, "rows": SIDE, "columns": SIDE})
    maps = draw.normal(0, 1, (n, 8, 8)).astype(np.float32)
    for film, (x, y) in zip(maps, corner // 16, strict=True):
        film[y : y + 2, x : x + 2] += 1.2
    return maps, ids, boxes, films


@pytest.fixture
def prior():
    _, _, boxes, films = study(300, 1, where=(30, 50))
    return fit_box_prior(boxes, films)


def test_weight_0_is_the_map_alone(prior):
    maps = study(5, 2, where=(30, 50))[0]
    np.testing.assert_array_equal(guided_maps(maps, prior, 0.0), min_max(upsample_map(maps, SIDE)))


def test_a_heavy_prior_has_the_shape_of_the_training_boxes(prior):
    maps = study(5, 2, where=(30, 50))[0]
    heavy = guided_maps(maps, prior, 1000.0)
    for film in heavy:
        assert np.corrcoef(film.ravel(), prior.share.ravel() > 0.1)[0, 1] > 0.7
    top = np.unravel_index(heavy[0].argmax(), heavy[0].shape)
    assert prior.share[top] == prior.share.max()


def test_prior_and_dim_maps(prior):
    """Dim maps find boxes better with the prior and the weight is chosen for that."""
    weight, threshold = choose_guidance(*study(80, 3, where=(30, 50)), prior)
    assert weight > 0
    maps, *rest = study(200, 4, where=(30, 50))
    guided = localization_scores(
        guided_maps(maps, prior, weight), *rest, threshold=threshold, normalize=False
    )
    alone, cut = choose_guidance(*study(80, 3, where=(30, 50)), flat(prior))
    assert alone == 0
    plain = localization_scores(
        guided_maps(maps, prior, 0.0), *rest, threshold=cut, normalize=False
    )
    assert guided["iou"].mean() > plain["iou"].mean() + 0.03
    assert guided["hit"].mean() > plain["hit"].mean()


def flat(prior):
    """A prior that knows nothing: no weight of it is better than none."""
    _, _, boxes, films = study(1, 1, where=(0, 0))
    whole = boxes.assign(x=0, y=0, width=SIDE, height=SIDE)
    return fit_box_prior(whole, films)


def test_without_boxes_nothing_can_be_chosen(prior):
    maps, ids, boxes, films = study(3, 2, where=(30, 50))
    with pytest.raises(ValueError, match="no film with boxes"):
        choose_guidance(maps, ids, boxes.iloc[:0], films, prior)
