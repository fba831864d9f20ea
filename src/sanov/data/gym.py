"""Tasks of reasoning-gym, where it is installed: its questions, its own check of answers, our splits.

A data set's check is its authors', and some read an answer through SymPy, which evaluates text as Python. Checks run in
a process of their own that is ended when it takes too long, with the rights of whoever started it.

Reference: stojanovski2025reasoninggym.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sanov.core.errors import InputError, require
from sanov.data.answer_process import answer_process
from sanov.data.drawn_rows import Task
from sanov.data.verifiers import Verifier

__all__ = ["GymTask", "GymVerifier"]

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
LONGEST = 5000  # characters of an answer
BLOCK = 256  # rows of one data set: some make all of theirs at once
SEEDS = 2**32  # NumPy takes no more


class GymVerifier(Verifier):
    """A data set's own check gives full marks, so that a reward is 1 or 0; the column ``source`` says which question.

    The answer stands in the last ``<answer>`` of a completion, or is all of it.
    """

    name: ClassVar[str] = "reasoning_gym"
    columns: ClassVar[tuple[str, ...]] = ("source",)

    def answer(self, completion: str, row: Mapping[str, Any]) -> str | None:
        """Return the answer without spaces around."""
        tagged = TAGGED.findall(completion)
        text = (tagged[-1] if tagged else completion).strip()
        return text if text and len(text) <= LONGEST else None

    def is_right(self, completion: str, row: Mapping[str, Any]) -> bool:
        """Whether the data set gives it full marks. Where the question itself is echoed, it does not."""
        found = self.answer(completion, row)
        if found is None or found == str(row.get("prompt")).strip():
            return False
        score = answer_process().ask("gym", **row["source"], size=BLOCK, answer=found)
        return score is not None and score >= 1.0

    def gold(self, row: Mapping[str, Any]) -> str | None:
        """Return the data set's answer, if it has one."""
        return None if row.get("answer") is None else str(row["answer"])


@dataclass(frozen=True)
class GymTask(Task):
    """One data set of reasoning-gym.

    Parameters
    ----------
    data_set
        Its name there.
    options
        Names and values that it is configured with.
    """

    data_set: str
    options: tuple[tuple[str, Any], ...] = ()
    verifier = GymVerifier()

    def __post_init__(self) -> None:
        self._block(0)

    @classmethod
    def of(cls, data_set: str, options: Mapping[str, Any]) -> GymTask:
        """Return a task.

        Raises
        ------
        MissingExtra
            reasoning-gym is not installed.
        InputError
            It has no such data set, or that has no such options.
        """
        return cls(data_set, tuple(options.items()))

    @property
    def name(self) -> str:
        """As `tasks.named` takes it."""
        return f"reasoning_gym:{self.data_set}"

    def drawn(self, seed: int, limit: int) -> Iterator[dict[str, Any]]:
        """Yield the questions of a seed, in blocks."""
        for start in range(0, limit, BLOCK):
            block = ((seed << 12) * BLOCK + start) % SEEDS
            data = self._block(block)
            for index in range(min(BLOCK, limit - start)):
                entry = data[index]
                source = {"name": self.data_set, "options": dict(self.options), "seed": block, "index": index}
                answer = None if entry["answer"] is None else str(entry["answer"])
                yield {"prompt": entry["question"], "answer": answer, "solution": answer, "source": source}

    def _block(self, seed: int) -> Any:
        gym = require("reasoning_gym", "reasoning")
        known = require("reasoning_gym.factory", "reasoning").DATASETS
        if self.data_set not in known:
            near = difflib.get_close_matches(self.data_set, known, n=1)
            fix = f"did you mean '{near[0]}'?" if near else None
            raise InputError(f"reasoning-gym has no data set {self.data_set!r}", fix=fix)
        try:
            return gym.create_dataset(self.data_set, seed=seed, size=BLOCK, **dict(self.options))
        except (AssertionError, TypeError, ValueError) as error:
            raise InputError(f"cannot be configured so ({error})", where=self.name) from None
