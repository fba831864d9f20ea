"""What `read` returns: prompts with their rewards and, where a table holds them, completions, answers and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int

from sanov.core import files
from sanov.core.errors import InputError
from sanov.data import prompts as prompt_tables
from sanov.data.math_answers import last_boxed
from sanov.data.prompts import Prompts
from sanov.data.rewards import Rewards
from sanov.data.verifiers import Verifier, text_of
from sanov.learning import policies
from sanov.learning.completing import ASKED
from sanov.learning.policies import Tasks

__all__ = ["Given", "Questions", "answers_of", "held", "judged", "plain_answer", "read", "told", "verifier_of"]

TRUTHS = {"none": True, "": True, "true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
OF_A_COMPLETION = ("completion", "score", "answer", "reward", "finished")


@dataclass(frozen=True, eq=False)
class Given:
    """Completions of a table, row by row.

    Parameters
    ----------
    groups
        Number of the prompt of each.
    completions
        Their texts, of which a missing one is empty, as files of text have it; None where there are answers alone.
    answers
        Their answers, where the table has scores beside them; None where answers are to be found in the texts.
    scores
        Their scores; None where there are none.
    rewards
        0 or 1; NaN where that is not known.
    finished
        Whether each ended by itself; True where nothing is said.
    """

    groups: Int[np.ndarray, " rows"]
    completions: list[str] | None
    answers: list[str | None] | None
    scores: Float64[np.ndarray, " rows"] | None
    rewards: Float64[np.ndarray, " rows"]
    finished: Bool[np.ndarray, " rows"]


@dataclass(frozen=True, eq=False)
class Questions(Tasks):
    """Prompts, and who rewards what answers them; with completions where the table holds some.

    Parameters
    ----------
    prompts
        Each once, where there are completions.
    rewards
        Reward functions; None where there are none to judge by.
    given
        The completions; None where the policy writes them.
    """

    given: Given | None = None


def read(sources: Sequence[Any], rewards: Sequence[str]) -> Questions:
    """Read prompts; a column ``completion`` (a text, a chat, or a list of them) or ``score`` makes it a table of completions.

    In a table with scores, ``answer`` is the answer of each completion, and its reward stands in ``reward``; in any other,
    ``answer`` is the right one, for the rewards.

    Parameters
    ----------
    sources
        As `data.prompts.read` has them.
    rewards
        Names of reward functions.

    Raises
    ------
    InputError
        See `learning.policies.read`; or a cell that is missing, of another length, or no number.
    """
    table = prompt_tables.read(list(sources))
    if not {"completion", "score"} & table.columns.keys():
        found = policies.read([table], rewards, needed=False)
        return Questions(found.prompts, found.rewards)
    return held(table, rewards)


def held(table: Prompts, rewards: Sequence[str] = ()) -> Questions:
    """Return the completions of a table, those of equal prompts together under one.

    Parameters
    ----------
    table
        With a column ``completion`` or ``score``.
    rewards
        Names of reward functions; none for the column ``reward``, or for what the columns allow.

    Raises
    ------
    InputError
        As `read`.
    """
    rows, cells = _long(table)
    if "score" in cells and not {"answer", "completion"} & cells.keys():
        raise InputError("there are scores of nothing", where=table.name, expected="a column `answer` or `completion`")
    scored = "score" in cells
    distinct = _distinct(table, keep=() if scored else ("answer",))
    functions = None
    if rewards or not (scored or "reward" in cells):
        functions = _rewards(distinct.prompts, rewards, table if scored else None)
    groups = distinct.groups[rows]
    texts = [_text(cell) for cell in cells["completion"]] if "completion" in cells else None
    known = _numbers(cells.get("reward", [None] * len(rows)), f"{table.name}, column 'reward'")
    answers = (
        [None if cell in (None, "") else str(cell) for cell in cells["answer"]]
        if scored and "answer" in cells
        else None
    )
    scores = _numbers(cells["score"], f"{table.name}, column 'score'", needed=True) if scored else None
    finished = _ended(cells.get("finished", [None] * len(rows)), f"{table.name}, column 'finished'")
    given = Given(groups, texts, answers, scores, known, finished)
    return judged(Questions(distinct.prompts, functions, given))


def _rewards(prompts: Prompts, names: Sequence[str], scored: Prompts | None) -> Rewards | None:
    """Return reward functions; in a table with scores, the column `answer` is the model's own and not the right one."""
    try:
        return policies.read([prompts], names, needed=False).rewards
    except InputError as error:
        if scored is None or "answer" not in scored.columns or "the column 'answer'" not in error.found:
            raise
        found = (
            f"in {scored.name} the column `answer` holds the model's own, beside its score, and no other the right one"
        )
        expected = f"the right answers in a column `{ASKED}answer`"
        raise InputError(found, where=error.where, expected=expected, fix="add it, or leave rewards out") from None


def judged(data: Questions) -> Questions:
    """Return completions of a table with what their rewards give them; without reward functions, what the table says.

    Parameters
    ----------
    data
        With completions, or without.

    Raises
    ------
    InputError
        A reward is refused, or no 0 or 1.
    """
    given = data.given
    if given is None:
        return data
    who = "" if data.rewards is None else f" ({' + '.join(data.rewards.names)})"
    if data.rewards is not None and given.completions is not None:
        scores = data.rewards.score(data.prompts.take(given.groups), given.completions)
        given = replace(given, rewards=data.rewards.total(scores))
    odd = np.flatnonzero(~np.isnan(given.rewards) & (given.rewards != 0) & (given.rewards != 1))
    if len(odd):
        found = f"the reward{who} is {given.rewards[odd[0]]:g}"
        where = f"{data.prompts.name}, completion {odd[0] + 1}"
        raise InputError(found, where=where, expected="0 or 1", fix="binarise it")
    return replace(data, given=given)


