"""The mathematics of LaSeR against closed forms, autograd and worked numbers."""

import math

import pytest
import torch
from scipy.optimize import brentq

from sanov.advantages import group_advantages
from sanov.core.errors import InputError
from sanov.systems.laser import (
    class_weights,
    label_losses,
    log_normaliser_term,
    mixed_advantages,
    self_reward,
    squared_errors,
)
from sanov.tilting import log_normaliser, tilt


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def loss(scores, right, counted=None, *, balanced=True):
    """The loss of a step, as the training loop forms it: the sum over rows, divided by the number of those that count."""
    counted = torch.ones_like(right) if counted is None else counted
    n_right, n_wrong = int((right & counted).sum()), int((~right & counted).sum())
    weights = class_weights(right, counted, n_right, n_wrong, balanced=balanced)
    return squared_errors(scores, right, weights).sum() / max(n_right + n_wrong, 1)


# -- the tilt ---------------------------------------------------------------------------------------------------------


def test_the_score_is_the_reward_less_what_the_normaliser_takes():
    """Over six tokens of which one label is rewarded."""
    beta, label = 0.1, 2
    reference = numbers(0.4, 0.3, 0.01, 0.15, 0.1, 0.04).log()
    reward = torch.zeros(6, dtype=torch.float64).index_fill(0, torch.tensor([label]), 1.0)
    best = tilt(reference, reward, beta)
    z = 1 + 0.01 * (math.exp(1 / beta) - 1)
    term = beta * math.log(z)
    assert float(log_normaliser(reference, reward, beta)) == pytest.approx(math.log(z), abs=1e-12)
    assert float(log_normaliser_term(reference[label], beta)) == pytest.approx(term, abs=1e-12)
    torch.testing.assert_close(self_reward(best, reference, beta) + term, reward, rtol=0, atol=1e-12)
    corrected = self_reward(best[[label]], reference[[label]], beta, correction=True)
    torch.testing.assert_close(corrected, numbers(1.0), rtol=0, atol=1e-12)


SIZES = {  # of beta log Z: by beta, at log pi_ref of -23, -13, -10, -8, -5 and at a uniform one of 64
    0.1: (2.3e-7, 0.0049, 0.069, 0.21, 0.50, 0.58),
    0.25: (1.4e-9, 3.0e-5, 6.1e-4, 0.0045, 0.077, 0.15),
    0.5: (3.3e-10, 7.2e-6, 1.5e-4, 0.0011, 0.021, 0.048),
}


@pytest.mark.parametrize("beta", SIZES)
def test_what_is_neglected_is_small_where_the_reference_is(beta):
    found = log_normaliser_term(numbers(-23, -13, -10, -8, -5, -math.log(64)), beta)
    assert [float(f"{value:.1e}") for value in found.tolist()] == pytest.approx(SIZES[beta], rel=0.02)


def test_the_normaliser_does_not_overflow():
    assert float(log_normaliser_term(numbers(-1000.0), 1e-3)) == pytest.approx(1e-3 * math.log(2), rel=1e-9)


@pytest.mark.parametrize("c_ref", [-4.0, -10.0])
def test_a_corrected_score_of_one_never_needs_a_probability_above_one(c_ref):
    """At beta = 0.1 the plain score would, for both."""
    beta = 0.1
    assert c_ref + 1 / beta >= 0
    needed = brentq(lambda x: float(self_reward(numbers(x), c_ref, beta, correction=True)) - 1, c_ref, 0.0)
    assert needed < 0


# -- the loss ---------------------------------------------------------------------------------------------------------

LOG_SELF = numbers(-4, -6, -8, -7)


def test_the_worked_loss():
    scores = self_reward(LOG_SELF, -8.0, 0.25)
    torch.testing.assert_close(scores, numbers(1, 0.5, 0, 0.25), rtol=0, atol=1e-12)
    both = torch.tensor([True, True, False, False])
    assert float(loss(scores, both)) == pytest.approx(0.078125, abs=1e-12)
    one = torch.tensor([True, False, False, False])
    torch.testing.assert_close(
        class_weights(one, torch.ones(4, dtype=torch.bool), 1, 3), numbers(2, 2 / 3, 2 / 3, 2 / 3), rtol=0, atol=1e-12
    )
    assert float(loss(scores, one)) == pytest.approx(0.0520833, abs=5e-8)
    assert float(loss(scores, one, balanced=False)) == pytest.approx(0.078125, abs=1e-12)


