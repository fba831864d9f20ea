"""Advantages and the clipped surrogate: loops written plainly, invariances, the gradient, what is masked."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from oracles import clipped_surrogate_by_cases, group_advantages_by_loop
from sanov.advantages import clipped_surrogate, group_advantages
from sanov.core.errors import InputError
from strategies import modest, unchecked

SCALES = ("group", "batch", "none")
some_rewards = st.lists(st.floats(-5, 5), min_size=12, max_size=12)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("scale", SCALES)
@modest
@given(rewards=some_rewards, group_size=st.sampled_from([2, 3, 4, 6, 12]))
def test_advantages_are_those_of_a_loop(scale, rewards, group_size):
    expected = group_advantages_by_loop(rewards, group_size, scale, eps=1e-6)
    ours = group_advantages(tensor(rewards), group_size, scale, eps=1e-6)
    # a group of nearly equal rewards divides its rounding, 1e-15, by eps
    torch.testing.assert_close(ours, tensor(expected), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize(
    ("rewards", "first", "last"),
    [([1, 0, 0, 1], 0.5 / (math.sqrt(1 / 3) + 1e-6), None), ([1, 0, 0, 0], 0.75 / (0.5 + 1e-6), -0.25 / (0.5 + 1e-6))],
)
def test_worked_values_of_a_verifier(rewards, first, last):
    advantages = group_advantages(tensor([float(reward) for reward in rewards]), 4)
    assert advantages[0].item() == pytest.approx(first, rel=1e-14)
    assert last is None or advantages[-1].item() == pytest.approx(last, rel=1e-14)


@modest
@given(some_rewards, st.sampled_from(SCALES), st.floats(-10, 10), st.floats(0.1, 10))
def test_advantages_sum_to_zero_and_ignore_shifts_and_with_a_deviation_units(rewards, scale, shift, unit):
    rewards = tensor(rewards) + torch.arange(12) % 3  # no group is constant: eps would count there
    advantages = group_advantages(rewards, 3, scale, eps=0.0)
    close = {"rtol": 1e-6, "atol": 1e-9}
    torch.testing.assert_close(advantages.view(-1, 3).sum(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(group_advantages(rewards + shift, 3, scale, eps=0.0), advantages, **close)
    if scale == "none":
        advantages = advantages * unit
    torch.testing.assert_close(group_advantages(unit * rewards, 3, scale, eps=0.0), advantages, **close)


@modest
@given(st.floats(-5, 5), st.sampled_from(["group", "none"]), st.integers(2, 8))
def test_equal_rewards_have_exactly_no_advantage(reward, scale, group_size):
    rewards = torch.full((group_size,), reward, dtype=torch.float32)
    assert (group_advantages(rewards, group_size, scale) == 0).all()


def test_groups_do_not_see_one_another_unless_the_scale_is_the_batch():
    rewards = tensor([0, 1, 0, 1, 5, 5, 0, 100])
    for scale in SCALES:
        together, alone = group_advantages(rewards, 4, scale)[:4], group_advantages(rewards[:4], 4, scale)
        assert torch.equal(together, alone) == (scale != "batch")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_whole_numbers_are_rewards_too(dtype):
    rewards = torch.tensor([1, 0, 0, 1, 1, 1, 0, 1], dtype=dtype)
    for scale in SCALES:
        ours = group_advantages(rewards, 4, scale)
        assert torch.equal(ours, group_advantages(rewards.float(), 4, scale))
        assert ours.dtype == torch.float32


@pytest.mark.parametrize(("group_size", "rows"), [(1, 4), (3, 4), (0, 4)])
def test_a_group_size_that_does_not_fit_is_refused(group_size, rows):
    with pytest.raises(InputError, match=f"it is {group_size}, with {rows} rewards"):
        group_advantages(torch.zeros(rows), group_size)


def test_an_unknown_scale_is_refused():
    with unchecked(), pytest.raises(InputError, match="global"):
        group_advantages(torch.zeros(4), 2, "global")


# -- the clipped surrogate ---------------------------------------------------------------------------------------------

ROWS, TOKENS = 6, 5


def tokens(seed=0, spread=0.4):
    generator = torch.Generator().manual_seed(seed)
    log_old = -torch.rand(ROWS, TOKENS, dtype=torch.float64, generator=generator)
    log_new = log_old + spread * torch.randn(ROWS, TOKENS, dtype=torch.float64, generator=generator)
    advantages = torch.randn(ROWS, dtype=torch.float64, generator=generator)
    mask = torch.rand(ROWS, TOKENS, generator=generator) < 0.8
    return log_new.requires_grad_(), log_old, advantages, mask


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.05, 0.6), (0.0, 0.0), (1.0, 0.1)])
@pytest.mark.parametrize("by_token", [False, True])
def test_values_and_gradients_are_those_of_the_cases(low, high, by_token):
    log_new, log_old, advantages, mask = tokens()
    if by_token:
        advantages = torch.randn(ROWS, TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    surrogate = clipped_surrogate(log_new, log_old, advantages, mask, low, high)
    (gradient,) = torch.autograd.grad(surrogate.sum(), log_new)
    clipped = 0
    for row in range(ROWS):
        for token in range(TOKENS):
            ratio = math.exp(log_new[row, token].item() - log_old[row, token].item())
            advantage = (advantages[row, token] if by_token else advantages[row]).item()
            value, slope = clipped_surrogate_by_cases(ratio, advantage, low, high)
            inside = bool(mask[row, token])
            clipped += inside and slope == 0
            assert surrogate[row, token].item() == pytest.approx(value * inside, rel=1e-12)
            assert gradient[row, token].item() == pytest.approx(slope * ratio * inside, rel=1e-12)
    assert clipped > 0  # the case is worth something


def test_on_policy_nothing_is_clipped_and_the_gradient_is_the_advantage():
    log_new, _, advantages, mask = tokens()
    surrogate = clipped_surrogate(log_new, log_new.detach(), advantages, mask, 0.2, 0.2)
    expected = (advantages[:, None] * mask).expand(ROWS, TOKENS)
    torch.testing.assert_close(surrogate, expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(surrogate.sum(), log_new)[0], expected, rtol=0, atol=0)


def test_its_expectation_on_policy_climbs_the_expected_reward():
    logits = tensor([0.3, -0.2, 0.5]).requires_grad_()
    rewards = tensor([1.0, 0.0, 0.4])
    log_p = logits.log_softmax(-1)[:, None]
    one = torch.ones(3, 1, dtype=torch.bool)
    surrogate = clipped_surrogate(log_p, log_p.detach(), rewards, one, 0.2, 0.2)[:, 0]
    (gradient,) = torch.autograd.grad((log_p.detach().exp()[:, 0] * surrogate).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad((log_p.exp()[:, 0] * rewards).sum(), logits)
    torch.testing.assert_close(gradient, exact, rtol=1e-12, atol=1e-15)


def test_the_clipped_one_never_exceeds_the_unclipped():
    log_new, log_old, advantages, mask = tokens(seed=1)
    plain = (log_new - log_old).exp() * advantages[:, None]
    assert (
        clipped_surrogate(log_new, log_old, advantages, mask, 0.2, 0.3) <= plain.masked_fill(~mask, 0) + 1e-15
    ).all()


def test_what_is_masked_is_zero_and_has_no_gradient_whatever_stands_there():
    log_new, log_old, advantages, mask = tokens()
    bad_new = log_new.detach().masked_fill(~mask, math.nan).requires_grad_()
    bad_old = log_old.masked_fill(~mask, -math.inf)
    ours = clipped_surrogate(bad_new, bad_old, advantages, mask, 0.2, 0.2)
    expected = clipped_surrogate(log_new, log_old, advantages, mask, 0.2, 0.2)
    assert torch.equal(ours, expected)
    by_bad, by_good = (torch.autograd.grad(x.sum(), y)[0] for x, y in ((ours, bad_new), (expected, log_new)))
    assert torch.equal(by_bad, by_good)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("log_new", "log_old"), [(0.0, -100.0), (0.0, -1000.0), (-1.0, -math.inf)], ids=["100", "1000", "infinite"]
)
def test_a_ratio_beyond_the_range_of_floats_spoils_nothing(dtype, log_new, log_old):
    advantages = torch.tensor([0.0, 2.0, -0.5], dtype=dtype, requires_grad=True)
    new, old = (torch.full((3, 1), value, dtype=dtype, requires_grad=True) for value in (log_new, log_old))
    surrogate = clipped_surrogate(new, old, advantages, torch.ones(3, 1, dtype=torch.bool), 0.2, 0.3)
    assert surrogate[0].item() == 0
    assert surrogate[1].item() == pytest.approx(2 * 1.3)
    assert -math.inf < surrogate[2].item() < -1e38
    for gradient in torch.autograd.grad(surrogate.sum(), (new, old, advantages)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "log_ratio"), [(torch.float32, 88.7), (torch.float64, 709.7), (torch.float64, -740.0)]
)
def test_a_ratio_within_the_range_of_floats_is_left_alone(dtype, log_ratio):
    new = torch.full((1, 1), log_ratio, dtype=dtype, requires_grad=True)
    old, advantages = torch.zeros(1, 1, dtype=dtype), torch.tensor([-0.5], dtype=dtype)
    surrogate = clipped_surrogate(new, old, advantages, torch.ones(1, 1, dtype=torch.bool), 0.2, 0.2)
    expected = torch.minimum(new.exp() * -0.5, new.exp().clamp(0.8, 1.2) * -0.5)
    assert torch.equal(surrogate, expected)
    assert torch.equal(*(torch.autograd.grad(x.sum(), new)[0] for x in (surrogate, expected)))


def test_gradients_are_finite_differences():
    log_new, log_old, advantages, mask = tokens(seed=2)
    assert gradcheck(
        lambda new, a: clipped_surrogate(new, log_old, a, mask, 0.2, 0.3), (log_new, advantages.requires_grad_())
    )


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    log_new, log_old, advantages, mask = (part.detach() for part in tokens())
    narrow = [part.to(half) for part in (log_new, log_old, advantages)]
    surrogate = clipped_surrogate(*narrow, mask, 0.2, 0.2)
    assert surrogate.dtype == torch.float32
    assert torch.equal(surrogate, clipped_surrogate(*(part.float() for part in narrow), mask, 0.2, 0.2))
    assert group_advantages(narrow[2], 2).dtype == torch.float32


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.2), (1.1, 0.2), (0.2, -0.1), (math.nan, 0.2)])
def test_a_clip_range_that_is_none_is_refused(low, high):
    with pytest.raises(InputError, match="clip range"):
        clipped_surrogate(*tokens(), low, high)
