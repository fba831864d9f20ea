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
from torch import Tensor, nn

from sanov.core import files
from sanov.core.errors import InputError, SanovWarning, require
from sanov.core.progress import track
from sanov.nets.last_linear import LastLinear

__all__ = [
    "TextTeacher",
    "classifier_classes",
    "classifier_logits",
    "is_encoder",
    "load_classifier",
    "load_encoder",
    "load_tokenizer",
    "new_classifier",
    "told",
]

TOGETHER = 512  # texts that are sorted by length at a time
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
    config = files.read_json(folder / "config.json")
    if config.get("problem_type") == "multi_label_classification":
        raise InputError("is a classifier of several labels a text", where=str(folder), expected="one label a text")
    named = {int(index): str(name) for index, name in (config.get("id2label") or {0: "0", 1: "1"}).items()}
    names = [named[index] for index in sorted(named)]
    if len(names) < 2:
        raise InputError("the teacher has one output", where=str(folder), expected="a classifier of at least 2 classes")
    unnamed = names == [f"LABEL_{index}" for index in range(len(names))]
    return tuple(map(str, range(len(names)))) if unnamed else tuple(names)


def is_encoder(directory: str | Path) -> bool:
    """Whether a folder holds an encoder that was saved without a classification head."""
    path = Path(directory) / "config.json"
    architectures = (files.read_json(path).get("architectures") or []) if path.is_file() else []
    return bool(architectures) and not any("Classification" in name for name in architectures)


def load_encoder(directory: str | Path) -> tuple[nn.Module, Any]:
    """Load an encoder without a head, and its tokenizer, from a folder.

    Returns
    -------
    The model in evaluation mode, on the GPU where there is one, and the tokenizer.

    Raises
    ------
    InputError
        The folder cannot be read.
    MissingExtra
        Without transformers.
    """
    model, tokenizer, _ = _load(directory, "AutoModel")
    return model.eval().to(_device()), tokenizer


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
    return model.eval().to(_device()), tokenizer


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


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _load(
    directory: str | Path, kind: str = "AutoModelForSequenceClassification", **settings: Any
) -> tuple[nn.Module, Any, list[str]]:
    """Model, tokenizer, and names of the weights that the folder does not hold."""
    transformers = require("transformers", "language")
    folder = str(directory)
    tokenizer = load_tokenizer(folder)
    what = "an encoder" if kind == "AutoModel" else "a classifier"
    with told(f"cannot be loaded as {what}", folder):
        model, loaded = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **settings
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer, sorted(loaded["missing_keys"])


def load_tokenizer(directory: str | Path, **settings: Any) -> Any:
    """Load a tokenizer from a folder.

    Parameters
    ----------
    directory
        Where its `save_pretrained` wrote it.
    settings
        Passed on.

    Raises
    ------
    InputError
        There is none, or it cannot be read.
    MissingExtra
        Without transformers.
    """
    transformers = require("transformers", "language")
    folder = str(directory)
    with told("its tokenizer cannot be loaded", folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **settings)
    names = set(tokenizer.vocab_files_names.values())
    if names and not settings and not any((Path(folder) / name).is_file() for name in names):
        # without these the library makes an empty tokenizer, to which all words are the same
        fix = "save the tokenizer there too, by its save_pretrained"
        raise InputError(f"the folder has no tokenizer ({' or '.join(sorted(names))})", where=folder, fix=fix)
    return tokenizer


@contextmanager
def told(what: str, folder: str) -> Iterator[None]:
    """Turn what the library says of a folder that it cannot read into one message, and keep its reports off the screen."""
    transformers = require("transformers", "language")
    try:
        with _silenced(transformers.utils.logging):
            yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{what} ({reason})", where=folder) from None


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


