import keras
import numpy as np
import pytest
from keras import layers

from chexnet.cam import METHODS, shared_scale, upsample_map
from chexnet.evaluation import evaluate_maps, localization_scores
from chexnet.explorer import gallery as mapcache
from chexnet.explorer.gallery import cached_maps, methods_at_hand
from chexnet.runs import Run
from tests.made_up_run import change_scores, write_run


def small_model() -> keras.Model:
    """A flat network with the layers that the methods ask for."""
    keras.utils.set_random_seed(0)
    film = keras.Input((32, 32, 1))
    x = layers.Rescaling(1 / 255)(film)
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.AveragePooling2D(2, name="pool2_pool")(x)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = layers.AveragePooling2D(2, name="pool3_pool")(x)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = layers.Identity(name="pool4_pool")(x)
    x = layers.ReLU(name="relu")(layers.Conv2D(4, 3, padding="same")(x))
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.Model(film, layers.Dense(1, activation="sigmoid", name="predictions")(x))


@pytest.fixture
def run(tmp_path) -> Run:
    return write_run(tmp_path / "run", films=80)


def with_films(run: Run) -> Run:
    rng = np.random.default_rng(0)
    for image_id in run.images.query("split == 'test'")["image_id"]:
        run.write_film(image_id, rng.integers(0, 256, (64, 32), dtype=np.uint8))
    return run


def test_the_cached_maps_are_those_of_the_test_films_to_half_a_level(run):
    found = cached_maps(run)
    ids, maps = run.maps()
    test = run.images.query("split == 'test'")["image_id"]
    assert sorted(found.image_ids) == sorted(test)
    assert found.levels.dtype == np.uint8
    step = float(np.ptp(maps[np.isin(ids, test)])) / 255
    for row, image_id in enumerate(found.image_ids):
        exact = maps[list(ids).index(image_id), 0]
        np.testing.assert_allclose(found.map_of(row), exact, atol=step * 0.51)
    assert found.scale[0] == np.float32(shared_scale(maps[np.isin(ids, test), 0]))


def test_iou_at_the_cut_chosen_on_validation_is_the_one_that_the_evaluation_reports(run):
    report = evaluate_maps(run, n_bootstrap=20)
    found = cached_maps(run)
    cut = int(np.abs(found.cuts[0] - report["thresholds"]["logit"]).argmin())
    assert found.cuts[0, cut] == np.float32(report["thresholds"]["logit"])
    assert (np.diff(found.cuts[0]) >= 0).all()
    assert np.nanmean(found.iou[:, 0, cut]) == pytest.approx(
        report["mean_iou_logit"]["value"], abs=1e-4
    )


def test_iou_and_brightest_point_belong_to_their_film_and_negatives_have_none(run):
    found = cached_maps(run)
    ids, maps = run.maps()
    films = run.images.set_index("image_id")
    for cut in (4, 12):
        scores = localization_scores(
            maps[:, 0],
            ids,
            run.boxes,
            run.images,
            threshold=float(found.cuts[0, cut]),
            normalize=False,
        ).set_index("image_id")["iou"]
        for row, image_id in enumerate(found.image_ids):
            if films.loc[image_id, "Pneumonia"]:
                assert found.iou[row, 0, cut] == pytest.approx(scores[image_id], abs=1e-6)
            else:
                assert np.isnan(found.iou[row, 0, cut])
    row = 3
    exact = upsample_map(maps[list(ids).index(found.image_ids[row]), 0], (256, 256))
    x, y = found.brightest[row, 0] * 256
    assert exact[int(y), int(x)] == pytest.approx(exact.max(), abs=0.1)


def test_maps_are_made_once_and_anew_when_what_they_come_from_has_changed(run, monkeypatch):
    first = cached_maps(run)
    made = []
    make = mapcache._make
    monkeypatch.setattr(mapcache, "_make", lambda *a: made.append(a) or make(*a))
    again = cached_maps(Run(run.folder))
    np.testing.assert_array_equal(again.levels, first.levels)
    np.testing.assert_array_equal(again.iou, first.iou)
    assert not made
    _ids, maps = run.maps()
    change_scores(run, maps=maps + 1)
    assert cached_maps(run).low[0] == pytest.approx(first.low[0] + 1)
    evaluate_maps(run, n_bootstrap=20)  # now there is a cut of the evaluation
    assert cached_maps(run).cuts.shape == first.cuts.shape
    assert len(made) == 2


def test_a_broken_cache_is_said_to_be_broken_and_made_anew(run):
    whole = cached_maps(run)
    path = run.folder / "explorer" / "cam.npz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.warns(UserWarning, match=r"cam\.npz: not readable"):
        found = cached_maps(run)
    np.testing.assert_array_equal(found.levels, whole.levels)
    assert cached_maps(run).low[0] == whole.low[0]  # and without a warning


def test_a_folder_that_cannot_be_written_is_explored_all_the_same(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(Run, "write_arrays", refuse)
    with pytest.warns(UserWarning, match="cannot be written"):
        assert len(cached_maps(run).levels)


def test_a_run_without_a_model_has_the_exact_maps_and_one_with_it_the_other_methods(run):
    assert methods_at_hand(run) == ["CAM"]
    small_model().save(run.folder / "model.keras")
    assert methods_at_hand(run) == list(METHODS)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "CAM"])
def test_another_method_is_computed_from_the_stored_films_once(run, method, monkeypatch):
    small_model().save(with_films(run).folder / "model.keras")
    found = cached_maps(run, method)
    assert found.levels.shape[2:] == ((8, 8) if method == "LayerCAM" else (4, 4))
    assert np.ptp(found.levels) == 255
    predictions = run.predictions.query("split == 'test'")
    assert 0 < found.score_error <= max(predictions["y_score"].max(), 1)
    monkeypatch.setattr(mapcache, "_make", None)  # a second time would fail
    np.testing.assert_array_equal(cached_maps(run, method).levels, found.levels)


def test_a_new_model_makes_the_cached_maps_of_its_methods_stale(run):
    model = small_model()
    model.save(with_films(run).folder / "model.keras")
    first = cached_maps(run, "HiResCAM")
    model.get_layer("predictions").kernel.assign(-model.get_layer("predictions").kernel)
    model.save(run.folder / "model.keras")
    second = cached_maps(run, "HiResCAM")
    assert second.high[0] == pytest.approx(-first.low[0], rel=1e-4)


def test_each_class_has_its_own_range_scale_and_iou(tmp_path):
    run = write_run(tmp_path / "two", films=60, classes=("Pneumonia", "Mass"))
    ids, maps = run.maps()
    maps[:, 1] = maps[:, 1] / 100 - 3
    change_scores(run, maps=maps)
    found = cached_maps(run)
    row, its = 2, list(ids).index(found.image_ids[2])
    np.testing.assert_allclose(found.map_of(row, 1), maps[its, 1], atol=0.001)
    assert found.scale[1] == 1  # no evidence anywhere
    np.testing.assert_array_equal(np.isnan(found.iou[:, 1]).all(axis=0), False)


def test_an_unknown_method_and_a_missing_file_are_named(run):
    with pytest.raises(ValueError, match="method='magic': allowed are 'CAM'"):
        cached_maps(run, "magic")
    with pytest.raises(FileNotFoundError, match=r"model\.keras"):
        cached_maps(run, "LayerCAM")
    (run.folder / "maps.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"maps\.npz"):
        cached_maps(run)
