import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from chexnet.auroc import auroc, bootstrap, compare_auroc
from chexnet.auroc.curve import _weighted_auroc

# Turck et al. 2010 (Intensive Care Medicine 36, 107-115), the data on which R's pROC shows its
# results: S100β in 0.01 µg/l and the WFNS grade of 72 patients with good, 41 with poor outcome.
S100B = """
13 14 10 4 47 18 10 10 4 8 4 9 11 7 17 7 11 13 19 5 16 14 34 9 50 46 16 7 43 45 11 8 9 8 6
13 10 14 15 6 5 9 4 9 8 16 9 8 33 11 28 7 10 32 7 5 24 38 10 15 8 14 10 7 4 19 15 47 17 15 50 48
13 10 16 12 44 71 49 7 33 9 7 41 35 48 96 25 86 52 207 7 77 30 3 9 23 70 27 71 8 26 13 10
11 22 56 14 58 32 82 74 44
"""
WFNS = (
    "111151221221112121134141551124112212122111121211324214115422111312244111"
    "32455552521254425552525245441442255225555"
)
# Six films. Of the 3 x 3 pairs the positive one scores higher in 7, equal in 1, lower in 1.
Y, SCORE = [0, 0, 1, 0, 1, 1], [0.1, 0.4, 0.35, 0.6, 0.6, 0.9]
HAND = (6 + 0.5) / 9  # 0.35 > 0.1 only: 1; 0.6 > 0.1, 0.4 and ties 0.6: 2.5; 0.9 > all: 3


def naive_placements(y, score):
    """The O(mn) definition: which share of the other class lies on the right side."""
    positive, negative = score[y == 1][:, np.newaxis], score[y == 0][np.newaxis]
    wins = (positive > negative) + 0.5 * (positive == negative)
    return wins.mean(axis=1), wins.mean(axis=0)


def films(n=400, decimals=None, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    score = rng.normal(size=n) + y
    return y, score if decimals is None else score.round(decimals), rng


def test_the_value_is_the_table_worked_by_hand():
    result = auroc(Y, SCORE)
    assert result.value == pytest.approx(HAND, abs=1e-15)
    assert (result.n_positive, result.n_negative, result.method) == (3, 3, "DeLong")


def test_the_delong_variance_is_the_one_worked_by_hand():
    # Placement values: positives 1/3, 2.5/3, 1; negatives (0.1) 1, (0.4) 2/3, (0.6) 1.5/3.
    # Their variances over n - 1 are 0.1203704 and 0.0648148; a third of each adds up to 0.0617284.
    result = auroc(Y, SCORE)
    assert result.low == pytest.approx(HAND - 1.959964 * 0.0617284**0.5, abs=1e-6)
    assert result.high == 1  # 1.21, cut


@pytest.mark.parametrize("decimals", [None, 2, 1, 0])
def test_the_value_is_that_of_scikit_learn_with_and_without_ties(decimals):
    y, score, _ = films(decimals=decimals)
    assert auroc(y, score).value == pytest.approx(roc_auc_score(y, score), abs=1e-12)


@pytest.mark.parametrize("decimals", [None, 2, 1, 0])
def test_the_delong_interval_is_that_of_the_quadratic_definition(decimals):
    y, score, _ = films(decimals=decimals)
    positive, negative = naive_placements(y, score)
    variance = positive.var(ddof=1) / len(positive) + negative.var(ddof=1) / len(negative)
    half = stats.norm.ppf(0.975) * np.sqrt(variance)
    result = auroc(y, score)
    assert result.low == pytest.approx(positive.mean() - half, abs=1e-9)
    assert result.high == pytest.approx(positive.mean() + half, abs=1e-9)


def test_the_figures_published_with_r_proc_come_out():
    y = np.repeat([0, 1], [72, 41])
    s100b, wfns = np.array(S100B.split(), float), np.array(list(WFNS), float)
    result = auroc(y, s100b)
    assert f"{result.value:.4f} {result.low:.4f}-{result.high:.4f}" == "0.7314 0.6301-0.8326"
    test = compare_auroc(y, wfns, s100b)  # roc.test: Z = 2.209, p-value = 0.02718
    assert f"{test.value_a:.4f} {test.z:.3f} {test.p:.5f}" == "0.8237 2.209 0.02718"


def test_turned_scores_turn_the_value_and_its_interval():
    y, score, _ = films()
    up, down = auroc(y, score), auroc(y, -score)
    assert down.value == pytest.approx(1 - up.value, abs=1e-12)
    assert (down.low, down.high) == pytest.approx((1 - up.high, 1 - up.low), abs=1e-12)


def test_only_the_order_of_scores_matters():
    y, score, _ = films()
    assert auroc(y, np.exp(3 * score)) == auroc(y, score)


def test_thresholded_labels():
    """Thresholded labels give the mean of sensitivity and specificity a lesser number."""
    y, score, _ = films()
    called = score > 0.5
    both = (called[y == 1].mean() + (~called[y == 0]).mean()) / 2
    assert auroc(y, called).value == pytest.approx(both, abs=1e-12)
    assert auroc(y, called).value < auroc(y, score).value - 0.05


def test_shuffled_labels_bring_it_to_one_half():
    y, score, rng = films(n=5000)
    result = auroc(rng.permutation(y), score)
    assert result.low < 0.5 < result.high
    assert result.value == pytest.approx(0.5, abs=0.03)


def test_interval_coverage():
    """The interval covers the truth in about 95 of 100 studies."""
    truth = stats.norm.cdf(1 / np.sqrt(2))  # two normals, one standard deviation apart
    intervals = [auroc(*films(n=200, seed=seed)[:2]) for seed in range(500)]
    covered = np.mean([result.low <= truth <= result.high for result in intervals])
    assert 0.92 <= covered <= 0.98


def test_perfect_scores():
    """Perfect scores have value one and a single positive no DeLong interval."""
    assert auroc([0, 0, 1, 1], [1, 2, 3, 4]).value == 1
    single = auroc([0, 0, 1], [1, 3, 2])
    assert single.value == 0.5
    assert np.isnan([single.low, single.high]).all()


@pytest.mark.parametrize(
    ("y", "score", "message"),
    [
        ([1, 1], [0.1, 0.2], "both classes, but all 2 labels are 1"),
        ([], [], "there are no films"),
        ([0, 2], [0.1, 0.2], r"y_true has .*2.*: expected labels 0 or 1"),
        ([0, np.nan], [0.1, 0.2], "expected labels 0 or 1"),
        ([0, 1], [0.1, np.nan], "1 of 2 are NaN or infinite"),
        ([0, 1], [0.1, np.inf], "1 of 2 are NaN or infinite"),
        ([0, 1], [0.1], r"shape \(2,\), y_score \(1,\)"),
        ([[0], [1]], [[0.1], [0.2]], "one value a film"),
    ],
)
def test_what_has_no_auroc_is_an_error_that_says_why(y, score, message):
    with pytest.raises(ValueError, match=message):
        auroc(y, score)


def test_groups_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"y_true has shape \(6,\), groups \(2,\)"):
        auroc(Y, SCORE, groups=["a", "b"])


