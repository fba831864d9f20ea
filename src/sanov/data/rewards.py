"""Reward functions: built-in ones and the user's own, called as TRL calls them, and everything they return checked.

A reward function is ``fn(prompts, completions, completion_ids, **columns, trainer_state, log_extra, log_metric)`` and returns
one number a row, or None where it does not apply. It may be asynchronous, and is handed only what it takes.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import warnings
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Float64

from sanov.core.errors import InputError, SanovError, SanovWarning
from sanov.core.user_code import load_function, place_of
from sanov.data.gym import GymVerifier
from sanov.data.math_answers import Math
from sanov.data.prompt_rows import PASSED, Prompts
from sanov.data.tasks import verifier_of
from sanov.data.verifiers import Countdown, Exact, Number, Verifier

__all__ = ["BUILT_IN", "RewardFunction", "Rewards", "load"]

RewardFunction = Callable[..., Any]
VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


class ByTask(Verifier):
    """What the task of each row says; its name is in the column ``task``, and a table may have rows of several."""

    name = "task"
    columns = ("task",)

    def answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        """Return the answer as the row's task reads it."""
        return verifier_of(row["task"]).answer(completion, row)

    def is_right(self, completion: str, row: Mapping[str, Any]) -> bool:
        """Whether the task of this row takes the completion for right."""
        return verifier_of(row["task"]).is_right(completion, row)

    def gold(self, row: Mapping[str, Any]) -> str | None:
        """Return the gold answer of the row's task."""
        return verifier_of(row["task"]).gold(row)

    def validate(self, prompts: Prompts) -> None:
        """Refuse a table without the columns of one of its tasks, or whose gold answers do not pass."""
        for task in dict.fromkeys(prompts.columns["task"]):
            for column in verifier_of(task).lacking(prompts.columns):
                raise _lacks(f"task {task!r}", column, prompts)
        super().validate(prompts)


BUILT_IN: dict[str, Verifier] = {
    built.name: built for built in (Exact(), Countdown(), Number(), Math(), GymVerifier(), ByTask())
}


def load(reference: str) -> RewardFunction:
    """Return the reward function of a name: a built-in one, or ``module:function``.

    Raises
    ------
    InputError
        There is no such function.
    """
    if reference in BUILT_IN:
        return BUILT_IN[reference]
    if ":" not in reference:
        expected = f"{', '.join(BUILT_IN)}, or module:function"
        raise InputError(f"there is no reward {reference!r}", expected=expected)
    return load_function(reference)


