"""The options of a study: which rows are compared, and how."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import field_validator

from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.data.study_tables import Columns

__all__ = ["Alternative", "Cluster", "Selection", "StudyOptions"]

MOST_CHANCE = 50.0  # percent: there are two answers at least

Selection = Literal["fixed", "best", "all"]
Alternative = Literal["greater", "two-sided"]
Cluster = Literal["pair", "student", "teacher", "none"]


class StudyOptions(Options):
    """Options of the tests on a table of scores."""

    selection: Selection = option(
        "fixed",
        "Rows of a student that was distilled at several temperatures: those of one, the best of each column, or all.",
        source="choice; paper: best",
    )
    temperature: float = option(1.0, "The temperature of selection=fixed.", source="choice: every method has it", gt=0)
    alternative: Alternative = option("greater", "What a gain is tested for.", source="released code")
    correction: Literal["holm", "none"] = option(
        "holm", "Correction of p-values over the tasks.", source="choice; paper: none"
    )
    cluster: Cluster = option(
        "pair", "What is drawn anew by the bootstrap, and keeps its sign in exact tests.", source="choice; paper: none"
    )
    scale: Literal["auto", "percent", "fraction"] = option(
        "auto", "Scale of the scores; auto: percent, if one of them is above 1.", source="choice; paper: percent"
    )
    tasks: tuple[str, ...] = option(
        (),
        "Names of the tasks; else all columns of a wide table but bookkeeping such as epochs, all tasks of a long one.",
        source="choice",
    )
    below_chance_margin: float = option(
        3.0, "A score is below chance if it lies this far below.", source="choice", unit="points", ge=0
    )
    chance: tuple[str, ...] = option(
        (),
        "What guessing gets, as task:percent, at most 50; the published tasks are known.",
        source="choice: number of options of each task",
    )
    baseline: str = option("SFT", "Method of the rows that were trained on labels alone.", source="released code")
    agreement: str | None = option(None, "File of agreement by pair, where its name does not say so.", source="choice")
    similarity: str | None = option(
        None, "File of similarity by pair, where its name does not say so.", source="choice"
    )
    map: Columns = Columns()

    @field_validator("chance", mode="before")
    @classmethod
    def _from_mapping(cls, value: Any) -> Any:
        return tuple(f"{task}:{level}" for task, level in value.items()) if isinstance(value, Mapping) else value

    @field_validator("chance")
    @classmethod
    def _is_percent(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            task, _, level = each.rpartition(":")
            try:
                percent = float(level)
            except ValueError:
                percent = -1.0
            if not (task and 0 <= percent <= 100):
                raise ValueError(f"{each!r} is no task with its percent, such as boolq:50")
            if percent > MOST_CHANCE:
                raise ValueError(f"{each!r} is more than the 50 percent that guessing between two answers gets")
        return value

    def chance_of(self, known: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
        """Return the percent that guessing gets on each task: what is known, and over it what the user says.

        Names of tasks are compared without case and punctuation, so that ARC-Easy is arc_easy.

        Raises
        ------
        InputError
            The user names a task that is none of these.
        """
        named = {_bare(task): task for task in tasks}
        given = [each.rpartition(":") for each in self.chance]
        for task, _, _ in given:
            if _bare(task) not in named:
                near = difflib.get_close_matches(_bare(task), named, n=1)
                fix = f"did you mean '{named[near[0]]}'?" if near else f"the tasks are: {', '.join(tasks)}"
                raise InputError(f"the study has no task {task!r}", where="study.chance", fix=fix)
        levels = {_bare(task): level for task, level in known.items()}
        levels |= {_bare(task): float(level) for task, _, level in given}
        return {task: levels[_bare(task)] for task in tasks if _bare(task) in levels}


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
