"""A lean decoder of the Llama family, whose folders transformers reads and writes too.

Modules and weights have the names that they have there, so that an adapter that PEFT trained on one fits the other. Padding
is taken out before the first layer (`layout`), and only tokens that are read go through the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sanov.core import files
from sanov.core.errors import InputError
from sanov.nets.decoding import CachedDecoding, effective_bias, effective_weight, evaluating, gathered, whole
from sanov.nets.fused import gated, root_norm, turned
from sanov.nets.layout import Layout, layout_of
from sanov.nets.reads import Read, places_of, read_states
from sanov.nets.shapes import TOKENS, Shape, config_of, rope_turns, shape_of

__all__ = [
    "Decoder",
    "Shape",
    "check_length",
    "decoder_of",
    "head_weight",
    "load_decoder",
    "plain_copy",
    "save_decoder",
]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SPREAD = 0.02  # standard deviation of untrained weights, as transformers has it for this family


class Decoder(nn.Module):
    """A decoder-only transformer: root-mean-square norms, rotary positions, gated perceptrons, grouped key heads.

    Parameters
    ----------
    shape
        Sizes and constants.
    seed
        Of the untrained weights; None leaves them at zero, for weights that are loaded afterwards.

    Attributes
    ----------
    special_tokens
        Ids of special tokens by their names in a configuration (``eos_token_id`` ...), which are saved with the model.
    """

    def __init__(self, shape: Shape, *, seed: int | None = 0):
        super().__init__()
        self.shape = shape
        self.special_tokens: dict[str, Any] = {}
        with torch.random.fork_rng(devices=[]):  # parts draw weights of their own, which are replaced
            self.model = Backbone(shape)
            self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self._draw(seed)

    @torch.no_grad()
    def _draw(self, seed: int | None) -> None:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and generator is not None:
                parameter.normal_(std=SPREAD, generator=generator)
            elif not name.endswith("norm.weight"):
                parameter.zero_()

    def forward(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"], reads: Mapping[str, Read]
    ) -> dict[str, Tensor]:
        """Run the rows and read off what is asked for.

        Parameters
        ----------
        ids
            Tokens; on padding, any.
        mask
            True on real tokens. Padding may stand anywhere, and changes nothing.
        reads
            By name.

        Returns
        -------
        As `reads.read_off`.

        Raises
        ------
        InputError
            A row is longer than the context, or as `reads.read_off`.
        """
        places = places_of(reads, ids.shape)
        layout = self._laid_out(ids, mask)
        states = self.model(layout, layout.index[places])
        return read_states(states, head_weight(self.lm_head), places, reads)

    def hidden(
        self, ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens width"]:
        """Return the hidden states that the output head reads; on padding they are finite, and mean nothing.

        Parameters
        ----------
        ids, mask
            As in `forward`.

        Raises
        ------
        InputError
            A row is longer than the context.
        """
        layout = self._laid_out(ids, mask)
        states: Tensor = self.model(layout, layout.index.flatten())
        return states.view(*ids.shape, -1)

    def _laid_out(self, ids: Tensor, mask: Tensor) -> Layout:
        layout = layout_of(ids, mask)
        check_length(layout.longest, self.context)
        return layout

    @property
    def context(self) -> int:
        """Largest number of tokens of a row."""
        return self.shape.context

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.shape.vocabulary

    def decoding(self, room: int) -> CachedDecoding:
        """Return what generates tokens with this decoder's weights as they are now.

        Parameters
        ----------
        room
            Tokens that are to follow a prompt.
        """
        return CachedDecoding(self, room)


class Backbone(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RootNorm(shape)

    def forward(self, layout: Layout, wanted: Int[Tensor, " wanted"]) -> Float[Tensor, "wanted width"]:
        """Return the last hidden states of the tokens that are wanted; the others stop at the last layer's attention."""
        states: Tensor = self.embed_tokens(layout.ids)
        cos, sin = rope_turns(self.shape, layout.positions[:, None], states.dtype)
        turn = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
        *layers, last = self.layers
        for layer in layers:
            states = layer(states, layout, turn)
        normed: Tensor = self.norm(last(states, layout, turn, wanted))
        return normed


