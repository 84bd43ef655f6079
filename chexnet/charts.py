"""Curves and forest plots of a run, read from its folder.

Numbers that the evaluation wrote are read from ``metrics.json``, never computed a second time in
another way. Every function draws into ``ax``, or makes a figure that no window owns, and returns
the figure. Colours are Okabe and Ito's, which survive colour blindness; lines differ in dashes too.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve

from chexnet.auroc import roc_curve
from chexnet.runs import Run

_BLUE, _RED, _GREY = "#0072B2", "#D55E00", "#7f7f7f"
_FLOORS = {"view": "view alone", "view_sex_age": "view, sex and age alone"}


def history_figure(run: Run) -> Figure:
    """Loss, validation AUROC and learning rate by epoch; the epoch that was kept is marked."""
    history = run.history
    figure = Figure(figsize=(10, 3), layout="constrained")
    losses, scores, rates = figure.subplots(1, 3)
    # With boxes "loss" is a sum of two; validation is that of the scores alone.
    scored = "predictions_loss" if "predictions_loss" in history else "loss"
    losses.plot(history["epoch"], history[scored], color=_GREY, label="training", linestyle="--")
    losses.plot(history["epoch"], history["val_loss"], color=_BLUE, label="validation")
    losses.set(ylabel="loss (cross-entropy)")
    _legend(losses, "best")
    scores.plot(history["epoch"], history["val_auroc"], color=_BLUE)
    best = history[history["saved"] == 1].iloc[-1]
    scores.plot(best["epoch"], best["val_auroc"], "o", color=_RED)
    kept = f"epoch {best['epoch']:.0f} kept: {best['val_auroc']:.3f}"
    scores.set_title(kept, fontsize=9, color=_RED)
    scores.set(ylabel="validation AUROC")
    rates.plot(history["epoch"], history["learning_rate"], color=_BLUE)
    rates.set(ylabel="learning rate", ylim=(0, None))
    for ax in (losses, scores, rates):
        _tidy(ax)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def roc_figure(run: Run, *, class_name: str | None = None, ax: Axes | None = None) -> Figure:
    """ROC curves of validation (dashed) and test, with AUROC, interval and operating point.

    Args:
        run: evaluated.
        class_name: which class; ``None`` is the run's first.
        ax: where to draw.

    Raises:
        ValueError: the run has no such class or is not evaluated yet.
    """
    name, metrics, predictions = _of_class(run, class_name)
    ax = _axes(ax)
    for split, line in (("val", {"color": _GREY, "ls": "--"}), ("test", {"color": _BLUE})):
        if metrics[split]["auroc"] is None:
            continue
        films = predictions[predictions["split"] == split]
        curve = roc_curve(films["y_true"].to_numpy(), films["y_score"].to_numpy())
        line["label"] = f"{split}: AUROC {_interval(metrics[split]['auroc'])}"
        ax.plot(curve["false_positive_rate"], curve["sensitivity"], **line)
    point = metrics["operating_points"].get("youden", {})
    if point.get("sensitivity", {}).get("value") is not None and point["specificity"]["n"]:
        label = f"test at the threshold of validation, {point['threshold']:.2f}"
        x, y = 1 - point["specificity"]["value"], point["sensitivity"]["value"]
        ax.plot(x, y, "o", color=_RED, label=label)
    ax.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    ax.set(xlabel="1 - specificity", ylabel="sensitivity", title=name, aspect="equal")
    _tidy(ax, unit_square=True)
    _legend(ax, "lower right")
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
    name, metrics, predictions = _of_class(run, class_name)
    ax = _axes(ax)
    found = metrics["average_precision"]
    if found["value"] is not None:
        films = predictions[predictions["split"] == "test"]
        precision, recall, _ = precision_recall_curve(films["y_true"], films["y_score"])
        label = f"test: average precision {_interval(found)}"
        ax.plot(recall, precision, color=_BLUE, drawstyle="steps-post", label=label)
        chance = found["prevalence"]
        ax.axhline(chance, color=_GREY, linestyle="--", label=f"prevalence {chance:.2f}")
    ax.set(xlabel="recall (sensitivity)", ylabel="precision", title=name, aspect="equal")
    _tidy(ax, unit_square=True)
    _legend(ax, "lower left")
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
    name, metrics, _ = _of_class(run, class_name)
    ax = _axes(ax)
    ax.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    calibration = metrics["calibration"]
    scaling = f"scaling by temperature {calibration.get('temperature') or 1:.2f}"
    for when, colour, marker in (("before", _GREY, "s--"), ("after", _BLUE, "o-")):
        if when not in calibration:
            continue
        bins = calibration[when]["reliability"]
        x, y, low, high = (
            np.array([row[key] for row in bins], dtype=float)
            for key in ("probability", "observed", "low", "high")
        )
        label = f"{when} {scaling}: ECE {_interval(calibration[when]['ece'])}"
        bars = np.maximum([y - low, high - y], 0)  # rounding can put the bound a hair inside
        ax.errorbar(x, y, bars, color=colour, fmt=marker, markersize=4, linewidth=1, label=label)
    ax.set(xlabel="score", ylabel="share of films with the finding", title=name, aspect="equal")
    _tidy(ax, unit_square=True)
    _legend(ax, "lower right")
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
    name, metrics, predictions = _of_class(run, class_name)
    ax = _axes(ax, width=5.6, height=3.2)
    films = predictions[predictions["split"] == "test"]
    for label, colour, which in ((0, _BLUE, "without"), (1, _RED, "with")):
        scores = films.loc[films["y_true"] == label, "y_score"]
        style = {"color": colour, "hatch": "//" if label else None, "alpha": 0.55}
        style["label"] = f"{which} {name.lower()} ({len(scores)} films)"
        ax.hist(scores, bins=np.linspace(0, 1, 21), **style)
    threshold = metrics["operating_points"].get("youden", {}).get("threshold")
    if threshold is not None:
        label = f"threshold {threshold:.2f}, chosen on validation"
        ax.axvline(threshold, color="black", linestyle="--", linewidth=1, label=label)
    ax.set(xlabel="score", ylabel="test films", xlim=(0, 1))
    _tidy(ax)
    _legend(ax, "best")
    return ax.figure


def subgroup_figure(run: Run, *, class_name: str | None = None, ax: Axes | None = None) -> Figure:
    """Forest plot of the test AUROC: all films, each subgroup, and what needs no pixels.

    A group with too few films to say anything has its reason in place of a number.

    Args:
        run: evaluated.
        class_name: which class; ``None`` is the run's first.
        ax: where to draw.

    Raises:
        ValueError: the run has no such class or is not evaluated yet.
    """
    name, metrics, _ = _of_class(run, class_name)
    parts = [("all test films", metrics["test"], _BLUE)]
    parts += [(f"{one['by']}: {one['group']}", one, _BLUE) for one in metrics["subgroups"]]
    parts += [
        (f"no pixels: {_FLOORS.get(floor, floor)}", block, _RED)
        for floor, block in metrics["floors"].items()
    ]
    rows = [
        (
            f"{label}  ({block['n_positive']} of {block['n']})" if "n" in block else label,
            block["auroc"] or {"value": None, "reason": block.get("reason", "")},
            colour,
        )
        for label, block, colour in parts
    ]
    ax = _axes(ax, width=8, height=0.7 + 0.27 * len(rows))
    ax.axvline(0.5, color=_GREY, linewidth=0.8, linestyle=":")
    _forest(ax, rows)
    ax.set_xlim(right=1)
    ax.set_xlabel("AUROC with 95 % interval; in brackets: films with the finding of all")
    ax.set_title(name)
    return ax.figure


def localization_figure(run: Run) -> Figure:
    """How well the maps find the radiologists' boxes, beside what looks at no pixels.

    Args:
        run: with ``localization`` in its metrics.

    Raises:
        ValueError: the maps have not been held against the boxes yet.
    """
    found = run.metrics.get("localization")
    if not found:
        raise ValueError(
            f"{run.folder / 'metrics.json'}: nothing about localization; notebook 04 writes it "
            "(chexnet.localization.localization_report)"
        )
    films = {"all films with boxes": found, "true positives": found.get("true_positives", {})}
    figure = Figure(figsize=(9.5, 2.5), layout="constrained")
    for ax, measure, title, floors in zip(
        figure.subplots(1, 2),
        ("hit_rate", "mean_iou"),
        ("Hit rate: the map is brightest inside a box", "Mean IoU of the map with the boxes"),
        (
            {"best fixed point": "fixed_point", "random point": "random_point"},
            {"best fixed mask": "fixed_mask"},
        ),
        strict=True,
    ):
        rows = [
            (f"{which}  ({part[measure].get('n', 0)})", part[measure], _BLUE)
            for which, part in films.items()
            if measure in part
        ]
        rows += [(f"no pixels: {a}", found["floors"][key], _RED) for a, key in floors.items()]
        _forest(ax, rows)
        ax.set_xlim(0, 1)
        ax.set_title(title, fontsize=10)
    return figure


def _of_class(run: Run, class_name: str | None) -> tuple[str, dict, object]:
    """The class's name, its part of metrics.json and its predictions."""
    name = run.class_names[0] if class_name is None else class_name
    if name not in run.class_names:
        raise ValueError(f"class_name={name!r}: allowed are {run.class_names}")
    classes = run.metrics.get("classes", {})
    if name not in classes:
        raise ValueError(
            f"{run.folder / 'metrics.json'}: nothing about {name!r}; notebook 04 evaluates a run "
            "(chexnet.evaluation.evaluate)"
        )
    return name, classes[name], run.predictions.query("class_name == @name")