def test_the_worked_gradient():
    log_self = LOG_SELF.clone().requires_grad_()
    right = torch.tensor([True, False, False, False])
    (found,) = torch.autograd.grad(loss(self_reward(log_self, -8.0, 0.25), right), log_self)
    torch.testing.assert_close(found, numbers(0, 0.0416667, 0, 0.0208333), rtol=0, atol=5e-8)


def test_the_gradient_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    log_self = (-10 + 4 * torch.rand(40, generator=generator, dtype=torch.float64)).requires_grad_()
    right = torch.rand(40, generator=generator) < 0.3
    counted = torch.rand(40, generator=generator) < 0.8
    beta, c_ref = 0.2, -9.0
    (found,) = torch.autograd.grad(loss(self_reward(log_self, c_ref, beta), right, counted), log_self)
    n = int(counted.sum())
    of_right, of_wrong = (n / (2 * int((which & counted).sum())) for which in (right, ~right))
    weight = torch.where(right, numbers(of_right), numbers(of_wrong)) * counted
    score = beta * (log_self.detach() - c_ref)
    torch.testing.assert_close(found, 2 * weight * beta * (score - right.double()) / n, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ([True, False, False, True], [1, 1, 1, 1]),
        ([True, True, True, False], [2 / 3, 2 / 3, 2 / 3, 2]),
        ([True] * 4, [0.5] * 4),
        ([False] * 4, [0.5] * 4),
    ],
)
def test_weights_of_the_classes(right, expected):
    right = torch.tensor(right)
    n_right = int(right.sum())
    weights = class_weights(right, torch.ones(4, dtype=torch.bool), n_right, 4 - n_right)
    torch.testing.assert_close(weights, numbers(*expected))
    if 0 < n_right < 4:
        assert float(weights.sum()) == pytest.approx(4)


def test_rows_that_were_cut_count_nowhere():
    scores, right = numbers(1, 0.5, 0, 0.25), torch.tensor([True, True, False, False])
    counted = torch.tensor([True, False, True, True])
    without = loss(scores[counted], right[counted])
    assert float(loss(torch.where(counted, scores, torch.nan), right, counted)) == pytest.approx(float(without))


def test_without_a_finished_row_the_loss_is_zero():
    scores = torch.full((3,), torch.nan, dtype=torch.float64, requires_grad=True)
    value = loss(scores, torch.tensor([True, False, True]), torch.zeros(3, dtype=torch.bool))
    value.backward()
    assert float(value.detach()) == 0
    assert float(scores.grad.abs().sum()) == 0


def test_counts_are_those_of_the_step_and_not_of_the_micro_batch():
    scores, right = numbers(0.9, 0.2, 0.4, 0.1, 0.7), torch.tensor([True, False, False, False, True])
    whole = loss(scores, right) * 5
    everything = torch.ones(5, dtype=torch.bool)
    parts = [
        squared_errors(scores[part], right[part], class_weights(right[part], everything[part], 2, 3)).sum()
        for part in (slice(0, 1), slice(1, 3), slice(3, 5))
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), abs=1e-12)


def test_separable_scores_reach_zero_and_one():
    """The squared error alone: the label of right answers rises by 1 / beta, that of wrong ones stays."""
    beta, c_ref = 0.25, -9.5
    log_self = torch.full((8,), c_ref, dtype=torch.float64, requires_grad=True)
    right = torch.tensor([True, False] * 4)
    optimizer = torch.optim.LBFGS([log_self], max_iter=30)

    def closure():
        optimizer.zero_grad()
        value = loss(self_reward(log_self, c_ref, beta), right)
        value.backward()
        return value

    optimizer.step(closure)
    scores = self_reward(log_self.detach(), c_ref, beta)
    torch.testing.assert_close(scores, right.double(), rtol=0, atol=0.02)
    torch.testing.assert_close(log_self.detach(), c_ref + right.double() / beta, rtol=0, atol=0.02 / beta)


