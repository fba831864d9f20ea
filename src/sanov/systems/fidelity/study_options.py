"""The options of a study: which rows are compared, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator

from sanov.core.options import Options, option
from sanov.data.study_tables import Columns

__all__ = ["Alternative", "Cluster", "Selection", "StudyOptions"]

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
    scale: Literal["percent", "fraction"] = option("percent", "Scale of the scores.", source="paper")
    below_chance_margin: float = option(
        3.0, "A score is below chance if it lies this far below.", source="choice", unit="points", ge=0
    )
    chance: tuple[str, ...] = option(
        (),
        "What guessing gets, as task:percent; the published tasks are known.",
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
                legal = bool(task) and 0 <= float(level) <= 100
            except ValueError:
                legal = False
            if not legal:
                raise ValueError(f"{each!r} is no task with its percent, such as boolq:50")
        return value

    def chance_of(self, known: Mapping[str, float]) -> dict[str, float]:
        """Return the percent that guessing gets by task: what is known, and over it what the user says."""
        given = (each.rpartition(":") for each in self.chance)
        return {**known, **{task: float(level) for task, _, level in given}}
