import os
import sys
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pytest

from chexnet.dicom import read_film
from chexnet.model import build_chexnet, load_chexnet, map_size, xrayvision
from chexnet.model.xrayvision import NAMES, load_xrayvision, read_checkpoint
from tests.eager import forward
from tests.references import make_xrayvision as reference

# The order of torchxrayvision.models.DenseNet.targets; its network for RSNA knows two of them.
TARGETS = [
    "Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema",
    "Fibrosis", "Effusion", "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass",
    "Hernia", "Lung Lesion", "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum",
]  # fmt: skip
RSNA = "torchxrayvision:densenet121-res224-rsna"


@pytest.fixture(scope="module")
def recorded():
    return np.load(reference.RECORDED)


@pytest.fixture
def library(monkeypatch, tmp_path, recorded):
    """Stands for the library, with the recorded network as every one of its files."""
    urls = {name: {"weights_url": f"https://x/{name}.pt", "labels": TARGETS} for name in NAMES}
    for_rsna = [name if name in ("Pneumonia", "Lung Opacity") else "" for name in TARGETS]
    urls[NAMES[4]]["labels"] = for_rsna
    models = SimpleNamespace(
        model_urls=urls,
        DenseNet=SimpleNamespace(targets=TARGETS),
        get_weights=lambda name: tmp_path / f"{name}.pt",
    )
    state = reference.random_state(int(recorded["seed"]))
    monkeypatch.setattr(xrayvision, "_library", lambda name: models)
    monkeypatch.setattr(xrayvision, "read_checkpoint", lambda path: dict(state))
    renamed = tmp_path / "renamed.pt"
    renamed.touch()
    return SimpleNamespace(models=models, state=state, path=f"torchxrayvision:{renamed}")


def features_and_logits(model, films):
    both = keras.Model(model.input, [model.get_layer("avg_pool").output, model.output])
    features, scores = forward(both, films[..., np.newaxis])
    scores = scores.astype(np.float64)
    return features, np.log(scores / (1 - scores))


def test_features_and_logits_are_those_that_the_library_gave(library, recorded):
    model = build_chexnet(reference.SIZE, class_names=TARGETS, weights=library.path)
    features, logits = features_and_logits(model, recorded["films"])
    assert recorded["features"].std(axis=1).min() > 0.1  # so 1e-4 is small
    assert np.ptp(recorded["logits"]) > 4
    np.testing.assert_allclose(features, recorded["features"], atol=1e-4)
    np.testing.assert_allclose(logits, recorded["logits"], atol=1e-4)


def test_the_library_s_scaling_is_inside_the_saved_network(library, recorded, tmp_path):
    model = build_chexnet(reference.SIZE, class_names=TARGETS, weights=library.path)
    model.save(tmp_path / "model.keras")
    loaded = load_chexnet(tmp_path / "model.keras")
    inside = keras.Model(loaded.input, loaded.get_layer("rescaling").output)
    pixels = np.array([0, 255, 51]).repeat(reference.SIZE**2).astype(np.uint8)
    pixels = pixels.reshape(3, reference.SIZE, reference.SIZE, 1)
    scaled = forward(inside, pixels)[:, 0, 0, 0]
    np.testing.assert_allclose(scaled, [-1024, 1024, -614.4], atol=1e-3)
    logits = features_and_logits(loaded, recorded["films"])[1]
    np.testing.assert_allclose(logits, recorded["logits"], atol=1e-4)
    assert [layer.name for layer in loaded.layers][-3:] == ["relu", "avg_pool", "predictions"]


@pytest.mark.parametrize("name", ["tuned.keras", "tuned.weights.h5"])
def test_file_of_ours(library, recorded, name, tmp_path):
    """A file of ours that came from the library starts another."""
    model = build_chexnet(reference.SIZE, class_names=TARGETS, weights=library.path)
    path = tmp_path / name
    model.save(path) if name.endswith(".keras") else model.save_weights(path)
    again = build_chexnet(reference.SIZE, class_names=TARGETS, weights=path)
    logits = features_and_logits(again, recorded["films"])[1]
    np.testing.assert_allclose(logits, recorded["logits"], atol=1e-4)


def test_finer_map(library):
    """The finer map has twice the positions and the same weights."""
    model = build_chexnet(reference.SIZE, map_stride=16, dropout=0.1, weights=library.path)
    assert map_size(model) == (6, 6)
    expected = library.state["features.norm5.running_var"]
    np.testing.assert_array_equal(model.get_layer("bn").get_weights()[3], expected)


