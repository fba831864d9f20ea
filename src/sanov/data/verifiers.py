"""Programs that check an answer exactly. Each is a reward function (1 right, 0 wrong), and accepts its own gold answer.

The last answer of a completion counts. What cannot be read is wrong; no completion raises, and none takes long.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar

from sanov.core.errors import InputError, SanovWarning
from sanov.core.progress import track
from sanov.data import arithmetic
from sanov.data.prompt_rows import PASSED, Message, Prompts

__all__ = ["Countdown", "Exact", "Number", "Verifier", "plain_number", "text_of"]

WHOLE = re.compile(r"-?[0-9]{1,30}")
NUMBER = re.compile(r"-?\$?([0-9]{1,3}(,[0-9]{3}){1,4}|[0-9]{1,15})(\.[0-9]{1,12})?")  # exact as a decimal


def text_of(completion: str | Sequence[Message]) -> str:
    """Return the text of a completion: of a chat, that of its last message."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, list):  # a message in parts
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


class Verifier(ABC):
    """Base of the verifiers.

    Attributes
    ----------
    name
        As messages, metrics and the option of a reward call it.
    columns
        What it needs to know of a row, besides its prompt.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]

    @property
    def __name__(self) -> str:
        return self.name

    @abstractmethod
    def answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        """Return the answer that a completion gives, in a form that equal answers share; None if there is none."""

    @abstractmethod
    def is_right(self, completion: str, row: Mapping[str, Any]) -> bool:
        """Whether the answer of a completion is right for a row."""

    def same(self, first: str, second: str) -> bool:
        """Whether two answers that `answer` returned are equal."""
        return first == second

    def gold(self, row: Mapping[str, Any]) -> str | None:
        """Return a completion that is right for a row; None if the row holds none."""
        solution = row.get("solution")
        return None if solution is None else str(solution)

    def lacking(self, columns: Collection[str]) -> list[str]:
        """Return the columns that are needed and not there."""
        return [column for column in self.columns if column not in columns]

    def validate(self, prompts: Prompts) -> None:
        """Refuse a table whose gold answers do not pass; warn where its worked solutions are none that would.

        Raises
        ------
        InputError
            With the row, the gold answer, and what was read of it.
        """
        unread = 0
        for index in track(range(len(prompts)), "gold answers"):
            row = prompts.row(index)
            gold = self.gold(row)
            worked = row.get("solution") if "answer" in row else None
            unread += worked is not None and self.answer(str(worked), row) is None
            if gold is not None and not self.is_right(gold, row):
                read = self.answer(gold, row)
                found = f"the gold answer {gold[-200:]!r} fails its own verifier, which reads {read!r}"
                expected = ", ".join(f"{column}={row.get(column)!r:.200}" for column in self.columns)
                raise InputError(found, where=f"{prompts.name}, row {index + 1}", expected=expected)
        if unread == len(prompts):
            told = f"{prompts.name}: the reward {self.name!r} reads an answer in none of the solutions"
            warnings.warn(f"{told}; completions like them are wrong.", SanovWarning, stacklevel=2)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[str | Sequence[Message]], **columns: Any
    ) -> list[float | None]:
        """Return the reward of each completion, as TRL calls a reward function."""
        names = [name for name in columns if name not in PASSED]
        rewards: list[float | None] = []
        for place, completion in enumerate(completions):
            row = {"prompt": prompts[place], **{name: columns[name][place] for name in names}}
            rewards.append(float(self.is_right(text_of(completion), row)))
        return rewards


class Exact(Verifier):
    """After the last ``:`` stands a whole number, and nothing else; column ``answer`` is that number."""

    name = "exact"
    columns = ("answer",)

    def answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        """Return the number after the last colon, without leading zeros."""
        _, colon, last = completion.rpartition(":")
        return str(int(last)) if colon and WHOLE.fullmatch(last) else None

    def is_right(self, completion: str, row: Mapping[str, Any]) -> bool:
        """Whether that number is the row's answer."""
        return self.answer(completion, row) == str(row["answer"])

    def gold(self, row: Mapping[str, Any]) -> str | None:
        """Return the row's solution, or its answer after a colon."""
        return _marked(row, ":")


class Countdown(Verifier):
    """An expression of the column ``numbers``, each once, whose value is the column ``answer``.

    Any such expression is right. Whole numbers, ``+ - * /`` and parentheses are read, and rational arithmetic is exact.
    The expression is what stands after the last ``:``, or all of the completion.
    """

    name = "countdown"
    columns = ("numbers", "answer")

    def answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        """Return the expression without spaces, if it is one."""
        text = completion.rpartition(":")[2]
        return None if arithmetic.parse(text) is None else text.replace(" ", "")

    def is_right(self, completion: str, row: Mapping[str, Any]) -> bool:
        """Whether the expression uses the numbers, and has the value that is asked for."""
        numbers, target = _asked(row)
        postfix = arithmetic.parse(completion.rpartition(":")[2])
        if postfix is None or arithmetic.numbers_in(postfix) != numbers:
            return False  # so that what is evaluated is never larger than what was asked for
        return arithmetic.evaluate(postfix) == target


def _asked(row: Mapping[str, Any]) -> tuple[list[int], Fraction]:
    """Return the numbers in ascending order and the target, which a text file may hold as text."""
    cell = row["numbers"]
    try:
        numbers = re.findall(r"[0-9]+", cell) if isinstance(cell, str) else cell
        return sorted(map(int, numbers)), Fraction(str(row["answer"]))
    except (TypeError, ValueError):
        found = f"the numbers are {cell!r:.80} and the answer is {row['answer']!r:.80}"
        raise InputError(found, where="countdown", expected="whole numbers and a number") from None


class Number(Verifier):
    """After the last ``####`` stands a number, as in GSM8K; the column ``answer`` is that number, or ends with it so.

    Thousands may be set off by commas, dollars may be named, a full stop may end the line.

    Reference
    ---------
    cobbe2021gsm8k
    """

    name = "number"
    columns = ("answer",)

    def answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        """Return the number without commas and needless zeros."""
        _, mark, last = completion.rpartition("####")
        return plain_number(last) if mark else None

    def is_right(self, completion: str, row: Mapping[str, Any]) -> bool:
        """Whether it is the row's number."""
        found = self.answer(completion, row)
        return found is not None and found == plain_number(str(row["answer"]).rpartition("####")[2])

    def gold(self, row: Mapping[str, Any]) -> str | None:
        """Return the row's solution, or its answer after the mark."""
        return _marked(row, "####")


def _marked(row: Mapping[str, Any], mark: str) -> str:
    """Return the row's solution if that has the mark of an answer, else its answer with one."""
    solution = row.get("solution")
    if isinstance(solution, str) and mark in solution:
        return solution
    answer = str(row["answer"])
    return answer if mark in answer else mark + answer


def plain_number(text: str) -> str | None:
    """Return a number as it is written plainly: ``$1,080.50`` as ``1080.5``; None if the text is none."""
    text = text.strip().removesuffix(".")
    if not NUMBER.fullmatch(text):
        return None
    found = Decimal(text.replace(",", "").replace("$", ""))
    return str(int(found)) if found == int(found) else str(found.normalize())
