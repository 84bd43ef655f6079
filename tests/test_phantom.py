"""The phantom study: its layout, its reproducibility, and what its films give away and what not."""

import copy
import json
import uuid
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from chexnet.labels import read_chestxray14, read_rsna, read_table
from chexnet.phantom import study as phantom
from chexnet.phantom import write_phantom_study
from chexnet.phantom.anatomy import draw_body, draw_chest
from chexnet.phantom.findings import add_opacities
from chexnet.phantom.layouts import FINDINGS
from chexnet.phantom.study import CLASSES, IMAGES, LABELS, MAPPING, NORMAL, OPACITY, draw_film

FILMS, SIDE = 400, 128


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return write_phantom_study(
        tmp_path_factory.mktemp("phantom") / "study", films=FILMS, film_size=SIDE
    )


@pytest.fixture(scope="module")
def labels(study) -> pd.DataFrame:
    return pd.read_csv(study / LABELS)


@pytest.fixture(scope="module")
def films(study) -> pd.DataFrame:
    """One row a film: Target, class, view, sex, age, patient and pixels, by image id."""
    target = pd.read_csv(study / LABELS).groupby("patientId")["Target"].max()
    classes = pd.read_csv(study / CLASSES).drop_duplicates().set_index("patientId")["class"]
    mapping = pd.DataFrame(json.loads((study / MAPPING).read_text()))
    patient = mapping.set_index("subset_img_id")["img_id"].str[:8]
    headers = [pydicom.dcmread(study / IMAGES / f"{image_id}.dcm") for image_id in target.index]
    return pd.DataFrame(
        {
            "Target": target,
            "class": classes,
            "patient": patient,
            "view": [header.ViewPosition for header in headers],
            "sex": [header.PatientSex for header in headers],
            "age": [int(header.PatientAge) for header in headers],
            "pixels": [header.pixel_array for header in headers],
        },
        index=target.index,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def auroc_either_way(y_true, y_score) -> float:
    value = roc_auc_score(y_true, y_score)
    return max(value, 1 - value)


# Layout


def test_files_and_columns_are_named_as_in_kaggles_archive(study, labels):
    assert sorted(path.name for path in study.iterdir()) == [
        "phantom.json",
        "pneumonia-challenge-dataset-mappings_2018.json",
        "stage_2_detailed_class_info.csv",
        "stage_2_train_images",
        "stage_2_train_labels.csv",
    ]
    assert list(labels.columns) == ["patientId", "x", "y", "width", "height", "Target"]
    assert list(pd.read_csv(study / CLASSES).columns) == ["patientId", "class"]
    ids = {path.stem for path in (study / IMAGES).iterdir()}
    assert ids == set(labels["patientId"])
    assert len(ids) == FILMS
    assert all(str(uuid.UUID(image_id)) == image_id for image_id in ids)


def test_rows_look_as_kaggles_do_on_the_character(study):
    lines = (study / LABELS).read_text().splitlines()
    empty = [line for line in lines[1:] if line.endswith(",0")]
    boxed = [line for line in lines[1:] if line.endswith(",1")]
    assert len(empty) + len(boxed) == len(lines) - 1
    assert all(line[36:] == ",,,,,0" for line in empty)
    assert all(value.endswith(".0") for line in boxed for value in line.split(",")[1:5])


def test_rows_of_the_tables(study, labels):
    """Labels have one row a box and the classes one row for each of them."""
    classes = pd.read_csv(study / CLASSES)
    assert classes["patientId"].tolist() == labels["patientId"].tolist()
    assert set(classes["class"]) == {"Normal", "No Lung Opacity / Not Normal", "Lung Opacity"}
    assert ((classes["class"] == "Lung Opacity") == (labels["Target"] == 1)).all()
    assert labels["patientId"].is_monotonic_increasing
    boxes = labels[["x", "y", "width", "height"]]
    assert (boxes.notna().all(axis=1) == (labels["Target"] == 1)).all()
    assert (boxes.isna().all(axis=1) == (labels["Target"] == 0)).all()
    assert set(labels[labels["Target"] == 1].groupby("patientId").size()) == {1, 2}


def test_the_mapping_names_a_patient_for_each_film_as_nih_does(study, labels):
    mapping = pd.DataFrame(json.loads((study / MAPPING).read_text()))
    assert set(mapping["subset_img_id"]) == set(labels["patientId"])
    assert mapping["img_id"].str.fullmatch(r"\d{8}_\d{3}\.png").all()
    assert mapping["img_id"].is_unique
    assert mapping["SOPInstanceUID"].is_unique
    films_of_one = mapping["img_id"].str[:8].value_counts()
    assert 1.3 < films_of_one.mean() < 2.3
    assert films_of_one.max() >= 4


def test_a_film_is_jpeg_baseline_dicom_that_carries_its_own_name(study):
    path = min((study / IMAGES).iterdir())
    film = pydicom.dcmread(path)
    assert film.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.50"
    assert film.file_meta.MediaStorageSOPInstanceUID == film.SOPInstanceUID
    assert str(film.PatientName) == film.PatientID == path.stem
    assert (film.PhotometricInterpretation, film.BitsStored, film.HighBit) == ("MONOCHROME2", 8, 7)
    assert film.SeriesDescription == f"view: {film.ViewPosition}"
    assert film.pixel_array.dtype == np.uint8
    assert film.pixel_array.shape == (film.Rows, film.Columns) == (SIDE, SIDE)


def test_a_film_has_the_fields_of_a_genuine_one_in_the_same_form(study, rsna_dir):
    real = pydicom.dcmread(min((rsna_dir / IMAGES).iterdir()))
    drawn = pydicom.dcmread(min((study / IMAGES).iterdir()))
    assert [(e.tag, e.VR) for e in drawn] == [(e.tag, e.VR) for e in real]
    assert [e.tag for e in drawn.file_meta] == [e.tag for e in real.file_meta]
    own = {"SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription"}
    own |= {"PatientName", "PatientID", "PatientSex", "PatientAge", "ViewPosition"}
    own |= {"Rows", "Columns", "PixelSpacing", "PixelData"}
    same = [element.keyword for element in real if element.keyword not in own]
    assert {k: drawn[k].value for k in same} == {k: real[k].value for k in same}
    assert str(real.PatientAge).isdigit() and str(drawn.PatientAge).isdigit()


# Reproducible, safe to repeat


def test_seed(tmp_path):
    """The same seed writes the same bytes and another seed others."""
    first = write_phantom_study(tmp_path / "a", films=4, seed=7, film_size=64)
    again = write_phantom_study(tmp_path / "b", films=4, seed=7, film_size=64)
    other = write_phantom_study(tmp_path / "c", films=4, seed=8, film_size=64)
    assert contents(first) == contents(again)
    assert not set(contents(first)) & {name for name in contents(other) if name.endswith("dcm")}


def test_a_longer_study_begins_with_the_films_of_a_shorter_one(tmp_path):
    short = contents(write_phantom_study(tmp_path / "short", films=3, film_size=64))
    long = contents(write_phantom_study(tmp_path / "long", films=8, film_size=64))
    films = {name: content for name, content in short.items() if name.endswith("dcm")}
    assert len(films) == 3
    assert films.items() <= long.items()
    rows = set(short[LABELS].decode().splitlines())
    assert rows <= set(long[LABELS].decode().splitlines())


def test_other_layouts_show_the_same_films_with_three_findings(tmp_path):
    rsna = write_phantom_study(tmp_path / "rsna", films=40, film_size=64)
    nih = write_phantom_study(tmp_path / "nih", films=40, film_size=64, layout="chestxray14")
    table = write_phantom_study(tmp_path / "table", films=40, film_size=64, layout="table")
    mapping = pd.DataFrame(json.loads((rsna / MAPPING).read_text())).set_index("img_id")
    for name, image_id in mapping["subset_img_id"].items():
        png = cv2.imread(str(nih / "images" / name), cv2.IMREAD_GRAYSCALE)
        assert (png == cv2.imread(str(table / "images" / name), cv2.IMREAD_GRAYSCALE)).all()
        jpeg = pydicom.dcmread(rsna / IMAGES / f"{image_id}.dcm").pixel_array
        assert np.abs(png.astype(int) - jpeg).mean() < 6

    opacity = read_rsna(rsna)[0].set_index("image_id")["Pneumonia"]
    images, boxes = read_chestxray14(nih, list(FINDINGS))
    opacity = mapping["subset_img_id"].map(opacity)[images["image_id"] + ".png"]
    assert images["Consolidation"].tolist() == opacity.tolist()
    assert set(boxes["class_name"]) == {"Consolidation"}
    assert 0.2 < boxes["image_id"].nunique() / images["Consolidation"].sum() < 0.8
    assert set(images["official_split"]) == {"train", "test"}

    facts = {name: name for name in ("patient", "view", "sex", "age")}
    own, own_boxes = read_table(
        table / "labels.csv", labels=list(FINDINGS), boxes=table / "boxes.csv", **facts
    )
    labels = own[list(FINDINGS)]
    assert 0.1 < labels.isna().mean().mean() < 0.2
    assert ((labels == images[list(FINDINGS)]) | labels.isna()).all(axis=None)
    merged = own_boxes.merge(boxes)
    assert len(merged) == len(own_boxes) > 0
    for name in ("view", "sex", "age"):
        assert own[name].tolist() == images[name].tolist()
    assert own["patient_id"].astype(int).tolist() == images["patient_id"].astype(int).tolist()


def test_layouts(tmp_path):
    """Another layout is another study and an unknown one is refused."""
    folder = write_phantom_study(tmp_path / "study", films=2, film_size=64, layout="table")
    before = contents(folder)
    assert write_phantom_study(folder, films=2, film_size=64, layout="table") == folder
    assert contents(folder) == before
    with pytest.raises(FileExistsError, match="'film_size': 64}: name another"):
        write_phantom_study(folder, films=2, film_size=64)
    (folder / "boxes.csv").unlink()
    with pytest.raises(FileExistsError, match="'layout': 'table'}: name another"):
        write_phantom_study(folder, films=2, film_size=64, layout="table")
    with pytest.raises(ValueError, match="layout='nih': expected one of rsna, chestxray14, table"):
        write_phantom_study(tmp_path / "new", layout="nih")


def test_a_study_that_is_already_there_is_left_alone(tmp_path, monkeypatch):
    folder = write_phantom_study(tmp_path / "study", films=3, film_size=64)
    monkeypatch.setattr(phantom, "draw_film", None)
    assert write_phantom_study(folder, films=3, film_size=64) == folder


def test_a_folder_with_another_study_is_refused_by_name_and_kept(tmp_path):
    folder = write_phantom_study(tmp_path / "study", films=3, film_size=64)
    before = contents(folder)
    for change in {"films": 4}, {"seed": 1}, {"film_size": 65}:
        with pytest.raises(FileExistsError, match=str(folder)):
            write_phantom_study(folder, **({"films": 3, "film_size": 64} | change))
    assert contents(folder) == before


def test_a_folder_with_anything_else_is_refused_and_kept(tmp_path):
    (tmp_path / LABELS).write_text("real labels")
    with pytest.raises(FileExistsError, match=str(tmp_path)):
        write_phantom_study(tmp_path, films=3, film_size=64)
    with pytest.raises(FileExistsError, match=LABELS):
        write_phantom_study(tmp_path / LABELS, films=3, film_size=64)
    assert contents(tmp_path) == {LABELS: b"real labels"}


def test_a_study_with_a_film_missing_is_not_taken_for_whole(tmp_path):
    folder = write_phantom_study(tmp_path / "study", films=3, film_size=64)
    min((folder / IMAGES).iterdir()).unlink()
    with pytest.raises(FileExistsError, match="complete"):
        write_phantom_study(folder, films=3, film_size=64)


@pytest.mark.parametrize("settings", [b"", b"{}", b"\xff\xfe"])
def test_a_study_with_other_settings_or_none_is_refused(tmp_path, settings):
    folder = write_phantom_study(tmp_path / "study", films=1, film_size=64)
    (folder / "phantom.json").write_bytes(settings)
    with pytest.raises(FileExistsError, match="complete"):
        write_phantom_study(folder, films=1, film_size=64)


def test_an_empty_folder_and_a_missing_parent_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in tmp_path / "empty", tmp_path / "not" / "yet" / "there":
        assert write_phantom_study(str(folder), films=1, film_size=64) == folder
        assert len(list((folder / IMAGES).iterdir())) == 1


def test_a_break_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "draw_film", broken)
    with pytest.raises(KeyboardInterrupt):
        write_phantom_study(tmp_path / "study", films=3, film_size=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"films": 0}, {"seed": -1}, {"film_size": 63}])
