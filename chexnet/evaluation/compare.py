"""Two runs on the same test films."""

from pathlib import Path
from typing import Any

import pandas as pd

from chexnet.auroc import N_BOOTSTRAP, auroc, compare_auroc, mean_interval
from chexnet.evaluation.calibration import calibrated_scores
from chexnet.evaluation.maps import localize_films
from chexnet.evaluation.report import MISSING, interval_text
from chexnet.files import refuse
from chexnet.runs import Run

_NO_FILM = pd.Series(dtype=float, index=pd.Index([], dtype=str))  # a measure by image id


def common_films(a: Run, b: Run, *, class_name: str | None = None) -> pd.DataFrame:
    """The test films of one class that two runs have scored.

    Args:
        a: a run.
        b: another.
        class_name: a class of both; ``None`` is the first of ``a``.

    Returns:
        the rows of ``a.scored_films`` with ``y_score_b`` beside ``y_score``.

    Raises:
        ValueError: a run has no such class, they have no test film in common, or their labels
            of a film differ.

    Example:
        >>> from chexnet.evaluation import common_films
        >>> from chexnet.runs import Run
        >>> films = common_films(Run("output/demo"), Run("output/demo"))
        >>> (films["y_score"] == films["y_score_b"]).all()
        np.True_
    """
    name = a.chosen_class(class_name)
    first, second = (run.scored_films(name)[1] for run in (a, b))
    films = first.merge(
        second[["image_id", "y_true", "y_score"]], on="image_id", suffixes=("", "_b")
    )
    source = f"{a.folder} and {b.folder}"
    if films.empty:
        raise ValueError(f"{source}: no test film in common; expected runs on the same data")
    differ = films.loc[films["y_true"] != films["y_true_b"], "image_id"]
    refuse(source, differ, f"test films with different labels of {name}", "the same labels")
    return films


def compare_runs(
    a: str | Path | Run,
    b: str | Path | Run,
    *,
    class_name: str | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> pd.DataFrame:
    """Compares two runs on the test films that both have scored.

    Args:
        a: a run, or its folder.
        b: another.
        class_name: a class of both; ``None`` is the first of ``a``.
        n_bootstrap: bootstrap samples of patients.
        seed: of the bootstrap.

    Returns:
        one row a measure: ``measure``, ``n`` (films), ``a``, ``b`` and ``a - b`` as text with 95 %
        intervals, and ``p`` (paired) where there is a test, else ``–``. Each run is calibrated with
        its own temperature and uses its own CAM threshold. Where a measure is not available, its
        ``n`` is 0.

    Raises:
        ValueError: as in `common_films`.

    Example:
        >>> from chexnet.evaluation import compare_runs
        >>> table = compare_runs("output/demo", "output/demo", n_bootstrap=20)
        >>> table.loc[0, "a - b"]
        '0.00 (0.00-0.00)'
    """
    runs = [run if isinstance(run, Run) else Run(run) for run in (a, b)]
    films = common_films(*runs, class_name=class_name)
    name = runs[0].chosen_class(class_name)
    settings = {"n_bootstrap": n_bootstrap, "seed": seed}
    rows = []
    y, scores = films["y_true"], (films["y_score"], films["y_score_b"])
    if len(set(y)) > 1:
        for title, groups in (("AUROC (DeLong)", None), ("AUROC, by patient", films["patient_id"])):
            each = [auroc(y, score, groups=groups, **settings).estimate() for score in scores]
            gap = compare_auroc(y, *scores, groups=groups, **settings).estimate()
            rows.append(_row(title, len(films), [*each, gap]))
    located = [localize_films(run, class_name=name).rows.set_index("image_id") for run in runs]
    for title, tables in (
        ("Brier score, calibrated", [_squared_errors(run, name) for run in runs]),
        ("hit rate (pointing game)", [rows["hit"] for rows in located]),
        ("mean IoU", [rows.get("iou", _NO_FILM) for rows in located]),
    ):
        both = films[["image_id", "patient_id"]]
        for table, column in zip(tables, "ab", strict=True):
            both = both.merge(table.rename(column), left_on="image_id", right_index=True)
        numbers = [both["a"], both["b"], both["a"].astype(float) - both["b"].astype(float)]
        found = [mean_interval(values, both["patient_id"], **settings) for values in numbers]
        rows.append(_row(title, len(both), found))
    return pd.DataFrame(rows)


def _row(title: str, n: int, numbers: list[dict]) -> dict[str, Any]:
    """A row from the numbers of both runs and their difference."""
    texts = dict(zip(("a", "b", "a - b"), map(interval_text, numbers), strict=True))
    p = numbers[-1].get("p")
    return {"measure": title, "n": n, **texts, "p": MISSING if p is None else f"{p:.2g}"}


def _squared_errors(run: Run, name: str) -> pd.Series:
    """The squared error of each test film's calibrated probability, by film; empty without one."""
    try:
        films = calibrated_scores(run, class_name=name).query("split == 'test'")
    except ValueError:  # validation has films of one label only
        return _NO_FILM
    errors = (films["probability"] - films["y_true"]) ** 2
    return errors.set_axis(films["image_id"])
