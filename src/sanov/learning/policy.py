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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import Options, option
from sanov.data.prompts import Prompts
from sanov.data.rewards import Rewards
from sanov.learning.checkpoints import Publish
from sanov.learning.diagnosis import gradients
from sanov.learning.optimizers import adamw
from sanov.learning.parallel import Parallel
from sanov.learning.policy_steps import POLICY, advantages_of, packed, sums
from sanov.learning.processes import every_process, place
from sanov.learning.reward_checks import check_rewarded
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
from sanov.learning.signals import Advantages, Grpo, Signal, Step
from sanov.learning.training import History, shuffled, train

__all__ = ["Advantages", "Grpo", "Optimisation", "Signal", "Step", "advantages_of", "fit", "packed", "sums"]


class Optimisation(Options):
    """How a policy is trained."""

    steps: int = option(120, "Number of updates.", source="choice: arXiv 2609.04108 has 120 to 150", ge=1)
    learning_rate: float = option(
        1e-4, "Of AdamW; about 1e-6 for models of billions of weights.", source="choice: 3e-4 unlearns", gt=0
    )
    weight_decay: float = option(0.0, "Decoupled weight decay.", source="TRL 1.16", ge=0)
    clip_norm: float | None = option(1.0, "Largest norm of the gradient; none for any.", source="paper", gt=0)
    schedule: Kind = option("constant", "Shape of the learning rate after the warm-up.", source="paper")
    warmup: float = option(0.0, "Share of the steps over which the learning rate rises.", source="choice", ge=0, lt=1)
    micro_batch_tokens: int = option(
        4096, "Tokens computed at once on a process, padding included.", source="choice", ge=1
    )
    evaluate_every: int = option(0, "Updates between evaluations; 0 for one at the end.", source="choice", ge=0)
    checkpoint_every: int = option(20, "Updates between checkpoints; 0 for one at the end.", source="choice", ge=0)
    diagnose_every: int = option(
        50, "Updates between norms and cosine of the gradients of reward and signals; 0: never.", source="choice", ge=0
    )
    parallel: Parallel = option("auto", "How several processes share the work.", source="choice")
    trackers: tuple[str, ...] = option((), "Where to log: tensorboard, wandb, mlflow, trackio ...", source="choice")


class _Feed:
    """Completions as a function of seed, step and weights, in micro-batches of like length."""

    def __init__(
        self,
        prompts: Prompts,
        tokenizer: Tokenizer,
        rewards: Rewards | None,
        context: int,
        signals: Sequence[Signal],
        rollouts: Rollout,
        grpo: Grpo,
        micro_batch_tokens: int,
        sampler: Sampler,
        seed: int,
        diagnose_every: int = 0,
        needs_reward: bool = True,
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
        self.diagnose_every = 0 if all(signal.observes for signal in signals) else diagnose_every
        self.order = shuffled(len(prompts), min(rollouts.prompts_per_step, len(prompts)), seed=seed, drop_last=True)
        self.told = self.told_unrewarded = False  # that completions are cut, or not judged
        self.needs_reward = needs_reward and rewards is not None
        self.kept: list[dict[str, Any]] = []  # completions that further updates go over

    @property
    def components(self) -> tuple[str, ...]:
        return (POLICY, *(name for signal in self.signals for name in signal.components))

    def batches(self, step: int, model: nn.Module) -> list[dict[str, Any]]:
        """Return this process's micro-batches of a step."""
        model.eval()  # the ratio is 1 only where nothing is random in the forward pass
        if step % self.grpo.iterations == 0 or not self.kept:
            self.kept = packed(self.rollouts(step, model), self.signals, self.grpo, self.budget, step)
        else:  # nothing new was sampled that could be told
            skipped = self.kept[0]["metrics"]["step_skipped"]
            self.kept[0]["metrics"] = {"num_tokens": 0.0, "step_skipped": skipped}
        found = [{**batch, "step": step} for batch in self.kept]
        if self.diagnose_every and (step + 1) % self.diagnose_every == 0:
            told = gradients(model, found, self.signals, self.grpo, self.options.temperature)
            found[0] = {**found[0], "metrics": {**found[0]["metrics"], **told}}
        return found

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
        if self.rewards is not None:
            self.told_unrewarded = check_rewarded(rollouts, step, needed=self.needs_reward, told=self.told_unrewarded)
        for signal in self.signals:
            signal.score(rollouts, step, model)
        rewards = rollouts.rewards if rollouts.shaped is None else rollouts.shaped
        rollouts.advantages = advantages_of(rewards, self.options.group_size, self.grpo)
        spread = torch.cat([values.cpu() for values in every_process(rollouts.advantages)])
        for signal in self.signals:
            signal.advantages(rollouts, step)
        rollouts.metrics |= describe(rollouts, () if self.rewards is None else self.rewards.names)
        if rollouts.metrics["completions/clipped_ratio"] == 1 and not self.told:
            self.told = True
            text = f"step {step + 1}: every completion was cut at {self.limit} tokens (completions/clipped_ratio = 1)"
            warnings.warn(text, SanovWarning, stacklevel=4)
        rollouts.metrics["advantage_std"] = float(spread.std()) if len(spread) > 1 else 0.0
        return rollouts

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, tuple[Tensor, Any]]:
        """Return the sums of the surrogate and of the signals' components."""
        return sums(model, batch, self.signals, self.grpo, self.options.temperature)


def fit(
    prompts: Prompts,
    policy: nn.Module,
    tokenizer: Tokenizer,
    rewards: Rewards | None,
    *,
    signals: Sequence[Signal] = (),
    rollouts: Rollout | None = None,
    grpo: Grpo | None = None,
    training: Optimisation | None = None,
    evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    evaluate_start: bool = False,
    sampler: Sampler = local_sampler,
    callbacks: Sequence[Callable[[int, Mapping[str, float]], object]] = (),
    seed: int = 0,
    out: str | Path | None = None,
    publish: Publish | None = None,
    resume: bool = False,
    lengthen: bool = False,
    rewarded: bool = True,
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
        Functions of completions; None where signals alone say what is learned.
    signals
        What is added to GRPO.
    rollouts, grpo, training
        Options.
    evaluate, evaluate_start, publish, lengthen
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
    rewarded
        Whether it takes rewards to learn from, where there are functions: a step without any is then refused.

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
        signal.steps = training.steps
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
        training.diagnose_every,
        rewarded,
    )
    history = train(
        policy,
        feed.batches,
        feed.loss,
        optimizer=partial(adamw, learning_rate=training.learning_rate, weight_decay=training.weight_decay),
        steps=training.steps,
        schedule=schedule(training.schedule, training.steps, training.warmup),
        clip_norm=training.clip_norm,
        evaluate=evaluate,
        evaluate_every=training.evaluate_every,
        evaluate_start=evaluate_start,
        callbacks=callbacks,
        out=out,
        checkpoint_every=-(-training.checkpoint_every // grpo.iterations) * grpo.iterations,
        publish=publish,
        resume=resume,
        lengthen=lengthen,
        seed=seed,
        parallel=training.parallel,
        trackers=training.trackers,
    )
    return history, noted
