"""Why a curve is flat: two gradients that add up to the objective's, shares of groups, and the sentence of each case."""

import re

import numpy as np
import polars as pl
import pytest
import torch

from learning.policy_toy import Table, gradient, rollouts_of, run
from learning.toy_run import vector
from sanov.learning import policy
from sanov.learning.diagnosis import gradients, why_flat
from sanov.learning.rollouts import describe
from sanov.learning.samples import Kept
from sanov.learning.signals import Signal

TEXTS = [(0, 1, 2), (1, 2), (1, 1, 0), (2,)]


class Pull(Signal):
    """Asks for a likelier token 1, with a weight, and halves the advantages in the surrogate."""

    components = ("pull",)

    def counts(self, rollouts, step):
        return {"pull": float(rollouts.completion.sum())}

    def learns(self, rollouts, step):
        return torch.ones(len(rollouts), dtype=torch.bool)

    def adjust(self, found, batch):
        return policy.Advantages(found.values / 2, found.log_new, found.log_old)

    def terms(self, found, reads, batch):
        return {"pull": (-(found.log_new * (batch.ids == 1)).sum(), 0.7)}


@pytest.mark.parametrize("budget", [10**6, 8])
def test_the_two_gradients_add_up_to_that_of_the_objective(budget):
    model, grpo = Table(), policy.Grpo()
    rollouts = rollouts_of(TEXTS, [1, 0, 0, 1], group_size=4, advantages=[1.0, -1.0, -1.0, 1.0])
    whole, _ = gradient(model, rollouts, [Pull()], grpo)
    alone, _ = gradient(model, rollouts, [], grpo)
    model.zero_grad()
    found = gradients(model, policy.packed(rollouts, [Pull()], grpo, budget, 0), [Pull()], grpo, 1.0)
    rest = whole - alone
    assert found["gradient/reward_norm"] == pytest.approx(float(alone.norm()))
    assert found["gradient/signal_norm"] == pytest.approx(float(rest.norm()))
    assert found["gradient/cosine"] == pytest.approx(float(alone @ rest / alone.norm() / rest.norm()))
    assert model.logits.grad is None


def test_to_look_changes_nothing_and_is_done_when_it_is_due():
    """Neither the look at gradients nor the completions that are kept leave a trace in the weights."""
    with_look, history, _ = run(steps=4, signals=[Pull(), Kept()], training={"diagnose_every": 2})
    without, _, _ = run(steps=4, signals=[Pull()], training={"diagnose_every": 0})
    assert torch.equal(vector(with_look), vector(without))
    assert [step for step in history.steps if "gradient/signal_norm" in history.reports[step]] == [2, 4]
    _, plain, _ = run(steps=2, signals=[Kept()], training={"diagnose_every": 1})
    assert not any("gradient/signal_norm" in report for report in plain.reports.values())


def test_groups_are_all_right_all_wrong_or_mixed():
    rewards = [1, 1, 0, 0, -1, -1, 1, 0, float("nan"), 1]
    found = describe(rollouts_of([(1, 2)] * 10, rewards, group_size=2), ["r"])
    assert [found[f"groups/{name}"] for name in ("all_right", "all_wrong", "mixed")] == [0.25, 0.5, 0.25]


def curve(rewards=(0.3, 0.28, 0.32) * 6, **columns):
    usual = {"groups/all_wrong": 0.3, "groups/all_right": 0.1, "completions/clipped_ratio": 0.0, "entropy": 1.0}
    size = len(rewards)
    return pl.DataFrame({
        "reward": np.array(rewards, dtype=float),
        **{name: np.broadcast_to(np.asarray(value, dtype=float), size) for name, value in (usual | columns).items()},
    })  # fmt: skip


@pytest.mark.parametrize(
    ("history", "said"),
    [
        (curve(np.linspace(0.1, 0.6, 18)), ""),
        (curve((0.3,) * 5), ""),
        (pl.DataFrame({"loss": [1.0] * 20}), ""),
        (curve([float("nan")] * 18), "No reward applied"),
        (curve(**{"groups/all_wrong": 0.9}), "is flat: in 90% of groups all completions are wrong"),
        (curve(**{"groups/all_right": 0.85}), "in 85% of groups all completions are right already"),
        (
            curve(**{"groups/all_right": 0.45, "groups/all_wrong": 0.45}),
            "45% of groups are all wrong and 45% all right",
        ),
        (curve(**{"completions/clipped_ratio": 0.95}), "95% of completions are cut"),
        (
            curve(**{"gradient/reward_norm": 0.2, "gradient/signal_norm": 0.3, "gradient/cosine": -0.6}),
            r"oppose each other \(cosine -0.60",
        ),
        (
            curve(**{"gradient/reward_norm": 0.1, "gradient/signal_norm": 3.0, "gradient/cosine": 0.0}),
            "30 times that of the rewards",
        ),
        (curve(entropy=np.linspace(2, 0.01, 18)), "has become certain"),
        (curve(np.linspace(0.6, 0.1, 18)), "The reward falls: .*lower training.learning_rate"),
        (curve(), "is flat: groups are mixed.*higher training.learning_rate"),
    ],
)
def test_one_sentence_says_why(history, said):
    found = why_flat(history)
    assert bool(found) == bool(said)
    assert re.search(said, found)


def test_held_out_prompts_decide_where_there_are_any():
    rising = curve(np.linspace(0.1, 0.6, 18))
    assert why_flat(rising, (0.2, 0.1, 0.3)) == ""
    assert why_flat(curve(), (0.2, 0.1, 0.3)) == ""
    assert why_flat(rising, (0.0, -0.1, 0.1)).startswith("The reward is flat")
    assert why_flat(rising, (-0.2, -0.3, -0.1)).startswith("The reward falls")
