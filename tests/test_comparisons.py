"""Comparisons against SciPy, statsmodels, and enumeration; and none of it loads torch."""

import dataclasses
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from oracles import auroc_by_pairs, sign_flip_by_enumeration
from sanov.comparisons import (
    Effect,
    cluster_bootstrap,
    difference_interval,
    holm,
    mcnemar,
    paired_effect,
    share_interval,
    sign_flip,
)
from sanov.core.errors import InputError
from sanov.scores import auroc
from strategies import modest

numbers = st.floats(-100, 100, allow_subnormal=False)


# -- paired effects ----------------------------------------------------------------------------------------------------


@modest
@given(st.lists(numbers, min_size=2, max_size=20), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_paired_effect_is_scipys_t_test(differences, confidence):
    if np.std(differences) < 1e-6 * (1 + np.abs(differences).max()):
        differences[0] += 1  # the spread of equal numbers is rounding
    expected = stats.ttest_1samp(differences, 0)
    interval = expected.confidence_interval(confidence)
    effect = paired_effect(differences, confidence)
    assert effect.mean == pytest.approx(np.mean(differences), rel=1e-12, abs=1e-12)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high), rel=1e-9, abs=1e-9)
    assert effect.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert effect.standard_error == pytest.approx(stats.sem(differences), rel=1e-9)
    assert effect.n == len(differences)


def test_the_order_and_sign_of_differences():
    differences = np.random.default_rng(0).normal(1, 2, 12)
    effect, mirrored = paired_effect(differences), paired_effect(-differences)
    assert (mirrored.mean, mirrored.low, mirrored.high) == (-effect.mean, -effect.high, -effect.low)
    assert mirrored.p_value == effect.p_value
    assert effect.low < effect.mean < effect.high


def test_equal_differences_leave_no_doubt():
    assert paired_effect([0.1, 0.1, 0.1]) == Effect(0.1, 0.1, 0.1, 3, 0.0, 0.0)
    assert paired_effect(np.zeros(4)) == Effect(0.0, 0.0, 0.0, 4, 0.0, 1.0)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    generator, rounds = np.random.default_rng(0), 2000
    samples = generator.normal(0.3, 1, (rounds, 5))
    covered = sum(effect.low <= 0.3 <= effect.high for effect in map(paired_effect, samples)) / rounds
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / rounds))


def test_an_effect_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        paired_effect([1.0, 2.0]).mean = 0.0


# -- resampling clusters -----------------------------------------------------------------------------------------------


