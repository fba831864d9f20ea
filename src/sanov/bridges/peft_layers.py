"""Layers of PEFT that hold updates of `systems.nola`, one for each adapter, beside the layer that they change."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from sanov.bridges.peft_config import AdapterError, NolaConfig
from sanov.random_bases import random_bases
from sanov.systems.nola.factors import Basis
from sanov.systems.nola.records import Layer
from sanov.systems.nola.updates import Factors, change, kind_of, shifted, weight_shape

__all__ = ["COEFFICIENTS", "Convolution", "Embedding", "Linear", "NolaLayer", "layer_for"]

COEFFICIENTS = ("nola_alpha", "nola_beta")
START = 3  # stream of random coefficients; 0 to 2 are those of the bases


class NolaLayer(nn.Module, BaseTunerLayer):
    """A layer and its adapters, of which the active ones add an update to what it gives.

    Parameters
    ----------
    base_layer
        The layer.
    adapter_name
        The first adapter, which is active.

    Attributes
    ----------
    nola_alpha, nola_beta
        By adapter: the coefficients.
    nola_factors
        By adapter: what makes the factors of them.
    nola_layers
        By adapter: what its bases were made from.
    """

    adapter_layer_names = COEFFICIENTS
    other_param_names = ("nola_factors", "nola_layers", "nola_dropout")

    def __init__(self, base_layer: nn.Module, adapter_name: str):
        super().__init__()
        self.base_layer = base_layer
        self.kind = kind_of(base_layer)
        self.out_features, self.in_features = weight_shape(base_layer)
        self.nola_alpha, self.nola_beta = nn.ParameterDict(), nn.ParameterDict()
        self.nola_factors: dict[str, Factors] = {}
        self.nola_dropout = nn.ModuleDict()
        self.nola_layers: dict[str, Layer] = {}
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: NolaConfig, record: Layer, pool: dict[Any, Basis]) -> None:
        """Add an adapter, or start one of this name anew.

        Parameters
        ----------
        adapter_name
            Its name.
        config
            Its options.
        record
            What its bases are made from.
        pool
            Bases that are there already.
        """
        plan = config.plan()
        space = plan.space(record.shape, record.seed, pool)
        for stream, (name, start) in enumerate(zip(COEFFICIENTS, space.start(), strict=True), START):
            if not config.init_weights:
                start = random_bases(record.seed, stream, (1, len(start)), device="cpu")[0]
            getattr(self, name)[adapter_name] = nn.Parameter(start)
        self.nola_factors[adapter_name] = Factors(space, plan.alpha / plan.rank, plan.bits)
        self.nola_layers[adapter_name] = record
        self.nola_dropout[adapter_name] = nn.Dropout(config.nola_dropout) if config.nola_dropout else nn.Identity()
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output, with the updates unless they are switched off or already in the weight."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.nola_factors:
                result = result + self._added(name, x, dtype)
        return result.to(dtype)

    def _added(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        if self.kind != "embedding":
            x, dtype = self.nola_dropout[name](x), x.dtype
        return change(self.get_base_layer(), x, *self._made(name, dtype))

    def _made(self, name: str, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        return self.nola_factors[name].of(self.nola_alpha[name], self.nola_beta[name], dtype)

    def _delta(self, name: str) -> Tensor:
        a, b = self._made(name)
        return b @ a

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: Any = None) -> None:
        """Add updates to the layer's weight.

        Parameters
        ----------
        safe_merge
            Whether to leave the weight as it is where the sum would not be finite.
        adapter_names
            Whose; by default those that are active.

        Raises
        ------
        InputError
            The weight is quantised, or the sum is not finite (a ``ValueError`` too).
        """
        layer: Any = self.get_base_layer()
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.nola_factors:
                continue
            weight = shifted(layer, self._delta(name))
            if safe_merge and not torch.isfinite(weight).all():
                fix = "training diverged: lower the learning rate"
                raise AdapterError(f"NaNs detected in the merged weights of adapter {name}", where="merge", fix=fix)
            layer.weight.data.copy_(weight)
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take all merged updates out of the layer's weight again."""
        layer: Any = self.get_base_layer()
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.nola_factors:
                layer.weight.data.copy_(shifted(layer, -self._delta(name)))

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return an adapter's update in the shape of the weight, in float32 or wider."""
        layer: Any = self.get_base_layer()
        delta = self._delta(adapter)
        return (delta.t() if self.kind in ("transposed", "embedding") else delta).reshape(layer.weight.shape)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT can turn it into LoRA: it does so for linear layers only."""
        return self.kind in ("linear", "transposed")

    def __repr__(self) -> str:
        """Return the module's text, which PEFT's reports begin with the method."""
        return "nola." + super().__repr__()


class Linear(NolaLayer):
    """Of a linear layer, or a ``Conv1D`` of transformers. PEFT's "all-linear" finds it by its name."""


class Embedding(NolaLayer):
    """Of an embedding."""


class Convolution(NolaLayer):
    """Of a convolution of one group."""


def layer_for(layer: nn.Module, adapter_name: str) -> NolaLayer:
    """Return what takes a layer's place."""
    kinds = {"embedding": Embedding, "convolution": Convolution}
    return kinds.get(kind_of(layer), Linear)(layer, adapter_name)
