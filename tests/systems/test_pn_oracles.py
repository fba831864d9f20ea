"""Families whose risk is known: exactly, by simulation, and on the red wines."""

import functools
import itertools

import numpy as np
import polars as pl
import pytest
from scipy import special, stats

from sanov.core.errors import InputError
from sanov.cubic_forms import symmetric
from sanov.families import coin_toss_equivalent, expand, kl_threshold, required_sample_size, risk, well_specified
from sanov.systems.pn import exact
from sanov.systems.pn.coefficients import estimate
from sanov.systems.pn.cumulants import StateCumulants
from sanov.systems.pn.drawn import Ising
from sanov.systems.pn.members import Exponential, Multinomial, Normal, Poisson
from sanov.systems.pn.sample import Sample
from sanov.systems.pn.sampling import Drawing
from sanov.systems.pn.statistics import Prepared, prepare
from systems.pn_truths import SPINS, TRUTHS, truth

NOTHING = Drawing(np.zeros((1, 1)), 1, 0)
truth = functools.cache(truth)


def of_member(model, mean):
    """a, b and the invariants of the member with this mean, by its cumulants."""
    cumulants = model.project(np.asarray(mean, float), NOTHING).cumulants
    values, vectors = np.linalg.eigh(cumulants.information())
    white = cumulants.transformed(vectors / np.sqrt(values))
    one = np.eye(len(mean))
    third, k4 = white.third(), float(np.trace(white.fourth(one)))
    t1, t2 = float((third**2).sum()), float((np.einsum("iik->k", third) ** 2).sum())
    return expand(third, k4, one, third), (t1, t2, k4)


def moments_of(model, states, probabilities):
    """Coefficients of a distribution on states: a sample in which each has its share."""
    prepared = Prepared("", model, ("x",), states, len(model.names))
    return estimate(Sample(prepared, weights=probabilities * 1e6, weights_kind="frequency"), bootstrap=0)


# -- exponential, and Gamma truths ------------------------------------------------------------------------------------


def test_exponential():
    found, invariants = of_member(Exponential(("x",)), [1.7])
    assert invariants == pytest.approx((4, 4, 6), rel=1e-10)
    assert (found.a, found.b) == pytest.approx((1 / 2, 11 / 12), rel=1e-10)
    assert exact.exponential_risk(10) == pytest.approx(0.0602786, abs=5e-8)
    assert risk(found.a, found.b, 10) == pytest.approx(0.0591667, abs=5e-8)
    assert exact.exponential_risk(100) == pytest.approx(0.00509268, abs=5e-9)
    assert risk(found.a, found.b, 100) == pytest.approx(0.00509167, abs=5e-9)
    assert 1000**2 * (exact.exponential_risk(1000) - 0.5 / 1000) == pytest.approx(0.91767, abs=1e-5)


def test_the_exact_exponential_risk_is_the_mean_of_the_divergence():
    """D = log(m^/m) + m/m^ - 1, with a Gamma mean."""
    n = 10
    grid = np.linspace(0.5, 99.5, 100) / 100
    means = stats.gamma.ppf(special.erfc(-stats.norm.ppf(grid) / np.sqrt(2)) / 2, n) / n  # a quantile per stratum
    divergence = np.log(means) + 1 / means - 1
    assert divergence.mean() == pytest.approx(exact.exponential_risk(n), rel=0.03)


@pytest.mark.parametrize("shape", [0.5, 2.0])
def test_gamma_truth_under_the_exponential_model(shape):
    """Exactly the exponential's risk at n times shape rows; any scale."""
    nodes, weights = special.roots_genlaguerre(8, shape - 1)
    found = moments_of(Exponential(("x",)), 3.7 * nodes[:, None], weights / weights.sum())
    assert (found.a, found.b) == pytest.approx((1 / (2 * shape), 11 / (12 * shape**2)), rel=1e-10)
    assert exact.exponential_risk(100, shape) == exact.exponential_risk(int(100 * shape))


# -- counts -----------------------------------------------------------------------------------------------------------


def test_poisson():
    found, invariants = of_member(Poisson(("x",)), [3.0])
    assert invariants == pytest.approx((1 / 3,) * 3, rel=1e-10)
    assert (found.a, found.b) == pytest.approx((1 / 2, 5 / 36), rel=1e-10)
    assert exact.poisson_risk(100, 3.0) == pytest.approx(0.0050139730, abs=5e-11)
    assert risk(found.a, found.b, 100) == pytest.approx(0.0050138889, abs=5e-11)


