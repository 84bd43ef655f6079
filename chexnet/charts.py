"""Curves of a run, read from its folder.

Numbers that the evaluation wrote are read from ``metrics.json``, never computed a second time in
another way. Every function draws into ``ax``, or makes a figure that no window owns, and returns
the figure.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve

from chexnet.auroc import roc_curve
from chexnet.chart_parts import (
    BLUE,
    GREY,
    RED,
    interval_label,
    legend,
    new_axes,
    of_class,
    tidy,
)
from chexnet.runs import Run


def history_figure(run: Run) -> Figure:
    """Loss, validation AUROC and learning rate by epoch; the epoch that was kept is marked."""
    history = run.history
    figure = Figure(figsize=(10, 3), layout="constrained")
    losses, scores, rates = figure.subplots(1, 3)
    # With boxes "loss" is a sum of two; validation is that of the scores alone.
    scored = "predictions_loss" if "predictions_loss" in history else "loss"
    losses.plot(history["epoch"], history[scored], color=GREY, label="training", linestyle="--")
    losses.plot(history["epoch"], history["val_loss"], color=BLUE, label="validation")
    losses.set(ylabel="loss (cross-entropy)")
    legend(losses, "best")
    scores.plot(history["epoch"], history["val_auroc"], color=BLUE)
    best = history[history["saved"] == 1].iloc[-1]
    scores.plot(best["epoch"], best["val_auroc"], "o", color=RED)
    kept = f"epoch {best['epoch']:.0f} kept: {best['val_auroc']:.3f}"
    scores.set_title(kept, fontsize=9, color=RED)
    scores.set(ylabel="validation AUROC")
    rates.plot(history["epoch"], history["learning_rate"], color=BLUE)
    rates.set(ylabel="learning rate", ylim=(0, None))
    for ax in (losses, scores, rates):
        tidy(ax)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def roc_figure(run: Run, *, class_name: str | None = None, ax: Axes | None = None) -> Figure:
    """ROC curves of validation (dashed) and test, with AUROC, intervals and operating point.

    Beside DeLong's interval stands the one by patient, where three digits tell them apart.

    Args:
        run: evaluated.
        class_name: which class; ``None`` is the run's first.
        ax: where to draw.

    Raises:
        ValueError: the run has no such class or is not evaluated yet.
    """
    name, metrics, predictions = of_class(run, class_name)
    ax = new_axes(ax)
    for split, line in (("val", {"color": GREY, "ls": "--"}), ("test", {"color": BLUE})):
        if metrics[split]["auroc"] is None:
            continue
        films = predictions[predictions["split"] == split]
        curve = roc_curve(films["y_true"].to_numpy(), films["y_score"].to_numpy())
        delong = interval_label(metrics[split]["auroc"])
        by_patient = interval_label(metrics[split]["auroc_by_patient"])
        line["label"] = f"{split}: AUROC {delong}"
        if by_patient != delong:
            line["label"] += f"\nby patient: {by_patient}"
        ax.plot(curve["false_positive_rate"], curve["sensitivity"], **line)
    point = metrics["operating_points"].get("youden", {})
    if point.get("sensitivity", {}).get("value") is not None and point["specificity"]["n"]:
        label = f"test at the threshold of validation, {point['threshold']:.2f}"
        x, y = 1 - point["specificity"]["value"], point["sensitivity"]["value"]
        ax.plot(x, y, "o", color=RED, label=label)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    ax.set(xlabel="1 - specificity", ylabel="sensitivity", title=name, aspect="equal")
    tidy(ax, unit_square=True)
    legend(ax, "lower right")
    return ax.figure


def precision_recall_figure(
    run: Run, *, class_name: str | None = None, ax: Axes | None = None
) -> Figure:
    """Precision against recall on test, and the prevalence, which chance would get.

    Args:
        run: evaluated.
        class_name: which class; ``None`` is the run's first.
        ax: where to draw.

    Raises:
        ValueError: the run has no such class or is not evaluated yet.
    """
    name, metrics, predictions = of_class(run, class_name)
    ax = new_axes(ax)
    found = metrics["average_precision"]
    if found["value"] is not None:
        films = predictions[predictions["split"] == "test"]
        precision, recall, _ = precision_recall_curve(films["y_true"], films["y_score"])
        label = f"test: average precision {interval_label(found)}"
        ax.plot(recall, precision, color=BLUE, drawstyle="steps-post", label=label)
        chance = found["prevalence"]
        ax.axhline(chance, color=GREY, linestyle="--", label=f"prevalence {chance:.2f}")
    ax.set(xlabel="recall (sensitivity)", ylabel="precision", title=name, aspect="equal")
    tidy(ax, unit_square=True)
    legend(ax, "lower left")
    return ax.figure


def reliability_figure(
    run: Run, *, class_name: str | None = None, ax: Axes | None = None
) -> Figure:
    """How often a score comes true on test, before and after temperature scaling.

    Args:
        run: evaluated.
        class_name: which class; ``None`` is the run's first.
        ax: where to draw.

    Raises:
        ValueError: the run has no such class or is not evaluated yet.
    """
    name, metrics, _ = of_class(run, class_name)
    ax = new_axes(ax)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    calibration = metrics["calibration"]
    scaled = f"after, temperature {calibration.get('temperature') or 1:.2f}"
    for when, colour, marker in (("before", GREY, "s--"), ("after", BLUE, "o-")):
        if when not in calibration:
            continue
        bins = calibration[when]["reliability"]
        x, y, low, high = (
            np.array([row[key] for row in bins], dtype=float)
            for key in ("probability", "observed", "low", "high")
        )
        error = interval_label(calibration[when]["ece"])
        label = f"{scaled if when == 'after' else when}: ECE {error}"
        bars = np.maximum([y - low, high - y], 0)  # rounding can put the bound a hair inside
        ax.errorbar(x, y, bars, color=colour, fmt=marker, markersize=4, linewidth=1, label=label)
    ax.set(xlabel="score", ylabel="share of films with the finding", title=name, aspect="equal")
    tidy(ax, unit_square=True)
    legend(ax, "lower right")
    return ax.figure


def decision_figure(run: Run, *, class_name: str | None = None, ax: Axes | None = None) -> Figure:
    """Decision curve: whether acting on the score does more good than acting on all, or on none.

    Args:
        run: evaluated.
        class_name: which class; ``None`` is the run's first.
        ax: where to draw.

    Raises:
        ValueError: the run has no such class or is not evaluated yet.
    """
    name, metrics, _ = of_class(run, class_name)
    ax = new_axes(ax, width=5.6, height=3.2)
    ax.axhline(0, color=GREY, linewidth=0.8, linestyle=":", label="act on no film")
    curve = metrics["decision_curve"]
    if "reason" not in curve:
        acting, model, low, high, treat_all = (
            np.array([row[key] for row in curve])
            for key in ("probability", "model", "low", "high", "treat_all")
        )
        ax.plot(acting, treat_all, color=RED, linestyle="--", label="act on every film")
        ax.plot(acting, model, color=BLUE, label="act on the calibrated score, 95 % interval")
        ax.fill_between(acting, low, high, color=BLUE, alpha=0.15, linewidth=0)
        # Acting on every film falls without end; only where it is of use is it worth the room.
        top = high.max()
        ax.set_ylim(-0.35 * top if top > 0 else None, 1.1 * top if top > 0 else None)
    ax.set(xlabel="probability of the finding at which one would act", ylabel="net benefit")
    ax.set(xlim=(0, 1), title=name)
    tidy(ax)
    legend(ax, "upper right")
    return ax.figure


def score_histogram(run: Run, *, class_name: str | None = None, ax: Axes | None = None) -> Figure:
    """Scores of the test films with and without the finding, and the threshold between them.

    Args:
        run: evaluated.
        class_name: which class; ``None`` is the run's first.
        ax: where to draw.

    Raises:
        ValueError: the run has no such class or is not evaluated yet.
    """
    name, metrics, predictions = of_class(run, class_name)
    ax = new_axes(ax, width=5.6, height=3.2)
    films = predictions[predictions["split"] == "test"]
    for label, colour, which in ((0, BLUE, "without"), (1, RED, "with")):
        scores = films.loc[films["y_true"] == label, "y_score"]
        style = {"color": colour, "hatch": "//" if label else None, "alpha": 0.55}
        style["label"] = f"{which} {name.lower()} ({len(scores)} films)"
        ax.hist(scores, bins=np.linspace(0, 1, 21), **style)
    threshold = metrics["operating_points"].get("youden", {}).get("threshold")
    if threshold is not None:
        label = f"threshold {threshold:.2f}, chosen on validation"
        ax.axvline(threshold, color="black", linestyle="--", linewidth=1, label=label)
    ax.set(xlabel="score", ylabel="test films", xlim=(0, 1))
    tidy(ax)
    legend(ax, "best")
    return ax.figure
