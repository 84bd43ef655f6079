import numpy as np
import pandas as pd
import pytest

from chexnet.auroc import auroc
from chexnet.evaluation.baselines import known, plausible_age, view_scores, view_sex_age_scores

TRAIN = pd.DataFrame(
    {
        "view": ["AP", "AP", "AP", "PA", "PA", None],
        "sex": ["F", "M", "F", "M", None, "F"],
        "age": [50, 60, None, 20, 155, 40],
        "Pneumonia": [1, 1, 0, 0, 0, 1],
    }
)


def test_score_of_a_view():
    """A view scores as often as its training films had the finding."""
    films = pd.DataFrame({"view": ["AP", "PA", None, "LL"]})
    # AP 2 of 3, PA 0 of 2, unknown 1 of 1, and the whole 3 of 6 for a view never seen.
    assert view_scores(TRAIN, films, "Pneumonia").tolist() == [2 / 3, 0, 1, 0.5]


def test_impossible_ages():
    """The regression takes unknown values and impossible ages."""
    films = pd.DataFrame(
        {"view": ["AP", "PA", "LL"], "sex": ["M", None, "O"], "age": [55, np.nan, 300]}
    )
    scores = view_sex_age_scores(TRAIN, films, "Pneumonia")
    assert scores[0] > scores[1]
    assert ((scores > 0) & (scores < 1)).all()


def test_the_regression_finds_what_age_and_view_tell():
    rng = np.random.default_rng(0)
    films = pd.DataFrame(
        {
            "view": rng.choice(["AP", "PA"], size=4000),
            "sex": rng.choice(["F", "M"], size=4000),
            "age": rng.integers(1, 95, size=4000),
        }
    )
    logit = 1.5 * (films["view"] == "AP") + (films["age"] - 50) / 20 - 1.5
    films["Pneumonia"] = (rng.random(4000) < 1 / (1 + np.exp(-logit))).astype(int)
    train, test = films[:2000], films[2000:]
    full = auroc(test["Pneumonia"], view_sex_age_scores(train, test, "Pneumonia"))
    view = auroc(test["Pneumonia"], view_scores(train, test, "Pneumonia"))
    assert full.value == pytest.approx(auroc(test["Pneumonia"], logit[2000:]).value, abs=0.01)
    assert full.low > view.high


def test_without_any_age():
    """Without any age, the regression goes on with view and sex."""
    scores = view_sex_age_scores(TRAIN.assign(age=None), TRAIN.assign(age=None), "Pneumonia")
    assert scores[0] > scores[3]


def test_missing_values_are_named_and_slips_of_the_pen_dropped():
    assert known(pd.Series(["AP", None, np.nan])).tolist() == ["AP", "unknown", "unknown"]
    ages = plausible_age(pd.Series([0, 120, 121, -1, None, "60"]))
    assert ages[:2].tolist() == [0, 120]
    assert ages[2:5].isna().all()
    assert ages[5] == 60


def test_view_on_the_real_tables(rsna_dir):
    """On the real tables, view alone reaches the AUROC that is known of it."""
    tables = rsna_dir.parent / "rsna-tables"
    if not tables.is_dir():
        pytest.skip(f"{tables} is not there: no complete tables to test on")
    labels = pd.read_csv(tables / "stage_2_train_labels.csv").drop_duplicates("patientId")
    header = pd.read_csv(tables / "dicom_headers.csv")
    films = labels.merge(header, left_on="patientId", right_on="PatientID")
    films = films.rename(columns={"ViewPosition": "view", "PatientSex": "sex", "PatientAge": "age"})
    assert len(films) == 26_684
    train, test = films[::2], films[1::2]
    view = auroc(test["Target"], view_scores(train, test, "Target"))
    assert view.value == pytest.approx(0.70, abs=0.02)
    everything = auroc(test["Target"], view_sex_age_scores(train, test, "Target"))
    assert everything.value > view.value