def clustered(clusters=30, rows=6, seed=0):
    """Rows that agree within their cluster: the spread is mostly between clusters."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(clusters), rows)
    values = generator.normal(size=clusters)[labels] + 0.1 * generator.normal(size=clusters * rows)
    shuffled = generator.permutation(len(labels))
    return values[shuffled], labels[shuffled]


def test_the_bootstrap_of_few_clusters_has_the_quantiles_of_all_resamples():
    values, labels = np.array([1.0, 2.0, 4.0, 7.0, 11.0, 16.0]), np.array([9, 10, 9, 200, 200, 200])
    clusters = {label: values[labels == label] for label in (9, 10, 200)}
    resamples = itertools.product(clusters, repeat=3)
    means = np.sort([np.concatenate([clusters[label] for label in drawn]).mean() for drawn in resamples])
    assert len(means) == 27
    # 0.13 is no multiple of 1/27: the quantile is a whole step away from the next value, so that sampling hits it
    interval = cluster_bootstrap(values, labels, draws=20_000, confidence=0.74)
    assert interval.low == pytest.approx(np.quantile(means, 0.13, method="inverted_cdf"), rel=1e-12)
    assert interval.high == pytest.approx(np.quantile(means, 0.87, method="inverted_cdf"), rel=1e-12)
    assert (interval.estimate, interval.clusters, interval.draws) == (pytest.approx(values.mean()), 3, 20_000)


def test_rows_that_are_their_own_clusters_give_scipys_bootstrap():
    values, draws = np.random.default_rng(1).gamma(2, size=60), 4000
    ours = cluster_bootstrap(values, np.arange(60), np.median, draws=draws, confidence=0.9, seed=1)
    theirs = stats.bootstrap(
        (values,), np.median, n_resamples=draws, confidence_level=0.9, method="percentile", rng=np.random.default_rng(2)
    )
    # both ends are sample quantiles at 5 %; bounds from the quantiles 4 standard errors to either side
    slack = 4 * math.sqrt(2 * 0.05 * 0.95 / draws)
    distribution = theirs.bootstrap_distribution
    assert np.quantile(distribution, 0.05 - slack) <= ours.low <= np.quantile(distribution, 0.05 + slack)
    assert np.quantile(distribution, 0.95 - slack) <= ours.high <= np.quantile(distribution, 0.95 + slack)


def test_the_width_is_that_of_the_cluster_means_and_not_of_the_rows():
    values, labels = clustered()
    means = np.array([values[labels == label].mean() for label in range(30)])
    draws = 4000
    interval = cluster_bootstrap(values, labels, draws=draws)
    expected = 2 * stats.norm.ppf(0.975) * means.std() / math.sqrt(30)
    # two quantiles of nearly normal draws, each with standard error sqrt(q (1 - q) / draws) / density
    error = math.sqrt(2 * 0.025 * 0.975 / draws) / stats.norm.pdf(stats.norm.ppf(0.975)) * means.std() / math.sqrt(30)
    assert interval.high - interval.low == pytest.approx(expected, abs=4 * error + 0.05 * expected)
    by_rows = cluster_bootstrap(values, np.arange(len(values)), draws=500)
    assert by_rows.high - by_rows.low < 0.6 * (interval.high - interval.low)


def test_a_statistic_of_columns_is_paired():
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 120).astype(float)
    score = y + generator.normal(size=120)
    table, labels = np.column_stack([score, score, y]), np.repeat(np.arange(20), 6)
    same = cluster_bootstrap(table, labels, lambda rows: auroc(rows[:, 0], rows[:, 2]) - auroc(rows[:, 1], rows[:, 2]))
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    one = cluster_bootstrap(table, labels, lambda rows: auroc(rows[:, 0], rows[:, 2]), draws=200)
    assert one.estimate == pytest.approx(auroc_by_pairs(score, y))
    assert one.low < one.estimate < one.high


def test_draws_on_which_the_statistic_is_undefined_are_left_out_and_counted():
    outcomes, labels = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1])

    def one_class(rows):
        return auroc(np.arange(len(rows)), rows)

    interval = cluster_bootstrap(outcomes, labels, one_class, draws=1000)
    # both clusters are drawn in half of the resamples
    assert interval.draws == pytest.approx(500, abs=4 * math.sqrt(250))
    nothing = cluster_bootstrap(outcomes, labels, lambda rows: math.nan, draws=10)
    assert nothing.draws == 0
    assert math.isnan(nothing.low)
    assert math.isnan(nothing.high)


def test_an_infinite_statistic_makes_an_infinite_end_and_only_where_it_reaches_it():
    labels = np.arange(6)

    def ends(values, confidence=0.95):
        interval = cluster_bootstrap(np.array(values), labels, draws=1000, confidence=confidence)
        assert interval.draws == 1000
        return interval.low, interval.high

    low, high = ends([1.0, 2.0, 3.0, 4.0, 5.0, math.inf])  # in two thirds of the draws
    assert 1 < low < 3
    assert high == math.inf
    low, high = ends([1.0, 2.0, 3.0, 4.0, 5.0, -math.inf])
    assert low == -math.inf
    assert 3 < high < 5
    assert ends([math.inf] * 6) == (math.inf, math.inf)
    low, high = ends([1.0, 2.0, 3.0, 4.0, 5.0, math.inf], confidence=0.2)
    assert (low, high) == (math.inf, math.inf)  # from 40 % on
    assert cluster_bootstrap(np.array([1.0, math.inf]), [0, 1], draws=10).estimate == math.inf


def test_the_seed_and_the_seed_alone_decides():
    values, labels = clustered(10)
    assert cluster_bootstrap(values, labels, draws=50, seed=3) == cluster_bootstrap(values, labels, draws=50, seed=3)
    assert cluster_bootstrap(values, labels, draws=50, seed=3) != cluster_bootstrap(values, labels, draws=50, seed=4)
    renamed = cluster_bootstrap(values, np.array([f"learner {label}" for label in labels]), draws=50, seed=3)
    assert renamed == cluster_bootstrap(values, labels, draws=50, seed=3)


# -- signs -------------------------------------------------------------------------------------------------------------


@modest
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9))
def test_few_differences_are_counted_exactly(differences):
    assert sign_flip(differences) == sign_flip_by_enumeration(differences)


@pytest.mark.parametrize("seed", range(4))
def test_signs_are_scipys_permutation_test(seed):
    differences = np.random.default_rng(seed).normal(0.5, 1, 10)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip(differences) == pytest.approx(theirs.pvalue, rel=1e-12)


def test_the_smallest_p_value_and_the_ties_that_rounding_would_break():
    assert sign_flip([0.1, 0.7, 0.3, 0.2, 0.9]) == 2 / 2**5
    tenths = [0.1, 0.2, 0.3, -0.4, 0.5, 0.6]
    assert sign_flip(tenths) == sign_flip([1, 2, 3, -4, 5, 6])
    assert sign_flip([0.0, 0.0]) == 1


def test_sign_flip_against_one_side():
    """SciPy's permutation test of one sample counts the same assignments."""
    for differences in ([0.3, -0.1, 0.8, 0.4, -0.2, 0.6], [-0.3, -0.1, 0.2, -0.4], [1.0, 2.0, 3.0]):
        theirs = stats.permutation_test(
            (differences,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="greater"
        )
        assert sign_flip(differences, alternative="greater") == pytest.approx(theirs.pvalue, rel=1e-12)
    assert sign_flip([0.1, 0.7, 0.3], alternative="greater") == 1 / 2**3
    assert sign_flip([-0.1, -0.7, -0.3], alternative="greater") == 1
    many = np.random.default_rng(0).normal(0.1, 1, 13)
    exact = sign_flip(many, alternative="greater")
    sampled = sign_flip(many, alternative="greater", exact_up_to=5, draws=20_000)
    assert abs(sampled - exact) < 4 * np.sqrt(exact * (1 - exact) / 20_000)


def test_many_differences_are_sampled_and_agree_with_the_exact_count():
    differences = np.random.default_rng(0).normal(0.4, 1, 14)
    exact, draws = sign_flip(differences), 20_000
    sampled = sign_flip(differences, exact_up_to=13, draws=draws)
    assert sampled != exact
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / draws) + 1 / draws)
    assert sign_flip(differences, exact_up_to=0, draws=100, seed=1) == sign_flip(
        differences, exact_up_to=0, draws=100, seed=1
    )


