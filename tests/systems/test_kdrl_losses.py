"""The mathematics of KDRL against enumeration, closed forms and autograd."""

import itertools
import math

import numpy as np
import pytest
import torch

from learning.policy_toy import EOS, TOKENIZER, Table, completions, gradient, rollouts_of
from sanov.core.errors import InputError
from sanov.learning.policy import Grpo, advantages_of
from sanov.learning.token_teachers import LocalTeacher
from sanov.systems.kdrl import (
    Distillation,
    KdSignal,
    Mixing,
    coefficient,
    distillation_mask,
    distillation_values,
    exact_values,
    return_to_go,
    token_advantages,
)

P, Q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
REVERSE = torch.tensor([0.3462430, -0.2203891, -0.1258540], dtype=torch.float64)
FORWARD = torch.tensor([0.3, -0.2, -0.1], dtype=torch.float64)


class Fixed:
    """A teacher whose log-probabilities are given, as a table of logits or outright."""

    tokenizer = None

    def __init__(self, known):
        self.known = known

    def log_probs(self, rollouts, rows, temperature):
        if isinstance(self.known, torch.Tensor):
            return self.known[rows]
        found = torch.zeros(len(rows), rollouts.ids.shape[1], dtype=torch.float64)
        for place, row in enumerate(rows.tolist()):
            start, end = int(rollouts.starts[row]), int(rollouts.lengths[row])
            text = tuple(rollouts.ids[row, start:end].tolist())
            for position, token in enumerate(text):
                logits = self.known.logits[self.known.places[text[:position]]].detach()
                found[place, start + position] = logits.log_softmax(-1)[token]
        return found


def signal(teacher, *, steps=100, mixing=None, group_size=1, temperature=1.0, **kd):
    """A signal with a constant coefficient unless something else is said."""
    kd = {"beta": 0.5, "schedule": "constant"} | kd
    found = KdSignal(teacher, Distillation(**kd), mixing or Mixing(), steps=steps)
    found.group_size, found.temperature = group_size, temperature
    return found


def kd_gradient(model, rollouts, found, *, grpo=None, step=0, budget=10**6):
    """Gradient of a step with the signal, which looks at the completions first."""
    found.score(rollouts, step, model)
    found.advantages(rollouts, step)
    return gradient(model, rollouts, [found], grpo, step=step, budget=budget)


# -- estimators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("estimator", "expected"), [("k2", REVERSE), ("k3_is", REVERSE), ("k3", FORWARD)])
def test_the_expected_gradient_of_each_estimator(estimator, expected):
    """Weighted by the probability of each of the three tokens."""
    logits = P.log().requires_grad_()
    log_p = logits.log_softmax(-1)[:, None]
    values = distillation_values(log_p, Q.log()[:, None], torch.ones(3, 1, dtype=torch.bool), estimator)
    (found,) = torch.autograd.grad((P[:, None] * values).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-8)  # the digits of the table
    kl = float((P * (P / Q).log()).sum())
    exact = P * ((P / Q).log() - kl) if estimator != "k3" else P - Q
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


def test_the_expected_values_of_the_estimators():
    ones = torch.ones(3, 1, dtype=torch.bool)
    for estimator, expected in [("k2", 0.2654788), ("k3", 0.2238047), ("k3_is", 0.2238047)]:
        values = distillation_values(P.log()[:, None], Q.log()[:, None], ones, estimator)
        assert float((P[:, None] * values).sum()) == pytest.approx(expected, abs=5e-8)


