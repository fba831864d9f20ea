"""The terms of each row are the derivatives of the coefficients, and the intervals made of them cover."""

import numpy as np
import pytest
from scipy import stats

import oracles
from sanov.families import required_sample_size
from sanov.systems.pn.bootstrap import interval, multiplier_replicates
from sanov.systems.pn.coefficients import estimate
from sanov.systems.pn.drawn import UserFamily
from sanov.systems.pn.expansion import METHODS, frame_of, order_one, order_two, terms_of
from sanov.systems.pn.members import Poisson
from sanov.systems.pn.sample import Sample
from sanov.systems.pn.statistics import Prepared, prepare

rng = np.random.default_rng(11)
SKEW = np.column_stack([rng.gamma(2.0, size=60), rng.normal(size=60)]) @ np.array([[1.0, 0.5], [0.0, 1.0]])
SPINS = rng.choice([-1.0, 1.0], size=(60, 3))
COUNTS = rng.poisson(3.0, size=(60, 2)).astype(float)
TABLES = {
    "gaussian": SKEW,
    "ising": SPINS,
    "poisson": COUNTS,
    "exponential": np.exp(SKEW / 2),
    "multinomial": rng.integers(0, 3, size=(60, 1)).astype(float),
}


def prepared_of(family):
    table = TABLES[family]
    return prepare(family, table, [f"x{k}" for k in range(table.shape[1])], cells=["A", "B", "C"])


def terms(sample, method, order):
    frame = frame_of(sample, method, order, draws=None, tolerance=1e-9, seed=0)
    return terms_of(frame, order_one(frame) if order == 1 else order_two(frame))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", list(TABLES))
def test_a_term_is_the_derivative_by_the_rows_frequency(family, method, order):
    prepared, weights, step = prepared_of(family), np.ones(60), 1e-4

    def coefficients(changed):
        sample = Sample(prepared, weights=changed, weights_kind="frequency")
        found = estimate(sample, method=method, order=order, bootstrap=0)
        return np.array([found.a, found.b])

    found, copies = terms(Sample(prepared, weights=weights, weights_kind="frequency"), method, order)
    assert (copies == 1).all()
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-9)
    for row in (0, 17, 41):
        shift = np.zeros(60)
        shift[row] = step
        slope = (coefficients(weights + shift) - coefficients(weights - shift)) / (2 * step)
        np.testing.assert_allclose(found[row] / 60, slope, atol=1e-6)


def poisson_cumulants(mean):
    """Of independent columns: every cumulant of a column is its mean."""
    places = np.arange(len(mean))
    second, third, fourth = (np.zeros((len(mean),) * order) for order in (2, 3, 4))
    second[places, places] = third[places, places, places] = fourth[places, places, places, places] = mean
    return second, third, fourth


@pytest.mark.parametrize("design", ["weighted", "clustered", "both"])
@pytest.mark.parametrize("method", ["simple", "sandwich"])
def test_a_term_is_the_derivative_by_the_clusters_multiplicity(method, design):
    weights = rng.uniform(0.5, 2.0, size=60) if design != "clustered" else np.ones(60)
    clusters = rng.integers(0, 12, size=60) if design != "weighted" else np.arange(60)
    weights = weights / weights.mean()
    if method == "simple":
        prepared = Prepared("raw", UserFamily(("s", "t"), lambda table: table), ("s", "t"), SKEW, 2)
        model = None
    else:
        prepared, model = Prepared("poisson", Poisson(("s", "t")), ("s", "t"), COUNTS, 2), poisson_cumulants
    labelled = None if design == "weighted" else clusters
    sample = Sample(prepared, weights=None if design == "clustered" else weights, clusters=labelled)
    found, _ = terms(sample, method, 2)
    estimates = estimate(sample, method=method, bootstrap=0)

    def coefficients(multipliers):
        return oracles.risk_of_design(prepared.table, weights, clusters, multipliers, model)

    once = np.ones(len(np.unique(clusters)))
    np.testing.assert_allclose([estimates.a, estimates.b], coefficients(once), rtol=1e-9)
    for unit in (0, 3, len(once) - 1):
        shift = np.zeros_like(once)
        shift[unit] = 1e-4
        slope = (coefficients(once + shift) - coefficients(once - shift)) / 2e-4
        np.testing.assert_allclose(found[unit] / 60, slope, rtol=1e-5, atol=1e-6)


# -- the bootstrap ----------------------------------------------------------------------------------------------------


