"""A decoder's weights and cache laid out for generating one token a row.

Every call of an operation costs as much as the arithmetic of a small model, and the cache is read from beyond the near
memory. So what can be done to the weights beforehand is: maps that read the same states are one matrix, in the layout in
which products are fastest; gains of norms and the scale of attention are multiplied into them; the two entries of a pair
that turns together become neighbours, so that a complex product turns them. Attention reads only what of the cache is
filled. In half precision the weights are kept as they are, because a product rounded anew is another weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sanov.nets.shapes import Shape, rope_turns

__all__ = ["CachedDecoding", "Decoding", "effective_bias", "effective_weight", "evaluating", "gathered", "whole"]


@runtime_checkable
class Decoding(Protocol):
    """What sampling asks of a model: prompts once, then a token a row, over rows that it may repeat and drop."""

    def prefill(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Take in prompts, right-padded, and return the logits of what follows each."""

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these rows alone, in this order; a row may be named more than once."""

    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Take in a token a row, and return the logits of what follows."""


@dataclass(frozen=True, slots=True)
class _Norm:
    """A norm without the part that went into the weights behind it: its gain, and the root of the width."""

    width: int
    eps: float
    gain: Tensor | None

    def __call__(self, states: Float[Tensor, "*places width"]) -> Float[Tensor, "*places width"]:
        if self.gain is not None:
            return functional.rms_norm(states, (self.width,), self.gain, self.eps)
        size = (states * states).sum(dim=-1, keepdim=True).add_(self.width * self.eps).rsqrt_()
        return states * size


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's weights, [inputs, outputs]."""

    first_norm: _Norm
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    second_norm: _Norm
    gate_up: Tensor
    down: Tensor


