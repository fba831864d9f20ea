"""A run while it goes on: a row of numbers every so many steps, in a table on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sanov.core.progress import is_quiet, quiet

__all__ = ["Live", "live"]

LINES = 20  # rows of a whole run
PATIENCE = 15.0  # seconds after which a row is shown though none is due
COLUMNS = {
    "step": ("step",),
    "loss": ("loss",),
    "reward": ("reward",),
    "length": ("completions/mean_length",),
    "KL": ("kd/k1",),
    "AUROC": ("self_reward/auroc",),
    "distilled": ("kd/mask_frac",),
    "filtered": ("swa/filtered_frac",),
    "entropy": ("entropy",),
    "right": ("groups/all_right",),
    "wrong": ("groups/all_wrong",),
    "mixed": ("groups/mixed",),
    "validation": ("validation_reward",),
    "tokens/s": ("tokens_per_second",),
}  # name of a column: what of a step's numbers it shows
ALWAYS, REWARDED = {"step", "tokens/s"}, {"reward", "length", "entropy", "right", "wrong", "mixed"}
SHARES = {"distilled", "filtered", "right", "wrong", "mixed"}


class Live:
    """What is called after every update; it shows some of them.

    Parameters
    ----------
    steps
        Of the whole run.
    columns
        Which of `COLUMNS`, in their order.
    show
        Takes the cells of a row.
    """

    def __init__(self, steps: int, columns: list[str], show: Callable[[list[str]], None]):
        self.steps, self.columns, self.show = steps, columns, show
        self.every = max(steps // LINES, 1)
        self.last = self.shown = time.monotonic()
        self.tokens = 0.0

    def __call__(self, done: int, metrics: Mapping[str, float]) -> None:
        """Take in the numbers of an update."""
        now = time.monotonic()
        self.tokens += metrics.get("num_tokens", 0.0)
        if done % self.every and done != self.steps and now - self.shown < PATIENCE:
            return
        numbers = {**metrics, "tokens_per_second": self.tokens / max(now - self.last, 1e-9)}
        self.last, self.shown, self.tokens = now, now, 0.0
        self.show([self._cell(name, done, numbers) for name in self.columns])

    def _cell(self, name: str, done: int, numbers: Mapping[str, float]) -> str:
        if name == "step":
            return f"{done}/{self.steps}"
        found = next((numbers[key] for key in COLUMNS[name] if key in numbers), None)
        if found is None or found != found:
            return ""
        if name in SHARES:
            return f"{found:.0%}"
        return f"{found:,.0f}" if name == "tokens/s" else f"{found:.3g}"


@contextmanager
def live(
    steps: int, extra: set[str], *, here: bool = True
) -> Iterator[list[Callable[[int, Mapping[str, float]], Any]]]:
    """Yield callbacks that show a run on standard error; none where progress is quiet.

    Parameters
    ----------
    steps
        Of the run.
    extra
        Columns beside those that every run has.
    here
        Whether this process shows anything.
    """
    if is_quiet() or not here:
        yield []
        return
    columns = [name for name in COLUMNS if name in ALWAYS | extra]
    with quiet():  # a bar and a table would write over each other
        if sys.stderr.isatty():
            with _table(columns) as show:
                yield [Live(steps, columns, show)]
        else:
            yield [Live(steps, columns, _printer(columns))]


def _printer(columns: list[str]) -> Callable[[list[str]], None]:
    """Return what prints rows under one line of names."""
    widths = [max(len(name), 7) for name in columns]
    head = [columns]

    def show(cells: list[str]) -> None:
        for row in [*head, cells]:
            text = "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
            print(text.rstrip(), file=sys.stderr, flush=True)
        head.clear()

    return show


@contextmanager
def _table(columns: list[str]) -> Iterator[Callable[[list[str]], None]]:
    from rich import box
    from rich.console import Console
    from rich.live import Live as Refreshed
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    with Refreshed(table, console=Console(file=sys.stderr), auto_refresh=False, vertical_overflow="visible") as shown:

        def show(cells: list[str]) -> None:
            table.add_row(*cells)
            shown.refresh()

        yield show
