"""AUROC over several classes: one row each, their macro and their micro average."""

import numpy as np
import pandas as pd

from chexnet.auroc import auroc, bootstrap_auroc
from chexnet.intervals import DRAWS, patient_draws, percentile_interval


def auroc_table(
    predictions: pd.DataFrame, *, groups: str | None = None, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """AUROC of every class, and with several classes their macro and micro average.

    Macro is the mean of the classes' AUROCs, micro the AUROC of all (film, class) pairs pooled.
    Both get a bootstrap interval, for their parts share films.

    Args:
        predictions: ``image_id, class_name, y_true, y_score``, one row a film and class.
        groups: the column whose films belong together, ``"patient_id"``; ``None`` gives classes
            DeLong's interval, and averages a bootstrap over ``image_id``.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        ``class_name, n, n_positive, prevalence, value, low, high, method, reason``. A class with
        one value only has NaN and the reason, and no part in macro; micro keeps its pairs.
    """
    codes, counts = patient_draws(
        predictions[groups or "image_id"].to_numpy(), draws=draws, seed=seed
    )
    y = predictions["y_true"].to_numpy()
    score = predictions["y_score"].to_numpy()
    names = predictions["class_name"].drop_duplicates().tolist()
    rows, samples = [], []
    for name in names:
        of_class = (predictions["class_name"] == name).to_numpy()
        row = _count(name, y[of_class])
        if not row["reason"]:
            result = auroc(y[of_class], score[of_class])
            row |= {"value": result.value, "low": result.low, "high": result.high}
            row["method"] = result.method
            if groups or len(names) > 1:
                samples.append(
                    bootstrap_auroc(y[of_class], score[of_class], codes[of_class], counts)
                )
            if groups:
                row["low"], row["high"] = percentile_interval(samples[-1])
                row["method"] = "bootstrap by patient"
        rows.append(row)
    if len(names) > 1:
        by = "bootstrap by patient" if groups else "bootstrap by film"
        macro, micro = _count("macro", y), _count("micro", y)
        if samples:
            macro["value"] = float(np.nanmean([row["value"] for row in rows]))
            # A draw that leaves one class without positives leaves that draw out.
            macro["low"], macro["high"] = percentile_interval(np.mean(samples, axis=0))
            macro["method"] = by
        else:
            macro["reason"] = "no class has both values"
        if not micro["reason"]:
            micro["value"] = auroc(y, score).value
            micro["low"], micro["high"] = percentile_interval(
                bootstrap_auroc(y, score, codes, counts)
            )
            micro["method"] = by
        rows += [macro, micro]
    return pd.DataFrame(rows)


def _count(name: str, y: np.ndarray) -> dict:
    reason = "" if len(np.unique(y)) > 1 else f"all {len(y)} labels are {y[0]:g}"
    empty = {"value": np.nan, "low": np.nan, "high": np.nan, "method": "", "reason": reason}
    n, n_positive = len(y), int(y.sum())
    counts = {"n": n, "n_positive": n_positive, "prevalence": n_positive / n}
    return {"class_name": name} | counts | empty
