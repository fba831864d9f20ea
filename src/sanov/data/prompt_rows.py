"""Prompts with everything that is known of each: the table that a policy answers, and its splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64

from sanov.core import files
from sanov.core.errors import InputError

__all__ = ["PASSED", "SPLITS", "Message", "Prompts", "check_split", "concatenate", "split_of"]

Message = Mapping[str, Any]
SPLITS = ("train", "validation", "test")
# What a reward function is handed besides the columns; no column may have such a name.
PASSED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")


@dataclass(frozen=True, eq=False)
class Prompts:
    """A table of prompts.

    Parameters
    ----------
    prompts
        Text, or a list of chat messages (``{"role": ..., "content": ...}``); all of one kind.
    columns
        Every other column by its name. Reward functions get them by these names. Where there are worked answers,
        ``solution`` holds them.
    name
        What to call the table in a message.

    Raises
    ------
    InputError
        No rows, a prompt that is missing, empty or of another kind, a column of another length or of a name that is taken.
    """

    prompts: tuple[Any, ...]  # what is no prompt is told with its row
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    name: str = "the prompts"

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("has no rows", where=self.name, expected="at least one prompt")
        for row, prompt in enumerate(self.prompts, start=1):
            _check_prompt(prompt, self.chat, f"{self.name}, row {row}")
        for column, cells in self.columns.items():
            if column in (*PASSED, "prompt"):
                found = f"a column is called {column!r}, the name of something that reward functions get"
                raise InputError(found, where=self.name, fix="rename the column")
            if len(cells) != len(self):
                found = f"the column {column!r} has {len(cells)} cells"
                raise InputError(found, where=self.name, expected=f"{len(self)}, one a prompt")

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def chat(self) -> bool:
        """Whether the prompts are lists of chat messages."""
        return not isinstance(self.prompts[0], str)

    def row(self, index: int) -> dict[str, Any]:
        """Return the cells of one row by the names of their columns, with its ``prompt``."""
        return {"prompt": self.prompts[index], **{name: cells[index] for name, cells in self.columns.items()}}

    def take(self, index: Iterable[int] | Int64[np.ndarray, " chosen"]) -> Prompts:
        """Return some of the rows, in the order asked for; a row may be asked for more than once."""
        rows = [int(row) for row in index]
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        return Prompts(tuple(self.prompts[row] for row in rows), columns, self.name)

    def digest(self) -> str:
        """SHA-256 (hex) of prompts and columns; the table's name does not count."""
        columns = [[name, list(cells)] for name, cells in sorted(self.columns.items())]
        return files.digest([list(self.prompts), columns])


def split_of(prompt: str | Sequence[Message]) -> str:
    """Return the split of a prompt: its SHA-256 modulo 10 is 0 for ``test``, 1 for ``validation``, else ``train``.

    It depends on the prompt alone, so that no prompt is in two splits, whatever table it came with.
    """
    text = prompt if isinstance(prompt, str) else files.to_json(prompt)
    return {0: "test", 1: "validation"}.get(int(files.digest(text.encode()), 16) % 10, "train")


def check_split(split: str) -> None:
    """Refuse a split that there is not."""
    if split not in SPLITS:
        raise InputError(f"the split is {split!r}", expected=" or ".join(SPLITS))


def concatenate(tables: Sequence[Prompts], name: str | None = None) -> Prompts:
    """Return the rows of several tables as one; a column that a table does not have is None there."""
    columns = dict.fromkeys(column for table in tables for column in table.columns)
    cells = {
        column: [cell for table in tables for cell in table.columns.get(column, [None] * len(table))]
        for column in columns
    }
    prompts = tuple(prompt for table in tables for prompt in table.prompts)
    return Prompts(prompts, cells, name or " and ".join(dict.fromkeys(table.name for table in tables)))


def _check_prompt(prompt: Any, chat: bool, where: str) -> None:
    if prompt is None:
        raise InputError("the prompt is missing", where=where, expected="text or a list of chat messages")
    if not isinstance(prompt, str | list | tuple):
        found = f"the prompt is a {type(prompt).__name__}"
        raise InputError(found, where=where, expected="text or a list of chat messages")
    if isinstance(prompt, str) is chat:
        raise InputError("is text among chat messages, or the reverse", where=where, expected="prompts of one kind")
    if len(prompt) == 0:
        raise InputError("the prompt is empty", where=where, fix="remove the row")
    if chat:
        for message in prompt:
            if not (isinstance(message, Mapping) and isinstance(message.get("role"), str) and "content" in message):
                found = f"a message is {message!r:.80}"
                raise InputError(found, where=where, expected="an object with 'role' and 'content'")
