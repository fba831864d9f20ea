"""Completions of a table of prompts, how good they are, and the answer that says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64, Int
from torch import nn

from sanov.comparisons import cluster_bootstrap, share_interval
from sanov.core import files
from sanov.core.answers import Answer
from sanov.core.progress import track
from sanov.data.prompts import Prompts
from sanov.data.rewards import Rewards
from sanov.learning.rollouts import Rollout, Tokenizer, context_of, encoded
from sanov.nets.sampling import keyed_uniforms, sample

__all__ = ["ASKED", "FEWEST", "Completed", "Tasks", "answer", "carried", "complete", "interval_over_prompts"]

TOGETHER = 256  # completions that are sampled at once
ASKED = "prompt_"  # before the name of a prompt's column where the completion has one of its own
FEWEST = 5  # prompts below which an interval over them says too little
EVALUATION = 7_919  # of the stream of random numbers that evaluations take: not that of training


@dataclass(frozen=True, eq=False)
class Tasks:
    """Prompts, and who rewards what answers them.

    Parameters
    ----------
    prompts
        With the columns that the rewards ask for.
    rewards
        Reward functions; None where there are none to judge by.
    """

    prompts: Prompts
    rewards: Rewards | None


@dataclass(frozen=True, eq=False)
class Completed:
    """Completions of prompts, those of one prompt side by side.

    Parameters
    ----------
    texts
        [prompts * samples].
    ids
        Tokens of each completion.
    rewards
        [prompts, samples]; NaN where no reward applies or there is no function.
    lengths
        Tokens of each, [prompts, samples].
    finished
        Whether each ended by itself, [prompts, samples].
    mean_log_prob
        Mean log-probability of its tokens, [prompts, samples].
    ends
        By watched token, its log-probability after EOS, [prompts, samples]; NaN where a completion did not end.
    """

    texts: list[str]
    ids: list[list[int]]
    rewards: Float64[np.ndarray, "prompts samples"]
    lengths: Int[np.ndarray, "prompts samples"]
    finished: np.ndarray
    mean_log_prob: Float64[np.ndarray, "prompts samples"]
    ends: Mapping[int, Float64[np.ndarray, "prompts samples"]] = field(default_factory=dict)


def complete(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Prompts,
    rewards: Rewards | None,
    options: Rollout,
    *,
    samples: int,
    watch: Sequence[int] = (),
    seed: int = 0,
    stream: int = EVALUATION,
) -> Completed:
    """Sample completions of every prompt, and score them.

    Parameters
    ----------
    model, tokenizer
        The policy.
    prompts, rewards
        What is completed, and by whom it is judged.
    options
        How to sample.
    samples
        Completions of a prompt.
    watch
        See `nets.sampling.sample`.
    seed, stream
        Of the noise.

    Raises
    ------
    InputError
        A prompt does not fit, or a reward is refused.
    """
    tokens, limit = encoded(prompts, tokenizer, options.max_completion_length, context_of(model))
    found: list[tuple[list[int], bool, float]] = []
    ends: dict[int, list[float]] = {token: [] for token in watch}
    device = next(model.parameters()).device
    size = max(TOGETHER // samples, 1)
    for start in track(range(0, len(tokens), size), "completions"):
        part = tokens[start : start + size]
        rows = torch.arange(start * samples, (start + len(part)) * samples)
        out = sample(
            model,
            part,
            group_size=samples,
            limit=limit,
            eos=tokenizer.eos,
            pad=tokenizer.pad,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            suppress=options.suppress,
            watch=watch,
            uniforms=keyed_uniforms(seed, stream, rows, limit).to(device),
        )
        for token, values in out.ends.items():
            ends[token] += values.tolist()
        sums = (out.log_probs.double().sum(dim=1) / out.lengths.clamp_min(1)).tolist()
        for row, length, ended, mean in zip(
            out.tokens.tolist(), out.lengths.tolist(), out.finished.tolist(), sums, strict=True
        ):
            found.append((row[:length], ended, mean))
    ids = [row for row, _, _ in found]
    texts = [tokenizer.decode(row) for row in ids]
    shape = (len(tokens), samples)
    repeated = prompts.take(np.repeat(np.arange(len(prompts)), samples))
    totals = np.full(len(ids), np.nan)
    if rewards is not None:
        totals = rewards.total(rewards.score(repeated, texts, completion_ids=ids))
    return Completed(
        texts,
        ids,
        totals.reshape(shape),
        np.array([len(row) for row in ids]).reshape(shape),
        np.array([ended for _, ended, _ in found]).reshape(shape),
        np.array([mean for _, _, mean in found]).reshape(shape),
        {token: np.array(values).reshape(shape) for token, values in ends.items()},
    )


def answer(
    system: str, data: Tasks, found: Completed, *, samples: int, more: Mapping[str, pl.Series] | None = None
) -> Answer:
    """Return completions as an answer: how often they are right, with an interval over prompts.

    Parameters
    ----------
    system
        Name of the system.
    data
        What was completed.
    found
        The completions.
    samples
        Of each prompt.
    more
        Further columns of the completions.
    """
    rows = np.repeat(np.arange(len(data.prompts)), samples)
    prompts = [prompt if isinstance(prompt, str) else files.to_json(prompt) for prompt in data.prompts.prompts]
    table = pl.DataFrame({
        "prompt": np.repeat(np.array(prompts, dtype=object), samples).tolist(),
        "completion": found.texts,
        "reward": found.rewards.ravel(),
        "finished": found.finished.ravel(),
        "tokens": found.lengths.ravel(),
        "mean_log_prob": found.mean_log_prob.ravel(),
    }).with_columns(pl.col("reward").fill_nan(None), **(more or {}))  # fmt: skip
    table = table.with_columns(carried(data.prompts, rows.tolist(), table.columns))
    values: dict[str, Any] = {"prompts": len(data.prompts), "completions": len(found.texts)}
    values["mean_tokens"], values["finished"] = float(found.lengths.mean()), float(found.finished.mean())
    judged_rows = ~np.isnan(found.rewards).all(axis=1)
    if not judged_rows.any():
        text = f"{len(found.texts)} completions of {len(data.prompts)} prompts; nothing says which are right."
        return Answer(system, text, values, {"Completions": table})
    by_prompt = np.nanmean(found.rewards[judged_rows], axis=1)
    values["mean_reward"] = float(by_prompt.mean())
    text = f"the mean reward of {len(found.texts)} completions is {by_prompt.mean():.3f}"
    if len(by_prompt) < FEWEST:
        text += f" ({len(by_prompt)} prompts are too few for an interval)"
    else:
        low, high = interval_over_prompts(found.rewards[judged_rows])
        values["mean_reward_low"], values["mean_reward_high"] = low, high
        text += f" [{low:.3f}, {high:.3f}] (95 % interval over {len(by_prompt)} prompts)"
    means = np.full(len(prompts), np.nan)
    means[judged_rows] = by_prompt
    columns = {"prompt": prompts, "mean_reward": means, "mean_tokens": found.lengths.mean(axis=1)}
    prompt_table = pl.DataFrame(columns).with_columns(pl.col("mean_reward").fill_nan(None))
    return Answer(system, f"{text}.", values, {"Completions": table, "Prompts": prompt_table})


def carried(prompts: Prompts, rows: Iterable[int], taken: Iterable[str]) -> list[pl.Series]:
    """Return the columns of prompts for a table of their completions, so that it can be judged again.

    Parameters
    ----------
    prompts
        With the columns that rewards ask for.
    rows
        The prompt of each completion.
    taken
        Names of columns that mean the completion's own: one of the prompt gets ``prompt_`` in front.
    """
    rows, names = list(rows), set(taken)
    found = []
    for column, cells in prompts.columns.items():
        name = column
        while name in names:
            name = ASKED + name
        names.add(name)
        plain = [files.to_json(cell) if isinstance(cell, list | tuple | dict) else cell for cell in cells]
        found.append(pl.Series(name, [plain[row] for row in rows], strict=False))
    return found


def interval_over_prompts(rewards: Float64[np.ndarray, "prompts samples"]) -> tuple[float, float]:
    """Return the interval of the mean reward over prompts; it holds nothing that no completion could be given.

    Parameters
    ----------
    rewards
        Of each prompt's completions; NaN where there is none, but of no prompt altogether.
    """
    known = ~np.isnan(rewards)
    by_prompt = np.nanmean(rewards, axis=1)
    if np.isin(rewards[known], (0, 1)).all():
        return share_interval(by_prompt, known.sum(axis=1))
    found = cluster_bootstrap(by_prompt, np.arange(len(by_prompt)))
    return found.low, found.high
