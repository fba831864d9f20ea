"""Kinds of teachers, and how each is asked about some rows: a Hugging Face folder, a network of features, a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sanov.core import files
from sanov.core.errors import InputError
from sanov.data.heads import Head, checked_logits
from sanov.nets import foreign
from sanov.nets.last_linear import LastLinear

__all__ = ["Arrays", "OfRows", "OfTexts", "Rows", "Teacher", "checked"]

ARRAYS = ("logits", "embeddings", "head_weight", "head_bias")
WEIGHTS = {".safetensors", ".bin", ".json", ".txt", ".model"}  # of a Hugging Face folder, what outputs depend on
WHERE = "the teacher"
OF_TRAINING = {"training_args.bin", "trainer_state.json", "optimizer.bin", "scheduler.bin"}

Teacher = str | Path | nn.Module | Callable[[Any], Any] | Mapping[str, Any] | np.ndarray
Rows = Sequence[str] | np.ndarray
Arrays = dict[str, np.ndarray]


class OfTexts:
    """A model from a folder, loaded when it is needed.

    Parameters
    ----------
    directory, texts, embeddings, max_length
        As in `teachers.outputs`.
    """

    def __init__(self, directory: str | Path, texts: Rows, embeddings: bool, max_length: int | None):
        if isinstance(texts, np.ndarray) and texts.dtype.kind not in "UT":
            raise InputError("a Hugging Face teacher reads texts, and the table has none", where=str(directory))
        self.directory, self.texts = Path(directory), [str(text) for text in texts]
        self.embeddings, self.max_length = embeddings, max_length
        self.model: foreign.TextTeacher | None = None
        self.name = self.directory.name

    def about(self, _key: str) -> dict[str, Any]:
        """What the outputs depend on."""
        if not foreign.is_encoder(self.directory):
            foreign.classifier_classes(self.directory)  # tells what is wrong with a folder that is none
        paths = sorted(path for path in self.directory.iterdir() if path.suffix in WEIGHTS)
        content = {path.name: files.digest(path) for path in paths if path.name not in OF_TRAINING and path.is_file()}
        asked = {"max_length": self.max_length, "embeddings": self.embeddings}
        return {"content": content, "texts": files.digest(self.texts), **asked}

    def rows(self, start: int, stop: int) -> Arrays:
        """Return the outputs on some texts."""
        if self.model is None:
            self.model = foreign.TextTeacher(self.directory, embeddings=self.embeddings, max_length=self.max_length)
        return self.model.outputs(self.texts[start:stop], first=start + 1)

    def constants(self) -> Arrays:
        """Return the head."""
        return {} if self.model is None else self.model.head()

    def told(self) -> None:
        """Tell what a user should know of the pass."""
        if self.model is not None:
            self.model.tell_cut()


class OfRows:
    """A network of features, or a function.

    Parameters
    ----------
    teacher, inputs, embeddings
        As in `teachers.outputs`.
    """

    def __init__(self, teacher: nn.Module | Callable[[Any], Any], inputs: Rows, embeddings: bool):
        if isinstance(teacher, nn.Module) and not isinstance(inputs, np.ndarray):
            fix = "pass a function of texts, or the folder of a Hugging Face classifier"
            raise InputError("a network reads features, and the rows are texts", where=WHERE, fix=fix)
        self.teacher, self.inputs, self.embeddings = teacher, inputs, embeddings
        self.watched = LastLinear(teacher) if isinstance(teacher, nn.Module) else None
        self.head: Arrays = {}
        self.name = getattr(teacher, "__name__", type(teacher).__name__)

    def about(self, key: str) -> dict[str, Any] | None:
        """What the outputs depend on; None where nobody can say."""
        if isinstance(self.teacher, nn.Module):
            state = {name: _digest(values) for name, values in self.teacher.state_dict().items()}
            content: Any = {
                "state": state,
                "model": repr(self.teacher),
                "parts": [[_source(type(part)), _plain(part)] for part in self.teacher.modules()],
                "key": key,
            }
        elif key:
            content = key
        else:
            return None
        rows = self.inputs.tobytes() if isinstance(self.inputs, np.ndarray) else list(self.inputs)
        asked = {"rows": [files.digest(rows), np.shape(self.inputs)], "embeddings": self.embeddings}
        return {"content": files.digest(content), **asked}

    def rows(self, start: int, stop: int) -> Arrays:
        """Return the outputs on some rows."""
        part = self.inputs[start:stop]
        given = self._watched(part) if self.watched is not None else self.teacher(part)
        found = checked(given, self.embeddings, stop - start, first=start + 1)
        self.head = {name: found.pop(name) for name in ("head_weight", "head_bias") if name in found}
        return found

    def _watched(self, part: Rows) -> dict[str, Any]:
        assert self.watched is not None
        weights = next(self.watched.model.parameters(), torch.zeros(()))
        with _evaluating(self.watched.model):
            logits, embeddings = self.watched(torch.as_tensor(part, dtype=weights.dtype, device=weights.device))
        if self.embeddings and embeddings is None:
            raise InputError("the logits are not the outputs of a linear layer", where=WHERE)
        head = self.watched.head() or (None, None)
        return {"logits": logits, "embeddings": embeddings, "head_weight": head[0], "head_bias": head[1]}

    def constants(self) -> Arrays:
        """Return the head."""
        return self.head

    def told(self) -> None:
        """Tell nothing: no row is cut."""


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return kind.__qualname__


def _plain(part: nn.Module) -> dict[str, Any]:
    """What a module remembers besides weights, as far as it can be told."""
    kinds = (bool, int, float, str, tuple, list, type(None))
    return {name: repr(value) for name, value in vars(part).items() if isinstance(value, kinds)}


def _digest(values: torch.Tensor) -> str:
    return files.digest(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def checked(found: Any, embeddings: bool, rows: int, first: int = 1) -> Arrays:
    """Return the arrays by name of what a user's teacher gave; logits too where only embeddings and head were given.

    Parameters
    ----------
    found
        Logits, a tuple of logits and embeddings, or a mapping of arrays.
    embeddings
        Whether they were asked for; else they are left out.
    rows
        How many rows there must be.
    first
        Number of the first of them, for messages.

    Raises
    ------
    InputError
        Something is missing, of another shape or not finite, or the head does not give the logits.
    """
    arrays = _arrays(found)
    for name in ("logits", "embeddings"):
        if name in arrays:
            _check(name, arrays[name], rows, first)
    halves = {"head_weight", "head_bias"} & arrays.keys()
    if len(halves) == 1:
        raise InputError(f"gives {halves.pop()} without the other half of the head", where=WHERE)
    if "embeddings" in arrays and halves:
        where = WHERE if first == 1 else f"{WHERE}, rows from {first}"
        head = Head(arrays["head_weight"].astype(np.float64), arrays["head_bias"].astype(np.float64))
        arrays["logits"] = checked_logits(arrays["embeddings"], head, arrays.get("logits"), name=where)
        arrays |= {"head_weight": head.weight, "head_bias": head.bias}
    if embeddings and "embeddings" not in arrays:
        fix = "return logits and embeddings, or pass a network whose last layer is linear"
        raise InputError("gives no embeddings", where=WHERE, fix=fix)
    if "logits" not in arrays and not embeddings:
        raise InputError("gives no logits", where=WHERE)
    return arrays if embeddings else {"logits": arrays["logits"]}


def _arrays(found: Any) -> Arrays:
    if isinstance(found, tuple):
        found = dict(zip(("logits", "embeddings"), found, strict=False))
    given = dict(found) if isinstance(found, Mapping) else {"logits": found}
    unknown = sorted(set(given) - set(ARRAYS))
    if unknown:
        raise InputError(f"gives {unknown[0]!r}", where=WHERE, expected=", ".join(ARRAYS))
    return {name: _array(values) for name, values in given.items() if values is not None}


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values if values.dtype == torch.float64 else values.float()).numpy()
    array = np.asarray(values)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _check(name: str, values: np.ndarray, rows: int, first: int) -> None:
    if values.ndim != 2 or len(values) != rows:
        expected = f"[{rows}, {'classes' if name == 'logits' else 'width'}] for {rows} rows"
        raise InputError(f"{name} are of shape {list(values.shape)}", where=WHERE, expected=expected)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        found = f"{name} of {len(bad)} rows are not finite, the first is row {bad[0] + first}"
        raise InputError(found, where=WHERE)
