"""What generated tasks share: rows that are drawn, split by their prompts, and checked before anybody sees them.

A row is a pure function of task, seed and index. Its split follows from its prompt alone (`prompt_rows.split_of`), so that no
prompt is both learnt from and tested on. Every worked answer passes the task's own verifier, or nothing is returned.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sanov.core.errors import InputError
from sanov.core.progress import track
from sanov.data.prompt_rows import Prompts, check_split, split_of
from sanov.data.verifiers import Verifier

__all__ = ["Draws", "Task"]

Choice = TypeVar("Choice")
PATIENCE = 200  # draws for each row that was asked for, after which there are no more to be found


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
    """Base of the tasks: the fields of a task are its sizes."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As the column ``task`` and messages call it."""

    @property
    @abstractmethod
    def verifier(self) -> Verifier:
        """Who tells right from wrong."""

    @abstractmethod
    def drawn(self, seed: int, limit: int) -> Iterator[dict[str, Any]]:
        """Yield at most `limit` rows: ``prompt``, ``solution``, and what the verifier needs."""

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
        draws = PATIENCE * count + 1000
        for row in track(self.drawn(seed, draws), f"rows of {self.name}"):
            prompt = row["prompt"]
            if split_of(prompt) != split or (split != "train" and prompt in seen):
                continue
            seen.add(prompt)
            kept.append(row)
            if len(kept) == count:
                return self._table(kept)
        fix = "ask for fewer rows, or for a larger task"
        found = f"only {len(kept)} {split} rows were found in {draws} draws"
        raise InputError(found, where=self.name, expected=f"{count}", fix=fix)

    def verify(self, completion: str, row: Mapping[str, Any]) -> float:
        """Return 1 if a completion is right for a row, else 0."""
        return float(self.verifier.is_right(completion, row))

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> Prompts:
        columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        columns["task"] = [self.name] * len(rows)
        table = Prompts(tuple(row["prompt"] for row in rows), columns, self.name)
        self.verifier.validate(table)
        return table
