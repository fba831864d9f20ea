"""A decoder's weights and cache laid out for generating one token a row."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sanov.nets.shapes import Shape, rope_frequencies

__all__ = ["CachedDecoding", "Decoding", "effective_weight", "turned", "turns"]


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


class Layer(NamedTuple):
    """A layer's weights, [inputs, outputs]."""

    first_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    second_norm: Tensor
    gate_up: Tensor
    down: Tensor


class CachedDecoding:
    """Generation by a decoder of the Llama family with a cache of keys and values.

    The weights are those of the moment it is made, gathered where they are spread over processes, with adapters merged.
    """

    def __init__(self, model: Any, room: int):
        self.shape: Shape = model.shape
        self.room, self.eps = room, self.shape.norm_eps
        backbone = model.model
        self.embedding = effective_weight(backbone.embed_tokens)
        self.head = effective_weight(model.lm_head).T
        self.norm = _whole(backbone.norm.weight)
        self.layers = [_layer_of(layer) for layer in backbone.layers]

    def prefill(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Take in prompts, right-padded, and return the logits of what follows each."""
        rows, self.filled = ids.shape
        self.lengths = mask.sum(dim=1)
        space = (2, rows, self.shape.key_heads, self.filled + self.room, self.shape.per_head)
        self.cache = [self.embedding.new_empty(space) for _ in self.layers]
        positions = torch.arange(self.filled + self.room, device=ids.device)
        self.cos, self.sin = turns(self.shape, positions, self.embedding.dtype)
        seen = torch.cat([mask, mask.new_ones(rows, self.room)], dim=1)
        self.unseen = (
            None
            if bool(mask.all())
            else ids.new_zeros(seen.shape, dtype=self.embedding.dtype).masked_fill(~seen, -torch.inf)
        )
        states = self.embedding[ids]
        for layer, cache in zip(self.layers, self.cache, strict=True):
            states = self._prefill_layer(states, layer, cache)
        last = states[torch.arange(rows, device=ids.device), self.lengths - 1]
        return self._logits(last)

    def _prefill_layer(self, states: Tensor, layer: Layer, cache: Tensor) -> Tensor:
        rows, tokens, _ = states.shape
        q, k, v = self._qkv(states, layer, self.cos[:tokens, None], self.sin[:tokens, None])
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        cache[0, :, :, :tokens], cache[1, :, :, :tokens] = k, v
        shared = self.shape.key_heads != self.shape.heads
        gathered = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
        return self._rest(states, gathered.transpose(1, 2).flatten(2), layer)

    def _qkv(self, states: Tensor, layer: Layer, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads, keys = self.shape.heads, self.shape.key_heads
        normed = functional.rms_norm(states, states.shape[-1:], layer.first_norm, self.eps)
        both = normed @ layer.qkv
        if layer.qkv_bias is not None:
            both = both + layer.qkv_bias
        both = both.unflatten(-1, (heads + 2 * keys, -1))
        rotated = turned(both[..., : heads + keys, :], cos, sin)
        return rotated[..., :heads, :], rotated[..., heads:, :], both[..., heads + keys :, :]

    def _rest(self, states: Tensor, gathered: Tensor, layer: Layer) -> Tensor:
        """Add what attention gathered, and what the perceptron makes of it."""
        states = states + gathered @ layer.out
        if layer.out_bias is not None:
            states = states + layer.out_bias
        normed = functional.rms_norm(states, states.shape[-1:], layer.second_norm, self.eps)
        gate, up = (normed @ layer.gate_up).chunk(2, dim=-1)
        return states + (functional.silu(gate) * up) @ layer.down

    def _logits(self, states: Tensor) -> Tensor:
        return functional.rms_norm(states, states.shape[-1:], self.norm, self.eps) @ self.head

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these rows alone, in this order; a row may be named more than once."""
        for index, cache in enumerate(self.cache):
            kept = cache.new_empty((2, len(rows), *cache.shape[2:]))
            kept[..., : self.filled, :] = cache[:, rows, :, : self.filled]
            self.cache[index] = kept
        self.lengths = self.lengths[rows]
        if self.unseen is not None:
            self.unseen = self.unseen[rows]

    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Take in a token a row, and return the logits of what follows."""
        cos, sin = self.cos[self.lengths, None], self.sin[self.lengths, None]
        states = self.embedding[tokens]
        for layer, cache in zip(self.layers, self.cache, strict=True):
            states = self._step_layer(states, layer, cache, cos, sin)
        self.filled += 1
        self.lengths = self.lengths + 1
        return self._logits(states)

    def _step_layer(self, states: Tensor, layer: Layer, cache: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self._qkv(states, layer, cos, sin)
        cache[0, :, :, self.filled], cache[1, :, :, self.filled] = k, v
        end = self.filled + 1
        mask = None if self.unseen is None else self.unseen[:, None, None, :end]
        shared = self.shape.key_heads != self.shape.heads
        gathered = functional.scaled_dot_product_attention(
            q[:, :, None], cache[0, :, :, :end], cache[1, :, :, :end], attn_mask=mask, enable_gqa=shared
        )
        return self._rest(states, gathered.flatten(1), layer)


def turns(shape: Shape, positions: Int[Tensor, "*places"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of each pair's angle at positions, ``[*places, pairs]``; angles are float32."""
    angles = positions[..., None].float() * rope_frequencies(shape).to(positions.device)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs by their angles: entry i of a head goes with entry i + size / 2."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _layer_of(block: Any) -> Layer:
    attention, perceptron = block.self_attn, block.mlp
    reads = [attention.q_proj, attention.k_proj, attention.v_proj]
    biases = [_bias(linear) for linear in reads]
    return Layer(
        first_norm=_whole(block.input_layernorm.weight),
        qkv=torch.cat([effective_weight(linear) for linear in reads]).T.contiguous(),
        qkv_bias=None if biases[0] is None else torch.cat(biases),
        out=effective_weight(attention.o_proj).T.contiguous(),
        out_bias=_bias(attention.o_proj),
        second_norm=_whole(block.post_attention_layernorm.weight),
        gate_up=torch.cat(
            [effective_weight(linear) for linear in (perceptron.gate_proj, perceptron.up_proj)]
        ).T.contiguous(),
        down=effective_weight(perceptron.down_proj).T.contiguous(),
    )


def effective_weight(module: Any) -> Tensor:
    """Return the weight of a linear map or an embedding, also of one that an adapter has changed.

    What an adapter computes is read off its answers to the unit vectors, which holds for every adapter that is linear.
    """
    weight = _whole(module.weight)
    if type(module) in (nn.Linear, nn.Embedding):
        return weight
    if isinstance(module.weight, nn.Parameter) and isinstance(module, nn.Embedding):
        return weight
    if hasattr(module, "num_embeddings") or hasattr(module, "embedding_dim"):
        return module(torch.arange(len(weight), device=weight.device))
    units = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    zero = module(torch.zeros_like(units[:1]))
    return (module(units) - zero).T


def _bias(module: Any) -> Tensor | None:
    if module.bias is None:
        return None
    return _whole(module.bias)


def _whole(weight: Tensor) -> Tensor:
    """Gather a weight that is spread over processes."""
    full = getattr(weight, "full_tensor", None)
    found: Tensor = weight.detach() if full is None else full().detach()
    return found
