"""The figure of one prediction."""

import textwrap

import numpy as np
from matplotlib.figure import Figure

from chexnet.evaluation import cam_threshold
from chexnet.figures.curves import score_histogram
from chexnet.figures.overlay import overlay_cam, plain_text, show_film
from chexnet.runs import Run


def prediction_figure(
    film: np.ndarray,
    cam: np.ndarray,
    text: str,
    *,
    score: float,
    run: Run | None = None,
    class_name: str | None = None,
    scale: float | None = None,
) -> Figure:
    """Shows a film, its map, and its score among those of a run's test films.

    Args:
        film: uint8 ``(H, W)``.
        cam: raw map ``(h, w)``, logits.
        text: below the film, such as score, threshold and warnings.
        score: 0 to 1.
        run: whose test films to compare with; ``None`` leaves the histogram out.
        class_name: the class; ``None`` is the run's first.
        scale: as in `overlay_cam`.

    Returns:
        a figure made without pyplot.

    Example:
        >>> from chexnet.figures import prediction_figure
        >>> from chexnet.runs import Run
        >>> run = Run("output/demo")
        >>> film = run.predictions.query("split == 'test'").iloc[0]
        >>> cam = run.maps_of([film.image_id], "test")[0, 0]
        >>> figure = prediction_figure(
        ...     run.film(film.image_id), cam, "one film", score=film.y_score, run=run
        ... )
        >>> len(figure.axes)
        3
    """
    parts = 2 if run is None else 3
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, 46 * parts)]
    figure = Figure(figsize=(3.6 * parts, 3.8 + 0.17 * len(lines)), layout="constrained")
    axes = figure.subplots(1, parts)
    show_film(film, ax=axes[0]).set_title("film", fontsize=9)
    threshold = None if run is None else cam_threshold(run, class_name)
    overlay_cam(film, cam, ax=axes[1], scale=scale, threshold=threshold)
    axes[1].set_title("evidence (class activation map)", fontsize=9)
    if run is not None:
        score_histogram(run, class_name=class_name, ax=axes[2])
        axes[2].axvline(score, color="black", linewidth=2, label=f"this film {score:.2f}")
        axes[2].legend(fontsize=7)
    figure.supxlabel("\n".join(lines), fontsize=9, ha="left", x=0.01)
    return plain_text(figure)
