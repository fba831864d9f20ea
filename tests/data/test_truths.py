"""Simulated risks against closed forms, and simulators against the plain way of drawing rows and fitting."""

import numpy as np
import pytest
from scipy import optimize, special

from sanov.data.truths import TRUTHS, population_truth, risk, sample_size

EXACT = ["exponential", "gamma 0.5", "gamma 2", "normal 1", "normal 2", "normal 5"]


@pytest.mark.parametrize("name", EXACT)
def test_simulated_risk_is_the_exact_one(name):
    truth = TRUTHS[name]()
    for rows in (40, 200):
        found = risk(truth, rows, 0.005, np.random.default_rng(1))
        assert abs(found.mean - truth.exact(float(rows))) < 4 * found.error


@pytest.mark.parametrize("name", TRUTHS)
def test_first_two_parts_have_the_mean_that_is_claimed(name):
    """The control variate's mean is known exactly; where estimates can be missing, up to their probability."""
    truth = TRUTHS[name]()
    rows = 150
    divergences, parts = truth.simulate(np.random.default_rng(2), rows, 20_000)
    assert len(divergences) > 0.999 * 20_000
    known = truth.first / rows + truth.cubic / rows**2
    assert abs(parts.mean() - known) < 4 * parts.std() / np.sqrt(len(parts))
    assert divergences.min() > -1e-12


@pytest.mark.parametrize("name", TRUTHS)
def test_what_is_left_of_the_divergence_is_of_the_fourth_order(name):
    """Its spread falls like n^-2: by 16 from n to 4n, give or take a half."""
    truth = TRUTHS[name]()
    spreads = []
    for rows in (200, 800):
        divergences, parts = truth.simulate(np.random.default_rng(3), rows, 4_000)
        spreads.append((divergences - parts).std())
    assert 8 < spreads[0] / spreads[1] < 40


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [("ising", 3.0, 18.7658), ("ising tilted", 3.14512, 26.3361), ("independence", 1.5, 2.6413)],
)
def test_coefficients_of_spins(name, first, second):
    """Computed once by another program from the same tensors."""
    truth = TRUTHS[name]()
    assert truth.first == pytest.approx(first, abs=5e-6)
    assert truth.second == pytest.approx(second, abs=5e-5)


@pytest.mark.parametrize("name", ["poisson", "multinomial", "laplace", "ising", "ising tilted", "independence"])
def test_second_coefficient_is_what_simulation_leaves(name):
    """n^2 (R - a/n) at two n, extrapolated to the infinite n."""
    truth = TRUTHS[name]()
    rng = np.random.default_rng(8)
    sizes, found = (150, 600), []
    for rows in sizes:
        each = risk(truth, rows, 0.001, rng)
        found.append(((each.mean - truth.first / rows) * rows**2, each.error * rows**2))
    slope = (found[0][0] - found[1][0]) / (1 / sizes[0] - 1 / sizes[1])
    limit = found[1][0] - slope / sizes[1]
    error = np.hypot(found[1][1] * (1 + 1 / 3), found[0][1] / 3)
    assert abs(limit - truth.second) < 4 * error


def test_simulation_equals_drawing_rows_and_fitting():
    """Rows from `sample`, fitted one at a time with a general optimiser, have the simulated mean divergence."""
    truth = TRUTHS["ising tilted"]()
    rng, rows = np.random.default_rng(3), 100

    def statistics(x):
        return np.column_stack([x, x[:, [0, 0, 1]] * x[:, [1, 2, 2]]])

    states = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T
    design = statistics(states)

    def fit(means):
        def loss(theta):
            logits = design @ theta
            return special.logsumexp(logits) - theta @ means, special.softmax(logits) @ design - means

        return optimize.minimize(loss, np.zeros(6), jac=True, method="BFGS", options={"gtol": 1e-7}).x

    target = statistics(truth.sample(rng, 2_000_000)).mean(axis=0)
    centre = fit(target)
    found = []
    for _ in range(300):
        theta = fit(statistics(truth.sample(rng, rows)).mean(axis=0))
        gap = special.logsumexp(design @ theta) - special.logsumexp(design @ centre)
        found.append(gap - (theta - centre) @ target)
    simulated = risk(truth, rows, 0.005, rng)
    assert abs(np.mean(found) - simulated.mean) < 4 * np.std(found) / np.sqrt(len(found))


def test_population_is_its_own_truth():
    """Samples from a table, fitted by mean and covariance, have the simulated mean divergence."""
    rng = np.random.default_rng(4)
    table = np.exp(rng.standard_normal((80, 2)) @ [[1.0, 0.4], [0.0, 0.7]])
    truth = population_truth("table", table)
    mean, covariance = table.mean(axis=0), np.cov(table.T, ddof=0)
    rows, found = 300, []
    for _ in range(1500):
        x = truth.sample(rng, rows)
        inverse = np.linalg.inv(np.cov(x.T, ddof=0))
        gap = x.mean(axis=0) - mean
        logs = -np.linalg.slogdet(inverse @ covariance)[1]
        found.append((np.trace(inverse @ covariance) + gap @ inverse @ gap - 2 + logs) / 2)
    simulated = risk(truth, rows, 0.005, rng)
    assert abs(np.mean(found) - simulated.mean) < 4 * np.std(found) / np.sqrt(len(found))


def test_first_coefficient_of_a_population_is_mardias():
    """2a = d + (b2 - d) / 2 with b2 the multivariate kurtosis (mardia1970measures)."""
    table = np.random.default_rng(5).exponential(size=(200, 3)) ** 1.5
    centred = table - table.mean(axis=0)
    distances = np.einsum("ri,ij,rj->r", centred, np.linalg.inv(np.cov(table.T, ddof=0)), centred)
    kurtosis = (distances**2).mean()
    assert 2 * population_truth("t", table).first == pytest.approx(3 + (kurtosis - 3) / 2, rel=1e-9)


def test_sample_size_reaches_delta():
    for name in ("normal 2", "gamma 0.5"):
        truth = TRUTHS[name]()
        assert truth.exact(sample_size(truth, 0.02, 0.01, np.random.default_rng(0))) == pytest.approx(0.02, rel=1e-9)
    truth = TRUTHS["multinomial"]()
    rows = sample_size(truth, 0.02, 0.002, np.random.default_rng(6))
    found = risk(truth, round(rows), 0.002, np.random.default_rng(7))
    assert abs(found.mean - 0.02) < 4 * np.hypot(found.error, 0.002 * 0.02) + 0.02 / rows
