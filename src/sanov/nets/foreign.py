"""The one door through which Hugging Face models come in. They are read from a folder; nothing is downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from torch import nn

from sanov.core.errors import InputError, SanovWarning, require
from sanov.core.files import read_json
from sanov.core.progress import track

__all__ = ["classifier_classes", "classifier_logits", "load_classifier", "new_classifier"]

NO_LIMIT = 1_000_000  # tokenizers without a limit name a number beyond this


def classifier_classes(directory: str | Path) -> tuple[str, ...]:
    """Names of the classes of a classifier's folder, without loading it; its numbers where nobody named them.

    Raises
    ------
    InputError
        The folder holds no classifier of at least two classes, one of which holds for a text.
    """
    folder = Path(directory)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "there is no such folder"
        raise InputError(found, where=str(folder), expected="a folder that save_pretrained wrote")
    if not (folder / "config.json").is_file():
        raise InputError("the folder has no config.json", where=str(folder), expected="what save_pretrained writes")
    config = read_json(folder / "config.json")
    if config.get("problem_type") == "multi_label_classification":
        raise InputError("is a classifier of several labels a text", where=str(folder), expected="one label a text")
    named = {int(index): str(name) for index, name in (config.get("id2label") or {0: "0", 1: "1"}).items()}
    names = [named[index] for index in sorted(named)]
    if len(names) < 2:
        raise InputError("the teacher has one output", where=str(folder), expected="a classifier of at least 2 classes")
    unnamed = names == [f"LABEL_{index}" for index in range(len(names))]
    return tuple(map(str, range(len(names)))) if unnamed else tuple(names)


def load_classifier(directory: str | Path) -> tuple[nn.Module, Any]:
    """Load a sequence classifier and its tokenizer from a folder.

    Returns
    -------
    The model in evaluation mode, on the GPU where there is one, and the tokenizer.

    Raises
    ------
    InputError
        The folder cannot be read, or the classification head in it was never trained.
    MissingExtra
        Without transformers.
    """
    classifier_classes(directory)
    model, tokenizer, absent = _load(directory)
    if absent:
        fix = "fine-tune the model as a classifier first, and save that"
        raise InputError(f"the folder lacks trained weights ({', '.join(absent[:3])})", where=str(directory), fix=fix)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval().to(device), tokenizer


def new_classifier(directory: str | Path, classes: int | Sequence[str], *, seed: int) -> tuple[nn.Module, Any]:
    """Load an encoder from a folder, and put an untrained classification head on it.

    Parameters
    ----------
    directory
        Folder of an encoder with its tokenizer.
    classes
        Number of classes, or their names.
    seed
        Of the head's weights.

    Returns
    -------
    The model in training mode, and the tokenizer.

    Raises
    ------
    InputError
        The folder cannot be read.
    """
    names = range(classes) if isinstance(classes, int) else classes
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed accelerators
        model, tokenizer, _ = _load(directory, id2label={index: str(name) for index, name in enumerate(names)})
    return model.train(), tokenizer


def _load(directory: str | Path, **settings: Any) -> tuple[nn.Module, Any, list[str]]:
    """Model, tokenizer, and names of the weights that the folder does not hold."""
    transformers = require("transformers", "language")
    folder = str(directory)
    try:
        with _silenced(transformers.utils.logging):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, **settings
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"cannot be loaded as a classifier with its tokenizer ({reason})", where=folder) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer, sorted(loaded["missing_keys"])


@contextmanager
def _silenced(logging: Any) -> Iterator[None]:
    """Keep the library's reports and bars off the screen: what matters of them becomes an error of ours."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@torch.no_grad()
def classifier_logits(
    directory: str | Path, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
) -> Float64[np.ndarray, "texts classes"]:
    """Return the logits that a classifier gives to texts, in one pass.

    Parameters
    ----------
    directory
        Folder of a sequence classifier with its tokenizer.
    texts
        Any texts.
    batch_size
        Texts a forward pass; texts of like length go together, so that little is padded.
    max_length
        Tokens after which a text is cut; None takes the model's own limit.

    Raises
    ------
    InputError
        As in `load_classifier`, or the logits are not finite.
    """
    model, tokenizer = load_classifier(directory)
    limit = max_length or _limit(model.config, tokenizer)
    tokens = tokenizer(list(texts), truncation=limit is not None, max_length=limit)
    lengths = np.array([len(ids) for ids in tokens["input_ids"]])
    _tell_cut(lengths, limit)
    order = np.argsort(-lengths, kind="stable")
    logits: np.ndarray | None = None
    starts = range(0, len(order), batch_size)
    for start in track(starts, "teacher"):
        rows = order[start : start + batch_size]
        batch = tokenizer.pad({name: [values[row] for row in rows] for name, values in tokens.items()})
        inputs = {name: torch.as_tensor(np.asarray(values)) for name, values in batch.items()}
        found = model(**{name: values.to(next(model.parameters()).device) for name, values in inputs.items()}).logits
        if logits is None:
            logits = np.empty((len(order), found.shape[1]))
        logits[rows] = found.double().cpu().numpy()
    if logits is None:
        raise InputError("there are no texts", where=str(directory))
    if not np.isfinite(logits).all():
        row = int(np.argmin(np.isfinite(logits).all(axis=1)))
        raise InputError(f"the teacher's logits of text {row + 1} are not finite", where=str(directory))
    return logits


def _limit(config: Any, tokenizer: Any) -> int | None:
    if tokenizer.model_max_length < NO_LIMIT:
        return int(tokenizer.model_max_length)
    positions = getattr(config, "max_position_embeddings", None)
    return None if positions is None else int(positions) - 2  # some models number their positions from 2


def _tell_cut(lengths: np.ndarray, limit: int | None) -> None:
    cut = 0 if limit is None else int((lengths >= limit).sum())
    if cut:
        text = (
            f"{cut} of {len(lengths)} texts reach the teacher's limit of {limit} tokens, and were cut there if longer."
        )
        warnings.warn(text, SanovWarning, stacklevel=3)