def test_the_two_label_verifier_is_cross_entropy():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([3, 4, 3, 3, 4, 3])
    chosen = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    right = labels == 3
    weights = class_weights(right, torch.ones(6, dtype=torch.bool), 4, 2)
    by_class = torch.zeros(5, dtype=torch.float64)
    by_class[3], by_class[4] = 6 / 8, 6 / 4
    expected = torch.nn.functional.cross_entropy(logits, labels, by_class, reduction="none")
    torch.testing.assert_close(label_losses(chosen, weights), expected)


# -- the advantage ----------------------------------------------------------------------------------------------------

RAW = numbers(0.9, 0.1, 1.3, 0.5)
FINISHED = torch.ones(4, dtype=torch.bool)


def test_the_worked_mixture():
    advantages = group_advantages(numbers(1, 0, 0, 1), 4, eps=1e-6)
    assert float(RAW.clamp(0, 1).std()) == pytest.approx(0.4112988, abs=5e-8)
    scored, filtered = mixed_advantages(torch.zeros_like(RAW), RAW, FINISHED, 4, 1.0)
    torch.testing.assert_close(scored, numbers(0.6686137, -1.2764444, 0.9117460, -0.3039153), rtol=0, atol=5e-8)
    mixed, filtered = mixed_advantages(advantages, RAW, FINISHED, 4, 0.1)
    torch.testing.assert_close(mixed, numbers(0.8462829, -0.9070660, -0.6882469, 0.7490300), rtol=0, atol=5e-8)
    assert not filtered.any()


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_scores_that_say_little_leave_advantages_alone(spread):
    """Exactly as they were, and not a share of them; the other group is mixed."""
    advantages = torch.cat([group_advantages(numbers(1, 0, 0, 1), 4), group_advantages(numbers(1, 0, 0, 0), 4)])
    scores = torch.cat([0.4 + spread * numbers(0, 1, 1, 0), RAW])
    mixed, filtered = mixed_advantages(advantages, scores, torch.ones(8, dtype=torch.bool), 4, 0.3)
    assert filtered.tolist() == [True, False]
    assert torch.equal(mixed[:4], advantages[:4])
    assert not torch.equal(mixed[4:], advantages[4:])


def test_the_threshold_is_that_of_scores_within_the_unit_interval():
    """Two that are both far above 1 say the same."""
    mixed, filtered = mixed_advantages(numbers(1, -1), numbers(1.5, 9.0), FINISHED[:2], 2, 0.5, 0.0)
    assert filtered.all()
    assert torch.equal(mixed, numbers(1, -1))


def test_no_gradient_flows_through_scores():
    scores = RAW.clone().requires_grad_()
    mixed, _ = mixed_advantages(numbers(1, -1, -1, 1), scores, FINISHED, 4, 0.1)
    assert not mixed.requires_grad


def test_cut_rows_have_score_zero_in_statistics_and_in_their_own_advantage():
    finished = torch.tensor([True, True, False, True])
    raw = torch.where(finished, RAW, torch.nan)
    found, _ = mixed_advantages(torch.zeros_like(RAW), raw, finished, 4, 1.0)
    held = numbers(0.9, 0.1, 0.0, 0.5)
    torch.testing.assert_close(found, (held - held.mean()) / held.std(), rtol=0, atol=1e-12)
    assert float(found[2]) == float(found.min())


def test_advantages_of_tokens_are_mixed_row_by_row():
    by_row, _ = mixed_advantages(numbers(1, -1, -1, 1), RAW, FINISHED, 4, 0.2)
    by_token, _ = mixed_advantages(numbers(1, -1, -1, 1)[:, None].expand(4, 3), RAW, FINISHED, 4, 0.2)
    torch.testing.assert_close(by_token, by_row[:, None].expand(4, 3))


def test_groups_of_one_cannot_be_mixed():
    with pytest.raises(InputError, match="at least 2 completions per prompt"):
        mixed_advantages(numbers(1, 0), RAW[:2], FINISHED[:2], 1, 0.1)