def test_strata():
    """Of strata the value is the mean and only films of one are compared."""
    y, score, rng = films(n=90)
    fold, patients = np.arange(90) % 3, np.arange(90)
    moved = score + 10 * fold  # another scale of scores in each fold
    expected = np.mean([roc_auc_score(y[fold == k], score[fold == k]) for k in range(3)])
    result = auroc(y, moved, groups=patients, strata=fold, n_bootstrap=50)
    assert result.value == pytest.approx(expected, abs=1e-12)
    assert result.low < expected < result.high
    other = rng.normal(size=90)
    gap = compare_auroc(y, moved, other, groups=patients, strata=fold, n_bootstrap=50)
    alone = auroc(y, other, groups=patients, strata=fold, n_bootstrap=50)
    assert gap.difference == pytest.approx(expected - alone.value, abs=1e-12)
    with pytest.raises(ValueError, match="strata: expected groups too"):
        auroc(y, score, strata=fold)
    with pytest.raises(ValueError, match=r"both classes, but all \d+ labels are 0"):
        auroc(y, score, groups=patients, strata=y)


@pytest.mark.parametrize("decimals", [None, 1])
def test_bootstrap_of_repeated_films(decimals):
    """Each bootstrap sample has the AUROC of its repeated films."""
    y, score, rng = films(n=80, decimals=decimals)
    area = _weighted_auroc(y, score)
    for weights in bootstrap(lambda weight: weight, rng.integers(30, size=80), n_bootstrap=20):
        rows = np.repeat(np.arange(80), weights.astype(int))
        expected = roc_auc_score(y[rows], score[rows])
        assert area(weights) == pytest.approx(expected, abs=1e-12)


def test_a_sample_of_one_class_has_no_auroc_and_is_left_out():
    y, score = np.array([0, 0, 1]), np.array([0.1, 0.6, 0.5])
    assert np.isnan(_weighted_auroc(y, score)(np.array([2.0, 1.0, 0.0])))
    result = auroc(y, score, groups=[0, 1, 2], n_bootstrap=200)
    assert 0 <= result.low <= result.value <= result.high <= 1


def test_with_single_films_the_bootstrap_agrees_with_delong():
    y, score, _ = films(n=2000)
    delong, bootstrap = auroc(y, score), auroc(y, score, groups=np.arange(2000))
    assert bootstrap.low == pytest.approx(delong.low, abs=0.003)
    assert bootstrap.high == pytest.approx(delong.high, abs=0.003)


