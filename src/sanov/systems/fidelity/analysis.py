"""Everything that is known of a set of predictions: estimates, paired intervals, tests, tables by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray

from sanov.comparisons import mcnemar
from sanov.systems.fidelity.calibration import Confidence, calibrate
from sanov.systems.fidelity.config import Config
from sanov.systems.fidelity.counts import Counts, count, pair_name
from sanov.systems.fidelity.divergence import DIVERGENCES, divergences
from sanov.systems.fidelity.labels import Key, Statistics, differences, label_statistics
from sanov.systems.fidelity.rationales import sentence_bleu
from sanov.systems.fidelity.reading import Data
from sanov.systems.fidelity.resampling import draw_counts, draw_means, interval

__all__ = ["FEWEST", "Findings", "Value", "analyse"]

FEWEST = 30  # examples below which there are no intervals, and so no verdict
MOST_GROUPS = 60  # tasks, or classes, that are told apart


@dataclass(frozen=True)
class Value:
    """An estimate with its interval, where it has one."""

    estimate: float
    low: float | None = None
    high: float | None = None

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True, eq=False)
class Findings:
    """What the answer is written from.

    Parameters
    ----------
    data, config, counts
        What was asked, and the examples counted.
    values
        Every statistic that is defined.
    tests
        By pair of systems, the examples on which only the first is right, only the second, and McNemar's p-value.
    reliability
        By system and bin of confidence.
    groups
        By task, or by class.
    grouping
        ``task`` or ``class``.
    notes
        What was left out, and why.
    """

    data: Data
    config: Config
    counts: Counts
    values: Mapping[Key, Value]
    tests: Mapping[str, tuple[int, int, float]] = field(default_factory=dict)
    reliability: pl.DataFrame | None = None
    groups: pl.DataFrame | None = None
    grouping: str = "task"
    notes: tuple[str, ...] = ()

    def get(self, of: str, name: str) -> Value | None:
        """Return a statistic, if it is defined."""
        return self.values.get((of, name))


@dataclass
class _Work:
    """Estimates and draws as they are collected."""

    estimates: dict[Key, float] = field(default_factory=dict)
    draws: Statistics = field(default_factory=dict)
    intervals: dict[Key, tuple[float, float]] = field(default_factory=dict)  # where no function of the draws alone
    notes: list[str] = field(default_factory=list)


def analyse(data: Data, config: Config, *, seed: int = 0) -> Findings:
    """Compute every statistic that the data allow.

    Parameters
    ----------
    data
        What `reading.read` returned.
    config
        The options.
    seed
        Of the bootstrap.
    """
    work = _Work()
    draws = config.draws if data.rows >= FEWEST else 0
    if not draws:
        work.notes.append(f"only {data.rows} examples: intervals and the verdict are left out (they need {FEWEST})")
    names, groups, grouping = _groups(data, work.notes)
    counts = count(data.systems, data.answers, data.labels, groups)
    _labels(counts, data, draws, seed, work)
    _leave_out_constants(data, work)
    _divergences(data, config, draws, seed, work)
    _rationales(data, draws, seed, work)
    reliability = _calibration(data, config, draws, seed, work)
    return Findings(
        data=data,
        config=config,
        counts=counts,
        values=_values(work, config.confidence),
        tests=_tests(counts) if data.labels is not None else {},
        reliability=reliability,
        groups=_by_group(counts, names, grouping, draws, seed, config.confidence) if names else None,
        grouping=grouping,
        notes=tuple(work.notes),
    )


def _labels(counts: Counts, data: Data, draws: int, seed: int, work: _Work) -> None:
    possible = None if data.labels is None else data.possible
    shares, chance = counts.patterns / counts.rows, np.array([counts.chance(k) for k in range(len(counts.pairs))])
    found = label_statistics(counts, shares[None], chance[None], possible)
    work.estimates |= {key: float(values[0]) for key, values in found.items()}
    if draws:
        work.draws |= label_statistics(counts, *draw_counts(counts, draws, seed), possible)


def _leave_out_constants(data: Data, work: _Work) -> None:
    for system, answers in zip(data.systems, data.answers, strict=True):
        if (answers == answers[0]).all():
            said = "gives no answer at all" if answers[0] < 0 else f"answers {data.vocabulary[int(answers[0])]!r}"
            work.notes.append(f"the {system} {said} on every example: Cohen's kappa and error consistency are left out")
            for key in list(work.estimates):
                if system in key[0].split(", ") and key[1] in ("kappa", "error consistency"):
                    work.estimates.pop(key)


def _divergences(data: Data, config: Config, draws: int, seed: int, work: _Work) -> None:
    keys: list[Key] = []
    columns = []
    for a, b in combinations(range(len(data.systems)), 2):
        p, q = data.probabilities[a], data.probabilities[b]
        if p is not None and q is not None:
            of = pair_name(data.systems, (a, b))
            found = divergences(p, q, config.jsd_weight)
            keys += [(of, name) for name in DIVERGENCES]
            columns.append(found)
            for name, values in zip(DIVERGENCES, found.T, strict=True):
                endless = int(np.isinf(values).sum())
                if endless:
                    said = f"{name} of {of} is infinite: in {endless:,} examples one gives 0 where the other does not"
                    work.notes.append(said)
    if keys:
        _means(keys, np.concatenate(columns, axis=1), draws, seed, work)


def _means(keys: Sequence[Key], values: Float[ndarray, "rows columns"], draws: int, seed: int, work: _Work) -> None:
    work.estimates |= dict(zip(keys, map(float, values.mean(axis=0)), strict=True))
    finite = np.isfinite(values).all(axis=0)
    if draws and finite.any():
        kept = [key for key, keep in zip(keys, finite, strict=True) if keep]
        work.draws |= dict(zip(kept, draw_means(values[:, finite], draws, seed).T, strict=True))


def _rationales(data: Data, draws: int, seed: int, work: _Work) -> None:
    given = {place: cells for place, cells in enumerate(data.rationales) if cells is not None}
    if 0 not in given or len(given) < 2:
        return
    full = np.all([cells.is_not_null().to_numpy() for cells in given.values()], axis=0)
    if not full.all():
        gone = int((~full).sum())
        work.notes.append(f"{gone:,} examples with an empty rationale are left out of BLEU")
    if not full.any():
        return
    texts = {place: cells.filter(pl.Series(full)).to_list() for place, cells in given.items()}
    pairs = list(combinations(given, 2))
    scores = np.stack([sentence_bleu(texts[b], texts[a]) for a, b in pairs], axis=1)
    keys = [(pair_name(data.systems, pair), "BLEU") for pair in pairs]
    _means(keys, scores, draws if full.sum() >= FEWEST else 0, seed, work)


def _calibration(data: Data, config: Config, draws: int, seed: int, work: _Work) -> pl.DataFrame | None:
    if data.labels is None or not any(values is not None for values in data.probabilities):
        return None
    places = {name: place for place, name in enumerate(data.classes)}
    columns = np.array([places.get(answer, -1) for answer in data.vocabulary.to_list()])
    systems = []
    for system, answers, probabilities in zip(data.systems, data.answers, data.probabilities, strict=True):
        if probabilities is None:
            continue
        column = np.where(answers < 0, -1, columns[answers])
        confidence = np.where(column < 0, np.nan, probabilities[np.arange(data.rows), column])
        other = int((column != probabilities.argmax(axis=1)).sum())
        if other:
            work.notes.append(f"{system}: in {other:,} examples the answer is not the most probable class")
        if not np.isnan(confidence).all():
            systems.append(Confidence(system, confidence, (answers == data.labels).astype(float)))
    if not systems:
        return None
    found = calibrate(systems, config.bins, draws, seed)
    work.estimates |= {(system, "ECE"): error for system, error in found.errors.items()}
    work.draws |= {(system, "ECE"): values for system, values in found.draws.items()}
    work.intervals |= {(system, "ECE"): found.interval(system, config.confidence) for system in found.draws}
    return found.table


def _values(work: _Work, confidence: float) -> dict[Key, Value]:
    estimates = work.estimates | differences(work.estimates)
    draws = work.draws | differences({key: values for key, values in work.draws.items() if key in work.estimates})
    found = {}
    for key, estimate in estimates.items():
        ends = work.intervals.get(key)
        if ends is None and key in draws and np.isfinite(estimate):
            ends = interval(draws[key], confidence, estimate if key[1] == "ECE" else None)
        if not np.isnan(estimate):
            found[key] = Value(estimate, *(ends or ()))
    return found


def _tests(counts: Counts) -> dict[str, tuple[int, int, float]]:
    found = {}
    for pair in counts.pairs:
        first, second = (counts.right[place] for place in pair)
        only_first, only_second = (int(counts.patterns[only].sum()) for only in (first & ~second, ~first & second))
        found[pair_name(counts.systems, pair)] = (only_first, only_second, mcnemar(only_first, only_second))
    return found


# -- by task or class -------------------------------------------------------------------------------------------------


def _groups(data: Data, notes: list[str]) -> tuple[list[str], ndarray | None, str]:
    """Return the names of the groups, the number of each example's group, and what the groups are."""
    if data.tasks is not None:
        grouping, cells = "task", data.tasks.alias("group")
    elif data.labels is not None:
        grouping, cells = "class", data.vocabulary.gather(data.labels).alias("group")
    else:
        return [], None, "task"
    sizes = cells.value_counts(name="rows").sort(["rows", "group"], descending=[True, False])
    if grouping == "class" and sizes.height > MOST_GROUPS:
        return [], None, grouping  # free text: each answer is its own
    names = sizes.filter(pl.col("rows") >= FEWEST)["group"].head(MOST_GROUPS).sort().to_list()
    gone = sizes.filter(~pl.col("group").is_in(names))["group"].to_list()
    if gone and data.rows >= FEWEST:
        listed = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if gone[3:] else "")
        why = f"fewer than {FEWEST} examples" if sizes.height <= MOST_GROUPS else "too few examples, or too many tasks"
        notes.append(f"left out of the table by {grouping}: {listed} ({why})")
    if len(names) < 2:
        return [], None, grouping
    numbers = cells.replace_strict(names, list(range(len(names))), default=len(names), return_dtype=pl.Int64)
    return names, numbers.to_numpy(), grouping


