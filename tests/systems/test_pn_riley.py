"""Riley's criteria against the package that their authors publish, and against what the criteria say."""

import numpy as np
import pytest
from scipy import stats

import sanov
from sanov.core.errors import InputError
from sanov.systems.pn.riley import (
    binary_criteria,
    continuous_criteria,
    explained,
    maximal_r_squared,
    minimum_size,
)

# Computed with the Python package pmsampsize 0.1.0 (Whittle and Ensor), run under Python 3.12. The first binary and the
# first continuous case are the examples of its documentation.
BINARY = [
    # parameters, Cox-Snell R-squared, prevalence, shrinkage -> criteria 1, 2, 3; size; maximal R-squared
    (24, 0.288, 0.174, 0.9, (623, 662, 221), 662, 0.6032086677670351),
    (24, 0.051, 0.174, 0.9, (4115, 763, 221), 4115, 0.6032086677670352),
    (10, 0.1, 0.05, 0.9, (850, 575, 73), 850, 0.32768647129508865),
    (77, 0.05, 0.5, 0.95, (28484, 1963, 385), 28484, 0.75),
    (3, 0.3, 0.4, 0.9, (74, 67, 369), 369, None),
    (12, 0.02, 0.02, 0.9, (5340, 1329, 31), 5340, None),
]
CONTINUOUS = [
    # parameters, R-squared, mean, deviation -> criteria 1, 2, 3; size
    (25, 0.2, 1.9, 0.6, (918, 401, 259), 918),
    (10, 0.7, 26.7, 8.7, (58, 61, 244), 244),  # the package says 62 for 1 + 10 * 0.3 / 0.05: 1 - 0.7 is above 0.3
    (40, 0.9, 55.0, 20.0, (145, 81, 274), 274),
    (3, 0.05, 5.6, 0.8, (136, 58, 237), 237),
    (2, 0.5, 9.0, 1.0, (4, 21, 236), 236),
]


@pytest.mark.parametrize(("parameters", "r_squared", "prevalence", "shrinkage", "criteria", "size", "largest"), BINARY)
def test_binary_equals_pmsampsize(parameters, r_squared, prevalence, shrinkage, criteria, size, largest):
    found = binary_criteria(parameters, r_squared, prevalence, shrinkage=shrinkage)
    assert tuple(found.values()) == criteria
    assert max(found.values()) == size
    if largest:
        assert maximal_r_squared(prevalence) == pytest.approx(largest, rel=1e-12)


@pytest.mark.parametrize(("parameters", "r_squared", "mean", "deviation", "criteria", "size"), CONTINUOUS)
def test_continuous_equals_pmsampsize(parameters, r_squared, mean, deviation, criteria, size):
    found = continuous_criteria(parameters, r_squared, mean, deviation)
    assert tuple(found.values())[:3] == criteria
    assert max(found.values()) == size


def test_shrinkage_is_the_smallest_that_suffices():
    """The heuristic shrinkage factor reaches 0.9 at the size found and not one row earlier."""
    for parameters, r_squared in [(25, 0.2), (7, 0.6), (60, 0.35)]:
        rows = next(iter(continuous_criteria(parameters, r_squared, 10.0, 1.0).values()))

        def factor(n, p=parameters, r=r_squared):
            return 1 + (p - 2) / (n * np.log((1 - r) * (n - p - 1) / (n - 1)))

        assert factor(rows) >= 0.9 > factor(rows - 1)


def test_mean_criterion_is_met_exactly_and_dropped_where_zero_is_arbitrary():
    parameters, r_squared, mean, deviation = 5, 0.1, 3.0, 2.9
    rows = continuous_criteria(parameters, r_squared, mean, deviation)["mean to within 10%"]

    def half_width(n):
        return stats.t.ppf(0.975, n - parameters - 1) * deviation * np.sqrt((1 - r_squared) / n)

    assert half_width(rows) <= 0.1 * mean < half_width(rows - 1)
    assert "mean to within 10%" not in continuous_criteria(parameters, r_squared, 0.1, deviation)


