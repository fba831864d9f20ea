"""Tasks that are generated, not read: chain sums, modular arithmetic and countdown, each with a worked answer.

A row is a pure function of task, seed and index. Its split follows from its prompt alone (`prompts.split_of`), so that no
prompt is both learnt from and tested on. Every worked answer passes the task's own verifier, or nothing is returned.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from sanov.core.errors import InputError
from sanov.data import arithmetic
from sanov.data.prompts import Prompts, check_split, split_of
from sanov.data.verifiers import Countdown as CountdownVerifier
from sanov.data.verifiers import Exact, Verifier

__all__ = ["TASKS", "ChainSum", "Countdown", "Draws", "Modular", "Task", "named"]

Choice = TypeVar("Choice")
PATIENCE = 400  # draws for each row that was asked for, after which there are no more to be found


class Draws:
    """Random choices of one row, the same in every version of Python: only `random.random` promises that."""

    def __init__(self, key: str):
        self._random = random.Random(key).random

    def integer(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def choice(self, options: Sequence[Choice]) -> Choice:
        """Return one of the options."""
        return options[self.integer(0, len(options) - 1)]


@dataclass(frozen=True)
class Task(ABC):
    """Base of the tasks."""

    name: ClassVar[str]
    letter: ClassVar[str]
    verifier: ClassVar[Verifier]

    @abstractmethod
    def draw(self, draws: Draws) -> dict[str, Any] | None:
        """Return a row: ``prompt``, ``solution``, and what the verifier needs; None for a draw that leads nowhere."""

    def row(self, seed: int, index: int) -> dict[str, Any] | None:
        """Return the row that seed and index stand for; None where there is none."""
        return self.draw(Draws(f"{self!r}, {seed}, {index}"))

    def rows(self, count: int, seed: int, split: str) -> Prompts:
        """Return rows of one split, in the order of their index.

        Parameters
        ----------
        count
            Number of rows.
        seed
            Of the draws.
        split
            ``train``, ``validation`` or ``test``. Rows to train on are as they are drawn, and a short prompt may come
            again; those of the other two are distinct, so that each counts once.

        Raises
        ------
        InputError
            An unknown split; more distinct rows than are to be found; a worked answer that fails its verifier.
        """
        check_split(split)
        if count < 1:
            raise InputError(f"{count} rows are asked for", where=self.name, expected="at least 1")
        seen: set[str] = set()
        kept: list[dict[str, Any]] = []
        for row in self._drawn(seed, PATIENCE * count + 10_000):
            prompt = row["prompt"]
            if split_of(prompt) != split or (split != "train" and prompt in seen):
                continue
            seen.add(prompt)
            kept.append(row)
            if len(kept) == count:
                return self._table(kept)
        fix = "ask for fewer rows, or for a larger task"
        raise InputError(f"only {len(kept)} {split} rows were found", where=self.name, expected=f"{count}", fix=fix)

    def verify(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return 1 if a completion is right for a row, else 0."""
        return float(self.verifier.is_right(completion, row))

    def _drawn(self, seed: int, limit: int) -> Iterator[dict[str, Any]]:
        return (row for row in (self.row(seed, index) for index in range(limit)) if row is not None)

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> Prompts:
        columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        columns["task"] = [self.name] * len(rows)
        table = Prompts(tuple(row["prompt"] for row in rows), columns, self.name)
        self.verifier.validate(table)
        return table


def _check_range(bounds: tuple[int, int], low: int, high: int, where: str) -> None:
    if not low <= bounds[0] <= bounds[1] <= high:
        raise InputError(f"the range is {bounds}", where=where, expected=f"two ascending numbers from {low} to {high}")


@dataclass(frozen=True)
class ChainSum(Task):
    """``a12+7-3=`` and its answer ``19,16:16``: the running results, then the last one.

    Parameters
    ----------
    terms
        Smallest and largest number of terms.
    largest
        Largest operand; the smallest is 0.
    """

    terms: tuple[int, int] = (2, 5)
    largest: int = 20
    name = "chain_sum"
    letter = "a"
    verifier = Exact()

    def __post_init__(self) -> None:
        _check_range(self.terms, 2, 50, f"{self.name}, terms")
        _check_range((0, self.largest), 0, 10**9, f"{self.name}, largest")

    def draw(self, draws: Draws) -> dict[str, Any]:
        """Return a row."""
        total = draws.integer(0, self.largest)
        text, results = str(total), []
        for _ in range(draws.integer(*self.terms) - 1):
            sign, operand = draws.choice("+-"), draws.integer(0, self.largest)
            total += operand if sign == "+" else -operand
            text += f"{sign}{operand}"
            results.append(total)
        trace = ",".join(map(str, results))
        return {"prompt": f"{self.letter}{text}=", "answer": total, "solution": f"{trace}:{total}"}


