"""A lean decoder of the Llama family, whose folders transformers reads and writes too.

Modules and weights have the names that they have there, so that an adapter that PEFT trained on one fits the other.
Rows are moved to the left before the first layer. Then every real token sees what stands before it and nothing else, no
mask is needed, and it makes no difference where the padding was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sanov.core import files
from sanov.core.errors import InputError
from sanov.nets.decoding import CachedDecoding, turned, turns
from sanov.nets.reads import Read, read_off
from sanov.nets.shapes import TOKENS, Shape, config_of, shape_of

__all__ = ["Decoder", "Shape", "decoder_of", "head_weight", "left_aligned", "load_decoder", "save_decoder"]

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
        self.model = Backbone(shape)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self._draw(seed)

    @torch.no_grad()
    def _draw(self, seed: int | None) -> None:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim == 2:  # the gains of norms stay at one
                parameter.zero_() if generator is None else parameter.normal_(std=SPREAD, generator=generator)

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
        return read_off(self.hidden(ids, mask), head_weight(self.lm_head), reads)

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
        aligned, places = left_aligned(ids, mask)
        self.check_length(aligned.shape[1])
        states: Tensor = self.model(aligned)
        if places is None:
            return states
        return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))

    def decoding(self, room: int) -> CachedDecoding:
        """Return what generates tokens with this decoder's weights as they are now.

        Parameters
        ----------
        room
            Tokens that are to follow a prompt.
        """
        return CachedDecoding(self, room)

    def check_length(self, tokens: int, what: str = "the longest row") -> None:
        """Refuse more tokens than the context holds."""
        if tokens > self.shape.context:
            raise InputError(
                f"{what} has {tokens} tokens", expected=f"at most the model's context of {self.shape.context}"
            )


class Backbone(nn.Module):
    """Embedding, layers and the last norm: tokens of rows without padding before them -> hidden states."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)

    def forward(self, ids: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens width"]:
        """Return the hidden states of every token."""
        states: Tensor = self.embed_tokens(ids)
        cos, sin = turns(self.shape, torch.arange(ids.shape[1], device=ids.device), states.dtype)
        for layer in self.layers:
            states = layer(states, cos, sin)
        normed: Tensor = self.norm(states)
        return normed


class Block(nn.Module):
    """One layer: attention, then the perceptron, each on normed states and added to them."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.mlp = Perceptron(shape)

    def forward(
        self, states: Float[Tensor, "rows tokens width"], cos: Tensor, sin: Tensor
    ) -> Float[Tensor, "rows tokens width"]:
        """Return the states after the layer."""
        states = states + self.self_attn(self.input_layernorm(states), cos, sin)
        changed: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return changed


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
        for bias_of in (self.q_proj, self.k_proj, self.v_proj, self.o_proj) if bias else ():
            nn.init.zeros_(bias_of.bias)

    def forward(
        self, states: Float[Tensor, "rows tokens width"], cos: Tensor, sin: Tensor
    ) -> Float[Tensor, "rows tokens width"]:
        """Return what each token gathers from itself and those before it."""
        by_head = (*states.shape[:2], -1, self.shape.per_head)
        q, k, v = (of(states).view(by_head).transpose(1, 2) for of in (self.q_proj, self.k_proj, self.v_proj))
        shared = self.shape.key_heads != self.shape.heads
        gathered = functional.scaled_dot_product_attention(
            turned(q, cos, sin), turned(k, cos, sin), v, is_causal=True, enable_gqa=shared
        )
        out: Tensor = self.o_proj(gathered.transpose(1, 2).flatten(2))
        return out


class Perceptron(nn.Module):
    """The gated perceptron of a layer."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.width, bias=False)

    def forward(self, states: Float[Tensor, "rows tokens width"]) -> Float[Tensor, "rows tokens width"]:
        """Return what is added to the states."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(states)) * self.up_proj(states))
        return out


def left_aligned(
    ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
) -> tuple[Int[Tensor, "rows longest"], Int[Tensor, "rows tokens"] | None]:
    """Move the real tokens of each row to its beginning, and cut off the columns that are padding in all rows.

    Returns
    -------
    The tokens, 0 on padding, and where each token of the original now stands (None: where it stood). A token of padding
    is sent to the last real one before it.
    """
    places = (mask.cumsum(dim=1) - 1).clamp_min(0)
    longest = max(int(mask.sum(dim=1).max()), 1) if mask.numel() else mask.shape[1]
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    aligned = ids.masked_fill(~mask, 0).gather(1, order)
    moved = longest != mask.shape[1] or not bool((mask[:, 1:] <= mask[:, :-1]).all())
    return aligned, places if moved else None


def head_weight(head: nn.Module) -> Float[Tensor, "outputs inputs"]:
    """Return the weights of a linear map, also of one that an adapter has changed."""
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

    Raises
    ------
    InputError
        Weights are missing, of another shape, or not the decoder's.
    """
    with torch.device("meta"):
        model = Decoder(shape, seed=None)
    weights = {name: weight for name, weight in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    if shape.tied and "model.embed_tokens.weight" in weights:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    wanted = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if wanted != found:
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        told = f"{wrong[0]} is {found.get(wrong[0], 'missing')}"
        expected = f"{wanted.get(wrong[0], 'no such weight')} by the configuration"
        raise InputError(f"{len(wrong)} weights do not fit, of which {told}", where=where, expected=expected)
    model.load_state_dict(weights, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
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


def save_decoder(model: Decoder, directory: str | Path) -> None:
    """Write a decoder into a folder as transformers' `from_pretrained` loads it; what else lies there is left alone.

    The configuration comes last, so that a folder whose writer was killed is not taken for a model; for a folder that is
    whole or not there at all, write into `files.atomic_folder`.

    Parameters
    ----------
    model
        The decoder.
    directory
        A folder; it is made where it is missing.

    Raises
    ------
    InputError
        The place cannot be written.
    """
    from safetensors.torch import save_file

    folder = Path(directory)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    if model.shape.tied:
        del weights["lm_head.weight"]
    dtype = str(model.model.embed_tokens.weight.dtype).removeprefix("torch.")
    tokens = {name: model.special_tokens.get(name) for name in TOKENS}
    with files.atomic_path(folder / "model.safetensors") as place:
        save_file(weights, str(place), metadata={"format": "pt"})
    files.write_json(folder / "generation_config.json", {"_from_model_config": True, **tokens})
    files.write_json(folder / "config.json", config_of(model.shape, tokens, dtype))
