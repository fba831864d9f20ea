"""What a run leaves behind: losses, gradient norms and evaluations, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

__all__ = ["History"]


@dataclass
class History:
    """Numbers of a run. They are sums over all processes, and so the same on each of them.

    Parameters
    ----------
    losses
        Per component, its mean at each step, before its weight; NaN where nothing counted for it.
    totals
        The objective at each step: the weighted sum of the components' means.
    grad_norms
        Norm of the objective's gradient at each step, before clipping.
    evaluations
        What `evaluate` returned, by the number of updates that lay behind it.
    reports
        What the batches of a step said of themselves (``metrics``), by the number of the step.
    finished
        Whether the run came to its end, and was not interrupted.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    totals: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    reports: dict[int, dict[str, float]] = field(default_factory=dict)
    finished: bool = False

    def __len__(self) -> int:
        """Return the number of updates."""
        return len(self.totals)

    @property
    def steps(self) -> list[int]:
        """Number of each update, from 1."""
        return list(range(1, len(self) + 1))

    def append(
        self, losses: Mapping[str, float], total: float, grad_norm: float, report: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Add a step, and return its numbers under the names of `to_frame`."""
        for name, value in losses.items():
            self.losses.setdefault(name, [math.nan] * len(self)).append(value)
        self.totals.append(total)
        self.grad_norms.append(grad_norm)
        if report:
            self.reports[len(self)] = {name: float(value) for name, value in report.items()}
        own = {"loss": total, **{f"loss_{name}": losses[name] for name in losses}, "grad_norm": grad_norm}
        return own | self.reports.get(len(self), {})

    def to_frame(self) -> pl.DataFrame:
        """One row a step: ``step``, ``loss``, ``loss_COMPONENT`` ..., ``grad_norm``, reports, and evaluations after it."""
        columns: dict[str, Any] = {"step": self.steps, "loss": self.totals}
        columns |= {f"loss_{name}": values for name, values in self.losses.items()}
        columns["grad_norm"] = self.grad_norms
        for numbers in (self.reports, self.evaluations):
            for name in dict.fromkeys(name for found in numbers.values() for name in found):
                columns[name] = [numbers.get(step, {}).get(name) for step in self.steps]
        return pl.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a tree."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> History:
        """Rebuild from a tree, also from one that was JSON: null is NaN, and steps are numbers again."""
        return cls(
            {name: [_number(value) for value in values] for name, values in tree["losses"].items()},
            [_number(value) for value in tree["totals"]],
            [_number(value) for value in tree["grad_norms"]],
            _by_step(tree["evaluations"]),
            _by_step(tree["reports"]),
            tree["finished"],
        )


def _by_step(tree: Mapping[str, Mapping[str, float | None]]) -> dict[int, dict[str, float]]:
    return {int(step): {name: _number(value) for name, value in found.items()} for step, found in tree.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
