"""Completions of prompts, sampled with noise that is keyed by row and position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from sanov.core.errors import InputError
from sanov.nets.choices import Choice
from sanov.nets.decoding import Decoding, evaluating, gathered
from sanov.nets.transformer import Decoder
from sanov.precision import widen

__all__ = ["Sampled", "keyed_uniforms", "sample"]

DROPPED = 0.25  # share of ended rows above which the others go on alone


@dataclass(frozen=True)
class Sampled:
    """Completions, a row each.

    Attributes
    ----------
    tokens
        [rows, length], right-padded with the padding token; the end token is among them where a row ended.
    lengths
        Tokens of each row, its end token included.
    finished
        Whether a row ended with the end token, be it in its last place.
    log_probs
        Log-probability of each token under the softmax of all logits over the temperature, before anything is cut off or
        suppressed; under that of temperature 1 where sampling is greedy; 0 on padding.
    ends
        By watched token, its log-probability right after a row's end token, at temperature 1, [rows]; NaN where a row did
        not end.
    """

    tokens: Int[Tensor, "rows length"]
    lengths: Int[Tensor, " rows"]
    finished: Bool[Tensor, " rows"]
    log_probs: Float[Tensor, "rows length"]
    ends: Mapping[int, Float[Tensor, " rows"]] = field(default_factory=dict)


def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    group_size: int = 1,
    limit: int,
    eos: int,
    pad: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    suppress: Sequence[int] = (),
    watch: Sequence[int] = (),
    uniforms: Float64[Tensor, "rows limit"],
) -> Sampled:
    """Complete prompts.

    A token is the one at which the cumulated softmax passes the uniform number of its row and position, so that a
    completion depends neither on the other rows nor on their order. Each prompt is run once, whatever the size of its
    group; rows that ended are dropped, and when all have ended, sampling stops.

    Parameters
    ----------
    model
        A `Decoder` or a `ForeignCausal`, bare or inside a wrapper. Meanwhile it is in evaluation mode.
    prompts
        Tokens of each prompt.
    group_size
        Completions of each prompt; the rows of a group stand side by side.
    limit
        Most tokens of a completion.
    eos, pad
        The token that ends a row, and the one that fills the rest; they may be the same.
    temperature
        Divides the logits; 0 takes the likeliest token.
    top_p, top_k
        Only the fewest likeliest tokens that together have this probability, and only this many, are sampled; 1 and 0
        leave all. Tokens as likely as the last of k stay too.
    suppress
        Tokens that are never sampled.
    watch
        Tokens whose log-probability after the end token is wanted: each row then takes in its end token too.
    uniforms
        Numbers between 0 and 1, as `keyed_uniforms` makes them.

    Raises
    ------
    InputError
        An option is out of range; a prompt is empty, has a token that the model does not know, or does not leave room in
        the model's context; or all tokens are suppressed.
    """
    choice = Choice(temperature, top_p, top_k, tuple(suppress))
    generator: Any = next((part for part in model.modules() if hasattr(type(part), "decoding")), None)
    if generator is None:
        raise TypeError(f"{type(model).__name__} does not generate; load it by load_causal")
    _check_options(group_size, limit, eos, len(prompts) * group_size, uniforms)
    _check_prompts(prompts, limit, generator.vocabulary, generator.context)
    choice.check(eos, generator.vocabulary)
    device = next(generator.parameters()).device
    written = _Written(len(prompts) * group_size, device, watch)
    # what another model keeps inside would be of no use to gradients afterwards, had inference mode made it
    quiet = torch.inference_mode() if isinstance(generator, Decoder) else torch.no_grad()
    with evaluating(model), gathered(model), quiet:
        decoding = generator.decoding(limit)
        if len(prompts):
            groups = torch.arange(len(prompts), device=device).repeat_interleave(group_size)
            logits = decoding.prefill(*_padded(prompts, device))[groups]
            decoding.select(groups)
            _write(written, decoding, logits, choice, eos, uniforms.to(device))
    return written.sampled(eos, pad)


def _write(
    written: _Written,
    decoding: Decoding,
    logits: Tensor,
    choice: Choice,
    eos: int,
    uniforms: Float64[Tensor, "rows limit"],
) -> None:
    """Write token after token until all rows ended or are full; rows that ended go on until they are dropped."""
    ended = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    for column in range(uniforms.shape[1]):
        tokens, probs = choice(logits, uniforms[:, column])
        written.add(tokens, probs)
        before, ended = ended, ended | (tokens == eos)
        over, count = ended, int(ended.sum())
        last = count == len(ended) or column == uniforms.shape[1] - 1
        if written.watch:  # a row is over when its end token has been taken in, and what follows was read
            over = before | ~ended if last else before
            count = int(over.sum())
        if count == len(over) or (last and not written.watch):
            return
        if last or count > DROPPED * len(over):
            kept = (~over).nonzero()[:, 0]
            decoding.select(kept)
            written.keep(kept)
            tokens, before, ended, uniforms = tokens[kept], before[kept], ended[kept], uniforms[kept]
        logits = decoding.step(tokens)
        if written.watch:
            written.read(ended & ~before, logits)
        if last:
            return


class _Written:
    """Tokens of all rows, a column at a time, of the rows that go on alone."""

    def __init__(self, rows: int, device: torch.device, watch: Sequence[int]):
        self.rows, self.watch = torch.arange(rows, device=device), list(watch)
        self.ends = torch.full((rows, len(self.watch)), torch.nan, device=device)
        self.stretches: list[tuple[Tensor, list[Tensor], list[Tensor]]] = [(self.rows, [], [])]

    def add(self, tokens: Tensor, probs: Tensor) -> None:
        """Write a token and its probability in each row that goes on."""
        self.stretches[-1][1].append(tokens)
        self.stretches[-1][2].append(probs)

    def keep(self, kept: Tensor) -> None:
        """Go on with these of the rows."""
        self.stretches.append((self.stretches[-1][0][kept], [], []))

    def read(self, new: Tensor, logits: Tensor) -> None:
        """Note how likely the watched tokens are after the end token that some rows have just taken in."""
        log_probs = widen(logits[new]).log_softmax(dim=-1)[:, self.watch]
        self.ends = self.ends.to(log_probs.dtype)
        self.ends[self.stretches[-1][0][new]] = log_probs

    def sampled(self, eos: int, pad: int) -> Sampled:
        """Return what was written up to the first end token of each row."""
        used = sum(len(columns) for _, columns, _ in self.stretches)
        tokens = self.rows.new_zeros((len(self.rows), used))
        probs = torch.ones(tokens.shape, dtype=_dtype(self.stretches), device=tokens.device)
        start = 0
        for rows, columns, chances in self.stretches:
            if columns:
                tokens[rows, start : start + len(columns)] = torch.stack(columns, dim=1)
                probs[rows, start : start + len(columns)] = torch.stack(chances, dim=1)
            start += len(columns)
        ends = tokens == eos if used else tokens.new_zeros((len(tokens), 1), dtype=torch.bool)
        finished = ends.any(dim=1)
        lengths = torch.where(finished, ends.to(torch.uint8).argmax(dim=1) + 1, used)
        padding = torch.arange(used, device=tokens.device) >= lengths[:, None]
        log_probs = probs.log().masked_fill(padding, 0.0)
        watched = dict(zip(self.watch, self.ends.clone().unbind(dim=1), strict=True))  # inference mode made it, perhaps
        return Sampled(tokens.masked_fill(padding, pad), lengths, finished, log_probs, watched)


def _dtype(stretches: list[tuple[Tensor, list[Tensor], list[Tensor]]]) -> torch.dtype:
    chances = stretches[0][2]
    return chances[0].dtype if chances else torch.float32


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    ids[mask] = torch.tensor([token for prompt in prompts for token in prompt])
    return ids.to(device), mask.to(device)


def _check_options(group_size: int, limit: int, eos: int, rows: int, uniforms: Tensor) -> None:
    for name, value in (("group_size", group_size), ("limit", limit)):
        if value < 1:
            raise InputError(f"it is {value}", where=name, expected="at least 1")
    if uniforms.shape != (rows, limit):
        found = f"the numbers are of shape {list(uniforms.shape)}"
        raise InputError(found, where="uniforms", expected=f"one for each of {rows} rows and {limit} positions")


def _check_prompts(prompts: Sequence[Sequence[int]], limit: int, vocabulary: int, context: int | None) -> None:
    for number, prompt in enumerate(prompts):
        where = f"prompt {number}"
        if not len(prompt):
            raise InputError("it has no tokens", where=where, expected="at least one")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            strange = next(token for token in prompt if not 0 <= token < vocabulary)
            raise InputError(f"it has the token {strange}", where=where, expected=f"tokens of 0 to {vocabulary - 1}")
        if context is not None and len(prompt) + limit > context:
            found = (
                f"its {len(prompt)} tokens and {limit} of a completion are more than the model's context of {context}"
            )
            raise InputError(found, where=where, fix="leave out long prompts, or lower the limit of completions")


# -- noise ------------------------------------------------------------------------------------------------------------

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def keyed_uniforms(seed: int, step: int, rows: Int[Tensor, " rows"], limit: int) -> Float64[Tensor, "rows limit"]:
    """Return a uniform number in (0, 1) for each row and position: the same on every device and in any chunking.

    Parameters
    ----------
    seed, step
        Of the run, and within it.
    rows
        Numbers of the rows, of whichever are wanted; the result is on their device.
    limit
        Positions 0, 1, ... of each.

    Reference
    ---------
    steele2014fast: the output function of SplitMix64, applied to seed, step, row and position in turn.
    """
    positions = torch.arange(limit, dtype=torch.int64, device=rows.device)
    state = torch.tensor(_signed(seed), dtype=torch.int64, device=rows.device)
    for part in (torch.tensor(_signed(step), dtype=torch.int64, device=rows.device), rows[:, None].long(), positions):
        state = _mixed(state) ^ part
    bits = _shifted(_mixed(state), 12)
    return (bits.double() + 0.5) * 2.0**-52


def _mixed(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    x = x + _signed(GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(SECOND)
    return x ^ _shifted(x, 31)


def _shifted(x: Int[Tensor, "*shape"], by: int) -> Int[Tensor, "*shape"]:
    """Shift right and fill with zeros, where torch fills with the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(x: int) -> int:
    """Return the signed number of the same 64 bits."""
    return (x + 2**63) % 2**64 - 2**63
