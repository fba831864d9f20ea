"""The shape of a Llama-family decoder, and what the configuration file of such a model says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sanov.core.errors import InputError

__all__ = ["TOKENS", "RopeScaling", "Shape", "config_of", "rope_frequencies", "rope_turns", "shape_of", "strange"]


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3 stretches its slow rotations beyond the context of pretraining.

    Wavelengths above ``context / low`` are stretched by `factor`, those below ``context / high`` are kept, and between
    the two the stretch goes over from one to the other.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    context: int = 8192


@dataclass(frozen=True)
class Shape:
    """Sizes and constants of a Llama-family decoder.

    Parameters
    ----------
    vocabulary, width, layers, heads, mlp
        Number of tokens, size of a hidden state, number of layers, of attention heads, of units between the two maps of
        a layer's perceptron.
    kv_heads
        Heads of keys and values, each shared by as many query heads; None takes as many as there are query heads.
    head_width
        Size of a head; None takes ``width // heads``.
    context
        Largest number of tokens of a row.
    tied
        Whether the output head is the embedding.
    rope_theta, rope_scaling
        Base of the rotations' wavelengths, and how they are stretched.
    norm_eps
        Added to the mean square before its root is taken.
    attention_bias
        Whether the four maps of attention have biases.

    Raises
    ------
    InputError
        Sizes are not positive, or do not divide.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    mlp: int
    kv_heads: int | None = None
    head_width: int | None = None
    context: int = 2048
    tied: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    attention_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "mlp", "key_heads", "per_head", "context"):
            if getattr(self, name) < 1:
                raise InputError(f"it is {getattr(self, name)}", where=name, expected="at least 1")
        if self.heads % self.key_heads:
            found = f"{self.heads} heads do not share {self.key_heads} heads of keys and values evenly"
            raise InputError(found, where="kv_heads", expected="a divisor of the number of heads")
        if self.per_head % 2:
            raise InputError(
                f"it is {self.per_head}", where="head_width", expected="an even number, to rotate in pairs"
            )

    @property
    def key_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def per_head(self) -> int:
        """Size of a head."""
        return self.width // max(self.heads, 1) if self.head_width is None else self.head_width


def rope_frequencies(shape: Shape) -> Float[Tensor, " pairs"]:
    """Return by how many radians a token's place turns each pair of a head, float32.

    Parameters
    ----------
    shape
        Its head width, base and scaling count.

    Reference
    ---------
    su2024roformer, eq. 15; the scaling is that of grattafiori2024llama3.
    """
    exponents = torch.arange(0, shape.per_head, 2, dtype=torch.float32) / shape.per_head
    plain = 1.0 / (shape.rope_theta**exponents)
    scaling = shape.rope_scaling
    if scaling is None:
        return plain
    turns = scaling.context * plain / (2 * math.pi)  # full turns within the context of pretraining
    kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return kept * plain + (1 - kept) * plain / scaling.factor


def rope_turns(
    shape: Shape, positions: Int[Tensor, "*places"], dtype: torch.dtype
) -> tuple[Float[Tensor, "*places pairs"], Float[Tensor, "*places pairs"]]:
    """Return cosine and sine of the angles by which tokens at positions turn.

    Parameters
    ----------
    shape
        Of the decoder.
    positions
        Places of tokens in their rows.
    dtype
        Kind of number of the result. The angles are float32, as in the models' training; their cosines are float64 for
        float64.
    """
    angles = positions[..., None] * rope_frequencies(shape).to(positions.device)
    wide = angles.double() if dtype == torch.float64 else angles
    return wide.cos().to(dtype), wide.sin().to(dtype)


