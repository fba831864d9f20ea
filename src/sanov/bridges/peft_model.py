"""The tuner: puts layers of `peft_layers` into a model, and takes adapters out of it and back in as PEFT's state dicts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from sanov.bridges.peft_config import AdapterError
from sanov.bridges.peft_layers import COEFFICIENTS, NolaLayer, layer_for
from sanov.core.errors import SanovWarning
from sanov.systems.nola.factors import Basis
from sanov.systems.nola.records import Layer
from sanov.systems.nola.storage import PREFIX, compressed, expanded
from sanov.systems.nola.updates import kind_of

__all__ = ["NolaModel"]


class NolaModel(BaseTuner):
    """A model some of whose layers have updates in random subspaces; PEFT makes it, see `sanov.bridges.peft`."""

    prefix = "nola_"
    tuner_layer_cls = NolaLayer
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # lists, and one expression

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into the model; bases that another one has are shared, not made again."""
        self._pool: dict[Any, Basis] = {basis.key: basis for basis in _bases(model)}
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        finally:
            del self._pool

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Refuse what cannot be, before anything in the model is changed."""
        if any(layer.merged for _, layer in _nola_layers(model)):
            # PEFT does so a little later, with its warning; but samples are to be of the base weights
            self.set_adapter(self.active_adapters)
        _maybe_include_all_linear_layers(peft_config, model)
        modules = {name: _base(module) for name, module in model.named_modules()}
        inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
        chosen = {
            name: module
            for name, module in modules.items()
            if name and not name.startswith(inside) and self._check_target_module_exists(peft_config, name)
        }
        peft_config.settle(chosen, modules)
        kinds = {kind_of(module) for module in chosen.values()}
        wrong = "linear" if peft_config.fan_in_fan_out else "transposed"
        if wrong in kinds:
            peft_config.fan_in_fan_out = not peft_config.fan_in_fan_out
            found = f"fan_in_fan_out did not agree with the layers and is now {peft_config.fan_in_fan_out}"
            warnings.warn(found, SanovWarning, stacklevel=2)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        entry = (peft_config.layers or {}).get(current_key)
        if entry is None:
            raise AdapterError("there is no seed for it in the configuration", where=current_key)
        if isinstance(target, NolaLayer):
            target.update_layer(adapter_name, peft_config, Layer(**entry), self._pool)
            return
        layer = layer_for(target, adapter_name)
        layer.update_layer(adapter_name, peft_config, Layer(**entry), self._pool)
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            fix = "pass the rows of each adapter by themselves, or convert the adapters to LoRA"
            raise AdapterError("one batch cannot mix adapters of this kind", where="adapter_names", fix=fix)
        yield

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        config.keep(_records(model, adapter_name))  # of this model: a configuration may have been used for several
        if config.coefficient_bits == 32:
            return found
        pairs, others = _parted(found, adapter_name)
        alone = not any(name.startswith(PREFIX) for name in found)  # injected into a model without a PeftModel
        if alone and config.coefficient_bits < 16:
            fix = "wrap the model by get_peft_model, or set coefficient_bits to 16"
            raise AdapterError("8 and 4 bits need a PeftModel", where="coefficient_bits", fix=fix)
        packed = compressed(pairs, config.coefficient_bits)
        return {**others, **{_named(name, adapter_name, alone): tensor for name, tensor in packed.items()}}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if "coefficients" in state_dict:
            pairs = expanded(state_dict, config.layers or (), config.plan(), config.coefficient_bits)
            others = {name: tensor for name, tensor in state_dict.items() if name not in ("coefficients", "scales")}
            state_dict = {**others, **compressed(pairs)}
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


def _base(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _nola_layers(model: nn.Module) -> Iterator[tuple[str, NolaLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, NolaLayer):
            yield name, module


def _bases(model: nn.Module) -> Iterator[Basis]:
    for _, layer in _nola_layers(model):
        for factors in layer.nola_factors.values():
            yield from (factors.space.offset, factors.space.first, factors.space.second)


def _records(model: nn.Module, adapter_name: str) -> dict[str, Layer]:
    return {
        name.removeprefix("_fsdp_wrapped_module.").removeprefix(PREFIX): layer.nola_layers[adapter_name]
        for name, layer in _nola_layers(model)
        if adapter_name in layer.nola_layers
    }


def _parted(
    tensors: Mapping[str, Tensor], adapter_name: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Return alpha and beta of each layer, and what else a state dict of the model holds."""
    first, second = (f".{name}.{adapter_name}" for name in COEFFICIENTS)
    pairs = {
        name.removesuffix(first).removeprefix(PREFIX): (tensor, tensors[name.removesuffix(first) + second])
        for name, tensor in tensors.items()
        if name.endswith(first)
    }
    return pairs, {name: tensor for name, tensor in tensors.items() if not name.endswith((first, second))}


def _named(name: str, adapter_name: str, alone: bool) -> str:
    """Return a name of a file as PEFT expects it, which takes the adapter's name off again."""
    if not name.endswith(COEFFICIENTS):
        return name
    return f"{name.removeprefix(PREFIX) if alone else name}.{adapter_name}"
