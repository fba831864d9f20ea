"""Divergences: identities, bounds and limits; sums written out; SciPy; finite differences; probabilities of zero."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr
from scipy.stats import norm
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import MultivariateNormal, kl_divergence

from oracles import central_differences, jensen_shannon_by_entropies, kl_by_sum, largest_event_difference
from sanov import divergences
from sanov.core.errors import InputError
from sanov.divergences import (
    bernoulli_kl,
    entropy,
    gaussian_kl,
    jensen_shannon,
    kl,
    linear_kl,
    masked_mean,
    total_variation,
)
from sanov.linear_heads import linear_kl as linear_kl_of_heads
from strategies import log_probs, modest, unchecked

CLASSES = 5
ROUNDING = 1e-13  # float64, sums of a few terms of size up to 20
INF = math.inf
PAIRWISE = [kl, jensen_shannon, total_variation]
weights = st.floats(0.01, 0.99)


def logits(*shape, seed=0, spread=2.0):
    return spread * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_zeros():
    """Logits with classes impossible under p, under q, and under both; all divergences are finite."""
    p, q = logits(4, CLASSES), logits(4, CLASSES, seed=1)
    p[0, 1] = p[1, 2] = q[1, 2] = p[2, :4] = -INF
    return p.requires_grad_(), q.requires_grad_()


# -- values -----------------------------------------------------------------------------------------------------------


@modest
@given(log_probs(CLASSES), log_probs(CLASSES), weights)
def test_values_are_the_sums_written_out(log_p, log_q, weight):
    p, q = log_p.exp().tolist(), log_q.exp().tolist()
    close = {"rel": 1e-10, "abs": ROUNDING}
    assert kl(log_p, log_q).item() == pytest.approx(kl_by_sum(p, q), **close)
    assert entropy(log_p).item() == pytest.approx(math.log(CLASSES) - kl_by_sum(p, [1 / CLASSES] * CLASSES), **close)
    assert total_variation(log_p, log_q).item() == pytest.approx(largest_event_difference(p, q), **close)
    expected = jensen_shannon_by_entropies(p, q, weight)
    assert jensen_shannon(log_p, log_q, weight).item() == pytest.approx(expected, **close)


@modest
@given(log_probs(3, CLASSES), log_probs(3, CLASSES))
def test_kl_is_the_sum_of_scipys_relative_entropies(log_p, log_q):
    expected = rel_entr(log_p.exp().numpy(), log_q.exp().numpy()).sum(-1)
    np.testing.assert_allclose(kl(log_p, log_q).numpy(), expected, rtol=1e-10, atol=ROUNDING)


@modest
@given(st.floats(0, 1), st.floats(0, 1))
def test_bernoulli_kl_is_scipys(p, q):
    expected = rel_entr(p, q) + rel_entr(1 - p, 1 - q)
    ours = bernoulli_kl(torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64))
    assert ours.item() == pytest.approx(expected, rel=1e-10, abs=1e-14)


def test_bernoulli_kl_is_exact_at_zero_and_one():
    p = torch.tensor([0, 0, 0, 1, 1, 1, 0.5, 0.5], dtype=torch.float64)
    q = torch.tensor([0, 1, 0.5, 1, 0, 0.5, 0, 1], dtype=torch.float64)
    expected = torch.tensor([0, INF, math.log(2), 0, INF, math.log(2), INF, INF], dtype=torch.float64)
    torch.testing.assert_close(bernoulli_kl(p, q), expected, rtol=1e-15, atol=0)


def test_bernoulli_kl_keeps_its_digits_where_one_minus_p_loses_them():
    p, q = 1e-20, 2e-20
    expected = p * math.log(p / q) + (q - p)  # to first order in p and q
    tiny = bernoulli_kl(torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64))
    assert tiny.item() == pytest.approx(expected, rel=1e-12, abs=0)


def gaussians(dimension, batch=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean_p, mean_q, *roots = (
        torch.randn(*batch, *shape, dtype=torch.float64, generator=generator)
        for shape in ((dimension,), (dimension,), (dimension, 7), (dimension, 7))
    )
    cov_p, cov_q = (root @ root.mT for root in roots)
    return mean_p, cov_p, mean_q, cov_q


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_gaussian_kl_is_that_of_torch_distributions(dimension, batch):
    mean_p, cov_p, mean_q, cov_q = gaussians(dimension, batch)
    p, q = MultivariateNormal(mean_p, cov_p), MultivariateNormal(mean_q, cov_q)
    torch.testing.assert_close(gaussian_kl(mean_p, cov_p, mean_q, cov_q), kl_divergence(p, q), rtol=1e-9, atol=1e-9)


def test_gaussian_kl_is_the_integral_of_the_densities():
    x = np.linspace(-12, 14, 20_001)
    log_p, log_q = (norm.logpdf(x, mean, deviation) for mean, deviation in ((0.5, 0.8), (-0.3, 1.7)))
    integral = np.trapezoid(np.exp(log_p) * (log_p - log_q), x)
    numbers = [torch.tensor(value, dtype=torch.float64) for value in ([0.5], [[0.64]], [-0.3], [[2.89]])]
    assert gaussian_kl(*numbers).item() == pytest.approx(integral, rel=1e-9)


def test_gaussian_kl_is_zero_at_equality_and_does_not_depend_on_coordinates():
    mean_p, cov_p, mean_q, cov_q = gaussians(4)
    assert gaussian_kl(mean_p, cov_p, mean_p, cov_p).item() == pytest.approx(0, abs=1e-13)
    a, b = logits(4, 4, seed=3), logits(4, seed=4)
    moved = gaussian_kl(a @ mean_p + b, a @ cov_p @ a.T, a @ mean_q + b, a @ cov_q @ a.T)
    torch.testing.assert_close(moved, gaussian_kl(mean_p, cov_p, mean_q, cov_q), rtol=1e-8, atol=0)


def test_a_covariance_that_is_none_is_refused():
    mean, cov = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    with pytest.raises(torch.linalg.LinAlgError):
        gaussian_kl(mean, cov, mean, cov - 2)


# -- identities, bounds and limits -------------------------------------------------------------------------------------


@modest
@given(log_probs(CLASSES), weights)
def test_every_divergence_is_exactly_zero_at_equality(log_p, weight):
    assert kl(log_p, log_p).item() == 0
    assert total_variation(log_p, log_p).item() == 0
    assert jensen_shannon(log_p, log_p, weight).item() == pytest.approx(0, abs=1e-14)
    p = log_p.exp().clamp(max=1)
    assert bernoulli_kl(p, p).eq(0).all()


@modest
@given(log_probs(CLASSES), log_probs(CLASSES), weights)
def test_bounds(log_p, log_q, weight):
    divergence, distance = kl(log_p, log_q).item(), total_variation(log_p, log_q).item()
    assert -ROUNDING <= distance <= 1 + ROUNDING
    assert divergence >= 2 * distance**2 - ROUNDING  # Pinsker
    assert -ROUNDING <= entropy(log_p).item() <= math.log(CLASSES) + ROUNDING
    most = -weight * math.log(weight) - (1 - weight) * math.log1p(-weight)
    assert -ROUNDING <= jensen_shannon(log_p, log_q, weight).item() <= most + ROUNDING


@pytest.mark.parametrize("weight", [0.5, 0.1, 0.99])
def test_jensen_shannon_reaches_its_bound_where_no_class_is_shared(weight):
    log_p = torch.tensor([0.25, 0.75, 0, 0], dtype=torch.float64).log()
    log_q = torch.tensor([0, 0, 0.5, 0.5], dtype=torch.float64).log()
    most = -weight * math.log(weight) - (1 - weight) * math.log1p(-weight)
    assert jensen_shannon(log_p, log_q, weight).item() == pytest.approx(most, rel=1e-14)
    assert total_variation(log_p, log_q).item() == 1
    assert kl(log_p, log_q).item() == INF


@modest
@given(log_probs(CLASSES), log_probs(CLASSES), weights)
def test_jensen_shannon_is_symmetric_with_its_weight(log_p, log_q, weight):
    ours, other = jensen_shannon(log_p, log_q, weight), jensen_shannon(log_q, log_p, 1 - weight)
    torch.testing.assert_close(ours, other, rtol=1e-10, atol=ROUNDING)


@pytest.mark.parametrize("seed", range(5))
def test_jensen_shannon_over_its_small_weight_tends_to_kl(seed):
    log_p, log_q = (
        logits(CLASSES, seed=seed, spread=1).log_softmax(-1),
        logits(CLASSES, seed=9, spread=1).log_softmax(-1),
    )
    forward, backward = kl(log_p, log_q), kl(log_q, log_p)
    # the error is of the order of the weight: a tenth of the weight, a tenth of the error
    for small, tolerance in ((1e-3, 5e-2), (1e-5, 5e-4)):
        torch.testing.assert_close(jensen_shannon(log_p, log_q, small) / small, forward, rtol=tolerance, atol=0)
        torch.testing.assert_close(jensen_shannon(log_p, log_q, 1 - small) / small, backward, rtol=tolerance, atol=0)


@modest
@given(log_probs(3), log_probs(3), log_probs(3, 4), log_probs(3, 4))
def test_chain_rule(log_p, log_q, log_p_given, log_q_given):
    joint_p, joint_q = ((a[:, None] + b).flatten() for a, b in ((log_p, log_p_given), (log_q, log_q_given)))
    inner = kl(log_p_given, log_q_given)
    conditional = torch.where(log_p == -INF, 0, log_p.exp() * inner).sum()
    torch.testing.assert_close(kl(joint_p, joint_q), kl(log_p, log_q) + conditional, rtol=1e-10, atol=ROUNDING)


@modest
@given(log_probs(CLASSES), log_probs(CLASSES), st.permutations(range(CLASSES)), st.integers(0, CLASSES - 2))
def test_renaming_classes_changes_nothing_and_merging_them_never_adds(log_p, log_q, order, place):
    def merged(log_probs):
        pair = torch.logaddexp(log_probs[place], log_probs[place + 1])
        return torch.cat([log_probs[:place], pair[None], log_probs[place + 2 :]])

    for divergence in PAIRWISE:
        value = divergence(log_p, log_q)
        torch.testing.assert_close(divergence(log_p[order], log_q[order]), value, rtol=1e-12, atol=ROUNDING)
        assert divergence(merged(log_p), merged(log_q)) <= value + ROUNDING
    torch.testing.assert_close(entropy(log_p[order]), entropy(log_p), rtol=1e-12, atol=ROUNDING)


@modest
@given(log_probs(CLASSES, zeros=False), log_probs(CLASSES, zeros=False), st.floats(-50, 50))
def test_shifted_logits_are_the_same_distribution(logits_p, logits_q, shift):
    for divergence in PAIRWISE:
        moved = divergence((logits_p + shift).log_softmax(-1), (logits_q - shift).log_softmax(-1))
        torch.testing.assert_close(moved, divergence(logits_p, logits_q), rtol=1e-9, atol=1e-12)


# -- gradients ---------------------------------------------------------------------------------------------------------


def of_logits(divergence):
    return lambda p, q: divergence(p.log_softmax(-1), q.log_softmax(-1))


def lopsided(log_p, log_q):
    return jensen_shannon(log_p, log_q, 0.2)


@pytest.mark.parametrize("divergence", [*PAIRWISE, lopsided, lambda log_p, log_q: entropy(log_p) + entropy(log_q)])
def test_gradients_are_finite_differences(divergence):
    p, q = logits(2, 4).requires_grad_(), logits(2, 4, seed=1).requires_grad_()
    assert gradcheck(of_logits(divergence), (p, q))
    assert gradgradcheck(of_logits(divergence), (p, q))


def test_bernoulli_gradients_are_finite_differences():
    p, q = (logits(6, seed=seed).sigmoid().requires_grad_() for seed in (0, 1))
    assert gradcheck(bernoulli_kl, (p, q))


def test_gaussian_gradients_are_finite_differences():
    mean_p, cov_p, mean_q, cov_q = (part.requires_grad_() for part in gaussians(2, (2,)))

    def symmetric(mean_p, cov_p, mean_q, cov_q):
        return gaussian_kl(mean_p, (cov_p + cov_p.mT) / 2, mean_q, (cov_q + cov_q.mT) / 2)

    assert gradcheck(symmetric, (mean_p, cov_p, mean_q, cov_q))


@pytest.mark.parametrize("divergence", [*PAIRWISE, lopsided])
def test_impossible_classes_have_no_gradient_and_spoil_no_other(divergence):
    p, q = with_zeros()
    value = of_logits(divergence)(p, q)
    assert value.isfinite().all()
    for tensor, gradient in zip((p, q), torch.autograd.grad(value.sum(), (p, q)), strict=True):
        assert gradient.isfinite().all()
        assert (gradient[tensor == -INF] == 0).all()


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("divergence", [*PAIRWISE, lopsided])
def test_possible_classes_beside_impossible_ones_have_the_gradient_of_finite_differences(divergence, row):
    p, q = (tensor.detach()[row] for tensor in with_zeros())
    possible = p > -INF

    def of_possible(numbers):
        return of_logits(divergence)(p.masked_scatter(possible, numbers), q)

    numbers = p[possible].requires_grad_()
    (gradient,) = torch.autograd.grad(of_possible(numbers), numbers)
    expected = central_differences(of_possible, numbers.detach())
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_entropy_of_impossible_classes_has_a_finite_gradient():
    p, _ = with_zeros()
    (gradient,) = torch.autograd.grad(entropy(p.log_softmax(-1)).sum(), p)
    assert gradient.isfinite().all()


def test_an_infinite_divergence_neither_hides_nor_poisons_others():
    p, q = logits(2, 3).requires_grad_(), logits(2, 3, seed=1)
    q[0, 1] = -INF
    q.requires_grad_()
    value = kl(p.log_softmax(-1), q.log_softmax(-1))
    assert value[0] == INF
    assert value[1].isfinite()
    gradients = torch.autograd.grad(masked_mean(value, value.isfinite()), (p, q))
    alone = torch.autograd.grad(kl(p[1].log_softmax(-1), q[1].log_softmax(-1)), (p, q))
    for gradient, expected in zip(gradients, alone, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_a_probability_that_underflows_is_not_zero():
    log_p = torch.tensor([0.0, -1000.0], dtype=torch.float64, requires_grad=True)
    impossible, far = torch.tensor([0.0, -INF]).double(), torch.tensor([0.0, -2000.0]).double()
    assert kl(log_p, impossible).item() == INF
    assert kl(log_p, far).item() == 0
    assert torch.autograd.grad(kl(log_p, impossible), log_p)[0].isfinite().all()


def test_not_a_number_is_not_hidden():
    good, bad = torch.tensor([0.5, 0.5]).log(), torch.tensor([math.nan, 0.0])
    for divergence in PAIRWISE:
        assert divergence(good, bad).isnan()
        assert divergence(bad, good).isnan()
    assert bernoulli_kl(torch.tensor([-0.1, 1.1, 0.5, 0.5]), torch.tensor([0.5, 0.5, -0.1, 1.1])).isnan().all()


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_bernoulli_gradients_at_the_ends_are_finite(p):
    p, q = (
        torch.tensor(p, dtype=torch.float64, requires_grad=True),
        torch.tensor(0.3, dtype=torch.float64, requires_grad=True),
    )
    by_p, by_q = torch.autograd.grad(bernoulli_kl(p, q), (p, q))
    assert by_p.isfinite()
    assert by_q.item() == pytest.approx(1 / (1 - 0.3) if p == 0 else -1 / 0.3)
    same = torch.autograd.grad(bernoulli_kl(p, p.detach().requires_grad_()), p)
    assert same[0].isfinite()


# -- means, kinds of number, shapes ------------------------------------------------------------------------------------


def test_masked_mean_is_the_mean_of_what_counts():
    values = torch.tensor([[1.0, INF], [math.nan, 4.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False], [False, True]])
    mean = masked_mean(values, mask)
    assert mean.item() == 2.5
    (gradient,) = torch.autograd.grad(mean, values)
    assert gradient.tolist() == [[0.5, 0], [0, 0.5]]


def test_masked_mean_of_nothing_is_zero_and_moves_nothing():
    values = torch.ones(3, requires_grad=True)
    mean = masked_mean(values, torch.zeros(3, dtype=torch.bool))
    assert mean.item() == 0
    assert torch.autograd.grad(mean, values)[0].eq(0).all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    p, q = (logits(3, 4, seed=seed).log_softmax(-1).to(half) for seed in (0, 1))
    for divergence in PAIRWISE:
        assert divergence(p, q).dtype == torch.float32
        torch.testing.assert_close(divergence(p, q), divergence(p.float(), q.float()), rtol=0, atol=0)
    assert entropy(p).dtype == torch.float32
    assert masked_mean(p, p > -1).dtype == torch.float32
    assert bernoulli_kl(p.sigmoid(), q.sigmoid()).dtype == torch.float32
    mean, cov = torch.zeros(3, 2, dtype=half), torch.eye(2, dtype=half).expand(3, 2, 2)
    assert gaussian_kl(mean, cov, mean + 1, cov).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 4), (0, 4)])
def test_only_the_last_axis_is_reduced_and_float64_stays(shape):
    p, q = logits(*shape).log_softmax(-1), logits(*shape, seed=1).log_softmax(-1)
    for divergence in PAIRWISE:
        value = divergence(p, q)
        assert value.shape == shape[:-1]
        assert value.dtype == torch.float64
    assert entropy(p).shape == shape[:-1]
    assert bernoulli_kl(p.exp(), q.exp()).shape == shape


@pytest.mark.parametrize("function", [*PAIRWISE, bernoulli_kl, masked_mean])
def test_shapes_that_differ_are_refused_where_they_would_broadcast(function):
    first, second = torch.full((2, 3), 0.5), torch.full((1, 3), 0.5)
    with unchecked(), pytest.raises(InputError, match=r"\[2, 3\] and \[1, 3\]"):
        function(first, second.bool() if function is masked_mean else second)


@pytest.mark.parametrize("weight", [0, 1, -0.1, 1.1, math.nan])
def test_a_weight_outside_is_refused(weight):
    p = torch.tensor([0.5, 0.5]).log()
    with pytest.raises(InputError, match="weight"):
        jensen_shannon(p, p, float(weight))


def test_the_divergences_of_heads_are_found_here_too():
    assert linear_kl is linear_kl_of_heads


@pytest.mark.parametrize("name", divergences.__all__)
def test_headings_of_docstrings_stand_on_lines_of_their_own(name):
    lines = [line.strip() for line in inspect.getdoc(getattr(divergences, name)).splitlines()]
    assert all(set(line) == {"-"} for line in lines if "---" in line)
