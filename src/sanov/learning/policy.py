r"""Group-relative policy optimisation (GRPO), to which a method adds a `Signal`.

A step samples G completions of each prompt, scores them, and takes one or more updates of::

    L = - sum_{i,t} m_{i,t} min(ratio A, clip(ratio, 1 - low, 1 + high) A) / sum m  +  sum over signals of their components
    A_i = (r_i - mean of the group) / (standard deviation of the group + eps)

each sum divided by its own count over the whole step, so that neither micro-batches nor processes change it. With one
update a step (the default) the ratio is 1, nothing is clipped, and the gradient is that of A log pi. A signal may score the
completions without gradient, change advantages and old log-probabilities, and add components: `kdrl` and `laser` are one
signal each, both together a list of two, and none of them is plain GRPO.

Reference: shao2024grpo, sec. 4.1.2; yu2025dapo (one mean over all tokens of the step).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sanov.advantages import clipped_surrogate, group_advantages
from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import Options, option
from sanov.data.prompts import Prompts
from sanov.data.rewards import Rewards
from sanov.learning.parallel import Parallel
from sanov.learning.processes import every_process, place
from sanov.learning.rollouts import (
    Rollout,
    Rollouts,
    Sampler,
    Tokenizer,
    collect,
    context_of,
    describe,
    encoded,
    local_sampler,
)
from sanov.learning.schedules import Kind, schedule
from sanov.learning.training import History, shuffled, train
from sanov.nets.reads import Read

__all__ = ["Advantages", "Grpo", "Optimisation", "Signal", "Step", "advantages_of", "fit", "packed", "sums"]

POLICY = "policy"


class Grpo(Options):
    """The policy-gradient part of the objective."""

    scale_rewards: Literal["group", "batch", "none"] = option(
        "group", "Standard deviation that advantages are divided by.", source="shao2024grpo"
    )
    adv_eps: float = option(1e-6, "Added to it.", source="released code: verl; TRL has 1e-4", gt=0)
    clip_low: float = option(0.2, "How far a ratio may fall below 1.", source="schulman2017ppo", gt=0, lt=1)
    clip_high: float | None = option(
        None, "How far it may rise above 1; none for as far. 0.28 is DAPO's clip-higher.", source="yu2025dapo", gt=0
    )
    dual_clip: float | None = option(
        None, "Bound c A of the surrogate where A < 0; verl has 3.", source="ye2020dualclip", gt=1
    )
    normalise: Literal["tokens", "sequence"] = option(
        "tokens", "Mean over all tokens of the step, or over rows of their means.", source="yu2025dapo"
    )
    mask_truncated: bool = option(
        False, "Leave completions that were cut at the limit out of the policy's loss.", source="TRL 1.16"
    )
    iterations: int = option(1, "Updates on the completions of one sampling.", source="paper", ge=1)


class Optimisation(Options):
    """How a policy is trained."""

    steps: int = option(120, "Number of updates.", source="choice: arXiv 2609.04108 has 120 to 150", ge=1)
    learning_rate: float = option(
        3e-4, "Of AdamW; about 1e-6 for models of billions of weights.", source="choice", gt=0
    )
    weight_decay: float = option(0.0, "Decoupled weight decay.", source="TRL 1.16", ge=0)
    clip_norm: float | None = option(1.0, "Largest norm of the gradient; none for any.", source="paper", gt=0)
    schedule: Kind = option("constant", "Shape of the learning rate after the warm-up.", source="paper")
    warmup: float = option(0.0, "Share of the steps over which the learning rate rises.", source="choice", ge=0, lt=1)
    micro_batch_tokens: int = option(
        4096, "Tokens computed at once on a process, padding included.", source="choice", ge=1
    )
    evaluate_every: int = option(0, "Updates between evaluations; 0 for one at the end.", source="choice", ge=0)
    checkpoint_every: int = option(0, "Updates between checkpoints; 0 for one at the end.", source="choice", ge=0)
    parallel: Parallel = option("auto", "How several processes share the work.", source="choice")
    trackers: tuple[str, ...] = option((), "Where to log: tensorboard, wandb, mlflow, trackio ...", source="choice")


@dataclass
class Advantages:
    """What the surrogate of a micro-batch is made of; a signal returns a changed one.

    Parameters
    ----------
    values
        [rows, tokens].
    log_new
        Log-probabilities of the tokens under the policy now, with gradient; 0 where no completion is, [rows, tokens].
    log_old
        The same when they were sampled, without gradient.
    """

    values: Float[Tensor, "rows tokens"]
    log_new: Float[Tensor, "rows tokens"]
    log_old: Float[Tensor, "rows tokens"]


class Signal:
    """What a method adds to GRPO. Every hook does nothing unless it is overridden.

    ``components`` names what `terms` returns; ``suppressed`` tokens are never sampled; of ``watched`` ones `Rollouts.ends`
    has the log-probability after EOS, where the sampler can tell. The last two may be settled by `begin`.
    """

    components: tuple[str, ...] = ()
    suppressed: tuple[int, ...] = ()
    watched: tuple[int, ...] = ()

    def begin(self, policy: nn.Module, tokenizer: Tokenizer, prompts: Prompts, options: Rollout) -> Mapping[str, Any]:
        """Check what was given, and measure what is needed, before the first step; return what is worth writing down."""
        return {}

    def score(self, rollouts: Rollouts, step: int, model: nn.Module) -> None:
        """Look at the completions without gradient: set `shaped`, `tokens`, `rows`, `metrics` of them."""

    def advantages(self, rollouts: Rollouts, step: int) -> None:
        """Change `rollouts.advantages`, which hold those of GRPO."""

    def counts(self, rollouts: Rollouts, step: int) -> Mapping[str, float]:
        """Return by what the sums of its components are divided, on this process: rows or tokens."""
        return {}

    def learns(self, rollouts: Rollouts, step: int) -> Bool[Tensor, " rows"] | None:
        """Return the rows that have a gradient even where their advantages are zero; None for none."""
        return None

    def reads(self, batch: Step) -> Mapping[str, Read]:
        """Return what else to read off the policy's forward pass."""
        return {}

    def adjust(self, found: Advantages, batch: Step) -> Advantages:
        """Change what the surrogate is made of."""
        return found

    def terms(self, found: Advantages, reads: Mapping[str, Tensor], batch: Step) -> Mapping[str, tuple[Tensor, Any]]:
        """Return per component the sum over the micro-batch, and its weight."""
        return {}