def test_overdispersed_truth_under_the_poisson_model():
    counts = np.arange(400.0)
    law = stats.nbinom.pmf(counts, 2, 0.4)
    found = moments_of(Poisson(("x",)), counts[:, None], law)
    assert found.a == pytest.approx(stats.nbinom.var(2, 0.4) / (2 * stats.nbinom.mean(2, 0.4)), rel=1e-9)


def test_one_coin():
    found, invariants = of_member(Multinomial(("heads", "tails")), [0.5])
    assert invariants == pytest.approx((0, 0, -2), abs=1e-10)
    assert (found.a, found.b) == pytest.approx((0.5, 0.75), rel=1e-10)
    assert exact.bernoulli_risk(100, 0.5) == pytest.approx(0.00507709, abs=5e-9)
    assert risk(found.a, found.b, 100) == pytest.approx(0.00507500, abs=5e-9)
    assert coin_toss_equivalent(risk(found.a, found.b, 250)) == pytest.approx(250)
    spin, _ = of_member(Ising(("s",)), [0.4])  # the same coin, coded otherwise
    assert spin.b == pytest.approx(of_member(Multinomial(("heads", "tails")), [0.7])[0].b, rel=1e-10)
    assert spin.b == pytest.approx(of_member(Multinomial(("heads", "tails")), [0.3])[0].b, rel=1e-10)


def test_multinomial():
    cells = np.array([0.2, 0.3, 0.5])
    found, invariants = of_member(Multinomial(("A", "B", "C")), cells[:2])
    assert found.b == pytest.approx((5 * (1 / cells).sum() - 17) / 12, rel=1e-10)
    assert found.b == pytest.approx(2.88889, abs=5e-6)
    assert invariants == pytest.approx((3.3333, 1.3333, -2.6667), abs=5e-5)
    assert invariants == pytest.approx(exact.multinomial_invariants(cells), rel=1e-10)
    for n, value in ((400, 2.9369), (120, 3.0608)):
        assert n**2 * (exact.multinomial_risk(n, cells) - 1 / n) == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize(
    ("model", "mean", "invariants"),
    [
        (Poisson(("x", "y")), [3.0, 0.7], exact.poisson_invariants(np.array([3.0, 0.7]))),
        (Exponential(("x", "y", "z")), [3.0, 0.7, 9.0], exact.exponential_invariants(3)),
        (Multinomial(tuple("ABCD")), [0.1, 0.2, 0.3], exact.multinomial_invariants(np.array([0.1, 0.2, 0.3, 0.4]))),
    ],
)
def test_invariants_by_formula_are_those_of_the_cumulants(model, mean, invariants):
    assert of_member(model, mean)[1] == pytest.approx(invariants, rel=1e-10)


# -- normal -----------------------------------------------------------------------------------------------------------


def normal_mean(d, rng):
    """First and second moments of some normal distribution."""
    centre, root = rng.normal(size=d), rng.normal(size=(d, d)) + 2 * np.eye(d)
    i, j = np.triu_indices(d)
    return np.concatenate([centre, (root @ root.T + np.outer(centre, centre))[i, j]])


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_normal_invariants_are_those_of_every_member(d):
    model = Normal(tuple("abcd"[:d]))
    found, invariants = of_member(model, normal_mean(d, np.random.default_rng(d)))
    assert invariants == pytest.approx(exact.normal_invariants(d), rel=1e-9)
    by_hand = (d * (d + 2) * (d + 3) - d * (d + 1) * (2 * d + 1) / 12 - d * (d + 1) / 2 - d / 3) / 2
    assert (found.a, found.b) == pytest.approx((d * (d + 3) / 4, by_hand), rel=1e-9)