def test_the_head_takes_the_classes_of_the_same_name(library):
    model = build_chexnet(32, class_names=("Lung Opacity", "Pneumonia"), weights=RSNA)
    kernel, bias = model.get_layer("predictions").get_weights()
    columns = [TARGETS.index("Lung Opacity"), TARGETS.index("Pneumonia")]
    np.testing.assert_array_equal(kernel, library.state["classifier.weight"][columns].T)
    np.testing.assert_array_equal(bias, library.state["classifier.bias"][columns])


def test_unknown_class(library):
    """A class that it was not trained on starts at random and is named."""
    with pytest.warns(UserWarning, match=r"has no class \['Hernia'\].*\['Lung Opacity', 'Pn"):
        model = build_chexnet(32, class_names=("Hernia", "Pneumonia"), weights=RSNA)
    kernel, bias = model.get_layer("predictions").get_weights()
    assert np.abs(kernel[:, 0] - library.state["classifier.weight"][13]).max() > 0.01
    assert bias[0] == 0
    np.testing.assert_array_equal(kernel[:, 1], library.state["classifier.weight"][8])


def test_a_checkpoint_of_another_network_is_refused(library, monkeypatch):
    monkeypatch.setattr(
        xrayvision, "read_checkpoint", lambda path: {"conv1.weight": np.zeros((64, 3, 7, 7))}
    )
    with pytest.raises(ValueError, match=r"renamed.pt: not a DenseNet121 .* \['conv1.weight'\]"):
        build_chexnet(32, weights=library.path)


def test_damaged_checkpoint(library, monkeypatch):
    """A checkpoint with missing and misshapen layers names them."""
    state = dict(library.state)
    del state["features.transition2.conv.weight"]
    state["features.conv0.weight"] = np.zeros((32, 1, 7, 7), np.float32)
    monkeypatch.setattr(xrayvision, "read_checkpoint", lambda path: state)
    with pytest.raises(ValueError, match="these layers differ") as refused:
        build_chexnet(32, weights=library.path)
    assert str(refused.value).splitlines()[1:] == [
        "conv1_conv: [(7, 7, 1, 64)] here, [(7, 7, 1, 32)] there",
        "pool3_conv: [(1, 1, 512, 256)] here, None there",
    ]


@pytest.mark.parametrize("shape", [(18,), (18, 512), (3, 1024)])
def test_a_classifier_of_another_shape_is_refused_by_name(library, monkeypatch, shape):
    state = dict(library.state) | {"classifier.weight": np.zeros(shape, np.float32)}
    monkeypatch.setattr(xrayvision, "read_checkpoint", lambda path: state)
    with pytest.raises(
        ValueError, match=r"renamed\.pt: classifier .*expected \[\(1024, 18\), \(18,\)\]"
    ):
        build_chexnet(32, weights=library.path)


@pytest.mark.parametrize("name", ["densenet121-res224-kaggle", "resnet50-res512-all", "rsna", ""])
def test_an_unknown_name_is_refused_with_those_allowed(name):
    with pytest.raises(
        ValueError, match=r"expected after 'torchxrayvision:' one of .*-rsna.*or the"
    ):
        build_chexnet(32, weights=f"torchxrayvision:{name}")


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no such file"):
        build_chexnet(32, weights="torchxrayvision:nowhere.pt")


def test_library_not_installed(monkeypatch):
    """Where the library is not installed, the error says what to install."""
    monkeypatch.setitem(sys.modules, "torchxrayvision", None)
    with pytest.raises(ImportError, match=r"pip install 'chexnet\[torchxrayvision\]'"):
        build_chexnet(32, weights=RSNA)


def test_a_download_that_fails_says_what_to_download(library):
    def refused(name):
        raise ConnectionRefusedError("no route")

    library.models.get_weights = refused
    with pytest.raises(ConnectionError, match=r"no route.*https://x/.*-rsna\.pt.*<path of the"):
        build_chexnet(32, weights=RSNA)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: make test-backends")


def test_a_dict_of_tensors_is_read_as_it_is(torch, tmp_path):
    torch.save({"classifier.bias": torch.arange(3.0)}, tmp_path / "state.pt")
    read = read_checkpoint(tmp_path / "state.pt")
    np.testing.assert_array_equal(read["classifier.bias"], [0, 1, 2])


