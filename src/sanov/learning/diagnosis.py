"""Why a curve is flat: the gradients of reward and signals side by side, and what the numbers of a run say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sanov.learning.parallel import is_sharded
from sanov.learning.policy_steps import POLICY, sums, surrogate
from sanov.learning.processes import every_process
from sanov.learning.signals import Advantages, Grpo, Signal, Step

__all__ = ["gradients", "why_flat"]

LEAST = 9  # steps that are compared with one another: a third of them at the start with a third at the end
SURE = 2.5  # standard errors from which on a difference is taken for one
MOST = 0.8  # share of groups, or completions, from which on they are the reason


class _Unadjusted(Signal):
    """Notes what the surrogate is made of before signals change it."""

    found: Advantages | None = None

    def adjust(self, found: Advantages, batch: Step) -> Advantages:
        self.found = found
        return found


def gradients(
    model: nn.Module, micro: Sequence[Mapping[str, Any]], signals: Sequence[Signal], grpo: Grpo, temperature: float
) -> dict[str, float]:
    """Return norms and cosine of two gradients of a step: of the rewards' surrogate, and of all that signals add to it.

    The weights and what is random stay as they are. Advantages that a signal mixed into those of the rewards count as
    the surrogate's.

    Parameters
    ----------
    model
        The policy. Nothing is said of one whose weights are divided over processes.
    micro
        Micro-batches of `policy_steps.packed`.
    signals, grpo, temperature
        See `policy_steps.sums`.
    """
    counts = _counts(micro)
    if is_sharded(model) or all(count == 0 for count in counts.values()):
        return {}
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for batch in micro:
        reward, rest = _parts(model, batch, signals, grpo, temperature, counts)
        for total, objective, keep in ((first, reward, True), (second, rest, False)):
            found = torch.autograd.grad(objective, weights, retain_graph=keep, allow_unused=True)
            for sum_, part in zip(total, found, strict=True):
                if part is not None:
                    sum_ += part
    if dist.is_available() and dist.is_initialized():
        for sum_ in (*first, *second):
            dist.all_reduce(sum_)
    a, b, product = (float(sum((x * y).sum() for x, y in zip(p, q, strict=True))) for p, q in
                     ((first, first), (second, second), (first, second)))  # fmt: skip
    norms = math.sqrt(a), math.sqrt(b)
    told = {"gradient/reward_norm": norms[0], "gradient/signal_norm": norms[1]}
    return told | ({"gradient/cosine": product / (norms[0] * norms[1])} if norms[0] * norms[1] > 0 else {})


def _counts(micro: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    own: dict[str, float] = {}
    for batch in micro:
        for name, count in batch["counts"].items():
            own[name] = own.get(name, 0.0) + float(count)
    found = every_process(own)
    return {name: sum(each[name] for each in found) for name in own}


def _parts(
    model: nn.Module,
    batch: Mapping[str, Any],
    signals: Sequence[Signal],
    grpo: Grpo,
    temperature: float,
    counts: Mapping[str, float],
) -> tuple[Tensor, Tensor]:
    """Return a micro-batch's part of the rewards' surrogate, and of the objective without it."""
    watch = _Unadjusted()
    terms = sums(model, batch, [watch, *signals], grpo, temperature)
    assert watch.found is not None
    reward = surrogate(watch.found, batch["weights"], grpo) / (counts[POLICY] or math.inf)
    step = batch["step"]
    scaled = [
        value * (weight(step) if callable(weight) else weight) / counts[name]
        for name, (value, weight) in terms.items()
        if counts[name]
    ]
    return reward, sum(scaled[1:], scaled[0]) - reward


# -- in words ---------------------------------------------------------------------------------------------------------


def why_flat(history: pl.DataFrame, validation: Sequence[float] | None = None) -> str:
    """Say in one sentence why the reward does not rise; "" where it does, or where too few steps say nothing.

    Parameters
    ----------
    history
        One row a step, with ``reward`` and what else `rollouts.describe` tells.
    validation
        Gain on held-out prompts, and the ends of its interval, where they are known: they say whether there is one.
    """
    if "reward" not in history.columns or len(history) < LEAST:
        return ""
    history = history.filter(pl.col("reward").is_not_null())  # a further update on the same completions tells none
    if history["reward"].is_nan().all():
        return "No reward applied to any completion: nothing was learned from rewards."
    gain, error = _gain(history["reward"].to_numpy())
    if (validation[1] > 0) if validation else (gain > SURE * error):
        return ""
    fell = validation[2] < 0 if validation else gain < -SURE * error
    mean = {name: _mean(history[name]) for name in history.columns}
    return f"The reward {'falls' if fell else 'is flat'}: {_reason(mean, history, fell)}."


def _gain(rewards: np.ndarray) -> tuple[float, float]:
    """Return by how much the last third of the steps is above the first, and the standard error of that."""
    rewards = rewards[~np.isnan(rewards)]
    third = max(len(rewards) // 3, 1)
    first, last = rewards[:third], rewards[-third:]
    spread = [part.std(ddof=1) / math.sqrt(third) if third > 1 else math.inf for part in (first, last)]
    return float(last.mean() - first.mean()), math.hypot(*spread)


def _mean(column: pl.Series) -> float:
    found = column.cast(pl.Float64).fill_nan(None).mean()
    return math.nan if found is None else float(found)  # type: ignore[arg-type]


def _reason(mean: Mapping[str, float], history: pl.DataFrame, fell: bool) -> str:
    if fell:
        return _opposed(mean) or _pace(history, fell)
    wrong, right = mean.get("groups/all_wrong", 0.0), mean.get("groups/all_right", 0.0)
    if mean.get("completions/clipped_ratio", 0.0) >= MOST:
        share = mean["completions/clipped_ratio"]
        return f"{share:.0%} of completions are cut at the limit (raise rollouts.max_completion_length)"
    if wrong >= MOST:
        how = "take easier prompts, larger groups, or imitate solutions first"
        return f"in {wrong:.0%} of groups all completions are wrong, and there is nothing to compare ({how})"
    if right >= MOST:
        return f"in {right:.0%} of groups all completions are right already (take harder prompts)"
    if wrong + right >= MOST:
        return f"{wrong:.0%} of groups are all wrong and {right:.0%} all right: few have anything to compare"
    return _opposed(mean) or _pace(history, fell=False)


def _opposed(mean: Mapping[str, float]) -> str:
    """Say whether the signals' gradient goes against that of the rewards, or drowns it."""
    reward, signal = (mean.get(f"gradient/{name}_norm", 0.0) for name in ("reward", "signal"))
    cosine = mean.get("gradient/cosine", math.nan)
    if cosine <= -0.3 and signal > reward / 3:
        return f"the gradients of rewards and signal oppose each other (cosine {cosine:.2f}; lower the signal's weight)"
    if reward > 0 and signal > 10 * reward and cosine < 0.3:
        return f"the signal's gradient is {signal / reward:.0f} times that of the rewards (lower its weight)"
    return ""


def _pace(history: pl.DataFrame, fell: bool) -> str:
    entropy = history["entropy"].to_numpy()
    first, last = entropy[: len(entropy) // 3].mean(), entropy[-(len(entropy) // 3) :].mean()
    if last < first / 5:
        return f"the policy has become certain (entropy from {first:.2f} to {last:.2f}; lower training.learning_rate)"
    if fell:
        return "the updates are too large, or a signal leads away from the reward (lower training.learning_rate first)"
    if last > 2 * first + 0.1:
        return f"the policy unlearns (entropy from {first:.2f} to {last:.2f}; lower training.learning_rate)"
    how = "more steps, or a higher training.learning_rate"
    return f"groups are mixed, so there is something to learn, but the updates are small or few ({how})"