def test_maximal_r_squared_is_attained_by_a_saturated_model():
    """Cox and Snell: 1 - (L0 / L1)^(2/n) with L1 = 1."""
    y = np.repeat([0.0, 1.0], [70, 30])
    null = np.prod(np.where(y == 1, 0.3, 0.7) ** (2 / 100))
    assert maximal_r_squared(0.3) == pytest.approx(1 - null, rel=1e-12)


def test_explained_equals_statsmodels():
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((400, 4)) * [1, 10, 0.1, 3] + 5
    signal = x @ [0.8, 0.05, 2.0, 0.0]
    logit = signal - signal.mean()
    y = (rng.random(400) < 1 / (1 + np.exp(-logit))).astype(float)
    ratio = api.Logit(y, api.add_constant(x)).fit(disp=False).llr
    assert explained(x, y, binary=True) == pytest.approx((1 - np.exp(-ratio / 400)) * (1 - 4 / ratio), rel=1e-8)
    outcome = signal + rng.standard_normal(400)
    fitted = api.OLS(outcome, api.add_constant(x)).fit()
    assert explained(x, outcome, binary=False) == pytest.approx(fitted.rsquared_adj, rel=1e-10)


def test_from_rows_counts_the_rarer_class_and_says_where_r_squared_comes_from():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((500, 3))
    y = (x[:, 0] + rng.standard_normal(500) < 1).astype(float)
    size = minimum_size(x, y)
    assert size.kind == "binary"
    assert size.events == int((y == 0).sum())
    assert size.events_per_parameter == size.events / 3
    assert "optimism" in size.basis
    assert size.criteria == binary_criteria(3, size.r_squared, y.mean())
    relabelled = minimum_size(x, 7.0 - 2.0 * y)
    assert relabelled.criteria == size.criteria
    noise = minimum_size(rng.standard_normal((200, 6)), np.arange(200.0) % 2)
    assert noise.r_squared == pytest.approx(0.15 * 0.75)
    assert "do not tell" in noise.basis
    assert minimum_size(x, x @ np.ones(3) + rng.standard_normal(500)).kind == "continuous"


def test_separated_classes_have_an_answer():
    x = np.linspace(-1, 1, 60)[:, None]
    size = minimum_size(x, (x[:, 0] > 0).astype(float))
    assert size.rows > 0


def test_mistakes():
    x = np.random.default_rng(0).standard_normal((30, 2))
    with pytest.raises(InputError, match="one class"):
        minimum_size(x, np.ones(30))
    with pytest.raises(InputError, match="n=3, p=2"):
        minimum_size(x[:3], np.array([0.0, 1.0, 0.0]))
    with pytest.raises(InputError, match="most at prevalence"):
        binary_criteria(5, 0.9, 0.1)
    with pytest.raises(InputError, match="0 < value < 1"):
        continuous_criteria(5, 1.0, 1.0, 1.0)


# -- no rows yet ------------------------------------------------------------------------------------------------------


def test_a_study_without_rows_equals_pmsampsize():
    """The published binary example, and the continuous one but for its mean, which does not bind."""
    binary = sanov.pn(parameters=24, riley={"prevalence": 0.174, "r_squared": 0.288})
    assert binary.values["riley_rows"] == 662
    assert "662 rows to predict a binary outcome with 24 parameters" in str(binary)
    known = binary_criteria(24, 0.15 * maximal_r_squared(0.174), 0.174)
    assert sanov.pn(parameters=24, riley={"prevalence": 0.174}).values["riley_rows"] == max(known.values())
    continuous = sanov.pn(parameters=25, riley={"r_squared": 0.2})
    assert continuous.values["riley_rows"] == 918
    assert sanov.pn(parameters=24).values["riley_rows"] is None


def test_columns_without_a_table_are_refused():
    with pytest.raises(InputError, match=r"map.outcome: names a column, and there is no table.*riley.prevalence"):
        sanov.pn(parameters=8, map={"outcome": "died"})
