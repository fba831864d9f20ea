"""Layers with an update in a random subspace, put in the place of those of any model, and taken out again."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sanov.core.errors import InputError
from sanov.systems.nola.factors import Basis
from sanov.systems.nola.updates import Plan, Update, change, kind_of, shifted, weight_shape

__all__ = [
    "Adapted",
    "adapted",
    "attach",
    "attach_seeded",
    "chosen",
    "detach",
    "disabled",
    "drawn_seeds",
    "layer_seed",
    "matches",
]


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
