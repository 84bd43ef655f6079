"""The result of one film as DICOM objects: an overlay, a structured report, a presentation state.

highdicom builds them. Patient and study come from the film; series and instances are new.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
import pydicom
from pydicom.charset import CUSTOMIZABLE_CHARSET_VR, convert_encodings, default_encoding
from pydicom.config import RAISE
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import validate_value

from chexnet import __version__
from chexnet.cam import upsample_map
from chexnet.dicom import FilmError, library_errors, quiet_pydicom
from chexnet.export.facts import NOTE, Facts
from chexnet.figures import blend
from chexnet.files import path_id, write_atomic

if TYPE_CHECKING:
    import highdicom

# SNOMED CT, as in dictionaries of DICOM PS3.16 where they have the concept. Others are private.
FINDINGS = {
    "Pneumonia": Code("233604007", "SCT", "Pneumonia"),
    "Atelectasis": Code("46621007", "SCT", "Atelectasis"),
    "Cardiomegaly": Code("8186001", "SCT", "Cardiomegaly"),
    "Effusion": codes.SCT.PleuralEffusion,
    "Pleural Effusion": codes.SCT.PleuralEffusion,
    "Edema": codes.SCT.PulmonaryEdema,
    "Pneumothorax": codes.SCT.Pneumothorax,
    "Mass": codes.SCT.Mass,
    "Nodule": codes.SCT.Nodule,
    "Lung Opacity": codes.DCM.Opacity,
}
_SCHEME = "99CHEXNET"  # a private coding scheme begins with 99 (PS3.16 section 8.2)
_SCORE = Code("score", _SCHEME, "Score of the network")
_THRESHOLD = Code("threshold", _SCHEME, "Decision threshold")
_DECISION = Code("decision", _SCHEME, "Score at or above the decision threshold")
_PROCEDURE = Code("399208008", "SCT", "Plain chest X-ray")
_MANUFACTURER = "chexnet"
_LAYER = "OUTLINES"
_SERIES = "Research use only - chexnet"  # begins the series description
_SERIES_NUMBER = 9001  # of the first new series; scanners number from 1

# Which attributes of the film must be there with a value; of the others, an illegal value of the
# first kind is an error and one of the second is left out (PS3.3 C.7.1.1 and C.7.2: types 1 to 3).
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")
_KEPT = (
    *("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
_OPTIONAL = ("PatientAge", "StudyDescription")
# How the film is shown, for the presentation state.
_SHOWN = (
    *("Rows", "Columns", "PhotometricInterpretation", "SamplesPerPixel", "NumberOfFrames"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTSequence", "VOILUTFunction"),
)
_SEXES = ("M", "F", "O", "")  # PS3.3 C.7.1.1


class Result(Protocol):
    """What is needed of a `chexnet.predict.Prediction`."""

    scores: dict[str, float]
    calibrated: dict[str, float | None]
    thresholds: dict[str, float | None]
    positive: dict[str, bool | None]
    maps: dict[str, np.ndarray]
    film: np.ndarray
    facts: Facts
    predictor: str


def write_dicom_results(
    prediction: Result, source_film: str | Path, target: str | Path
) -> list[Path]:
    """Writes a prediction as DICOM objects of the film's study.

    - ``overlay-<class>.dcm``: Secondary Capture of the film with its map, as in the overlays;
    - ``report.dcm``: Comprehensive SR after TID 1500: of each class the finding, the score, the
      decision threshold, whether the score reaches it, and the calibrated probability; the model
      and its version are the device observer;
    - ``region.dcm``: Grayscale Softcopy Presentation State with the outlines of where the map is
      above the map threshold, in pixels of the film.

    The UIDs of the new series and instances depend on the film, the model and the scores only, so
    the same result has the same UIDs. It is not written a second time.

    Args:
        prediction: from `chexnet.predict.Predictor`.
        source_film: the DICOM file that was scored.
        target: folder, made if missing.

    Returns:
        the files.

    Raises:
        FilmError: the film is not DICOM, lacks an attribute that identifies patient, study or
            image, has an illegal value there, or has color or several frames. Values that may
            identify a person are not in the message.
        FileExistsError: another result is at one of these files; nothing is written.
        ImportError: highdicom is not installed.
        OSError: a file cannot be read or written.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.export import write_dicom_results
        >>> from chexnet.predict import Predictor
        >>> film = min(Path("data/phantom/study/stage_2_train_images").iterdir())
        >>> files = write_dicom_results(Predictor("output/demo")(film), film, "output/dicom")
        >>> [path.name for path in files]
        ['overlay-Pneumonia.dcm', 'region.dcm', 'report.dcm']
    """
    try:
        import highdicom  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError("highdicom is not installed; pip install 'chexnet[dicom-out]'") from error
    source_film, target = Path(source_film), Path(target)
    source = _source(source_film)
    if (source.Rows, source.Columns) != prediction.film.shape:
        raise FilmError(
            f"{source_film}: {source.Rows} x {source.Columns} pixels, but the prediction is of a "
            f"film of {' x '.join(map(str, prediction.film.shape))}"
        )
    with quiet_pydicom():  # highdicom warns of names of one part
        objects = {
            f"overlay-{path_id(name)}.dcm": _overlay(prediction, source, name)
            for name in prediction.scores
        }
        objects["region.dcm"] = _region(prediction, source, source_film)
        objects["report.dcm"] = _report(prediction, source)
    for name, made in objects.items():
        path = target / name
        if path.exists() and not _is_the_same(path, made):
            raise FileExistsError(f"{path}: exists with another result; nothing was written")
    target.mkdir(parents=True, exist_ok=True)
    for name, made in objects.items():
        if not (target / name).exists():
            buffer = io.BytesIO()
            made.save_as(buffer, enforce_file_format=True)
            write_atomic(target / name, buffer.getvalue())
    return [target / name for name in objects]


def _is_the_same(path: Path, made: pydicom.Dataset) -> bool:
    try:
        there = pydicom.dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True)
    except InvalidDicomError:
        return False
    return there.get("SOPInstanceUID") == made.SOPInstanceUID


def _source(path: Path) -> pydicom.Dataset:
    """What the new objects take over from the film, checked."""
    wanted = [*_NEEDED, *_KEPT, *_OPTIONAL, *_SHOWN]
    with path.open("rb") as file, quiet_pydicom():
        with library_errors(f"{path}: damaged: its header cannot be read"):
            try:
                film = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=wanted)
            except InvalidDicomError:
                raise FilmError(
                    f"{path}: not a DICOM file, so there is no study to add to"
                ) from None
            list(film.iterall())  # decodes all values
        # UTF-8 has every film's characters, and highdicom knows few other sets.
        source = pydicom.Dataset()
        source.SpecificCharacterSet = "ISO_IR 192"
        for name in wanted:
            problem = _problem(film, name)
            if problem and name not in _OPTIONAL:
                raise FilmError(f"{path}: {name} {problem}; no DICOM results")
            if name in film and not problem:
                source[name] = film[name]
                if source[name].VR == "PN":  # which keeps its bytes
                    source[name].value = str(film[name].value)
        for name in _KEPT:  # type 2: may be empty, must be there
            if name not in source:
                setattr(source, name, "")
    if source.get("SamplesPerPixel", 1) != 1:
        raise FilmError(f"{path}: in color; a presentation state needs a gray film")
    if (source.get("NumberOfFrames") or 1) != 1:
        raise FilmError(f"{path}: {source.NumberOfFrames} frames; expected one")
    return source


def _problem(film: pydicom.Dataset, name: str) -> str | None:
    """What is wrong with an attribute, without its value, which may identify a person."""
    if name not in film or film[name].is_empty:
        return "is missing or empty" if name in _NEEDED + _SHOWN[:3] else None
    element = film[name]
    if element.VM > 1 and name in (*_NEEDED, *_KEPT, *_OPTIONAL):
        return "has several values, expected one"
    values = [str(value) for value in (element.value if element.VM > 1 else [element.value])]
    if not all(_is_legal(element.VR, value) for value in values):
        return f"is not a legal {element.VR}"
    if element.VR in CUSTOMIZABLE_CHARSET_VR and not _is_decoded(film, values[0]):
        return "has characters that its SpecificCharacterSet does not have"
    if name == "PatientSex" and element.value not in _SEXES:
        return "is not one of M, F and O"
    return None


def _is_legal(vr: str, value: str) -> bool:
    """Whether a value is legal; pydicom checks all but a few rules (PS3.5 section 6.2)."""
    if vr in ("SQ", "US"):
        return True
    try:
        validate_value(vr, value, RAISE)
    except ValueError:
        return False
    if vr == "UI":
        return "." in value
    return vr != "PN" or all(group.count("^") <= 4 for group in value.split("="))


def _is_decoded(film: pydicom.Dataset, text: str) -> bool:
    """Whether the character set of the film has these characters, which pydicom decoded."""
    if convert_encodings(film.get("SpecificCharacterSet")) == [default_encoding]:
        return text.isascii()  # pydicom reads Latin-1, where none or an unknown one is named
    return "\ufffd" not in text


def _uid(prediction: Result, source: pydicom.Dataset, what: str) -> str:
    scores = str(sorted(prediction.scores.items()))
    return generate_uid(entropy_srcs=[source.SOPInstanceUID, prediction.predictor, scores, what])


def _common(prediction: Result, source: pydicom.Dataset, number: int, kind: str) -> dict[str, Any]:
    """What all new objects have; ``number`` counts the new series."""
    return {
        "series_instance_uid": _uid(prediction, source, f"series {kind}"),
        "series_number": _SERIES_NUMBER + number,
        "series_description": f"{_SERIES} {kind}",
        "manufacturer": _MANUFACTURER,
        "manufacturer_model_name": _model_name(prediction),
        "software_versions": __version__,
        "device_serial_number": prediction.predictor,
        "transfer_syntax_uid": ExplicitVRLittleEndian,
    }


def _model_name(prediction: Result) -> str:
    run = prediction.facts.run
    return "DenseNet-121" if run is None else f"DenseNet-121 {run['name']}"[:64]


def _summary(prediction: Result, name: str) -> str:
    text = f"{name}: score {prediction.scores[name]:.3f}"
    if (threshold := prediction.thresholds[name]) is not None:
        text += f", threshold {threshold:.3f}"
    return text


def _overlay(prediction: Result, source: pydicom.Dataset, name: str) -> pydicom.Dataset:
    from highdicom.sc import SCImage

    scale = prediction.facts.map_scales[name]
    pixels = blend(prediction.film, prediction.maps[name], scale=scale)
    lines = [_summary(prediction, name), NOTE]
    size = min(pixels.shape[:2]) / 1024
    for row, line in enumerate(reversed(lines)):  # in the picture, which is also seen alone
        place = round(8 * size), round(pixels.shape[0] - (12 + 34 * row) * size)
        font = (cv2.FONT_HERSHEY_SIMPLEX, size)
        for color, width in (((0, 0, 0), 6), ((255, 255, 255), 2)):
            stroke = max(1, round(width * size))
            cv2.putText(pixels, line, place, *font, color, stroke, cv2.LINE_AA)
    number = list(prediction.scores).index(name) + 1
    made = SCImage.from_ref_dataset(
        source, pixels, "RGB", 8, "PATIENT",
        sop_instance_uid=_uid(prediction, source, f"overlay {name}"), instance_number=number,
        patient_orientation=("L", "F"), **_common(prediction, source, 0, "overlay"),
    )  # fmt: skip
    made.add_new("PatientOrientation", "CS", "")  # not known: the film may be turned
    made.DerivationDescription = f"Class activation map of {name} over the film"
    shown = pydicom.Dataset()
    shown.ReferencedSOPClassUID = source.SOPClassUID
    shown.ReferencedSOPInstanceUID = source.SOPInstanceUID
    made.SourceImageSequence = [shown]
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.Laterality = ""  # type 2C, of a body part in pairs
    _keep_optional(made, source)
    return made


def _keep_optional(made: pydicom.Dataset, source: pydicom.Dataset) -> None:
    for name in _OPTIONAL:
        if name in source:
            made[name] = source[name]


def _region(prediction: Result, source: pydicom.Dataset, path: Path) -> pydicom.Dataset:
    from highdicom import PresentationLUTTransformation, pr

    annotations: list[Any] = []
    layers = [pr.GraphicLayer(_LAYER, 0, description="Outlines of all findings")]
    bitmap = np.zeros(prediction.film.shape, np.uint8)
    rows, columns = prediction.film.shape
    for number, name in enumerate(prediction.scores):
        layer = pr.GraphicLayer(f"FINDING {number + 1}", number + 1, description=name[:64])
        text = pr.TextObject(
            f"{_summary(prediction, name)}\r\n{NOTE}", "PIXEL", text_justification="LEFT",
            bounding_box=(0.0, 0.06 * rows * number, 0.7 * columns, 0.06 * rows * (number + 1)),
        )  # fmt: skip
        outlines = _outlines(prediction, name)
        lines = [pr.GraphicObject("POLYLINE", points, "PIXEL") for points in outlines]
        with library_errors(f"{path}: SOPClassUID is not that of an image; no DICOM results"):
            annotation = pr.GraphicAnnotation(
                [source], layer, graphic_objects=lines or None, text_objects=[text]
            )
        layers.append(layer)
        annotations.append(annotation)
        pixels = [np.floor(outline).astype(np.int32) for outline in outlines]
        cv2.polylines(bitmap, pixels, True, 1, thickness=max(1, round(min(rows, columns) / 300)))
    inverse = source.PhotometricInterpretation == "MONOCHROME1"
    shape = "INVERSE" if inverse else "IDENTITY"
    try:
        made = pr.GrayscaleSoftcopyPresentationState(
            [source], sop_instance_uid=_uid(prediction, source, "region"), instance_number=1,
            content_label="CHEXNET", content_description="Map above the map threshold",
            graphic_annotations=annotations, graphic_layers=layers,
            presentation_lut_transformation=PresentationLUTTransformation(shape),
            **_common(prediction, source, 1, "region"),
        )  # fmt: skip
    except (AttributeError, TypeError, ValueError) as error:
        raise FilmError(f"{path}: its windows or lookup tables are not legal") from error
    made.Laterality = ""  # type 2C, of a body part in pairs
    _add_overlay(made, bitmap)
    _keep_optional(made, source)
    return made


def _add_overlay(made: pydicom.Dataset, bitmap: np.ndarray) -> None:
    """The outlines as a bitmap: dcmtk, and viewers after it, do not draw polylines."""
    bits = np.packbits(bitmap.ravel(), bitorder="little").tobytes()
    for element, vr, value in (
        (0x0010, "US", bitmap.shape[0]),  # PS3.3 C.9.2: Overlay Rows and so on
        (0x0011, "US", bitmap.shape[1]),
        (0x0040, "CS", "G"),
        (0x0050, "SS", [1, 1]),
        (0x0100, "US", 1),
        (0x0102, "US", 0),
        (0x1001, "CS", _LAYER),  # C.11.7: Overlay Activation Layer
        (0x3000, "OW", bits + b"\0" * (len(bits) % 2)),
    ):
        made.add_new((0x6000, element), vr, value)


def _outlines(prediction: Result, name: str) -> list[np.ndarray]:
    """Closed outlines ``(N, 2)`` of where the map is above its threshold: x, y in pixels.

    The corner of the first pixel is (0, 0), so its center is (0.5, 0.5).
    """
    threshold = prediction.facts.map_thresholds[name]
    cam = prediction.maps[name]
    if threshold is None:  # without a run: half of the maximum, as the dashed line of the figures
        threshold = float(cam.max()) / 2
    above = upsample_map(cam, prediction.film.shape) >= threshold
    if cam.max() <= 0:
        return []
    mask = np.pad(above.astype(np.uint8), 1)
    found, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    outlines = []
    for points in found:
        simple = cv2.approxPolyDP(points, 1.0, True)[:, 0]
        if len(simple) > 2:
            outlines.append(np.vstack([simple, simple[:1]]) - 1 + 0.5)
    return outlines


def _report(prediction: Result, source: pydicom.Dataset) -> pydicom.Dataset:
    from highdicom import sr

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=["device", prediction.predictor]),
        name=f"chexnet {__version__}",
        manufacturer_name=_MANUFACTURER,
        model_name=_model_name(prediction),
        serial_number=prediction.predictor,
    )
    observer = sr.ObserverContext(codes.DCM.Device, device)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_PROCEDURE,
        imaging_measurements=[_group(prediction, source, name) for name in prediction.scores],
    )
    made = sr.ComprehensiveSR(
        [source], content, sop_instance_uid=_uid(prediction, source, "report"),
        instance_number=1, is_complete=True, **_common(prediction, source, 2, "report"),
    )  # fmt: skip
    _keep_optional(made, source)
    return made


def _group(
    prediction: Result, source: pydicom.Dataset, name: str
) -> "highdicom.sr.MeasurementsAndQualitativeEvaluations":
    """TID 1501 for one class."""
    from highdicom import sr

    code = FINDINGS.get(name, Code(_short(name), _SCHEME, name[:64]))
    numbers: Mapping[Code, tuple[float | None, Code]] = {
        _SCORE: (prediction.scores[name], codes.UCUM.NoUnits),
        _THRESHOLD: (prediction.thresholds[name], codes.UCUM.NoUnits),
        codes.DCM.CertaintyOfFinding: (_percent(prediction.calibrated[name]), codes.UCUM.Percent),
    }
    positive = prediction.positive[name]
    decision = codes.SCT.Yes if positive else codes.SCT.No
    return sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(uid=_uid(prediction, source, f"finding {name}"), identifier=name),
        finding_type=code,
        algorithm_id=sr.AlgorithmIdentification(
            _model_name(prediction), f"{__version__} {prediction.predictor}", parameters=[NOTE]
        ),
        measurements=[
            sr.Measurement(key, round(value, 6), unit)
            for key, (value, unit) in numbers.items()
            if value is not None
        ],
        qualitative_evaluations=None
        if positive is None
        else [sr.QualitativeEvaluation(_DECISION, decision)],
        source_images=[
            sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)
        ],
    )


def _short(name: str) -> str:
    """At most 16 characters, as a code value has; different for different names."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name if len(name) <= 16 else f"{name[:7]}-{digest}"


def _percent(probability: float | None) -> float | None:
    return None if probability is None else 100 * probability
