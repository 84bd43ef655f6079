"""One page with all charts of an evaluated run, to print or to send."""

import textwrap

import numpy as np
from matplotlib.figure import Figure

from chexnet.evaluation import interval_text, outperforms_baselines
from chexnet.figures import curves
from chexnet.figures.overlay import plain_text
from chexnet.runs import Run

_WIDTH = 10.5  # inches; printed on A4 the smallest letters are 5.5 points high
_TITLE, _LINE = 0.45, 0.17  # the run's name, a line of text below it
_SQUARES, _CURVES, _MAPS = 4.5, 3.0, 2.2
_ROW, _AXIS = 0.26, 0.8  # of a forest plot: a row, and what is above and below the rows
_LINE_LENGTH = 145  # characters


def report_page(run: Run, *, class_name: str | None = None) -> Figure:
    """Draws all charts of a run on one page, 10.5 inches wide, with about the proportions of A4.

    Args:
        run: evaluated.
        class_name: the class; ``None`` is the run's first. The page of a class without boxes has
            no charts of localization.

    Raises:
        ValueError: the run has no such class, or is not evaluated with its present scores.

    Example:
        >>> from chexnet.figures import report_page
        >>> from chexnet.runs import Run
        >>> [ax.get_title() for ax in report_page(Run("output/demo")).axes[:2]]
        ['ROC curve', 'Precision-recall curve']
    """
    name = run.chosen_class(class_name)
    found = run.current_metrics("classes")[name]
    facts = textwrap.wrap(_facts(run, name, found), _LINE_LENGTH)
    better, sentence = outperforms_baselines(found)
    comparison = textwrap.wrap(sentence, _LINE_LENGTH)
    head = _TITLE + _LINE * (len(facts) + len(comparison))
    forest_rows = 1 + len(found["subgroups"]) + len(found["baselines"])
    localization = run.metrics.get("localization", {}).get(name)
    heights = [head, _SQUARES, _CURVES, _AXIS + _ROW * forest_rows]
    heights += [_MAPS] if localization is None or "reason" not in localization else []
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    parts = np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights))
    title, squares, wide, forest, *maps = parts.tolist()
    heading = f"Run {run.folder.resolve().name}: {name}"
    title.text(0.01, 1 - 0.1 / head, heading, fontsize=14, va="top")
    title.text(0.01, 1 - _TITLE / head, "\n".join(facts), fontsize=9, va="top")
    color = "black" if better else curves.RED
    title.text(0.01, 0, "\n".join(comparison), fontsize=9, va="bottom", color=color)
    charts = {
        "ROC curve": curves.roc_figure,
        "Precision-recall curve": curves.precision_recall_figure,
        "Reliability diagram": curves.reliability_figure,
        "Decision curve": curves.decision_figure,
        "Score distribution": curves.score_histogram,
        "Subgroup AUROC and non-imaging baselines": curves.subgroup_figure,
    }
    places = [*squares.subplots(1, 3), *wide.subplots(1, 2), forest.subplots()]
    for (words, draw), ax in zip(charts.items(), places, strict=True):
        draw(run, class_name=name, ax=ax)
        ax.set_title(words, fontsize=10, color="black")
        if ax.get_aspect() == 1 and ax.get_legend():  # these squares are too small for it
            below = {"loc": "upper left", "bbox_to_anchor": (-0.1, -0.18)}
            ax.legend(fontsize=7.5, frameon=False, labelspacing=0.3, **below)
    for part in maps:
        if localization is None:
            part.text(0.02, 0.8, "– The maps are not evaluated.", fontsize=9)
        else:
            curves.localization_figure(run, class_name=name, axes=part.subplots(1, 2))
    return plain_text(figure)


def _facts(run: Run, name: str, found: dict) -> str:
    test = found["test"]
    text = (
        f"{test['n']} test images of {test['n_patients']} patients, {test['n_positive']} with "
        f"{name.lower()}. Thresholds and temperature are set on the validation set; the test set "
        "is used for evaluation only."
    )
    for average, number in run.metrics.get("overall", {}).items():
        text += f" All classes, {average} average: AUROC {interval_text(number)}."
    return text
