"""KDRL's objective for the loops of others, in the shapes that their registries hand over."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from sanov.bridges.policy_losses import policy_loss, prime_rl_loss, teacher_advantages, verl_loss
from sanov.core.errors import InputError
from sanov.loss_checks import check_loss
from strategies import unchecked

ROWS, TOKENS = 3, 5


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)

    def log_probs():
        return -torch.rand(ROWS, TOKENS, generator=generator, dtype=torch.float64) - 0.1

    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    advantages = torch.randn(ROWS, TOKENS, generator=generator, dtype=torch.float64)
    return SimpleNamespace(
        new=log_probs().requires_grad_(), old=log_probs(), teacher=log_probs(), mask=mask, adv=advantages
    )


def gradient(loss, leaf):
    return torch.autograd.grad(loss, leaf)[0]


def by_hand(b, beta, low=0.2, high=0.2):
    """The sums over tokens that count, one after the other."""
    policy, kd = 0.0, 0.0
    for i in range(ROWS):
        for t in range(TOKENS):
            if b.mask[i, t]:
                ratio = (b.new[i, t] - b.old[i, t]).exp()
                policy = policy - torch.minimum(ratio * b.adv[i, t], ratio.clamp(1 - low, 1 + high) * b.adv[i, t])
                kd = kd + (b.new[i, t] - b.teacher[i, t]) ** 2 / 2
    return policy, beta * kd


@pytest.mark.parametrize("kind", [torch.int64, torch.float32, torch.bool])
def test_it_is_the_surrogate_and_k2_whatever_the_type_of_the_mask(batch, kind):
    found = policy_loss(batch.new, batch.teacher, batch.adv, batch.mask.to(kind), beta=0.3, log_old=batch.old)
    policy, kd = by_hand(batch, 0.3)
    expected = (policy + kd) / 7
    torch.testing.assert_close(found.value, expected)
    torch.testing.assert_close(gradient(found.value, batch.new), gradient(expected, batch.new))
    torch.testing.assert_close(found.metrics["policy"] + 0.3 * found.metrics["kd"], found.value.detach())
    counted = batch.mask > 0
    torch.testing.assert_close(found.metrics["kd/k1"], (batch.new - batch.teacher)[counted].mean().detach())


def test_rows_are_averaged_as_asked(batch):
    per_row = [(batch.new[i, :n] - batch.teacher[i, :n]).square() / 2 for i, n in ((0, 5), (1, 2))]
    zero = torch.zeros(ROWS, dtype=torch.float64)
    how = {
        "seq-mean-token-sum": sum(x.sum() for x in per_row) / 2,
        "seq-mean-token-mean": sum(x.mean() for x in per_row) / 2,
    }
    for name, expected in how.items():
        found = policy_loss(batch.new, batch.teacher, zero, batch.mask, beta=1.0, aggregation=name)
        torch.testing.assert_close(found.value, expected)


def test_the_teacher_in_the_advantages_has_the_gradient_of_the_joint_loss(batch):
    batch.old = batch.new.detach()
    shaped = teacher_advantages(batch.adv, batch.old, batch.teacher, batch.mask, beta=0.3)
    joint = policy_loss(batch.new, batch.teacher, batch.adv, batch.mask, beta=0.3, log_old=batch.old)
    alone = policy_loss(batch.new, None, shaped, batch.mask, beta=0.3, log_old=batch.old)
    torch.testing.assert_close(
        gradient(joint.value, batch.new), gradient(alone.value, batch.new), rtol=1e-6, atol=1e-12
    )


@dataclass
class VerlConfig:
    clip_ratio: float = 0.2
    clip_ratio_low: float | None = 0.1
    clip_ratio_high: float | None = 0.4


@pytest.mark.parametrize("config", [VerlConfig(), vars(VerlConfig())])
def test_verls_signature(batch, config):
    registry = {"kdrl": verl_loss(beta=0.3)}
    arguments = {"old_log_prob": batch.old, "log_prob": batch.new, "advantages": batch.adv, "response_mask": batch.mask}
    about = {"loss_agg_mode": "token-mean", "config": config, "rollout_is_weights": None}
    loss, told = registry["kdrl"](**arguments, **about, teacher_log_prob=batch.teacher)
    policy, kd = by_hand(batch, 0.3, 0.1, 0.4)
    torch.testing.assert_close(loss, (policy + kd) / 7)
    assert all(isinstance(value, float) for value in told.values())
    alone, _ = registry["kdrl"](**arguments, **about)
    torch.testing.assert_close(alone, by_hand(batch, 0.3, 0.1, 0.4)[0] / 7)


@dataclass
class LossInputs:
    trainer_logprobs: torch.Tensor
    inference_logprobs: torch.Tensor
    ref_logprobs: torch.Tensor | None
    advantages: torch.Tensor
    loss_mask: torch.Tensor
    loss_weights: torch.Tensor | None = field(default=None)


def test_prime_rls_sequences_add_up_to_the_batch(batch):
    sequences = [
        LossInputs(batch.new[i], batch.old[i], batch.teacher[i], batch.adv[i], batch.mask[i] > 0) for i in range(ROWS)
    ]
    total = sum(prime_rl_loss(inputs, beta=0.3).loss for inputs in sequences)
    policy, kd = by_hand(batch, 0.3)
    torch.testing.assert_close(total, policy + kd)
    assert prime_rl_loss(sequences[0], beta=0.3).metrics["kd"].ndim == 0


def test_it_follows_the_reverse_kl():
    def own(log_policy, log_teacher):
        return policy_loss(log_policy, log_teacher, torch.zeros(1, 1), torch.ones(1, 1), beta=0.7).value

    found = check_loss(own)
    assert (found.follows, found.scale[0]) == ("reverse KL", pytest.approx(0.7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_teacher": torch.zeros(ROWS, TOKENS - 1)}, "shape"),
        ({"mask": torch.zeros(ROWS, TOKENS)}, "no token counts"),
        ({"estimator": "k1"}, "zero expected gradient"),
        ({"aggregation": "mean"}, "token-mean"),
        ({"clip_low": 2.0}, "clip range"),
    ],
)
def test_what_is_wrong_is_said(batch, change, message):
    arguments = {
        "log_policy": batch.new,
        "log_teacher": batch.teacher,
        "advantages": batch.adv,
        "mask": batch.mask,
        "beta": 1,
    }
    with unchecked(), pytest.raises(InputError, match=message):
        policy_loss(**{**arguments, **change})
