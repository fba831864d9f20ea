"""The expansion of the risk, the projection and the bounds, against closed forms and full tensors."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

import oracles
from sanov.core.errors import InputError
from sanov.cubic_forms import CubicForm, ThirdMoments, symmetric
from sanov.families import (
    BOUNDS,
    bayes_error_bound,
    coin_toss_equivalent,
    expand,
    general_first_order,
    information_projection,
    kl_threshold,
    largest_parameters,
    required_sample_size,
    risk,
    risk_coefficients,
    risk_limit,
    well_specified,
    whitening,
)

seeds = st.integers(0, 2**32 - 1)


def random_law(rng, states=12, p=3):
    return rng.normal(size=(states, p)), rng.dirichlet(np.ones(states))


# -- cubic forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 3, 8, 9, 21])
def test_third_moments_and_cubic_forms_are_the_sums_that_they_say(p):
    rng = np.random.default_rng(p)
    rows, weights, tensor = rng.normal(size=(700, p)), rng.uniform(size=700), rng.normal(size=(p, p, p))
    moments = ThirdMoments(p)
    moments.add(rows[:100], weights[:100])
    moments.add(rows[100:], weights[100:])
    expected = np.einsum("r,ri,rj,rk->ijk", weights, rows, rows, rows)
    np.testing.assert_allclose(moments.tensor(), expected, rtol=1e-12, atol=1e-10)
    values = np.einsum("ijk,ri,rj,rk->r", tensor, rows, rows, rows)
    np.testing.assert_allclose(CubicForm(tensor)(rows), values, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(CubicForm(symmetric(tensor))(rows), values, rtol=1e-10, atol=1e-10)


# -- the expansion ----------------------------------------------------------------------------------------------------


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_the_expansion_is_the_sum_over_derivatives_of_the_dual(seed):
    rng = np.random.default_rng(seed)
    _, second, third, fourth = oracles.cumulant_tensors(*random_law(rng))
    _, covariance, skewness, _ = oracles.cumulant_tensors(*random_law(rng))
    white = whitening(second)
    t3 = np.einsum("abc,ai,bj,ck->ijk", third, white, white, white)
    t4 = np.einsum("abcd,ai,bj,ck,dl->ijkl", fourth, white, white, white, white)
    v, k = white.T @ covariance @ white, np.einsum("abc,ai,bj,ck->ijk", skewness, white, white, white)
    found = expand(t3, np.einsum("ijkl,ij,kl->", t4, v, v), v, k)
    expected = oracles.risk_by_duality(second, third, fourth, covariance, skewness)
    assert (found.a, found.b) == pytest.approx(expected, rel=1e-9)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_with_the_models_own_moments_the_expansion_is_the_well_specified_one(seed):
    states, probabilities = random_law(np.random.default_rng(seed))
    white = whitening(oracles.cumulant_tensors(states, probabilities)[1])
    _, second, third, fourth = oracles.cumulant_tensors(states @ white, probabilities)
    k4 = np.einsum("iijj->", fourth)
    found = expand(third, k4, second, third)
    t1, t2 = (third**2).sum(), (np.einsum("iik->k", third) ** 2).sum()
    right = well_specified(3, t1, t2, k4)
    assert found.a == pytest.approx(right.a)
    assert found.b == pytest.approx(right.b, rel=1e-9, abs=1e-9)
    assert found.b_dual == pytest.approx(right.b_dual, rel=1e-9, abs=1e-9)


def test_contractions_equal_the_full_tensors():
    """E[q^2] - (E q)^2 - 2 tr(VV) and |E[q w]|^2 in place of p^4 arrays, on 40 points with 3 statistics."""
    rng = np.random.default_rng(40)
    states, probabilities = rng.normal(size=(40, 3)), np.full(40, 1 / 40)
    _, second, third, fourth = oracles.cumulant_tensors(states, probabilities)
    v = oracles.cumulant_tensors(*random_law(rng))[1]
    inverse = np.linalg.inv(second)
    raised = inverse @ v @ inverse
    centred = states - states.mean(axis=0)
    q = np.einsum("ri,ij,rj->r", centred, raised, centred)
    short = (q**2).mean() - q.mean() ** 2 - 2 * np.trace(inverse @ v @ inverse @ v)
    assert short == pytest.approx(np.einsum("ijkl,ij,kl->", fourth, raised, raised), rel=1e-12)
    joined = np.einsum("ije,ef,fkl,ij,kl->", third, inverse, third, raised, raised)
    w = (q[:, None] * (centred @ whitening(second))).mean(axis=0)
    assert w @ w == pytest.approx(joined, rel=1e-12)


# -- the simple form in memory ------------------------------------------------------------------------------------------


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_the_simple_form_does_not_see_an_affine_map(seed):
    rng = np.random.default_rng(seed)
    rows = rng.gamma(2.0, size=(60, 3))
    mapped = rows @ (rng.normal(size=(3, 3)) + 3 * np.eye(3)) * 1e3 + rng.normal(size=3)
    assert risk_coefficients(mapped) == pytest.approx(risk_coefficients(rows), rel=1e-8)


@pytest.mark.parametrize(("rows", "p"), [(30, 6), (400, 6)])  # in pairs of rows, and by the tensor
def test_both_ways_of_the_simple_form_equal_the_full_tensors(rows, p):
    rng = np.random.default_rng(rows)
    xi = rng.gamma(1.5, size=(rows, p)) @ rng.normal(size=(p, p))
    _, second, third, fourth = oracles.cumulant_tensors(xi, np.full(rows, 1 / rows))
    assert risk_coefficients(xi) == pytest.approx(
        oracles.risk_by_duality(second, third, fourth, second, third), rel=1e-9
    )


def test_b_adds_up_over_independent_blocks():
    """A coin of 0.3 and three cells of 0.2, 0.3, 0.5, in the 100 rows that have exactly their joint frequencies."""
    counts = np.outer([30, 70], [2, 3, 5]).ravel() // 10
    coin, cell = np.divmod(np.repeat(np.arange(6), counts), 3)
    first, second = (coin == 0)[:, None].astype(float), (cell[:, None] == [0, 1]).astype(float)
    assert len(coin) == 100
    a, b = risk_coefficients(np.hstack([first, second]))
    assert a == pytest.approx(1.5)
    assert b == pytest.approx(risk_coefficients(first)[1] + risk_coefficients(second)[1], rel=1e-12)
    by_formula = (5 * (1 / 0.3 + 1 / 0.7) - 11) / 12 + (5 * (1 / 0.2 + 1 / 0.3 + 1 / 0.5) - 17) / 12
    assert b == pytest.approx(by_formula, rel=1e-12)


def test_a_coin_and_its_other_side_carry_the_same_risk():
    heads = np.repeat([1.0, 0.0], [3, 7])[:, None]
    assert risk_coefficients(heads) == pytest.approx(risk_coefficients(1 - heads), rel=1e-12)


def test_dependent_statistics_do_not_count():
    rows = np.random.default_rng(0).normal(size=(80, 2))
    doubled = np.column_stack([rows, rows[:, 0] - 2 * rows[:, 1] + 3])
    assert risk_coefficients(doubled) == pytest.approx(risk_coefficients(rows), rel=1e-8)


def test_too_few_rows_are_refused():
    with pytest.raises(InputError, match=r"n=3, p=3: covariance is singular; reduce p or use first order"):
        risk_coefficients(np.random.default_rng(0).normal(size=(3, 3)))
    with pytest.raises(InputError, match="n=0, p=2"):
        risk_coefficients(np.zeros((0, 2)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_statistics_that_are_not_finite_are_no_lack_of_risk(value):
    rows = np.random.default_rng(0).normal(size=(30, 2))
    rows[7, 1] = value
    with pytest.raises(InputError, match=rf"statistics: row 7, column 1 is {value}"):
        risk_coefficients(rows)


def test_a_covariance_that_overflows_is_no_lack_of_risk():
    rows = np.random.default_rng(0).normal(size=(30, 2))
    with np.errstate(over="ignore"), pytest.raises(InputError, match="not finite"):
        risk_coefficients(rows * 1e200)


# -- projection -------------------------------------------------------------------------------------------------------


def finite_family(states):
    def moments(theta):
        energy = states @ theta
        log_partition = float(special.logsumexp(energy))
        weights = np.exp(energy - log_partition)
        mean = weights @ states
        return log_partition, mean, (states.T * weights) @ states - np.outer(mean, mean)

    return moments


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_the_projection_has_the_mean_and_is_the_closest_member(seed):
    rng = np.random.default_rng(seed)
    states, truth = random_law(rng, 8, 2)
    moments, scale = finite_family(states), np.array([1e-4, 1e3])
    theta = information_projection(truth @ states, moments, np.zeros(2))
    np.testing.assert_allclose(moments(theta)[1], truth @ states, atol=1e-9)
    rescaled = information_projection(truth @ states * scale, finite_family(states * scale), np.zeros(2))
    np.testing.assert_allclose(rescaled * scale, theta, atol=1e-6)

    def kl(parameter):
        return float(truth @ (np.log(truth) - states @ parameter)) + moments(parameter)[0]

    assert all(kl(theta) <= kl(theta + 0.1 * rng.normal(size=2)) for _ in range(20))


def test_pythagoras():
    """D[g || f] = D[g || f*] + D[f* || f] for every member f."""
    rng = np.random.default_rng(3)
    states, truth = random_law(rng, 8, 2)
    moments = finite_family(states)
    star = information_projection(truth @ states, moments, np.zeros(2))

    def law(theta):
        return np.exp(states @ theta - moments(theta)[0])

    other = law(star + rng.normal(size=2))
    whole, bias = special.rel_entr(truth, other).sum(), special.rel_entr(truth, law(star)).sum()
    assert whole == pytest.approx(bias + special.rel_entr(law(star), other).sum(), rel=1e-10)


@pytest.mark.parametrize("mean", [1.0, 1.2])
def test_a_mean_on_the_boundary_has_no_member(mean):
    with pytest.raises(InputError, match=r"the MLE does not exist.*Merge cells"):
        information_projection(np.array([mean]), finite_family(np.array([[0.0], [1.0]])), np.zeros(1))


def test_the_general_first_order_collapses_in_an_exponential_family():
    rng = np.random.default_rng(1)
    g, v = (np.cov(rng.normal(size=(3, 20))) for _ in range(2))
    assert general_first_order(g, g, v) == pytest.approx(np.trace(np.linalg.solve(g, v)) / 2)


# -- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "pinsker", "bretagnolle_huber", "sharp"),
    [
        (0.01, 0.0008, 0.00040008, 0.00080007),
        (0.05, 0.02, 0.01005034, 0.02004468),
        (0.1, 0.08, 0.04082199, 0.08072672),
        (0.2, 0.32, 0.17435339, 0.33247392),
        (0.3, 0.72, 0.44628710, 0.79263529),
        (0.4, 1.28, 1.02165125, 1.58643132),
    ],
)
def test_thresholds(epsilon, pinsker, bretagnolle_huber, sharp):
    expected = (pinsker, bretagnolle_huber, sharp)
    found = tuple(kl_threshold(epsilon, kind) for kind in BOUNDS)
    assert found == pytest.approx(expected, abs=5.1e-9)
    for kind, threshold in zip(BOUNDS, found, strict=True):
        assert bayes_error_bound(threshold, kind) == pytest.approx(0.5 - epsilon, abs=1e-9)


def test_which_bound_asks_for_less():
    assert kl_threshold(0.4462, "bretagnolle_huber") < kl_threshold(0.4462, "pinsker")
    assert kl_threshold(0.4464, "bretagnolle_huber") > kl_threshold(0.4464, "pinsker")
    v = 0.02
    assert kl_threshold(v / 2, "sharp") == pytest.approx(2 * v**2 + 4 * v**4 / 9 + 32 * v**6 / 135, rel=1e-9)


@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)), min_size=2, max_size=6), st.sampled_from(BOUNDS))
@settings(max_examples=200, deadline=None)
def test_every_bound_holds(pairs, kind):
    p, q = (np.array(side) / sum(side) for side in zip(*pairs, strict=True))
    bayes_error = (1 - np.abs(p - q).sum() / 2) / 2
    divergence = max(0.0, float(special.rel_entr(p, q).sum()))
    assert bayes_error_bound(divergence, kind) <= bayes_error + 1e-7  # the square root of rounding


def test_the_sharp_bound_is_attained_by_two_coins():
    p, q = 0.7, 0.2
    grid = np.linspace(1e-4, 0.5 - 1e-4, 20_001)
    least = (special.rel_entr(grid + 0.5, grid) + special.rel_entr(0.5 - grid, 1 - grid)).min()
    assert kl_threshold(0.25, "sharp") == pytest.approx(least, rel=1e-6)
    assert kl_threshold(0.25, "sharp") <= special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q)


@pytest.mark.parametrize("kl", [0.5, 3.0, 6.9, 7.1, 20.0, 27.0, 28.0, 35.0, 37.5, 100.0, 700.0, math.inf])
def test_no_bound_exceeds_the_error_of_coins_that_far_apart(kl):
    """A coin that always shows heads and one that does with probability exp(-kl) have the Bayes error exp(-kl) / 2."""
    error = math.exp(-kl) / 2
    for kind in BOUNDS:
        assert 0 <= bayes_error_bound(kl, kind) <= error * (1 + 1e-9)
    if kl > 7:  # there the sharp one is attained by these coins, and the other exact to rounding too
        assert bayes_error_bound(kl, "sharp") == pytest.approx(error, rel=1e-12, abs=0)
        assert bayes_error_bound(kl, "bretagnolle_huber") == pytest.approx(error / 2, rel=1e-3, abs=0)


@pytest.mark.parametrize("kl", [0.01, 1.0, 3.0, 6.0, 6.99])
def test_the_sharp_bound_is_the_least_error_over_pairs_of_coins(kl):
    """Of the coins q that are `kl` from each p, found by bisection, none has a smaller Bayes error."""
    bound, errors = bayes_error_bound(kl, "sharp"), []
    for p in [*np.linspace(0.5, 1 - 1e-4, 400), *(1 - np.logspace(-4, -14, 60))]:
        low, high = np.float64(-800), math.log(p)  # of log q, below p
        for _ in range(200):
            middle = (low + high) / 2
            rest = special.rel_entr(1 - p, -np.expm1(middle))
            low, high = (middle, high) if p * (math.log(p) - middle) + rest > kl else (low, middle)
        errors.append((1 - (p - math.exp(high))) / 2)
    assert min(errors) == pytest.approx(bound, rel=1e-3)
    assert bound <= min(errors) * (1 + 1e-9)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 0.5, math.nan])
def test_epsilon_out_of_range(epsilon):
    with pytest.raises(InputError, match=r"epsilon: .*> 0 and < 0\.5"):
        kl_threshold(epsilon)


@pytest.mark.parametrize("call", [lambda: kl_threshold(0.1, "hoeffding"), lambda: bayes_error_bound(-1.0)])
def test_what_no_bound_takes(call):
    with pytest.raises(InputError):
        call()


# -- rows and parameters ----------------------------------------------------------------------------------------------


@given(st.floats(0.1, 100), st.floats(-20, 2000), st.floats(1e-3, 0.5))
@settings(max_examples=200, deadline=None)
def test_at_the_required_rows_the_risk_is_delta(a, b, delta):
    if a * a + 4 * b * delta < 0:
        with pytest.raises(InputError, match=r"no n meets delta.*first-order n\* is"):
            required_sample_size(a, b, delta)
        return
    n = required_sample_size(a, b, delta)
    assert risk(a, b, n) == pytest.approx(delta, rel=1e-7 if b < 0 else 1e-10)
    assert risk(a, b, 1.5 * n) < delta  # on the falling side


def test_no_rows_meet_delta():
    with pytest.raises(InputError, match=r"no n meets delta = 0\.02 at second order; first-order n\* is 50"):
        required_sample_size(1.0, -20.0, 0.02)


@pytest.mark.parametrize(("epsilon", "rows_per_parameter"), [(0.1, 6.25), (0.05, 25), (0.02, 156.25), (0.01, 625)])
def test_first_order_rows_per_parameter(epsilon, rows_per_parameter):
    delta = kl_threshold(epsilon)
    assert required_sample_size(3.5, 0.0, delta) == pytest.approx(7 * rows_per_parameter)
    assert largest_parameters(7 * rows_per_parameter, delta) == pytest.approx(7)
    assert largest_parameters(7 * rows_per_parameter, delta, ratio=2) == pytest.approx(3.5)


@pytest.mark.parametrize("n", [10, 100, 12345])
def test_a_coin_is_worth_its_own_tosses(n):
    assert coin_toss_equivalent(risk(0.5, 0.75, n)) == pytest.approx(n, rel=1e-12)


# -- guarantees -------------------------------------------------------------------------------------------------------


def test_guarantees():
    assert risk_limit(0.02) == 0.02
    assert risk_limit(0.02, "markov", confidence=0.9) == pytest.approx(0.002)
    right = risk_limit(0.02, "chi2", eigenvalues=np.ones(7))
    assert right == pytest.approx(0.02 * 7 / stats.chi2.ppf(0.95, 7), rel=1e-9)
    assert risk_limit(0.02, "markov") < risk_limit(0.02, "chi2", eigenvalues=np.array([30.0, 1.0, 1.0])) < right
    with pytest.raises(InputError, match="eigenvalues"):
        risk_limit(0.02, "chi2")
    with pytest.raises(InputError, match="guarantee"):
        risk_limit(0.02, "sure")


@pytest.mark.parametrize("eigenvalues", [[], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf], [-1.0]])
def test_eigenvalues_without_a_positive_one_are_refused(eigenvalues):
    with pytest.raises(InputError, match=r"eigenvalues: .*expected finite numbers, one of them above 0"):
        risk_limit(0.02, "chi2", eigenvalues=np.array(eigenvalues))


@pytest.mark.parametrize("confidence", [0.3, 0.95, 0.999])
@pytest.mark.parametrize(("rate", "other"), [(1.0, 3.0), (0.01, 5.0)])
def test_the_weighted_chi_square_is_that_of_two_exponentials(rate, other, confidence):
    """Each weight twice is an exponential of mean twice the weight, and the sum of two has a closed form."""
    x = (
        0.02
        * 2
        * (rate + other)
        / risk_limit(0.02, "chi2", confidence=confidence, eigenvalues=np.array([rate, rate, other, other]))
    )
    fast, slow = 1 / (2 * rate), 1 / (2 * other)
    tail = (fast * np.exp(-slow * x) - slow * np.exp(-fast * x)) / (fast - slow)
    assert tail == pytest.approx(1 - confidence, rel=1e-7)
