"""Progress on anything that lasts longer than two seconds: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["is_quiet", "quiet", "track"]

Item = TypeVar("Item")
_QUIET: ContextVar[bool] = ContextVar("sanov_quiet", default=False)
PATIENCE = 2.0  # seconds before anything is shown
LINE_EVERY = 15.0  # seconds between plain lines


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Show no progress inside this block (where `on`)."""
    token = _QUIET.set(on or _QUIET.get())
    try:
        yield
    finally:
        _QUIET.reset(token)


def is_quiet() -> bool:
    """Whether no progress is to be shown."""
    return _QUIET.get()


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, showing on standard error how far one is.

    Parameters
    ----------
    items
        What is iterated.
    what
        Two or three words that name the work.
    total
        How many items there are, where ``len(items)`` does not say.
    """
    if _QUIET.get():
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    yield from _bar(items, what, total) if sys.stderr.isatty() else _lines(items, what, total)


def _bar(items: Iterable[Item], what: str, total: int | None) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    start, bar, task = time.monotonic(), None, None
    try:
        for done, item in enumerate(items):
            if bar is None and time.monotonic() - start > PATIENCE:
                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
                bar = Progress(*columns, console=Console(stderr=True), transient=True)
                bar.start()
                task = bar.add_task(what, total=total)
            if bar is not None and task is not None:
                bar.update(task, completed=done)
            yield item
    finally:
        if bar is not None:
            bar.stop()


def _lines(items: Iterable[Item], what: str, total: int | None) -> Iterator[Item]:
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - start > PATIENCE and now - last > LINE_EVERY:
            last = now
            of = f" of {total}" if total else ""
            print(f"{what}: {done}{of}, {now - start:.0f} s", file=sys.stderr, flush=True)
        yield item
