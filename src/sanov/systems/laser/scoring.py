"""The label's log-probability after completions that are there already: one pass of the policy, read at EOS."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from sanov.core.errors import InputError
from sanov.learning.processes import every_process
from sanov.learning.rollouts import Tokenizer, context_of
from sanov.nets.decoding import evaluating
from sanov.nets.reads import Read

__all__ = ["end_log_probs", "end_log_probs_of"]

TOGETHER = 8192  # tokens of a forward pass


@torch.no_grad()
def end_log_probs(
    model: nn.Module,
    ids: Int[Tensor, "rows width"],
    lengths: Int[Tensor, " rows"],
    finished: Bool[Tensor, " rows"],
    token: int,
) -> Float[Tensor, " rows"]:
    """Return the log-probability of a token after each row's EOS, from untempered logits; NaN where there is no EOS.

    Parameters
    ----------
    model
        ``model(ids, mask, reads)``; it is put in evaluation mode meanwhile. Where there are several processes, all call.
    ids, lengths
        Prompt and completion, padded on the right, and where each ends.
    finished
        Rows whose last token is EOS.
    token
        The label.
    """
    found = torch.full((len(ids),), math.nan, dtype=torch.float32, device=ids.device)
    device = next(model.parameters()).device
    parts = list(_parts(lengths, finished))
    most = max(every_process(len(parts)))  # a pass of weights that are divided is one of all processes
    with evaluating(model):
        for rows in [*parts, *[torch.zeros(1, dtype=torch.long, device=ids.device)] * (most - len(parts))]:
            width = int(lengths[rows].max())
            real = torch.arange(width, device=ids.device)[None] < lengths[rows, None]
            last = torch.nn.functional.one_hot(lengths[rows] - 1, width).bool()
            read = Read(last.to(device), torch.full((len(rows),), token, device=device))
            values = model(ids[rows, :width].to(device), real.to(device), {"end": read})["end"]
            found = found.to(values.dtype)
            found[rows] = values.to(found.device)
    return found.masked_fill(~finished, math.nan)


def _parts(lengths: Tensor, chosen: Tensor) -> Iterator[Tensor]:
    """Yield chosen rows of like length together, longest first."""
    rows = torch.nonzero(chosen).flatten()
    rows = rows[torch.argsort(lengths[rows], descending=True, stable=True)]
    while len(rows):
        size = max(TOGETHER // int(lengths[rows[0]]), 1)
        yield rows[:size]
        rows = rows[size:]


def end_log_probs_of(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    finished: Bool[np.ndarray, " rows"],
    token: int,
    *,
    name: str = "the completions",
) -> Float64[np.ndarray, " rows"]:
    """Return the same for tokens of prompts and completions, row by row.

    Parameters
    ----------
    model, tokenizer
        The policy that judges.
    prompts, completions
        Tokens; a finished completion ends with EOS.
    finished
        Which ones end.
    token
        The label.
    name
        What to call the rows in a message.

    Raises
    ------
    InputError
        A row is longer than the context.
    """
    whole = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    lengths = [len(row) for row in whole]
    context = context_of(model)
    if max(lengths, default=0) > context:
        row = int(np.argmax(lengths))
        found = f"prompt and completion have {lengths[row]} tokens, and the context {context}"
        raise InputError(found, where=f"{name}, row {row + 1}", fix="leave such rows out")
    width = max(lengths, default=1)
    ids = torch.tensor([[*row, *[tokenizer.pad] * (width - len(row))] for row in whole])
    ended = torch.from_numpy(np.asarray(finished, dtype=bool))
    return end_log_probs(model, ids, torch.tensor(lengths), ended, token).double().numpy()
