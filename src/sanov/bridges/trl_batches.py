"""TRL's batches as ours and back: prompts padded on the left and completions on the right, for rows of tokens.

What signals found of the completions travels in TRL's own batch, which is shuffled and divided by rows, under keys that
begin with ``sanov/``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor
from torch.nn import functional

from sanov.core.errors import InputError
from sanov.data.prompts import Prompts
from sanov.learning.policy import Step
from sanov.learning.rollouts import Rollouts
from sanov.nets.reads import Read

__all__ = ["NONE", "carried", "counts_of", "label_tokens", "rollouts_of", "step_of", "with_labels"]

KEY = "sanov/"
TOKENS, ROWS, COUNTS = f"{KEY}tokens/", f"{KEY}rows/", f"{KEY}counts/"
FINISHED, REWARDS = f"{KEY}finished", f"{KEY}rewards"
NONE = -1  # no label is read after this row

Batch = Mapping[str, Tensor]


def rollouts_of(
    batch: Batch,
    prompts: Prompts,
    texts: Sequence[str],
    scores: Float64[np.ndarray, "rows functions"],
    rewards: Float64[Tensor, " rows"],
    *,
    eos: Sequence[int],
    pad: int,
    step: int,
    first: int,
) -> Rollouts:
    """Return what TRL sampled as completions of a step, without log-probabilities.

    Parameters
    ----------
    batch
        What TRL's trainer made of its completions: ``prompt_ids``, ``completion_ids``, their masks, ``advantages``.
    prompts
        Each once; the rows of one prompt stand side by side.
    texts, scores, rewards
        Of each row.
    eos, pad
        Tokens that end a completion, and one to pad with.
    step
        Updates that lie behind.
    first
        Number of the first prompt within the step, over all processes.
    """
    whole = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    real = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1).bool()
    starts, lengths = batch["prompt_mask"].sum(dim=1), real.sum(dim=1)
    place = torch.arange(int(lengths.max()), device=whole.device)[None]
    ids = torch.full((len(whole), place.shape[1]), pad, dtype=whole.dtype, device=whole.device)
    ids[place < lengths[:, None]] = whole[real]  # a row's tokens lie together in both
    ended = torch.isin(ids.gather(1, lengths[:, None] - 1).squeeze(1), torch.tensor(eos, device=ids.device))
    number = first + np.arange(len(prompts))
    found = Rollouts(
        prompts,
        len(ids) // len(prompts),
        ids,
        starts,
        lengths,
        ended & (lengths > starts),
        torch.zeros(ids.shape, device=ids.device),
        list(texts),
        step,
        number,
    )
    found.scores, found.rewards, found.advantages = scores, rewards, batch["advantages"]
    return found


def carried(batch: Batch, rollouts: Rollouts, counts: Mapping[str, float]) -> dict[str, Tensor]:
    """Return TRL's batch with the advantages and everything else that signals found.

    Parameters
    ----------
    batch
        What `rollouts_of` was made of.
    rollouts
        After the signals.
    counts
        By what the sums of components are divided, over all processes.
    """
    inside, where = rollouts.completion, batch["completion_mask"].bool()

    def back(values: Tensor) -> Tensor:
        found = values.new_zeros((*where.shape, *values.shape[2:]))
        found[where] = values[inside]
        return found

    advantages = rollouts.advantages if rollouts.advantages.ndim == 1 else back(rollouts.advantages)
    found = {**batch, "advantages": advantages.to(batch["advantages"].dtype)}
    found |= {FINISHED: rollouts.finished, REWARDS: rollouts.rewards}
    found |= {f"{TOKENS}{name}": back(values) for name, values in rollouts.tokens.items()}
    found |= {f"{ROWS}{name}": values for name, values in rollouts.rows.items()}
    found |= {f"{COUNTS}{name}": torch.tensor(count, device=where.device) for name, count in counts.items()}
    return found


def counts_of(batch: Batch) -> dict[str, Tensor]:
    """Return the counts that `carried` put into a batch."""
    return _under(COUNTS, batch)


def step_of(batch: Batch, step: int) -> Step | None:
    """Return a micro-batch as signals see it, padded as TRL pads it; None where no signal looked at it.

    Parameters
    ----------
    batch
        Some rows of what `carried` returned.
    step
        Updates that lie behind.
    """
    if FINISHED not in batch:
        return None
    prompt, completion = batch["prompt_mask"].bool(), batch["completion_mask"].bool()
    width = prompt.shape[1]
    inside = functional.pad(completion, (width, 0))
    finished = batch[FINISHED]
    last = inside & ~functional.pad(inside[:, 1:], (0, 1)) & finished[:, None]
    return Step(
        ids=torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        real=torch.cat([prompt, completion], dim=1),
        completion=inside,
        last=last,
        before=functional.pad(inside[:, 1:], (0, 1)),
        finished=finished,
        rewards=batch[REWARDS],
        tokens={name: _padded(values, width) for name, values in _under(TOKENS, batch).items()},
        rows=_under(ROWS, batch),
        step=step,
    )


def _under(prefix: str, batch: Batch) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): values for name, values in batch.items() if name.startswith(prefix)}


def _padded(values: Tensor, width: int) -> Tensor:
    """Return values of completions' tokens with zeros where prompts are."""
    return torch.cat([values.new_zeros((len(values), width, *values.shape[2:])), values], dim=1)


