"""DICOM films to 8-bit JPGs, one or 100,000."""

from chexnet.dicom.convert import convert_folder, film_to_jpg
from chexnet.dicom.film import Film, read_film
from chexnet.dicom.header import (
    OLDEST, YEARS_PER_UNIT, FilmError, library_errors, quiet_pydicom,
)  # fmt: skip
from chexnet.dicom.table import image_ids, read_films

__all__ = [
    "OLDEST", "YEARS_PER_UNIT", "Film", "FilmError", "convert_folder", "film_to_jpg", "image_ids",
    "library_errors", "quiet_pydicom", "read_film", "read_films",
]  # fmt: skip
