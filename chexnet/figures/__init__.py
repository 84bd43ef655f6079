"""Figures (matplotlib, without pyplot) and tables of a study and a run, without a model."""

from chexnet.figures.curves import (
    BLUE, RED, compare_figure, decision_figure, history_figure, localization_figure,
    precision_recall_figure, reliability_figure, roc_figure, score_histogram, subgroup_figure,
)  # fmt: skip
from chexnet.figures.overlay import (
    BAR_GRAY, BOX_COLOR, NO_MAP, OPACITY, RISE, blend, color_table, header_text, overlay_cam,
)  # fmt: skip
from chexnet.figures.page import report_page
from chexnet.figures.prediction import prediction_figure
from chexnet.figures.results import results_figure
from chexnet.figures.sheets import conversion_sheet, film_sheet
from chexnet.figures.table import show_table

__all__ = [
    "BAR_GRAY", "BLUE", "BOX_COLOR", "NO_MAP", "OPACITY", "RED", "RISE", "blend", "color_table",
    "compare_figure", "conversion_sheet", "decision_figure", "film_sheet", "header_text",
    "history_figure", "localization_figure", "overlay_cam", "precision_recall_figure",
    "prediction_figure", "reliability_figure", "report_page", "results_figure", "roc_figure",
    "score_histogram", "show_table", "subgroup_figure",
]  # fmt: skip
