import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import cv2
import keras
import numpy as np
import pandas as pd
import pytest

from chexnet.generator import AugmentedImageSequence, ImageStore, default_augmenter
from chexnet.generator import sequence as generator
from chexnet.labels import box_masks

SIZE = 32
COUNT = 22  # batches of 4: five whole ones and one of two


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Films of even grey, each its own value, and every third with a bright box."""
    folder = tmp_path_factory.mktemp("films")
    images, boxes = [], []
    for index in range(COUNT):
        film = np.full((64, 128), 4 * index + 10, np.uint8)
        if index % 3 == 0:
            x, y = 8 + 4 * index, 10 + index
            film[y : y + 20, x : x + 30] = 255
            boxes.append((f"film{index:02d}", x, y, 30, 20))
        cv2.imwrite(str(folder / f"film{index:02d}.jpg"), film, [cv2.IMWRITE_JPEG_QUALITY, 100])
        images.append((f"film{index:02d}", int(index % 3 == 0), index % 2, 64, 128))
    images = pd.DataFrame(images, columns=["image_id", "Pneumonia", "Edema", "rows", "columns"])
    boxes = pd.DataFrame(boxes, columns=["image_id", "x", "y", "width", "height"])
    store = ImageStore(
        folder,
        images["image_id"],
        image_size=SIZE,
        cache=folder / "cache",
        clip_limit=None,
        progress=False,
    )
    return store, images, boxes


def sequence(study, **options):
    store, images, _ = study
    given = {
        "images": images, "class_names": ("Pneumonia",), "batch_size": 4, "shuffle": False,
        "seed": 0, "workers": 1,
    }  # fmt: skip
    given |= options
    return AugmentedImageSequence(store, given.pop("images"), **given)


def training(study, **options):
    return sequence(study, shuffle=True, augmenter=default_augmenter(SIZE), **options)


def digest(batch):
    return [np.asarray(part).tobytes() for part in batch]


class Watcher(keras.Model):
    """Does not learn; keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.compile(run_eagerly=True)

    def call(self, films):
        return films

    def train_step(self, batch):
        self.seen.append(digest(batch))
        return {"loss": 0.0}

    def test_step(self, batch):
        return self.train_step(batch)


def expected(batches, epochs):
    return [digest(batches.batch(e, k)) for e in epochs for k in range(len(batches))]


def test_a_batch_is_uint8_films_and_float_labels(study):
    films, labels = sequence(study, class_names=("Pneumonia", "Edema"))[0]
    assert films.shape == (4, SIZE, SIZE, 1)
    assert films.dtype == np.uint8
    assert labels.dtype == np.float32
    assert labels.tolist() == [[1, 0], [0, 1], [0, 0], [1, 1]]


def test_validation_as_it_is(study):
    """Validation is the table in its order with its pixels as they are."""
    store, images, _ = study
    val = sequence(study)
    films = np.concatenate([films for films, _ in val])
    labels = np.concatenate([labels for _, labels in val])
    assert np.array_equal(films, store[images["image_id"]])
    assert labels[:, 0].tolist() == images["Pneumonia"].tolist()
    val.epoch = 3
    assert np.array_equal(np.concatenate([films for films, _ in val]), films)


def test_order_of_the_table(study):
    """The order of the table counts and not its index or that of the store."""
    store, images, _ = study
    some = images.iloc[[7, 2, 9, 3, 0]]
    films, labels = sequence(study, images=some)[0]
    assert np.array_equal(films, store[["film07", "film02", "film09", "film03"]])
    assert labels[:, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 11, 21, 22, 100])