@dataclass(frozen=True)
class Modular(Task):
    """``b(7*5+4)%9=`` and its answer ``35,39:3``: the product, the sum, then what is left over.

    Parameters
    ----------
    modulus
        Smallest and largest modulus.
    largest
        Largest operand; the smallest is 0.
    """

    modulus: tuple[int, int] = (2, 20)
    largest: int = 9
    name = "modular"
    letter = "b"
    verifier = Exact()

    def __post_init__(self) -> None:
        _check_range(self.modulus, 2, 10**6, f"{self.name}, modulus")
        _check_range((0, self.largest), 0, 10**6, f"{self.name}, largest")

    def draw(self, draws: Draws) -> dict[str, Any]:
        """Return a row."""
        x, y, z = (draws.integer(0, self.largest) for _ in range(3))
        modulus = draws.integer(*self.modulus)
        total = x * y + z
        solution = f"{x * y},{total}:{total % modulus}"
        prompt = f"{self.letter}({x}*{y}+{z})%{modulus}="
        return {"prompt": prompt, "answer": total % modulus, "solution": solution}


@dataclass(frozen=True)
class Countdown(Task):
    """``c3,7,2?23=`` and an answer, ``3*7+2``: an expression of these numbers with that value. Others are right too.

    Parameters
    ----------
    numbers
        Smallest and largest count of numbers.
    largest
        Largest number; the smallest is 1.
    target
        Smallest and largest value that is asked for.
    """

    numbers: tuple[int, int] = (3, 4)
    largest: int = 9
    target: tuple[int, int] = (0, 99)
    name = "countdown"
    letter = "c"
    verifier = CountdownVerifier()

    def __post_init__(self) -> None:
        _check_range(self.numbers, 2, 8, f"{self.name}, numbers")
        _check_range((1, self.largest), 1, 10**6, f"{self.name}, largest")
        _check_range(self.target, -(10**9), 10**9, f"{self.name}, target")

    def draw(self, draws: Draws) -> dict[str, Any] | None:
        """Return a row; None if the hidden expression's value is not one that is asked for."""
        numbers = [draws.integer(1, self.largest) for _ in range(draws.integer(*self.numbers))]
        text = _hidden(draws, numbers)
        value = arithmetic.evaluate(arithmetic.parse(text) or [])
        if value is None or value.denominator != 1 or not self.target[0] <= value <= self.target[1]:
            return None
        prompt = f"{self.letter}{','.join(map(str, numbers))}?{int(value)}="
        return {"prompt": prompt, "numbers": numbers, "answer": int(value), "solution": text}


def _hidden(draws: Draws, numbers: Sequence[int]) -> str:
    """Join numbers two at a time by random signs, with parentheses where they are needed."""
    parts = [(str(number), 3) for number in numbers]  # text, and how tightly it holds together
    while len(parts) > 1:
        left = parts.pop(draws.integer(0, len(parts) - 1))
        right = parts.pop(draws.integer(0, len(parts) - 1))
        sign = draws.choice("+-*/")
        tight = arithmetic.PRECEDENCE[sign]
        first = f"({left[0]})" if left[1] < tight else left[0]
        second = f"({right[0]})" if right[1] < tight + (sign in "-/") else right[0]
        parts.append((f"{first}{sign}{second}", tight))
    return parts[0][0]


TASKS: dict[str, Callable[..., Task]] = {task.name: task for task in (ChainSum, Modular, Countdown)}


def named(name: str, **sizes: Any) -> Task:
    """Return a task by its name, with sizes other than its own.

    Raises
    ------
    InputError
        No such task, a size that it does not have, or one out of range.
    """
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}", expected=" or ".join(TASKS))
    try:
        return TASKS[name](**sizes)
    except TypeError as error:
        raise InputError(str(error).partition(") ")[2] or str(error), where=name) from None
