"""Forest plots of a run, read from its folder: many numbers with their intervals, side by side."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chexnet.chart_parts import BLUE, GREY, RED, interval_label, new_axes, of_class, tidy
from chexnet.report import beyond_no_pixels
from chexnet.runs import Run

_FLOORS = {"view": "view alone", "view_sex_age": "view, sex and age alone"}
_BESIDE = 0.24  # of a row: how far the second interval lies below the first


def subgroup_figure(run: Run, *, class_name: str | None = None, ax: Axes | None = None) -> Figure:
    """Forest plot of the test AUROC: all films, each subgroup, and what needs no pixels.

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
        (f"no pixels: {_FLOORS.get(floor, floor)}", block, RED)
        for floor, block in metrics["floors"].items()
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
    shown, sentence = beyond_no_pixels(metrics)
    title = "\n".join([name, *textwrap.wrap(sentence, 85)])
    ax.set_title(title, fontsize=9, color="black" if shown else RED)
    return ax.figure


def localization_figure(run: Run, *, axes: Sequence[Axes] | None = None) -> Figure:
    """How well the maps find the radiologists' boxes, beside what looks at no pixels.

    Args:
        run: with ``localization`` in its metrics.
        axes: two, where to draw the hit rate and the mean IoU.

    Raises:
        ValueError: the maps have not been held against the boxes yet.
    """
    found = run.metrics.get("localization")
    if not found:
        raise ValueError(
            f"{run.folder / 'metrics.json'}: nothing about localization; notebook 04 writes it "
            "(chexnet.map_report.localization_report)"
        )
    films = {"all films with boxes": found, "true positives": found.get("true_positives", {})}
    if axes is None:
        axes = Figure(figsize=(9.5, 2.5), layout="constrained").subplots(1, 2)
    for ax, measure, title, floors in zip(
        axes,
        ("hit_rate", "mean_iou"),
        ("Hit rate: the map is brightest inside a box", "Mean IoU of the map with the boxes"),
        (
            {"best fixed point": "fixed_point", "random point": "random_point"},
            {"best fixed mask": "fixed_mask"},
        ),
        strict=True,
    ):
        rows = [
            (f"{which}  ({part[measure].get('n', 0)})", part[measure], BLUE)
            for which, part in films.items()
            if measure in part
        ]
        rows += [(f"no pixels: {a}", found["floors"][key], RED) for a, key in floors.items()]
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
