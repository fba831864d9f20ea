"""The update of one weight: what is common to all (`Plan`), its factors, and what it adds to a layer of any kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sanov.core.errors import InputError
from sanov.systems.nola.factors import Basis, Preset, Space, check_chunk
from sanov.systems.nola.quantised import Bits, straight_through

__all__ = ["DESCRIBED", "KEPT_BYTES", "Factors", "Plan", "Update", "change", "kind_of", "shifted", "weight_shape"]

Kind = Literal["linear", "transposed", "embedding", "convolution"]
DESCRIBED = {  # what is kept of a plan, under its name in a file
    "r": "rank",
    "num_basis_a": "num_basis_a",
    "num_basis_b": "num_basis_b",
    "nola_alpha": "alpha",
    "preset": "preset",
    "distribution": "law",
    "share_basis": "share_basis",
}
KEPT_BYTES = 2**28  # of all bases, up to which they stay in memory


@dataclass(frozen=True)
class Plan:
    """What every adapted layer of a model has in common.

    Parameters
    ----------
    rank
        Of an update.
    num_basis_a, num_basis_b
        Bases of each factor: the numbers that are trained.
    alpha
        The update is scaled by ``alpha / rank``.
    preset, law, chunk
        As in `Space` and `Basis`.
    share_basis
        ``none``: each layer has a seed of its own; ``by_shape``: layers of one shape have the same bases.
    kept
        Whether bases stay in memory.
    bits
        In which the coefficients will be stored: below 32, training sees them rounded (straight-through).

    Raises
    ------
    InputError
        A size is out of range.
    """

    rank: int = 8
    num_basis_a: int = 64
    num_basis_b: int = 64
    alpha: float = 8.0
    preset: Preset = "gpt"
    law: Literal["uniform", "rademacher", "sparse"] = "uniform"
    chunk: int = 64
    share_basis: Literal["none", "by_shape"] = "none"
    kept: bool = False
    bits: Bits = 32

    def __post_init__(self) -> None:
        for name, value in (("rank", self.rank), ("num_basis_a", self.num_basis_a), ("num_basis_b", self.num_basis_b)):
            if value < 1:
                raise InputError(f"is {value}", where=name, expected="a whole number >= 1")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"is {self.alpha}", where="alpha", expected="a number > 0")
        check_chunk(self.chunk)

    def described(self) -> dict[str, Any]:
        """Return what a file says of it."""
        return {told: getattr(self, own) for told, own in DESCRIBED.items()}

    def bytes(self, shape: tuple[int, int]) -> int:
        """Return the bytes of the bases of a weight of a shape, if they are kept in memory."""
        return 4 * self.rank * (self.num_basis_a * shape[1] + self.num_basis_b * shape[0])

    def space(self, shape: tuple[int, int], seed: int, pool: dict[Any, Basis]) -> Space:
        """Return the space of a weight of a shape."""
        return Space.of(
            seed,
            inputs=shape[1],
            outputs=shape[0],
            rank=self.rank,
            num_basis_a=self.num_basis_a,
            num_basis_b=self.num_basis_b,
            preset=self.preset,
            law=self.law,
            chunk=self.chunk,
            kept=self.kept,
            pool=pool,
        )


class Factors:
    """The two factors of one weight's update, of any coefficients; without gradients they are made once only.

    Parameters
    ----------
    space
        Where the update lies.
    scaling
        alpha / rank.
    bits
        As in `Plan`.
    """

    def __init__(self, space: Space, scaling: float, bits: Bits = 32):
        self.space, self.scaling, self.bits = space, scaling, bits
        self._seen: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def of(
        self, alpha: Float[Tensor, " k"], beta: Float[Tensor, " l"], dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]:
        """Return A and s B, as LoRA has them; in float32 or wider unless a type is told."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._seen = None
            a, b = self._made(alpha, beta)
        else:
            a, b = self._remembered(alpha.detach(), beta.detach())
        return (a, b) if dtype is None else (a.to(dtype), b.to(dtype))

    def _remembered(self, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        if self._seen is None or not (_same(self._seen[0], alpha) and _same(self._seen[1], beta)):
            self._seen = alpha.clone(), beta.clone(), *self._made(alpha, beta)
        return self._seen[2:]

    def _made(self, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.space.factors(straight_through(alpha, self.bits), straight_through(beta, self.bits))
        return a, b * self.scaling


class Update(nn.Module):
    """The update of one weight: two vectors of coefficients, and what they stand for.

    Parameters
    ----------
    space, scaling, bits
        As in `Factors`.
    """

    def __init__(self, space: Space, scaling: float, bits: Bits = 32):
        super().__init__()
        self._factors = Factors(space, scaling, bits)
        alpha, beta = space.start()
        self.nola_alpha, self.nola_beta = nn.Parameter(alpha), nn.Parameter(beta)

    @property
    def space(self) -> Space:
        """Where the update lies."""
        return self._factors.space

    @property
    def scaling(self) -> float:
        """By which B is multiplied."""
        return self._factors.scaling

    def factors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Return A [rank, in] and s B [out, rank], as LoRA has them."""
        return self._factors.of(self.nola_alpha, self.nola_beta, dtype)

    def delta(self) -> Float[Tensor, "out in"]:
        """Return s B A, in float32 or wider."""
        a, b = self.factors()
        return b @ a


def change(layer: nn.Module, x: Tensor, a: Float[Tensor, "rank inputs"], b: Float[Tensor, "outputs rank"]) -> Tensor:
    """Return what an update adds to a layer's output.

    Parameters
    ----------
    layer
        The layer itself.
    x
        Its input.
    a, b
        The factors, of the type of the output.
    """
    kind = kind_of(layer)
    if kind == "embedding":
        added = functional.linear(functional.embedding(x, a.t()), b)
        scale = getattr(layer, "embed_scale", None)  # some models multiply what they looked up
        return added if scale is None else added * torch.as_tensor(scale, device=b.device).to(b.dtype)
    if kind == "convolution":
        return _convolved(layer, x, a, b)
    return functional.linear(functional.linear(x, a), b)


def shifted(layer: nn.Module, delta: Float[Tensor, "outputs inputs"]) -> Tensor:
    """Return a layer's weight with an update added to it, of the weight's own shape and type.

    Raises
    ------
    InputError
        The weight is not of floating-point numbers.
    """
    weight: Any = layer.weight
    if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        fix = "de-quantise the layer, or export the adapter to LoRA instead"
        raise InputError(f"the weight is quantised ({weight.dtype})", where="merge", fix=fix)
    added = delta.t() if kind_of(layer) in ("transposed", "embedding") else delta
    sum_: Tensor = (weight.to(added.dtype) + added.reshape(weight.shape)).to(weight.dtype)
    return sum_


def _same(old: Tensor, new: Tensor) -> bool:
    return old.device == new.device and old.dtype == new.dtype and torch.equal(old, new)


def _convolved(base: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    layer: Any = base
    rank, rows = len(a), len(b)
    ones = (1,) * len(layer.kernel_size)
    convolve = getattr(functional, f"conv{len(layer.kernel_size)}d")
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    inner = convolve(x, a.view(rank, -1, *layer.kernel_size), None, layer.stride, padding, layer.dilation)
    convolved: Tensor = convolve(inner, b.view(rows, rank, *ones))
    return convolved


def kind_of(layer: nn.Module, name: str = "") -> Kind:
    """Return how a layer's weight is read.

    Parameters
    ----------
    layer
        Any.
    name
        Its name, for the message.

    Raises
    ------
    InputError
        The layer is of another type.
    """
    if isinstance(layer, nn.Linear):
        return "linear"
    if isinstance(layer, nn.Embedding):
        return "embedding"
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if layer.groups == 1:
            return "convolution"
        found = f"is a {type(layer).__name__} of {layer.groups} groups"
    elif type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):  # of transformers: its weight is [in, out]
        return "transposed"
    else:
        found = f"is a {type(layer).__name__}"
    where = f"target_modules, {name}" if name else "target_modules"
    raise InputError(found, where=where, expected="Linear, Conv1D, Embedding, or a convolution of one group")


def weight_shape(layer: nn.Module, name: str = "") -> tuple[int, int]:
    """Return outputs and inputs of a layer's weight as a matrix."""
    turned = kind_of(layer, name) in ("transposed", "embedding")
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features  # a quantised weight may be packed in another shape
    weight: Any = layer.weight
    rows, columns = weight.shape[0], weight[0].numel()
    return (columns, rows) if turned else (rows, columns)
