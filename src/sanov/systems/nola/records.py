"""What is kept of the bases of an adapted layer, and the checks when it is read again.

Another generator, seed, shape or base model gives other updates, and no sign of it but bad outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sanov.core.errors import InputError
from sanov.random_bases import GENERATOR
from sanov.systems.nola.factors import Space
from sanov.systems.nola.layers import Adapted
from sanov.systems.nola.updates import DESCRIBED, Plan, weight_shape

__all__ = ["CONFIG", "Layer", "layer_of", "read_config"]

CONFIG = "adapter_config.json"
SAMPLES = 4  # entries of a weight that are kept, to know the base model again


@dataclass(frozen=True)
class Layer:
    """What the bases of one layer were made from, and what they were meant for.

    Attributes
    ----------
    seed
        Of the bases.
    shape
        Outputs and inputs of the weight.
    fingerprint
        Of the bases.
    weight
        A few entries of the weight, in the order of its memory; none where it is quantised.
    dtype
        Of the weight.
    """

    seed: int
    shape: tuple[int, int]
    fingerprint: str
    weight: tuple[float, ...] = ()
    dtype: str = "float32"

    @classmethod
    def of(cls, space: Space, layer: nn.Module) -> Layer:
        """Return what is to be kept of the bases of a layer, to which nothing was merged."""
        weight: Any = layer.weight
        dtype = str(weight.dtype).removeprefix("torch.")
        return cls(space.first.seed, space.shape, space.fingerprint(), _sample(weight), dtype)

    def check(self, name: str, plan: Plan) -> None:
        """Make the bases again, and compare their fingerprint.

        Raises
        ------
        InputError
            They are others.
        """
        found = plan.space(self.shape, self.seed, {}).fingerprint()
        if found != self.fingerprint:
            expected = f"{self.fingerprint}, as the adapter says"
            fix = f"the seed, a size or the law in {CONFIG} was changed: take the adapter as it was saved"
            where = f"{name}, bases of {GENERATOR}"
            raise InputError(f"their fingerprint is {found}", where=where, expected=expected, fix=fix)

    def check_base(self, name: str, layer: nn.Module) -> None:
        """Compare the layer that the adapter is put on with the one that it was trained on.

        Raises
        ------
        InputError
            Its shape or its weights are others.
        """
        if (shape := weight_shape(layer, name)) != self.shape:
            found = f"the weight is {shape[0]} x {shape[1]}"
            raise InputError(found, where=name, expected=f"{self.shape[0]} x {self.shape[1]}, as the adapter says")
        weight: Any = layer.weight
        if not (self.weight and (sample := _sample(weight))):
            return
        coarse = max(torch.finfo(getattr(torch, self.dtype)).eps, torch.finfo(weight.dtype).eps)
        if any(abs(a - b) > 2 * coarse * max(abs(a), abs(b)) for a, b in zip(sample, self.weight, strict=True)):
            found = f"the weight is not that on which the adapter was trained ({sample[0]:.6g}, not {self.weight[0]:.6g} ...)"
            raise InputError(found, where=name, fix="load the base model of the adapter, with nothing merged into it")


def layer_of(layer: Adapted) -> Layer:
    """Return what is to be kept of an adapted layer's bases.

    Raises
    ------
    InputError
        The update is merged into the weight, which is no longer the base model's.
    """
    if layer.merged:
        raise InputError("its update is merged into the weight", where="save", fix="unmerge it first")
    return Layer.of(layer.update.space, layer.base)


def _sample(weight: Any) -> tuple[float, ...]:
    """Return a few entries, evenly apart; none where there are no numbers to compare."""
    if weight.is_meta or not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        return ()
    flat = weight.detach().flatten()
    places = torch.arange(1, SAMPLES + 1, device=flat.device) * len(flat) // (SAMPLES + 1)
    return tuple(flat[places].double().tolist())


def read_config(tree: Any, where: str) -> tuple[Plan, dict[str, Layer]]:
    """Return what an adapter's configuration says, once its bases were made again.

    Parameters
    ----------
    tree
        As `Adapter.config` returns it.
    where
        Its file, for messages.

    Raises
    ------
    InputError
        It is no such configuration, of another generator, without a seed, or a fingerprint does not agree.
    """
    if not isinstance(tree, dict) or tree.get("peft_type") != "NOLA":
        found = f"the kind of adapter is {tree.get('peft_type') if isinstance(tree, dict) else None}"
        raise InputError(found, where=where, expected="NOLA")
    if (generator := tree.get("generator")) != GENERATOR:
        fix = f"load it with the release of sanov whose generator is {generator}, and train it anew for this one"
        raise InputError(f"the bases are of the generator {generator}", where=where, expected=GENERATOR, fix=fix)
    try:
        plan = Plan(**{own: tree[told] for told, own in DESCRIBED.items()})
        layers = {name: _layer(name, entry) for name, entry in tree["layers"].items()}
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(f"the configuration lacks or garbles {error}", where=where) from None
    for name, layer in layers.items():
        layer.check(name, plan)
    return plan, layers


def _layer(name: str, entry: Mapping[str, Any]) -> Layer:
    seed, shape = entry.get("seed"), entry["shape"]
    if type(seed) is not int or not 0 <= seed < 2**64:
        found = "there is no seed" if seed is None else f"the seed is {seed!r}"
        raise InputError(
            found, where=f"{name}, seed", expected="a whole number from 0 to 2^64 - 1", fix="save it again"
        )
    weight = tuple(entry.get("weight", ()))
    return Layer(seed, (int(shape[0]), int(shape[1])), str(entry["fingerprint"]), weight, entry.get("dtype", "float32"))
