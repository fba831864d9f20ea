"""The coefficients from a sample: three methods, streaming, weights, clusters, compression, and what is refused."""

import re
import tracemalloc
from types import ModuleType

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
import sanov
from sanov.core.errors import InputError
from sanov.families import risk_coefficients
from sanov.systems.pn.coefficients import estimate
from sanov.systems.pn.compression import compression_path
from sanov.systems.pn.drawn import UserFamily
from sanov.systems.pn.exact import normal_invariants
from sanov.systems.pn.sample import Sample
from sanov.systems.pn.statistics import Prepared, cross, dependent_columns, prepare

METHODS = ("sandwich", "simple", "closed_form")


def heavy(n=300, d=3, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_t(9, size=(n, d)) @ (rng.normal(size=(d, d)) + 2 * np.eye(d))


def signs(n=400, d=3, seed=0):
    rng = np.random.default_rng(seed)
    spins = rng.choice([-1.0, 1.0], size=(n, d))
    spins[:, 1] = np.where(rng.random(n) < 0.6, spins[:, 0], spins[:, 1])
    return spins


def gaussian(table, **design):
    return Sample(prepare("gaussian", table, [f"x{k}" for k in range(table.shape[1])]), **design)


def raw(statistics, **design):
    """A sample whose statistics are its columns."""
    names = tuple(f"t{k}" for k in range(statistics.shape[1]))
    model = UserFamily(names, lambda table: table)
    return Sample(Prepared("raw", model, names, statistics, len(names)), **design)


def numbers(found):
    return found.a, found.b, found.b_dual, found.trace


# -- the three methods ------------------------------------------------------------------------------------------------


def test_simple_is_the_full_tensor_form():
    xi = np.random.default_rng(1).gamma(2.0, size=(200, 4))
    _, second, third, fourth = oracles.cumulant_tensors(xi, np.full(200, 1 / 200))
    found = estimate(raw(xi), method="simple", bootstrap=0)
    assert (found.a, found.b) == pytest.approx(oracles.risk_by_duality(second, third, fourth, second, third), rel=1e-10)
    assert (found.a, found.b) == pytest.approx(risk_coefficients(xi), rel=1e-10)
    assert found.trace == pytest.approx(4)


def test_sandwich_is_the_full_tensor_form():
    table = signs()
    sample = Sample(prepare("ising", table, list("abc")))
    found = estimate(sample, bootstrap=0)
    grid = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T
    states = sample.prepared.model.statistics(grid)
    law = np.exp(states @ found.theta)
    mean, second, third, fourth = oracles.cumulant_tensors(states, law / law.sum())
    xi = sample.prepared.model.statistics(table)
    np.testing.assert_allclose(mean, xi.mean(axis=0), atol=1e-9)
    _, covariance, skewness, _ = oracles.cumulant_tensors(xi, np.full(len(xi), 1 / len(xi)))
    expected = oracles.risk_by_duality(second, third, fourth, covariance, skewness)
    assert (found.a, found.b) == pytest.approx(expected, rel=1e-8)


def test_closed_form_of_the_normal_knows_only_the_dimension():
    found = estimate(gaussian(heavy()), method="closed_form")
    assert (found.t1, found.t2, found.k4) == normal_invariants(3)
    assert (found.a, found.b) == (4.5, pytest.approx(38))
    assert found.interval("b") == pytest.approx((38, 38))
    assert found.trace > 9  # what the data say is still told


def test_the_sandwich_of_a_right_model_is_half_the_parameters_within_its_interval():
    found = estimate(gaussian(np.random.default_rng(2).normal(size=(2000, 3))))
    low, high = found.interval("a")
    assert low < found.a_simple < high
    low, high = found.interval("b")
    assert low < 38 < high


def test_a_wrong_model_whose_margins_are_right_keeps_half_the_parameters():
    """Row 12: the independent spins' sandwich does not move, although the spins depend on one another."""
    from sanov.systems.pn.drawn import Ising

    table = signs(5000)
    model = Ising(("a", "b", "c"), interactions=False)
    found = estimate(Sample(Prepared("", model, model.columns, table, 3)), order=1)
    assert found.a == pytest.approx(1.5, rel=1e-9)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_an_affine_map_changes_no_coefficient(seed):
    rng = np.random.default_rng(seed)
    table = heavy()
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[
        0
    ]  # well conditioned whatever is drawn: moments of fourth order are taken
    mapped = table @ turn * rng.uniform(50, 200, size=3) + rng.normal(size=3)
    for method in METHODS:
        one, other = (estimate(gaussian(rows), method=method, bootstrap=0) for rows in (table, mapped))
        assert numbers(other) == pytest.approx(numbers(one), rel=1e-7)
        assert (other.t1, other.t2, other.k4) == pytest.approx((one.t1, one.t2, one.k4), rel=1e-7)
        np.testing.assert_allclose(other.eigenvalues, one.eigenvalues, rtol=1e-7)


def test_signs_may_be_coded_as_one_likes():
    table = signs()
    flipped = (table * [1, -1, 1] + 1) / 2
    one, other = (estimate(Sample(prepare("ising", rows, list("abc"))), bootstrap=0) for rows in (table, flipped))
    assert numbers(other) == pytest.approx(numbers(one), rel=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_the_first_order_is_the_a_of_the_second(method):
    one, two = (estimate(gaussian(heavy()), method=method, order=order, seed=3) for order in (1, 2))
    assert one.a == pytest.approx(two.a)
    assert (one.b, one.b_dual, one.t1) == (0, 0, None)
    np.testing.assert_allclose(one.replicates[:, 0], two.replicates[:, 0], rtol=1e-9)


def test_a_cross_classification_is_a_multinomial():
    codes, cells = cross({"colour": ["red", "blue", "red", "blue", "red"] * 4, "size": [1, 1, 2, 2, 2] * 4})
    assert cells == ["colour=blue, size=1", "colour=blue, size=2", "colour=red, size=1", "colour=red, size=2"]
    found = estimate(Sample(prepare("multinomial", codes, ["cell"], cells=cells)), bootstrap=0)
    shares = np.array([1, 1, 1, 2]) / 5
    assert (found.a, found.b) == pytest.approx((1.5, (5 * (1 / shares).sum() - 23) / 12))
    assert found.no_mle == pytest.approx(((1 - shares) ** 20).sum())


# -- misspecification -------------------------------------------------------------------------------------------------


def test_shares_add_up_and_name_the_culprit():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(3000, 3))
    table[:, 1] = rng.standard_t(5, size=3000)
    found = estimate(gaussian(table), order=1)
    assert sum(found.shares.values()) == pytest.approx(found.trace)
    assert min(found.shares.values()) >= 0
    assert max(found.shares, key=found.shares.get) == "x1^2"
    assert found.shares["x0*x2"] == pytest.approx(1, abs=0.2)
    assert found.eigenvalues.sum() == pytest.approx(found.trace)


def test_shares_do_not_depend_on_units():
    one, other = (estimate(gaussian(heavy() * unit), order=1).shares for unit in ([1, 1, 1], [1e-3, 1, 1e4]))
    assert list(other.values()) == pytest.approx(list(one.values()), rel=1e-7)


# -- streaming and design ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("design", ["plain", "weighted", "clustered"])
def test_blocks_of_any_length_give_the_same(method, design):
    rng = np.random.default_rng(0)
    chosen = {
        "plain": {},
        "weighted": {"weights": rng.uniform(0.5, 2, size=300)},
        "clustered": {"clusters": rng.integers(0, 40, size=300)},
    }[design]
    one, other = (estimate(gaussian(heavy(), block=block, **chosen), method=method, seed=1) for block in (7, 4096))
    assert numbers(other) == pytest.approx(numbers(one), rel=1e-9)
    np.testing.assert_allclose(other.replicates, one.replicates, rtol=1e-8)


def test_nothing_as_long_as_the_table_squared_is_held():
    table = heavy(20_000, 4)
    sample = gaussian(table)
    tracemalloc.start()
    estimate(sample, method="simple", bootstrap=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # rows by rows would be 3.2e9, rows by p^2 3e7 more than the buffers


@pytest.mark.parametrize("method", METHODS)
def test_a_frequency_is_a_repeated_row(method):
    table, counts = heavy(120), np.random.default_rng(0).integers(0, 4, size=120)
    weighted = estimate(gaussian(table, weights=counts, weights_kind="frequency"), method=method, bootstrap=0)
    repeated = estimate(gaussian(np.repeat(table, counts, axis=0)), method=method, bootstrap=0)
    assert numbers(weighted) == pytest.approx(numbers(repeated), rel=1e-8)
    assert weighted.rows == counts.sum()


@pytest.mark.parametrize("method", METHODS)
def test_clusters_of_one_row_and_equal_weights_change_nothing(method):
    plain = estimate(gaussian(heavy()), method=method, seed=1)
    for design in ({"clusters": np.arange(300)}, {"weights": np.full(300, 7.0)}):
        other = estimate(gaussian(heavy(), **design), method=method, seed=1)
        assert numbers(other) == pytest.approx(numbers(plain), rel=1e-9)
        np.testing.assert_allclose(other.replicates[:, 0], plain.replicates[:, 0], rtol=1e-8)


@pytest.mark.parametrize("method", ["sandwich", "simple"])
def test_rows_said_twice_are_worth_half(method):
    """Each row in a cluster with its copy: V doubles, K quadruples, so R(2n) of the copies is R(n) of the rows."""
    table = heavy()
    once = estimate(gaussian(table), method=method, bootstrap=0)
    twice = estimate(
        gaussian(np.repeat(table, 2, axis=0), clusters=np.repeat(np.arange(300), 2)), method=method, bootstrap=0
    )
    assert (twice.a, twice.b) == pytest.approx((2 * once.a, 4 * once.b), rel=1e-9)
    assert (twice.rows, twice.units) == (600, 300)


def test_uneven_weights_cost_rows():
    weights = np.tile([0.2, 1.8], 150)
    sample = gaussian(np.random.default_rng(0).normal(size=(300, 3)), weights=weights)
    assert sample.effective_rows == pytest.approx(300 / np.square(weights).mean())
    found = estimate(sample, order=1)
    assert found.a / 300 == pytest.approx(found.a_simple / sample.effective_rows, rel=0.25)


def test_designs_that_do_not_fit():
    for design, said in (
        ({"weights": np.ones(3)}, "300, one per row"),
        ({"weights": np.full(300, -1.0)}, r"row 1, weights: the weight is -1\.0"),
        ({"weights": np.eye(1, 300)[0]}, "fewer than two rows"),
        ({"clusters": np.zeros(300)}, "all rows are in one cluster"),
        ({"clusters": np.zeros(3)}, "300, one per row"),
    ):
        with pytest.raises(InputError, match=said):
            gaussian(heavy(), **design)


# -- compression ------------------------------------------------------------------------------------------------------


def test_each_step_of_the_simple_path_is_the_smaller_family():
    xi = np.random.default_rng(3).gamma(2.0, size=(500, 5)) @ np.random.default_rng(4).normal(size=(5, 5))
    sample = raw(xi)
    path = compression_path(estimate(sample, method="simple", bootstrap=0), 0.02)
    left = list(range(5))
    assert [step.parameters for step in path] == [5, 4, 3, 2, 1]
    for step in path:
        if step.removed:
            left.remove(int(step.removed[1:]))
        assert (step.a, step.b) == pytest.approx(risk_coefficients(xi[:, left]), rel=1e-9)
        assert step.risk == pytest.approx(step.a / 500 + step.b / 500**2)
        assert step.required == pytest.approx((step.a + np.sqrt(step.a**2 + 0.08 * step.b)) / 0.04)
        assert step.lost is None


@pytest.mark.parametrize(("family", "table"), [("gaussian", heavy()), ("ising", signs())])
@pytest.mark.parametrize("method", METHODS)
def test_a_path_begins_at_the_whole_family_and_keeps_what_it_must(family, table, method):
    found = estimate(Sample(prepare(family, table, list("abc"))), method=method, bootstrap=0)
    path = compression_path(found, 0.02)
    assert (path[0].a, path[0].b) == pytest.approx((found.a, found.b), rel=1e-8)
    assert {step.removed for step in path[1:]} == {"a*b", "a*c", "b*c"}
    assert all(one.a > other.a for one, other in zip(path, path[1:], strict=False))


def test_a_step_of_the_sandwich_path_has_the_cumulants_of_the_larger_family():
    table = signs()
    sample = Sample(prepare("ising", table, list("abc")))
    found = estimate(sample, bootstrap=0)
    step = compression_path(found, 0.02)[1]
    left = [place for place, name in enumerate(found.names) if name != step.removed]
    states = sample.prepared.model.statistics(np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T)
    law = np.exp(states @ found.theta)
    _, second, third, fourth = oracles.cumulant_tensors(states[:, left], law / law.sum())
    xi = sample.prepared.model.statistics(table)[:, left]
    _, covariance, skewness, _ = oracles.cumulant_tensors(xi, np.full(len(xi), 1 / len(xi)))
    assert (step.a, step.b) == pytest.approx(
        oracles.risk_by_duality(second, third, fourth, covariance, skewness), rel=1e-8
    )


def test_what_is_lost_is_the_likelihood_of_the_smaller_model():
    """Spins a, b depend on one another, c does not: its interactions go first, at a price the likelihood confirms."""
    table = signs(2000)
    found = estimate(Sample(prepare("ising", table, list("abc"))), bootstrap=0)
    path = compression_path(found, 0.02)
    assert path[-1].removed == "a*b"
    pairs = np.unique(table[:, :2], axis=0, return_counts=True)[1] / 2000
    margins = np.outer([pairs[0] + pairs[1], pairs[2] + pairs[3]], [pairs[0] + pairs[2], pairs[1] + pairs[3]]).ravel()
    information = (pairs * np.log(pairs / margins)).sum()
    assert path[-1].lost - path[-2].lost == pytest.approx(information, rel=0.3)
    assert min(path, key=lambda step: step.total).removed != "a*b"


def test_a_family_of_independent_columns_has_nothing_to_leave_out():
    counts = np.random.default_rng(0).poisson(3, size=(100, 2)).astype(float)
    found = estimate(Sample(prepare("poisson", counts, ["x", "y"])), bootstrap=0)
    assert len(compression_path(found, 0.02)) == 1


# -- what is dropped, warned of, refused ------------------------------------------------------------------------------


def test_a_constant_column_is_dropped_by_name():
    table = np.column_stack([heavy(50, 2), np.full(50, 3.0)])
    prepared = prepare("gaussian", table, ["x", "y", "zero point"])
    assert prepared.columns == ("x", "y")
    assert prepared.notes == ("column 'zero point' is constant: carries no parameter, dropped",)


def test_dependent_columns_are_dropped_by_name():
    table = heavy(60, 3)
    doubled = np.column_stack([table, table[:, 0] + 2 * table[:, 2]])
    prepared = prepare("gaussian", doubled, ["w", "x", "y", "sum"])
    assert prepared.notes == ("p reduced from 14 to 9: 'sum' depends on the other columns",)
    for method in METHODS:
        found, alone = (estimate(sample, method=method, bootstrap=0) for sample in (Sample(prepared), gaussian(table)))
        assert numbers(found) == pytest.approx(numbers(alone), rel=1e-7)


def test_dependent_statistics_are_dropped_by_name():
    xi = np.random.default_rng(0).normal(size=(60, 3))
    found = estimate(raw(np.column_stack([xi, xi[:, 1] - xi[:, 0]])), method="simple", bootstrap=0)
    assert (found.columns, found.parameters, found.dependent) == (4, 3, ("t3",))
    assert "p reduced from 4 to 3: linear functions of the other statistics: 't3'" in found.warnings
    assert (found.a, found.b) == pytest.approx(risk_coefficients(xi), rel=1e-8)


def test_the_square_of_a_sign_is_no_statistic_of_its_own():
    table = np.column_stack([heavy(80, 1), np.random.default_rng(0).choice([0.0, 1.0], size=80)])
    simple = estimate(gaussian(table), method="simple", bootstrap=0)
    assert (simple.parameters, simple.dependent) == (4, ("x1^2",))
    sandwich = estimate(gaussian(table), bootstrap=0)
    assert sandwich.parameters == 5
    assert "in these data these statistics are linear functions of the others: 'x1^2'" in sandwich.warnings


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_as_many_columns_go_as_the_rank_lacks(seed, extra):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(40, 4))
    mixed = np.column_stack([rows, rows @ rng.normal(size=(4, extra))])[:, rng.permutation(4 + extra)]
    covariance = np.cov(mixed.T)
    dropped = dependent_columns(covariance, 1e-9)
    kept = [place for place in range(4 + extra) if place not in dropped]
    assert len(dropped) == extra
    assert np.linalg.matrix_rank(covariance[np.ix_(kept, kept)]) == 4


@pytest.mark.parametrize("method", ["simple", "sandwich"])
def test_too_few_rows(method):
    with pytest.raises(InputError, match="n=9, p=9: covariance is singular; reduce p or use first order"):
        estimate(gaussian(heavy(9, 3)), method=method)
    assert estimate(gaussian(heavy(9, 3)), method=method, order=1).parameters == 9


def test_fewer_rows_than_columns_have_no_normal_fit():
    prepared = prepare("gaussian", heavy(40, 5), list("abcde"))
    short = Sample(Prepared("gaussian", prepared.model, prepared.columns, prepared.table[:4], 20))
    with pytest.raises(InputError, match="the MLE does not exist: the covariance of the columns is singular"):
        estimate(short, order=1)


def test_too_many_statistics_for_the_second_order():
    rng = np.random.default_rng(0)
    sample = gaussian(rng.normal(size=(400, 24)))
    with pytest.raises(InputError, match=r"p=324.*at most 300"):
        estimate(sample)
    assert estimate(sample, method="closed_form", bootstrap=0).b > 0
    assert estimate(sample, order=1, bootstrap=10).interval("a")[0] > 0


def test_more_squared_parameters_than_rows():
    found = estimate(gaussian(heavy(60, 3)), method="simple", bootstrap=0)
    assert any("p^2 = 81 exceeds n = 60: the second-order term is mostly noise" in said for said in found.warnings)
    found = estimate(gaussian(heavy(300, 3)), method="simple", bootstrap=0)
    assert not any("mostly noise" in said for said in found.warnings)


def test_a_sample_too_small_for_the_expansion_is_told():
    found = estimate(gaussian(np.random.default_rng(0).normal(size=(8, 1))), method="closed_form", bootstrap=0)
    assert any("exceeds a/2" in said for said in found.warnings)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_cell_that_is_no_number(bad):
    table = heavy(20, 2)
    table[4, 1] = bad
    with pytest.raises(InputError, match=r"row 5, column 'y': the value is (nan|inf); remove or impute"):
        prepare("gaussian", table, ["x", "y"])


def test_an_empty_cell():
    with pytest.raises(InputError, match="cell 'green': the cell is empty: the MLE does not exist; merge cells"):
        prepare("multinomial", np.array([[0.0], [2.0], [0.0]]), ["c"], cells=["red", "green", "blue"])
    codes, cells = cross({"a": [1, 1, 2], "b": ["x", "y", "x"]})
    with pytest.raises(InputError, match="cell 'a=2, b=y': the cell is empty"):
        prepare("multinomial", codes, ["c"], cells=cells)
    table = np.array([[1.0, 1], [-1, 1], [1, -1], [1, 1]])
    with pytest.raises(InputError, match=r"a = -1, b = -1: the cell is empty: the MLE does not exist; merge cells"):
        estimate(Sample(prepare("ising", table, ["a", "b"])), order=1)


@pytest.mark.parametrize(
    ("family", "table", "said"),
    [
        ("poisson", [[1.0], [2.5]], r"row 2, column 'x': the value is 2\.5; expected a count"),
        ("poisson", [[1.0], [-1.0]], "row 2, column 'x': the value is -1; expected a count"),
        ("exponential", [[1.0], [-1.0]], "row 2, column 'x': the value is -1; expected a number >= 0"),
        ("gaussian", [[1.0], [1.0]], "every column is constant"),
        ("gaussian", [[1.0]], "at least 2 rows"),
        ("gaussain", [[1.0], [2.0]], "the family is 'gaussain'; expected one of gaussian"),
        ("multinomial", [[0.0], [0.0]], "there is one cell only"),
    ],
)
def test_values_that_a_family_does_not_have(family, table, said):
    with pytest.raises(InputError, match=said):
        prepare(family, np.array(table), ["x"], cells=["A"])


def test_columns_with_many_values_become_signs_at_their_median():
    table = np.column_stack([np.arange(10.0), np.array([5.0] * 7 + [1, 2, 3]), np.tile([0.0, 1.0], 5)])
    prepared = prepare("ising", table, ["even", "top-heavy", "two"])
    assert prepared.table.sum(axis=0).tolist() == [0, 4, 0]
    assert "'even' 4.5, 'top-heavy' 3" in prepared.notes[0]


@pytest.mark.parametrize(("option", "value"), [("method", "guess"), ("order", 3), ("draws", 5)])
def test_options_out_of_range(option, value):
    with pytest.raises(InputError, match=option):
        estimate(gaussian(heavy()), **{option: value})


# -- families that a user writes --------------------------------------------------------------------------------------


@pytest.fixture
def module(monkeypatch):
    def put(**functions):
        made = ModuleType("written_by_a_user")
        vars(made).update(functions)
        monkeypatch.setitem(__import__("sys").modules, "written_by_a_user", made)
        return "written_by_a_user"

    return put


def test_a_users_statistics_need_no_normaliser(module):
    def moments(table):
        return np.hstack([table, table**2])

    name = module(moments=moments)
    table = heavy(200, 1)
    found = estimate(Sample(prepare(f"{name}:moments", table, ["x"])), method="simple", bootstrap=0)
    same = estimate(gaussian(table), method="simple", bootstrap=0)
    assert (found.a, found.b) == pytest.approx((same.a, same.b), rel=1e-9)
    assert found.names == ("moments[0]", "moments[1]")
    assert (found.log_likelihood, found.aic, found.no_mle) == (None, None, None)
    moments.names = ["mean", "square"]
    assert prepare(f"{name}:moments", table, ["x"]).names == ("mean", "square")


def test_a_users_function_that_cannot_be_used(module):
    def broken(table):
        raise ZeroDivisionError("by nothing")

    def outside(table):
        return table

    outside.support = "integer"

    def misnamed(table):
        return table

    misnamed.names = ["one", "two"]

    def positive(table):
        return np.log(table)

    positive.support = "positive"
    name = module(broken=broken, flat=lambda table: table[:, 0], outside=outside, misnamed=misnamed, positive=positive)
    for reference, said in (
        ("no_such_module_anywhere:f", "the module cannot be imported"),
        (f"{name}:absent", "has no function 'absent'"),
        (f"{name}:broken", "it fails on the table: by nothing"),
        (f"{name}:flat", r"it returned an array of shape \[30\]"),
        (f"{name}:outside", "its support is 'integer'"),
        (f"{name}:misnamed", "it names 2 statistics"),
        (f"{name}:positive", "do not lie in its support 'positive'"),
    ):
        with pytest.raises(InputError, match=said):
            prepare(reference, heavy(30, 1), ["x"])


# -- heavy tails ------------------------------------------------------------------------------------------------------


def _told_of_tails(table):
    found = estimate(gaussian(table), order=1, bootstrap=0)
    return [text for text in found.warnings if "one row carries" in text]


def test_a_row_that_carries_too_much_is_told():
    """A logarithmic normal among normals: n* is far too low then, and no interval shows it."""
    rng = np.random.default_rng(0)
    told = []
    for _ in range(20):
        table = rng.normal(size=(400, 5))
        assert not _told_of_tails(table)
        table[:, 3] = np.exp(1.5 * table[:, 3])
        told += _told_of_tails(table)
    assert len(told) >= 15
    assert all(re.search(r"one row carries \d+% .*, and x3\^2 departs most", text) for text in told)


def test_a_saturated_model_cannot_be_wrong():
    rng = np.random.default_rng(0)
    answer = sanov.pn(pl.DataFrame({"died": rng.integers(0, 2, 300)}), family="ising")
    assert "no sign of misspecification: tr(G^-1 V)/p = 1, 1 if right" in str(answer)