def _by_group(
    counts: Counts, names: Sequence[str], grouping: str, draws: int, seed: int, confidence: float
) -> pl.DataFrame:
    """Return accuracies, the gain over the baseline and the agreement with the teacher in each group."""
    rng = np.random.default_rng([seed, 4])
    lines = []
    for name, here in zip(names, counts.groups, strict=False):
        rows = int(here.sum())
        drawn = rng.multinomial(rows, here / rows, size=draws) / rows if draws else None
        lines.append({grouping: name, "examples": rows, **_of_group(counts, here / rows, drawn, confidence)})
    return pl.DataFrame(lines)


def _of_group(
    counts: Counts,
    shares: Float[ndarray, " patterns"],
    drawn: Float[ndarray, "draws patterns"] | None,
    confidence: float,
) -> dict[str, float | None]:
    right = dict(zip(counts.systems, counts.right.astype(float), strict=True))
    line: dict[str, float | None] = {f"{system} accuracy": float(shares @ row) for system, row in right.items()}
    weights = {"agreement": counts.same[0].astype(float)}
    if counts.right.any():
        other = "baseline" if "baseline" in right else "teacher"
        weights = {f"student - {other}": right["student"] - right[other], **weights}
    else:
        line = {}
    for name, weight in weights.items():
        ends = None if drawn is None else interval(drawn @ weight, confidence)
        low, high = ends or (None, None)
        line |= {name: float(shares @ weight), f"{name} low": low, f"{name} high": high}
    return line