# -- the configuration file -------------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": "vocabulary",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp",
}
DEFAULTED = {  # what a file may leave out, and what its reader then takes
    "num_key_value_heads": ("kv_heads", None),
    "head_dim": ("head_width", None),
    "max_position_embeddings": ("context", 2048),
    "tie_word_embeddings": ("tied", False),
    "attention_bias": ("attention_bias", False),
    "rms_norm_eps": ("norm_eps", 1e-6),
}
FIXED = {  # what the decoder does one way only; a file may leave it out
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
}
ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "original_max_position_embeddings": "context",
}
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
ASIDE = (  # how a model is trained, stored or run, not what it computes
    "_attn_implementation_autoset", "_model_name_or_path", "_name_or_path", "chunk_size_feed_forward", "dtype", "id2label",
    "initializer_range", "is_encoder_decoder", "is_llama_config", "label2id", "output_attentions", "output_hidden_states",
    "problem_type", "return_dict", "torch_dtype", "transformers.js_config", "transformers_version", "unk_token_id",
    "use_cache",
)  # fmt: skip


def strange(config: Mapping[str, Any]) -> list[str]:
    """Return what a configuration asks for and the decoder does not have: ``"mlp_bias = True"``; empty where it fits.

    Parameters
    ----------
    config
        Content of a ``config.json``.
    """
    known = {*SIZES, *DEFAULTED, *FIXED, *ROPE, *TOKENS, *ASIDE}
    other = [key for key, value in config.items() if key not in known and value not in (None, False, {}, [])]
    other += [key for key, value in FIXED.items() if config.get(key, value) not in (value, None)]
    rope = _rope(config)
    kind = rope.pop("rope_type")
    if kind not in ("default", "llama3") or rope.pop("partial_rotary_factor", 1.0) != 1.0:
        other += [key for key in ROPE[1:] if config.get(key)]
    return [f"{key} = {config[key]!r}" for key in other]


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """Read the shape that a configuration describes.

    Parameters
    ----------
    config
        Content of a ``config.json``.
    where
        Its file, for messages.

    Raises
    ------
    InputError
        It asks for what the decoder does not have, or sizes are missing.
    """
    if found := strange(config):
        fix = "load it by sanov.nets.foreign_causal.load_causal, which leaves such models to transformers"
        expected = "a plain Llama decoder"
        raise InputError(f"the model has {', '.join(found)}", where=where, expected=expected, fix=fix)
    if absent := [key for key in SIZES if not isinstance(config.get(key), int)]:
        raise InputError(
            f"there is no number {', '.join(absent)}", where=where, expected="the sizes of a Llama decoder"
        )
    sizes = {ours: config[key] for key, ours in SIZES.items()}
    sizes |= {ours: default if config.get(key) is None else config[key] for key, (ours, default) in DEFAULTED.items()}
    rope = _rope(config)
    return Shape(**sizes, rope_theta=float(rope["rope_theta"]), rope_scaling=_scaling(rope, sizes["context"], where))


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands of rotations in the file, in either of its two spellings."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope["rope_type"] = rope.get("rope_type") or rope.pop("type", None) or "default"
    rope["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
    return rope


def _scaling(rope: Mapping[str, Any], context: int, where: str) -> RopeScaling | None:
    if rope["rope_type"] == "default":
        return None
    named = {"original_max_position_embeddings": context, **rope}
    if absent := [key for key in LLAMA3 if named.get(key) is None]:
        raise InputError(
            f"the stretch of its rotations lacks {', '.join(absent)}", where=where, expected="llama3's four"
        )
    return RopeScaling(**{ours: named[key] for key, ours in LLAMA3.items()})


def config_of(shape: Shape, tokens: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the content of the ``config.json`` by which transformers builds a decoder of this shape.

    Parameters
    ----------
    shape
        Of the decoder.
    tokens
        Ids of its special tokens by their names in the file; one that is left out is written as null.
    dtype
        Kind of number of the weights, such as ``"float32"``.
    """
    scaling = shape.rope_scaling
    rope: dict[str, Any] = {"rope_theta": shape.rope_theta, "rope_type": "llama3" if scaling else "default"}
    if scaling:
        rope |= {key: getattr(scaling, ours) for key, ours in LLAMA3.items()}
    return {
        **FIXED,
        **{key: getattr(shape, ours) for key, ours in SIZES.items()},
        **{key: getattr(shape, ours) for key, (ours, _) in DEFAULTED.items()},
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.per_head,
        "rope_parameters": rope,
        **dict.fromkeys(TOKENS),
        **tokens,
        "dtype": dtype,
    }
