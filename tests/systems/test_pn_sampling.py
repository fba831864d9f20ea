"""Members found by Markov chains, against families whose members are known otherwise."""

import numpy as np
import pytest
from scipy import integrate, optimize, special

import oracles
from sanov.core.errors import InputError
from sanov.systems.pn.coefficients import estimate
from sanov.systems.pn.drawn import Ising, UserFamily
from sanov.systems.pn.members import Exponential
from sanov.systems.pn.sample import Sample
from sanov.systems.pn.sampling import Drawing, Flips, Walk, draw_member, pseudo_likelihood, score_matching
from sanov.systems.pn.statistics import Prepared, prepare


def fitted(model, table, **options):
    prepared = Prepared("", model, ("x",) * table.shape[1], table, len(model.names))
    return estimate(Sample(prepared), **{"bootstrap": 0, "seed": 5, **options})


def agree(drawn, closed):
    """Within four Monte Carlo standard errors, which must mean something."""
    assert 0 < drawn.a_error < 0.05 * drawn.a
    assert abs(drawn.a - closed.a) < 4 * drawn.a_error
    assert abs(drawn.b - closed.b) < 4 * drawn.b_error


def pairs(table):
    i, j = np.triu_indices(table.shape[1], 1)
    return np.hstack([table, table[:, i] * table[:, j]])


# -- members ----------------------------------------------------------------------------------------------------------


def test_a_normal_known_only_by_its_statistics():
    table = np.random.default_rng(0).standard_t(12, size=(300, 1)) * 1.3 + 0.4
    drawn = fitted(UserFamily(("x", "x^2"), lambda rows: np.hstack([rows, rows**2])), table, draws=60_000)
    agree(drawn, estimate(Sample(prepare("gaussian", table, ["x"])), bootstrap=0))
    precision = 1 / table.var()
    np.testing.assert_allclose(drawn.theta, [precision * table.mean(), -precision / 2], rtol=0.05)


def test_positive_columns_walk_on_their_logarithms():
    table = np.random.default_rng(1).gamma(2.0, size=(300, 1))
    drawn = fitted(UserFamily(("x",), lambda rows: rows, support="positive"), table, draws=60_000)
    agree(drawn, fitted(Exponential(("x",)), table))
    assert drawn.theta[0] == pytest.approx(-1 / table.mean(), rel=0.02)


def test_a_base_measure_is_part_of_the_target():
    """A standard normal base with the statistic x: a normal of variance one, whose G is 1 and b is 0."""
    table = np.random.default_rng(2).normal(0.3, 1.5, size=(400, 1))
    family = UserFamily(("x",), lambda rows: rows, lambda rows: -np.square(rows).sum(axis=1) / 2)
    drawn = fitted(family, table, draws=60_000)
    assert drawn.theta[0] == pytest.approx(table.mean(), abs=0.02)
    assert abs(drawn.a - table.var() / 2) < 4 * drawn.a_error
    assert abs(drawn.b) < 4 * drawn.b_error


def test_spins_and_bits_drawn_are_the_spins_enumerated(monkeypatch):
    rng = np.random.default_rng(3)
    table = rng.choice([-1.0, 1.0], size=(400, 4))
    table[:, 1] = np.where(rng.random(400) < 0.5, table[:, 0], table[:, 1])
    names = tuple("abcd")
    closed = fitted(Ising(names), table)
    bits = fitted(UserFamily(closed.names, pairs, support="binary"), (table + 1) / 2, draws=20_000)
    agree(bits, closed)
    monkeypatch.setattr("sanov.systems.pn.drawn.ENUMERATED", 2)
    agree(fitted(Ising(names), table, draws=20_000), closed)
    alone = fitted(Ising(names, interactions=False), table, draws=20_000, order=1)
    assert alone.a == pytest.approx(2, abs=4 * alone.a_error)


def test_a_density_that_nobody_can_normalise_by_hand():
    """exp(t1 x + t2 x^2 + t4 x^4), two humps, against quadrature."""
    rng = np.random.default_rng(4)
    table = (rng.choice([-1.2, 1.2], size=600) + rng.normal(size=600) * 0.6)[:, None]
    statistics = lambda rows: np.hstack([rows, rows**2, rows**4])  # noqa: E731
    drawn = fitted(UserFamily(("x", "x^2", "x^4"), statistics), table, draws=60_000)
    grid = np.linspace(-5, 5, 4001)[:, None]

    def law(theta):
        energy = statistics(grid) @ theta
        return np.exp(energy - special.logsumexp(energy))

    mean = statistics(table).mean(axis=0)
    theta = optimize.root(lambda t: law(t) @ statistics(grid) - mean, drawn.theta, tol=1e-12).x
    _, second, third, fourth = oracles.cumulant_tensors(statistics(grid), law(theta))
    _, covariance, skewness, _ = oracles.cumulant_tensors(statistics(table), np.full(600, 1 / 600))
    a, b = oracles.risk_by_duality(second, third, fourth, covariance, skewness)
    assert abs(drawn.a - a) < 4 * drawn.a_error
    assert abs(drawn.b - b) < 4 * drawn.b_error


