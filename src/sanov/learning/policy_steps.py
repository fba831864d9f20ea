"""A step's completions in micro-batches of like length, and the sums that the training loop divides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sanov.advantages import clipped_surrogate, group_advantages
from sanov.learning.processes import every_process
from sanov.learning.rollouts import Rollouts
from sanov.learning.signals import Advantages, Grpo, Signal, Step
from sanov.nets.reads import Read

__all__ = ["POLICY", "advantages_of", "packed", "sums", "surrogate"]

POLICY = "policy"
STEP = ("ids", "real", "completion", "last", "before", "finished", "rewards", "tokens", "rows", "step")


def advantages_of(rewards: Float[Tensor, " rows"], group_size: int, grpo: Grpo) -> Float[Tensor, " rows"]:
    """Group-relative advantages of rewards; rows to which no reward applied (NaN) have none, and do not count.

    Parameters
    ----------
    rewards
        On this process, the rows of a group side by side.
    group_size, grpo
        See `advantages.group_advantages`.
    """
    missing = torch.isnan(rewards)
    if grpo.scale_rewards == "batch":
        everywhere = torch.cat([values.to(rewards.device) for values in every_process(rewards)])
        deviation = everywhere[~torch.isnan(everywhere)].std()
        centred = advantages_of(rewards, group_size, grpo.model_copy(update={"scale_rewards": "none"}))
        return torch.where(centred == 0, 0.0, centred / (deviation + grpo.adv_eps))
    if not missing.any():
        if group_size == 1:  # nothing to compare with: the reward itself
            return rewards.clone()
        return group_advantages(rewards, group_size, grpo.scale_rewards, grpo.adv_eps)
    found = torch.zeros_like(rewards)
    for start in range(0, len(rewards), group_size):
        rows = start + torch.nonzero(~missing[start : start + group_size]).flatten()
        if len(rows) > 1:
            found[rows] = group_advantages(rewards[rows], len(rows), grpo.scale_rewards, grpo.adv_eps)
    return found


def sums(
    model: nn.Module, batch: Mapping[str, Any], signals: Sequence[Signal], grpo: Grpo, temperature: float = 1.0
) -> dict[str, tuple[Tensor, Any]]:
    """Return per component its sum over a micro-batch that `packed` made, and its weight.

    Parameters
    ----------
    model
        The policy, ``model(ids, mask, reads)``.
    batch
        A micro-batch.
    signals, grpo
        What the objective is made of.
    temperature
        Of sampling: log-probabilities are those of the softmax that was sampled from.
    """
    part = Step(**{name: batch[name] for name in STEP})
    reads = {POLICY: Read(part.before, part.ids[part.completion], temperature)}
    for signal in signals:
        reads |= signal.reads(part)
    read = model(part.ids, part.real, reads)
    log_new = part.placed(read[POLICY])
    log_old = batch["log_old"] if grpo.iterations > 1 else log_new.detach()
    found = Advantages(batch["advantages"].to(log_new.dtype), log_new, log_old.to(log_new.dtype))
    for signal in signals:
        found = signal.adjust(found, part)
    terms: dict[str, tuple[Tensor, Any]] = {POLICY: (surrogate(found, batch["weights"], grpo), 1.0)}
    for signal in signals:
        terms |= signal.terms(found, read, part)
    return terms


def surrogate(found: Advantages, weights: Float[Tensor, "rows tokens"], grpo: Grpo) -> Tensor:
    """Return the negative sum of the clipped surrogate over a micro-batch, each token with its weight."""
    high = grpo.clip_low if grpo.clip_high is None else grpo.clip_high
    mask = weights > 0
    values = clipped_surrogate(found.log_new, found.log_old, found.values, mask, grpo.clip_low, high)
    if grpo.dual_clip is not None:
        bound = grpo.dual_clip * found.values
        values = torch.where((found.values < 0) & mask, torch.maximum(values, bound), values)
    return -(values * weights).sum()


def packed(rollouts: Rollouts, signals: Sequence[Signal], grpo: Grpo, budget: int, step: int) -> list[dict[str, Any]]:
    """Divide completions into micro-batches of like length, without the rows that have nothing to learn from.

    Those still count: the sums are divided by the tokens, or rows, of all.

    Parameters
    ----------
    rollouts
        With advantages, and what the signals found.
    signals, grpo
        For the counts.
    budget
        Tokens of a micro-batch, padding included.
    step
        Updates that lie behind.
    """
    weights = _token_weights(rollouts, grpo)
    counted = weights.sum()
    advantages = rollouts.advantages if rollouts.advantages.ndim == 2 else rollouts.advantages[:, None]
    learns = ((advantages != 0) & (weights > 0)).any(dim=1)
    counts = {POLICY: float(counted)}
    for signal in signals:
        rows = signal.learns(rollouts, step)
        learns = learns if rows is None else learns | rows
        counts |= signal.counts(rollouts, step)
    parts = _parts(rollouts.lengths, learns, budget)
    most = max(every_process(len(parts)))
    if most == 0:  # nothing to learn on any process: the step is skipped
        counts = dict.fromkeys(counts, 0.0)
    whole = [_batch(rollouts, rows, weights, advantages, step) for rows in parts]
    while len(whole) < max(most, 1):  # every process has as many as the others: one row whose sums are nothing
        blank = _batch(rollouts, torch.tensor([0]), torch.zeros_like(weights), torch.zeros_like(advantages), step)
        for found in ("tokens", "rows"):  # what signals know of it would count twice
            blank[found] = {name: torch.zeros_like(values) for name, values in blank[found].items()}
        whole.append(blank)
    for number, batch in enumerate(whole):
        batch["counts"] = counts if number == 0 else dict.fromkeys(counts, 0.0)
    whole[0]["metrics"] = {**rollouts.metrics, "step_skipped": float(most == 0)}
    return whole


def _token_weights(rollouts: Rollouts, grpo: Grpo) -> Float[Tensor, "rows width"]:
    """Return what each token's surrogate is multiplied with before the sum is divided by the sum of all weights."""
    mask = rollouts.completion
    if grpo.mask_truncated:
        mask = mask & rollouts.finished[:, None]
    weights = mask.to(rollouts.log_probs.dtype)
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(1) if grpo.normalise == "sequence" else weights