def old_style(torch, what, path):
    """Saved as torch did before 1.6, and so as the library's published files are."""
    torch.save(what, path, _use_new_zipfile_serialization=False)


def test_an_old_pickled_module_is_read_without_its_classes(torch, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 7), torch.nn.BatchNorm2d(3))
    module.from_another_time = np.arange(3)  # whatever else hung on a published module
    old_style(torch, module, tmp_path / "module.pt")
    read = read_checkpoint(tmp_path / "module.pt")
    assert set(read) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(read[name], tensor.numpy())


class Ruin:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_an_old_checkpoint_is_not_run(torch, tmp_path):
    old_style(torch, {"weight": Ruin(tmp_path / "ruined")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt: cannot be read safely"):
        read_checkpoint(tmp_path / "evil.pt")
    module = torch.nn.Linear(2, 1)
    module.hook = Ruin(tmp_path / "ruined")
    old_style(torch, module, tmp_path / "evil_module.pt")
    assert set(read_checkpoint(tmp_path / "evil_module.pt")) == {"weight", "bias"}
    assert not (tmp_path / "ruined").exists()
    torch.load(tmp_path / "evil_module.pt", weights_only=False)  # what the library itself does
    assert (tmp_path / "ruined").exists()


def test_code_in_a_newer_checkpoint_is_refused(torch, tmp_path):
    torch.save({"weight": Ruin(tmp_path / "ruined")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt: cannot be read safely(.|\n)*mkdir"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ruined").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_refused_by_name(torch, tmp_path, content):
    (tmp_path / "damaged.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.pt: cannot be read"):
        read_checkpoint(tmp_path / "damaged.pt")


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (lambda torch: {"a": 1}, "cannot be read safely.*detach"),
        (lambda torch: {"a": torch.zeros(2, dtype=torch.bfloat16)}, ".*dense.*float32"),
        (lambda torch: {"a": torch.zeros(2, 2).to_sparse()}, ".*dense.*float32"),
    ],
    ids=["no tensor", "bfloat16", "sparse"],
)
def test_tensors_that_are_no_arrays_are_refused_by_name(torch, tmp_path, stored, told):
    torch.save(stored(torch), tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=rf"odd\.pt: {told}"):
        read_checkpoint(tmp_path / "odd.pt")


@pytest.fixture
def installed():
    """The genuine library. Its import turns every warning off; it is put back."""
    reason = "TorchXRayVision is not installed: the recorded reference stands in for it"
    return pytest.importorskip("torchxrayvision", reason=reason)


def test_on_genuine_films_the_library_itself_agrees(installed, torch, rsna_dir, tmp_path):
    paths = sorted((rsna_dir / "stage_2_train_images").glob("*.dcm"))[:4]
    films = np.stack(
        [
            cv2.resize(read_film(path).pixels, (224, 224), interpolation=cv2.INTER_AREA)
            for path in paths
        ]
    )
    network = reference.random_network(1)
    expected = reference.features_and_logits(network, films)
    old_style(torch, network, tmp_path / "whole_module.pt")
    weights = f"torchxrayvision:{tmp_path / 'whole_module.pt'}"
    model = build_chexnet(224, class_names=installed.models.DenseNet.targets, weights=weights)
    features, logits = features_and_logits(model, films)
    assert expected[0].std(axis=1).min() > 0.1
    np.testing.assert_allclose(features, expected[0], atol=1e-4)
    np.testing.assert_allclose(logits, expected[1], atol=1e-4)


def test_names_of_the_library(installed):
    """The library still has the names and classes that we know."""
    known = installed.models.model_urls
    assert {name for name in known if name.startswith("densenet121")} == set(NAMES)
    assert list(installed.models.DenseNet.targets) == TARGETS
    labels = [known[name]["labels"] for name in NAMES]
    assert all(len(names) == 18 and set(names) <= {*TARGETS, ""} for names in labels)


def test_a_made_up_reference_film_uses_every_grey(recorded):
    assert recorded["films"].min((1, 2)).tolist() == [0, 0]
    assert recorded["films"].max((1, 2)).tolist() == [255, 255]
    np.testing.assert_array_equal(recorded["films"], reference.made_up_films(2, reference.SIZE))


def test_head_by_class(library):
    """`load_xrayvision` gives layers below the head and the head by class."""
    layers, head = load_xrayvision("densenet121-res224-rsna")
    assert "predictions" not in layers
    assert set(head) == {"Pneumonia", "Lung Opacity"}
    assert head["Pneumonia"][0].shape == (1024,)