def test_multipliers_have_mean_and_variance_one():
    values = rng.normal(size=(500, 2)) * [1.0, 5.0]
    values -= values.mean(axis=0)
    replicates = multiplier_replicates(100.0, 0.0, values, np.ones(500), 500.0, replicates=4000, seed=0)
    expected = np.sqrt(np.square(values).sum(axis=0)) / 500
    assert 100 * np.log(replicates[:, 0] / 100).std() == pytest.approx(expected[0], rel=0.05)
    assert replicates[:, 1].std() == pytest.approx(expected[1], rel=0.05)
    assert abs(replicates[:, 1].mean()) < 4 * expected[1] / np.sqrt(4000)


def test_a_row_of_frequency_four_is_four_rows():
    values, copies = rng.normal(size=(100, 2)), np.full(100, 4.0)
    few, many = (
        multiplier_replicates(9.0, 0.0, part, count, 400.0, replicates=4000, seed=1)[:, 1].std()
        for part, count in ((values, copies), (np.repeat(values, 4, axis=0), np.ones(400)))
    )
    assert few == pytest.approx(many, rel=0.08)


def test_replicates_depend_on_the_seed_alone():
    sample = Sample(prepared_of("gaussian"))
    one, same, other = (estimate(sample, bootstrap=20, seed=seed).replicates for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0


def test_an_interval_counts_what_is_infinite():
    replicates = np.column_stack([np.arange(1.0, 101), np.zeros(100)])
    assert interval(replicates, lambda a, b: a, 0.9) == (5, 95)
    assert interval(replicates, lambda a, b: np.inf if a > 90 else a, 0.9) == (5, np.inf)
    assert interval(replicates, lambda a, b: np.nan if a > 90 else a, 0.9) == (5, np.inf)


@pytest.mark.parametrize(("method", "tolerance"), [("sandwich", 0.25), ("simple", 0.3), ("closed_form", 0.25)])
def test_one_pass_agrees_with_drawing_rows_again(method, tolerance):
    """Standard deviations of a and b, against 150 samples drawn from the rows with replacement."""
    table = np.random.default_rng(0).gamma(12.0, size=(1000, 2))
    family = "exponential" if method == "closed_form" else "gaussian"
    if method == "closed_form":
        family, table = "poisson", np.random.default_rng(0).poisson(1.5, size=(1000, 2)).astype(float)
    prepared = prepare(family, table, ["x", "y"])
    one_pass = estimate(Sample(prepared), method=method, bootstrap=2000).replicates.std(axis=0)
    counts = np.random.default_rng(1).multinomial(1000, np.full(1000, 1 / 1000), size=150)
    again = []
    for count in counts:
        sample = Sample(prepared, weights=count, weights_kind="frequency")
        found = estimate(sample, method=method, bootstrap=0)
        again.append([found.a, found.b])
    drawn = np.std(again, axis=0)
    if method == "sandwich":
        assert one_pass[0] == pytest.approx(drawn[0], rel=tolerance)
    else:
        assert max(one_pass[0], drawn[0]) < 1e-9  # a is p/2
    assert one_pass[1] == pytest.approx(drawn[1], rel=tolerance)


def test_intervals_cover():
    """Gamma(2) truths under the exponential model, n = 400: a = 1/4, b = 11/48, and n* at 0.02 of them."""
    truth = {"a": 0.25, "b": 11 / 48, "n": required_sample_size(0.25, 11 / 48, 0.02)}
    tables, covered = np.random.default_rng(3).gamma(2.0, size=(120, 400, 1)), dict.fromkeys(truth, 0)
    for table in tables:
        found = estimate(Sample(prepare("exponential", table, ["x"])))
        asked = {"a": "a", "b": "b", "n": lambda a, b: required_sample_size(a, b, 0.02)}
        for name, of in asked.items():
            low, high = found.interval(of)
            covered[name] += low <= truth[name] <= high
    for name, count in covered.items():
        assert stats.binomtest(count, 120, 0.92).pvalue > 1e-3 or count / 120 > 0.92, (name, count)


def test_clusters_widen_the_interval_as_they_should():
    """Rows said twice: the spread of a is that of half the rows, in units of twice the a."""
    table = np.random.default_rng(0).standard_t(8, size=(400, 2))
    once = estimate(Sample(prepare("gaussian", table, ["x", "y"])), bootstrap=2000, order=1)
    doubled, labels = np.repeat(table, 2, axis=0), np.repeat(np.arange(400), 2)
    twice = estimate(Sample(prepare("gaussian", doubled, ["x", "y"]), clusters=labels), bootstrap=2000, order=1)
    one, two = (np.log(found.replicates[:, 0]).std() for found in (once, twice))
    assert two == pytest.approx(one, rel=0.08)
