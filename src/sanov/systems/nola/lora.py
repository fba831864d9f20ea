"""The same update as a low-rank adapter, which PEFT and servers that know only LoRA load: B and A are an exact pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sanov.core import files
from sanov.core.errors import InputError
from sanov.systems.nola.layers import Adapted, adapted
from sanov.systems.nola.storage import CONFIG, PREFIX, WEIGHTS

__all__ = ["export_lora", "lora_tensors"]


@torch.no_grad()
def lora_tensors(layers: Mapping[str, Adapted]) -> dict[str, Tensor]:
    """Return A and s B of adapted layers under the names that PEFT's LoRA has for them, in float32.

    Parameters
    ----------
    layers
        By name.
    """
    found: dict[str, Tensor] = {}
    for name, layer in layers.items():
        a, b = (factor.float().cpu().contiguous() for factor in layer.update.factors())
        if layer.kind == "embedding":
            found[f"{PREFIX}{name}.lora_embedding_A"], found[f"{PREFIX}{name}.lora_embedding_B"] = a, b
            continue
        if layer.kind == "convolution":
            base: Any = layer.base
            a, b = a.view(len(a), -1, *base.kernel_size), b.view(*b.shape, *(1 for _ in base.kernel_size))
        found[f"{PREFIX}{name}.lora_A.weight"], found[f"{PREFIX}{name}.lora_B.weight"] = a, b
    return found


def export_lora(
    model: nn.Module,
    folder: str | Path,
    *,
    base: str = "",
    task: str | None = None,
    head_modules: Iterable[str] = (),
) -> None:
    """Write the adapter of a model as a LoRA folder, whole or not at all; its scale is in B, so that PEFT's is 1.

    Parameters
    ----------
    model
        With its adapter, merged or not.
    folder
        Where; what is there is replaced.
    base, task
        Name or path of the base model, and PEFT's name of the task.
    head_modules
        Modules that were trained besides: they go along whole.

    Raises
    ------
    InputError
        The model has no adapter, its layers read their weights in different ways, or the place cannot be written.
    """
    layers, heads = adapted(model), list(head_modules)
    if not layers:
        raise InputError("the model has no adapter", where="export", fix="attach or load one first")
    transposed = {layer.kind == "transposed" for layer in layers.values() if layer.kind != "embedding"}
    if len(transposed) > 1:
        fix = "give Linear and Conv1D layers adapters of their own"
        raise InputError("some weights are [in, out] and some [out, in]", where="export to LoRA", fix=fix)
    head = {
        f"{PREFIX}{module}.{name}": weight.detach().float().cpu().clone().contiguous()
        for module in heads
        for name, weight in model.get_submodule(module).named_parameters()
    }
    rank = next(iter(layers.values())).update.factors()[0].shape[0]
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": task,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed == {True},
        "inference_mode": True,
        "target_modules": list(layers),
        "modules_to_save": heads or None,
    }
    with files.atomic_folder(folder) as temporary:
        save_file({**lora_tensors(layers), **head}, temporary / WEIGHTS, {"format": "pt"})
        files.write_json(temporary / CONFIG, config)
