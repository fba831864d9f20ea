"""Everything that is known of a study when its answer is written: each test once, with what it was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64

from sanov.comparisons import Interval
from sanov.core.errors import InputError
from sanov.data.studies import StudyData, chance_levels
from sanov.systems.fidelity.study_checks import (
    below_chance,
    below_chance_counts,
    bound_counts,
    budgets,
    collapsed,
    excess_agreement,
)
from sanov.systems.fidelity.study_corrected import (
    Settings,
    Swaps,
    cluster_tests,
    correlations,
    friedman,
    leave_one_teacher_out,
    mean_interval,
    rho_interval,
    shared_term,
    task_tests,
)
from sanov.systems.fidelity.study_options import Selection, StudyOptions
from sanov.systems.fidelity.study_paper import FLAT, by_method, by_size, correlation, mean_of, paper_tests
from sanov.systems.fidelity.study_rows import Rows, select, temperatures

__all__ = ["FEWEST_CLUSTERS", "FEWEST_PAIRS", "Findings", "Side", "analyse"]

FEWEST_CLUSTERS = 6  # below, an exact test cannot reach 1 in 40
FEWEST_PAIRS = 5  # below, an exact test cannot reach 1 in 20, and no verdict is given


@dataclass(frozen=True)
class Side:
    """One way to look at the headline gain: which rows have it, of how many pairs, its mean and interval."""

    label: str
    rows: int
    pairs: int
    mean: float
    interval: Interval | None

    @property
    def few(self) -> bool:
        """Whether there are too few pairs, or clusters, for a verdict."""
        return min(self.pairs, self.interval.clusters if self.interval else self.pairs) < FEWEST_PAIRS

    @property
    def flat(self) -> bool:
        """Whether the interval has no width, as all clusters have one mean."""
        return self.interval is not None and self.interval.high - self.interval.low < FLAT

    @property
    def sign(self) -> int | None:
        """1 where the interval of enough pairs lies above 0, -1 where below, else 0; None without an interval."""
        if self.interval is None or np.isnan(self.interval.low):
            return None
        return 0 if self.few else int(self.interval.low > 0) - int(self.interval.high < 0)


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found.

    Parameters
    ----------
    data, rows, options, settings
        What was asked of what.
    chance
        Percent that guessing gets, by task.
    excess
        Agreement beyond that of independent errors [rows, columns].
    asked
        The headline gain by the rule that was asked for.
    sides
        The same by other rules: best of temperatures for a fixed one and the reverse, and without collapsed methods.
    collapsed
        Methods of which many selected scores lie below chance.
    tasks, clusters, methods, sizes, without_teacher, correlations, paper
        Tables of tests.
    friedman
        Statistic, p-value and pairs of the comparison of methods within pairs.
    shared
        H3.2 with the distribution that it has where the gain depends on nothing.
    below, below_counts, bounds, budgets
        What the files say about themselves.
    """

    data: StudyData
    rows: Rows
    options: StudyOptions
    settings: Settings
    chance: Mapping[str, float]
    excess: Float64[np.ndarray, "rows columns"]
    asked: Side
    sides: tuple[Side, ...]
    collapsed: tuple[str, ...]
    tasks: pl.DataFrame
    clusters: pl.DataFrame
    methods: pl.DataFrame
    sizes: pl.DataFrame
    without_teacher: pl.DataFrame
    correlations: pl.DataFrame
    paper: pl.DataFrame
    friedman: tuple[float, float, int]
    shared: Swaps
    below: pl.DataFrame
    below_counts: pl.DataFrame
    bounds: pl.DataFrame
    budgets: pl.DataFrame

    @property
    def n_clusters(self) -> int:
        """Number of clusters that are drawn anew; rows where they count as independent."""
        return len(np.unique(self.rows.with_headline().clusters(self.options.cluster)))

    def correlation(self, hypothesis: str) -> dict[str, Any] | None:
        """Return a row of the correlations; None where it is not defined."""
        found = self.correlations.filter(pl.col("hypothesis") == hypothesis)
        return found.row(0, named=True) if found.height else None


