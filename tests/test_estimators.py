"""Estimators of KL by enumeration: their expectations, and what their gradients as losses follow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from sanov.core.errors import InputError
from sanov.divergences import kl
from sanov.estimators import k1, k2, k3, linear_token_log_probs, score_gradient_target, token_log_probs
from sanov.linear_heads import linear_token_log_probs as linear_token_log_probs_of_heads
from strategies import log_probs, modest, unchecked

CLASSES = 5
KINDS = {"k1": k1, "k2": k2, "k3": k3}
# 50 nats of the ratio make terms of exp(16), which cancel: the error of float64 grows with them
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def expected_gradient(estimator, logits, log_q):
    """Expected gradient of the estimator used as a loss: each outcome a fixed sample, weighted by its probability."""
    log_p = logits.log_softmax(-1)
    losses = estimator(log_p - log_q)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in losses]
    return sum(p * gradient for p, gradient in zip(log_p.detach().exp(), gradients, strict=True))


def targets(logits, log_q):
    """Gradients of what a loss may follow, by the names of `score_gradient_target`."""
    log_p = logits.log_softmax(-1)
    return {
        "zero": torch.zeros_like(logits),
        "reverse_kl": torch.autograd.grad(kl(log_p, log_q), logits, retain_graph=True)[0],
        "forward_kl": torch.autograd.grad(kl(log_q, log_p), logits)[0],
    }


@modest
@given(log_probs(CLASSES, zeros=False), log_probs(CLASSES, zeros=False))
def test_k1_and_k3_are_unbiased_and_k2_is_not(log_p, log_q):
    means = {name: (log_p.exp() * estimator(log_p - log_q)).sum() for name, estimator in KINDS.items()}
    torch.testing.assert_close(means["k1"], kl(log_p, log_q), **CLOSE)
    torch.testing.assert_close(means["k3"], kl(log_p, log_q), **CLOSE)
    torch.testing.assert_close(means["k2"], (log_p.exp() * (log_p - log_q) ** 2).sum() / 2, **CLOSE)


def test_the_bias_of_k2_is_of_third_order():
    direction = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
    biases = []
    for step in (0.1, 0.05, 0.025):
        log_p, log_q = (step * direction).log_softmax(-1), (-step * direction.square()).log_softmax(-1)
        biases.append(abs((log_p.exp() * k2(log_p - log_q)).sum() - kl(log_p, log_q)).item())
    assert biases[0] / biases[1] == pytest.approx(8, rel=0.1)
    assert biases[1] / biases[2] == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
@modest
@given(logits=log_probs(CLASSES, zeros=False), log_q=log_probs(CLASSES, zeros=False))
def test_the_gradient_of_each_as_a_loss_follows_its_target(kind, logits, log_q):
    logits.requires_grad_()
    gradient = expected_gradient(KINDS[kind], logits, log_q)
    torch.testing.assert_close(gradient, targets(logits, log_q)[score_gradient_target(kind)], **CLOSE)


def test_the_targets_are_told_apart():
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
    log_q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    found = targets(logits, log_q)
    # by hand: p (log p/q - KL), and p - q
    reverse = torch.tensor([0.3462430, -0.2203891, -0.1258540], dtype=torch.float64)
    torch.testing.assert_close(found["reverse_kl"], reverse, rtol=0, atol=1e-7)
    torch.testing.assert_close(found["forward_kl"], torch.tensor([0.3, -0.2, -0.1], dtype=torch.float64))
    for kind in KINDS:
        gradient = expected_gradient(KINDS[kind], logits, log_q)
        near = [name for name, target in found.items() if torch.allclose(gradient, target, atol=1e-9)]
        assert near == [score_gradient_target(kind)]


def test_k3_loses_its_mean_where_q_has_mass_outside_the_support_of_p():
    log_p = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    log_q = torch.tensor([0.4, 0.4], dtype=torch.float64).log()  # and 0.2 on a class that p never gives
    mean = (log_p.exp() * k3(log_p - log_q)).sum()
    torch.testing.assert_close(mean, kl(log_p, log_q) - 0.2, rtol=1e-12, atol=0)


@modest
@given(st.floats(-20, 20))
def test_k2_and_k3_are_never_negative_and_zero_only_at_zero(log_ratio):
    ratio = torch.tensor([log_ratio, 0.0], dtype=torch.float64)
    for estimator in (k2, k3):
        values = estimator(ratio)
        assert values[0] >= -1e-15
        assert values[1] == 0
        assert abs(log_ratio) < 1e-6 or values[0] > 0
    assert k1(ratio)[0] == log_ratio


def test_k3_keeps_its_digits_near_zero():
    ratio = torch.tensor([1e-5, -1e-5], dtype=torch.float64)
    torch.testing.assert_close(k3(ratio), ratio**2 / 2 - ratio**3 / 6, rtol=1e-9, atol=0)


def test_gradients_are_finite_differences():
    ratio = torch.linspace(-2, 2, 7, dtype=torch.float64, requires_grad=True)
    for estimator in KINDS.values():
        assert gradcheck(estimator, ratio)


def test_an_estimator_that_does_not_exist_is_refused():
    with unchecked(), pytest.raises(InputError, match="k4"):
        score_gradient_target("k4")


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_token_log_probs_are_the_log_softmax_at_the_tokens(shape, kind):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(*shape, 9, dtype=torch.float64, generator=generator)
    logits[..., 0] = -torch.inf
    logits.requires_grad_()
    tokens = torch.randint(1, 9, shape, generator=generator).to(kind)
    expected = logits.log_softmax(-1).gather(-1, tokens.long()[..., None])[..., 0]
    values = token_log_probs(logits, tokens)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-14)
    ours, theirs = (torch.autograd.grad(result.sum(), logits)[0] for result in (values, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_forbidden_token_has_probability_zero():
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    assert token_log_probs(logits, torch.tensor([1])).item() == -torch.inf


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).to(half)
    tokens = torch.arange(4)
    values = token_log_probs(logits, tokens)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, token_log_probs(logits.float(), tokens), rtol=0, atol=0)
    for estimator in KINDS.values():
        assert estimator(logits).dtype == torch.float32


def test_the_chunked_one_is_found_here_too_and_agrees():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in (6, 11))
    tokens = torch.arange(6)
    torch.testing.assert_close(
        linear_token_log_probs(hidden, weight, tokens, chunk=2), token_log_probs(hidden @ weight.T, tokens)
    )
    assert linear_token_log_probs is linear_token_log_probs_of_heads


class _Saved:
    """Sizes of what autograd keeps for the backward pass, counted once for each storage."""

    def __init__(self):
        self.storages = {}

    def pack(self, tensor):
        self.storages[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor


def test_no_second_array_of_the_size_of_the_logits_is_kept():
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)).requires_grad_()
    saved = _Saved()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        token_log_probs(logits, torch.zeros(64, dtype=torch.int64))
    large = [place for place, size in saved.storages.items() if size >= logits.numel()]
    assert large == [logits.untyped_storage().data_ptr()]
