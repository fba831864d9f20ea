"""Students of distillation: small classifiers of features or of texts, how they are built, saved and asked."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from sanov import __version__
from sanov.core import files
from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.data.distillation import DistilTable
from sanov.learning.readout import Readout
from sanov.nets.encoder import HashedNgrams, hash_ngrams, mlp

__all__ = ["Encoded", "Encoder", "Fitted", "Student", "build", "clear", "is_finished", "outputs"]

WEIGHTS, CONFIG, HISTORY = "model.safetensors", "config.json", "history.csv"
FARTHEST = (
    10.0  # standard deviations to which a feature is cut: one that hardly varies in training may be far out later
)
WIDTH, HEIGHT = 100, 24  # one screen
ROWS = 4096  # rows of one forward pass without gradient


class Student(Options):
    """The network that learns: a multilayer perceptron, on features or on hashed word n-grams of a text."""

    width: int = option(128, "Units of a hidden layer.", source="choice", ge=1)
    depth: int = option(1, "Number of hidden layers; 0 gives a linear model.", source="choice", ge=0)
    buckets: int = option(65_536, "Texts: number of embeddings onto which n-grams are hashed.", source="choice", ge=2)
    embedding: int = option(64, "Texts: size of an embedding.", source="choice", ge=1)
    ngrams: int = option(2, "Texts: longest n-gram of words.", source="choice: words and pairs", ge=1, le=5)


class Encoded:
    """Inputs as tensors, from which any rows can be taken as the arguments of a student.

    Parameters
    ----------
    values
        Standardised features [rows, features], or the buckets of all texts one after the other.
    starts
        For texts, where each begins, with the end as last entry.
    """

    def __init__(self, values: Tensor, starts: np.ndarray | None = None):
        self.values, self.starts = values, starts

    @property
    def names(self) -> tuple[str, ...]:
        """Names of a student's arguments, in their order."""
        return ("features",) if self.starts is None else ("ids", "offsets")

    def rows(self, index: np.ndarray) -> dict[str, Tensor]:
        """Return a student's arguments for some rows, by name."""
        if self.starts is None:
            return {"features": self.values[torch.as_tensor(index)]}
        lengths = self.starts[index + 1] - self.starts[index]
        offsets = np.cumsum(lengths) - lengths
        place = np.repeat(self.starts[index] - offsets, lengths) + np.arange(lengths.sum())
        return {"ids": self.values[torch.as_tensor(place)], "offsets": torch.as_tensor(offsets)}


@dataclass(frozen=True, eq=False)
class Encoder:
    """How a table's inputs become tensors: features by the mean and scale of the training rows, texts by a hash.

    Parameters
    ----------
    features
        Names of the columns; ``("text",)`` for texts.
    mean, scale
        Of each feature; None for texts.
    buckets, ngrams
        Of the hash of texts.
    """

    features: tuple[str, ...]
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    buckets: int = 0
    ngrams: int = 0

    @classmethod
    def of(cls, table: DistilTable, student: Student) -> Encoder:
        """Return the encoder for tables like this one, whose rows are those of training."""
        if isinstance(table.inputs, tuple):
            return cls(table.features or ("text",), buckets=student.buckets, ngrams=student.ngrams)
        scale = table.inputs.std(axis=0)
        names = table.features or tuple(f"x{j + 1}" for j in range(table.inputs.shape[1]))
        return cls(names, table.inputs.mean(axis=0), np.where(scale > 0, scale, 1.0))

    @property
    def is_text(self) -> bool:
        """Whether the inputs are texts."""
        return self.mean is None

    def encode(self, table: DistilTable) -> Encoded:
        """Return a table's inputs as tensors.

        Raises
        ------
        InputError
            The table has other inputs than those of training: texts for features, or other columns.
        """
        if isinstance(table.inputs, tuple):
            if not self.is_text:
                raise self._others(table, "texts")
            ids, starts = hash_ngrams(table.inputs, self.buckets, self.ngrams)
            return Encoded(torch.from_numpy(ids), starts)
        if self.mean is None or self.scale is None:
            raise self._others(table, f"{table.inputs.shape[1]} features")
        inputs = table.inputs
        if table.features and table.features != self.features:
            if set(self.features) - set(table.features):
                raise self._others(table, f"the features {_list(table.features)}")
            inputs = inputs[:, [table.features.index(name) for name in self.features]]
        if inputs.shape[1] != len(self.mean):
            raise self._others(table, f"{inputs.shape[1]} features")
        return Encoded(torch.from_numpy(((inputs - self.mean) / self.scale).clip(-FARTHEST, FARTHEST)).float())

    def _others(self, table: DistilTable, found: str) -> InputError:
        expected = "texts" if self.is_text else f"{len(self.features)} features ({_list(self.features)})"
        return InputError(f"the inputs are {found}", where=table.name, expected=f"{expected}, as in training")