class TextTeacher:
    """A model from a folder, asked about texts: logits and embeddings of a classifier, embeddings of a plain encoder.

    A classifier's embeddings are the input of its last linear layer; those of an encoder are the mean of its last hidden
    states over a text's tokens.

    Parameters
    ----------
    directory
        Folder of a sequence classifier, or of an encoder, with its tokenizer.
    embeddings
        Whether they are wanted; an encoder has nothing else.
    batch_size
        Texts a forward pass; texts of like length go together, so that little is padded.
    max_length
        Tokens after which a text is cut; None takes the model's own limit.

    Raises
    ------
    InputError
        The folder cannot be read, holds no trained classifier, or embeddings are wanted and its last layer is not linear.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        embeddings: bool = False,
        batch_size: int = 32,
        max_length: int | None = None,
    ):
        self.directory, self.embeddings, self.batch_size = str(directory), embeddings, batch_size
        self.plain = embeddings and is_encoder(directory)
        model: Any
        model, self.tokenizer = load_encoder(directory) if self.plain else load_classifier(directory)
        self.device, self.words = next(model.parameters()).device, len(model.get_input_embeddings().weight)
        self.limit = max_length or _limit(model.config, self.tokenizer)
        self.network: Any = model if self.plain else LastLinear(model)
        self.texts = self.cut = 0

    @torch.no_grad()
    def outputs(self, texts: Sequence[str], first: int = 1) -> dict[str, np.ndarray]:
        """Return ``logits`` and ``embeddings`` of texts, whichever there are, as rows in the texts' order.

        Parameters
        ----------
        texts
            Some of the texts.
        first
            Number of the first of them, for messages.

        Raises
        ------
        InputError
            They are not finite.
        """
        tokens = self.tokenizer(list(texts), truncation=self.limit is not None, max_length=self.limit)
        lengths = np.array([len(ids) for ids in tokens["input_ids"]])
        self.texts += len(lengths)
        self.cut += 0 if self.limit is None else int((lengths >= self.limit).sum())
        self._check_words(max((max(ids, default=0) for ids in tokens["input_ids"]), default=0))
        order = np.argsort(-lengths, kind="stable")
        found: dict[str, np.ndarray] = {}
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = self.tokenizer.pad({name: [values[row] for row in rows] for name, values in tokens.items()})
            inputs = {name: torch.as_tensor(np.asarray(values)).to(self.device) for name, values in batch.items()}
            for name, values in self._forward(inputs).items():
                array = values.float().cpu().numpy()
                found.setdefault(name, np.empty((len(order), *array.shape[1:]), np.float32))[rows] = array
        self._check(found, first)
        return found

    def _forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.plain:
            states = self.network(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None].to(states.dtype)
            return {"embeddings": (states * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)}
        logits, embeddings = self.network(**inputs)
        if not self.embeddings:
            return {"logits": logits}
        if embeddings is None:
            found = "the teacher's logits are not the outputs of a linear layer"
            raise InputError(found, where=self.directory, fix="use a system that needs no embeddings")
        return {"logits": logits, "embeddings": embeddings}

    def _check_words(self, largest: int) -> None:
        if largest >= self.words:
            found = f"the tokenizer gives the token {largest}, and the model knows {self.words}"
            raise InputError(found, where=self.directory, fix="save the tokenizer with which the model was trained")

    def _check(self, found: dict[str, np.ndarray], first: int) -> None:
        for name, values in found.items():
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                row = first + int(np.argmin(finite))
                raise InputError(f"the teacher's {name} of text {row} are not finite", where=self.directory)

    def head(self) -> dict[str, np.ndarray]:
        """Return ``head_weight`` [width, classes] and ``head_bias`` once a text was seen; nothing for an encoder."""
        head = None if self.plain or not self.embeddings else self.network.head()
        return {} if head is None else {"head_weight": head[0], "head_bias": head[1]}

    def tell_cut(self) -> None:
        """Warn of the texts that were longer than the model reads."""
        if self.cut:
            text = f"{self.cut} of {self.texts} texts reach the teacher's limit of {self.limit} tokens, and were cut there "
            warnings.warn(text + "if longer.", SanovWarning, stacklevel=4)


def classifier_logits(
    directory: str | Path, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
) -> Float64[np.ndarray, "texts classes"]:
    """Return the logits that a classifier gives to texts, in one pass.

    Parameters
    ----------
    directory, batch_size, max_length
        As in `TextTeacher`.
    texts
        Any texts.

    Raises
    ------
    InputError
        As in `load_classifier`, or the logits are not finite.
    """
    if not texts:
        raise InputError("there are no texts", where=str(directory))
    teacher = TextTeacher(directory, batch_size=batch_size, max_length=max_length)
    starts = track(range(0, len(texts), TOGETHER), "teacher")
    parts = [teacher.outputs(texts[start : start + TOGETHER], start + 1)["logits"] for start in starts]
    teacher.tell_cut()
    return np.concatenate(parts).astype(np.float64)


def _limit(config: Any, tokenizer: Any) -> int | None:
    if tokenizer.model_max_length < NO_LIMIT:
        return int(tokenizer.model_max_length)
    positions = getattr(config, "max_position_embeddings", None)
    return None if positions is None else int(positions) - 2  # some models number their positions from 2