@dataclass(frozen=True)
class Step:
    """A micro-batch, as signals see it.

    Parameters
    ----------
    ids, real, completion
        Tokens; where they are none of padding; where they are of the completion, [rows, tokens].
    last
        True on the EOS of finished rows, [rows, tokens].
    before
        True on the token before each of the completion, where its logits are, [rows, tokens].
    finished, rewards
        [rows].
    tokens, rows
        What signals found, by name.
    step
        Updates that lie behind.
    """

    ids: Int[Tensor, "rows tokens"]
    real: Bool[Tensor, "rows tokens"]
    completion: Bool[Tensor, "rows tokens"]
    last: Bool[Tensor, "rows tokens"]
    before: Bool[Tensor, "rows tokens"]
    finished: Bool[Tensor, " rows"]
    rewards: Tensor
    tokens: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]
    step: int

    def placed(self, values: Float[Tensor, " places"]) -> Float[Tensor, "rows tokens"]:
        """Put numbers of the completion's tokens in their places, and 0 elsewhere."""
        return torch.zeros(self.ids.shape, dtype=values.dtype, device=values.device).masked_scatter(
            self.completion, values
        )


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


class _Feed:
    """Completions as a function of seed, step and weights, in micro-batches of like length."""

    def __init__(
        self,
        prompts: Prompts,
        tokenizer: Tokenizer,
        rewards: Rewards,
        context: int,
        signals: Sequence[Signal],
        rollouts: Rollout,
        grpo: Grpo,
        micro_batch_tokens: int,
        sampler: Sampler,
        seed: int,
    ):
        suppressed = {*rollouts.suppress, *(token for signal in signals for token in signal.suppressed)}
        if tokenizer.eos in suppressed:
            found = f"the token {tokenizer.eos} ends a completion"
            raise InputError(found, where="rollouts.suppress", fix="cannot suppress EOS: rollouts would never end")
        self.options = rollouts.model_copy(update={"suppress": tuple(sorted(suppressed))})
        self.prompts, self.tokenizer, self.rewards, self.signals, self.grpo = prompts, tokenizer, rewards, signals, grpo
        self.ids, self.limit = encoded(prompts, tokenizer, rollouts.max_completion_length, context)
        longest = max(map(len, self.ids)) + self.limit
        if micro_batch_tokens < longest:
            found = f"it is {micro_batch_tokens}, and a row may have {longest} tokens"
            raise InputError(found, where="training.micro_batch_tokens", expected=f"at least {longest}")
        watched = tuple(token for signal in signals for token in signal.watched)
        if watched and sampler is local_sampler:  # a server gives tokens alone
            sampler = partial(local_sampler, watch=watched)
        self.budget, self.sampler, self.seed = micro_batch_tokens, sampler, seed
        self.order = shuffled(len(prompts), min(rollouts.prompts_per_step, len(prompts)), seed=seed, drop_last=True)
        self.told = False  # that completions are cut
        self.kept: list[dict[str, Any]] = []  # completions that further updates go over

    @property
    def components(self) -> tuple[str, ...]:
        return (POLICY, *(name for signal in self.signals for name in signal.components))

    def batches(self, step: int, model: nn.Module) -> list[dict[str, Any]]:
        """Return this process's micro-batches of a step."""
        model.eval()  # the ratio is 1 only where nothing is random in the forward pass
        if step % self.grpo.iterations == 0 or not self.kept:
            self.kept = packed(self.rollouts(step, model), self.signals, self.grpo, self.budget, step)
        return [{**batch, "step": step} for batch in self.kept]

    def rollouts(self, step: int, model: nn.Module) -> Rollouts:
        """Sample, score, and let the signals look."""
        process, processes = place()
        rows = self.order(step // self.grpo.iterations)
        index = np.arange(len(rows))[process::processes]
        if len(index) == 0:
            found = f"{len(rows)} prompts a step for {processes} processes"
            raise InputError(found, where="rollouts.prompts_per_step", expected="at least one for each process")
        own = rows[index]
        rollouts = collect(
            model,
            self.prompts.take(own),
            [self.ids[row] for row in own],
            index,
            limit=self.limit,
            options=self.options,
            tokenizer=self.tokenizer,
            rewards=self.rewards,
            sampler=self.sampler,
            seed=self.seed,
            step=step,
        )
        for signal in self.signals:
            signal.score(rollouts, step, model)
        rewards = rollouts.rewards if rollouts.shaped is None else rollouts.shaped
        rollouts.advantages = advantages_of(rewards, self.options.group_size, self.grpo)
        spread = torch.cat([values.cpu() for values in every_process(rollouts.advantages)])
        for signal in self.signals:
            signal.advantages(rollouts, step)
        rollouts.metrics |= describe(rollouts, self.rewards.names)
        if rollouts.metrics["completions/clipped_ratio"] == 1 and not self.told:
            self.told = True
            text = f"step {step + 1}: every completion was cut at {self.limit} tokens (completions/clipped_ratio = 1)"
            warnings.warn(text, SanovWarning, stacklevel=4)
        rollouts.metrics["advantage_std"] = float(spread.std()) if len(spread) > 1 else 0.0
        return rollouts

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, tuple[Tensor, Any]]:
        """Return the sums of the surrogate and of the signals' components."""
        return sums(model, batch, self.signals, self.grpo, self.options.temperature)


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
    terms: dict[str, tuple[Tensor, Any]] = {POLICY: (_surrogate(found, batch["weights"], grpo), 1.0)}
    for signal in signals:
        terms |= signal.terms(found, read, part)
    return terms