class Block(nn.Module):
    """One layer: attention, then the perceptron, each on normed states and added to them."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.input_layernorm = RootNorm(shape)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RootNorm(shape)
        self.mlp = Perceptron(shape)

    def forward(
        self,
        states: Float[Tensor, "places width"],
        layout: Layout,
        turn: tuple[Tensor, Tensor],
        wanted: Int[Tensor, " wanted"] | None = None,
    ) -> Float[Tensor, "places_or_wanted width"]:
        """Return the states after the layer: of all tokens, or of those that are wanted."""
        change = self.self_attn(self.input_layernorm(states), layout, turn, wanted)
        states = (states if wanted is None else states[wanted]) + change
        changed: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return changed


class RootNorm(nn.Module):
    """Division by the root of the mean square, and a gain."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.eps = shape.norm_eps
        self.weight = nn.Parameter(torch.ones(shape.width))

    def forward(self, states: Float[Tensor, "places width"]) -> Float[Tensor, "places width"]:
        """Return the normed states."""
        return root_norm(states, self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        queries, keys, bias = shape.heads * shape.per_head, shape.key_heads * shape.per_head, shape.attention_bias
        self.q_proj = nn.Linear(shape.width, queries, bias=bias)
        self.k_proj = nn.Linear(shape.width, keys, bias=bias)
        self.v_proj = nn.Linear(shape.width, keys, bias=bias)
        self.o_proj = nn.Linear(queries, shape.width, bias=bias)

    def forward(
        self,
        states: Float[Tensor, "places width"],
        layout: Layout,
        turn: tuple[Tensor, Tensor],
        wanted: Int[Tensor, " wanted"] | None,
    ) -> Float[Tensor, "places_or_wanted width"]:
        """Return what tokens gather from themselves and those before them: all tokens, or those that are wanted."""
        size, keys = self.shape.per_head, self.shape.key_heads
        q = self.q_proj(states).view(len(states), self.shape.heads, size)
        k, v = (of(states).view(len(states), keys, size) for of in (self.k_proj, self.v_proj))
        q, k, v = (layout.spread(x).transpose(1, 2) for x in (turned(q, *turn), turned(k, *turn), v))
        gathered = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=keys != self.shape.heads)
        rows = layout.collect(gathered.transpose(1, 2)).flatten(1)
        out: Tensor = self.o_proj(rows if wanted is None else rows[wanted])
        return out


class Perceptron(nn.Module):
    """The gated perceptron of a layer."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.width, bias=False)

    def forward(self, states: Float[Tensor, "places width"]) -> Float[Tensor, "places width"]:
        """Return what is added to the states."""
        out: Tensor = self.down_proj(gated(self.gate_proj(states), self.up_proj(states)))
        return out


def check_length(tokens: int, context: int | None, what: str = "the longest row") -> None:
    """Refuse more tokens than a model's context holds.

    Raises
    ------
    InputError
        With both numbers.
    """
    if context is not None and tokens > context:
        raise InputError(f"{what} has {tokens} tokens", expected=f"at most the model's context of {context}")


def head_weight(head: nn.Module) -> Float[Tensor, "outputs inputs"]:
    """Return the weights of a linear map, also of one that an adapter has changed; gradients go through it."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    if type(head) is nn.Linear:
        return weight
    effective: Tensor = head(torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)).T
    return effective


# -- folders ----------------------------------------------------------------------------------------------------------