def test_the_exact_divergence_and_its_gradient():
    logits = (P.log() * 2).requires_grad_()
    (value,) = exact_values(logits[None], Q.log()[None], temperature=2.0)
    assert float(value.detach()) == pytest.approx(0.2238047, abs=5e-8)
    (found,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(2 * found, REVERSE, rtol=0, atol=5e-8)


def test_k1_as_a_loss_is_refused_and_why():
    one, refused = torch.zeros(1, 1), r"k1 as a loss has zero expected gradient.*Use k2, or kd.combine=advantage"
    with pytest.raises(InputError, match=refused):
        distillation_values(one, one, one > -1, "k1")
    with pytest.raises(InputError, match=refused):
        signal(Fixed(Table()), estimator="k1")
    signal(Fixed(Table()), estimator="k1", combine="advantage")
    logits = P.log().requires_grad_()
    (found,) = torch.autograd.grad((P * (logits.log_softmax(-1) - Q.log())).sum(), logits)
    torch.testing.assert_close(found, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-15)


def test_a_clip_holds_the_factor_and_keeps_a_gradient():
    log_p = torch.tensor([[-1.0, -1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    log_q = torch.tensor([[-30.0, -1.5, 2.0]], dtype=torch.float64)
    ones = torch.ones(1, 3, dtype=torch.bool)
    (found,) = torch.autograd.grad(distillation_values(log_p, log_q, ones, "k2", clip=2.0).sum(), log_p)
    assert found.tolist() == [[2.0, 0.5, -2.0]]
    values = distillation_values(log_p, log_q, ones, "k2", clip=2.0)
    assert values.tolist() == [[29**2 / 2, 0.125, 4.5]]


def test_masked_tokens_and_absurd_teachers_leave_no_nan():
    log_p = torch.full((1, 3), -1.0, requires_grad=True)
    log_q = torch.tensor([[-math.inf, -1e4, -1.0]])
    mask = torch.tensor([[False, True, True]])
    for estimator in ("k2", "k3", "k3_is"):
        values = distillation_values(log_p, log_q, mask, estimator)
        (found,) = torch.autograd.grad(values.sum(), log_p)
        assert torch.isfinite(values).all()
        assert torch.isfinite(found).all()
        assert float(values[0, 0].detach()) == 0
        assert float(found[0, 0]) == 0


@pytest.mark.parametrize("estimator", ["k2", "k3", "k3_is", "exact"])
def test_a_teacher_that_is_the_student_teaches_nothing(estimator):
    table = Table(seed=1)
    every = completions()
    teacher = LocalTeacher(Table(seed=1), TOKENIZER) if estimator == "exact" else Fixed(table)
    rollouts = rollouts_of(every)
    found, values = kd_gradient(table, rollouts, signal(teacher, estimator=estimator), grpo=Grpo(scale_rewards="none"))
    assert values["kd"] == pytest.approx(0, abs=1e-15)
    assert float(found.abs().max()) < 1e-15


# -- the objective ----------------------------------------------------------------------------------------------------


def worked(**kd):
    """The worked loss of two rows: three tokens, one right and one wrong row."""
    student = torch.tensor([[0.5, 0.4], [0.25, 0.8]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.25, 0.4], [0.5, 0.1]], dtype=torch.float64).log()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.log = torch.nn.Parameter(student.clone())

        def forward(self, ids, mask, reads):
            return {name: self.log[: len(ids)][read.at[:, :-1][:, : self.log.shape[1]]] for name, read in reads.items()}

    shift = torch.nn.functional.pad(teacher, (1, 0))
    rollouts = rollouts_of([(1, 1), (1,)], rewards=[1.0, 0.0], group_size=2, advantages=[0.7071058, -0.7071058])
    rollouts.log_probs = torch.nn.functional.pad(student, (1, 0)) * rollouts.completion
    found = signal(Fixed(shift), group_size=2, **kd)
    return kd_gradient(Model(), rollouts, found)[1]


def test_the_worked_loss():
    values = worked()
    assert values["policy"] == pytest.approx(-0.2357019, abs=1e-6)
    assert values["kd"] == pytest.approx(0.1601510, abs=1e-6)
    assert worked(estimator="k3")["kd"] == pytest.approx(0.1666667, abs=1e-6)
    assert worked(mask="response")["kd"] == pytest.approx(0.0800755, abs=1e-6)
    assert worked(mask="response", denominator="masked_tokens")["kd"] == pytest.approx(0.2402265, abs=1e-6)
    assert worked(mask="group")["kd"] == 0
    assert worked(mask="group", denominator="masked_tokens").get("kd", 0.0) == 0


@pytest.mark.parametrize("mask", ["none", "response", "group"])
@pytest.mark.parametrize("seed", range(3))
def test_the_joint_loss_is_the_advantage_form_sample_by_sample(seed, mask):
    rng = np.random.default_rng(seed)
    every = completions()
    chosen = [every[i] for i in rng.integers(0, len(every), 8)]
    rewards = rng.integers(0, 2, 8) * (np.arange(8) >= 4 if mask == "group" else 1)
    advantages = rng.standard_normal(8)
    found = {}
    for combine in ("loss", "advantage"):
        table = Table(seed=seed)
        rollouts = rollouts_of(chosen, rewards=rewards, group_size=4, advantages=advantages)
        found[combine], _ = kd_gradient(
            table, rollouts, signal(Fixed(Table(seed=9)), combine=combine, mask=mask, group_size=4)
        )
    torch.testing.assert_close(found["loss"], found["advantage"], rtol=0, atol=1e-12)


def test_beta_zero_is_grpo_bitwise_and_nobody_is_asked():
    class Never:
        tokenizer = None

        def log_probs(self, rollouts, rows, temperature):
            raise AssertionError("asked")

    chosen, weights = completions()[:6], torch.linspace(-1, 1, 6, dtype=torch.float64)
    plain, _ = gradient(Table(), rollouts_of(chosen, advantages=weights))
    with_kd, _values = kd_gradient(
        Table(), rollouts_of(chosen, advantages=weights), signal(Never(), beta=0.0, beta_end=0.0)
    )
    assert torch.equal(plain, with_kd)


def test_equal_rewards_leave_the_teacher_alone():
    """And so does a weight of zero for the rewards."""
    chosen = completions()[:8]
    teacher = Fixed(Table(seed=9))
    equal, _ = kd_gradient(Table(), rollouts_of(chosen, rewards=[1.0] * 8, advantages=[0.0] * 8), signal(teacher))
    muted, _ = kd_gradient(
        Table(),
        rollouts_of(chosen, rewards=[1.0, 0.0] * 4, advantages=[1.0, -1.0] * 4),
        signal(teacher, mixing=Mixing(rl_weight=0.0)),
    )
    assert torch.equal(equal, muted)
    assert float(equal.norm()) > 0.01


def test_masks_are_nested_and_empty_ones_are_zero():
    completion = torch.ones(6, 3, dtype=torch.bool)
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, math.nan])
    every = distillation_mask("none", completion, rewards, 2)
    wrong = distillation_mask("response", completion, rewards, 2)
    failed = distillation_mask("group", completion, rewards, 2)
    assert every.all()
    assert wrong.any(1).tolist() == [False, True, True, True, False, True]
    assert failed.any(1).tolist() == [False, False, True, True, False, False]
    assert (failed <= wrong).all()
    last = torch.zeros_like(completion)
    last[:, 2] = True
    assert distillation_mask("none", completion, rewards, 2, last).sum() == 12
    chosen, right = completions()[:4], [1.0] * 4
    for mask, denominator in itertools.product(["response", "group"], ["all_tokens", "masked_tokens"]):
        weights = torch.linspace(-1, 1, 4, dtype=torch.float64)
        plain, _ = gradient(Table(), rollouts_of(chosen, advantages=weights))
        masked, values = kd_gradient(
            Table(),
            rollouts_of(chosen, rewards=right, group_size=2, advantages=weights),
            signal(Fixed(Table(seed=9)), mask=mask, denominator=denominator, group_size=2),
        )
        assert torch.equal(plain, masked)
        assert values["kd"] == 0
        wrong, _ = kd_gradient(
            Table(),
            rollouts_of(chosen, rewards=[0.0] * 4, group_size=2, advantages=weights),
            signal(Fixed(Table(seed=9)), mask=mask, denominator=denominator, group_size=2),
        )
        none, _ = kd_gradient(
            Table(), rollouts_of(chosen, rewards=[0.0] * 4, advantages=weights), signal(Fixed(Table(seed=9)))
        )
        assert torch.equal(wrong, none)


@pytest.mark.parametrize("combine", ["loss", "advantage", "opd", "srpo", "rlsd", "trrd"])
def test_splitting_and_order_change_nothing(combine):
    rng = np.random.default_rng(0)
    every = completions()
    chosen = [every[i] for i in rng.integers(0, len(every), 8)]
    rewards, advantages = rng.integers(0, 2, 8), rng.standard_normal(8)

    def of(order, budget):
        rollouts = rollouts_of([chosen[i] for i in order], rewards=rewards[order], advantages=advantages[order])
        return kd_gradient(Table(), rollouts, signal(Fixed(Table(seed=9)), combine=combine), budget=budget)[0]

    whole, split = of(np.arange(8), 10**6), of(rng.permutation(8), 4)
    assert float((whole - split).norm() / whole.norm()) < 1e-12


# -- whole sequences --------------------------------------------------------------------------------------------------


def sequence_gradient(table, teacher):
    """Autograd of the exact reverse KL of whole completions."""
    every = completions()
    log_p = torch.stack([table.log_prob(text) for text in every])
    log_q = torch.stack([teacher.log_prob(text) for text in every]).detach()
    (found,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), table.logits)
    return found.flatten()


