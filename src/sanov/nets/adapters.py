"""Adapters of low rank (LoRA) on any causal language model of Hugging Face, through PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sanov.core.errors import InputError, require
from sanov.nets.foreign_causal import ForeignCausal, load_whole

__all__ = ["with_adapter"]

ALL = "all-linear"  # PEFT's word for every linear layer but the head


def with_adapter(
    directory: str | Path,
    *,
    rank: int,
    alpha: float,
    target_modules: Sequence[str] = (),
    dropout: float = 0.0,
    seed: int = 0,
) -> ForeignCausal:
    """Load a causal language model with a new adapter, which changes nothing yet and alone asks for gradients.

    Parameters
    ----------
    directory
        A folder that `save_pretrained` wrote. The adapter's own folder will name it as its base.
    rank, alpha
        Of the products of two matrices that are added to those of the layers, times alpha / rank.
    target_modules
        Ends of the names of these layers; none for all linear ones but the head.
    dropout
        Of what goes into an adapter, in training mode.
    seed
        Of the first matrices; the second ones are zero.

    Raises
    ------
    InputError
        The folder cannot be read, is that of an adapter, or has no layers of these names.
    MissingExtra
        Without transformers or PEFT.

    Reference
    ---------
    hu2022lora.
    """
    folder = Path(directory)
    if (folder / "adapter_config.json").is_file():
        fix = "leave lora.rank out, and this adapter is trained on"
        raise InputError("is the folder of an adapter already", where=str(folder), fix=fix)
    peft: Any = require("peft", "language")
    model = load_whole(folder.resolve() if folder.exists() else folder)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(target_modules) or ALL,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name of before
        torch.default_generator.manual_seed(seed)
        try:
            model.add_adapter(config)
        except ValueError as error:
            linear = {
                name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)
            }
            found = f"cannot be adapted there ({str(error).splitlines()[0]:.120})"
            expected = f"ends of names of layers, such as {', '.join(sorted(linear)[:8])}"
            raise InputError(found, where="lora.target_modules", expected=expected) from None
    model.peft_config["default"].base_model_name_or_path = str(folder.resolve())
    return ForeignCausal(model.eval())
