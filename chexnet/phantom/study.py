"""A synthetic chest study, by default in exactly the layout of Kaggle's archive of RSNA.

It replaces the real films in `make demo` and in tests. It is easy on purpose: no score on it says
anything about patients.
"""

import json
import tempfile
import uuid
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit, SecondaryCaptureImageStorage, generate_uid
from tqdm.auto import tqdm

from chexnet.files import check_number
from chexnet.phantom.anatomy import draw_body, draw_chest
from chexnet.phantom.drawing import CANVAS
from chexnet.phantom.findings import add_opacities, expose
from chexnet.phantom.layouts import (
    NIH_BOXES,
    NIH_LISTS,
    NIH_TABLE,
    TABLE_BOXES,
    TABLE_LABELS,
    Drawn,
    write_chestxray14,
    write_table,
)

# Increased when the same seed draws other films: a folder of an older version is not reused.
DRAWING = 3

# The names in Kaggle's archive, and our own file with the settings of the study.
IMAGES = "stage_2_train_images"
LABELS = "stage_2_train_labels.csv"
CLASSES = "stage_2_detailed_class_info.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
SETTINGS = "phantom.json"

NORMAL, ABNORMAL, OPACITY = "Normal", "No Lung Opacity / Not Normal", "Lung Opacity"

# Share of sick patients, and of opacities on the films of sick and other patients: about 30 % of
# all films.
SICK, OPACITY_SHARE = 0.28, {True: 0.70, False: 0.16}

# Share of AP films. On RSNA's films the view alone has an AUROC of 0.72; here about 0.6.
AP_SHARE = {NORMAL: 0.34, ABNORMAL: 0.46, OPACITY: 0.60}

# Findings other than opacity. Half of the films with opacity have one too.
FINDINGS = ("large heart", "raised diaphragm")

# Films per patient with their probability; the mean is 1.8 (2.3 in RSNA's study).
FILMS_OF_ONE = {1: 0.62, 2: 0.18, 3: 0.10, 4: 0.05, 6: 0.05}


