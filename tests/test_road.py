"""The whole road on few films, with a tiny network: every contract between modules."""

import shutil

import keras
import numpy as np
import pandas as pd
import pytest

from chexnet.cam import class_activation_map
from chexnet.dicom import convert_folder
from chexnet.evaluation import evaluate, evaluate_maps, report_table
from chexnet.figures import results_figure
from chexnet.generator import AugmentedImageSequence, ImageStore, default_augmenter
from chexnet.labels import add_film_facts, read_rsna
from chexnet.model import load_chexnet, map_size
from chexnet.phantom import write_phantom_study
from chexnet.runs import Run
from chexnet.splits import split_by_patient, write_split
from chexnet.training import record_scores, train
from tests.training.test_loop import tiny_network

SIZE = 32


def phantom_study(folder, request):
    return write_phantom_study(folder / "study", films=120, film_size=256)


def genuine_study(folder, request):
    """120 genuine films in Kaggle's layout: the tables whole, the films linked."""
    source = request.getfixturevalue("rsna_dir")
    study = folder / "study"
    (study / "stage_2_train_images").mkdir(parents=True)
    labels = pd.read_csv(source / "stage_2_train_labels.csv")
    some = sorted(labels["patientId"].unique())[:120]
    for name in ("stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"):
        table = pd.read_csv(source / name, dtype={"patientId": str})
        table[table["patientId"].isin(some)].to_csv(study / name, index=False)
    mapping = next(source.glob("*mappings*.json"))
    shutil.copy(mapping, study / mapping.name)
    for image_id in some:
        film = source / "stage_2_train_images" / f"{image_id}.dcm"
        shutil.copy(film, study / "stage_2_train_images" / film.name)
    return study


@pytest.fixture(scope="module", params=[phantom_study, genuine_study])
def road(request, tmp_path_factory):
    """A study with one film cut in half, taken from DICOM to metrics.json."""
    folder = tmp_path_factory.mktemp("road")
    study = request.param(folder, request)
    broken = sorted((study / "stage_2_train_images").glob("*.dcm"))[5]
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])

    films = convert_folder(study / "stage_2_train_images", folder / "jpg", progress=False)
    images, boxes = read_rsna(study)
    with pytest.warns(UserWarning, match=broken.stem):
        images = add_film_facts(images, films)
    images["split"] = split_by_patient(images, train=0.5, val=0.25, test=0.25)
    write_split(folder / "data", images, boxes)
    images, boxes = (
        pd.read_csv(folder / "data" / name, dtype={"image_id": str, "patient_id": str})
        for name in ("images.csv", "boxes.csv")
    )

    store = ImageStore(folder / "jpg", images["image_id"], image_size=SIZE, progress=False)
    network = tiny_network()
    run = Run.create(
        folder / "run", settings={"class_names": ["Pneumonia"]}, images=images, boxes=boxes
    )
    common = {"class_names": ("Pneumonia",), "batch_size": 16, "seed": 0, "workers": 2}
    augmenter = default_augmenter(SIZE)
    located = {"augmenter": augmenter, "boxes": boxes, "map_size": map_size(network)}
    parts = dict(iter(images.groupby("split")))
    batches = AugmentedImageSequence(store, parts["train"], shuffle=True, **located, **common)
    val = AugmentedImageSequence(store, parts["val"], shuffle=False, **common)
    train(network, batches, val, run, epochs=2, box_weight=1.0)
    record_scores(run, network, store, folder / "jpg")
    evaluate(run, n_bootstrap=50)
    evaluate_maps(run, n_bootstrap=50)
    return folder, films, run, store, broken.stem


def test_the_broken_film_is_reported_and_the_rest_goes_on(road):
    _, films, run, _, broken = road
    assert list(films.loc[films["status"] == "failed", "image_id"]) == [broken]
    assert len(run.images) == 119
    assert broken not in set(run.images["image_id"])


def test_the_saved_network_gives_the_scores_and_maps_of_the_run(road):
    _, _, run, store, _ = road
    ids, maps = run.maps()
    model = load_chexnet(run.folder / "model.keras")
    scores, again = class_activation_map(model, store[ids])
    np.testing.assert_allclose(again, maps[:, 0], atol=1e-4)
    stored = run.predictions.set_index("image_id").loc[ids, "y_score"]
    np.testing.assert_allclose(scores[:, 0], stored, atol=1e-5)
    bias = keras.ops.convert_to_numpy(model.get_layer("predictions").bias)
    logit = np.log(scores[:, 0] / (1 - scores[:, 0]))
    np.testing.assert_allclose(maps[:, 0].mean((1, 2)) + bias[0], logit, atol=1e-4)


def test_no_patient_stands_on_both_sides(road):
    splits = road[2].images.groupby("patient_id")["split"].nunique()
    assert (splits == 1).all()


def test_the_figure_needs_neither_network_nor_films(road, tmp_path):
    run = road[2]
    moved = tmp_path / "elsewhere"
    shutil.copytree(run.folder, moved)
    (moved / "model.keras").unlink()
    results_figure(moved).savefig(tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_the_table_tells_all_of_it(road):
    parts = set(report_table(road[2].metrics)["group"])
    assert {"test", "validation", "baseline: view position", "CAM, all positive films"} <= parts
