"""What a run is worth: scores and maps against labels and boxes."""

from chexnet.evaluation.baselines import FLOORS
from chexnet.evaluation.calibration import calibrated_scores, temperature_of
from chexnet.evaluation.localization import localization_scores, overlaps
from chexnet.evaluation.maps import evaluate_maps, judged_films, summarise_maps
from chexnet.evaluation.operating_points import (
    OUTCOMES,
    choose_thresholds,
    chosen_threshold,
    header_text,
    outcome_table,
    outcomes_at,
    scored_films,
)
from chexnet.evaluation.report import beyond_no_pixels, interval_text, report_table
from chexnet.evaluation.scores import evaluate

__all__ = [
    "FLOORS", "OUTCOMES", "beyond_no_pixels", "calibrated_scores", "choose_thresholds",
    "chosen_threshold", "evaluate", "evaluate_maps", "header_text", "interval_text", "judged_films",
    "localization_scores", "outcome_table", "outcomes_at", "overlaps", "report_table",
    "scored_films", "summarise_maps", "temperature_of",
]  # fmt: skip
