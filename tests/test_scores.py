"""Scores against scikit-learn, pairs and loops."""

import inspect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from oracles import auroc_by_pairs, calibration_error_by_rows
from sanov.core.errors import InputError
from sanov.scores import adjusted_rand, auroc, brier, calibration_error, log_loss, reliability_table
from strategies import modest

ROWS = 400
# eighths make ties, and with 4, 8 or 16 bins fall on edges that floats hit exactly
eighths = st.integers(0, 8).map(lambda n: n / 8)
tables = st.lists(st.tuples(eighths, st.integers(0, 1)), min_size=1, max_size=40)


def predictions(seed=0):
    generator = np.random.default_rng(seed)
    p = generator.beta(0.7, 0.9, ROWS)
    return p, (generator.random(ROWS) < p**1.5).astype(int)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn(seed):
    p, y = predictions(seed)
    assert auroc(p, y) == pytest.approx(roc_auc_score(y, p), rel=1e-12)
    assert log_loss(p, y) == pytest.approx(sklearn_log_loss(y, p), rel=1e-12)
    assert brier(p, y) == pytest.approx(brier_score_loss(y, p), rel=1e-12)


@pytest.mark.parametrize("bins", [1, 4, 10, 15])
def test_the_reliability_table_is_scikit_learns_curve(bins):
    p, y = predictions()
    p[:4] = [0, 1, 0.5, 0.25]
    table = reliability_table(p, y, bins)
    observed, predicted = calibration_curve(y, p, n_bins=bins)
    np.testing.assert_allclose(table["right"], observed, rtol=1e-12)
    np.testing.assert_allclose(table["confidence"], predicted, rtol=1e-12)
    assert table["rows"].sum() == ROWS


@modest
@given(tables, st.integers(1, 16))
def test_calibration_is_that_of_a_loop(table, bins):
    p, y = zip(*table, strict=True)
    assert calibration_error(p, y, bins) == pytest.approx(calibration_error_by_rows(p, y, bins), rel=1e-12, abs=1e-15)


@modest
@given(tables)
def test_the_area_is_the_share_of_pairs(table):
    scores, y = zip(*table, strict=True)
    if len(set(y)) == 1:
        assert math.isnan(auroc(scores, y))
        return
    area = auroc(scores, y)
    assert area == pytest.approx(auroc_by_pairs(scores, y), rel=1e-12)
    assert auroc([-score for score in scores], y) == pytest.approx(1 - area, abs=1e-12)
    assert auroc([math.exp(score) for score in scores], y) == area  # only the order counts
    assert auroc(scores, [1 - outcome for outcome in y]) == pytest.approx(1 - area, abs=1e-12)


def test_the_area_of_perfect_useless_and_infinite_scores():
    y = [0, 0, 1, 1]
    assert auroc([0.1, 0.2, 0.8, 0.9], y) == 1
    assert auroc([0.5] * 4, y) == 0.5
    assert auroc([-math.inf, 0, 1, math.inf], y) == 1


def test_certainty_is_rewarded_or_costs_infinity_unless_clipped():
    assert log_loss([1.0, 0.0], [1, 0]) == 0
    assert log_loss([1.0, 0.5], [0, 1]) == math.inf
    assert log_loss([1.0, 1.0], [0, 1], clip=1e-7) == pytest.approx((-math.log(1e-7) - math.log1p(-1e-7)) / 2)
    assert log_loss([1e-20], [0]) == pytest.approx(1e-20, rel=1e-12, abs=0)


@modest
@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_log_loss_and_brier_are_proper(truth, claimed):
    """Expected under the truth, from two rows with weights, both are least where the claim is the truth."""
    expected = {
        score: [truth * score([claim], [1]) + (1 - truth) * score([claim], [0]) for claim in (truth, claimed)]
        for score in (log_loss, brier)
    }
    for honest, other in expected.values():
        assert honest <= other + 1e-15
    honest, other = expected[brier]
    assert other - honest == pytest.approx((truth - claimed) ** 2, abs=1e-15)


