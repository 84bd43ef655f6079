"""The data sets that the notebooks know, by name."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from chexnet.files import refuse
from chexnet.labels.checks import read_csv
from chexnet.labels.chestxray14 import read_chestxray14
from chexnet.labels.chexpert import read_chexpert
from chexnet.labels.rsna import read_rsna
from chexnet.labels.table import read_table

READERS: dict[str, Callable[..., tuple[pd.DataFrame, pd.DataFrame]]] = {
    "rsna": read_rsna,
    "chestxray14": read_chestxray14,
    "chexpert": read_chexpert,
    "table": read_table,
}


def film_folder(dataset: str, source: str | Path, **options: Any) -> tuple[Path, str]:
    """Where the images of a data set are, and the rule for their ids, as notebook 01 needs them.

    Args:
        dataset: as for `read_study`.
        source: as for `read_study`.
        options: as for `read_study`.

    Returns:
        the arguments ``source`` and ``ids`` of `chexnet.dicom.convert_folder`.

    Raises:
        ValueError: the data set or an option is unknown.

    Example:
        >>> from chexnet.labels import film_folder
        >>> folder, ids = film_folder("rsna", "data/phantom/study")
        >>> folder.as_posix(), ids
        ('data/phantom/study/stage_2_train_images', 'name')
    """
    _check_dataset(dataset, options)
    folder = {"rsna": "stage_2_train_images", "table": options.get("folder") or ""}
    ids = {"chexpert": "path", "table": options.get("ids", "name")}
    return Path(source) / folder.get(dataset, ""), ids.get(dataset, "name")


def read_study(
    dataset: str, source: str | Path, **options: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads the labels of a data set by its name, as notebook 02 does.

    Args:
        dataset: "rsna", "chestxray14", "chexpert" or "table".
        source: its folder.
        options: of `read_rsna`, `read_chestxray14`, `read_chexpert` or `read_table`. For "table",
            ``csv`` (by default ``labels.csv``), ``boxes`` and ``folder`` (by default ``source``
            itself) are paths in ``source``; columns named ``patient, view, sex, age, split`` have
            these roles, ``image`` is by default the first of the others, and ``labels`` the rest.

    Returns:
        images and boxes.

    Raises:
        ValueError: the data set or an option is unknown; or what the reader raises.

    Example:
        >>> from chexnet.labels import read_study
        >>> images, boxes = read_study("rsna", "data/phantom/study")
        >>> len(images)
        40
    """
    _check_dataset(dataset, options)
    source = Path(source)
    if dataset == "table":
        options["folder"], _ = film_folder(dataset, source, **options)
        if options.get("boxes"):
            options["boxes"] = source / options["boxes"]
        csv = source / options.pop("csv", "labels.csv")
        return read_table(csv, **(_roles(csv, options) | options))
    return READERS[dataset](source, **options)


def _roles(csv: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `read_table` for the columns of which no option says what they are."""
    columns = [name for name in read_csv(csv, []).columns if name not in options.values()]
    facts = {name: name for name in ("patient", "view", "sex", "age", "split") if name in columns}
    rest = [name for name in columns if name not in facts]
    image = options.get("image", rest[0] if rest else "image")
    return {"image": image, "labels": [name for name in rest if name != image], **facts}


def _check_dataset(dataset: str, options: dict[str, Any]) -> None:
    if dataset not in READERS:
        raise ValueError(f"dataset={dataset!r}: expected one of {', '.join(READERS)}")
    known = list(inspect.signature(READERS[dataset]).parameters)
    known = known if dataset == "table" else known[1:]  # of the others, the first is the source
    refuse(dataset, set(options) - set(known), "unknown options", ", ".join(known) or "none")
