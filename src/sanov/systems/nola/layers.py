"""Layers with an update in a random subspace, put in the place of those of any model, and taken out again."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sanov.core.errors import InputError
from sanov.systems.nola.factors import Basis, Preset, Space, check_chunk
from sanov.systems.nola.quantised import Bits, straight_through

__all__ = [
    "DESCRIBED",
    "Adapted",
    "Factors",
    "Plan",
    "Update",
    "adapted",
    "attach",
    "attach_seeded",
    "change",
    "chosen",
    "detach",
    "disabled",
    "drawn_seeds",
    "kind_of",
    "layer_seed",
    "matches",
    "shifted",
    "weight_shape",
]

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
        self.space = space
        self._factors = Factors(space, scaling, bits)
        alpha, beta = space.start()
        self.nola_alpha, self.nola_beta = nn.Parameter(alpha), nn.Parameter(beta)

    def factors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Return A [rank, in] and s B [out, rank], as LoRA has them."""
        return self._factors.of(self.nola_alpha, self.nola_beta, dtype)

    def delta(self) -> Float[Tensor, "out in"]:
        """Return s B A, in float32 or wider."""
        a, b = self.factors()
        return b @ a


class Adapted(nn.Module):
    """A layer and its update, side by side: what the layer gives, and what s B A adds to it.

    Parameters
    ----------
    base
        The layer, whose weights are no longer trained.
    update
        The update of its weight: what has ``factors(dtype)``, as `Update` has.
    """

    update: Any

    def __init__(self, base: nn.Module, update: nn.Module):
        super().__init__()
        self.base, self.update = base, update
        self.kind = kind_of(base)
        self.enabled, self.merged = True, False

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, with the update unless it is switched off or already in the weight."""
        out: Tensor = self.base(x)
        if self.merged or not self.enabled:
            return out
        return out + change(self.base, x, *self.update.factors(out.dtype if self.kind == "embedding" else x.dtype))

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the layer's weight.

        Raises
        ------
        InputError
            The weight is not of floating-point numbers, or the update is in it already.
        """
        if self.merged:
            raise InputError("the update is in the weight already", where="merge", fix="unmerge it first")
        self._add(1.0)
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the update out of the layer's weight again.

        Raises
        ------
        InputError
            It is not in there.
        """
        if not self.merged:
            raise InputError("the update is not in the weight", where="unmerge", fix="merge it first")
        self._add(-1.0)
        self.merged = False

    def _add(self, sign: float) -> None:
        weight: Any = self.base.weight
        weight.copy_(shifted(self.base, sign * self.update.delta()))


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


def matches(name: str, targets: str | Sequence[str]) -> bool:
    """Whether a module is meant: by a regular expression for its whole name, or by its name or the end of it."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def attach(model: nn.Module, targets: str | Sequence[str], plan: Plan, *, seed: int = 0) -> dict[str, Adapted]:
    """Freeze a model, and put an update beside each of its layers that are meant.

    Parameters
    ----------
    model
        Any model; it is changed in place.
    targets
        Names of layers, or ends of them; or one regular expression for whole names.
    plan
        Sizes and scales.
    seed
        From which the seed of each layer follows, by its number among the layers.

    Returns
    -------
    The adapted layers, by name. Their coefficients are all that is trained.

    Raises
    ------
    InputError
        No layer is meant, with the nearest names; or one of a type that has no such update.
    """
    shapes = {name: weight_shape(layer) for name, layer in chosen(model, targets).items()}
    return attach_seeded(model, plan, drawn_seeds(shapes, seed, plan.share_basis))


def chosen(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Module]:
    """Return the layers of a model that are meant, by name, in the model's order.

    Raises
    ------
    InputError
        There is none, with the nearest names; or one of a type that has no such update.
    """
    found = {name: layer for name, layer in model.named_modules() if name and matches(name, targets)}
    if not found:
        raise InputError(f"no layer is named {targets!r}", where="target_modules", fix=_near(model, targets))
    for name, layer in found.items():
        if isinstance(layer, Adapted):
            raise InputError("has an adapter already", where=name, fix="detach it first")
        kind_of(layer, name)
    return found


def attach_seeded(model: nn.Module, plan: Plan, seeds: Mapping[str, int]) -> dict[str, Adapted]:
    """Freeze a model, and put an update beside each of these layers, its bases from the seed that is told.

    Returns
    -------
    As `attach`.
    """
    model.requires_grad_(False)
    pool: dict[Any, Basis] = {}
    layers = {}
    for name, seed in seeds.items():
        layer: Any = model.get_submodule(name)
        update = Update(plan.space(weight_shape(layer), seed, pool), plan.alpha / plan.rank, plan.bits)
        layers[name] = Adapted(layer, update.to(layer.weight.device))
        parent, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(parent), own_name, layers[name])
    return layers


def drawn_seeds(
    shapes: Mapping[str, tuple[int, int]], seed: int, share_basis: Literal["none", "by_shape"] = "none"
) -> dict[str, int]:
    """Return a seed for each layer of a model.

    Parameters
    ----------
    shapes
        Outputs and inputs of each, in the model's order.
    seed
        From which they follow.
    share_basis
        As in `Plan`.
    """
    order = sorted(set(shapes.values()))
    numbers = [
        order.index(shape) if share_basis == "by_shape" else place for place, shape in enumerate(shapes.values())
    ]
    return {name: layer_seed(seed, number) for name, number in zip(shapes, numbers, strict=True)}


def layer_seed(seed: int, number: int) -> int:
    """Return the seed of a layer: of 64 bits, and far from those of other layers and of the next seed.

    Reference
    ---------
    steele2014fast.
    """
    mixed = (seed + 0x9E3779B97F4A7C15 * (number + 1)) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return mixed ^ (mixed >> 31)


def adapted(model: nn.Module) -> dict[str, Adapted]:
    """Return a model's adapted layers, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Adapted)}


def detach(model: nn.Module) -> None:
    """Put a model's own layers back in their places, as they are: with what was merged, without what was not."""
    for name, layer in adapted(model).items():
        parent, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(parent), own_name, layer.base)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Switch updates off, and on again afterwards, also where something fails in between.

    Raises
    ------
    InputError
        An update was merged, and can not be switched off.
    """
    layers = adapted(model)
    merged = next((name for name, layer in layers.items() if layer.merged), None)
    if merged is not None:
        raise InputError("its update is merged and cannot be switched off", where=merged, fix="unmerge it first")
    before = {name: layer.enabled for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.enabled = False
        yield
    finally:
        for name, layer in layers.items():
            layer.enabled = before[name]


def _near(model: nn.Module, targets: str | Sequence[str]) -> str:
    names = [name for name, layer in model.named_modules() if name and _fits(layer)]
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    asked = [targets] if isinstance(targets, str) else list(targets)
    near = [
        end for target in asked for end in difflib.get_close_matches(target.rpartition(".")[2], ends, n=5, cutoff=0.3)
    ]
    return f"the nearest are: {', '.join((near or ends)[:5])}" if names else "the model has no layer of these types"


def _fits(layer: nn.Module) -> bool:
    try:
        kind_of(layer)
    except InputError:
        return False
    return True
