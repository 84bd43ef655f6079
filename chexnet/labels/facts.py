"""What the converter read from the films joins the labels: view, sex, age and size."""

import warnings

import pandas as pd

from chexnet.files import refuse, summarize

# Read by the converter: DICOM tags 0018,5101; 0010,0040; 0010,1010; 0028,0010; 0028,0011.
FACTS = ["view", "sex", "age", "rows", "columns"]


def add_film_facts(images: pd.DataFrame, films: pd.DataFrame) -> pd.DataFrame:
    """Adds view, sex, age and size of each film, and drops films that were not converted.

    The label table comes first: a film's header fills in the view, sex and age that the table does
    not have. A PNG or JPG has none of them in its header. The size is always the film's own.

    Args:
        images: one row per film, with ``image_id``.
        films: from `chexnet.dicom.convert_folder`. Films not in ``images`` are ignored.

    Returns:
        ``images`` with ``view, sex, age, rows, columns``, without the films that have no JPG. A
        warning names them and the reason.

    Raises:
        ValueError: columns are missing, a film was converted twice, or no film is left.

    Example:
        >>> from chexnet.dicom import read_films
        >>> from chexnet.labels import add_film_facts, read_rsna
        >>> images, _ = read_rsna("data/phantom/study")
        >>> list(add_film_facts(images, read_films("data/phantom/jpg")))[4:]
        ['view', 'sex', 'age', 'rows', 'columns']
    """
    missing = {"image_id", "status", "reason", *FACTS} - set(films.columns)
    if missing:
        raise ValueError(f"films: no column {summarize(sorted(missing))}")
    made = films[films["status"] != "failed"]
    twice = made.loc[made["image_id"].duplicated(), "image_id"]
    refuse("films", twice, "films converted twice", "one row each")
    lost = images.loc[~images["image_id"].isin(made["image_id"]), "image_id"]
    if len(lost) == len(images):
        raise ValueError(
            f"films: none of the {len(images)} images was converted: {summarize(lost)}"
        )
    if len(lost):
        reasons = films.drop_duplicates("image_id").set_index("image_id")["reason"]
        listed = [f"{film} ({reasons.get(film, 'no such file')})" for film in lost]
        warnings.warn(
            f"{len(lost)} of {len(images)} images were not converted and are skipped: "
            f"{summarize(listed)}",
            stacklevel=2,
        )
    kept = images.drop(index=lost.index)
    headers = made.set_index("image_id").reindex(kept["image_id"])[FACTS].set_index(kept.index)
    for fact in ("view", "sex", "age"):
        if fact in kept:
            headers[fact] = kept[fact].where(kept[fact].notna(), headers[fact])
    return kept.assign(**headers)
