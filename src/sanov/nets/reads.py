"""What is read off a decoder's hidden states: log-probabilities of tokens, or logits, at the positions that ask for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sanov.core.errors import InputError
from sanov.estimators import token_log_probs
from sanov.linear_heads import linear_token_log_probs
from sanov.precision import widen

__all__ = ["Read", "read_logits", "read_off"]

HELD = 2**22  # logits that are held at once, 16 MiB in float32: beyond, chunks that are computed twice need less memory


@dataclass(frozen=True)
class Read:
    """One thing to read off a forward pass.

    Parameters
    ----------
    at
        The places to read at, [rows, tokens]: the logits there are those of the *next* token.
    tokens
        The tokens whose log-probabilities are wanted, one for each place in row-major order; None asks for the logits of
        the whole vocabulary, [places, vocabulary].
    temperature
        Divides the logits.

    Raises
    ------
    InputError
        The temperature is not positive.
    """

    at: Bool[Tensor, "rows tokens"]
    tokens: Int[Tensor, " places"] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"it is {self.temperature}", where="temperature", expected="a positive number")


def read_off(
    hidden: Float[Tensor, "rows tokens width"],
    head_weight: Float[Tensor, "vocabulary width"],
    reads: Mapping[str, Read],
) -> dict[str, Tensor]:
    """Read log-probabilities or logits off hidden states; logits exist at the places that ask for them alone.

    Where those of all places together are few, they are formed once for all reads. Where they are many, reads of
    tokens form them chunk by chunk, and again in the backward pass.

    Parameters
    ----------
    hidden
        Last hidden states.
    head_weight
        Weights of the output head.
    reads
        By name.

    Returns
    -------
    By name, log-probabilities [places] in nats, or logits [places, vocabulary] divided by the temperature; float32 or
    wider.

    Raises
    ------
    InputError
        There are more or fewer tokens than places.
    """
    _check(reads)
    union = _union(reads)
    if union is not None and int(union.sum()) * len(head_weight) <= HELD:
        return _read(hidden[union] @ head_weight.T, union, reads)
    return {name: _read_alone(hidden[read.at], head_weight, read) for name, read in reads.items()}


def read_logits(logits: Float[Tensor, "rows tokens vocabulary"], reads: Mapping[str, Read]) -> dict[str, Tensor]:
    """Read the same off the logits of all tokens, for models that give nothing else.

    Parameters
    ----------
    logits
        Of every token.
    reads
        By name, as in `read_off`.

    Raises
    ------
    InputError
        As `read_off`.
    """
    _check(reads)
    union = _union(reads)
    return {} if union is None else _read(logits[union], union, reads)


def _check(reads: Mapping[str, Read]) -> None:
    for name, read in reads.items():
        places = int(read.at.sum())
        if read.tokens is not None and len(read.tokens) != places:
            raise InputError(f"{len(read.tokens)} tokens are asked for at {places} places", where=f"the read {name!r}")


def _union(reads: Mapping[str, Read]) -> Bool[Tensor, "rows tokens"] | None:
    """Return where any read asks for logits."""
    places = [read.at for read in reads.values()]
    return torch.stack(places).any(dim=0) if places else None


def _read(
    logits: Float[Tensor, "union vocabulary"], union: Bool[Tensor, "rows tokens"], reads: Mapping[str, Read]
) -> dict[str, Tensor]:
    found = {}
    for name, read in reads.items():
        part = widen(logits if read.at is union or torch.equal(read.at, union) else logits[read.at[union]])
        part = part if read.temperature == 1 else part / read.temperature
        found[name] = part if read.tokens is None else token_log_probs(part, read.tokens)
    return found


def _read_alone(
    hidden: Float[Tensor, "places width"], head_weight: Float[Tensor, "vocabulary width"], read: Read
) -> Tensor:
    if read.tokens is None:
        return widen(hidden @ head_weight.T) / read.temperature
    return linear_token_log_probs(hidden, head_weight, read.tokens, temperature=read.temperature)