def test_every_film_comes_once_an_epoch_whatever_the_batch_size(study, batch_size):
    batches = training(study, batch_size=batch_size)
    assert len(batches) == -(-COUNT // batch_size)
    for epoch in range(3):
        rows = np.concatenate([batches.rows(epoch, k) for k in range(len(batches))])
        assert sorted(rows) == list(range(COUNT))
        assert [len(batches.rows(epoch, k)) for k in range(len(batches) - 1)] == [batch_size] * (
            len(batches) - 1
        )
    assert sum(len(films) for films, _ in batches) == COUNT


def test_films_and_labels_belong_together_when_shuffled(study):
    store, images, _ = study
    batches = sequence(study, shuffle=True)
    positives = images.set_index("image_id")["Pneumonia"]
    for k in range(len(batches)):
        films, labels = batches[k]
        ids = batches.image_ids[batches.rows(0, k)]
        assert np.array_equal(films, store[ids])
        assert labels[:, 0].tolist() == positives[ids].tolist()


def test_each_epoch_and_each_seed_has_its_own_order(study):
    orders = {
        tuple(np.concatenate([batches.rows(epoch, k) for k in range(len(batches))]))
        for batches in (training(study, seed=0), training(study, seed=1))
        for epoch in range(4)
    }
    assert len(orders) == 8
    assert tuple(range(COUNT)) not in orders


def test_a_batch_depends_on_seed_epoch_and_index_alone(study):
    one, other = training(study, seed=5), training(study, seed=5, workers=3)
    forwards = expected(one, [0, 1])
    asked = [(e, k) for e in (1, 0) for k in reversed(range(len(other)))]
    backwards = [digest(other.batch(e, k)) for e, k in asked]
    assert forwards == backwards[::-1]
    assert len({batch[0] for batch in forwards}) == len(forwards)


def test_the_same_films_are_changed_anew_for_each_seed_and_epoch(study):
    alike = [sequence(study, augmenter=default_augmenter(SIZE), seed=seed) for seed in (0, 1)]
    seen = {digest(batches.batch(epoch, 0))[0] for batches in alike for epoch in range(3)}
    assert len(seen) == 6


def test_each_batch_has_an_augmentation_of_its_own(study, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        generator,
        "SeededAugmenter",
        lambda _: lambda films, seed, masks: seeds.append(seed) or (films, masks),
    )
    for seed in (0, 1):
        batches = training(study, seed=seed)
        for epoch in range(3):
            for k in range(len(batches)):
                batches.batch(epoch, k)
    assert len({tuple(seed) for seed in seeds}) == 2 * 3 * len(batches)
    orders = [[seed, epoch, generator._ORDER] for seed in (0, 1) for epoch in range(3)]
    states = {tuple(np.random.SeedSequence(seed).generate_state(4)) for seed in seeds + orders}
    assert len(states) == len(seeds) + len(orders)


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_change_nothing(study, threads):
    _, _, boxes = study
    batches = training(study, boxes=boxes, map_size=(4, 4))
    asked = [(e, k) for e in range(4) for k in range(len(batches))]

    def fetch(position):
        films, targets = batches.batch(*position)
        return digest([films, targets["predictions"], targets["location"]])

    alone = [fetch(position) for position in asked]
    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(fetch, asked)) == alone


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_fit_sees_every_batch_of_every_epoch_in_order(study, workers):
    batches = training(study, workers=workers)
    model = Watcher()
    model.fit(batches, epochs=4, shuffle=False, verbose=0)
    assert model.seen == expected(batches, range(4))
    assert batches.epoch == 4


def test_fit_with_its_default(study):
    """`fit` with its default shuffles whole batches in an order of its own."""
    batches = training(study)
    model = Watcher()
    model.fit(batches, epochs=2, verbose=0)
    # Why fit needs shuffle=False: the batches are ours, their order is Python's global one.
    assert sorted(model.seen[:6]) == sorted(expected(batches, [0]))
    assert sorted(model.seen[6:]) == sorted(expected(batches, [1]))
    assert model.seen != expected(batches, range(2))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_resumed_run_sees_what_the_unbroken_one_would_have(study, workers):
    unbroken = Watcher()
    unbroken.fit(training(study, workers=workers), epochs=4, shuffle=False, verbose=0)
    resumed = Watcher()
    rest = training(study, workers=workers)
    rest.epoch = 2
    resumed.fit(rest, initial_epoch=2, epochs=4, shuffle=False, verbose=0)
    assert resumed.seen == unbroken.seen[2 * len(rest) :]


def test_two_phases_of_training_go_on_where_the_first_ended(study):
    batches = training(study, workers=2)
    model = Watcher()
    model.fit(batches, epochs=1, shuffle=False, verbose=0)
    model.fit(batches, initial_epoch=1, epochs=3, shuffle=False, verbose=0)
    assert model.seen == expected(batches, range(3))


def test_validation_within_fit_keeps_its_order_and_pixels(study):
    val = sequence(study, workers=2)
    model, scored = Watcher(), Watcher()
    model.test_step = lambda batch: scored.train_step(batch)
    model.fit(training(study, workers=2), validation_data=val, epochs=2, verbose=0)
    assert scored.seen == expected(val, [0]) * 2


def test_the_epoch_moves_on_only_when_one_has_begun_and_ended(study):
    batches = training(study)
    batches.on_epoch_end()  # Keras does so before the first epoch
    assert batches.epoch == 0
    batches.on_epoch_begin()
    assert batches.epoch == 0
    batches.on_epoch_end()
    batches.on_epoch_end()
    assert batches.epoch == 1
    batches.on_epoch_begin()
    batches.epoch = 7  # a broken-off epoch is begun again
    batches.on_epoch_end()
    assert batches.epoch == 7


