"""Tilts: the maximum they attain, the way back to the reward, geometric averages, and what stays impossible."""

import inspect
import math

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from sanov.core.errors import InputError
from sanov.divergences import kl
from sanov.tilting import equivalent_beta, geometric_average, implicit_reward, log_normaliser, mix, tilt
from strategies import log_probs, modest

CLASSES = 5
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
INF = math.inf
betas = st.floats(0.1, 10)
rewards = st.lists(st.floats(-3, 3), min_size=CLASSES, max_size=CLASSES).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def objective(log_p, log_ref, reward, beta):
    return (log_p.exp() * reward).sum(-1) - beta * kl(log_p, log_ref)


@modest
@given(log_probs(CLASSES), rewards, betas)
def test_the_tilt_is_the_formula_and_normalised(log_ref, reward, beta):
    unnormalised = log_ref.exp() * torch.exp(reward / beta)
    tilted = tilt(log_ref, reward, beta)
    torch.testing.assert_close(tilted.exp(), unnormalised / unnormalised.sum(), **CLOSE)
    torch.testing.assert_close(log_normaliser(log_ref, reward, beta), unnormalised.sum().log(), **CLOSE)
    assert (tilted[log_ref == -INF] == -INF).all()


@modest
@given(log_probs(CLASSES), rewards, betas, log_probs(CLASSES, zeros=False))
def test_the_tilt_attains_the_maximum_which_is_beta_log_z_and_nothing_exceeds_it(log_ref, reward, beta, log_other):
    most = beta * log_normaliser(log_ref, reward, beta)
    best = tilt(log_ref, reward, beta)
    torch.testing.assert_close(objective(best, log_ref, reward, beta), most, **CLOSE)
    other = log_other.masked_fill(log_ref == -INF, -INF).log_softmax(-1)
    # what any other p loses is its divergence from the tilt
    loss = most - objective(other, log_ref, reward, beta)
    torch.testing.assert_close(loss, beta * kl(other, best), rtol=1e-8, atol=1e-8)


@modest
@given(log_probs(2, CLASSES, zeros=False), rewards, betas)
def test_the_implicit_reward_of_a_tilt_is_the_reward_less_beta_log_z(log_ref, reward, beta):
    reward = torch.stack([reward, reward.flip(0)])
    implicit = implicit_reward(tilt(log_ref, reward, beta), log_ref, beta)
    constant = beta * log_normaliser(log_ref, reward, beta)
    torch.testing.assert_close(implicit + constant[:, None], reward, **CLOSE)


@modest
@given(log_probs(CLASSES), rewards, betas, st.floats(-100, 100))
def test_a_constant_of_the_reward_changes_only_the_normaliser(log_ref, reward, beta, constant):
    close = {"rtol": 1e-9, "atol": 1e-8}
    torch.testing.assert_close(tilt(log_ref, reward + constant, beta), tilt(log_ref, reward, beta), **close)
    moved = log_normaliser(log_ref, reward + constant, beta) - constant / beta
    torch.testing.assert_close(moved, log_normaliser(log_ref, reward, beta), **close)


@modest
@given(log_probs(CLASSES), rewards, rewards, betas)
def test_tilts_compose_by_adding_rewards_and_no_reward_is_no_tilt(log_ref, first, second, beta):
    torch.testing.assert_close(
        tilt(tilt(log_ref, first, beta), second, beta), tilt(log_ref, first + second, beta), **CLOSE
    )
    torch.testing.assert_close(tilt(log_ref, 0 * first, beta), log_ref, **CLOSE)
    assert log_normaliser(log_ref, 0 * first, beta).item() == pytest.approx(0, abs=1e-12)


