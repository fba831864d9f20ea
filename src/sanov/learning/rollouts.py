"""Prompts in, scored completions out: what a policy-gradient step learns from. Tokens only, whatever the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.data.prompts import Prompts
from sanov.data.rewards import Rewards
from sanov.learning.processes import every_process
from sanov.nets.sampling import Sampled, keyed_uniforms, sample

__all__ = [
    "Rollout",
    "Rollouts",
    "Sampler",
    "Tokenizer",
    "collect",
    "context_of",
    "describe",
    "encoded",
    "local_sampler",
]

DEFAULT_LIMIT = 512  # tokens of a completion where the context leaves room for more


class Rollout(Options):
    """How completions are sampled."""

    group_size: int = option(8, "Completions G of a prompt.", source="released code: TRL 1.16", ge=1)
    prompts_per_step: int = option(
        16, "Prompts of a step, on all processes together.", source="choice; 128 in arXiv 2609.04108", ge=1
    )
    max_completion_length: int | None = option(
        None, "Tokens of a completion; none for what the context leaves, at most 512.", source="TRL 1.16: 512", ge=1
    )
    temperature: float = option(1.0, "Of sampling, policy and teacher alike.", source="released code: TRL 1.16", gt=0)
    top_p: float = option(1.0, "Sample from the likeliest tokens of this mass.", source="TRL 1.16", gt=0, le=1)
    top_k: int = option(0, "Sample from so many likeliest tokens; 0 for all.", source="TRL 1.16", ge=0)
    suppress: tuple[int, ...] = option((), "Tokens that are never sampled.", source="choice")
    server: str = option(
        "", "Completions server that samples, http://HOST:PORT or with #NAME; empty for this process.", source="choice"
    )
    weights: str = option("", "Folder in which the server finds new weights; both see it.", source="choice")
    reload: str = option(
        "", "Address that makes the server load them; vllm for its own calls; empty if it does.", source="choice"
    )
    patience: float = option(
        600.0, "How long a server, the teacher's too, is waited for.", source="choice", unit="seconds", ge=0
    )


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer: `data.tokens.CharTokenizer`, or `nets.vocabulary.Vocabulary` for Hugging Face's."""

    @property
    def eos(self) -> int:
        """The token that ends a text."""

    @property
    def pad(self) -> int:
        """The token that fills rows."""

    @property
    def bos(self) -> int | None:
        """The token that a text begins with; None for none, or where `encode` puts it."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""

    def encode(self, text: Any) -> list[int]:
        """Return the tokens of a prompt: a text, or a list of chat messages where there is a template."""

    def continued(self, text: str) -> list[int]:
        """Return the tokens of a completion, without anything in front."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without the special ones."""

    def token_ids(self) -> Mapping[str, int]:
        """Return the number of each token, special ones included."""


@runtime_checkable
class Sampler(Protocol):
    """Whatever completes prompts: the policy itself, or a server that says which version of it answered."""

    def __call__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        uniforms: Float64[Tensor, "rows limit"],
        *,
        version: int,
        options: Rollout,
        eos: int,
        pad: int,
    ) -> tuple[Sampled, int]:
        """Return the completions, group by group, and the version of the policy that wrote them."""


