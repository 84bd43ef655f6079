"""Results as DICOM objects: of the film's study, valid for others, in the film's pixels."""

import shutil
import subprocess
import warnings

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.valuerep import PersonName

from chexnet.cli import main
from chexnet.dicom import FilmError
from chexnet.export import Facts, write_dicom_results
from chexnet.files import read_table
from chexnet.phantom import write_phantom_study
from chexnet.predict import Prediction, Predictor, predict_folder
from tests.alone import need
from tests.export.test_network import write_small_run

SHAPE = (96, 128)


@pytest.fixture(autouse=True)
def highdicom():
    need("highdicom", "pip install 'chexnet[dicom-out]'")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = write_phantom_study(tmp_path_factory.mktemp("study"), films=4, film_size=128)
    return folder / "stage_2_train_images"


def write_film(path, **changes):
    """A film without compression, with attributes changed, or left out where they are None."""
    film = pydicom.Dataset()
    film.SOPClassUID, film.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    film.StudyInstanceUID, film.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    film.PatientID, film.PatientName, film.PatientSex = "P-1", "Müller^Änne", "F"
    film.PatientBirthDate, film.StudyDate, film.StudyTime = "19500102", "20200304", "1200"
    film.AccessionNumber, film.StudyID, film.PatientAge = "A7", "S7", "070Y"
    film.SpecificCharacterSet, film.Modality, film.ReferringPhysicianName = "ISO_IR 192", "DX", ""
    film.Rows, film.Columns = SHAPE
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 8, 8, 7, 0
    film.PixelData = np.arange(SHAPE[0] * SHAPE[1], dtype=np.uint16).astype(np.uint8).tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are illegal on purpose
        for name, value in changes.items():
            if value is None:
                delattr(film, name)
            else:
                element = pydicom.DataElement(name, film[name].VR if name in film else "CS", "")
                element._value = PersonName(value) if element.VR == "PN" else value
                film[name] = element
        film.file_meta = pydicom.dataset.FileMetaDataset()
        film.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        film.save_as(path, enforce_file_format=True)
    return path


def prediction(**changes):
    """Two classes; the map of the first is above its threshold in the right upper quarter."""
    cam = np.full((4, 4), -1.0, np.float32)
    cam[:2, 2:] = 3.0
    names = ["Pneumonia", "Other/finding"]
    run = {"name": "rsna", "model": "ab", "data": "cd"}
    facts = Facts(
        names, {"image_size": 64}, {"Pneumonia": 0.5}, {"Pneumonia": 1.5}, {"Pneumonia": 3.0},
        {"Pneumonia": 1.0}, run=run,
    )  # fmt: skip
    known = {
        "source": "film.dcm",
        "scores": dict(zip(names, (0.75, 0.25), strict=True)),
        "calibrated": dict(zip(names, (0.6, None), strict=True)),
        "thresholds": facts.thresholds,
        "positive": dict(zip(names, (True, None), strict=True)),
        "maps": dict(zip(names, (cam, np.full((4, 4), -2, np.float32)), strict=True)),
        "film": np.full(SHAPE, 100, np.uint8),
        "header": {},
        "percentile": None,
        "warnings": (),
        "facts": facts,
        "predictor": "0123456789abcdef",
        "run": None,
    }
    return Prediction(**known | changes)


@pytest.fixture
def objects(tmp_path):
    source = write_film(tmp_path / "film.dcm")
    files = write_dicom_results(prediction(), source, tmp_path / "results")
    return {path.name: pydicom.dcmread(path) for path in files}