def _long(table: Prompts) -> tuple[list[int], dict[str, list[Any]]]:
    """Return a row a completion: the row of the table that it is from, and the cells that are its own."""
    main = "completion" if "completion" in table.columns else "score"
    names = [name for name in OF_A_COMPLETION if name in table.columns]
    rows: list[int] = []
    cells: dict[str, list[Any]] = {name: [] for name in names}
    for row, cell in enumerate(table.columns[main]):
        count = len(cell) if _are_several(cell) else None
        rows += [row] * (1 if count is None else count)
        for name in names:
            cells[name] += _spread(table.columns[name][row], count, f"{table.name}, row {row + 1}", name, main)
    return rows, cells


def _are_several(cell: Any) -> bool:
    """Whether a cell holds several completions, and not one, be it a chat of messages."""
    return isinstance(cell, list | tuple) and not any(isinstance(part, Mapping) for part in cell)


def _spread(cell: Any, count: int | None, where: str, name: str, main: str) -> list[Any]:
    if not _are_several(cell):
        return [cell] * (1 if count is None else count)
    if count is None or len(cell) != count:
        found = f"{name!r} has {len(cell)} entries and {main!r} {'is one' if count is None else f'has {count}'}"
        raise InputError(found, where=where, expected="one entry a completion")
    return list(cell)


def _text(cell: Any) -> str:
    return "" if cell is None else text_of(cell) if isinstance(cell, list | tuple) else str(cell)


@dataclass(frozen=True)
class _Distinct:
    prompts: Prompts
    groups: Int[np.ndarray, " rows"]


def _distinct(table: Prompts, keep: Sequence[str]) -> _Distinct:
    """Return each prompt once, without the columns of completions but those to keep, and the number of each row's."""
    numbers: dict[str, int] = {}
    first: list[int] = []
    groups = []
    for row, prompt in enumerate(table.prompts):
        key = told(prompt)
        if key not in numbers:
            numbers[key] = len(first)
            first.append(row)
        groups.append(numbers[key])
    columns = {n: cells for n, cells in table.columns.items() if n not in OF_A_COMPLETION or n in keep}
    if "score" in table.columns:  # one that was saved here: its prompts' columns by their own names again
        aside = [n for n in columns if n.removeprefix(ASKED) in OF_A_COMPLETION]
        columns |= {n.removeprefix(ASKED): columns.pop(n) for n in aside}
    once = Prompts(table.prompts, columns, table.name).take(first)
    return _Distinct(once, np.array(groups))


def told(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """Return a prompt as one text."""
    return prompt if isinstance(prompt, str) else files.to_json(prompt)


def _numbers(cells: Sequence[Any], where: str, *, needed: bool = False) -> Float64[np.ndarray, " rows"]:
    found = np.full(len(cells), math.nan)
    for row, cell in enumerate(cells):
        if cell is not None:
            try:
                found[row] = float(cell)
            except (TypeError, ValueError):
                raise InputError(
                    f"the cell is {cell!r:.80}", where=f"{where}, row {row + 1}", expected="a number"
                ) from None
        if needed and not math.isfinite(found[row]):
            raise InputError(f"the cell is {cell}", where=f"{where}, row {row + 1}", expected="a finite number")
    return found


def _ended(cells: Sequence[Any], where: str) -> Bool[np.ndarray, " rows"]:
    """Return which completions ended: those of which nothing is said did."""
    found = [TRUTHS.get(str(cell).strip().lower()) for cell in cells]
    odd = next((row for row, truth in enumerate(found) if truth is None), None)
    if odd is not None:
        raise InputError(f"the cell is {cells[odd]!r:.80}", where=f"{where}, row {odd + 1}", expected="true or false")
    return np.array(found, dtype=bool)


def verifier_of(data: Tasks) -> Verifier | None:
    """Return the first built-in verifier among the rewards."""
    functions = () if data.rewards is None else data.rewards.functions
    return next((function for function in functions if isinstance(function, Verifier)), None)


def plain_answer(text: str) -> str | None:
    r"""Return what a completion most likely gives for its answer.

    That is its last ``\boxed{}``; else what follows its last ``####``, else its last colon; else all of it. None if that is
    empty.

    Parameters
    ----------
    text
        The completion.
    """
    mark = next((mark for mark in ("####", ":") if mark in text), "")
    return last_boxed(text) or (text.rpartition(mark)[2] if mark else text).strip() or None


def answers_of(
    data: Tasks, groups: Int[np.ndarray, " rows"], texts: Sequence[str], finished: Bool[np.ndarray, " rows"]
) -> list[str | None]:
    """Return the answer of each completion, such that equal answers to one prompt are the same text.

    A verifier among the rewards knows how to find an answer and which are equal; without one see `plain_answer`.

    Parameters
    ----------
    data
        Prompts and rewards.
    groups, texts, finished
        Number of the prompt of each completion, its text, and whether it ended: if not, it has given no answer.
    """
    verifier = verifier_of(data)
    found: list[str | None] = []
    seen: dict[int, list[str]] = {}
    for group, text, ended in zip(groups.tolist(), texts, finished.tolist(), strict=True):
        if not ended:
            answer = None
        elif verifier is None:
            answer = plain_answer(text)
        else:
            answer = verifier.answer(text, data.prompts.row(group))
        if answer is not None and verifier is not None:
            before = seen.setdefault(group, [])
            equal = answer if answer in before else next((a for a in before if verifier.same(a, answer)), None)
            if equal is None:
                before.append(answer)
            answer = equal or answer
        found.append(answer)
    return found