def test_settings_out_of_range_are_refused_with_what_is_allowed(tmp_path, wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}.*expected"):
        write_phantom_study(tmp_path / "study", **wrong)
    assert list(tmp_path.iterdir()) == []


# What the films give away, and what not


def test_share_of_findings(films):
    """About three films in ten show opacity and about as many other disease."""
    share = films["class"].value_counts(normalize=True)
    assert share["Lung Opacity"] == pytest.approx(0.30, abs=0.04)
    assert share["No Lung Opacity / Not Normal"] == pytest.approx(0.37, abs=0.06)


def test_mean_brightness_says_next_to_nothing_about_opacity(films):
    mean = films["pixels"].map(np.mean)
    assert auroc_either_way(films["Target"], mean) < 0.65
    for _, some in films.groupby("view"):
        assert auroc_either_way(some["Target"], mean[some.index]) < 0.65


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_no_quantile_of_brightness_gives_opacity_away(films, share):
    quantile = films["pixels"].map(lambda pixels: np.quantile(pixels, share))
    assert auroc_either_way(films["Target"], quantile) < 0.65


@pytest.mark.parametrize("measure", [np.mean, np.std, np.median, np.max])
def test_no_simple_measure_of_where_lungs_lie_gives_opacity_away(films, measure):
    rows = slice(round(0.2 * SIDE), round(0.7 * SIDE))
    left, right = (slice(round(a * SIDE), round((a + 0.28) * SIDE)) for a in (0.14, 0.58))
    lungs = films["pixels"].map(lambda p: measure(np.hstack([p[rows, left], p[rows, right]])))
    assert auroc_either_way(films["Target"], lungs) < 0.70


