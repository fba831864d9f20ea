"""What a method adds to GRPO: a `Signal`, and what it sees of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sanov.core.options import Options, option
from sanov.data.prompts import Prompts
from sanov.learning.rollouts import Rollout, Rollouts, Tokenizer
from sanov.nets.reads import Read

__all__ = ["Advantages", "Grpo", "Signal", "Step"]


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
    has the log-probability after EOS, where the sampler can tell. The last two may be settled by `begin`, before which
    ``steps`` is told: the number of updates of the training. One that ``observes`` changes nothing.
    """

    components: tuple[str, ...] = ()
    suppressed: tuple[int, ...] = ()
    watched: tuple[int, ...] = ()
    observes: bool = False
    steps: int | None = None

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