def test_order_in_threads(study):
    """A thread that fetches while the order of another epoch is asked for gets its own."""
    batches = training(study)
    alone = {epoch: expected(batches, [epoch]) for epoch in range(3)}
    wrong, start = [], threading.Barrier(3)

    def fetch(epoch):
        start.wait()
        for _ in range(10):
            if expected(batches, [epoch]) != alone[epoch]:
                wrong.append(epoch)

    threads = [threading.Thread(target=fetch, args=(epoch,)) for epoch in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_masks_are_the_share_of_each_cell_in_a_box(study):
    _, images, boxes = study
    films, targets = sequence(study, boxes=boxes, map_size=(4, 8))[0]
    assert targets["predictions"].shape == (4, 1)
    assert targets["location"].shape == (4, 4, 8, 1)
    assert targets["location"].dtype == np.float32
    ids = images["image_id"][:4]
    shares = box_masks(boxes, images, ids, (4, 8))
    assert targets["location"][..., 0] == pytest.approx(shares, abs=1e-6)
    assert targets["location"][1].sum() == 0
    assert len(films) == 4


def test_only_pairs_whose_place_is_known_have_a_target(study):
    _, images, boxes = study
    images = images.assign(Mass=np.nan, Edema=images["Edema"].where(images.index != 5))
    images.loc[1, "Pneumonia"] = np.nan  # a missing label; film 1 has no box
    images.loc[2, "Pneumonia"] = 1  # a positive film without a box
    images.loc[3, "Pneumonia"] = 0  # a negative film whose box is not used
    others = boxes.iloc[[1]].assign(image_id="film05", class_name="Edema")  # its label is missing
    boxes = pd.concat([boxes.assign(class_name="Pneumonia"), others])
    batches = sequence(
        study, images=images, class_names=("Edema", "Pneumonia", "Mass"), boxes=boxes,
        map_size=(4, 8), batch_size=8,
    )  # fmt: skip
    assert list(batches.boxes) == ["Pneumonia"]
    location = batches[0][1]["location"]
    assert location.shape == (8, 4, 8, 3)
    assert np.isnan(location[..., [0, 2]]).all()
    known = ~np.isnan(location[..., 1]).any(axis=(1, 2))
    assert known.tolist() == [True, False, False, True, True, True, True, True]
    assert (known == batches.located[:8, 1]).all()
    assert not batches.located[:, [0, 2]].any()
    place = location[known, ..., 1].sum(axis=(1, 2)) > 0
    assert place.tolist() == [True, False, False, False, True, False]


def test_without_a_usable_box_there_are_no_masks(study):
    boxes = study[2]
    for given in (boxes[:0], boxes.assign(class_name="Edema")):
        batches = sequence(study, boxes=given, map_size=(4, 8))
        assert batches.boxes == {}
        assert isinstance(batches[0][1], np.ndarray)


def test_each_class_is_moved_with_its_own_boxes(study):
    _, images, boxes = study
    both = {"class_names": ("Pneumonia", "Edema"), "shuffle": True, "map_size": (8, 8)}
    both |= {"images": images.assign(Edema=1 - images["Edema"])}  # on films 0, 2, 4, ...
    both |= {"augmenter": default_augmenter(SIZE), "batch_size": COUNT}
    two = pd.concat([boxes.assign(class_name=name) for name in both["class_names"]])
    location = sequence(study, boxes=two, **both)[0][1]["location"]
    for index, name in enumerate(both["class_names"]):
        one = sequence(study, boxes=boxes.assign(class_name=name), **both)[0][1]["location"]
        assert np.array_equal(one[..., index], location[..., index], equal_nan=True)
        assert np.nansum(one[..., index]) > 0


def test_masks_follow_the_films_through_augmentation(study):
    _, _, boxes = study
    augmenter = default_augmenter(SIZE, scale=0.2, blur=0)
    batches = sequence(study, shuffle=True, augmenter=augmenter, boxes=boxes, map_size=(8, 8))
    compared = 0
    for epoch in range(4):
        for k in range(len(batches)):
            films, targets = batches.batch(epoch, k)
            for film, mask, label in zip(films, targets["location"], labels(targets), strict=True):
                assert (mask.sum() > 0) == (label == 1)
                if label:
                    bright = film[..., 0] > 170
                    share = bright.reshape(8, 4, 8, 4).mean((1, 3))
                    # The bright box was resized to whole pixels: an eighth of a cell's side.
                    assert np.abs(share - mask[..., 0]).mean() < 0.02
                    assert share.sum() == pytest.approx(mask.sum(), rel=0.25)
                    compared += 1
    assert compared == 4 * 8


def labels(targets):
    return targets["predictions"][:, 0]


def test_a_map_side_that_does_not_divide_the_film_is_no_obstacle(study):
    _, _, boxes = study
    batches = training(study, boxes=boxes, map_size=(5, 7))
    _, targets = batches[0]
    assert targets["location"].shape == (4, 5, 7, 1)
    assert 0 <= targets["location"].min() <= targets["location"].max() <= 1


def test_keras_learns_from_films_and_masks_at_once(study):
    _, _, boxes = study
    film = keras.Input((SIZE, SIZE, 1))
    features = keras.layers.Conv2D(2, 8, strides=8)(keras.layers.Rescaling(1 / 255)(film))
    pooled = keras.layers.GlobalAveragePooling2D()(features)
    scores = keras.layers.Dense(1, activation="sigmoid", name="predictions")(pooled)
    maps = keras.layers.Conv2D(1, 1, activation="sigmoid", name="location")(features)
    model = keras.Model(film, {"predictions": scores, "location": maps})
    model.compile("sgd", loss={"predictions": "bce", "location": "bce"})
    batches = training(study, boxes=boxes, map_size=(4, 4), workers=2)
    history = model.fit(batches, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_iterating_stops_at_the_last_batch(study):
    batches = sequence(study)
    assert len(list(batches)) == len(batches) == 6
    for index in (6, -1):
        with pytest.raises(IndexError, match="0 to 5"):
            batches[index]


def test_opencvs_threads_are_left_as_they_were(study, tmp_path):
    store, images, boxes = study
    before = cv2.getNumThreads()
    try:
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            ImageStore(store.folder, images["image_id"], image_size=16, cache=tmp_path, workers=2)
            training(study, workers=2, boxes=boxes, map_size=(4, 4))[0]
            assert cv2.getNumThreads() == threads
            shutil.rmtree(tmp_path)
    finally:
        cv2.setNumThreads(before)


def test_keras_is_given_the_number_of_threads_as_it_wants_it(study):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = sequence(study, workers=3)
    assert batches.workers == 3
    assert batches.use_multiprocessing is False


@pytest.mark.parametrize("label", [2, -1, 0.5, "yes"])
def test_a_label_that_is_neither_0_nor_1_is_named_with_its_film(study, label):
    _, images, _ = study
    wrong = images.astype({"Pneumonia": object})
    wrong.loc[5, "Pneumonia"] = label
    with pytest.raises(
        ValueError, match=r"1 invalid labels Pneumonia: .* of film05; expected: 0, 1 or missing"
    ):
        sequence(study, images=wrong)


def test_a_class_without_a_column_is_named(study):
    with pytest.raises(ValueError, match="1 missing columns: Fracture"):
        sequence(study, class_names=("Pneumonia", "Fracture"))
    with pytest.raises(ValueError, match="at least one name"):
        sequence(study, class_names="Pneumonia")


def test_a_film_listed_once_per_box_is_refused(study):
    _, images, _ = study
    with pytest.raises(ValueError, match=r"duplicate image_ids: film03.*boxes have a table"):
        sequence(study, images=pd.concat([images, images.iloc[[3]]]))


def test_a_film_that_the_store_does_not_hold_is_named(study):
    _, images, _ = study
    with pytest.raises(KeyError, match="film99"):
        sequence(study, images=images.replace({"image_id": {"film05": "film99"}}))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": 0}, {"seed": -1}, {"seed": 0.5}])
def test_numbers_that_make_no_sense_are_refused(study, wrong):
    with pytest.raises(ValueError, match="expected"):
        sequence(study, **wrong)


def test_an_epoch_below_0_is_refused(study):
    with pytest.raises(ValueError, match="epoch=-1: expected"):
        sequence(study).epoch = -1


def test_a_map_without_cells_is_refused(study):
    with pytest.raises(ValueError, match=r"map_size=\(0, 7\): expected"):
        sequence(study, boxes=study[2], map_size=(0, 7))


def test_boxes_and_map_size_come_together(study):
    _, images, boxes = study
    with pytest.raises(ValueError, match="expected boxes and map_size together"):
        sequence(study, boxes=boxes)
    with pytest.raises(ValueError, match=r"rows and columns.*film00"):
        missing = images.assign(rows=images["rows"].astype("Int64")).replace({"rows": {64: pd.NA}})
        sequence(study, images=missing, boxes=boxes, map_size=(4, 4))
