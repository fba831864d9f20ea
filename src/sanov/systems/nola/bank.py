"""Many adapters over the same bases in one file, and what can be done with their coefficients.

Adapters whose seeds and sizes agree differ in their coefficients alone. So the file holds the bases' description once, and
of each adapter a row of numbers; to switch is to copy one row, however many there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sanov.core import files
from sanov.core.errors import InputError
from sanov.systems.nola.layers import adapted
from sanov.systems.nola.quantised import Bits
from sanov.systems.nola.storage import Adapter, compressed, expanded, read_config

__all__ = ["Bank", "combined"]


@dataclass(frozen=True, eq=False)
class Bank:
    """Adapters of one base model over the same bases.

    Parameters
    ----------
    shared
        An adapter whose bases are those of all; its coefficients are not looked at.
    names
        Of the adapters.
    bits
        In which coefficients are stored.
    tensors
        ``coefficients``, a row an adapter, with ``scales`` below 16 bits; and the heads, ``head.NAME``, one above the other.
    """

    shared: Adapter
    names: tuple[str, ...]
    bits: Bits
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, adapters: Mapping[str, Adapter], *, bits: Bits = 16) -> Bank:
        """Put adapters together.

        Parameters
        ----------
        adapters
            By name.
        bits
            In which their coefficients are stored: 32, 16, 8 or 4.

        Raises
        ------
        InputError
            There are none, or they differ in their bases, sizes, layers or heads.
        """
        if not adapters:
            raise InputError("there are no adapters", where="bank", expected="at least one")
        first = next(iter(adapters.values()))
        for name, adapter in adapters.items():
            _check_alike(first, adapter, name)
        rows = [_row(adapter, bits) for adapter in adapters.values()]
        tensors = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return cls(first, tuple(adapters), bits, tensors)

    def __len__(self) -> int:
        return len(self.names)

    def adapter(self, name: str) -> Adapter:
        """Return one adapter, its coefficients as they are stored.

        Raises
        ------
        InputError
            None has this name.
        """
        if name not in self.names:
            raise InputError("the bank has no such adapter", where=name, expected=", ".join(self.names[:8]))
        place, plan, layers = self.names.index(name), self.shared.plan, list(self.shared.layers)
        row = {key: values[place] for key, values in self.tensors.items()}
        if self.bits >= 16:
            sizes = [plan.num_basis_a, plan.num_basis_b] * len(layers)
            parts = torch.split(row["coefficients"].float(), sizes)
            pairs = {layer: (parts[2 * i], parts[2 * i + 1]) for i, layer in enumerate(layers)}
        else:
            pairs = expanded(row, layers, plan, self.bits)
        head = {key.removeprefix("head."): value.float() for key, value in row.items() if key.startswith("head.")}
        return replace(self.shared, coefficients=pairs, head=head)

    @torch.no_grad()
    def switch(self, model: nn.Module, name: str) -> None:
        """Turn a model that has one of the adapters into one that has another: so many numbers are copied as one has.

        Raises
        ------
        InputError
            None has this name, or the model's bases are others.
        """
        layers, chosen = adapted(model), self.adapter(name)
        seeds = {key: layer.update.space.first.seed for key, layer in layers.items()}
        if seeds != {key: layer.seed for key, layer in self.shared.layers.items()}:
            fix = "put an adapter of the bank on the model first: bank.adapter(NAME).put(model)"
            raise InputError("the model's bases are not those of the bank", where=name, fix=fix)
        merged = next((key for key, layer in layers.items() if layer.merged), None)
        if merged is not None:
            raise InputError("its update is merged and cannot be exchanged", where=merged, fix="unmerge it first")
        chosen.write(layers)
        parameters = dict(model.named_parameters())
        for key, weight in chosen.head.items():
            parameters[key].copy_(weight)

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all.

        Raises
        ------
        InputError
            The place cannot be written.
        """
        about = {"config": self.shared.config(self.bits), "names": self.names}
        tensors = {name: values.contiguous() for name, values in self.tensors.items()}
        files.write_bytes(path, save(tensors, {"bank": files.to_json(about)}))

    @classmethod
    def load(cls, path: str | Path) -> Bank:
        """Read what `save` wrote, and compare the fingerprints of all bases.

        Raises
        ------
        InputError
            The file is no bank, or its bases cannot be made here.
        """
        try:
            with safe_open(path, "pt") as file:
                about: dict[str, Any] = json.loads((file.metadata() or {})["bank"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"is no bank of adapters ({error})", where=str(path)) from None
        tree = about["config"]
        plan, layers = read_config(tree, str(path))
        shared = Adapter.described(tree, plan, layers)
        return cls(shared, tuple(about["names"]), tree["coefficient_bits"], tensors)


def _row(adapter: Adapter, bits: Bits) -> dict[str, Tensor]:
    found = compressed(adapter.coefficients, bits)
    row = {"coefficients": torch.cat(list(found.values()))} if bits >= 16 else dict(found)
    heads = {f"head.{name}": weight.float() if bits == 32 else weight.half() for name, weight in adapter.head.items()}
    return row | heads


def _check_alike(first: Adapter, other: Adapter, name: str) -> None:
    if first.plan.described() != other.plan.described():
        raise InputError("its sizes or scales are others than those of the first adapter", where=name)
    if list(first.layers) != list(other.layers):
        raise InputError("it has other layers than the first adapter", where=name)
    for layer in first.layers:
        if first.layers[layer].fingerprint != other.layers[layer].fingerprint:
            fix = "train adapters that are to be combined with the same seed of the bases (adapter.seed)"
            raise InputError(f"its bases of {layer} are others than those of the first adapter", where=name, fix=fix)
    if {key: w.shape for key, w in first.head.items()} != {key: w.shape for key, w in other.head.items()}:
        raise InputError("its head has other weights than that of the first adapter", where=name)


def combined(adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> Adapter:
    """Return the adapter whose coefficients are a weighted sum of those of others, and its head likewise.

    The sum is exact in A - A_0 and in B, each by itself. The update is their product: it is not the sum of the updates.

    Parameters
    ----------
    adapters
        Over the same bases.
    weights
        One each: ``(1, -1)`` subtracts; None for their mean.

    Raises
    ------
    InputError
        There are none, the weights are not as many, or the bases differ.
    """
    adapters = list(adapters)
    if not adapters or (weights is not None and len(weights) != len(adapters)):
        found = f"there are {len(adapters)} adapters and {0 if weights is None else len(weights)} weights"
        raise InputError(found, where="combined", expected="at least one adapter, and a weight each")
    for place, adapter in enumerate(adapters[1:], start=2):
        _check_alike(adapters[0], adapter, f"adapter {place}")
    shares = [1 / len(adapters)] * len(adapters) if weights is None else list(weights)

    def summed(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([share * tensor for share, tensor in zip(shares, tensors, strict=True)]).sum(dim=0)

    pairs = {
        name: (summed([a.coefficients[name][0] for a in adapters]), summed([a.coefficients[name][1] for a in adapters]))
        for name in adapters[0].layers
    }
    head = {name: summed([adapter.head[name] for adapter in adapters]) for name in adapters[0].head}
    return replace(adapters[0], coefficients=pairs, head=head)