@pytest.mark.parametrize(("discount", "exact"), [(1.0, True), (0.5, False), (0.0, False)])
def test_only_the_return_to_go_gives_the_divergence_of_whole_sequences(discount, exact):
    table, teacher, every = Table(seed=1), Table(seed=9), completions()
    probability = torch.stack([table.log_prob(text) for text in every]).exp().detach()
    total = torch.zeros_like(table.logits).flatten()
    for text, weight in zip(every, probability, strict=True):
        found, _ = kd_gradient(
            table,
            rollouts_of([text], advantages=[0.0]),
            signal(Fixed(teacher), combine="advantage", discount=discount, beta=1.0),
        )
        total += weight * found * len(text)
    gap = float((total - sequence_gradient(table, teacher)).abs().max())
    assert gap < 1e-12 if exact else gap > 0.01


def test_return_to_go_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 2.0, 4.0]])
    assert return_to_go(rewards, 0.5).tolist() == [[1.5, 3.0, 4.0, 4.0]]
    assert return_to_go(rewards, 0.0) is rewards


def test_a_bandit_reaches_the_tilted_teacher():
    """KL-regularised, unscaled rewards: the optimum is the teacher times exp(r / beta), and its value beta log Z."""
    teacher, reward, beta = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), torch.tensor([1.0, 0, 0]), 0.5
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=2.0)
    ones = torch.ones(3, 1, dtype=torch.bool)
    for _ in range(400):
        log_p = logits.log_softmax(-1)[:, None]
        p = log_p.detach().exp()
        centred = (reward - (p[:, 0] * reward).sum())[:, None]
        values = distillation_values(log_p, teacher.log()[:, None], ones, "k2")
        loss = (p * (beta * values - centred * log_p)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimum = torch.tensor([0.6487856, 0.2195090, 0.1317054], dtype=torch.float64)
    p = logits.detach().softmax(-1)
    torch.testing.assert_close(p, optimum, rtol=0, atol=1e-7)
    value = float((p * reward).sum() - beta * (p * (p / teacher).log()).sum())
    assert value == pytest.approx(0.4116075, abs=1e-7)


@pytest.mark.parametrize("estimator", ["k2", "k3", "k3_is", "exact"])
def test_distillation_alone_reaches_the_teacher(estimator):
    teacher = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(300):
        log_p = logits.log_softmax(-1)
        if estimator == "exact":
            loss = exact_values(logits[None], teacher.log()[None]).sum()
        else:
            ones = torch.ones(3, 1, dtype=torch.bool)
            values = distillation_values(log_p[:, None], teacher.log()[:, None], ones, estimator)
            loss = (log_p.detach().exp()[:, None] * values).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((logits.detach().softmax(-1) - teacher).abs().sum() / 2) < 1e-3


# -- the coefficient --------------------------------------------------------------------------------------------------


def test_the_schedule_of_the_paper():
    beta = coefficient("linear", 5e-3, 1e-3, 280, decay=5e-5)
    for step, value in [(0, 5e-3), (1, 4.95e-3), (40, 3e-3), (79, 1.05e-3), (80, 1e-3), (200, 1e-3)]:
        assert beta(step) == pytest.approx(value, rel=1e-12)
    assert signal(Fixed(Table()), beta=5e-3, schedule="linear", steps=280).beta(40) == pytest.approx(3e-3)


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential"])
def test_a_schedule_falls_from_start_to_end(kind):
    beta = coefficient(kind, 0.2, 0.002, 100, share=0.5)
    values = [beta(step) for step in range(100)]
    assert values[0] == pytest.approx(0.2)
    assert values[50:] == [pytest.approx(0.002)] * 50
    assert all(a >= b for a, b in itertools.pairwise(values))
    half = {"linear": 0.101, "cosine": 0.101, "exponential": 0.02}[kind]
    assert values[25] == pytest.approx(half)
    assert coefficient("constant", 0.2, 0.1, 10)(7) == 0.2


# -- the other ways to combine ----------------------------------------------------------------------------------------


def of(combine, *, rewards=(1.0, 0.0, 0.0, 0.0), step=0, group_size=2, mixing=None, mask="none"):
    chosen = completions()[2:6]
    rollouts = rollouts_of(chosen, rewards=list(rewards), group_size=group_size, advantages=[0.7, -0.7, 0.3, -0.3])
    return kd_gradient(
        Table(seed=1),
        rollouts,
        signal(Fixed(Table(seed=9)), combine=combine, group_size=group_size, mixing=mixing, mask=mask),
        step=step,
    )[0]


def test_ways_that_are_one_another():
    close = {"rtol": 0, "atol": 1e-12}
    grpo = gradient(Table(seed=1), rollouts_of(completions()[2:6], advantages=[0.7, -0.7, 0.3, -0.3]))[0]
    torch.testing.assert_close(of("hdpo"), of("loss", mask="group"), **close)
    torch.testing.assert_close(of("srpo", rewards=[0.0] * 4), of("opd", rewards=[0.0] * 4), **close)
    torch.testing.assert_close(of("srpo", rewards=[1.0] * 4), grpo, **close)
    torch.testing.assert_close(of("rlsd", mixing=Mixing(rlsd_lambda=0.0)), grpo, **close)
    torch.testing.assert_close(of("trrd", mixing=Mixing(trrd_alpha=1.0)), grpo, **close)
    assert float((of("rlsd") - grpo).norm()) > 1e-3
    assert float((of("trrd") - grpo).norm()) > 1e-3
    torch.testing.assert_close(of("opd_then_rl", mixing=Mixing(opd_steps=3), step=2), of("opd"), **close)
    torch.testing.assert_close(of("opd_then_rl", mixing=Mixing(opd_steps=3), step=3), grpo, **close)


def test_srpo_takes_the_reward_of_right_rows_and_the_teacher_of_wrong_ones():
    advantages = torch.tensor([[0.5, 0.5], [-0.5, -0.5]])
    teacher = torch.tensor([[9.0, 9.0], [0.1, -0.2]])
    ones = torch.ones(2, 2, dtype=torch.bool)
    found = token_advantages("srpo", advantages, teacher, ones, torch.tensor([True, False]), 0.3)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5], [0.1, -0.2]]))


