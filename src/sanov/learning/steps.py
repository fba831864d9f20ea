"""One step: counts first, then gradients, then one update. Divided by its counts, a split batch is the whole one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sanov.core.errors import InputError
from sanov.learning.parallel import Prepared
from sanov.learning.processes import every_process

__all__ = ["Batch", "Loss", "Objective", "Whole"]

Batch = Mapping[str, Any]
Weight = float | int | Callable[[int], float]
Sums = Mapping[str, tuple[Tensor, Weight]]
Loss = Callable[[nn.Module, Batch], Sums]
Whole = Literal["own", "gathered"]


@dataclass
class Objective:
    """What is minimised, and how a step of it is taken.

    Parameters
    ----------
    loss
        Named sums over the rows of a micro-batch, with their weights.
    whole_batch
        The components that are no sums over rows, and how each sees the rows of several processes.
    names
        The components, once they are known.
    """

    loss: Loss
    whole_batch: Mapping[str, Whole] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def update(
        self, setup: Prepared, micro: Sequence[Batch], step: int, clip_norm: float | None
    ) -> tuple[dict[str, float], float, float]:
        """Update the weights once.

        Returns
        -------
        The components' means, the objective, and the norm of its gradient; NaN, 0 and 0 for a step that counts nothing.

        Raises
        ------
        InputError
            Processes differ in micro-batches or components, a whole batch is split, or a number is not finite; the
            weights are then as they were.
        """
        counts = self._counted(micro, step)
        if all(map(math.isinf, counts.values())):  # nothing to learn: momentum and decay would move the weights
            return dict.fromkeys(self.names, math.nan), 0.0, 0.0
        setup.optimizer.zero_grad()  # what a caller, or a step that was refused, left
        values, weights = [], []
        for number, batch in enumerate(micro, start=1):
            with setup.adding(last=number == len(micro)):
                sums, own = self._sums(setup, batch, step)
                # DDP and FSDP take the mean of the processes' gradients
                scale = [weight * setup.processes / counts[name] for name, weight in zip(self.names, own, strict=True)]
                terms = [value * factor for value, factor in zip(sums, scale, strict=True)]
                setup.accelerator.backward(sum(terms[1:], terms[0]))
            values.append(torch.stack([value.detach() for value in sums]))
            weights.append(own)
        norm = setup.clip(clip_norm)
        means, weighted = self._means(torch.stack(values).tolist(), weights, counts)
        _refuse_infinite(means, weighted, None if setup.accelerator.scaler else norm, step)
        setup.step()
        setup.optimizer.zero_grad()
        seen = {name: mean if math.isfinite(counts[name]) else math.nan for name, mean in means.items()}
        return seen, sum(weighted.values()), norm

    def _counted(self, micro: Sequence[Batch], step: int) -> dict[str, float]:
        """Return the counts over micro-batches and processes; what is refused is refused by every process.

        A component that counts nothing is divided by infinity, and so adds nothing.
        """
        own: dict[str, float] = {}
        for batch in micro:
            for name, count in batch["counts"].items():
                own[name] = own.get(name, 0.0) + float(count)
        lengths, counts = zip(*every_process((len(micro), own)), strict=True)
        where = f"step {step + 1}"
        if min(lengths) != max(lengths) or max(lengths) == 0:
            numbers = ", ".join(map(str, lengths))
            fix = "divide the rows by `micro_batches`, which gives every process equally many"
            raise InputError(f"the processes have {numbers} micro-batches", where=where, fix=fix)
        self.names = self.names or tuple(counts[0])
        for found in counts:
            if set(found) != set(self.names):
                expected = f"{_list(self.names)}, as in all steps and processes"
                raise InputError(f"the components are {_list(found)}", where=where, expected=expected)
        for name in self.whole_batch:
            if name not in self.names:
                raise InputError(f"{name!r} is no component", where="whole_batch", expected=_list(self.names))
            if lengths[0] > 1:
                fix = "take the batch at once (micro_batch=0) or make it smaller"
                raise InputError(f"{name!r} is no sum over rows, and the batch is split", where=where, fix=fix)
        return {name: sum(found[name] for found in counts) or math.inf for name in self.names}

    def _sums(self, setup: Prepared, batch: Batch, step: int) -> tuple[list[Tensor], list[float]]:
        """Return the sums and their weights in the order of the names."""
        found = self.loss(setup.model, setup.moved(batch))
        if set(found) != set(self.names):
            expected = f"what is counted: {_list(self.names)}"
            raise InputError(f"the loss has {_list(found)}", where=f"step {step + 1}", expected=expected)
        for name, (value, _) in found.items():
            if value.ndim > 0:
                shape = f"{name!r} is a tensor of shape {tuple(value.shape)}"
                raise InputError(shape, where="the loss", expected="a sum over rows: one number")
        weights = [found[name][1] for name in self.names]
        return (
            [found[name][0] for name in self.names],
            [float(weight(step) if callable(weight) else weight) for weight in weights],
        )

    def _means(
        self, values: list[list[float]], weights: list[list[float]], counts: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Return each component's mean over all micro-batches and processes, and the same with its weights."""
        pairs = every_process((values, weights))
        means, weighted = {}, {}
        for place, name in enumerate(self.names):
            share = len(pairs) if self.whole_batch.get(name) == "gathered" else 1  # each has the value for all rows
            rows = [(v[place], w[place]) for own, by in pairs for v, w in zip(own, by, strict=True)]
            means[name] = sum(value for value, _ in rows) / share / counts[name]
            weighted[name] = sum(value * weight for value, weight in rows) / share / counts[name]
        return means, weighted


def _refuse_infinite(means: Mapping[str, float], weighted: Mapping[str, float], norm: float | None, step: int) -> None:
    problems = [
        f"the loss of {name!r} is {mean}, with its weight {weighted[name]}"
        for name, mean in means.items()
        if not (math.isfinite(mean) and math.isfinite(weighted[name]))
    ]
    if norm is not None and not math.isfinite(norm):
        problems.append(f"the norm of the gradient is {norm}")
    if problems:
        fix = "lower the learning rate, clip the gradient (clip_norm), or look for extreme inputs"
        raise InputError(problems[0], where=f"step {step + 1}", expected="a finite number", fix=fix)


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