# -- a label after the end --------------------------------------------------------------------------------------------


def label_tokens(reads: Mapping[str, Read], part: Step, temperature: float) -> Int[Tensor, " rows"] | None:
    """Return the token whose log-probability is asked for after each row's end; None where nothing is asked.

    TRL gives log-probabilities of tokens that are there, at its temperature. So one token may be put after a row's end,
    where no other token sees it, and nothing else can be read.

    Parameters
    ----------
    reads
        What signals ask for.
    part
        The micro-batch.
    temperature
        Of TRL's sampling.

    Returns
    -------
    A token, or -1 for none, for each row.

    Raises
    ------
    InputError
        Something else is asked for.
    """
    if not reads:
        return None
    if len(reads) > 1:
        found = f"{len(reads)} signals read something after the end ({', '.join(sorted(reads))})"
        raise InputError(found, where="signals", expected="one of them, in TRL's trainer")
    ((name, read),) = reads.items()
    end = part.real & ~functional.pad(part.real[:, 1:], (0, 1))
    if read.tokens is None or bool((read.at & ~end).any()):
        fix = "take an estimator that needs sampled tokens alone (kd.estimator=k2), or train by sanov"
        raise InputError("TRL gives log-probabilities of sampled tokens alone", where=f"signals: {name}", fix=fix)
    if read.temperature != temperature:
        where = "GRPOConfig.temperature"
        expected = f"{read.temperature}, at which {name} is read"
        raise InputError(f"it is {temperature}", where=where, expected=expected)
    labels = torch.full((len(part.ids),), NONE, dtype=part.ids.dtype, device=part.ids.device)
    labels[read.at.any(dim=1)] = read.tokens.to(labels.dtype)
    return labels


def with_labels(
    ids: Int[Tensor, "rows tokens"], mask: Tensor, labels: Int[Tensor, " rows"]
) -> tuple[Int[Tensor, "rows more"], Tensor]:
    """Return completions and their mask with a label after the last token of each row that has one.

    Parameters
    ----------
    ids, mask
        Completions, padded on the right.
    labels
        See `label_tokens`.
    """
    ids, mask = functional.pad(ids, (0, 1)), functional.pad(mask, (0, 1))
    rows = torch.nonzero(labels != NONE).flatten()
    places = mask[rows].sum(dim=1)
    ids[rows, places], mask[rows, places] = labels[rows], 1
    return ids, mask