def load_decoder(directory: str | Path) -> Decoder:
    """Load a decoder from a folder that transformers' `save_pretrained` or `save_decoder` wrote.

    Parameters
    ----------
    directory
        With ``config.json``, and ``model.safetensors`` or its parts with their index.

    Returns
    -------
    The decoder in evaluation mode on the CPU, its weights in the kind of number of the file.

    Raises
    ------
    InputError
        The folder is not one of a plain Llama decoder: what it has beyond is named; or weights are missing.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder), expected="a folder that save_pretrained wrote")
    config = files.read_json(folder / "config.json")
    shape = shape_of(config, str(folder / "config.json"))
    return decoder_of(shape, _weights(folder), {name: config.get(name) for name in TOKENS}, str(folder))


def decoder_of(shape: Shape, weights: Mapping[str, Tensor], special_tokens: Mapping[str, Any], where: str) -> Decoder:
    """Build a decoder from weights by their names in transformers' folders.

    Parameters
    ----------
    shape
        Of the decoder.
    weights
        By name; all become of the embedding's kind of number.
    special_tokens
        As in `Decoder`.
    where
        Whence they come, for messages.

    Raises
    ------
    InputError
        Weights are missing, of another shape, or not the decoder's.
    """
    with torch.device("meta"):
        model = Decoder(shape, seed=None)
    found = {name: weight for name, weight in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    if shape.tied and EMBEDDING in found:
        found[HEAD] = found[EMBEDDING]
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | found.keys()):
        sizes = [list(side[name].shape) if name in side else "absent" for side in (found, wanted)]
        if sizes[0] != sizes[1]:
            told = f"the weight {name} is {sizes[0]}"
            raise InputError(told, where=where, expected=f"{sizes[1]}, by the configuration")
    dtype = found[EMBEDDING].dtype
    model.load_state_dict({name: weight.to(dtype) for name, weight in found.items()}, assign=True)
    if shape.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.special_tokens = dict(special_tokens)
    return model.eval()


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    names = sorted(set(files.read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    found: dict[str, Tensor] = {}
    for name in names:
        try:
            found |= load_file(folder / name)
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot be read ({str(error).splitlines()[0]})", where=str(folder / name)) from None
    return found


def save_decoder(model: nn.Module, directory: str | Path) -> None:
    """Write a decoder into a folder as transformers' `from_pretrained` loads it; what else lies there is left alone.

    The configuration comes last, so that a folder whose writer was killed is not taken for a model; for a folder that is
    whole or not there at all, write into `files.atomic_folder`.

    Parameters
    ----------
    model
        The decoder, bare or in a wrapper. What an adapter changed is written as weights.
    directory
        A folder; it is made where it is missing.

    Raises
    ------
    InputError
        The place cannot be written.
    """
    from safetensors.torch import save_file

    decoder = next(part for part in model.modules() if isinstance(part, Decoder))
    folder, shape, weights = Path(directory), decoder.shape, _plain_weights(decoder)
    if shape.tied and torch.equal(weights[HEAD], weights[EMBEDDING]):
        del weights[HEAD]
    elif shape.tied:  # an adapter changed one of the two
        shape = replace(shape, tied=False)
    tokens = {name: decoder.special_tokens.get(name) for name in TOKENS}
    with files.atomic_path(folder / "model.safetensors") as place:
        save_file(weights, str(place), metadata={"format": "pt"})
    files.write_json(folder / "generation_config.json", {"_from_model_config": True, **tokens})
    dtype = str(weights[EMBEDDING].dtype).removeprefix("torch.")
    files.write_json(folder / "config.json", config_of(shape, tokens, dtype))


def plain_copy(model: Decoder) -> Decoder:
    """Return a decoder of the same weights with nothing wrapped around it, on the CPU.

    Where each process holds a part of the weights (FSDP2), every process must call it.
    """
    copy = Decoder(model.shape, seed=None)
    copy.load_state_dict(_plain_weights(model))
    copy.special_tokens = dict(model.special_tokens)
    return copy.eval()


@torch.no_grad()
def _plain_weights(model: Decoder) -> dict[str, Tensor]:
    """Return the weights of a decoder by the names that they have where nothing is wrapped around its parts."""
    with torch.device("meta"):
        names = list(Decoder(model.shape, seed=None).state_dict())
    found: dict[str, Tensor] = {}
    with evaluating(model), gathered(model):
        for name in names:
            part, _, kind = name.rpartition(".")
            module: Any = model.get_submodule(part)
            if isinstance(module, RootNorm):
                weight: Tensor | None = whole(module.weight)
            else:
                weight = effective_weight(module) if kind == "weight" else effective_bias(module)
            assert weight is not None
            found[name] = weight.cpu().contiguous().clone()
    return found