def test_a_sampled_p_value_is_never_zero():
    assert sign_flip(np.ones(60), draws=99) == 1 / 100


# -- disagreements and families of tests -------------------------------------------------------------------------------


@modest
@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_that_of_statsmodels_and_of_scipys_binomial(b, c):
    ours = mcnemar(b, c)
    assert ours == pytest.approx(statsmodels_mcnemar([[5, b], [c, 7]], exact=True).pvalue, rel=1e-9)
    assert ours == pytest.approx(stats.binomtest(b, b + c).pvalue if b + c else 1, rel=1e-9)
    assert ours == mcnemar(c, b)


def test_without_disagreement_mcnemar_is_one():
    assert mcnemar(0, 0) == 1


@settings(modest, max_examples=12)  # statsmodels collects garbage at each call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p_values):
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], rtol=1e-12)


def test_holm_of_one_and_of_none():
    assert holm([0.03]).tolist() == [0.03]
    assert holm([]).size == 0


def test_holm_lies_between_nothing_and_bonferroni():
    p_values = np.array([0.01, 0.04, 0.03, 0.005])
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: paired_effect([1.0]), "at least 2"),
        (lambda: paired_effect([1.0, math.nan, 2.0]), "entry 1 is nan"),
        (lambda: paired_effect([[1.0, 2.0]]), r"shape \[1, 2\]"),
        (lambda: paired_effect([1.0, 2.0], 95.0), "confidence"),
        (lambda: cluster_bootstrap(np.ones(3), [0, 0, 0]), "at least 2"),
        (lambda: cluster_bootstrap(np.ones(3), [0, 1]), "one label a row"),
        (lambda: cluster_bootstrap(np.ones(2), [0, 1], draws=0), "draws"),
        (lambda: cluster_bootstrap(np.ones(2), [0, 1], confidence=1.0), "confidence"),
        (lambda: sign_flip([]), "at least 1"),
        (lambda: sign_flip([math.inf]), "entry 0 is inf"),
        (lambda: mcnemar(-1, 2), "b is -1"),
        (lambda: holm([0.1, 1.2]), r"outside \[0, 1\]"),
        (lambda: holm([0.1, math.nan]), "entry 1 is nan"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(InputError, match=words):
        call()


# -- shares ------------------------------------------------------------------------------------------------------------


def test_a_share_of_rows_has_the_exact_interval_of_one_row_less():
    """Their variance is estimated: its n - 1 is what statsmodels is asked for."""
    shares = np.array([1.0] * 3 + [0.0] * 17)
    expected = proportion_confint(19 * shares.mean(), 19, method="beta")
    np.testing.assert_allclose(share_interval(shares, np.ones(20)), expected)


def test_rows_of_a_cluster_that_are_alike_count_as_one():
    """Clusters that are wholly right or wrong say at most what as many rows would; equal ones what all rows do."""
    shares = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    low, high = share_interval(shares, [1] * 8)
    wide = share_interval(shares, [50] * 8)
    assert low - 0.1 < wide[0] < low < high < wide[1] < high + 0.1
    even = share_interval([0.5, 0.5, 0.48, 0.52] * 5, [50] * 20)
    np.testing.assert_allclose(even, proportion_confint(500, 1000, method="beta"))


def test_shares_that_are_all_equal_keep_an_interval():
    assert share_interval([0.0] * 10, [4] * 10) == pytest.approx(proportion_confint(0, 10, method="beta"))
    assert share_interval([1.0] * 10, [4] * 10) == pytest.approx(proportion_confint(10, 10, method="beta"))


@modest
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=12), st.sampled_from([0.8, 0.95]))
def test_an_interval_of_a_share_stays_a_share_and_holds_the_mean(shares, confidence):
    low, high = share_interval(shares, [4] * len(shares), confidence)
    assert 0 <= low <= np.mean(shares) + 1e-12
    assert np.mean(shares) - 1e-12 <= high <= 1


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_over_clusters_is_covered(p):
    """Clusters of four rows whose own shares differ much, drawn 600 times: about 95 %, up to three standard errors."""
    rng = np.random.default_rng(1)
    own = rng.beta(2 * p, 2 * (1 - p), (600, 15))
    shares = rng.binomial(4, own) / 4
    inside = [low <= p <= high for low, high in (share_interval(row, [4] * 15) for row in shares)]
    assert np.mean(inside) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 600)


def test_a_difference_of_shares_is_covered():
    """By enumeration of what ten rows may say, where one classifier alone is right on 30 % and the other on 10 %."""
    covered = 0.0
    for gained, lost in itertools.product(range(11), repeat=2):
        if gained + lost <= 10:
            low, high = difference_interval([1] * gained + [-1] * lost + [0] * (10 - gained - lost))
            assert -1 <= low <= high <= 1
            chance = stats.multinomial.pmf([gained, lost, 10 - gained - lost], 10, [0.3, 0.1, 0.6])
            covered += chance * (low <= 0.2 <= high)
    assert covered > 0.93
    assert difference_interval([-1, -1]) != difference_interval([1, 1])


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(share_interval, ([0.5, 1.5], [1, 1])), (share_interval, ([0.5], [1])), (difference_interval, ([0.5],))],
)
def test_what_is_no_share_is_refused(function, arguments):
    with pytest.raises(InputError):
        function(*arguments)


def test_neither_comparisons_nor_scores_load_torch():
    code = "import sys, sanov.comparisons, sanov.scores; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