def test_rlsd_by_hand():
    advantages, teacher = torch.tensor([[2.0, -2.0]]), torch.tensor([[0.1, 3.0]])
    found = token_advantages(
        "rlsd", advantages, teacher, torch.ones(1, 2, dtype=torch.bool), torch.tensor([True]), 1.0,
        rlsd_lambda=0.5, rlsd_epsilon=0.2,
    )  # fmt: skip
    expected = [2.0 * (0.5 + 0.5 * math.exp(0.1)), -2.0 * (0.5 + 0.5 * 0.8)]
    assert found.tolist() == [pytest.approx(expected)]


def test_shaped_rewards_blow_small_gaps_up_where_the_joint_loss_does_not():
    """Equal rewards, sums of R of -1 and -3: the advantages are almost independent of beta."""
    rollouts = rollouts_of([(0, EOS), (0, EOS)], rewards=[1.0, 1.0], group_size=2)
    teacher = torch.tensor([[0.0, -0.5, -0.5], [0.0, -1.5, -1.5]], dtype=torch.float64)
    for beta in (1e-3, 1e-2):
        signal(Fixed(teacher), combine="reward", beta=beta, group_size=2).score(rollouts, 0, Table())
        found = advantages_of(rollouts.shaped, 2, Grpo())
        assert found.tolist() == [pytest.approx(0.7066, abs=6e-4), pytest.approx(-0.7066, abs=6e-4)]
    assert advantages_of(rollouts.rewards, 2, Grpo()).tolist() == [0.0, 0.0]


def test_a_foreign_end_is_left_out_and_would_dominate():
    every = [(0, 1, EOS), (1, 0, EOS)]
    teacher = torch.full((2, 4), -1.0, dtype=torch.float64)
    teacher[:, 3] = -40.0
    rollouts = rollouts_of(every)
    found = signal(Fixed(teacher))
    found.mask_eos = True
    with_mask = kd_gradient(Table(), rollouts, found)
    teacher[:, 3] = -7.0  # whatever stands there
    again = kd_gradient(Table(), rollouts_of(every), found)
    assert torch.equal(with_mask[0], again[0])
    assert with_mask[1]["kd"] == again[1]["kd"]
    teacher[:, 3] = -40.0
    without = kd_gradient(Table(), rollouts_of(every), signal(Fixed(teacher)))
    assert without[1]["kd"] > 100 * with_mask[1]["kd"]