def _surrogate(found: Advantages, weights: Float[Tensor, "rows tokens"], grpo: Grpo) -> Tensor:
    high = grpo.clip_low if grpo.clip_high is None else grpo.clip_high
    mask = weights > 0
    surrogate = clipped_surrogate(found.log_new, found.log_old, found.values, mask, grpo.clip_low, high)
    if grpo.dual_clip is not None:
        bound = grpo.dual_clip * found.values
        surrogate = torch.where((found.values < 0) & mask, torch.maximum(surrogate, bound), surrogate)
    return -(surrogate * weights).sum()


STEP = ("ids", "real", "completion", "last", "before", "finished", "rewards", "tokens", "rows", "step")


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


def fit(
    prompts: Prompts,
    policy: nn.Module,
    tokenizer: Tokenizer,
    rewards: Rewards,
    *,
    signals: Sequence[Signal] = (),
    rollouts: Rollout | None = None,
    grpo: Grpo | None = None,
    training: Optimisation | None = None,
    evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    sampler: Sampler = local_sampler,
    callbacks: Sequence[Callable[[int, Mapping[str, float]], object]] = (),
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
) -> tuple[History, dict[str, Any]]:
    """Train a policy in place on rewards of its own completions.

    Parameters
    ----------
    prompts
        Each with the columns that the rewards ask for.
    policy
        ``policy(ids, mask, reads)``, as `nets.transformer.Decoder` has it.
    tokenizer
        Of the policy.
    rewards
        Functions of completions.
    signals
        What is added to GRPO.
    rollouts, grpo, training
        Options.
    evaluate
        See `training.train`.
    sampler
        Who completes the prompts.
    callbacks
        See `training.train`.
    seed
        Of the order of prompts and of all sampling: the same for runs that differ in their signals, which so are paired.
    out
        Folder of the checkpoints.
    resume
        Go on from the newest checkpoint in it.

    Returns
    -------
    The history, and what the signals found before the first step.

    Raises
    ------
    InputError
        A prompt does not fit the context, groups of one cannot be compared, a reward is refused, or a signal refuses what
        it was given. Weights are then those of the last update.
    """
    rollouts, grpo, training = rollouts or Rollout(), grpo or Grpo(), training or Optimisation()
    if len(prompts) == 0:
        raise InputError("there are no prompts", where=prompts.name)
    if rollouts.group_size < 2 and grpo.scale_rewards == "group":
        found = f"it must be >= 2 for group advantages (got {rollouts.group_size})"
        raise InputError(found, where="rollouts.group_size", fix="use grpo.scale_rewards=none, or larger groups")
    noted: dict[str, Any] = {}
    for signal in signals:
        noted |= signal.begin(policy, tokenizer, prompts, rollouts)
    feed = _Feed(
        prompts,
        tokenizer,
        rewards,
        context_of(policy),
        signals,
        rollouts,
        grpo,
        training.micro_batch_tokens,
        sampler,
        seed,
    )
    history = train(
        policy,
        feed.batches,
        feed.loss,
        optimizer=lambda weights: torch.optim.AdamW(
            weights, lr=training.learning_rate, weight_decay=training.weight_decay, foreach=True
        ),
        steps=training.steps,
        schedule=schedule(training.schedule, training.steps, training.warmup),
        clip_norm=training.clip_norm,
        evaluate=evaluate,
        evaluate_every=training.evaluate_every,
        callbacks=callbacks,
        out=out,
        checkpoint_every=-(-training.checkpoint_every // grpo.iterations) * grpo.iterations,
        resume=resume,
        seed=seed,
        parallel=training.parallel,
        trackers=training.trackers,
    )
    return history, noted