def test_patients_widen_the_interval():
    # Obuchowski 1997 (Biometrics 53, 567-578): placement values summed within each patient. Here
    # each film is there four times, which DeLong takes for four times as much evidence.
    """Films of the same patients widen the interval as the clustered variance says."""
    y, score, _ = films(n=300)
    y, score, patients = np.tile(y, 4), np.tile(score, 4), np.tile(np.arange(300), 4)
    positive, negative = naive_placements(y, score)
    scaled = np.zeros(len(y))
    scaled[y == 1] = (positive - positive.mean()) / len(positive)
    scaled[y == 0] = (negative - negative.mean()) / len(negative)
    error = np.sqrt((np.bincount(patients, weights=scaled) ** 2).sum())
    result, delong = auroc(y, score, groups=patients), auroc(y, score)
    assert result.method == "bootstrap by patient"
    assert (result.high - result.low) / (2 * 1.96) == pytest.approx(error, rel=0.05)
    assert result.high - result.low > 1.8 * (delong.high - delong.low)


def test_bootstrap_seed():
    """The bootstrap repeats with its seed whatever the order of films."""
    y, score, rng = films(n=200)
    patients = rng.integers(60, size=200)
    order = rng.permutation(200)
    first = auroc(y, score, groups=patients, n_bootstrap=200)
    again = auroc(y[order], score[order], groups=patients[order], n_bootstrap=200)
    assert (again.low, again.high) == pytest.approx((first.low, first.high), abs=1e-12)
    assert auroc(y, score, groups=patients, n_bootstrap=200) == first
    assert auroc(y, score, groups=patients, n_bootstrap=200, seed=1) != first


def test_the_paired_test_is_that_of_the_quadratic_definition():
    y, a, rng = films(decimals=1)
    b = (a + rng.normal(size=len(a))).round(1)
    (pa, na), (pb, nb) = naive_placements(y, a), naive_placements(y, b)
    # DeLong 1988: S / m and S / n are 2 x 2 covariances; the contrast is (1, -1).
    covariance = np.cov(pa, pb) / len(pa) + np.cov(na, nb) / len(na)
    error = np.sqrt(np.array([1, -1]) @ covariance @ [1, -1])
    test = compare_auroc(y, a, b)
    assert test.difference == pytest.approx(pa.mean() - pb.mean(), abs=1e-12)
    assert test.z == pytest.approx(test.difference / error, abs=1e-9)
    assert test.p == pytest.approx(2 * stats.norm.sf(abs(test.z)), abs=1e-12)
    assert test.high - test.low == pytest.approx(2 * stats.norm.ppf(0.975) * error, abs=1e-9)


def test_comparing_by_patient_and_delong():
    """Comparing by patient agrees with DeLong where each patient has one film."""
    y, a, rng = films(n=1500)
    b = a + rng.normal(size=len(a))
    delong, bootstrap = compare_auroc(y, a, b), compare_auroc(y, a, b, groups=np.arange(1500))
    assert bootstrap.method == "bootstrap by patient"
    assert bootstrap.z == pytest.approx(delong.z, rel=0.06)
    assert bootstrap.low == pytest.approx(delong.low, abs=0.004)


def test_compare_by_patient():
    """The worse score first: z is negative, over the standard deviation of the samples (ddof 1)."""
    y, better, rng = films(n=80)
    worse, patients = better + 2 * rng.normal(size=80), rng.integers(30, size=80)
    settings = {"groups": patients, "n_bootstrap": 12, "seed": 3}
    test = compare_auroc(y, worse, better, **settings)
    gaps = []
    for weights in bootstrap(lambda weight: weight, patients, n_bootstrap=12, seed=3):
        rows = np.repeat(np.arange(80), weights.astype(int))
        gaps.append(roc_auc_score(y[rows], worse[rows]) - roc_auc_score(y[rows], better[rows]))
    assert test.value_a == pytest.approx(roc_auc_score(y, worse))
    assert test.value_b == pytest.approx(roc_auc_score(y, better))
    assert test.difference == pytest.approx(test.value_a - test.value_b)
    assert test.z == pytest.approx(test.difference / np.std(gaps, ddof=1), rel=1e-9)
    assert (test.low, test.high) == pytest.approx(np.quantile(gaps, [0.025, 0.975]).tolist())
    assert test.z < -1
    assert test.p == pytest.approx(2 * stats.norm.cdf(test.z))
    turned = compare_auroc(y, better, worse, **settings)
    assert (turned.z, turned.p) == pytest.approx((-test.z, test.p))
    once = compare_auroc(y, worse, better, groups=patients, n_bootstrap=1)
    assert np.isnan([once.z, once.p]).all()


def test_a_score_compared_with_itself_differs_by_nothing():
    y, score, _ = films()
    test = compare_auroc(y, score, score)
    assert (test.difference, test.z, test.p) == (0, 0, 1)


def test_a_perfect_score_and_its_reverse_differ_beyond_doubt():
    test = compare_auroc([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1])
    assert (test.difference, test.z, test.p) == (1, np.inf, 0)


def test_false_positives_of_the_comparison():
    """Two equal models are told apart in about 5 of 100 studies."""
    found = []
    for seed in range(400):
        y, signal, rng = films(n=200, seed=seed)
        a, b = (signal + rng.normal(size=200) for _ in range(2))
        found.append(compare_auroc(y, a, b).p < 0.05)
    assert 0.02 <= np.mean(found) <= 0.085


def test_as_a_table_shows_it():
    assert str(auroc(Y, SCORE)) == "0.72 (0.24-1.00)"