class CachedDecoding:
    """Generation by a decoder of the Llama family with a cache of keys and values.

    The weights are those of the moment it is made: gathered where they are spread over processes, and with adapters.

    Parameters
    ----------
    model
        A `Decoder`.
    room
        Tokens that are to follow a prompt.
    """

    def __init__(self, model: Any, room: int):
        self.shape: Shape = model.shape
        self.room = room
        self.embedding = effective_weight(model.model.embed_tokens)
        self.wide = self.embedding.dtype in (torch.float32, torch.float64)
        self.norm, gain = self._norm(model.model.norm)
        self.head = _by_inputs(effective_weight(model.lm_head), gain)
        self.layers = [self._layer(block) for block in model.model.layers]

    # -- weights, once ------------------------------------------------------------------------------------------------

    def _norm(self, norm: Any) -> tuple[_Norm, Tensor | None]:
        """Return a norm, and the part of it that its followers take over."""
        gain, width = whole(norm.weight), self.shape.width
        if not self.wide:
            return _Norm(width, self.shape.norm_eps, gain), None
        return _Norm(width, self.shape.norm_eps, None), gain * math.sqrt(width)

    def _layer(self, block: Any) -> _Layer:
        attention, perceptron = block.self_attn, block.mlp
        first_norm, first_gain = self._norm(block.input_layernorm)
        second_norm, second_gain = self._norm(block.post_attention_layernorm)
        readers = [attention.q_proj, attention.k_proj, attention.v_proj]
        biases = [bias[:, None] for bias in map(effective_bias, readers) if bias is not None]
        gate, up = effective_weight(perceptron.gate_proj), effective_weight(perceptron.up_proj)
        return _Layer(
            first_norm=first_norm,
            qkv=_by_inputs(self._arranged(*map(effective_weight, readers)), first_gain),
            qkv_bias=self._arranged(*biases)[:, 0] if biases else None,
            out=_by_inputs(effective_weight(attention.o_proj)),
            out_bias=effective_bias(attention.o_proj),
            second_norm=second_norm,
            gate_up=_by_inputs(torch.cat([gate, up]), second_gain),
            down=_by_inputs(effective_weight(perceptron.down_proj)),
        )

    def _arranged(
        self,
        of_queries: Float[Tensor, "queries inputs"],
        of_keys: Float[Tensor, "keys inputs"],
        of_values: Float[Tensor, "keys inputs"],
    ) -> Float[Tensor, "all inputs"]:
        """Stack three maps, the scale of attention multiplied into the queries."""
        scale = 1 / math.sqrt(self.shape.per_head) if self.wide else 1.0
        return torch.cat([self._paired(of_queries) * scale, self._paired(of_keys), of_values])

    def _paired(self, weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
        """Bring entry i of each head next to entry i + size / 2, with which it turns."""
        pairs = self.shape.per_head // 2
        return weight.reshape(-1, 2, pairs, weight.shape[1]).transpose(1, 2).flatten(0, 2)

    # -- generation ---------------------------------------------------------------------------------------------------

    def prefill(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Take in prompts, right-padded, and return the logits of what follows each.

        Padding stays in the cache between a prompt and its completion, unseen.
        """
        rows, self.filled = ids.shape
        self.lengths, places = mask.sum(dim=1), self.filled + self.room
        positions, real = torch.arange(places, device=ids.device)[:, None], self.embedding.dtype
        self.turns = torch.complex(*rope_turns(self.shape, positions, real if self.wide else torch.float32))
        self.cache = [self._empty(rows, places) for _ in self.layers]
        self.hiding = None
        if not bool(mask.all()):
            seen = functional.pad(mask, (0, self.room), value=True)
            zeros = torch.zeros(seen.shape, dtype=self.embedding.dtype, device=ids.device)
            self.hiding = self._for_heads(zeros.masked_fill_(~seen, -torch.inf))
        states = functional.embedding(ids, self.embedding)
        for layer, cache in zip(self.layers, self.cache, strict=True):
            states = self._rest(states, self._attend_prompts(layer, cache, states), layer)
        return self._logits(states[torch.arange(rows, device=ids.device), self.lengths - 1])

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these rows alone, in this order; a row may be named more than once."""
        for index, cache in enumerate(self.cache):
            kept = self._empty(len(rows), cache.shape[3])
            torch.index_select(cache[:, :, :, : self.filled], 1, rows, out=kept[:, :, :, : self.filled])
            self.cache[index] = kept
        self.lengths = self.lengths[rows]
        if self.hiding is not None:
            by_row = self.hiding.view(-1, self.shape.key_heads, self.hiding.shape[-1])[:, 0]
            self.hiding = self._for_heads(by_row[rows])

    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Take in a token a row, and return the logits of what follows."""
        turns = self.turns.index_select(0, self.lengths)
        states = functional.embedding(tokens, self.embedding)
        attend = self._attend if self.wide else self._attend_half
        for layer, cache in zip(self.layers, self.cache, strict=True):
            states = self._rest(states, attend(layer, cache, states, turns), layer)
        self.filled += 1
        self.lengths = self.lengths + 1
        return self._logits(states)

    def _empty(self, rows: int, places: int) -> Float[Tensor, "2 rows heads places size"]:
        """Return room for keys and values of one layer."""
        return self.embedding.new_empty((2, rows, self.shape.key_heads, places, self.shape.per_head))

    def _for_heads(self, hiding: Float[Tensor, "rows places"]) -> Float[Tensor, "rows_heads 1 places"]:
        return hiding.repeat_interleave(self.shape.key_heads, dim=0)[:, None]

    def _qkv(self, layer: _Layer, states: Tensor, turns: Tensor) -> Float[Tensor, "*places heads size"]:
        """Return queries, keys and values one after the other, the first two turned."""
        normed = layer.first_norm(states)
        both = (
            normed @ layer.qkv
            if layer.qkv_bias is None
            else torch.addmm(layer.qkv_bias, normed.flatten(0, -2), layer.qkv)
        )
        both = both.view(*states.shape[:-1], -1, self.shape.per_head)
        turning = both[..., : self.shape.heads + self.shape.key_heads, :]
        if self.wide:
            torch.view_as_complex(turning.view(*turning.shape[:-1], -1, 2)).mul_(turns)
        else:
            turned = torch.view_as_complex(turning.float().view(*turning.shape[:-1], -1, 2)) * turns
            turning.copy_(torch.view_as_real(turned).flatten(-2))
        return both

    def _attend_prompts(self, layer: _Layer, cache: Tensor, states: Tensor) -> Float[Tensor, "rows tokens heads_size"]:
        heads, keys, tokens = self.shape.heads, self.shape.key_heads, states.shape[1]
        both = self._qkv(layer, states, self.turns[:tokens]).transpose(1, 2)
        q, k, v = both[:, :heads], both[:, heads : heads + keys], both[:, heads + keys :]
        cache[0, :, :, :tokens], cache[1, :, :, :tokens] = k, v
        gathered = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=1.0 if self.wide else None, enable_gqa=keys != heads
        )
        return gathered.transpose(1, 2).flatten(2)

    def _attend(self, layer: _Layer, cache: Tensor, states: Tensor, turns: Tensor) -> Float[Tensor, "rows heads_size"]:
        heads, keys, size, end = self.shape.heads, self.shape.key_heads, self.shape.per_head, self.filled + 1
        rows, both = len(states), self._qkv(layer, states, turns)
        cache[:, :, :, self.filled].copy_(both[:, heads:].view(rows, 2, keys, size).transpose(0, 1))
        q = both[:, :heads].reshape(rows * keys, heads // keys, size)
        k, v = cache.view(2, rows * keys, -1, size)[:, :, :end]
        if self.hiding is None:
            scores = torch.bmm(q, k.transpose(1, 2))
        else:
            scores = torch.baddbmm(self.hiding[:, :, :end], q, k.transpose(1, 2))
        return torch.bmm(scores.softmax(dim=-1), v).view(rows, -1)

    def _attend_half(self, layer: _Layer, cache: Tensor, states: Tensor, turns: Tensor) -> Tensor:
        """Do the same where scores must not be rounded to half precision."""
        heads, keys, end = self.shape.heads, self.shape.key_heads, self.filled + 1
        both = self._qkv(layer, states, turns)
        cache[0, :, :, self.filled], cache[1, :, :, self.filled] = (
            both[:, heads : heads + keys],
            both[:, heads + keys :],
        )
        hiding = None if self.hiding is None else self.hiding.view(len(states), keys, 1, -1)[:, :1, :, :end]
        gathered = functional.scaled_dot_product_attention(
            both[:, :heads, None],
            cache[0, :, :, :end],
            cache[1, :, :, :end],
            attn_mask=hiding,
            enable_gqa=keys != heads,
        )
        return gathered.flatten(1)

    def _rest(self, states: Tensor, gathered: Tensor, layer: _Layer) -> Tensor:
        """Add what attention gathered, and what the perceptron makes of it."""
        states = _plus_product(states, gathered, layer.out)
        if layer.out_bias is not None:
            states = states + layer.out_bias
        gate, up = (layer.second_norm(states) @ layer.gate_up).chunk(2, dim=-1)
        return _plus_product(states, functional.silu(gate).mul_(up), layer.down)

    def _logits(self, states: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocabulary"]:
        return self.norm(states) @ self.head


def _plus_product(states: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """Return states plus a product in one operation."""
    return torch.addmm(states.flatten(0, -2), inputs.flatten(0, -2), weight).view_as(states)


def _by_inputs(weight: Float[Tensor, "outputs inputs"], gain: Tensor | None = None) -> Float[Tensor, "inputs outputs"]:
    """Turn a map over, its rows multiplied by the gain of the norm before them."""
    return weight.T.contiguous() if gain is None else weight.T * gain[:, None]


def effective_weight(module: Any) -> Float[Tensor, "outputs inputs"]:
    """Return the weight of a linear map or an embedding, also of one that an adapter has changed.

    What an adapter computes is read off its answers to the unit vectors, which holds for any that is linear.
    """
    weight = whole(module.weight)
    if type(module) in (nn.Linear, nn.Embedding):
        return weight
    if hasattr(module, "num_embeddings"):
        table: Tensor = module(torch.arange(len(weight), device=weight.device)).detach()
        return table
    units = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    images: Tensor = (module(units) - module(torch.zeros_like(units[:1]))).detach()
    return images.T


def effective_bias(module: Any) -> Float[Tensor, " outputs"] | None:
    """Return the bias of a linear map, also of one that an adapter has changed; None where there is none."""
    if module.bias is None:
        return None
    if type(module) is nn.Linear:
        return whole(module.bias)
    image: Tensor = module(torch.zeros_like(whole(module.weight)[:1])).detach()
    return image[0]


def whole(weight: Tensor) -> Tensor:
    """Gather a weight that is spread over processes; without gradient."""
    full = getattr(weight, "full_tensor", None)
    found: Tensor = (weight if full is None else full()).detach()
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode; afterwards each part is in the mode in which it was."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather weights of which each process holds a part (FSDP2); afterwards they are spread again."""
    spread: list[Any] = [part for part in model.modules() if hasattr(part, "unshard") and hasattr(part, "reshard")]
    try:
        for part in spread:
            part.unshard()
        yield
    finally:
        for part in spread:
            part.reshard()
