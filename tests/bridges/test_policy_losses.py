"""KDRL's objective for the loops of others, in the shapes that their registries hand over."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from learning.policy_toy import EOS, Table, rollouts_of
from learning.policy_toy import gradient as of_the_loop
from sanov.bridges.policy_losses import policy_loss, prime_rl_loss, teacher_advantages, verl_loss
from sanov.core.errors import InputError
from sanov.learning.policy import Grpo
from sanov.loss_checks import check_loss
from sanov.systems import kdrl
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


def test_a_sequence_without_a_teacher_is_refused_and_one_without_tokens_is_nothing(batch):
    inputs = LossInputs(batch.new[0], batch.old[0], None, batch.adv[0], batch.mask[0] > 0)
    with pytest.raises(InputError, match="no log-probabilities of a teacher"):
        prime_rl_loss(inputs)
    inputs.teacher_logprobs, inputs.loss_mask = batch.teacher[0], batch.mask[0] < 0
    assert float(prime_rl_loss(inputs).loss.detach()) == 0


def test_weights_and_masks_count_token_by_token():
    log_policy = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    mask, kd_mask = torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])
    teacher, zero = torch.full((1, 3), -1.5), torch.zeros(1)
    found = policy_loss(log_policy, teacher, zero, mask, beta=2.0, kd_mask=kd_mask, aggregation="sum")
    assert gradient(found.value, log_policy).tolist() == [[0, -1, 0]]
    weights = torch.tensor([[1.0, 3.0, 1.0]])
    weighted = policy_loss(log_policy, teacher, zero, mask, beta=2.0, weights=weights, aggregation="sum")
    assert float(weighted.value.detach()) == pytest.approx(2 * (0.125 + 3 * 0.125))


# -- the same as our own loop -----------------------------------------------------------------------------------------

TEXTS = [(0, 1, EOS), (1, EOS), (EOS,), (1, 0, 1)]


def tokens_of(model, text):
    """Log-probability of each token of a completion."""
    return torch.stack(
        [model.logits[model.places[text[:end]]].log_softmax(-1)[token] for end, token in enumerate(text)]
    )


class Teacher:
    tokenizer = None

    def __init__(self, model):
        self.model = model

    def log_probs(self, rollouts, rows, temperature):
        found = torch.zeros_like(rollouts.log_probs)
        for row, text in enumerate(TEXTS):
            found[row, 1 : 1 + len(text)] = tokens_of(self.model, text).detach()
        return found[rows]


@pytest.mark.parametrize("estimator", ["k2", "k3", "k3_is"])
def test_the_gradient_is_that_of_our_own_loop_on_completions_of_an_older_policy(estimator):
    old, now, teacher = Table(3), Table(4), Table(5)
    log_old = torch.zeros(len(TEXTS), 4, dtype=torch.float64)
    log_new, log_teacher, mask = torch.zeros_like(log_old), torch.zeros_like(log_old), torch.zeros_like(log_old)
    for row, text in enumerate(TEXTS):
        place = slice(1, 1 + len(text))
        log_old[row, place], log_teacher[row, place] = tokens_of(old, text).detach(), tokens_of(teacher, text).detach()
        log_new[row, place], mask[row, place] = tokens_of(now, text), 1
    advantages = torch.tensor([0.7, -0.7, -0.3, 0.3], dtype=torch.float64)
    rewards = [1.0, 0.0, 0.0, 1.0]
    rollouts = rollouts_of(TEXTS, rewards, group_size=4, advantages=advantages, log_probs=log_old.clone())
    kd = kdrl.Distillation(beta=0.3, schedule="constant", estimator=estimator, clip=0.8)
    signal = kdrl.KdSignal(Teacher(teacher), kd, kdrl.Mixing(), steps=1)
    signal.score(rollouts, 0, now)
    grpo = Grpo(iterations=2, clip_low=0.1, clip_high=0.2)
    expected, values = of_the_loop(now, rollouts, [signal], grpo)
    now.zero_grad()
    clips = {"kd_clip": 0.8, "clip_low": 0.1, "clip_high": 0.2}
    found = policy_loss(log_new, log_teacher, advantages, mask, beta=0.3, log_old=log_old, estimator=estimator, **clips)
    found.value.backward()
    torch.testing.assert_close(now.logits.grad.flatten(), expected, rtol=0, atol=1e-12)
    assert float(found.value.detach()) == pytest.approx(values["policy"] + 0.3 * values["kd"], abs=1e-12)


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
