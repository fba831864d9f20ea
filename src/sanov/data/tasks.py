"""Generated tasks by their names, and the prompts that ``embedded:NAME`` or ``reasoning_gym:NAME`` stands for.

``embedded:chain_sum`` are prompts to train on, ``embedded:chain_sum-new`` are others to test on: no prompt is in both.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sanov.core.errors import InputError
from sanov.data.arithmetic_tasks import ChainSum, Countdown, Drawn, Modular
from sanov.data.drawn_rows import Task
from sanov.data.gym import GymTask
from sanov.data.verifiers import Verifier

__all__ = [
    "TASKS",
    "ChainSum",
    "Countdown",
    "GymTask",
    "Modular",
    "Task",
    "is_known",
    "is_named",
    "named",
    "resolve",
    "verifier_of",
]

TASKS: dict[str, type[Drawn]] = {"chain_sum": ChainSum, "modular": Modular, "countdown": Countdown}
EMBEDDED, GYM, NEW = "embedded:", "reasoning_gym:", "-new"
ROWS, NEW_ROWS = 2000, 500


def named(name: str, **sizes: Any) -> Task:
    """Return a task by its name, with sizes other than its own.

    Parameters
    ----------
    name
        ``chain_sum``, ``modular``, ``countdown``, or ``reasoning_gym:NAME`` for one of that package.
    sizes
        The task's own; a list may stand for a pair.

    Raises
    ------
    InputError
        No such task, a size that it does not have, or one out of range.
    MissingExtra
        The task is reasoning-gym's, which is not installed.
    """
    if name.startswith(GYM):
        return GymTask.of(name.removeprefix(GYM), sizes)
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}", expected=" or ".join([*TASKS, f"{GYM}NAME"]))
    try:
        return TASKS[name](**{key: tuple(size) if isinstance(size, list) else size for key, size in sizes.items()})
    except TypeError:
        known = ", ".join(field.name for field in fields(TASKS[name]))
        given = ", ".join(f"{key}={size!r}" for key, size in sizes.items())
        raise InputError(
            f"the sizes are {given}", where=name, expected=f"numbers or pairs of them for {known}"
        ) from None


def is_known(name: Any) -> bool:
    """Whether a task has this name."""
    return isinstance(name, str) and (name in TASKS or name.startswith(GYM))


def verifier_of(name: Any) -> Verifier:
    """Return who checks the answers to a task.

    Raises
    ------
    InputError
        No such task.
    """
    if not is_known(name):
        raise InputError(f"there is no task {name!r}", where="column 'task'", expected=" or ".join(TASKS))
    return GymTask.verifier if name.startswith(GYM) else named(name).verifier


def is_named(source: Any) -> bool:
    """Whether a source of prompts is the name of a task, and not a path or a table."""
    return isinstance(source, str) and source.startswith((EMBEDDED, GYM))


def resolve(source: Any) -> Any:
    """Return the prompts that ``embedded:NAME`` or ``reasoning_gym:NAME`` stands for, and any other source as it is.

    Raises
    ------
    InputError
        There is no such task.
    MissingExtra
        The task is reasoning-gym's, which is not installed.
    """
    if not is_named(source):
        return source
    task = named(source.removeprefix(EMBEDDED).removesuffix(NEW))
    return task.rows(NEW_ROWS, 0, "test") if source.endswith(NEW) else task.rows(ROWS, 0, "train")
