r"""Mathematics in LaTeX: the last ``\boxed{}`` of a completion against the gold answer, by math-verify."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from sanov.data.answer_process import answer_process
from sanov.data.verifiers import Verifier

__all__ = ["Math", "last_boxed"]

BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)  # a box opens, an escape, a brace
LONGEST = 500  # characters of an answer; those of MATH have 53 at most
MARK = "####"


class Math(Verifier):
    r"""The last ``\boxed{}`` holds something equal to the column ``answer``: LaTeX or, as in GSM8K, a number.

    Where there is no such column, what counts is in ``solution``: its last box, or all of it, as TRL has it.

    An answer that math-verify cannot compare within ten seconds is wrong; how much that is depends on the machine.

    Reference
    ---------
    cobbe2021gsm8k for answers that end in ``#### number``.
    """

    name: ClassVar[str] = "math"
    columns: ClassVar[tuple[str, ...]] = ("answer",)

    def lacking(self, columns: Collection[str]) -> list[str]:
        """Return the columns that are needed and not there."""
        return [] if "solution" in columns else super().lacking(columns)

    def answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        """Return what is in the last box."""
        found = last_boxed(completion)
        return found if found and len(found) <= LONGEST else None

    def is_right(self, completion: str, row: Mapping[str, Any]) -> bool:
        """Whether what is in the last box equals the row's answer."""
        found = self.answer(completion, row)
        return found is not None and self.same(_gold(row), found)

    def same(self, first: str, second: str) -> bool:
        """Whether two answers are equal."""
        return answer_process().ask("math", gold=first, answer=second) is True

    def gold(self, row: Mapping[str, Any]) -> str:
        r"""Return the row's solution, if that has a box, else its answer in one."""
        solution = row.get("solution")
        return solution if isinstance(solution, str) and last_boxed(solution) else rf"\boxed{{{_gold(row)}}}"


def _gold(row: Mapping[str, Any]) -> str:
    if row.get("answer") is None:
        solution = str(row.get("solution") or "")  # nothing at all is no answer, and equals none
        return last_boxed(solution) or solution.strip().strip("$")
    text = str(row["answer"])
    return text.rpartition(MARK)[2].strip().replace(",", "") if MARK in text else text


def last_boxed(text: str) -> str | None:
    r"""Return what stands in the ``\boxed{}`` that opens last among those that close; None if there is none."""
    opened: list[int | None] = []  # where what is in a box begins; None for other braces
    begin, end = -1, -1
    for found in BRACE.finditer(text):
        if found[0].endswith("}") and found[0] != r"\}":
            start = opened.pop() if opened else None
            if start is not None and start > begin:
                begin, end = start, found.start()
        elif found[0].endswith("{") and found[0] != r"\{":
            opened.append(None if found[0] == "{" else found.end())
    return None if begin < 0 else text[begin:end].strip()
