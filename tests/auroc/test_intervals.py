import numpy as np
import pytest

from chexnet.auroc import bootstrap, estimate, mean_interval, no_estimate, wilson_interval
from chexnet.auroc.intervals import percentile_interval


def weights_of(groups, **settings):
    return bootstrap(lambda weight: weight, groups, **settings)


def test_patients_are_drawn_together():
    """Films of a patient are drawn together and as many patients as there are."""
    weights = weights_of(["b", "a", "b", "c"], n_bootstrap=50, seed=1)
    assert weights.shape == (50, 4)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1:].sum(axis=1) == 3).all()
    assert len({tuple(row) for row in weights}) > 5


def test_draws_repeat_with_the_seed_and_differ_with_another():
    groups = np.arange(40)
    first, again, other = (weights_of(groups, n_bootstrap=5, seed=seed) for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("groups", [[], ["a", None], ["a", np.nan], [["a"]]])
def test_a_film_without_a_patient_is_refused(groups):
    with pytest.raises(ValueError, match="patient id"):
        weights_of(np.array(groups, dtype=object))


def test_fewer_than_one_bootstrap_sample_is_refused():
    with pytest.raises(ValueError, match="n_bootstrap=0: expected an integer >= 1"):
        weights_of(np.arange(3), n_bootstrap=0)


def test_percentile_interval():
    """The 2.5 % and 97.5 % quantiles: of 0 to 100, 2.5 and 97.5; None counts as NaN."""
    assert percentile_interval(range(101)) == pytest.approx((2.5, 97.5))
    assert percentile_interval([None, *range(101)]) == pytest.approx((2.5, 97.5))


def test_no_estimate():
    """The same keys as `estimate` gives, without values."""
    assert no_estimate("why") == {"value": None, "low": None, "high": None, "n": 0, "reason": "why"}
    assert set(estimate(1, [1])) < set(no_estimate("why"))


def test_draws_without_a_value_are_left_out_of_the_interval():
    assert percentile_interval([np.nan, 2.0, 2.0]) == (2.0, 2.0)
    assert np.isnan(percentile_interval([np.nan])).all()


def test_interval_of_a_mean():
    """The interval of a mean is that of the mean of each sample."""
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=60), rng.integers(20, size=60)
    settings = {"n_bootstrap": 300, "seed": 5}
    slow = bootstrap(lambda weight: np.average(values, weights=weight), groups, **settings)
    result = mean_interval(values, groups, **settings)
    assert result["value"] == pytest.approx(values.mean(), abs=1e-12)
    assert (result["low"], result["high"]) == pytest.approx(percentile_interval(slow), abs=1e-12)


def test_columns_are_resampled_together():
    values = np.random.default_rng(0).normal(size=(30, 2))
    columns = bootstrap(lambda weight: weight @ values, np.arange(30), n_bootstrap=40)
    for column, alone in zip(columns.T, values.T, strict=True):
        expected = bootstrap(lambda weight, one=alone: weight @ one, np.arange(30), n_bootstrap=40)
        assert column == pytest.approx(expected, abs=1e-12)


def test_a_mean_of_independent_films_has_the_textbook_interval():
    values = np.random.default_rng(0).normal(size=1000)
    result = mean_interval(values, np.arange(1000))
    half = 1.96 * values.std(ddof=1) / np.sqrt(1000)
    assert result["low"] == pytest.approx(values.mean() - half, abs=0.004)
    assert result["high"] == pytest.approx(values.mean() + half, abs=0.004)


def test_films_of_few_patients_say_less_than_films_of_many():
    values = np.repeat(np.random.default_rng(0).normal(size=50), 8)
    alone = mean_interval(values, np.arange(400))
    grouped = mean_interval(values, np.repeat(np.arange(50), 8))
    assert grouped["high"] - grouped["low"] > 2 * (alone["high"] - alone["low"])


def test_a_share_of_none_or_all_is_not_taken_as_certain():
    # Wilson by hand, 0 of 4: high = z² / (4 + z²) = 3.8415 / 7.8415.
    result = mean_interval(np.zeros(8, bool), np.repeat(np.arange(4), 2))
    assert (result["value"], result["low"]) == (0, 0)
    assert result["high"] == pytest.approx(0.48990, abs=1e-5)
    result = mean_interval(np.ones(8, bool), np.repeat(np.arange(4), 2))
    assert result["low"] == pytest.approx(1 - 0.48990, abs=1e-5)
    assert result["high"] == 1


def test_a_mean_of_no_films_is_none_with_the_reason():
    result = mean_interval(np.array([]), np.array([]))
    assert result["value"] is None
    assert result["reason"] == "no films"


def test_wilson_is_the_interval_worked_by_hand():
    # 8 of 10, z = 1.959964: centre (8 + z²/2) / (10 + z²) = 9.92073 / 13.84146 = 0.716740,
    # half width z sqrt(8·2/10 + z²/4) / (10 + z²) = 1.959964 · 1.600225 / 13.84146 = 0.226577.
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=2e-6)


def test_wilson_refuses_what_is_no_proportion():
    for successes, trials in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="must"):
            wilson_interval(successes, trials)