@dataclass(eq=False)
class Rollouts:
    """The completions of a step on this process; the rows of one prompt stand side by side.

    Parameters
    ----------
    prompts
        The prompts, each once.
    group_size
        Completions of each.
    ids
        Prompt and completion, padded on the right, [rows, width].
    starts, lengths
        Where the completion begins, and where it ends: the last token of a finished one is EOS, [rows].
    finished
        Whether a completion ended by itself, and was not cut at the limit, [rows].
    log_probs
        Of the sampled tokens under the policy that sampled them, at the temperature of sampling; 0 elsewhere, [rows, width].
    texts
        The completions as text, without special tokens.
    version
        Updates that lay behind the policy that sampled.
    index
        Number of each prompt within the step, over all processes, [prompts].
    names
        Of the reward functions.
    ends
        By watched token, its log-probability right after EOS, [rows]; NaN where a row did not end. Empty where the sampler
        did not watch.
    scores
        Reward of each function, [rows, functions]; NaN where it does not apply.
    rewards
        Their weighted sum, [rows]; NaN where none applies.
    shaped
        What advantages are made of instead, where a signal shapes the reward; None for the rewards.
    advantages
        What a token's gradient is weighted with, [rows] or [rows, width].
    tokens, rows
        What signals know of tokens [rows, width, ...] and of rows [rows, ...], by name.
    metrics
        Numbers of the step to log, the same on every process.
    """

    prompts: Prompts
    group_size: int
    ids: Int[Tensor, "rows width"]
    starts: Int[Tensor, " rows"]
    lengths: Int[Tensor, " rows"]
    finished: Bool[Tensor, " rows"]
    log_probs: Float[Tensor, "rows width"]
    texts: list[str]
    version: int
    index: Int[np.ndarray, " prompts"]
    names: tuple[str, ...] = ()
    ends: Mapping[int, Float[Tensor, " rows"]] = field(default_factory=dict)
    scores: Float64[np.ndarray, "rows functions"] = field(default_factory=lambda: np.zeros((0, 0)))
    rewards: Float64[Tensor, " rows"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    shaped: Float64[Tensor, " rows"] | None = None
    advantages: Tensor = field(default_factory=lambda: torch.zeros(0))
    tokens: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of completions."""
        return len(self.ids)

    @property
    def completion(self) -> Bool[Tensor, "rows width"]:
        """True on tokens of the completion, EOS included."""
        return (self._place >= self.starts[:, None]) & self.real

    @property
    def real(self) -> Bool[Tensor, "rows width"]:
        """True on tokens of prompt and completion."""
        return self._place < self.lengths[:, None]

    @property
    def last(self) -> Bool[Tensor, "rows width"]:
        """True on the EOS of finished rows."""
        return (self._place == self.lengths[:, None] - 1) & self.finished[:, None]

    @property
    def _place(self) -> Int[Tensor, "1 width"]:
        return torch.arange(self.ids.shape[1], device=self.ids.device)[None]

    @property
    def completion_lengths(self) -> Int[Tensor, " rows"]:
        """Tokens of each completion."""
        return self.lengths - self.starts

    def repeated(self) -> Prompts:
        """Return the prompts row by row: each as often as it was completed."""
        return self.prompts.take(np.repeat(np.arange(len(self.prompts)), self.group_size))


def encoded(prompts: Prompts, tokenizer: Tokenizer, limit: int | None, context: int) -> tuple[list[list[int]], int]:
    """Return the tokens of prompts, and the largest number of tokens of a completion.

    Parameters
    ----------
    prompts
        Texts or chats.
    tokenizer
        Of the policy.
    limit
        Tokens of a completion; None for what the context leaves, at most 512.
    context
        Tokens that the policy can read.

    Raises
    ------
    InputError
        A prompt leaves no room in the context. It is never cut.
    """
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    tokens = [
        [*start, *_encoded(tokenizer, prompt, f"{prompts.name}, row {row}")]
        for row, prompt in enumerate(prompts.prompts, start=1)
    ]
    for row, ids in enumerate(tokens, start=1):
        where = f"{prompts.name}, row {row}"
        if not ids:
            raise InputError("the prompt has no tokens", where=where)
        if len(ids) >= context:
            fix = "leave such rows out, or take a policy with a longer context"
            raise InputError(f"the prompt has {len(ids)} tokens, and the context {context}", where=where, fix=fix)
    longest = max(map(len, tokens), default=0)
    if limit is not None and longest + limit > context:
        found = f"the longest prompt has {longest} tokens and a completion up to {limit}"
        fix = f"rollouts.max_completion_length={context - longest}, or leave long prompts out"
        raise InputError(found, where=prompts.name, expected=f"at most the context's {context} together", fix=fix)
    return tokens, limit or min(DEFAULT_LIMIT, context - longest)


def _encoded(tokenizer: Tokenizer, prompt: Any, where: str) -> list[int]:
    """Return a prompt's tokens; what the tokenizer refuses is told with its row."""
    try:
        return tokenizer.encode(prompt)
    except InputError as error:
        raise InputError(error.found, where=where, expected=error.expected, fix=error.fix) from None


def context_of(model: nn.Module) -> int:
    """Tokens that a model can read."""
    found = getattr(getattr(model, "shape", None), "context", None) or getattr(model, "context", None)
    return int(found) if isinstance(found, int) else 2**31


def local_sampler(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    uniforms: Float64[Tensor, "rows limit"],
    *,
    version: int,
    options: Rollout,
    eos: int,
    pad: int,
    watch: Sequence[int] = (),
) -> tuple[Sampled, int]:
    """Complete prompts with the model itself: always the newest version. See `Sampler`; for `watch`, `nets.sampling`."""
    found = sample(
        model,
        prompts,
        group_size=options.group_size,
        limit=uniforms.shape[1],
        eos=eos,
        pad=pad,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        suppress=options.suppress,
        watch=watch,
        uniforms=uniforms,
    )
    return found, version


def collect(
    model: nn.Module,
    prompts: Prompts,
    tokens: Sequence[Sequence[int]],
    index: Int[np.ndarray, " prompts"],
    *,
    limit: int,
    options: Rollout,
    tokenizer: Tokenizer,
    rewards: Rewards | None,
    sampler: Sampler = local_sampler,
    seed: int,
    step: int,
) -> Rollouts:
    """Sample completions of prompts, and score them.

    Parameters
    ----------
    model
        The policy.
    prompts, tokens
        This process's prompts and their tokens.
    index
        Their numbers within the step: the noise of a completion follows from (seed, step, number, place in the group,
        position) alone.
    limit
        Tokens of a completion.
    options
        How to sample.
    tokenizer, rewards, sampler
        See their protocols; without rewards nobody judges the completions, whose rewards are NaN.
    seed, step
        Of the noise; the step is also the version that the sampler has to have.

    Raises
    ------
    InputError
        The completions are of another version of the policy, or a reward is refused.
    """
    number = torch.as_tensor(np.asarray(index))[:, None] * options.group_size + torch.arange(options.group_size)
    device = next(model.parameters()).device
    uniforms = keyed_uniforms(seed, step, number.flatten(), limit).to(device)
    found, version = sampler(
        model, tokens, uniforms, version=step, options=options, eos=tokenizer.eos, pad=tokenizer.pad
    )
    if version != step:
        fix = "give the server the newest weights before it samples"
        raise InputError(f"the completions are of version {version}", where="rollouts", expected=f"{step}", fix=fix)
    rollouts = _placed(prompts, tokens, found, index, options.group_size, tokenizer, version)
    ids = [row[start:end] for row, start, end in _bounds(rollouts)]
    rollouts.texts = [tokenizer.decode(row) for row in ids]
    rollouts.scores, totals = np.zeros((len(ids), 0)), np.full(len(ids), np.nan)
    if rewards is not None:
        rollouts.names = rewards.names
        rollouts.scores = rewards.score(rollouts.repeated(), rollouts.texts, completion_ids=ids, step=step)
        totals = rewards.total(rollouts.scores)
    rollouts.rewards = torch.from_numpy(totals).to(device)
    return rollouts


def _bounds(rollouts: Rollouts) -> list[tuple[list[int], int, int]]:
    return list(zip(rollouts.ids.tolist(), rollouts.starts.tolist(), rollouts.lengths.tolist(), strict=True))


def _placed(
    prompts: Prompts,
    tokens: Sequence[Sequence[int]],
    found: Sampled,
    index: np.ndarray,
    group_size: int,
    tokenizer: Tokenizer,
    version: int,
) -> Rollouts:
    """Put prompts and completions into one table, padded on the right alone."""
    device = found.tokens.device
    starts = torch.tensor([len(ids) for ids in tokens], device=device).repeat_interleave(group_size)
    lengths = starts + found.lengths.to(device)
    width = int(lengths.max())
    ids = torch.full((len(starts), width), tokenizer.pad, dtype=torch.long, device=device)
    log_probs = torch.zeros(ids.shape, dtype=found.log_probs.dtype, device=device)
    longest = int(starts.max())
    padded = [[*row, *[tokenizer.pad] * (longest - len(row))] for row in tokens]
    ids[:, :longest] = torch.tensor(padded, device=device).repeat_interleave(group_size, dim=0)
    place = torch.arange(width, device=device)[None]
    inside = (place >= starts[:, None]) & (place < lengths[:, None])
    sampled = torch.arange(found.tokens.shape[1], device=device)[None] < found.lengths.to(device)[:, None]
    ids[inside] = found.tokens[sampled].long()
    log_probs[inside] = found.log_probs[sampled]
    finished, number = found.finished.to(device), np.asarray(index)
    return Rollouts(
        prompts, group_size, ids, starts, lengths, finished, log_probs, [], version, number, ends=found.ends
    )


def describe(rollouts: Rollouts, names: Sequence[str]) -> dict[str, float]:
    """Return the numbers of a step under TRL's names, over all processes.

    Parameters
    ----------
    rollouts
        With rewards and advantages.
    names
        Of the reward functions.
    """
    own = (
        rollouts.rewards.cpu().numpy(),
        rollouts.completion_lengths.cpu().numpy(),
        rollouts.finished.cpu().numpy(),
        rollouts.scores,
        -float(rollouts.log_probs.sum()),
    )
    rewards, lengths, finished, scores, surprise = zip(*every_process(own), strict=True)
    reward, length, ended = np.concatenate(rewards), np.concatenate(lengths), np.concatenate(finished)
    groups = reward.reshape(-1, rollouts.group_size)
    kept = groups[~np.isnan(groups).any(axis=1)]
    spread = kept.std(axis=1, ddof=1) if len(kept) and rollouts.group_size > 1 else np.zeros(len(kept))
    found = {
        "reward": _mean(reward),
        "reward_std": _mean(spread),
        "frac_reward_zero_std": _mean(spread == 0),
        **_shares(kept),
        "completions/mean_length": float(length.mean()),
        "completions/min_length": float(length.min()),
        "completions/max_length": float(length.max()),
        "completions/mean_terminated_length": _mean(length[ended]),
        "completions/clipped_ratio": float(1 - ended.mean()),
        "entropy": sum(surprise) / float(length.sum()),
        "num_tokens": float(length.sum()),
    }
    for name, column in zip(names, np.concatenate(scores).T, strict=True):
        found |= {f"rewards/{name}/mean": _mean(column), f"rewards/{name}/std": _std(column)}
    return found


def _shares(groups: Float64[np.ndarray, "prompts group"]) -> dict[str, float]:
    """Return the shares of groups whose rewards are all one above 0, all one of at most 0, or differ."""
    mixed = groups.max(axis=1, initial=-np.inf) > groups.min(axis=1, initial=np.inf)
    right = ~mixed & (groups > 0).all(axis=1)
    return {
        "groups/all_right": _mean(right),
        "groups/all_wrong": _mean(~mixed & ~right),
        "groups/mixed": _mean(mixed),
    }


def _mean(values: np.ndarray) -> float:
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _std(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")
