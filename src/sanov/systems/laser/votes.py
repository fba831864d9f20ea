"""One answer out of several: by majority, by a vote that scores weigh, or the best scored. For scores of any origin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from sanov.core.errors import InputError

__all__ = ["Vote", "best_of_n", "majority_vote", "vote_table", "weighted_vote"]

NONE = "no extractable answer"
Answers = Sequence[str | None]
Scores = Sequence[float] | np.ndarray
Same = Callable[[str, str], bool]


@dataclass(frozen=True)
class Vote:
    """What was chosen.

    Parameters
    ----------
    answer
        The answer; None where no completion gives one.
    row
        The first completion that gives it (`best_of_n`: the one that was chosen); None as above.
    share
        Its share of all weights, or of the votes where there are no weights; of `best_of_n`, its score. NaN as above.
    reason
        Why there is none; empty where there is one.
    """

    answer: str | None
    row: int | None
    share: float
    reason: str = ""


@dataclass
class _Group:
    """Completions that give the same answer."""

    answer: str
    rows: list[int]
    weight: float = 0.0
    best: float = -math.inf


def majority_vote(answers: Answers, *, same: Same | None = None) -> Vote:
    """Return the answer that most completions give; of several, the one that was seen first.

    Parameters
    ----------
    answers
        Of each completion, in a form that equal answers share; None where there is none, which does not vote.
    same
        Whether two answers are the same; None: if their texts are. An answer joins the first one that it equals.
    """
    groups = _grouped(answers, same)
    if not groups:
        return Vote(None, None, math.nan, NONE)
    chosen = max(groups, key=lambda group: len(group.rows))  # max takes the first of equals
    return Vote(chosen.answer, chosen.rows[0], len(chosen.rows) / sum(len(group.rows) for group in groups))


def weighted_vote(answers: Answers, scores: Scores, *, same: Same | None = None) -> Vote:
    """Return the answer whose completions have the largest sum of scores, each held in [0, 1].

    If all weights are zero it is the majority. Of several answers it is the one with the higher best score, then the one
    that was seen first.

    Parameters
    ----------
    answers, same
        As in `majority_vote`.
    scores
        One a completion.

    Raises
    ------
    InputError
        The lengths differ, or a score is NaN.
    """
    values = _checked(answers, scores)
    groups = _grouped(answers, same)
    if not groups:
        return Vote(None, None, math.nan, NONE)
    for group in groups:
        group.weight = math.fsum(min(max(values[row], 0.0), 1.0) for row in group.rows)  # equal summands, equal sums
        group.best = max(values[row] for row in group.rows)
    total = math.fsum(group.weight for group in groups)
    if total == 0:
        for group in groups:
            group.weight = float(len(group.rows))
        total = math.fsum(group.weight for group in groups)
    chosen = max(groups, key=lambda group: (group.weight, group.best))
    return Vote(chosen.answer, chosen.rows[0], chosen.weight / total)


def best_of_n(answers: Answers, scores: Scores) -> Vote:
    """Return the answer of the completion with the highest score, the first of equals, among those that give one.

    Parameters
    ----------
    answers, scores
        As in `weighted_vote`.

    Raises
    ------
    InputError
        The lengths differ, or a score is NaN.
    """
    values = _checked(answers, scores)
    rows = [row for row, answer in enumerate(answers) if answer is not None]
    if not rows:
        return Vote(None, None, math.nan, NONE)
    row = max(rows, key=lambda row: values[row])
    return Vote(answers[row], row, values[row])


def vote_table(
    prompts: Sequence[str],
    answers: Answers,
    scores: Scores | None,
    right: Sequence[float] | np.ndarray | None = None,
    *,
    same: Same | None = None,
) -> pl.DataFrame:
    """Vote on every prompt.

    Parameters
    ----------
    prompts
        Of each completion; completions of one prompt vote together, wherever they stand.
    answers, same
        As in `majority_vote`.
    scores
        One a completion; None leaves the votes that need scores out.
    right
        Reward of each completion where it is known (NaN where not); an answer is as right as the first completion that
        gives it.

    Returns
    -------
    A row a prompt, in the order in which they came: ``prompt``, ``samples``, ``answered``, ``majority``, ``agreement`` (its
    share of the votes), ``weighted``, ``weighted_share``, ``best``, ``best_score``, and with `right` ``right_majority``,
    ``right_weighted``, ``right_best`` (0 where there is no answer) and ``right_any``, whether any completion is.

    Raises
    ------
    InputError
        The lengths differ, or a score is NaN.
    """
    for name, values in (("answers", answers), ("scores", scores), ("rewards", right)):
        if values is not None and len(values) != len(prompts):
            found = f"there are {len(values)} {name} and {len(prompts)} prompts"
            raise InputError(found, where="votes", expected="one a completion")
    places: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(row)
    return pl.DataFrame(
        [_voted(prompt, rows, answers, scores, right, same) for prompt, rows in places.items()],
        infer_schema_length=None,
    )


def _voted(
    prompt: str,
    rows: Sequence[int],
    answers: Answers,
    scores: Scores | None,
    right: Sequence[float] | np.ndarray | None,
    same: Same | None,
) -> dict[str, object]:
    own = [answers[row] for row in rows]
    majority = majority_vote(own, same=same)
    votes = {"majority": majority}
    found: dict[str, object] = {"prompt": prompt, "samples": len(rows), "answered": sum(a is not None for a in own)}
    found |= {"majority": majority.answer, "agreement": _known(majority.share)}
    if scores is not None:
        values = [float(scores[row]) for row in rows]
        votes |= {"weighted": weighted_vote(own, values, same=same), "best": best_of_n(own, values)}
        found |= {"weighted": votes["weighted"].answer, "weighted_share": _known(votes["weighted"].share)}
        found |= {"best": votes["best"].answer, "best_score": _known(votes["best"].share)}
    if right is not None:
        rewards = [float(right[row]) for row in rows]
        for name, vote in votes.items():
            found[f"right_{name}"] = _known(0.0 if vote.row is None else rewards[vote.row])
        known = [reward for reward in rewards if reward == reward]
        found["right_any"] = max(known) if known else None
    return found


def _known(value: float) -> float | None:
    return value if value == value else None


def _grouped(answers: Answers, same: Same | None) -> list[_Group]:
    """Return the groups in the order in which their answers were first seen."""
    groups: list[_Group] = []
    by_text: dict[str, _Group] = {}
    for row, answer in enumerate(answers):
        if answer is None:
            continue
        group = by_text.get(answer)
        if group is None and same is not None:
            group = next((other for other in groups if same(other.answer, answer)), None)
        if group is None:
            group = _Group(answer, [])
            groups.append(group)
        by_text[answer] = group
        group.rows.append(row)
    return groups


def _checked(answers: Answers, scores: Scores) -> list[float]:
    if len(scores) != len(answers):
        found = f"there are {len(scores)} scores and {len(answers)} answers"
        raise InputError(found, where="votes", expected="one score an answer")
    values = [float(score) for score in scores]
    if any(math.isnan(value) for value in values):
        row = next(row for row, value in enumerate(values, start=1) if math.isnan(value))
        raise InputError("the score is NaN", where=f"votes, completion {row}", expected="a number")
    return values
