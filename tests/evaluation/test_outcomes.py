import pandas as pd
import pytest

from chexnet.evaluation import chosen_threshold, outcome_table, outcomes_at
from tests.made_up_run import write_run


def test_each_outcome_by_hand_and_a_score_at_the_threshold_is_called():
    y_true, y_score = pd.Series([1, 1, 0, 0, 1]), pd.Series([0.9, 0.1, 0.2, 0.8, 0.5])
    assert outcomes_at(y_true, y_score, 0.5).tolist() == ["TP", "FN", "TN", "FP", "TP"]


def test_the_table_uses_the_threshold_of_its_rule(tmp_path):
    run = write_run(tmp_path / "run", films=60)
    threshold, why = chosen_threshold(run)
    films, words = outcome_table(run)
    assert (films["outcome"] == outcomes_at(films["y_true"], films["y_score"], threshold)).all()
    assert f"({why})" in words
    with pytest.raises(ValueError, match="threshold='luck': expected a number or one of"):
        chosen_threshold(run, "luck")