def _interval(block: dict) -> str:
    if block["low"] is None or block["high"] is None:
        return f"{block['value']:.3f}"
    return f"{block['value']:.3f} ({block['low']:.3f} to {block['high']:.3f})"


def _forest(ax: Axes, rows: list[tuple[str, dict, str]]) -> None:
    """A row a number with its interval, from above; a dashed line continues the first."""
    for y, (_, block, colour) in enumerate(rows):
        if block["value"] is None:
            reason = f"– {block.get('reason', '')}"
            ax.text(0.02, y, reason, va="center", fontsize=8, transform=ax.get_yaxis_transform())
            continue
        if block["low"] is not None and block["high"] is not None:
            ax.plot([block["low"], block["high"]], [y, y], color=colour, linewidth=1.2)
        ax.plot(block["value"], y, "D" if colour == _RED else "o", color=colour, markersize=5)
        text, place = _interval(block), (1.02, y)
        ax.annotate(text, place, xycoords=ax.get_yaxis_transform(), va="center", fontsize=8)
    if rows[0][1]["value"] is not None:
        ax.axvline(rows[0][1]["value"], color=_BLUE, linewidth=0.6, linestyle="--")
    ax.set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    _tidy(ax)


def _axes(ax: Axes | None, *, width: float = 4.6, height: float = 4.6) -> Axes:
    return Figure(figsize=(width, height), layout="constrained").subplots() if ax is None else ax


def _legend(ax: Axes, place: str) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, frameon=False, loc=place)


def _tidy(ax: Axes, *, unit_square: bool = False) -> None:
    if unit_square:
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    ax.spines[["top", "right"]].set_visible(False)
