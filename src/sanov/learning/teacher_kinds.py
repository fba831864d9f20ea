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
from sanov.nets import foreign
from sanov.nets.last_linear import LastLinear

__all__ = ["Arrays", "OfRows", "OfTexts", "Rows", "Teacher", "named"]

ARRAYS = ("logits", "embeddings", "head_weight", "head_bias")
WEIGHTS = {".safetensors", ".bin", ".json", ".txt", ".model"}  # of a Hugging Face folder, what outputs depend on
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
            raise InputError("a network reads features, and the rows are texts", where="the teacher", fix=fix)
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
                "forward": _source(type(self.teacher)),
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
        found = self._watched(part) if self.watched is not None else named(self.teacher(part), self.embeddings)
        self.head = {name: found.pop(name) for name in ("head_weight", "head_bias") if name in found}
        for name, values in found.items():
            if len(values) != stop - start:
                raise InputError(f"gives {len(values)} {name} for {stop - start} rows", where="the teacher")
        return found

    def _watched(self, part: Rows) -> Arrays:
        assert self.watched is not None
        weights = next(self.watched.model.parameters(), torch.zeros(()))
        with _evaluating(self.watched.model):
            logits, embeddings = self.watched(torch.as_tensor(part, dtype=weights.dtype, device=weights.device))
        if self.embeddings and embeddings is None:
            raise InputError("the logits are not the outputs of a linear layer", where="the teacher")
        found = {"logits": logits} | ({"embeddings": embeddings} if self.embeddings and embeddings is not None else {})
        head = self.watched.head() if self.embeddings else None
        last = {} if head is None else {"head_weight": head[0], "head_bias": head[1]}
        return {name: _array(values) for name, values in (found | last).items()}

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


def _digest(values: torch.Tensor) -> str:
    return files.digest(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def named(found: Any, embeddings: bool) -> Arrays:
    """Return the arrays by name of what a user's teacher gave, without embeddings that nobody asked for.

    Parameters
    ----------
    found
        Logits, a tuple of logits and embeddings, or a mapping of arrays.
    embeddings
        Whether they were asked for.

    Raises
    ------
    InputError
        The mapping holds something else.
    """
    if isinstance(found, tuple):
        found = dict(zip(("logits", "embeddings"), found, strict=False))
    given = dict(found) if isinstance(found, Mapping) else {"logits": found}
    unknown = sorted(set(given) - set(ARRAYS))
    if unknown:
        raise InputError(f"gives {unknown[0]!r}", where="the teacher", expected=", ".join(ARRAYS))
    wanted = ARRAYS if embeddings else ("logits",)
    return {name: _array(values) for name, values in given.items() if name in wanted and values is not None}


def _array(values: Any) -> np.ndarray:
    array = values.detach().float().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