@dataclass(frozen=True)
class Rewards:
    """Several reward functions and the weight of each.

    Parameters
    ----------
    functions
        Reward functions.
    weights
        One a function; None: 1 each.

    Raises
    ------
    InputError
        No function, or weights of another number or not finite.
    """

    functions: tuple[RewardFunction, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.functions:
            raise InputError("there is no reward function", expected="at least one")
        if self.weights is not None and len(self.weights) != len(self.functions):
            found = f"there are {len(self.weights)} weights for {len(self.functions)} functions"
            raise InputError(found, where="the weights of rewards", expected="one for each function")
        if not all(math.isfinite(weight) for weight in self.weights or ()):
            raise InputError(f"they are {self.weights}", where="the weights of rewards", expected="finite numbers")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions; one that comes again has its number behind it."""
        plain = [getattr(function, "__name__", type(function).__name__) for function in self.functions]
        return tuple(
            name if plain.count(name) == 1 else f"{name}_{plain[: place + 1].count(name)}"
            for place, name in enumerate(plain)
        )

    def check(self, prompts: Prompts) -> None:
        """Refuse a table that lacks a column which a function needs, or whose gold answers fail a built-in verifier.

        Raises
        ------
        InputError
            With function, column and the columns that there are; or row, gold answer and what was read of it.
        """
        for name, function in zip(self.names, self.functions, strict=True):
            for column in _lacking(function, prompts.columns):
                raise _lacks(f"reward function '{name}'", column, prompts)
            if isinstance(function, Verifier):
                function.validate(prompts)

    def score(
        self,
        rows: Prompts,
        completions: Sequence[str],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        step: int | None = None,
        trainer_state: Any = None,
        log_extra: Callable[..., None] | None = None,
        log_metric: Callable[..., None] | None = None,
    ) -> Float64[np.ndarray, "rows functions"]:
        """Return what each function gives each completion; NaN where it does not apply.

        Parameters
        ----------
        rows
            The prompt and the columns of each completion: `Prompts.take`, with each index as often as it has completions.
        completions
            Text. Where prompts are chats, functions get each as ``[{"role": "assistant", "content": text}]``.
        completion_ids
            Token ids of each completion.
        step
            Number of the step, for messages.
        trainer_state, log_extra, log_metric
            Passed on to the functions. None: a state that knows its ``global_step`` alone, and logs that nobody keeps.

        Raises
        ------
        InputError
            A function that raises, or returns another number of rewards, or one that is no finite number.
        """
        if len(completions) != len(rows):
            raise InputError(f"there are {len(completions)} completions", expected=f"{len(rows)}, one a row")
        told = [[{"role": "assistant", "content": text}] for text in completions] if rows.chat else list(completions)
        given: dict[str, Any] = {
            "prompts": list(rows.prompts),
            "completions": told,
            "completion_ids": [[] for _ in completions] if completion_ids is None else list(map(list, completion_ids)),
            **{name: list(cells) for name, cells in rows.columns.items()},
            "trainer_state": SimpleNamespace(global_step=step) if trainer_state is None else trainer_state,
            "log_extra": log_extra or _ignore,
            "log_metric": log_metric or _ignore,
        }
        scores = np.empty((len(rows), len(self.functions)))
        for place, returned in enumerate(self._call(given)):
            scores[:, place] = _checked(returned, len(rows), self.names[place])
        if np.isnan(scores).all() and step is None:  # of a step the training tells, which may need none
            text = f"no reward function ({', '.join(self.names)}) applied to any of {len(rows)} completions"
            warnings.warn(text, SanovWarning, stacklevel=2)
        return scores

    def total(self, scores: Float64[np.ndarray, "rows functions"]) -> Float64[np.ndarray, " rows"]:
        """Return the weighted sum of a row's rewards, over the functions that apply; NaN where none does."""
        weights = np.ones(len(self.functions)) if self.weights is None else np.array(self.weights)
        summed: Float64[np.ndarray, " rows"] = np.nansum(scores * weights, axis=1)
        summed[np.isnan(scores).all(axis=1)] = np.nan
        return summed

    def _call(self, given: Mapping[str, Any]) -> list[Any]:
        """Call every function; what is awaited is awaited together."""
        returned = []
        for name, function in zip(self.names, self.functions, strict=True):
            try:
                returned.append(function(**_taken(function, given)))
            except Exception as error:
                for coroutine in filter(inspect.iscoroutine, returned):
                    coroutine.close()  # nobody will await it
                raise _told(name, function, error) from error
        awaited = [place for place, value in enumerate(returned) if inspect.isawaitable(value)]
        for place, value in zip(awaited, _await([returned[place] for place in awaited]), strict=True):
            if isinstance(value, BaseException):
                raise _told(self.names[place], self.functions[place], value) from value
            returned[place] = value
        return returned


def _ignore(*_: Any, **__: Any) -> None:
    """Stand in for a log that nobody keeps."""


def _parameters(function: RewardFunction) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in callables have none
        return None


def _lacking(function: RewardFunction, columns: Collection[str]) -> list[str]:
    """Columns without which a function cannot be called, and that are not there."""
    if isinstance(function, Verifier):
        return function.lacking(columns)
    return [
        name
        for name, parameter in (_parameters(function) or {}).items()
        if parameter.default is parameter.empty and parameter.kind not in VARIADIC and name not in (*PASSED, *columns)
    ]


def _lacks(who: str, column: str, prompts: Prompts) -> InputError:
    columns = ", ".join(["prompt", *prompts.columns])
    fix = "take `prompts`, which are passed" if column == "prompt" else None
    return InputError(f"it needs the column {column!r}; {prompts.name} has: {columns}", where=who, fix=fix)


def _taken(function: RewardFunction, given: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = _parameters(function)
    if parameters is None or any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


def _told(name: str, function: RewardFunction, error: BaseException) -> SanovError:
    if isinstance(error, SanovError):
        return error
    found = f"it raises {type(error).__name__}: {error} ({place_of(error, function)})"
    return InputError(found, where=f"reward function '{name}'")


def _await(waiting: Sequence[Awaitable[Any]]) -> list[Any]:
    """Await all in a thread of their own, as the caller's may already run a loop (a notebook's does)."""
    if not waiting:
        return []

    async def gather() -> list[Any]:
        return list(await asyncio.gather(*waiting, return_exceptions=True))

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(gather())).result()


def _checked(returned: Any, rows: int, name: str) -> Float64[np.ndarray, " rows"]:
    where = f"reward function '{name}'"
    lister = getattr(returned, "tolist", None) or getattr(returned, "to_list", None)  # an array, a tensor, a series
    values = returned if lister is None else lister()
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise InputError(f"it returned a {type(returned).__name__}", where=where, expected=f"a list of {rows} numbers")
    if len(values) != rows:
        raise InputError(f"it returned {len(values)} rewards", where=where, expected=f"{rows}, one a completion")
    return np.array([_number(value, f"{where}, row {row}") for row, value in enumerate(values, start=1)])


def _number(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    expected = "a finite number, or None where it does not apply"
    if isinstance(value, str | bytes | complex) or not hasattr(value, "__float__"):
        raise InputError(f"the reward is {value!r:.80}", where=where, expected=expected)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"the reward is {value!r:.80}", where=where, expected=expected)
    return number
