"""What is read off a decoder's hidden states: log-probabilities of tokens, or logits, at the positions that ask for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sanov.core.errors import InputError
from sanov.estimators import token_log_probs
from sanov.linear_heads import linear_token_log_probs
from sanov.precision import widen

__all__ = ["Read", "places_of", "read_logits", "read_off", "read_placed", "read_states"]

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
        There are more or fewer tokens than places, or the places are not those of the states.
    """
    places = places_of(reads, hidden.shape[:2])
    return read_states(hidden[places], head_weight, places, reads)


def places_of(reads: Mapping[str, Read], shape: Sequence[int]) -> Bool[Tensor, "rows tokens"]:
    """Return where any read asks for something.

    Parameters
    ----------
    reads
        By name; at least one.
    shape
        Rows and tokens of the batch.

    Raises
    ------
    InputError
        There are more or fewer tokens than places, or the places are not those of the batch.
    """
    if not reads:
        raise InputError("nothing is to be read", where="reads", expected="at least one read")
    for name, read in reads.items():
        if tuple(read.at.shape) != tuple(shape):
            found = f"the places are of {list(read.at.shape)} rows and tokens"
            raise InputError(found, where=f"the read {name!r}", expected=f"{list(shape)}, as the batch has")
        places = int(read.at.sum())
        if read.tokens is not None and len(read.tokens) != places:
            raise InputError(f"{len(read.tokens)} tokens are asked for at {places} places", where=f"the read {name!r}")
    first, *others = (read.at for read in reads.values())
    return first if not others else torch.stack([first, *others]).any(dim=0)


def read_states(
    states: Float[Tensor, "places width"],
    head_weight: Float[Tensor, "vocabulary width"],
    places: Bool[Tensor, "rows tokens"],
    reads: Mapping[str, Read],
) -> dict[str, Tensor]:
    """Do the same from the hidden states of the places alone, in row-major order.

    Parameters
    ----------
    states
        Hidden states of the places.
    head_weight, reads
        As in `read_off`.
    places
        What `places_of` returns.
    """
    if len(states) * len(head_weight) <= HELD:
        return read_placed(states @ head_weight.T, places, reads)
    return {name: _read_alone(_part(states, read, places), head_weight, read) for name, read in reads.items()}


def read_logits(logits: Float[Tensor, "rows tokens vocabulary"], reads: Mapping[str, Read]) -> dict[str, Tensor]:
    """Do the same from the logits of all tokens, for models that give nothing else.

    Parameters
    ----------
    logits
        Of every token of the batch.
    reads
        As in `read_off`.

    Raises
    ------
    InputError
        As `read_off`.
    """
    places = places_of(reads, logits.shape[:2])
    return read_placed(logits[places], places, reads)


def read_placed(
    logits: Float[Tensor, "places vocabulary"], places: Bool[Tensor, "rows tokens"], reads: Mapping[str, Read]
) -> dict[str, Tensor]:
    """Do the same from the logits of the places alone, in row-major order.

    Parameters
    ----------
    logits
        At the places.
    places, reads
        As in `read_states`.
    """
    found = {}
    for name, read in reads.items():
        part = widen(_part(logits, read, places))
        part = part if read.temperature == 1 else part / read.temperature
        found[name] = part if read.tokens is None else token_log_probs(part, read.tokens)
    return found


def _part(values: Float[Tensor, "places size"], read: Read, places: Bool[Tensor, "rows tokens"]) -> Tensor:
    """Return the rows of a read among those of all reads."""
    return values if read.at is places or torch.equal(read.at, places) else values[read.at[places]]


def _read_alone(
    states: Float[Tensor, "places width"], head_weight: Float[Tensor, "vocabulary width"], read: Read
) -> Tensor:
    if read.tokens is None:
        return widen(states @ head_weight.T) / read.temperature
    return linear_token_log_probs(states, head_weight, read.tokens, temperature=read.temperature)
