"""Arithmetic with worked answers, in the 27 characters of `tokens.CharTokenizer`: chain sums, remainders, countdown."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sanov.core.errors import InputError
from sanov.data import arithmetic
from sanov.data.drawn_rows import Draws, Task
from sanov.data.verifiers import Countdown as CountdownVerifier
from sanov.data.verifiers import Exact

__all__ = ["ChainSum", "Countdown", "Drawn", "Modular"]


def _check_range(bounds: tuple[int, int], low: int, high: int, where: str) -> None:
    if not low <= bounds[0] <= bounds[1] <= high:
        raise InputError(f"the range is {bounds}", where=where, expected=f"two ascending numbers from {low} to {high}")


class Drawn(Task):
    """Base of tasks whose rows are drawn one by one."""

    letter: ClassVar[str]

    @abstractmethod
    def draw(self, draws: Draws) -> dict[str, Any] | None:
        """Return a row; None for a draw that leads nowhere."""

    def drawn(self, seed: int, limit: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a seed."""
        for index in range(limit):
            row = self.draw(Draws(f"{self!r}, {seed}, {index}"))
            if row is not None:
                yield row


@dataclass(frozen=True)
class ChainSum(Drawn):
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
class Modular(Drawn):
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
class Countdown(Drawn):
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