def test_the_standard_error_is_the_spread_over_seeds():
    table = np.random.default_rng(5).standard_t(12, size=(200, 1))
    family = UserFamily(("x", "x^2"), lambda rows: np.hstack([rows, rows**2]))
    runs = [fitted(family, table, draws=2000, seed=seed) for seed in range(16)]
    for value, error in (("a", "a_error"), ("b", "b_error")):
        spread = np.std([getattr(run, value) for run in runs], ddof=1)
        said = np.sqrt(np.mean([getattr(run, error) ** 2 for run in runs]))
        assert 0.5 < spread / said < 1.8  # a standard deviation of 16 has one of 18 %


# -- their parts ------------------------------------------------------------------------------------------------------


def test_weighted_draws_have_the_wanted_mean():
    table = np.random.default_rng(6).normal(size=(200, 2))
    statistics = lambda rows: np.hstack([rows, rows**2])  # noqa: E731
    sampler = Walk(lambda rows, theta: statistics(rows) @ theta, np.eye(2))
    mean = statistics(table).mean(axis=0)
    draws = draw_member(statistics, mean, sampler, np.array([0.0, 0, -1, -1]), Drawing(table, 4000, 0))
    np.testing.assert_allclose(draws.weights @ statistics(draws.table), mean, atol=1e-8)
    assert draws.weights.sum() == pytest.approx(1)
    assert len(draws.table) % draws.chains == 0
    assert draws.mixing < 1.1


def test_flips_leave_the_target_alone():
    """Two dependent bits: the shares of the four states after many sweeps."""
    theta = np.array([0.4, -0.3, 1.1])

    def gain(states, column, theta):
        other = states.copy()
        other[:, column] = 1 - states[:, column]
        return (pairs(other) - pairs(states)) @ theta

    states = Flips(gain, (0.0, 1.0)).move(np.zeros((40_000, 2)), theta, 20, np.random.default_rng(7))
    grid = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    law = special.softmax(pairs(grid) @ theta)
    shares = np.bincount((states @ [2, 1]).astype(int), minlength=4) / 40_000
    np.testing.assert_allclose(shares, law, atol=4 * 0.5 / np.sqrt(40_000))


def test_score_matching_is_exact_for_the_normal():
    table = np.random.default_rng(8).normal(2, 3, size=(100, 1))
    statistics = lambda rows: np.hstack([rows, rows**2])  # noqa: E731
    theta = score_matching(statistics, lambda rows: np.zeros(len(rows)), table, np.array([3.0]))
    np.testing.assert_allclose(theta, [table.mean() / table.var(), -1 / (2 * table.var())], rtol=1e-5)


def test_pseudo_likelihood_is_exact_where_columns_do_not_depend_on_one_another():
    table = (np.random.default_rng(9).random((200, 2)) < [0.3, 0.8]).astype(float)

    def gain(states, column, theta):
        return (1 - 2 * states[:, column]) * theta[column]

    def differences(states, column):
        change = np.zeros_like(states)
        change[:, column] = 2 * states[:, column] - 1
        return change

    np.testing.assert_allclose(
        pseudo_likelihood(gain, differences, table, 2), special.logit(table.mean(axis=0)), atol=1e-4
    )


def test_the_walk_draws_from_its_target():
    sampler = Walk(lambda rows, theta: -(np.abs(rows[:, 0]) ** 3), np.eye(1))
    states = sampler.move(np.zeros((20_000, 1)), np.zeros(1), 60, np.random.default_rng(10))
    second = integrate.quad(lambda x: x**2 * np.exp(-(x**3)), 0, 9)[0] / special.gamma(4 / 3)
    assert np.square(states).mean() == pytest.approx(second, abs=4 * np.square(states).std() / np.sqrt(20_000))


# -- what cannot be drawn ---------------------------------------------------------------------------------------------


def test_a_density_without_a_normaliser_is_refused():
    table = np.random.default_rng(0).normal(size=(300, 1))
    with pytest.raises(InputError, match=r"the Markov chains do not .*method=simple, which needs none"):
        fitted(UserFamily(("x",), lambda rows: rows), table)
    assert fitted(UserFamily(("x",), lambda rows: rows), table, method="simple").a == 0.5


def test_fewer_than_ten_draws_a_row_are_refused():
    table = np.random.default_rng(0).normal(size=(300, 1))
    family = UserFamily(("x", "x^2"), lambda rows: np.hstack([rows, rows**2]))
    with pytest.raises(InputError, match="draws: the value is 2999; expected at least 10 per row, 3000"):
        fitted(family, table, draws=2999)


def test_large_errors_of_the_draws_are_told():
    table = np.random.default_rng(0).standard_t(5, size=(60, 1))
    found = fitted(UserFamily(("x", "x^2"), lambda rows: np.hstack([rows, rows**2])), table, draws=600)
    assert any("the draws leave standard errors" in said for said in found.warnings)