def test_patient_and_study(tmp_path, objects):
    """Patient and study are those of the film and the rest is new."""
    film = pydicom.dcmread(tmp_path / "film.dcm")
    assert list(objects) == [
        *("overlay-Pneumonia.dcm", "overlay-Other_finding.dcm", "region.dcm"),
        "report.dcm",
    ]
    for made in objects.values():
        for name in (
            *("StudyInstanceUID", "PatientID", "PatientName", "PatientSex", "PatientBirthDate"),
            *("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "PatientAge"),
        ):
            assert made[name].value == film[name].value
        assert made.SeriesDescription.startswith("Research use only")
        assert made.SeriesInstanceUID != film.SeriesInstanceUID
        assert made.SoftwareVersions
        assert made.DeviceSerialNumber == "0123456789abcdef"
    assert len({made.SOPInstanceUID for made in objects.values()} | {film.SOPInstanceUID}) == 5
    assert len({made.SeriesInstanceUID for made in objects.values()}) == 3
    assert [made.Modality for made in objects.values()] == ["OT", "OT", "PR", "SR"]


def items(container):
    """Meaning of the name and value of each content item below a container."""
    for item in container.get("ContentSequence", ()):
        name = item.ConceptNameCodeSequence[0].CodeMeaning
        if item.ValueType == "NUM":
            measured = item.MeasuredValueSequence[0]
            unit = measured.MeasurementUnitsCodeSequence[0].CodeValue
            yield name, (float(measured.NumericValue), unit)
        elif item.ValueType == "CODE":
            code = item.ConceptCodeSequence[0]
            yield name, (code.CodeValue, code.CodingSchemeDesignator)
        else:
            yield name, item.get("TextValue")
        yield from items(item)


def test_report(objects):
    """The report has finding, score, threshold, and the model as observer."""
    found = list(items(objects["report.dcm"]))
    said = dict(reversed(found))  # of the first finding
    assert said["Finding"] == ("233604007", "SCT")
    assert said["Score of the network"] == (0.75, "1")
    assert said["Decision threshold"] == (0.5, "1")
    assert said["Certainty of Finding"] == (60.0, "%")
    assert said["Score at or above the decision threshold"] == ("373066001", "SCT")
    assert said["Observer Type"] == ("121007", "DCM")
    assert said["Device Observer Model Name"] == "DenseNet-121 rsna"
    assert said["Device Observer Serial Number"] == "0123456789abcdef"
    assert ("Finding", ("Other/finding", "99CHEXNET")) in found
    assert ("Score of the network", (0.25, "1")) in found
    assert [name for name, _ in found].count("Decision threshold") == 1  # the other has none
    report = objects["report.dcm"]
    assert report.SOPClassUID == pydicom.uid.ComprehensiveSRStorage
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"


def test_region(objects):
    """The region is where the map is above its threshold in pixels of the film."""
    state = objects["region.dcm"]
    first, second = state.GraphicAnnotationSequence
    assert "GraphicObjectSequence" not in second
    (outline,) = first.GraphicObjectSequence
    x, y = np.array(outline.GraphicData).reshape(-1, 2).T
    assert outline.GraphicAnnotationUnits == "PIXEL"
    assert (x[0], y[0]) == (x[-1], y[-1])
    # The map changes from -1 to 3 between the centers of its cells; it is 1 in the middle.
    assert (x.min(), y.max()) == pytest.approx((64.5, 47.5), abs=1)
    assert (x.max(), y.min()) == (127.5, 0.5)
    assert "score 0.750, threshold 0.500" in first.TextObjectSequence[0].UnformattedTextValue
    bits = np.frombuffer(state[0x6000, 0x3000].value, np.uint8)
    bitmap = np.unpackbits(bits, bitorder="little")[: SHAPE[0] * SHAPE[1]].reshape(SHAPE)
    rows, columns = np.nonzero(bitmap)
    assert (columns.min(), rows.max()) == pytest.approx((64, 47), abs=1)
    assert (columns.max(), rows.min()) == (127, 0)
    shown = state.DisplayedAreaSelectionSequence[0].DisplayedAreaBottomRightHandCorner
    assert list(shown) == [128, 96]
    assert state.PresentationLUTShape == "IDENTITY"


def test_the_overlay_is_colored_where_the_map_is(objects):
    pixels = objects["overlay-Pneumonia.dcm"].pixel_array
    assert pixels.shape == (*SHAPE, 3)
    assert (pixels[60, 10] == 100).all()
    assert pixels[10, 120, 0] > pixels[10, 120, 2] + 50
    assert objects["overlay-Pneumonia.dcm"].SourceImageSequence[0].ReferencedSOPInstanceUID


def test_white_as_zero_and_window(tmp_path):
    """A film with white as zero and a window is shown as it is."""
    source = write_film(tmp_path / "film.dcm", PhotometricInterpretation="MONOCHROME1")
    film = pydicom.dcmread(source)
    film.WindowCenter, film.WindowWidth = 100, 50
    film.save_as(source)
    write_dicom_results(prediction(), source, tmp_path / "out")
    state = pydicom.dcmread(tmp_path / "out" / "region.dcm")
    assert state.PresentationLUTShape == "INVERSE"
    assert state.SoftcopyVOILUTSequence[0].WindowCenter == 100


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PatientID": None}, "PatientID is missing or empty"),
        ({"PatientID": ""}, "PatientID is missing or empty"),
        ({"PatientID": "x" * 65}, "PatientID is not a legal LO"),
        ({"StudyInstanceUID": None}, "StudyInstanceUID is missing"),
        ({"StudyInstanceUID": "1.2.x"}, "StudyInstanceUID is not a legal UI"),
        ({"PatientBirthDate": "2.1.1950"}, "PatientBirthDate is not a legal DA"),
        ({"PatientSex": "W"}, "PatientSex is not one of M, F and O"),
        ({"StudyDate": "yesterday"}, "StudyDate is not a legal DA"),
        ({"AccessionNumber": "x" * 17}, "AccessionNumber is not a legal SH"),
        ({"StudyInstanceUID": "0"}, "StudyInstanceUID is not a legal UI"),
        ({"SOPClassUID": "1.2.3"}, "SOPClassUID is not that of an image"),
        ({"PatientName": "A^B^C^D^E^F"}, "PatientName is not a legal PN"),
        ({"SpecificCharacterSet": ""}, "PatientName has characters that its SpecificCharacterSet"),
        ({"SpecificCharacterSet": "ISO_IR 999"}, "PatientName has characters that its Specific"),
        ({"SamplesPerPixel": 3}, "in color"),
        ({"Rows": 95}, "95 x 128 pixels"),
    ],
)
def test_illegal_attribute(tmp_path, changes, reason):
    """An attribute that is missing or illegal is named and nothing is written."""
    source = write_film(tmp_path / "film.dcm", **changes)
    with pytest.raises(FilmError, match=rf"film\.dcm: .*{reason}") as caught:
        write_dicom_results(prediction(), source, tmp_path / "out")
    private = changes.get("PatientBirthDate") or changes.get("AccessionNumber") or "Müller"
    assert private not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_header_that_cannot_be_decoded_is_named(tmp_path):
    source = write_film(tmp_path / "film.dcm")
    film = pydicom.dcmread(source)
    junk = RawDataElement(Tag("VOILUTSequence"), "SQ", 4, b"1\\2 ", 0, False, True)
    film._dict[junk.tag] = junk
    film.save_as(source)
    with pytest.raises(FilmError, match=r"film\.dcm: damaged: its header cannot be read"):
        write_dicom_results(prediction(), source, tmp_path / "out")


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 144", "Иванов^Иван"),
        ("GB18030", "王^小东"),
        ("ISO_IR 100", "Müller^Änne"),
        ("ISO_IR 999", "Mueller^Aenne"),
    ],
)
def test_names_in_any_character_set_of_dicom_are_kept(tmp_path, charset, name):
    source = write_film(tmp_path / "film.dcm", SpecificCharacterSet=charset, PatientName=name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the set that nobody knows
        assert pydicom.dcmread(source).PatientName == name
    for path in write_dicom_results(prediction(), source, tmp_path / "out"):
        assert pydicom.dcmread(path).PatientName == name


def test_empty_attributes(tmp_path):
    """What may be empty is empty and an illegal age is left out."""
    source = write_film(
        tmp_path / "film.dcm", PatientAge="70", PatientName=None, PatientSex="", StudyID=None
    )
    for path in write_dicom_results(prediction(), source, tmp_path / "out"):
        made = pydicom.dcmread(path)
        assert "PatientAge" not in made
        assert made.PatientName == made.PatientSex == made.StudyID == ""
    with pytest.raises(FilmError, match="not a DICOM file"):
        cv2.imwrite(str(tmp_path / "film.png"), np.zeros(SHAPE, np.uint8))
        write_dicom_results(prediction(), tmp_path / "film.png", tmp_path / "png")


def test_nothing_is_overwritten(tmp_path):
    """Nothing is overwritten and the same result is not written twice."""
    source, out = write_film(tmp_path / "film.dcm"), tmp_path / "out"
    files = write_dicom_results(prediction(), source, out)
    before = {path: path.stat().st_mtime_ns for path in files}
    (out / "region.dcm").unlink()  # as if killed before
    assert write_dicom_results(prediction(), source, out) == files
    assert {p: p.stat().st_mtime_ns for p in files if p.name != "region.dcm"} == {
        p: time for p, time in before.items() if p.name != "region.dcm"
    }
    for other in ({"predictor": "another"}, {"scores": {"Pneumonia": 0.7, "Other/finding": 0.25}}):
        with pytest.raises(FileExistsError, match="exists with another result"):
            write_dicom_results(prediction(**other), source, out)
    (out / "report.dcm").write_text("mine")
    with pytest.raises(FileExistsError, match=r"report\.dcm"):
        write_dicom_results(prediction(), source, out)
    assert (out / "report.dcm").read_text() == "mine"


def test_without_highdicom_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(ImportError, match="pip install 'chexnet"):
        write_dicom_results(prediction(), tmp_path / "film.dcm", tmp_path)


def test_folder_of_films(study, tmp_path, capsys):
    """A folder of films gets objects and a reason where it cannot."""
    run = write_small_run(tmp_path / "run")
    films = tmp_path / "films"
    shutil.copytree(study, films)
    first, second = sorted(films.iterdir())[:2]
    bad = pydicom.dcmread(second)
    del bad.PatientID
    bad.save_as(second)
    out, predictor = tmp_path / "out", Predictor(run.folder)
    without = predict_folder(predictor, films, out, progress=False)
    assert "dicom" not in without
    table = predict_folder(predictor, films, out, dicom=True, progress=False)
    assert (table["status"] == "scored").all()
    assert table["dicom"].tolist()[::2] == ["written", "written"]
    assert "PatientID is missing" in table["dicom"][1]
    folder = out / "dicom" / f"{first.stem}-{predictor.fingerprint[:8]}"
    assert {path.name for path in folder.iterdir()} == {
        *("overlay-Pneumonia.dcm", "overlay-Effusion.dcm", "region.dcm", "report.dcm")
    }
    assert len(list((out / "dicom").iterdir())) == 3
    before = (folder / "report.dcm").stat().st_mtime_ns
    again = predict_folder(predictor, films, out, dicom=True, progress=False)
    pd.testing.assert_frame_equal(again, table)
    pd.testing.assert_frame_equal(read_table(out / "predictions.csv"), table)
    assert (folder / "report.dcm").stat().st_mtime_ns == before
    command = ["predict", str(run.folder), str(films), "--out", str(out), "--dicom", "--quiet"]
    assert main(command) == 1
    said, errors = capsys.readouterr()
    assert "4 scored, 3 with DICOM results" in said
    assert "PatientID is missing" in errors


def tool(name, package):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")


def test_dciodvfy_finds_no_error(tmp_path, study):
    tool("dciodvfy", "dicom3tools")
    sources = [write_film(tmp_path / "film.dcm")]
    pixels = pydicom.dcmread(min(study.iterdir())).pixel_array
    results = [write_dicom_results(prediction(), sources[0], tmp_path / "a")]
    results.append(
        write_dicom_results(
            prediction(film=np.zeros(pixels.shape, np.uint8)), min(study.iterdir()), tmp_path / "b"
        )
    )
    for path in [path for files in results for path in files]:
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        lines = (said.stdout + said.stderr).splitlines()
        assert any(not line.startswith(("Error", "Warning")) for line in lines)
        assert not [line for line in lines if line.startswith("Error")], path


def test_dcmtk(tmp_path):
    """DCMTK reads the objects and draws the region over the film."""
    tool("dsrdump", "dcmtk")
    # dcmpschk knows no UTF-8.
    source = write_film(tmp_path / "film.dcm", PatientName="Mueller^Aenne")
    out = tmp_path / "out"
    for path in write_dicom_results(prediction(), source, out):
        subprocess.run(["dcmdump", path], check=True, capture_output=True)
    said = subprocess.run(
        ["dsrdump", out / "report.dcm"], check=True, capture_output=True, text=True
    ).stdout
    assert '(233604007,SCT,"Pneumonia")' in said
    assert '"0.75" (1,UCUM,"no units")' in said
    checked = subprocess.run(
        ["dcmpschk", out / "region.dcm"], check=True, capture_output=True, text=True
    )
    assert "Test passed" in checked.stdout + checked.stderr
    subprocess.run(
        ["dcmp2pgm", "--debug", "--pstate", out / "region.dcm", source, "film.pgm"],
        check=True, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    film = cv2.imread(str(tmp_path / "film.pgm"), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(film, pydicom.dcmread(source).pixel_array)
    outline = cv2.imread(str(tmp_path / "ovl_0101.pgm"), cv2.IMREAD_GRAYSCALE) > 0
    rows, columns = np.nonzero(outline)
    assert outline.shape == SHAPE
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (64, 127, 0, 47)


def test_genuine_films_get_valid_objects(tmp_path, rsna_dir):
    """Their ages and pixel spacings are illegal, which must not get into the objects."""
    tool("dciodvfy", "dicom3tools")
    source = min((rsna_dir / "stage_2_train_images").glob("*.dcm"))
    assert pydicom.dcmread(source).PatientAge == "51"
    made = write_dicom_results(
        prediction(film=np.zeros((1024, 1024), np.uint8)), source, tmp_path / "out"
    )
    for path in made:
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        assert "Error" not in said.stdout + said.stderr, path
