"""What a run is worth: scores and maps against labels and boxes."""

from chexnet.evaluation.baselines import BASELINES, LOCATION_BASELINES
from chexnet.evaluation.calibration import apply_temperature, calibrated_scores
from chexnet.evaluation.compare import common_films, compare_runs
from chexnet.evaluation.localization import iou_at, localization_scores
from chexnet.evaluation.maps import cam_threshold, evaluate_maps
from chexnet.evaluation.operating_points import (
    OUTCOMES, choose_thresholds, chosen_threshold, outcome_table, outcomes_at,
)  # fmt: skip
from chexnet.evaluation.out_of_distribution import (
    ORIENTATIONS, feature_distance, fit_familiarity, orientation,
)  # fmt: skip
from chexnet.evaluation.report import interval_text, outperforms_baselines, report_table
from chexnet.evaluation.scores import evaluate

__all__ = [
    "BASELINES", "LOCATION_BASELINES", "ORIENTATIONS", "OUTCOMES", "apply_temperature",
    "calibrated_scores", "cam_threshold", "choose_thresholds", "chosen_threshold", "common_films",
    "compare_runs", "evaluate", "evaluate_maps", "feature_distance", "fit_familiarity",
    "interval_text", "iou_at", "localization_scores", "orientation", "outcome_table",
    "outcomes_at", "outperforms_baselines", "report_table",
]  # fmt: skip
