"""Charts of an evaluated run: training history, curves, histogram and forest plots.

Numbers come from ``metrics.json`` and are never computed a second time.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from chexnet.auroc import auroc, no_estimate
from chexnet.evaluation import BASELINES, LOCATION_BASELINES, common_films, outperforms_baselines
from chexnet.figures.overlay import plain_text
from chexnet.runs import Run

# Okabe and Ito's colors, which are safe for color blindness; lines differ in their dashes too.
BLUE, RED, GRAY = "#0072B2", "#D55E00", "#7f7f7f"


def history_figure(run: Run) -> Figure:
    """Loss, validation AUROC and learning rate per epoch; the saved epoch is marked.

    Example:
        >>> from chexnet.figures import history_figure
        >>> from chexnet.runs import Run
        >>> [ax.get_ylabel() for ax in history_figure(Run("output/demo")).axes]
        ['loss (cross-entropy)', 'validation AUROC', 'learning rate']
    """
    history = run.history
    epoch = history["epoch"]
    figure = Figure(figsize=(10, 3), layout="constrained")
    loss, auroc, rate = figure.subplots(1, 3)
    # With boxes "loss" is a sum of two losses, and "val_loss" that of the predictions alone.
    train_loss = history["predictions_loss" if "predictions_loss" in history else "loss"]
    loss.plot(epoch, train_loss, color=GRAY, label="training", linestyle="--")
    loss.plot(epoch, history["val_loss"], color=BLUE, label="validation")
    auroc.plot(epoch, history["val_auroc"], color=BLUE)
    saved = history[history["saved"] == 1].iloc[-1]
    auroc.plot(saved["epoch"], saved["val_auroc"], "o", color=RED)
    title = f"saved: epoch {saved['epoch']:.0f}, AUROC {saved['val_auroc']:.3f}"
    auroc.set_title(title, fontsize=9, color=RED)
    rate.plot(epoch, history["learning_rate"], color=BLUE)
    rate.set_ylim(bottom=0)
    labels = ("loss (cross-entropy)", "validation AUROC", "learning rate")
    for ax, label in zip((loss, auroc, rate), labels, strict=True):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _finish(ax, x="epoch", y=label)
    return figure


def roc_figure(run: Run, *, class_name: str | None = None, ax: Axes | None = None) -> Figure:
    """ROC curves of validation (dashed) and test, with AUROC, intervals and operating point.

    The interval is DeLong's; that of the patient bootstrap is added where it differs.

    Args:
        run: evaluated.
        class_name: the class; ``None`` is the run's first.
        ax: where to draw; ``None`` makes a figure without pyplot.

    Returns:
        the figure of ``ax``.

    Raises:
        ValueError: the run has no such class, or is not evaluated with its present scores.

    Example:
        >>> from chexnet.figures import roc_figure
        >>> from chexnet.runs import Run
        >>> roc_figure(Run("output/demo")).axes[0].get_xlabel()
        '1 - specificity'
    """
    ax, metrics, predictions = _open(run, class_name, ax)
    for split, title, color, dashes in (
        ("val", "validation", GRAY, "--"),
        ("test", "test", BLUE, "-"),
    ):
        if metrics[split]["auroc"] is None:
            continue
        films = predictions[predictions["split"] == split]
        rates = roc_curve(films["y_true"], films["y_score"])[:2]
        delong = _interval(metrics[split]["auroc"])
        by_patient = _interval(metrics[split]["auroc_by_patient"])
        label = f"{title}: AUROC {delong}"
        if by_patient != delong:
            label += f"\npatient bootstrap: {by_patient}"
        ax.plot(*rates, color=color, linestyle=dashes, label=label)
    point = metrics["operating_points"].get("youden", {})
    if point.get("sensitivity", {}).get("value") is not None and point["specificity"]["n"]:
        label = f"operating point (threshold {point['threshold']:.2f} from validation)"
        x, y = 1 - point["specificity"]["value"], point["sensitivity"]["value"]
        ax.plot(x, y, "o", color=RED, label=label)
    ax.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, linestyle=":")
    return _finish(ax, x="1 - specificity", y="sensitivity", square=True)


def compare_figure(a: Run, b: Run, *, class_name: str | None = None) -> Figure:
    """ROC curves of two runs on the test films that both have scored.

    Raises:
        ValueError: as `chexnet.evaluation.common_films`, or the films have one label only.

    Example:
        >>> from chexnet.figures import compare_figure
        >>> from chexnet.runs import Run
        >>> run = Run("output/demo")
        >>> len(compare_figure(run, run).axes[0].get_lines())
        3
    """
    films = common_films(a, b, class_name=class_name)
    ax = _new_axes(4.6, 4.6)
    ax.set_title(f"{a.chosen_class(class_name)}, {len(films)} test images")
    for run, column, color, dashes in ((a, "y_score", BLUE, "-"), (b, "y_score_b", RED, "--")):
        area = auroc(films["y_true"], films[column]).estimate()
        label = f"{run.folder.resolve().name}: AUROC {_interval(area)}"
        rates = roc_curve(films["y_true"], films[column])[:2]
        ax.plot(*rates, color=color, linestyle=dashes, label=label)
    ax.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, linestyle=":")
    return _finish(ax, x="1 - specificity", y="sensitivity", square=True)


def precision_recall_figure(
    run: Run, *, class_name: str | None = None, ax: Axes | None = None
) -> Figure:
    """Precision-recall curve of the test set, with the prevalence, which is chance level.

    Arguments and errors are those of `roc_figure`.

    Example:
        >>> from chexnet.figures import precision_recall_figure
        >>> from chexnet.runs import Run
        >>> precision_recall_figure(Run("output/demo")).axes[0].get_ylabel()
        'precision'
    """
    ax, metrics, predictions = _open(run, class_name, ax)
    found = metrics["average_precision"]
    if found["value"] is not None:
        films = predictions[predictions["split"] == "test"]
        precision, recall, _ = precision_recall_curve(films["y_true"], films["y_score"])
        label = f"test: average precision {_interval(found)}"
        ax.plot(recall, precision, color=BLUE, drawstyle="steps-post", label=label)
        chance = found["prevalence"]
        ax.axhline(chance, color=GRAY, linestyle="--", label=f"prevalence {chance:.2f}")
    return _finish(ax, x="recall (sensitivity)", y="precision", square=True)


def reliability_figure(
    run: Run, *, class_name: str | None = None, ax: Axes | None = None
) -> Figure:
    """Reliability diagram of the test set, before and after temperature scaling.

    Arguments and errors are those of `roc_figure`.

    Example:
        >>> from chexnet.figures import reliability_figure
        >>> from chexnet.runs import Run
        >>> reliability_figure(Run("output/demo")).axes[0].get_ylabel()
        'observed frequency'
    """
    ax, metrics, _ = _open(run, class_name, ax)
    ax.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, linestyle=":")
    calibration = metrics["calibration"]
    after = f"temperature {calibration.get('temperature') or 1:.2f}"
    for when, label, color, line in (
        ("before", "uncalibrated", GRAY, "s--"),
        ("after", after, BLUE, "o-"),
    ):
        if when not in calibration:
            continue
        bins = pd.DataFrame(calibration[when]["reliability"], dtype=float)
        x, y = bins["probability"], bins["observed"]
        label += f": ECE {_interval(calibration[when]['ece'])}"
        bars = np.maximum([y - bins["low"], bins["high"] - y], 0)  # rounding can put a bound inside
        ax.errorbar(x, y, bars, color=color, fmt=line, markersize=4, linewidth=1, label=label)
    return _finish(ax, x="predicted probability", y="observed frequency", square=True)


def decision_figure(run: Run, *, class_name: str | None = None, ax: Axes | None = None) -> Figure:
    """Decision curve of the test set: net benefit of the model, of treating all and of none.

    Arguments and errors are those of `roc_figure`.

    Example:
        >>> from chexnet.figures import decision_figure
        >>> from chexnet.runs import Run
        >>> decision_figure(Run("output/demo")).axes[0].get_xlabel()
        'threshold probability'
    """
    ax, metrics, _ = _open(run, class_name, ax, size=(5.6, 3.2))
    ax.axhline(0, color=GRAY, linewidth=0.8, linestyle=":", label="treat none")
    if "reason" not in metrics["decision_curve"]:
        curve = pd.DataFrame(metrics["decision_curve"]).set_index("probability")
        ax.plot(curve["treat_all"], color=RED, linestyle="--", label="treat all")
        ax.plot(curve["model"], color=BLUE, label="model (calibrated), 95 % CI")
        ax.fill_between(
            curve.index, curve["low"], curve["high"], color=BLUE, alpha=0.15, linewidth=0
        )
        # The net benefit of treating all falls without bound; show only where it matters.
        highest = curve["high"].max()
        if highest > 0:
            ax.set_ylim(-0.35 * highest, 1.1 * highest)
    ax.set_xlim(0, 1)
    return _finish(ax, x="threshold probability", y="net benefit")


def score_histogram(run: Run, *, class_name: str | None = None, ax: Axes | None = None) -> Figure:
    """Scores of test films with and without the finding, and the decision threshold.

    Arguments and errors are those of `roc_figure`.

    Example:
        >>> from chexnet.figures import score_histogram
        >>> from chexnet.runs import Run
        >>> score_histogram(Run("output/demo")).axes[0].get_ylabel()
        'test images'
    """
    ax, metrics, predictions = _open(run, class_name, ax, size=(5.6, 3.2))
    films = predictions[predictions["split"] == "test"]
    name = run.chosen_class(class_name)
    bins = np.linspace(0, 1, 21).tolist()
    for y_true, which, color, hatch in ((0, "without", BLUE, None), (1, "with", RED, "//")):
        scores = films.loc[films["y_true"] == y_true, "y_score"]
        label = f"{which} {name.lower()} (n = {len(scores)})"
        ax.hist(scores, bins=bins, color=color, hatch=hatch, alpha=0.55, label=label)
    threshold = metrics["operating_points"].get("youden", {}).get("threshold")
    if threshold is not None:
        label = f"decision threshold {threshold:.2f} (from validation)"
        ax.axvline(threshold, color="black", linestyle="--", linewidth=1, label=label)
    ax.set_xlim(0, 1)
    return _finish(ax, x="score", y="test images")


def subgroup_figure(run: Run, *, class_name: str | None = None, ax: Axes | None = None) -> Figure:
    """Forest plot of the test AUROC: all films, each subgroup and the non-imaging baselines.

    The lighter intervals are those of the patient bootstrap, the others DeLong's. A group that is
    too small has the reason in place of a number. The title says whether the model outperforms the
    baselines; it is red where this is not shown. Arguments and errors are those of `roc_figure`.

    Example:
        >>> from chexnet.figures import subgroup_figure
        >>> from chexnet.runs import Run
        >>> ax = subgroup_figure(Run("output/demo")).axes[0]
        >>> ax.get_yticklabels()[-1].get_text().split("  ")[0]
        'baseline: view + sex + age'
    """
    name = run.chosen_class(class_name)
    metrics = run.current_metrics("classes")[name]
    groups = [("all test images", metrics["test"], BLUE)]
    groups += [(f"{one['by']}: {one['group']}", one, BLUE) for one in metrics["subgroups"]]
    for key, block in metrics["baselines"].items():
        groups.append((f"baseline: {BASELINES[key].title}", block, RED))
    rows = []
    for label, block, color in groups:
        counts = f"  ({block['n_positive']}/{block['n']})" if "n" in block else ""
        number = {"value": None, "reason": block.get("reason", "")}
        if block["auroc"]:
            number = {**block["auroc"], "second": block["auroc_by_patient"]}
        rows.append((label + counts, number, color))
    ax = ax or _new_axes(8, 0.7 + 0.27 * len(rows))
    ax.axvline(0.5, color=GRAY, linewidth=0.8, linestyle=":")
    _forest(ax, rows)
    ax.set_xlim(right=1)
    better, sentence = outperforms_baselines(metrics)
    title = "\n".join([name, *textwrap.wrap(sentence, 85)])
    ax.set_title(title, fontsize=9, color="black" if better else RED)
    label = "AUROC, 95 % CI (light: patient-level bootstrap CI); in parentheses: positives/n"
    return _finish(ax, x=label)


def localization_figure(
    run: Run, *, class_name: str | None = None, axes: Sequence[Axes] | None = None
) -> Figure:
    """Forest plots of how well the CAM finds the boxes, with baselines that ignore the image.

    Args:
        run: whose maps are evaluated (`chexnet.evaluation.evaluate_maps`).
        class_name: the class; ``None`` is the run's first. Without boxes there is the reason.
        axes: two, for the hit rate and the mean IoU; ``None`` makes a figure.

    Raises:
        ValueError: the run has no such class, or the present maps are not evaluated.

    Example:
        >>> from chexnet.figures import localization_figure
        >>> from chexnet.runs import Run
        >>> [ax.get_title() for ax in localization_figure(Run("output/demo")).axes]
        ['Pointing-game accuracy (hit rate)', 'Mean IoU of CAM and boxes']
    """
    name = run.chosen_class(class_name)
    found = run.current_metrics("localization")[name]
    if axes is None:
        axes = Figure(figsize=(9.5, 2.5), layout="constrained").subplots(1, 2)
    if "reason" in found:
        number = no_estimate(found["reason"])
        found = {"hit_rate": number, "mean_iou": number, "baselines": {}}
    groups = {"all images with boxes": found, "true positives": found.get("true_positives", {})}
    for ax, measure, title, baselines in (
        (axes[0], "hit_rate", "Pointing-game accuracy (hit rate)", ("fixed_point", "random_point")),
        (axes[1], "mean_iou", "Mean IoU of CAM and boxes", ("fixed_mask",)),
    ):
        rows = [
            (f"{label}  (n = {block[measure].get('n', 0)})", block[measure], BLUE)
            for label, block in groups.items()
            if measure in block
        ]
        for key in baselines:
            if key in found["baselines"]:
                rows.append((f"baseline: {LOCATION_BASELINES[key]}", found["baselines"][key], RED))
        _forest(ax, rows)
        ax.set_xlim(0, 1)
        ax.set_title(title, fontsize=10)
    return _finish(axes[0])


def _open(
    run: Run, class_name: str | None, ax: Axes | None, *, size: tuple[float, float] = (4.6, 4.6)
) -> tuple[Axes, dict, pd.DataFrame]:
    """Axes titled with the class, its part of ``metrics.json`` and its predictions."""
    name = run.chosen_class(class_name)
    metrics = run.current_metrics("classes")[name]
    ax = ax or _new_axes(*size)
    ax.set_title(name)
    return ax, metrics, pd.concat(run.scored_films(name))


def _new_axes(width: float, height: float) -> Axes:
    """The axes of a new figure; inches."""
    return Figure(figsize=(width, height), layout="constrained").subplots()


def _forest(ax: Axes, rows: list[tuple[str, dict, str]]) -> None:
    """One row per number with its interval, from the top; a dashed line extends the first.

    A row is a label, ``value, low, high`` (or ``value`` None and a ``reason``) and a color.
    ``second`` is another interval of the same value, drawn lighter and below.
    """
    for y, (_, number, color) in enumerate(rows):
        beside = ax.get_yaxis_transform()  # x as a share of the axes
        if number["value"] is None:
            reason = f"– {number.get('reason', '')}"
            ax.text(0.02, y, reason, va="center", fontsize=8, transform=beside)
            continue
        intervals = ((number, y, 1.2, 1.0), (number.get("second"), y + 0.24, 0.9, 0.5))
        for ends, height, width, alpha in intervals:
            if ends and ends.get("low") is not None and ends.get("high") is not None:
                x = [ends["low"], ends["high"]]
                ax.plot(x, [height, height], color=color, linewidth=width, alpha=alpha)
        ax.plot(number["value"], y, "D" if color == RED else "o", color=color, markersize=5)
        ax.annotate(_interval(number), (1.02, y), xycoords=beside, va="center", fontsize=8)
    if rows[0][1]["value"] is not None:
        ax.axvline(rows[0][1]["value"], color=BLUE, linewidth=0.6, linestyle="--")
    ax.set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    _finish(ax)


def _interval(number: dict) -> str:
    """``0.851 (0.800 to 0.900)``: three digits, since lines can be close to each other."""
    if number["low"] is None or number["high"] is None:
        return f"{number['value']:.3f}"
    return f"{number['value']:.3f} ({number['low']:.3f} to {number['high']:.3f})"


def _finish(ax: Axes, *, x: str = "", y: str = "", square: bool = False) -> Figure:
    """Sets axis labels and a small legend, removes the frame's upper and right line."""
    ax.set(xlabel=x or ax.get_xlabel(), ylabel=y or ax.get_ylabel())
    if square:
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        # White, for error bars and thresholds that lie under it.
        ax.legend(fontsize=8, edgecolor="none", framealpha=0.85, loc="best")
    figure = ax.get_figure(root=True)
    assert figure is not None
    return plain_text(figure)
