"""Supervised fine-tuning: the policy moves onto written completions by maximum likelihood, the forward KL to their writer.

Each completion ends with EOS. The mean is over all tokens of the step, as in `learning.policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sanov.core.errors import InputError
from sanov.data.prompts import Prompts
from sanov.learning.checkpoints import Publish
from sanov.learning.optimizers import adamw
from sanov.learning.parallel import Parallel
from sanov.learning.rollouts import Tokenizer, context_of
from sanov.learning.schedules import Kind, schedule
from sanov.learning.training import History, micro_batches, shuffled, train
from sanov.nets.reads import Read

__all__ = ["imitate"]

LIKELIHOOD = "nll"


def imitate(
    prompts: Prompts,
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    column: str = "solution",
    steps: int,
    batch_size: int = 64,
    micro_batch_tokens: int = 0,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    rate: Kind = "constant",
    warmup: float = 0.0,
    evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    evaluate_start: bool = False,
    callbacks: Sequence[Callable[[int, Mapping[str, float]], object]] = (),
    out: str | Path | None = None,
    checkpoint_every: int = 0,
    publish: Publish | None = None,
    resume: bool = False,
    lengthen: bool = False,
    parallel: Parallel = "auto",
    trackers: Sequence[Any] = (),
    seed: int = 0,
) -> History:
    """Train a model in place on written completions.

    Parameters
    ----------
    prompts
        With the completions in a column.
    model, tokenizer
        As in `policy.fit`.
    column
        Name of that column.
    steps, batch_size, micro_batch_tokens
        Updates, rows of one on all processes, and tokens computed at once on a process, padding included (0: all).
    learning_rate, weight_decay, clip_norm, rate, warmup
        Of AdamW, and the shape of its rate.
    evaluate, evaluate_every, evaluate_start, callbacks, out, checkpoint_every, publish, resume, lengthen, parallel
        See `training.train`.
    trackers, seed
        See `training.train`.

    Raises
    ------
    InputError
        There is no such column, or a row is longer than the context or than what is computed at once.
    """
    ids, starts = _written(prompts, tokenizer, column, context_of(model))
    lengths = np.array([len(row) for row in ids])
    if 0 < micro_batch_tokens < lengths.max():
        found = f"it is {micro_batch_tokens}, and a row has {lengths.max()} tokens"
        raise InputError(found, where="training.micro_batch_tokens", expected=f"at least {lengths.max()}")
    together = micro_batch_tokens // int(lengths.max())
    order = shuffled(len(prompts), min(batch_size, len(prompts)), seed=seed)

    def batches(step: int, policy: nn.Module) -> list[dict[str, Any]]:
        return [_batch(rows, ids, starts, lengths, tokenizer.pad) for rows in micro_batches(order(step), together)]

    return train(
        model,
        batches,
        _loss,
        optimizer=partial(adamw, learning_rate=learning_rate, weight_decay=weight_decay),
        steps=steps,
        schedule=schedule(rate, steps, warmup),
        clip_norm=clip_norm,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        evaluate_start=evaluate_start,
        callbacks=callbacks,
        out=out,
        checkpoint_every=checkpoint_every,
        publish=publish,
        resume=resume,
        lengthen=lengthen,
        parallel=parallel,
        trackers=trackers,
        seed=seed,
    )


def _written(prompts: Prompts, tokenizer: Tokenizer, column: str, context: int) -> tuple[list[list[int]], np.ndarray]:
    if column not in prompts.columns:
        found = f"there is no column {column!r}"
        raise InputError(found, where=prompts.name, expected=", ".join(sorted(prompts.columns)) or "a column of texts")
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    heads = [
        [*start, *_tokens(tokenizer.encode, prompt, f"{prompts.name}, row {row}")]
        for row, prompt in enumerate(prompts.prompts, start=1)
    ]
    whole = [
        [*head, *_tokens(tokenizer.continued, text, f"{prompts.name}, row {row}, column {column!r}"), tokenizer.eos]
        for row, (head, text) in enumerate(zip(heads, prompts.columns[column], strict=True), start=1)
    ]
    for row, ids in enumerate(whole, start=1):
        if len(ids) > context:
            found = f"prompt and completion have {len(ids)} tokens, and the context {context}"
            raise InputError(found, where=f"{prompts.name}, row {row}", fix="leave such rows out")
    return whole, np.array([len(head) for head in heads])


def _tokens(encode: Callable[[Any], list[int]], text: Any, where: str) -> list[int]:
    """Return the tokens of a text; what the tokenizer refuses is told with its place."""
    try:
        return encode(text)
    except InputError as error:
        raise InputError(error.found, where=where, expected=error.expected, fix=error.fix) from None


def _batch(
    rows: np.ndarray, ids: Sequence[Sequence[int]], starts: np.ndarray, lengths: np.ndarray, pad: int
) -> dict[str, Any]:
    """Return rows padded on the right; an empty share of a step is one row that counts nothing."""
    chosen = rows if len(rows) else np.zeros(1, dtype=int)
    width = int(lengths[chosen].max())
    place = torch.arange(width)[None]
    start, end = torch.from_numpy(starts[chosen])[:, None], torch.from_numpy(lengths[chosen])[:, None]
    mask = (place >= start) & (place < end) & bool(len(rows))
    return {
        "ids": torch.tensor([[*ids[row], *[pad] * (width - lengths[row])] for row in chosen]),
        "real": place < end,
        "mask": mask,
        "before": torch.nn.functional.pad(mask[:, 1:], (0, 1)),
        "counts": {LIKELIHOOD: float(mask.sum())},
    }


def _loss(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, tuple[Tensor, float]]:
    reads = {LIKELIHOOD: Read(batch["before"], batch["ids"][batch["mask"]])}
    return {LIKELIHOOD: (-model(batch["ids"], batch["real"], reads)[LIKELIHOOD].sum(), 1.0)}