@modest
@given(log_probs(CLASSES), rewards, betas, st.floats(0, 5))
def test_the_geometric_average_with_a_tilt_is_the_tilt_of_the_equivalent_beta(log_ref, reward, beta, weight):
    average = geometric_average(log_ref, tilt(log_ref, reward, beta), weight)
    equivalent = equivalent_beta(beta, weight)
    torch.testing.assert_close(average, tilt(log_ref, reward, equivalent), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("reward", [[-INF, 0.0, 1.0], [-INF, -INF, -INF], [INF, 0.0, -INF]])
def test_an_infinite_beta_leaves_the_reference_whatever_the_reward_forbids(reward):
    log_ref = torch.tensor([0.2, 0.0, 0.8], dtype=torch.float64).log()
    reward = torch.tensor(reward, dtype=torch.float64, requires_grad=True)
    beta = equivalent_beta(1.0, 0.0)
    tilted = tilt(log_ref, reward, beta)
    torch.testing.assert_close(tilted, log_ref)
    torch.testing.assert_close(tilted, geometric_average(log_ref, torch.zeros(3).double().log_softmax(-1), 0.0))
    assert log_normaliser(log_ref, reward, beta).item() == pytest.approx(0, abs=1e-15)
    assert torch.autograd.grad(tilted[0], reward)[0].tolist() == [0, 0, 0]


@modest
@given(log_probs(CLASSES), log_probs(CLASSES))
def test_the_ends_of_the_geometric_average_are_the_two_distributions(log_ref, log_tuned):
    torch.testing.assert_close(geometric_average(log_ref, log_tuned, 0.0), log_ref, **CLOSE)
    torch.testing.assert_close(geometric_average(log_ref, log_tuned, 1.0), log_tuned, **CLOSE)


@modest
@given(log_probs(CLASSES, zeros=False), log_probs(CLASSES, zeros=False), st.floats(0.05, 0.95))
def test_the_geometric_average_is_nearest_to_both(log_ref, log_tuned, weight):
    average = geometric_average(log_ref, log_tuned, weight)

    def cost(log_p):
        return (1 - weight) * kl(log_p, log_ref) + weight * kl(log_p, log_tuned)

    for other in (log_ref, log_tuned, torch.zeros(CLASSES, dtype=torch.float64).log_softmax(-1)):
        torch.testing.assert_close(cost(other) - cost(average), kl(other, average), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weight", [0.5, 2.0, -1.0])
def test_what_is_impossible_under_either_is_impossible_under_the_average(weight):
    log_ref = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64).log()
    log_tuned = torch.tensor([0.4, 0.6, 0.0], dtype=torch.float64).log()
    assert geometric_average(log_ref, log_tuned, weight).exp().tolist() == [0, 1, 0]
    assert geometric_average(log_ref[:1], log_tuned[:1], weight).isnan().all()  # no class is left


def test_a_forbidden_class_spoils_no_gradient():
    log_ref = torch.tensor([0.0, 1.0, -INF], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, -INF, 2.0], dtype=torch.float64, requires_grad=True)
    log_normaliser(log_ref.log_softmax(-1), reward, 0.5).backward()
    assert log_ref.grad.isfinite().all()
    assert reward.grad.tolist() == [2.0, 0, 0]
    log_tuned = torch.tensor([-INF, 1.0, 0.5], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(geometric_average(log_ref, log_tuned, 0.3)[1], log_tuned)
    assert gradient.isfinite().all()


def test_the_reward_of_what_neither_model_gives_is_undetermined():
    log_p = torch.tensor([0.0, -INF])
    assert implicit_reward(log_p, log_p, 0.1)[1].isnan()


def test_gradients_are_finite_differences():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    assert gradcheck(lambda x, y: tilt(x.log_softmax(-1), y, 0.7), (a, b))
    assert gradcheck(lambda x, y: log_normaliser(x.log_softmax(-1), y, 0.7), (a, b))
    assert gradcheck(lambda x, y: geometric_average(x.log_softmax(-1), y.log_softmax(-1), 1.7), (a, b))
    assert gradcheck(lambda x, y: implicit_reward(x, y, 0.7), (a, b))
    assert gradcheck(lambda x, y: mix(x, y, 1.7), (a, b))


# -- affine combinations -----------------------------------------------------------------------------------------------


@modest
@given(rewards, rewards, st.floats(-2, 5))
def test_a_mixture_is_affine_and_exact_at_its_ends(ref, tuned, weight):
    torch.testing.assert_close(mix(ref, tuned, weight), (1 - weight) * ref + weight * tuned, **CLOSE)
    assert torch.equal(mix(ref, tuned, 0.0), ref)
    assert torch.equal(mix(ref, tuned, 1.0), tuned)
    assert torch.equal(mix(ref, ref, weight), ref)


def test_every_row_may_have_a_weight_of_its_own():
    ref, tuned = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([-1.0, 0.0, 1.0, 2.5])
    found = mix(ref, tuned, weights[:, None])
    for row, weight in enumerate(weights.tolist()):
        torch.testing.assert_close(found[row], mix(ref[row], tuned[row], weight), rtol=0, atol=1e-6)
    assert torch.equal(found[1], ref[1])
    assert torch.equal(found[2], tuned[2])


def test_mixing_scores_averages_densities_geometrically():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    normals = [torch.distributions.Normal(*torch.tensor(pair).double()) for pair in ([0.5, 0.8], [-1.0, 0.6])]
    scores = [torch.autograd.grad(normal.log_prob(x).sum(), x)[0] for normal in normals]
    weight = 0.4
    precision = sum(c / normal.variance for c, normal in zip((1 - weight, weight), normals, strict=True))
    mean = sum(c * n.mean / n.variance for c, n in zip((1 - weight, weight), normals, strict=True)) / precision
    torch.testing.assert_close(mix(*scores, weight), precision * (mean - x.detach()))


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 4.0])
def test_the_equivalent_beta_is_beta_over_the_weight(weight):
    assert equivalent_beta(0.3, weight) * weight == pytest.approx(0.3)


def test_no_weight_is_an_infinite_beta():
    assert equivalent_beta(0.3, 0.0) == INF


# -- kinds of number, mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    log_p = torch.tensor([0.2, 0.8]).log().to(half)
    for result in (
        tilt(log_p, log_p, 0.01),
        log_normaliser(log_p, log_p, 0.01),
        implicit_reward(log_p, log_p, 0.01),
        geometric_average(log_p, log_p, 0.5),
        mix(log_p, log_p, 0.5),
    ):
        assert result.dtype == torch.float32
    torch.testing.assert_close(tilt(log_p, log_p, 0.01), tilt(log_p.float(), log_p.float(), 0.01), rtol=0, atol=0)


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta):
    log_p = torch.tensor([0.2, 0.8]).log()
    for function in (tilt, log_normaliser, implicit_reward):
        with pytest.raises(InputError, match="beta"):
            function(log_p, log_p, beta)
    with pytest.raises(InputError, match="beta"):
        equivalent_beta(beta, 1.0)


@pytest.mark.parametrize("weight", [-0.5, math.nan])
def test_no_beta_is_equivalent_to_a_negative_weight(weight):
    with pytest.raises(InputError, match="weight"):
        equivalent_beta(0.1, weight)


def test_annotations_are_checked_here():
    with pytest.raises(jaxtyping.TypeCheckError):
        tilt(torch.zeros(3), torch.zeros(4), 1.0)


@pytest.mark.parametrize(
    "function",
    [tilt, log_normaliser, implicit_reward, geometric_average, mix, equivalent_beta],
    ids=lambda function: function.__name__,
)
def test_headings_of_a_docstring_stand_on_lines_of_their_own(function):
    assert "\nReturns\n-------\n" in inspect.getdoc(function)
