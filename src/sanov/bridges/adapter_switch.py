"""Adapters of PEFT switched off for a moment, so that one resident model is both the reference and its tuned version.

Only the flag that every layer of PEFT's tuners reads in its forward pass is set and set back: no weight is loaded or moved,
and no weight's ``requires_grad`` changes, as it would by ``disable_adapters``. Compiled models keep one graph for each state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from sanov.systems.rlg.weights import check_switchable

__all__ = ["adapter_layers", "check_adapters", "reference_of", "switch"]

FLAG = "_disable_adapters"  # of peft.tuners.tuners_utils.BaseTunerLayer; read and tested in peft 0.21


def adapter_layers(model: nn.Module) -> list[Any]:
    """Return the layers of a model that have adapters."""
    return [layer for layer in model.modules() if hasattr(layer, FLAG) and hasattr(layer, "adapter_layer_names")]


def check_adapters(model: nn.Module, *, where: str = "the policy") -> None:
    """Refuse a model whose adapters cannot be switched off.

    Parameters
    ----------
    model
        With adapters of PEFT inside, as ``load_lora_weights`` or ``get_peft_model`` puts them there.
    where
        What to call it.

    Raises
    ------
    InputError
        It has none, or one is merged into the weights.
    """
    layers = adapter_layers(model)
    merged = [str(name) for layer in layers for name in getattr(layer, "merged_adapters", ())]
    names = [str(name) for layer in layers for name in layer.active_adapters]
    check_switchable(adapters=names, merged=merged, where=where)


def switch(model: nn.Module, off: bool) -> list[bool]:
    """Switch all adapters of a model off or on, and return how they were."""
    before = []
    for layer in adapter_layers(model):
        before.append(bool(getattr(layer, FLAG)))
        setattr(layer, FLAG, off)
    return before


@contextmanager
def reference_of(model: nn.Module) -> Iterator[nn.Module]:
    """Give the model without its adapters, and leave it as it was, also where something fails in between.

    Parameters
    ----------
    model
        See `check_adapters`.
    """
    layers, before = adapter_layers(model), switch(model, True)
    try:
        yield model
    finally:
        for layer, off in zip(layers, before, strict=True):
            setattr(layer, FLAG, off)