def write_phantom_study(
    folder: str | Path,
    *,
    films: int = 600,
    seed: int = 0,
    film_size: int = 1024,
    layout: str = "rsna",
) -> Path:
    """Writes a synthetic study in the layout of Kaggle's archive, or of another data set.

    In the layout "rsna" the study has ``stage_2_train_images/<patientId>.dcm`` (JPEG baseline, 8
    bits, MONOCHROME2), the two CSV files with one row per box, and the JSON mapping to NIH file
    names, whose first eight digits are the patient. ``phantom.json`` keeps
    the settings. Equal settings give equal bytes. Film k depends on the seed and k only, so a
    longer study begins with the films of a shorter one.

    The other layouts have ``images/*.png`` of the same films and three classes: ``Consolidation``
    (with boxes on half of its films), ``Cardiomegaly`` and ``Atelectasis`` (without boxes).
    "chestxray14" has the tables and lists that `chexnet.labels.read_chestxray14` reads. "table" has
    ``labels.csv`` and ``boxes.csv`` for `chexnet.labels.read_table`, and 15 % of its labels are
    missing, which ChestX-ray14's layout cannot say.

    Args:
        folder: target; created if missing. If exactly this study is there, nothing is done.
        films: number of films, 1 or above.
        seed: of everything drawn, 0 or above.
        film_size: side of the square films, 64 to 4096 pixels; boxes are in these pixels.
        layout: "rsna", "chestxray14" or "table".

    Returns:
        The folder.

    Raises:
        ValueError: ``films``, ``seed`` or ``film_size`` is out of range, or the layout is unknown.
        FileExistsError: the folder contains anything else than exactly this study.

    Example:
        >>> from chexnet.phantom import write_phantom_study
        >>> folder = write_phantom_study("data/tiny", films=2, film_size=64)
        >>> len(list(folder.glob("stage_2_train_images/*.dcm")))
        2
    """
    folder = Path(folder)
    check_number("films", films, integer=True, least=1)
    check_number("seed", seed, integer=True, least=0)
    check_number("film_size", film_size, integer=True, least=64, below=4097)
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: expected one of {', '.join(LAYOUTS)}")
    study: dict[str, object] = {
        "drawing": DRAWING, "films": films, "seed": seed, "film_size": film_size
    }  # fmt: skip
    if layout != "rsna":
        study["layout"] = layout
    settings = f"{json.dumps(study, indent=2)}\n".encode()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _is_complete(folder, settings, films, layout):
            return folder
        raise FileExistsError(
            f"{folder} is not empty and is not the complete phantom study {study}: "
            "name another folder, or delete this one first"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        target = Path(temporary) / folder.name
        target.mkdir()
        bar = tqdm(islice(_films(seed), films), total=films, desc="phantom", unit="film")
        LAYOUTS[layout].write(target, ((film, *draw_film(film, film_size)) for film in bar))
        (target / SETTINGS).write_bytes(settings)
        if folder.exists():
            folder.rmdir()
        target.rename(folder)
    return folder


def _is_complete(folder: Path, settings: bytes, films: int, layout: str) -> bool:
    expected = LAYOUTS[layout]
    if not all((folder / name).is_file() for name in (SETTINGS, *expected.files)):
        return False
    same = (folder / SETTINGS).read_bytes() == settings
    return same and len(list(folder.glob(expected.images))) == films


def _write_rsna(study: Path, drawn: Drawn) -> None:
    (study / IMAGES).mkdir()
    boxes, classes, mapping = [], [], []
    for film, pixels, its_boxes in drawn:
        image_id = film["image_id"]
        dataset = _dataset(film, pixels)
        dataset.save_as(study / IMAGES / f"{image_id}.dcm", enforce_file_format=True)
        rows = its_boxes.tolist() or [[None] * 4]
        boxes += [[image_id, *row, int(len(its_boxes) > 0)] for row in rows]
        classes += [[image_id, film["class"]]] * len(rows)
        facts = {"img_id": film["img_id"], "subset_img_id": image_id}
        mapping.append(facts | {"SOPInstanceUID": str(dataset.SOPInstanceUID)})
    columns = ["patientId", "x", "y", "width", "height", "Target"]
    for name, rows, head in (LABELS, boxes, columns), (CLASSES, classes, ["patientId", "class"]):
        table = pd.DataFrame(rows, columns=head).sort_values("patientId", kind="stable")
        table.to_csv(study / name, index=False, lineterminator="\n")
    mapping.sort(key=lambda row: row["subset_img_id"])
    (study / MAPPING).write_text(json.dumps(mapping, indent=0))


def _films(seed: int) -> Iterator[dict]:
    """Yields the facts of each film, patient by patient, without end."""
    for patient in count(1):
        own = np.random.default_rng([seed, patient])
        sex = "M" if own.random() < 0.57 else "F"
        age = int(np.clip(own.normal(48, 17), 3, 88))
        sick = bool(own.random() < SICK)
        visits = own.choice(list(FILMS_OF_ONE), p=list(FILMS_OF_ONE.values()))
        body = draw_body(own)
        for visit in range(visits):
            # From 1, since NumPy takes [seed, patient, 0] and [seed, patient] as the same seed.
            rng = np.random.default_rng([seed, patient, 1 + visit])
            label = ABNORMAL if rng.random() < 0.53 else NORMAL
            label = OPACITY if rng.random() < OPACITY_SHARE[sick] else label
            some = label == ABNORMAL or (label == OPACITY and rng.random() < 0.5)
            yield {
                "image_id": str(uuid.UUID(bytes=rng.bytes(16), version=4)),
                "img_id": f"{patient:08d}_{visit:03d}.png",
                "class": label,
                "view": "AP" if rng.random() < AP_SHARE[label] else "PA",
                "sex": sex,
                "age": age + visit // 2,
                "findings": tuple(rng.permutation(FINDINGS)[: rng.integers(1, 3) * some]),
                "body": body,
                "rng": rng,
            }


def draw_film(film: dict, film_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a film of `_films`: uint8 pixels, and boxes (n, 4): x, y, width, height in pixels."""
    body, rng, findings = dict(film["body"]), film["rng"], film["findings"]
    if "large heart" in findings:
        body["heart"] *= rng.uniform(1.22, 1.4)
    raised = int(rng.choice([-1, 1])) if "raised diaphragm" in findings else 0
    chest = draw_chest(body, rng, view=film["view"], raised=raised)
    boxes = np.zeros((0, 4))
    if film["class"] == OPACITY:
        chest, boxes = add_opacities(chest, rng)
    shape = (film_size, film_size)
    gray = cv2.resize(expose(chest, rng), shape, interpolation=cv2.INTER_CUBIC)
    grain = rng.standard_normal(shape, dtype=np.float32)
    gray = gray + rng.uniform(1.5, 5.0) * cv2.GaussianBlur(grain, (0, 0), 0.6) * (gray > 1)
    pixels = np.clip(np.round(gray), 0, 255).astype(np.uint8)
    scale = film_size / CANVAS
    corners = np.round(scale * boxes[:, :2]), np.round(scale * (boxes[:, :2] + boxes[:, 2:]))
    return pixels, np.hstack([corners[0], corners[1] - corners[0]])


def _dataset(film: dict, pixels: np.ndarray) -> Dataset:
    """The film as DICOM, with the attributes of RSNA's films, odd values included."""
    uids = [generate_uid(entropy_srcs=[film["image_id"], level]) for level in ("sop", "se", "st")]
    spacing = f"{0.143 * 1024 / pixels.shape[0]:.4g}"  # mm; RSNA's most frequent, at 1024 pixels
    fields = {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": SecondaryCaptureImageStorage,
        "SOPInstanceUID": uids[0],
        "StudyDate": "19010101",
        "StudyTime": "000000.00",
        "Modality": "CR",
        "ConversionType": "WSD",
        "SeriesDescription": f"view: {film['view']}",
        "PatientName": film["image_id"],
        "PatientID": film["image_id"],
        "PatientSex": film["sex"],
        "BodyPartExamined": "CHEST",
        "ViewPosition": film["view"],
        "StudyInstanceUID": uids[2],
        "SeriesInstanceUID": uids[1],
        "SeriesNumber": "1",
        "InstanceNumber": "1",
        "PixelSpacing": [spacing, spacing],
        "LossyImageCompression": "01",
        "LossyImageCompressionMethod": "ISO_10918_1",
    }
    blank = "AccessionNumber ReferringPhysicianName PatientBirthDate StudyID PatientOrientation"
    dataset = Dataset()
    dataset.set_pixel_data(pixels, "MONOCHROME2", bits_stored=8, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    # pydicom's root without its version, so that the bytes do not depend on the version.
    dataset.file_meta.ImplementationClassUID = UID("1.2.826.0.1.3680043.8.498.1")
    dataset.file_meta.ImplementationVersionName = "CHEXNET_PHANTOM"
    for keyword, value in (fields | dict.fromkeys(blank.split(), "")).items():
        setattr(dataset, keyword, value)
    # RSNA writes the age as "51", not as the Standard's "051Y"; readers must accept it.
    dataset.add(DataElement("PatientAge", "AS", str(film["age"]), validation_mode=config.IGNORE))
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])
    dataset.PixelData = encapsulate([jpeg.tobytes()], has_bot=False)
    return dataset


class Layout(NamedTuple):
    """How a study is written, and what it then consists of."""

    write: Callable[[Path, Drawn], None]
    images: str  # pattern of its image files
    files: tuple[str, ...]  # its tables


LAYOUTS = {
    "rsna": Layout(_write_rsna, f"{IMAGES}/*.dcm", (LABELS, CLASSES, MAPPING)),
    "chestxray14": Layout(
        write_chestxray14, "images/*.png", (NIH_TABLE, NIH_BOXES, *NIH_LISTS.values())
    ),
    "table": Layout(write_table, "images/*.png", (TABLE_LABELS, TABLE_BOXES)),
}
