"""Forest plots of a run, read from its folder: many numbers with their intervals, side by side.

What the charts share: colours, axes, and how a number is written beside a line.

Colours are Okabe and Ito's, which survive colour blindness; lines differ in dashes too.

Curves of a run, read from its folder.

Numbers that the evaluation wrote are read from ``metrics.json``, never computed a second time in
another way. Every function draws into ``ax``, or makes a figure that no window owns, and returns
the figure.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve

from chexnet.auroc import roc_curve
from chexnet.evaluation import BASELINES, LOCATION_BASELINES, outperforms_baselines
from chexnet.runs import Run

BLUE, RED, GREY = "#0072B2", "#D55E00", "#7f7f7f"


def of_class(run: Run, class_name: str | None) -> tuple[str, dict, pd.DataFrame]:
    """The class's name, its part of ``metrics.json`` and its predictions.

    Raises:
        ValueError: the run has no such class, or is not evaluated with its present scores.
    """
    name = run.chosen_class(class_name)
    return name, run.current_metrics("classes")[name], run.predictions.query("class_name == @name")


def interval_label(block: dict) -> str:
    """``0.851 (0.800 to 0.900)``, for a legend: three digits, as lines can lie close."""
    if block["low"] is None or block["high"] is None:
        return f"{block['value']:.3f}"
    return f"{block['value']:.3f} ({block['low']:.3f} to {block['high']:.3f})"


def new_axes(ax: Axes | None, *, width: float = 4.6, height: float = 4.6) -> Axes:
    """``ax``, or where there is none the axes of a new figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained").subplots() if ax is None else ax


def legend(ax: Axes, place: str) -> None:
    """A small legend, where anything has a label."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, frameon=False, loc=place)


def tidy(ax: Axes, *, unit_square: bool = False) -> None:
    """No frame above and on the right; both axes from 0 to 1 where asked for."""
    if unit_square:
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    ax.spines[["top", "right"]].set_visible(False)


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


_BESIDE = 0.24  # of a row: how far the second interval lies below the first


def subgroup_figure(run: Run, *, class_name: str | None = None, ax: Axes | None = None) -> Figure:
    """Forest plot of the test AUROC: all films, each subgroup and the non-imaging baselines.

    Each number has DeLong's interval, and below it, pale, the one by patient. A group with too few
    films to say anything has its reason in place of a number. The title says whether the model is
    shown to know more than the view and other facts; where it is not, in red.

    Args:
        run: evaluated.
        class_name: which class; ``None`` is the run's first.
        ax: where to draw.

    Raises:
        ValueError: the run has no such class or is not evaluated yet.
    """
    name, metrics, _ = of_class(run, class_name)
    parts = [("all test films", metrics["test"], BLUE)]
    parts += [(f"{one['by']}: {one['group']}", one, BLUE) for one in metrics["subgroups"]]
    parts += [
        (f"baseline: {BASELINES[key].title}", block, RED)
        for key, block in metrics["baselines"].items()
    ]
    rows = [
        (
            f"{label}  ({block['n_positive']} of {block['n']})" if "n" in block else label,
            {**block["auroc"], "beside": block["auroc_by_patient"]}
            if block["auroc"]
            else {"value": None, "reason": block.get("reason", "")},
            colour,
        )
        for label, block, colour in parts
    ]
    ax = new_axes(ax, width=8, height=0.7 + 0.27 * len(rows))
    ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    _forest(ax, rows)
    ax.set_xlim(right=1)
    ax.set_xlabel(
        "AUROC, 95 % interval (pale: by patient); in brackets: films with the finding of all"
    )
    shown, sentence = outperforms_baselines(metrics)
    title = "\n".join([name, *textwrap.wrap(sentence, 85)])
    ax.set_title(title, fontsize=9, color="black" if shown else RED)
    return ax.figure


def localization_figure(run: Run, *, axes: Sequence[Axes] | None = None) -> Figure:
    """How well the maps find the radiologists' boxes, compared with baselines without the image.

    Args:
        run: with ``localization`` in its metrics.
        axes: two, where to draw the hit rate and the mean IoU.

    Raises:
        ValueError: the maps have not been held against the boxes yet.
    """
    found = run.current_metrics("localization")
    films = {"all films with boxes": found, "true positives": found.get("true_positives", {})}
    if axes is None:
        axes = Figure(figsize=(9.5, 2.5), layout="constrained").subplots(1, 2)
    for ax, measure, title, baselines in zip(
        axes,
        ("hit_rate", "mean_iou"),
        ("Hit rate: the map is brightest inside a box", "Mean IoU of the map with the boxes"),
        (("fixed_point", "random_point"), ("fixed_mask",)),
        strict=True,
    ):
        rows = [
            (f"{which}  ({part[measure].get('n', 0)})", part[measure], BLUE)
            for which, part in films.items()
            if measure in part
        ]
        rows += [
            (f"baseline: {LOCATION_BASELINES[key]}", found["baselines"][key], RED)
            for key in baselines
        ]
        _forest(ax, rows)
        ax.set_xlim(0, 1)
        ax.set_title(title, fontsize=10)
    return axes[0].figure


def _forest(ax: Axes, rows: list[tuple[str, dict, str]]) -> None:
    """A row a number with its interval, from above; a dashed line continues the first.

    Args:
        ax: where to draw.
        rows: label, ``value, low, high`` (or ``value`` ``None`` and a ``reason``) and colour. With
            ``beside``, another ``low`` and ``high`` of the same value, a pale line below.
    """
    for y, (_, block, colour) in enumerate(rows):
        if block["value"] is None:
            reason = f"– {block.get('reason', '')}"
            ax.text(0.02, y, reason, va="center", fontsize=8, transform=ax.get_yaxis_transform())
            continue
        for ends, below, style in (
            (block, 0, {"linewidth": 1.2}),
            (block.get("beside") or {}, _BESIDE, {"linewidth": 0.9, "alpha": 0.5}),
        ):
            if ends.get("low") is not None and ends.get("high") is not None:
                ax.plot([ends["low"], ends["high"]], [y + below] * 2, color=colour, **style)
        ax.plot(block["value"], y, "D" if colour == RED else "o", color=colour, markersize=5)
        text, place = interval_label(block), (1.02, y)
        ax.annotate(text, place, xycoords=ax.get_yaxis_transform(), va="center", fontsize=8)
    if rows[0][1]["value"] is not None:
        ax.axvline(rows[0][1]["value"], color=BLUE, linewidth=0.6, linestyle="--")
    ax.set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    tidy(ax)