def analyse(data: StudyData, config: Any, *, seed: int) -> Findings:
    """Run every test.

    Parameters
    ----------
    data
        The study.
    config
        With the fields `study`, `confidence` and `draws`.
    seed
        Of the bootstrap.
    """
    options: StudyOptions = config.study
    settings = Settings(
        cluster=options.cluster,
        alternative=options.alternative,
        correction=options.correction,
        confidence=config.confidence,
        draws=config.draws,
        seed=seed,
    )
    rows = select(data, options.selection, options.temperature)
    _refuse_without_headline(rows)
    chance = options.chance_of(chance_levels(), data.tasks)
    fallen = tuple(collapsed(rows, chance, options.below_chance_margin))
    excess = excess_agreement(rows, chance)
    return Findings(
        data=data,
        rows=rows,
        options=options,
        settings=settings,
        chance=chance,
        excess=excess,
        asked=_side(rows, rows.label, settings),
        sides=tuple(_other_sides(data, rows, options, settings, fallen)),
        collapsed=fallen,
        tasks=task_tests(rows, settings),
        clusters=cluster_tests(rows, settings),
        methods=by_method(rows, options.alternative),
        sizes=by_size(rows),
        without_teacher=leave_one_teacher_out(rows, options.alternative),
        correlations=pl.concat([correlations(rows, settings), _excess_correlation(rows, excess[:, -1], settings)]),
        paper=paper_tests(rows, options.alternative),
        friedman=friedman(rows),
        shared=shared_term(rows, len(rows.columns) - 1, settings),
        below=below_chance(data, chance, options.below_chance_margin),
        below_counts=below_chance_counts(data, chance, options.below_chance_margin),
        bounds=bound_counts(data),
        budgets=budgets(data),
    )


def _excess_correlation(rows: Rows, excess: Float64[np.ndarray, " rows"], settings: Settings) -> pl.DataFrame:
    """Return H4 with the agreement beyond that of independent errors: agreement alone rises with accuracy."""
    gains = rows.column(rows.headline)
    rho, p, n = correlation(gains, excess)
    found = rho_interval(gains, excess, rows.clusters(settings.cluster), settings)
    columns = ("hypothesis", "gain against", "rows", "rho", "low", "high", "p")
    line = ("H4 excess", "agreement beyond independent errors", n, rho, found.low, found.high, p) if found else None
    kinds = dict(zip(columns, (pl.String, pl.String, pl.Int64, *[pl.Float64] * 4), strict=True))
    return pl.DataFrame([line] if line else [], schema=kinds, orient="row").fill_nan(None)


def _refuse_without_headline(rows: Rows) -> None:
    """Refuse a study in which no row has the gain that the first sentence is about."""
    if rows.has_headline.any():
        return
    counts = np.isfinite(rows.gain[:, :-1]).sum(axis=0)
    told = ", ".join(f"{name} {count}" for name, count in zip(rows.columns, counts, strict=False))
    raise InputError(
        f"no row has a score and a baseline on every task, so that there is no mean gain (of {len(rows)} rows have: {told})",
        where="the study",
        expected="rows with every task",
        fix=f"name tasks that rows share by study.tasks={rows.columns[int(counts.argmax())]}, or complete the table",
    )


def _side(rows: Rows, label: str, settings: Settings) -> Side:
    own = rows.with_headline()
    gains = own.column(rows.headline)
    found = mean_interval(gains, own.clusters(settings.cluster), settings)
    return Side(label, len(own), len(np.unique(own.clusters("pair"))), mean_of(gains), found)


def _other_sides(
    data: StudyData, rows: Rows, options: StudyOptions, settings: Settings, fallen: tuple[str, ...]
) -> list[Side]:
    sides = []
    if len(temperatures(data)) > 1:
        other: Selection = "best" if options.selection == "fixed" else "fixed"
        try:
            chosen = select(data, other, options.temperature)
        except InputError:  # some student has no row at the fixed temperature: there is no such side
            pass
        else:
            if chosen.has_headline.any():
                sides.append(_side(chosen, chosen.label, settings))
    kept = np.all([~rows.of_method(name) for name in fallen], axis=0) if fallen else np.zeros(len(rows), dtype=bool)
    if rows.has_headline[kept].any():
        sides.append(
            _side(rows.take(kept), f"{f'{rows.label}, ' if rows.label else ''}without {' and '.join(fallen)}", settings)
        )
    return sides