def build(encoder: Encoder, student: Student, outputs: int, *, seed: int) -> nn.Module:
    """Return an untrained student; the same seed gives the same weights, and touches no other random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed accelerators
        if encoder.mean is None:
            return HashedNgrams(outputs, student.buckets, student.embedding, student.width, student.depth)
        return mlp(len(encoder.mean), outputs, student.width, student.depth)


@torch.no_grad()
def outputs(model: nn.Module, inputs: Encoded, rows: int) -> Tensor:
    """Return a student's outputs [rows, outputs], without gradient and in evaluation mode."""
    mode = model.training
    model.eval()
    device = next(model.parameters()).device
    found = []
    for start in range(0, rows, ROWS):
        arguments = inputs.rows(np.arange(start, min(start + ROWS, rows)))
        found.append(model(*(values.to(device) for values in arguments.values())).cpu())
    model.train(mode)
    return torch.cat(found)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained student with all that is needed to ask it.

    Parameters
    ----------
    system
        Name of the system that trained it.
    model
        The network.
    student
        Its shape.
    encoder
        How inputs become its arguments.
    classes
        Names of the classes.
    readout
        What its outputs mean.
    config
        Options of the system.
    results
        What is known of the training: rows, chosen step, scores on validation data, notes.
    history
        One row a step: losses, gradient norms, evaluations.
    """

    system: str
    model: nn.Module
    student: Student
    encoder: Encoder
    classes: tuple[str, ...]
    readout: Readout
    config: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    history: pl.DataFrame = field(default_factory=pl.DataFrame)

    @property
    def subclasses(self) -> int:
        """Number of subclasses of each class; 1 for none."""
        return self.readout.subclasses

    def logits(self, table: DistilTable) -> Float64[np.ndarray, "rows classes"]:
        """Return the student's logits of the classes.

        Raises
        ------
        InputError
            The table has other inputs than those of training.
        """
        return self.readout.class_logits(self._outputs(table)).numpy()

    def subclass_log_probs(self, table: DistilTable) -> Float64[np.ndarray, "rows classes subclasses"]:
        """Return the log-probabilities of all subclasses, at the student's temperature in training.

        They sum to 1 over classes and subclasses.

        Raises
        ------
        InputError
            The table has other inputs than those of training.
        """
        logits = self.readout.subclass_logits(self._outputs(table)) / self.readout.student_temperature
        return torch.log_softmax(logits.flatten(1), dim=-1).view_as(logits).numpy()

    def _outputs(self, table: DistilTable) -> Tensor:
        return outputs(self.model, self.encoder.encode(table), len(table)).double()

    def to_dict(self) -> dict[str, Any]:
        """Everything but weights and history, as what JSON can hold."""
        tree: dict[str, Any] = files.plain({
            "sanov": __version__,
            "system": self.system,
            "classes": self.classes,
            "features": self.encoder.features,
            "mean": self.encoder.mean,
            "scale": self.encoder.scale,
            "student": self.student,
            "readout": asdict(self.readout),
            "config": self.config,
            "results": self.results,
        })  # fmt: skip
        return tree

    def summary(self) -> str:
        """Return what was trained, on what, and how well it does on validation data, on one screen."""
        lines = [f"{self.system}: a student of {self._size()}"]
        scalars = {
            name.replace("_", " "): value for name, value in self.results.items() if isinstance(value, int | float)
        }
        width = max(map(len, scalars), default=0)
        for name, value in scalars.items():
            lines.append(f"{name:<{width}}  {f'{value:.4g}' if isinstance(value, float) else f'{value:,}'}")
        notes = [textwrap.wrap(f"- {note}", WIDTH, subsequent_indent="  ") for note in self.results.get("notes", ())]
        return "\n".join([*lines[: HEIGHT - sum(map(len, notes))], *(line for note in notes for line in note)])

    def __repr__(self) -> str:
        return f"<student of {self.system}: {self._size()}>"

    def _size(self) -> str:
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        inputs = "texts" if self.encoder.is_text else f"{len(self.encoder.features)} features"
        divided = f", {self.subclasses} subclasses each" if self.subclasses > 1 else ""
        return f"{weights:,} weights on {inputs}, {len(self.classes)} classes{divided}"

    def save(self, folder: str | Path) -> None:
        """Write weights, configuration and history into a folder; the configuration last, as the seal of the whole.

        Raises
        ------
        InputError
            The place cannot be written.
        """
        folder = Path(folder)
        (folder / CONFIG).unlink(missing_ok=True)
        state = {name: values.detach().cpu().contiguous() for name, values in self.model.state_dict().items()}
        weights = save_tensors(state)
        files.write_bytes(folder / WEIGHTS, weights)
        buffer = io.BytesIO()
        self.history.write_csv(buffer)
        files.write_bytes(folder / HISTORY, buffer.getvalue())
        files.write_json(folder / CONFIG, {**self.to_dict(), "weights": files.digest(weights)})

    @classmethod
    def load(cls, folder: str | Path) -> Fitted:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            The folder is missing, unfinished or damaged.
        """
        folder = Path(folder)
        tree = _read_config(folder)
        try:
            student = Student.model_validate(tree["student"])
            mean, scale = (None if tree[key] is None else np.array(tree[key]) for key in ("mean", "scale"))
            encoder = Encoder(tuple(tree["features"]), mean, scale, student.buckets, student.ngrams)
            classes = tuple(tree["classes"])
            readout = Readout(**tree["readout"])
            if readout.classes != len(classes):
                raise ValueError(f"names of {len(classes)} classes for {readout.classes}")
            model = build(encoder, student, readout.outputs, seed=0)
            model.load_state_dict(load_tensors(_read_weights(folder, tree["weights"])))
        except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"is damaged ({error})", where=str(folder), fix="fit again") from None
        history = pl.read_csv(folder / HISTORY) if (folder / HISTORY).is_file() else pl.DataFrame()
        about = {"config": tree["config"], "results": tree["results"], "history": history}
        return cls(tree["system"], model.eval(), student, encoder, classes, readout, **about)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished student."""
    return (folder / CONFIG).is_file()


def clear(folder: Path) -> None:
    """Remove a finished student from a folder, the seal first."""
    for name in (CONFIG, WEIGHTS, HISTORY):
        (folder / name).unlink(missing_ok=True)


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "there is no such folder"
        raise InputError(found, where=str(folder), expected="a folder that `sanov fit` wrote")
    if not is_finished(folder):
        fix = "a fit that was stopped goes on with --resume"
        raise InputError("holds no finished student (no config.json)", where=str(folder), fix=fix)
    tree: dict[str, Any] = files.read_json(folder / CONFIG)
    return tree


def _read_weights(folder: Path, expected: str) -> bytes:
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"there is no {WEIGHTS}", where=str(folder), fix="fit again")
    weights = path.read_bytes()
    if files.digest(weights) != expected:
        raise InputError("the weights are not those that config.json describes", where=str(path), fix="fit again")
    return weights


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
