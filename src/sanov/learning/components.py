"""The terms of a distillation objective: pure losses, what they are divided by, and how strong their gradients are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sanov.learning.processes import every_process

__all__ = ["Component", "Rows", "gradient_norms", "label_loss", "teacher_loss", "weighted_sums"]


@dataclass(frozen=True)
class Rows:
    """What is known of a batch's rows.

    Parameters
    ----------
    teacher
        The teacher's logits.
    labels
        Index of the class, or -1.
    progress
        Share of the epochs that lie behind: 0 in the first, 1 in the last.
    extras
        The table's further arrays, for these rows.
    """

    teacher: Float[Tensor, "rows classes"]
    labels: Int64[Tensor, " rows"]
    progress: float = 0.0
    extras: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Component:
    """One term of the objective.

    Parameters
    ----------
    name
        By which it is logged.
    loss
        ``loss(student_logits, rows)``: its sum over the rows that count, never a mean.
    weight
        Its weight; a component of weight 0 is left out, bit for bit.
    counts
        The rows that it is divided by: all, or those with a label.
    whole_batch
        Where it is no sum over rows, so that a batch must not be split: with several processes, ``"own"`` where each
        computes it on its own rows, ``"gathered"`` where its loss gathers those of all and returns the value for all.
    balance
        If above 0, the weight is set at each step so that the norm of the component's gradient in the student's logits is
        this many times that of all components without balance.
    monitor
        Further numbers to log, on a fixed batch.
    """

    name: str
    loss: Callable[[Tensor, Rows], Tensor]
    weight: float = 1.0
    counts: Literal["rows", "labelled"] = "rows"
    whole_batch: Literal["own", "gathered"] | None = None
    balance: float = 0.0
    monitor: Callable[[Tensor, Rows], Mapping[str, float]] | None = None

    def count(self, labels: Tensor) -> int:
        """Return the number of rows that the sum is divided by."""
        return int((labels >= 0).sum()) if self.counts == "labelled" else len(labels)


def label_loss(weight: float = 1.0) -> Component:
    """Return the cross-entropy with the labels, over the rows that have one."""

    def loss(student_logits: Tensor, rows: Rows) -> Tensor:
        return nn.functional.cross_entropy(student_logits, rows.labels, ignore_index=-1, reduction="sum")

    return Component("label", loss, weight, counts="labelled")


def teacher_loss(weight: float = 1.0, temperature: float = 2.0, *, anneal: bool = False) -> Component:
    """Return H = -sum_c softmax(t / T)_c log softmax(s / T)_c: KL plus the teacher's entropy, without a factor T^2.

    Parameters
    ----------
    weight
        Of the component.
    temperature
        T.
    anneal
        Move T linearly to 1 over the epochs.

    Reference
    ---------
    hinton2015distilling; cui2024sinkd (without the factor, and `anneal`).
    """

    def loss(student_logits: Tensor, rows: Rows) -> Tensor:
        t = temperature + (1 - temperature) * rows.progress if anneal else temperature
        target = torch.softmax(rows.teacher / t, dim=-1)
        return -(target * torch.log_softmax(student_logits / t, dim=-1)).sum()

    return Component("teacher", loss, weight)


def weighted_sums(
    components: Sequence[Component], student_logits: Tensor, rows: Rows
) -> dict[str, tuple[Tensor, float]]:
    """Return each component's sum and weight, as the training loop wants them.

    A balanced component's weight follows from the gradients on this batch, those of all processes together.
    """
    sums = {component.name: component.loss(student_logits, rows) for component in components}
    weights = {component.name: component.weight for component in components}
    balanced = [component for component in components if component.balance > 0]
    if balanced and student_logits.requires_grad:
        means = _means(components, sums, rows.labels)
        others = [weights[c.name] * means[c.name] for c in components if c.balance == 0]
        size = _norm(sum(others[1:], others[0]), student_logits) if others else 1.0
        for component in balanced:
            own = _norm(means[component.name], student_logits)
            weights[component.name] = component.balance * size / own if own > 0 else 0.0
    return {name: (sums[name], weights[name]) for name in sums}


def gradient_norms(components: Sequence[Component], student_logits: Tensor, rows: Rows) -> dict[str, float]:
    """Return the norm of each component's weighted gradient in the student's logits, on one batch.

    The published advice for the weight of transport is to compare these, not the values of the losses. All processes must
    call it.
    """
    logits = student_logits.detach().requires_grad_()
    with torch.enable_grad():
        found = weighted_sums(components, logits, rows)
        means = _means(components, {name: total for name, (total, _) in found.items()}, rows.labels)
        return {f"gradient_{name}": found[name][1] * _norm(mean, logits) for name, mean in means.items()}


def _means(components: Sequence[Component], sums: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Return each sum over this process's rows, divided by what counts on all processes."""
    counts = every_process({component.name: component.count(labels) for component in components})
    return {name: total / max(sum(found[name] for found in counts), 1) for name, total in sums.items()}


def _norm(loss: Tensor, logits: Tensor) -> float:
    """Return the norm of the gradient in the logits of all processes."""
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True, materialize_grads=True)
    squares = float(gradient.double().square().sum())
    return math.sqrt(sum(every_process(squares)))