def test_calibration_of_what_is_calibrated_and_of_what_is_not():
    p = np.repeat([0.25, 0.75], 8)
    y = np.array([1, 1, 0, 0, 0, 0, 0, 0] + [1] * 6 + [0] * 2)
    assert calibration_error(p, y) == 0
    assert calibration_error(p, 1 - y) == 0.5
    assert calibration_error([0.9] * 4, [0] * 4) == pytest.approx(0.9)


def test_edges_belong_to_the_bin_below_and_zero_to_the_first():
    table = reliability_table([0, 0.25, 0.26, 0.5, 1], [0, 0, 1, 1, 1], bins=4)
    assert table["rows"].tolist() == [2, 2, 1]
    assert table["low"].tolist() == [0, 0.25, 0.75]
    assert table["high"].tolist() == [0.25, 0.5, 1]
    assert table["right"].tolist() == [0, 1, 1]
    assert len({len(column) for column in table.values()}) == 1


@pytest.mark.parametrize("kind", [bool, int, np.float32])
def test_outcomes_of_any_kind(kind):
    p, y = predictions()
    for score in (auroc, log_loss, brier, calibration_error):
        assert score(p.tolist(), y.astype(kind)) == score(p, y)


@pytest.mark.parametrize("order", [np.arange(ROWS)[::-1], np.random.default_rng(0).permutation(ROWS)])
def test_the_order_of_rows_does_not_matter(order):
    p, y = predictions()
    for score in (auroc, log_loss, brier, calibration_error):
        assert score(p[order], y[order]) == pytest.approx(score(p, y), rel=1e-12)


@pytest.mark.parametrize("score", [auroc, log_loss, brier, calibration_error, reliability_table])
@pytest.mark.parametrize(
    ("p", "y", "words"),
    [
        ([0.5], [1, 0], r"\[1\] and \[2\]"),
        ([], [], "at least 1"),
        ([[0.5, 0.5]], [[1, 0]], r"\[1, 2\]"),
        ([0.5, 0.5], [1, 2], "neither 0 nor 1"),
        ([0.5, 0.5], [1, math.nan], "neither 0 nor 1"),
        ([0.5, math.nan], [1, 0], "NaN"),
    ],
)
def test_mistakes_are_named(score, p, y, words):
    with pytest.raises(InputError, match=words):
        score(p, y)


@pytest.mark.parametrize("score", [log_loss, brier, calibration_error, reliability_table])
@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_probabilities_outside_are_refused_where_they_must_be_some(score, p):
    with pytest.raises(InputError, match=r"outside \[0, 1\]"):
        score([p], [1])


def test_options_outside_their_range_are_refused():
    with pytest.raises(InputError, match="bins"):
        calibration_error([0.5], [1], 0)
    with pytest.raises(InputError, match="clip"):
        log_loss([0.5], [1], clip=0.5)


@pytest.mark.parametrize(
    "function", [auroc, brier, calibration_error, log_loss, reliability_table], ids=lambda function: function.__name__
)
def test_headings_of_a_docstring_stand_on_lines_of_their_own(function):
    assert "\nReturns\n-------\n" in inspect.getdoc(function)


# -- partitions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_adjusted_rand_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(4, size=60), rng.integers(3, size=60)
    from sklearn.metrics import adjusted_rand_score

    assert adjusted_rand(first, second) == pytest.approx(adjusted_rand_score(first, second), abs=1e-12)
    assert adjusted_rand(first.astype(str), first) == 1.0


@pytest.mark.parametrize(("first", "second"), [([1], [2]), ([1, 1], ["a", "a"]), ([1, 2], [3, 4]), ([1, 1], [1, 2])])
def test_adjusted_rand_of_the_smallest_partitions(first, second):
    from sklearn.metrics import adjusted_rand_score

    assert adjusted_rand(first, second) == adjusted_rand_score(first, second)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1, 2], [1])])
def test_adjusted_rand_needs_the_same_rows(first, second):
    with pytest.raises(InputError, match="two partitions"):
        adjusted_rand(first, second)
