"""What the charts share: colours, axes, and how a number is written beside a line.

Colours are Okabe and Ito's, which survive colour blindness; lines differ in dashes too.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chexnet.runs import Run

BLUE, RED, GREY = "#0072B2", "#D55E00", "#7f7f7f"


def of_class(run: Run, class_name: str | None) -> tuple[str, dict, pd.DataFrame]:
    """The class's name, its part of ``metrics.json`` and its predictions.

    Raises:
        ValueError: the run has no such class or is not evaluated yet.
    """
    name = run.chosen_class(class_name)
    classes = run.metrics.get("classes", {})
    if name not in classes:
        raise ValueError(
            f"{run.folder / 'metrics.json'}: nothing about {name!r}; notebook 04 evaluates a run "
            "(chexnet.evaluation.evaluate)"
        )
    return name, classes[name], run.predictions.query("class_name == @name")


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
