"""Completions of prompts, sampled with noise that is keyed by row and position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from sanov.core.errors import InputError
from sanov.nets.decoding import Decoding

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
    """

    tokens: Int[Tensor, "rows length"]
    lengths: Int[Tensor, " rows"]
    finished: Bool[Tensor, " rows"]
    log_probs: Float[Tensor, "rows length"]


@dataclass(frozen=True)
class _Choice:
    """How a token is chosen among the logits."""

    temperature: float
    top_p: float
    top_k: int
    suppress: tuple[int, ...]

    def __call__(
        self, logits: Float[Tensor, "rows vocabulary"], uniforms: Float64[Tensor, " rows"]
    ) -> tuple[Int[Tensor, " rows"], Float64[Tensor, " rows"]]:
        """Return a token a row and its log-probability before anything is cut off."""
        log_probs = (logits.double() / (self.temperature or 1.0)).log_softmax(dim=-1)
        allowed = log_probs
        if self.suppress:
            allowed = log_probs.index_fill(1, torch.tensor(self.suppress, device=logits.device), -torch.inf)
        if self.temperature == 0:
            tokens = allowed.argmax(dim=-1)
        else:
            tokens = _inverse(_cut(allowed, self.top_k, self.top_p).exp(), uniforms)
        return tokens, log_probs.gather(1, tokens[:, None])[:, 0]


def _cut(log_probs: Float64[Tensor, "rows vocabulary"], top_k: int, top_p: float) -> Float64[Tensor, "rows vocabulary"]:
    """Forbid all but the k likeliest tokens, then all but the fewest likeliest that hold a share of what is left."""
    if 0 < top_k < log_probs.shape[1]:
        least = log_probs.topk(top_k, dim=-1).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < least, -torch.inf)
    if top_p < 1:
        probs, order = log_probs.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        before = probs.cumsum(dim=-1) - probs
        log_probs = log_probs.masked_fill((before >= top_p).gather(1, order.argsort(dim=-1)), -torch.inf)
    return log_probs


def _inverse(weights: Float64[Tensor, "rows vocabulary"], uniforms: Float64[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Return the token at which the cumulated weights pass a share of their sum; none of weight 0."""
    cumulated = weights.cumsum(dim=-1)
    total = cumulated[:, -1]
    target = torch.minimum(uniforms * total, total.nextafter(torch.zeros_like(total)))
    return ((cumulated > target[:, None]) & (weights > 0)).to(torch.uint8).argmax(dim=-1)


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
    uniforms: Float64[Tensor, "rows limit"],
) -> Sampled:
    """Complete prompts.

    A token is where the cumulated softmax passes the uniform number of its row and position, so that a completion
    depends neither on the other rows nor on their order. Each prompt is run once, whatever the size of its group; rows
    that ended are dropped, and when all have ended, sampling stops.

    Parameters
    ----------
    model
        A `Decoder` or a `ForeignCausal`, bare or inside a wrapper. It is put in evaluation mode meanwhile.
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
        leave all. Ties with the last of k all stay.
    suppress
        Tokens that are never sampled.
    uniforms
        Numbers in [0, 1), as `keyed_uniforms` makes them.

    Raises
    ------
    InputError
        An option is out of range, a prompt is empty, does not fit the context or has a token beyond the vocabulary.
    """
    rows = len(prompts) * group_size
    choice = _Choice(temperature, top_p, top_k, tuple(suppress))
    _check(choice, prompts, group_size, limit, eos, uniforms)
    generator = next((part for part in model.modules() if hasattr(type(part), "decoding")), None)
    if generator is None:
        raise TypeError(f"{type(model).__name__} does not generate; load it by load_causal")
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            return _Loop(generator, rows, limit, eos, pad, uniforms).run(prompts, group_size, choice)
    finally:
        for part, training in modes:
            part.training = training


class _Loop:
    """The rows that are being written, and those among them that go on."""

    def __init__(self, generator: Any, rows: int, limit: int, eos: int, pad: int, uniforms: Tensor):
        self.generator, self.limit, self.eos = generator, limit, eos
        self.device = next(generator.parameters()).device
        self.decoding: Decoding = generator.decoding(limit)
        self.uniforms = uniforms.to(self.device)
        self.tokens = torch.full((rows, limit), pad, device=self.device)
        self.log_probs = torch.zeros(rows, limit, dtype=torch.float64, device=self.device)
        self.lengths = torch.full((rows,), limit, device=self.device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=self.device)

    def run(self, prompts: Sequence[Sequence[int]], group_size: int, choice: _Choice) -> Sampled:
        """Generate until all rows ended or are full."""
        used = 0
        if len(prompts):
            ids, mask = _padded(prompts, self.device)
            logits = self.decoding.prefill(ids, mask)
            alive = torch.arange(len(self.tokens), device=self.device)
            ended = torch.zeros(len(alive), dtype=torch.bool, device=self.device)
            self.decoding.select(alive // group_size)
            logits = logits[alive // group_size]
            for used in range(1, self.limit + 1):
                tokens, log_probs = choice(logits, self.uniforms[alive, used - 1])
                going = alive[~ended]
                self.tokens[going, used - 1] = tokens[~ended]
                self.log_probs[going, used - 1] = log_probs[~ended]
                new = ~ended & (tokens == self.eos)
                self.lengths[alive[new]] = used
                self.finished[alive[new]] = True
                ended = ended | new
                if used == self.limit or bool(ended.all()):
                    break
                if float(ended.double().mean()) > DROPPED:
                    kept = (~ended).nonzero()[:, 0]
                    self.decoding.select(kept)
                    alive, ended, tokens = alive[kept], ended[kept], tokens[kept]
                logits = self.decoding.step(tokens)
        dtype = torch.promote_types(next(self.generator.parameters()).dtype, torch.float32)
        return Sampled(self.tokens[:, :used], self.lengths, self.finished, self.log_probs[:, :used].to(dtype))


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    ids[mask] = torch.tensor([token for prompt in prompts for token in prompt])
    return ids.to(device), mask.to(device)


def _check(
    choice: _Choice, prompts: Sequence[Sequence[int]], group_size: int, limit: int, eos: int, uniforms: Tensor
) -> None:
    checks = (
        ("temperature", choice.temperature, choice.temperature >= 0, "0 or more"),
        ("top_p", choice.top_p, 0 < choice.top_p <= 1, "more than 0, and at most 1"),
        ("top_k", choice.top_k, choice.top_k >= 0, "0 or more"),
        ("group_size", group_size, group_size >= 1, "at least 1"),
        ("limit", limit, limit >= 1, "at least 1"),
        ("uniforms", list(uniforms.shape), uniforms.shape == (len(prompts) * group_size, limit), "[rows, limit]"),
    )
    for name, value, good, expected in checks:
        if not good:
            raise InputError(f"it is {value}", where=name, expected=expected)
    if eos in choice.suppress:
        raise InputError("cannot suppress EOS: rollouts would never end", where="suppress", expected="other tokens")
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError("the prompt is empty", where=f"prompt {row}", expected="at least one token")


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
        state = _mixed(_mixed(state) ^ part)
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