def test_associations(films):
    """View is mildly associated with opacity and sex and age are not."""
    assert 0.53 < roc_auc_score(films["Target"], films["view"] == "AP") < 0.70
    assert auroc_either_way(films["Target"], films["sex"] == "M") < 0.60
    assert auroc_either_way(films["Target"], films["age"]) < 0.60
    assert films["age"].between(3, 92).all()


def test_opacity_can_be_learnt_from_the_picture(films):
    """A linear view of edges, cut by patient; a network has more to go by."""
    clahe = cv2.createCLAHE(2.0, (8, 8))
    hog = cv2.HOGDescriptor((SIDE, SIDE), (32, 32), (16, 16), (16, 16), 9)
    edges = np.stack([hog.compute(clahe.apply(pixels)).ravel() for pixels in films["pixels"]])
    model = make_pipeline(StandardScaler(), PCA(100, random_state=0), SVC(C=3))
    score = cross_val_predict(
        model,
        edges,
        films["Target"],
        groups=films["patient"],
        cv=GroupKFold(4),
        method="decision_function",
    )
    assert roc_auc_score(films["Target"], score) > 0.75


def test_boxes_lie_on_the_film_and_have_the_sizes_of_rsnas_boxes(labels):
    boxes = labels[labels["Target"] == 1]
    assert (boxes[["x", "y"]] >= 0).all(axis=None)
    assert (boxes["x"] + boxes["width"] <= SIDE).all()
    assert (boxes["y"] + boxes["height"] <= SIDE).all()
    assert (boxes[["width", "height"]] >= 0.06 * SIDE).all(axis=None)
    # RSNA's medians over all 9,555 boxes are about 213 x 297 of 1,024 pixels.
    assert 0.15 < boxes["width"].median() / SIDE < 0.30
    assert 0.22 < boxes["height"].median() / SIDE < 0.38