def _parts(lengths: Int[Tensor, " rows"], learns: Bool[Tensor, " rows"], budget: int) -> list[Tensor]:
    """Return the rows of each micro-batch, longest first."""
    rows = torch.nonzero(learns).flatten().cpu()
    rows = rows[torch.argsort(lengths.cpu()[rows], descending=True, stable=True)]
    found: list[Tensor] = []
    while len(rows):
        size = max(budget // int(lengths[rows[0]]), 1)
        found.append(rows[:size])
        rows = rows[size:]
    return found


def _batch(rollouts: Rollouts, rows: Tensor, weights: Tensor, advantages: Tensor, step: int) -> dict[str, Any]:
    """Return some rows, without the columns that none of them reaches."""
    rows = rows.to(rollouts.ids.device)
    width = int(rollouts.lengths[rows].max())
    completion = rollouts.completion[rows, :width]
    return {
        "ids": rollouts.ids[rows, :width],
        "real": rollouts.real[rows, :width],
        "completion": completion,
        "last": rollouts.last[rows, :width],
        "before": torch.nn.functional.pad(completion[:, 1:], (0, 1)),
        "finished": rollouts.finished[rows],
        "rewards": rollouts.rewards[rows],
        "tokens": {name: values[rows, :width] for name, values in rollouts.tokens.items()},
        "rows": {name: values[rows] for name, values in rollouts.rows.items()},
        "weights": weights[rows, :width],
        "advantages": advantages[rows, :width].expand(-1, width)
        if advantages.shape[1] == 1
        else advantages[rows, :width],
        "log_old": rollouts.log_probs[rows, :width],
        "step": step,
    }