@pytest.mark.parametrize(
    ("d", "b"), [(1, 61 / 12), (2, 16.9167), (3, 38.0), (5, 117.9167), (10, 654.5833), (11, 839.67)]
)
def test_normal_b(d, b):
    by_hand = (d * (d + 2) * (d + 3) - d * (d + 1) * (2 * d + 1) / 12 - d * (d + 1) / 2 - d / 3) / 2
    found = well_specified(d * (d + 3) // 2, *exact.normal_invariants(d)).b
    assert found == pytest.approx(by_hand, rel=1e-10)
    assert found == pytest.approx(b, abs=5e-3)


def test_the_exact_normal_risk():
    assert exact.normal_invariants(1) == (14, 18, 20)
    assert exact.normal_risk(50, 1) == pytest.approx(0.0221784, abs=5e-8)
    assert risk(1, 61 / 12, 50) == pytest.approx(0.0220333, abs=5e-8)
    assert 1000**2 * (exact.normal_risk(1000, 1) - 1 / 1000) == pytest.approx(5.1004, abs=5e-5)
    assert exact.normal_risk(200, 5) == pytest.approx(0.0530659, abs=5e-8)
    assert exact.normal_risk(50, 10) == pytest.approx(1.00372, abs=5e-6)
    assert exact.normal_risk(12, 10) == np.inf


def test_the_normal_model_under_a_truth_with_excess_kurtosis():
    """a = 1 + k/4; Laplace has k = 3."""
    laplace = truth("laplace")
    assert (laplace.a, laplace.b) == pytest.approx((1.75, 8.2083), abs=5e-5)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    uniform = moments_of(Normal(("x",)), nodes[:, None], weights / 2)
    assert uniform.a == pytest.approx(1 - 1.2 / 4, rel=1e-9)


# -- simulated --------------------------------------------------------------------------------------------------------


def test_three_spins():
    spins, tilted, independent = (truth(f"spins{rest}") for rest in ("", ", tilted", ", tilted, independent"))
    assert (spins.a, spins.b) == pytest.approx((3, 18.7658), abs=5e-5)
    assert (tilted.a, tilted.b) == pytest.approx((3.14512, 26.3361), abs=5e-5)
    assert (independent.a, independent.b) == pytest.approx((1.5, 2.6413), abs=5e-5)
    population = spins.known.population
    assert (population.t1, population.t2, population.k4) == pytest.approx((34.246, 13.138, 1.147), abs=5e-4)


@pytest.mark.parametrize(
    ("name", "n", "second", "error", "replicates"),
    [
        ("spins", 200, 20.03, 0.31, 20_000),
        ("spins", 800, 18.91, 0.30, 20_000),
        ("spins", 3200, 18.54, 0.29, 20_000),
        ("spins, tilted", 200, 27.57, 0.53, 20_000),
        ("spins, tilted", 800, 26.74, 0.54, 20_000),
        ("spins, tilted", 3200, 27.23, 0.55, 20_000),
        ("spins, tilted, independent", 200, 2.744, 0.046, 20_000),
        ("spins, tilted, independent", 800, 2.692, 0.044, 20_000),
        ("spins, tilted, independent", 3200, 2.615, 0.042, 20_000),
        ("laplace", 200, 8.318, 0.185, 100_000),
        ("laplace", 1000, 8.72, 0.34, 20_000),
    ],
)
def test_the_simulated_risk_is_the_expansion(name, n, second, error, replicates):
    """n^2 (R - a/n), from another simulation with its standard error, and from the expansion up to its drift in n."""
    case = truth(name)
    value, deviation = case.risk(n, replicates=replicates, seed=n)
    found, spread = n**2 * (value - case.a / n), n**2 * deviation
    assert abs(found - second) < 4 * np.hypot(error, spread)
    drift = 3 * case.b / n * case.b / case.a  # the next term, if it grows like the two before
    assert abs(found - case.b) < 4 * spread + drift


def test_control_variates_resolve_what_plain_averages_cannot():
    """20,000 replicates at n = 3200: a plain average leaves b with an error of tens, the residual with 0.3."""
    case, n = truth("spins"), 3200
    means = case.known.means(n, 2000, np.random.default_rng(0))
    plain = n**2 * case.known.losses(means).std() / np.sqrt(20_000)
    assert n**2 * case.risk(n)[1] < plain / 20


@pytest.mark.parametrize("name", list(TRUTHS))
def test_the_true_rows_are_where_the_risk_is_delta(name):
    case = truth(name)
    n = case.required(0.02)
    assert n == pytest.approx(required_sample_size(case.a, case.b, 0.02), rel=0.05)
    value, error = case.risk(max(2, round(n)))
    assert value == pytest.approx(0.02, rel=0.5 / n + 1e-3, abs=4 * error)


@pytest.mark.parametrize("name", list(TRUTHS))
def test_a_drawn_table_belongs_to_its_family(name):
    case = truth(name)
    prepared = case.prepared(400, np.random.default_rng(0))
    found = estimate(Sample(prepared), bootstrap=0)
    assert found.parameters == case.parameters
    assert found.a == pytest.approx(case.a, rel=0.5)


# -- links to the information criteria ----------------------------------------------------------------------------------


def test_the_corrected_criterion_of_the_normal_is_aicc():
    """AICc's penalty for a mean and a variance is 4n/(n - 3) = 4 + 12/n + ...; AIC2's is 4 + (T1 + T2 - K4)/n."""
    rows = np.random.default_rng(5).normal(3, 2, size=(80, 1))
    found = estimate(Sample(prepare("gaussian", rows, ["x"])), bootstrap=0)
    assert found.log_likelihood == pytest.approx(stats.norm.logpdf(rows, rows.mean(), rows.std()).sum())
    assert found.aic2 - found.aic == pytest.approx(12 / 80)
    expansion = well_specified(2, *exact.normal_invariants(1))
    assert expansion.b + expansion.b_dual == pytest.approx(6)
    assert found.tic == pytest.approx(found.aic + 2 * (found.trace - 2))


def test_the_optimism_of_the_exponential():
    """Exactly 1/(n - 1) = 1/n + 1/n^2 + ... = (2a)/n + (b + b_dual)/n^2."""
    expansion = well_specified(1, *exact.exponential_invariants(1))
    assert (2 * expansion.a, expansion.b + expansion.b_dual) == pytest.approx((1, 1))


def of_cells(table):
    counts = np.bincount(table[:, 0].astype(int))
    return np.log(np.repeat(counts, counts) / len(table))


@pytest.mark.parametrize(
    ("family", "table", "log_density"),
    [
        ("poisson", np.array([[3.0], [0], [2], [7], [1]]), lambda x: stats.poisson.logpmf(x, x.mean())),
        ("exponential", np.array([[3.0], [0.1], [2.5], [7]]), lambda x: stats.expon.logpdf(x, scale=x.mean())),
        ("multinomial", np.array([[0.0], [1], [1], [2], [1]]), of_cells),
    ],
)
def test_log_likelihoods_are_in_the_units_of_the_data(family, table, log_density):
    found = estimate(Sample(prepare(family, table, ["x"], cells=list("ABC"))), bootstrap=0, order=1)
    assert found.log_likelihood == pytest.approx(log_density(table).sum())


def test_the_log_likelihood_of_many_columns():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 3)) * [1, 10, 0.1] + 5
    found = estimate(Sample(prepare("gaussian", rows, list("xyz"))), bootstrap=0, order=1)
    law = stats.multivariate_normal(rows.mean(axis=0), np.cov(rows.T, bias=True))
    assert found.log_likelihood == pytest.approx(law.logpdf(rows).sum())
    spins = SPINS[rng.integers(8, size=50)]
    flat = estimate(Sample(prepare("ising", spins, list("xyz"))), bootstrap=0, order=1)
    assert -50 * np.log(8) < flat.log_likelihood < -40 * np.log(8)


