"""What `apply` answers, in words and tables: scores, verdicts, and what they are worth in a vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from sanov.comparisons import difference_interval
from sanov.core import pages
from sanov.core.answers import Answer
from sanov.data.prompts import Prompts
from sanov.learning.completing import FEWEST, carried
from sanov.learning.validation import Validation
from sanov.systems.laser.fitted import Fitted
from sanov.systems.laser.judging import judge_completed
from sanov.systems.laser.reading import Questions
from sanov.systems.laser.scale import Scale
from sanov.systems.laser.verification import Judged, verify
from sanov.systems.laser.votes import vote_table

__all__ = ["answer", "calibration"]


def answer(
    judged: Judged,
    *,
    threshold: float | str = 0.5,
    share: float = 0.5,
    seed: int = 0,
    notes: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
    prompts: Prompts | None = None,
) -> Answer:
    """Lay out scores, verdicts, calibration and votes.

    Parameters
    ----------
    judged
        What was scored.
    threshold, share, seed
        See `verification.verify`.
    notes, provenance
        For the page.
    prompts
        Whose columns stand beside their completions; one that the completion has too, with ``prompt_`` in front.

    Raises
    ------
    InputError
        As `verification.verify`.
    """
    found = verify(judged, threshold, share, seed)
    rewards = judged.rewards if judged.known.any() else None
    votes = vote_table(judged.prompts, judged.answers, judged.scores, rewards)
    worth = {} if rewards is None else _worth(votes)
    unfinished, silent = int((~judged.finished).sum()), sum(given is None for given in judged.answers)
    counts = {
        "prompts": len(votes),
        "completions": len(judged.groups),
        "unfinished": unfinished,
        "without_answer": silent,
    }
    lines = dict(found.lines)
    if worth:
        lines["right by"] = ", ".join(f"{name} {worth[key]:.1%}" for name, key in VOTES.items() if key in worth)
    told = [*notes, *found.notes]
    if silent:
        told.append(
            f"{silent} completions give no answer ({unfinished} were cut at the limit): they score 0 and do not vote."
        )
    completions = _completions(judged, found.threshold, found.columns)
    if prompts is not None:
        completions = completions.with_columns(carried(prompts, judged.groups.tolist(), OF_COMPLETIONS))
    tables = {"Completions": completions, "Votes": votes, **found.tables}
    return Answer(
        "laser",
        _sentence(counts, found.values, worth, found.threshold),
        counts | found.values | worth,
        tables,
        found.figures,
        tuple(told),
        provenance=provenance or {},
        lines=lines,
    )


def calibration(
    fitted: Fitted, validation: Validation, share: float, seed: int
) -> tuple[dict[str, float], list[pages.Block]]:
    """Return how well the score does on the held-out prompts of a training: AUROC with its interval, and figures.

    Parameters
    ----------
    fitted
        The policy, with its scale among the results.
    validation
        With the completions of the last evaluation.
    share, seed
        See `verification.verify`.
    """
    found, stored = validation.last, fitted.results.get("self_reward")
    if found is None or stored is None or not found.ends or not np.isin(found.rewards, (0, 1)).any():
        return {}, []
    scale = Scale.from_dict(stored)
    if not (np.isnan(found.rewards) | np.isin(found.rewards, (0, 1))).all():  # scores are read against 0 and 1
        return {}, []
    judged = judge_completed(fitted, scale, Questions(validation.prompts, validation.rewards), found)
    seen = verify(judged, 0.5, share, seed)
    names = ("auroc", "auroc_low", "auroc_high", "acc", "f1", "ece")
    values = {f"self_reward_{name}": seen.values[name] for name in names if seen.values.get(name) is not None}
    caption = "Held-out prompts, completions of the last evaluation."
    blocks: list[pages.Block] = [pages.Figure(title, spec, caption) for title, spec in seen.figures.items()]
    return values, [*blocks, pages.Table("Verdicts", seen.tables["Verdicts"], caption)]


# What the table of completions may say of a completion itself, for one table or another
OF_COMPLETIONS = (
    *("prompt", "completion", "log_label", "mean_log_prob", "answer", "score", "verdict", "probability"),
    *("reward", "finished", "tokens"),
)
VOTES = {
    "weighted vote": "weighted_right",
    "majority": "majority_right",
    "best score": "best_right",
    "any completion": "any_right",
    "one completion": "mean_reward",
}


def _worth(votes: pl.DataFrame) -> dict[str, float]:
    """Return how often each way to choose is right, and how much a vote gains by the weights."""
    known = votes.drop_nulls(["right_majority", "right_weighted", "right_best", "right_any"])
    if not len(known):
        return {}
    found = {f"{name}_right": float(known[f"right_{name}"].mean()) for name in ("weighted", "majority", "best", "any")}  # type: ignore[arg-type]
    gain = (known["right_weighted"] - known["right_majority"]).to_numpy()
    found["weighted_minus_majority"] = float(gain.mean())
    if len(gain) >= FEWEST:
        low, high = difference_interval(gain)
        found |= {"weighted_minus_majority_low": low, "weighted_minus_majority_high": high}
    return found


def _completions(judged: Judged, threshold: float, more: Mapping[str, np.ndarray]) -> pl.DataFrame:
    columns: dict[str, Any] = {"prompt": judged.prompts}
    columns |= {name: list(values) for name, values in judged.columns.items()}
    columns |= {"answer": pl.Series(judged.answers, dtype=pl.String), "score": judged.scores}
    columns |= {"verdict": judged.scores > threshold, **more}
    columns |= {"reward": judged.rewards, "finished": judged.finished}
    if judged.lengths is not None:
        columns["tokens"] = judged.lengths
    return pl.DataFrame(columns).with_columns(pl.selectors.float().fill_nan(None))


def _sentence(
    counts: Mapping[str, int], values: Mapping[str, Any], worth: Mapping[str, float], threshold: float
) -> str:
    many = f"{counts['completions']} completions of {counts['prompts']} prompts"
    if "share_above" in values:
        share = values["share_above"]
        return f"{many} are scored, {share:.1%} of them above {threshold:g}; nothing says which are right."
    if values["auroc"] is None:
        text = f"{many} are scored; they are all {'right' if values['acc_neg'] is None else 'wrong'}, so AUROC is undefined"
    else:
        text = f"the score tells right from wrong answers with an AUROC of {values['auroc']:.3f}"
        if "auroc_low" in values:
            text += f" [{values['auroc_low']:.3f}, {values['auroc_high']:.3f}] (95 % interval over prompts)"
    if not worth:
        return f"{text}."
    weighted, majority = worth["weighted_right"], worth["majority_right"]
    text += f"; {weighted:.1%} of prompts are right by weighted vote and {majority:.1%} by majority"
    if "weighted_minus_majority_low" in worth:
        low, high = (100 * worth[f"weighted_minus_majority_{end}"] for end in ("low", "high"))
        text += f" (difference {100 * worth['weighted_minus_majority']:.1f} points [{low:.1f}, {high:.1f}])"
    elif counts["prompts"] < FEWEST:
        text += f" ({counts['prompts']} prompts are too few for an interval)"
    return f"{text}."
