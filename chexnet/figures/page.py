"""One page with all the figures of an evaluated run, to print or to send."""

import textwrap

from matplotlib.figure import Figure

from chexnet.evaluation import interval_text, outperforms_baselines
from chexnet.figures.curves import (
    RED,
    decision_figure,
    localization_figure,
    of_class,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
    score_histogram,
    subgroup_figure,
)
from chexnet.runs import Run

_WIDTH = 10.5  # inches; printed on A4 the smallest letters are 5.5 points high
_TITLE, _LINE = 0.45, 0.17  # the run's name, a line of text below it
_SQUARES, _CURVES, _MAPS = 4.5, 3.0, 2.2
_ROW, _AXIS = 0.26, 0.8  # of a forest plot: a row, and what is above and below the rows


def evidence_page(run: Run, *, class_name: str | None = None) -> Figure:
    """All that is known about a run's scores and maps, on one page.

    ROC, precision and recall, reliability, decision curve, histogram of scores, subgroups with
    non-imaging baselines, and localisation with its baselines. Everything comes from
    ``metrics.json`` and ``predictions.csv``.

    Args:
        run: evaluated.
        class_name: which class; ``None`` is the run's first. Maps are judged for one class; the
            page of another says so in their place.

    Returns:
        a figure that no window owns, 10.5 inches wide and about as high as A4 makes of it.

    Raises:
        ValueError: the run has no such class or is not evaluated yet.
    """
    name, found, _ = of_class(run, class_name)
    groups = 1 + len(found["subgroups"]) + len(found["baselines"])
    facts, verdict, shown = _title_lines(run, name, found)
    head = _TITLE + _LINE * (len(facts) + len(verdict))
    heights = [head, _SQUARES, _CURVES, _AXIS + _ROW * groups, _MAPS]
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    title, squares, curves, forest, maps = figure.subfigures(5, 1, height_ratios=heights)
    title.text(
        0.01, 1 - 0.1 / head, f"Run {run.folder.resolve().name}: {name}", fontsize=14, va="top"
    )
    colours = ["black"] * len(facts) + ["black" if shown else RED] * len(verdict)
    for number, (line, colour) in enumerate(zip(facts + verdict, colours, strict=True)):
        y = 1 - (_TITLE + _LINE * number) / head
        title.text(0.01, y, line, fontsize=9, va="top", color=colour)
    for draw, ax in zip(
        (roc_figure, precision_recall_figure, reliability_figure),
        squares.subplots(1, 3),
        strict=True,
    ):
        draw(run, class_name=name, ax=ax)
        if ax.get_legend():  # these squares are too small to hold it
            below = {"loc": "upper left", "bbox_to_anchor": (-0.1, -0.18)}
            ax.legend(fontsize=7.5, frameon=False, labelspacing=0.3, **below)
    for draw, ax in zip((decision_figure, score_histogram), curves.subplots(1, 2), strict=True):
        draw(run, class_name=name, ax=ax)
    subgroup_figure(run, class_name=name, ax=forest.subplots())
    titles = ("ROC curve", "Precision and recall", "Reliability", "Decision curve", "Scores")
    titles += ("Subgroup AUROC and non-imaging baselines",)
    for ax, words in zip(figure.axes, titles, strict=False):
        ax.set_title(words, fontsize=10, color="black")
    judged = run.metrics.get("localization", {}).get("class_name")
    if judged == name:
        localization_figure(run, axes=maps.subplots(1, 2))
    else:
        reason = f"The maps were judged for {judged}." if judged else "The maps were not judged."
        maps.text(0.02, 0.8, f"– {reason}", fontsize=9)
    return figure


def _title_lines(run: Run, name: str, found: dict) -> tuple[list[str], list[str], bool]:
    """What the page is about, whether the model knows more than the view, and whether it does."""
    test = found["test"]
    facts = f"{test['n']} test films of {test['n_patients']} patients, {test['n_positive']} with "
    facts += f"{name.lower()}. Thresholds and temperature are chosen on validation."
    for average, number in run.metrics.get("overall", {}).items():
        facts += f" All classes, {average} average: AUROC {interval_text(number)}."
    shown, sentence = outperforms_baselines(found)
    return textwrap.wrap(facts, 145), textwrap.wrap(sentence, 145), shown