# -- the red wines ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wines(data_folder):
    frame = pl.read_csv(data_folder / "wine" / "winequality-red.csv").drop("quality")
    assert frame.shape == (1599, 11)
    assert frame["volatile acidity"].mean() == pytest.approx(0.5278, abs=5e-5)
    assert frame["alcohol"].mean() == pytest.approx(10.423, abs=5e-4)
    return frame


def ranked(table):
    return stats.norm.ppf(stats.rankdata(table, axis=0) / (len(table) + 1))


@pytest.mark.parametrize(
    ("scores", "trace", "sandwich_risk", "sandwich_rows", "sample_b"),
    [(lambda table: table, 145.36, 0.04545, 3633.9, 3928.9), (ranked, 87.54, 0.02737, 2188.6, 1732.7)],
)
def test_red_wines_under_the_normal_model(wines, scores, trace, sandwich_risk, sandwich_rows, sample_b):
    prepared = prepare("gaussian", scores(wines.to_numpy()), wines.columns)
    sample, delta = Sample(prepared), kl_threshold(0.05)
    closed, simple, sandwich = (
        estimate(sample, method=method, order=order, bootstrap=0)
        for method, order in (("closed_form", 2), ("simple", 2), ("sandwich", 1))
    )
    assert (closed.parameters, closed.b) == (77, pytest.approx(839.67, abs=5e-3))
    assert risk(closed.a, closed.b, 1599) == pytest.approx(0.0244, abs=5e-5)
    assert required_sample_size(closed.a, 0, delta) == pytest.approx(1925)
    assert required_sample_size(closed.a, closed.b, delta) == pytest.approx(1946.6, abs=0.05)
    assert sandwich.trace == pytest.approx(trace, abs=5e-3)
    assert risk(sandwich.a, 0, 1599) == pytest.approx(sandwich_risk, abs=5e-6)
    assert required_sample_size(sandwich.a, 0, delta) == pytest.approx(sandwich_rows, abs=0.05)
    assert simple.b == pytest.approx(sample_b, abs=0.05)
    table = prepared.table - prepared.table.mean(axis=0)
    mardia = (np.einsum("ri,ij,rj->r", table, np.linalg.inv(np.cov(table.T, bias=True)), table) ** 2).mean()
    assert sandwich.trace == pytest.approx(11 + (mardia - 11) / 2, rel=1e-9)