@pytest.mark.parametrize("seed", range(6))
def test_boxes_and_lungs(seed):
    """A box holds its opacity and fits it, and nothing but lung is changed."""
    rng = np.random.default_rng(seed)
    chest = draw_chest(draw_body(rng), rng, view="PA")
    ill, boxes = add_opacities(chest, rng)
    assert ill.soft is chest.soft
    assert ill.bone is chest.bone
    lost = (chest.air - ill.air).sum(axis=0)
    assert lost.min() >= 0
    inside = np.zeros(lost.shape, bool)
    for x, y, width, height in boxes.astype(int):
        part = lost[y : y + height, x : x + width]
        inside[y : y + height, x : x + width] = True
        # Opacity touches all four sides: the outer tenth of the box is not empty.
        across, down = part.max(axis=0) > 0.1, part.max(axis=1) > 0.1
        assert across[: max(1, width // 10)].any() and across[-max(1, width // 10) :].any()
        assert down[: max(1, height // 10)].any() and down[-max(1, height // 10) :].any()
    assert lost[inside].sum() > 0.85 * lost.sum()


def test_film_size_changes_the_resolution_and_nothing_else():
    film = next(film for film in phantom._films(0) if film["class"] == OPACITY)
    small, small_boxes = draw_film(copy.deepcopy(film), 128)
    large, large_boxes = draw_film(film, 512)
    assert large.shape == (512, 512)
    np.testing.assert_allclose(4 * small_boxes, large_boxes, atol=4)
    shrunk = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(float) - small).mean() < 6


def film_of(seed: int, **facts) -> dict:
    rng = np.random.default_rng(seed)
    film = {"body": draw_body(rng), "rng": rng, "view": "PA", "class": NORMAL, "findings": ()}
    return film | facts


@pytest.mark.parametrize("view", ["PA", "AP"])
@pytest.mark.parametrize("finding", phantom.FINDINGS)
def test_a_finding_changes_the_chest_and_has_no_box(view, finding, monkeypatch):
    drawn = []

    def remember(body, rng, **settings):
        drawn.append((body, settings["raised"]))
        return draw_chest(body, rng, **settings)

    monkeypatch.setattr(phantom, "draw_chest", remember)
    film = film_of(4, view=view, findings=(finding,))
    heart = film["body"]["heart"]
    pixels, boxes = draw_film(film, 64)
    ((body, raised),) = drawn
    assert (body["heart"] > 1.2 * heart) == (finding == "large heart")
    assert (raised in (-1, 1)) == (finding == "raised diaphragm")
    assert film["body"]["heart"] == heart
    assert boxes.shape == (0, 4)
    assert pixels.shape == (64, 64)
    assert pixels.std() > 30


def test_findings_of_form_are_seen_in_the_form_of_the_lungs():
    body = draw_body(np.random.default_rng(3))

    def lungs(raised: int = 0, **change: float) -> np.ndarray:
        chest = draw_chest(body | change, np.random.default_rng(4), view="PA", raised=raised)
        return chest.lungs.sum(axis=(1, 2))  # right, left

    right, left = lungs()
    large_heart = lungs(heart=1.3 * body["heart"])
    assert large_heart[1] < 0.95 * left
    assert lungs(lung=1.1 * body["lung"]).sum() > 1.05 * (right + left)
    raised = lungs(raised=-1)
    assert raised[0] < 0.9 * right
    assert raised[1] == left


def test_findings_of_a_film():
    """Normal films have no finding, abnormal ones have one, and films with opacity either."""
    some = list(islice(phantom._films(0), 300))
    found = {
        label: {len(film["findings"]) > 0 for film in some if film["class"] == label}
        for label in (NORMAL, phantom.ABNORMAL, OPACITY)
    }
    assert found == {
        NORMAL: {False},
        phantom.ABNORMAL: {True},
        OPACITY: {False, True},
    }


def test_air_and_lungs():
    """Air beside the body is black and the lungs are darker than the belly."""
    body = draw_body(np.random.default_rng(0))
    pixels, _ = draw_film(film_of(0, body=body, rng=np.random.default_rng(0)), 256)
    chest = draw_chest(body, np.random.default_rng(0), view="PA")
    lungs = cv2.resize(chest.lungs.any(axis=0).astype(np.uint8), (256, 256)) > 0
    assert pixels[chest.soft[::2, ::2] < 0.01].mean() < 15
    assert pixels[lungs].mean() + 60 < pixels[-40:, 96:160].mean()
