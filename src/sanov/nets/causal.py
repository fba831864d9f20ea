"""A causal language model and its tokenizer, from a folder and into one that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sanov.core import files
from sanov.nets.foreign import told
from sanov.nets.foreign_causal import ForeignCausal, load_causal
from sanov.nets.shapes import strange
from sanov.nets.transformer import Decoder, load_decoder, save_decoder
from sanov.nets.vocabulary import load_tokenizer

__all__ = ["load_model", "load_tokenizer", "save_model", "trainable", "weights_digest"]


def load_model(directory: str | Path) -> Decoder | ForeignCausal:
    """Load a causal language model: a plain Llama as our decoder, without transformers, any other by it.

    Raises
    ------
    InputError
        The folder cannot be read, or weights are missing.
    MissingExtra
        As `foreign_causal.load_causal`.
    """
    place = Path(directory)
    config = place / "config.json"
    plain = config.is_file() and not (place / "adapter_config.json").is_file()
    if plain and not strange(files.read_json(config)):
        return load_decoder(place).eval()
    model: Decoder | ForeignCausal = load_causal(place)[0]
    return model.eval()


def trainable(model: Decoder | ForeignCausal) -> Decoder | ForeignCausal:
    """Make a model that was loaded ready to be trained, in place: an adapter's weights alone where it has one, else all.

    What is trained is in single precision: half of it would round most steps of a small learning rate away.

    Parameters
    ----------
    model
        As `load_model` returns it.
    """
    wrapped: Any = getattr(model, "wrapped", None)
    if hasattr(wrapped, "peft_config"):
        wrapped.set_adapter(wrapped.active_adapters())  # asks for gradients, which loading does not
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype in (torch.float16, torch.bfloat16):
            weight.data = weight.data.float()
    return model


def save_model(model: Any, directory: str | Path, tokenizer: Any = None) -> None:
    """Write a model and its tokenizer into a folder.

    Parameters
    ----------
    model
        As `load_model` returns it.
    directory
        A folder; it is made where it is missing.
    tokenizer
        `data.tokens.CharTokenizer` or `Vocabulary`; what ends a text is written down with the model. None for weights alone.

    Raises
    ------
    InputError
        The place cannot be written.
    """
    folder = Path(directory)
    if tokenizer is not None:
        tokenizer.save(folder)
    if isinstance(model, Decoder):
        if tokenizer is not None:
            _end_with(model, tokenizer)
        save_decoder(model, folder)
    else:
        wrapped: Any = model.wrapped
        with told("cannot be written", str(folder)):
            wrapped.save_pretrained(str(folder))
        files.open_as_usual(folder)


def _end_with(model: Decoder, tokenizer: Any) -> None:
    """Take the special tokens of a tokenizer where the model knows none."""
    known = {"eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad, "bos_token_id": tokenizer.bos}
    for name, token in known.items():
        if model.special_tokens.get(name) is None:
            model.special_tokens[name] = token


def weights_digest(directory: str | Path) -> str:
    """SHA-256 (hex) of the files of weights in a folder."""
    return files.digest([[path.name, files.digest(path)] for path in sorted(Path(directory).glob("*.safetensors"))])