def test_raw_red_wines_with_the_samples_own_cumulants(wines):
    found = estimate(Sample(prepare("gaussian", wines.to_numpy(), wines.columns)), method="simple", bootstrap=0)
    assert risk(found.a, found.b, 1599) == pytest.approx(0.0256, abs=5e-5)
    assert required_sample_size(found.a, found.b, 0.02) == pytest.approx(2022.1, abs=0.05)


def test_red_wines_cut_at_their_medians(wines):
    found = estimate(Sample(prepare("ising", wines.to_numpy(), wines.columns)), method="simple", bootstrap=0)
    assert (found.parameters, found.b) == (66, pytest.approx(837.64, abs=5e-3))
    assert risk(found.a, 0, 1599) == pytest.approx(0.020638, abs=5e-7)
    assert risk(found.a, found.b, 1599) == pytest.approx(0.020966, abs=5e-7)
    assert required_sample_size(found.a, found.b, 0.02) == pytest.approx(1675.0, abs=0.05)


def test_columns_shuffled_apart_carry_no_bias_but_cost_as_much(wines):
    rng = np.random.default_rng(0)
    shuffled = np.column_stack([rng.permutation(column) for column in ranked(wines.to_numpy()).T])
    found = estimate(Sample(prepare("gaussian", shuffled, wines.columns)), order=1)
    low, high = found.interval("a")
    assert found.a_simple == 38.5
    assert low < 1.03 * 38.5  # ties make the margins slightly lighter than normal
    assert high > 0.97 * 38.5


# -- cumulants --------------------------------------------------------------------------------------------------------


def agree(one, other, x, c):
    """All contractions of two kinds of cumulants."""
    named = {"information": (), "third": (), "third_with": (x,), "fourth": (x,), "fourth_with": (c,), "fifth": (x,)}
    for name, arguments in named.items():
        expected = getattr(other, name)(*arguments)
        np.testing.assert_allclose(
            getattr(one, name)(*arguments), expected, rtol=1e-8, atol=1e-9 * np.abs(expected).max()
        )


def test_normal_cumulants_are_those_of_a_quadrature():
    """Products of five quadratic statistics are of degree ten: fourteen nodes an axis integrate them exactly."""
    rng = np.random.default_rng(0)
    model = Normal(("x", "y"))
    mean = normal_mean(2, rng)
    nodes, weights = np.polynomial.hermite_e.hermegauss(14)
    grid = np.array(list(itertools.product(nodes, repeat=2)))
    law = np.outer(weights, weights).ravel() / weights.sum() ** 2
    covariance = np.array([[mean[2], mean[3]], [mean[3], mean[4]]]) - np.outer(mean[:2], mean[:2])
    states = model.statistics(mean[:2] + grid @ np.linalg.cholesky(covariance).T)
    listed, closed = StateCumulants(lambda: iter([(states, law)]), mean), model.project(mean, NOTHING).cumulants
    turn = rng.normal(size=(5, 4))
    x, c = rng.normal(size=(4, 4)), symmetric(rng.normal(size=(4, 4, 4)))
    agree(closed.transformed(turn), listed.transformed(turn), x + x.T, c)


def test_independent_cumulants_are_those_of_a_list():
    counts = np.arange(60.0)
    grid = np.array(list(itertools.product(counts, counts)))
    law = np.outer(stats.poisson.pmf(counts, 1.5), stats.poisson.pmf(counts, 4.0)).ravel()
    closed = Poisson(("x", "y")).project(np.array([1.5, 4.0]), NOTHING).cumulants
    listed = StateCumulants(lambda: iter([(grid, law)]), np.array([1.5, 4.0]))
    rng = np.random.default_rng(0)
    turn, x = rng.normal(size=(2, 2)), np.array([[1.0, 0.3], [0.3, -0.5]])
    c = np.einsum("i,j,k->ijk", *[np.array([0.4, -1.1])] * 3)
    agree(closed.transformed(turn), listed.transformed(turn), x, c)


def test_an_infinite_risk_is_refused_not_computed():
    with pytest.raises(InputError, match="every value is zero: the MLE is on the boundary; risk is infinite"):
        prepare("poisson", np.zeros((5, 1)), ["count"])
