"""Which evaluation's weights are kept: the best on rows that were held out of training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from sanov.core import files
from sanov.data.distillation import DistilTable
from sanov.learning.checkpoints import full_weights
from sanov.learning.processes import every_process
from sanov.learning.readout import Readout
from sanov.learning.students import Encoder, outputs

__all__ = ["Best", "Judge", "scores"]

BEST = "best.safetensors"
HEADER = 8  # bytes that hold the length of a safetensors header


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: the higher rank wins, and the earlier step where ranks are equal."""

    rank: tuple[float, float]
    step: int


def scores(logits: Tensor, table: DistilTable) -> dict[str, float]:
    """Score a student's logits on a table.

    Returns
    -------
    With labels ``validation_accuracy`` and ``validation_log_loss``; with a teacher ``validation_agreement``, the share of
    rows of which both name one class, and ``validation_cross_entropy``, at temperature 1. In nats.
    """
    log_p = torch.log_softmax(logits.double(), dim=-1)
    found: dict[str, float] = {}
    if table.labels is not None and table.n_labelled:
        labels = torch.from_numpy(table.labels)
        rows = labels >= 0
        found["validation_accuracy"] = float((log_p[rows].argmax(dim=-1) == labels[rows]).double().mean())
        found["validation_log_loss"] = float(-log_p[rows].gather(1, labels[rows, None]).mean())
    if table.logits is not None:
        teacher = torch.from_numpy(table.logits)
        found["validation_agreement"] = float((log_p.argmax(dim=-1) == teacher.argmax(dim=-1)).double().mean())
        found["validation_cross_entropy"] = float(-(torch.softmax(teacher, dim=-1) * log_p).sum(dim=-1).mean())
    return found


def rank(found: Mapping[str, float]) -> tuple[float, float]:
    """Return what orders evaluations: accuracy (without labels agreement), then the smaller loss."""
    if "validation_accuracy" in found:
        return found["validation_accuracy"], -found["validation_log_loss"]
    return found["validation_agreement"], -found["validation_cross_entropy"]


class Judge:
    """Evaluates a student as the training loop asks for it, and keeps the weights of the best evaluation.

    The weights are kept in a file where there is a folder, so that a run that was killed finds them again: evaluations
    that it repeats are no better than themselves.

    Parameters
    ----------
    held_out
        Rows that were not trained on; None for none.
    encoder
        Of the student.
    monitor
        Further numbers to log about a model; None for none.
    readout
        What the student's outputs mean.
    select
        Whether to keep the best weights.
    folder
        Where to keep them; None keeps them in memory.
    resume
        Whether weights that an earlier run kept there count.
    main
        Whether this process writes.
    """

    def __init__(
        self,
        held_out: DistilTable | None,
        encoder: Encoder,
        monitor: Callable[[nn.Module], Mapping[str, float]] | None,
        *,
        readout: Readout,
        select: bool,
        folder: Path | None = None,
        resume: bool = False,
        main: bool = True,
    ):
        self.held_out, self.monitor, self.select, self.main = held_out, monitor, select and held_out is not None, main
        self.readout = readout
        self.inputs = None if held_out is None else encoder.encode(held_out)
        self.path = None if folder is None else folder / BEST
        self.weights: dict[str, Tensor] = {}
        self.best: Best | None = self._found() if resume and self.select else None

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """Evaluate, and keep the weights if they are the best so far."""
        found = {} if self.monitor is None else dict(self.monitor(model))
        if self.held_out is not None and self.inputs is not None:
            given = outputs(model, self.inputs, len(self.held_out))
            found |= scores(self.readout.class_logits(given), self.held_out)
            best = every_process(Best(rank(found), step))[0]  # one judgement, so that all processes take the same way
            if self.select and (self.best is None or best.rank > self.best.rank):
                self._keep(model, best)
        return found

    @property
    def looks(self) -> bool:
        """Whether there is anything to evaluate."""
        return self.held_out is not None or self.monitor is not None

    def chosen(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the weights to keep: the best, or those that the model has. All processes must call it."""
        if self.best is None:
            return full_weights(model)
        return self.weights or load_tensors(self._content())

    def _keep(self, model: nn.Module, best: Best) -> None:
        self.best = best
        weights = full_weights(model, here=self.path is None or self.main)
        if self.path is None:
            self.weights = weights
        elif self.main:
            told = {"best": json.dumps([*best.rank, best.step])}
            files.write_bytes(self.path, save_tensors(weights, metadata=told))

    def _found(self) -> Best | None:
        if self.path is None or not self.path.is_file():
            return None
        content = self._content()
        header = json.loads(content[HEADER : HEADER + int.from_bytes(content[:HEADER], "little")])
        accuracy, loss, step = json.loads(header["__metadata__"]["best"])
        return Best((accuracy, loss), step)

    def _content(self) -> bytes:
        return b"" if self.path is None else self.path.read_bytes()
