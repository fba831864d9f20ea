r"""Mathematics in LaTeX: the last ``\boxed{}`` of a completion against the gold answer, by math-verify."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from sanov.data.answer_process import answer_process
from sanov.data.verifiers import Verifier

__all__ = ["Math", "last_boxed"]

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
LONGEST = 500  # characters of an answer; those of MATH have 53 at most
MARK = "####"


class Math(Verifier):
    r"""The last ``\boxed{}`` holds something equal to the column ``answer``, which is LaTeX or, as in GSM8K, a number.

    An answer that math-verify cannot compare within ten seconds is wrong; how much that is depends on the machine.

    Reference
    ---------
    cobbe2021gsm8k for answers that end in ``#### number``.
    """

    name: ClassVar[str] = "math"
    columns: ClassVar[tuple[str, ...]] = ("answer",)

    def answer(self, completion: str) -> str | None:
        """Return what is in the last box."""
        found = last_boxed(completion)
        return found if found and len(found) <= LONGEST else None

    def is_right(self, completion: str, row: Mapping[str, Any]) -> bool:
        """Whether what is in the last box equals the row's answer."""
        found = self.answer(completion)
        return found is not None and self.same(_gold(row), found)

    def same(self, first: str, second: str) -> bool:
        """Whether two answers are equal."""
        return answer_process().ask("math", gold=first, answer=second) is True

    def gold(self, row: Mapping[str, Any]) -> str:
        r"""Return the row's solution, if that has a box, else its answer in one."""
        solution = row.get("solution")
        return solution if isinstance(solution, str) and last_boxed(solution) else rf"\boxed{{{_gold(row)}}}"


def _gold(row: Mapping[str, Any]) -> str:
    text = str(row["answer"])
    return text.rpartition(MARK)[2].strip().replace(",", "") if MARK in text else text


def last_boxed(text: str) -> str | None:
    r"""Return what stands in the last ``\boxed{}`` whose braces close; None if there is none."""
    for start in reversed([found.end() for found in BOX.finditer(text)]):
        depth = 1
        for place in range(start, len(text)):
            if text[place] in "{}" and text[place - 1] != "\\":
                depth += 1 if text[place] == "{" else -1
                if depth == 0:
                    return text[start:place].strip()
    return None
