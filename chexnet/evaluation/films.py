"""The scored films of a run."""

import pandas as pd

from chexnet.runs import Run


def scored_films(run: Run, class_name: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Validation and test films of a run with labels and scores of one class.

    Args:
        run: with predictions.
        class_name: which class; ``None`` is the run's first.

    Returns:
        rows of `Run.predictions` of the validation films, and of the test films. A film without
        ``patient_id`` counts as a patient of its own: it gets its ``image_id``.

    Raises:
        ValueError: the class is unknown or has no test film.

    Example:
        >>> from chexnet.evaluation import scored_films
        >>> from chexnet.runs import Run
        >>> val, test = scored_films(Run("output/demo"))
        >>> test["split"].unique().tolist()
        ['test']
    """
    name = run.chosen_class(class_name)
    films = run.predictions.query("class_name == @name")
    image_ids = films["image_id"]
    films = films.assign(patient_id=films.get("patient_id", image_ids).fillna(image_ids))
    val, test = (films[films["split"] == split].reset_index(drop=True) for split in ("val", "test"))
    if test.empty:
        raise ValueError(f"{run.folder / 'predictions.csv'}: no test film of {name!r}")
    return val, test
