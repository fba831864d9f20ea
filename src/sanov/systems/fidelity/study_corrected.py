"""What is left of a study's gains when its rows depend on one another: rows share pairs, students and teachers.

Whole clusters are drawn anew for an interval, and keep one sign in an exact test; p-values of tasks are Holm's; methods
are compared within pairs; and the correlation of the gain with the student's own score, which the gain holds with a
minus sign, is set against the distribution that it has where the gain depends on nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from sanov.comparisons import Interval, holm, sign_flip
from sanov.systems.fidelity.study_bootstrap import draw_mean, draw_rho
from sanov.systems.fidelity.study_options import Alternative, Cluster
from sanov.systems.fidelity.study_paper import HYPOTHESES, correlation, covariate, mean_of, t_test
from sanov.systems.fidelity.study_rows import Rows

__all__ = [
    "Settings",
    "Swaps",
    "cluster_tests",
    "correlations",
    "friedman",
    "leave_one_teacher_out",
    "mean_interval",
    "rho_interval",
    "shared_term",
    "task_tests",
]

EXACT_SIGNS = 20  # up to so many clusters all 2^k signs are counted
SIGNS = 100_000  # random ones beyond
EXACT_SWAPS = 12  # up to so many clusters all 2^k swaps are counted
SWAPS = 4000  # random ones beyond
DECIMALS = 9  # of points: what differs by less is tied but for rounding


@dataclass(frozen=True)
class Settings:
    """What the tests are asked for."""

    cluster: Cluster = "pair"
    alternative: Alternative = "greater"
    correction: str = "holm"
    confidence: float = 0.95
    draws: int = 10_000
    seed: int = 0

    @property
    def bootstrap(self) -> dict[str, Any]:
        """What the bootstrap is asked for."""
        return {"draws": self.draws, "confidence": self.confidence, "seed": self.seed}


@dataclass(frozen=True)
class Swaps:
    """A correlation, and where it lies among those under the hypothesis that the gain depends on nothing."""

    rho: float
    null: float
    p_value: float


def mean_interval(gains: Float64[np.ndarray, " rows"], clusters: np.ndarray, settings: Settings) -> Interval | None:
    """Return the mean gain with its cluster bootstrap interval; None where there are fewer than 2 clusters."""
    known = np.isfinite(gains)
    if len(np.unique(clusters[known])) < 2:
        return None
    return draw_mean(gains[known], clusters[known], **settings.bootstrap)


def rho_interval(
    gains: Float64[np.ndarray, " rows"], other: Float64[np.ndarray, " rows"], clusters: np.ndarray, settings: Settings
) -> Interval | None:
    """Return Spearman's correlation with its cluster bootstrap interval; None where it is not defined."""
    known = np.isfinite(gains) & np.isfinite(other)
    if len(np.unique(clusters[known])) < 2 or np.isnan(correlation(gains, other)[0]):
        return None
    return draw_rho(gains[known], other[known], clusters[known], **settings.bootstrap)


def task_tests(rows: Rows, settings: Settings) -> pl.DataFrame:
    """Return a row a column of scores: mean gain, bootstrap interval, t, p, and p adjusted over the tasks.

    The headline column is no test of its own family: it is the mean of the others.
    """
    clusters = rows.clusters(settings.cluster)
    lines, tests = [], []
    for place, name in enumerate(rows.columns):
        gains = rows.gain[:, place]
        found = mean_interval(gains, clusters, settings)
        t, p = t_test(gains, settings.alternative)
        tests.append(p)
        low, high = (found.low, found.high) if found else (np.nan, np.nan)
        lines.append({"task": name, "mean gain": mean_of(gains), "low": low, "high": high, "t": t, "p": p})
    single = len(rows.columns) == 1
    family = np.array(tests if single else tests[:-1])
    if settings.correction == "holm":
        known = np.isfinite(family)
        family[known] = holm(family[known])
    adjusted = pl.Series("p adjusted", [*family, *([] if single else [tests[-1]])])
    return pl.DataFrame(lines).with_columns(adjusted).fill_nan(None)


def cluster_tests(rows: Rows, settings: Settings) -> pl.DataFrame:
    """Return the headline gain by what is taken for independent: interval, sign-flip p, the smallest possible p.

    The p-value is exact up to `EXACT_SIGNS` clusters; beyond, `SIGNS` random signs are drawn.
    """
    gains = rows.column(rows.headline)
    lines = []
    for kind in ("pair", "student", "teacher", "none"):
        labels = rows.clusters(kind)
        found = mean_interval(gains, labels, settings)
        means = cluster_means(gains, labels)
        sides, exact = 1 if settings.alternative == "greater" else 2, len(means) <= EXACT_SIGNS
        lines.append({
            "clusters": kind if kind != "none" else "row",
            "number": len(means),
            "mean gain": mean_of(gains),
            "low": found.low if found else None,
            "high": found.high if found else None,
            "sign-flip p": sign_flip(
                means, alternative=settings.alternative, exact_up_to=EXACT_SIGNS, draws=SIGNS, seed=settings.seed
            ),
            "exact": exact,
            "smallest possible p": sides / 2.0 ** len(means) if exact else 1 / (1 + SIGNS),
        })  # fmt: skip
    return pl.DataFrame(lines).fill_nan(None)


def cluster_means(gains: Float64[np.ndarray, " rows"], clusters: np.ndarray) -> Float64[np.ndarray, " clusters"]:
    """Mean of each cluster, in the order of their names."""
    known = np.isfinite(gains)
    return np.array([gains[known & (clusters == name)].mean() for name in np.unique(clusters[known])])


def leave_one_teacher_out(rows: Rows, alternative: Alternative) -> pl.DataFrame:
    """Return the headline gain without each teacher: mean, t, p."""
    gains, teachers = rows.column(rows.headline), rows.labels["teacher"].to_numpy()
    lines = []
    for name in rows.labels["teacher"].unique(maintain_order=True):
        rest = gains[teachers != name]
        if np.isfinite(rest).sum() > 1:
            t, p = t_test(rest, alternative)
            lines.append(
                {"without": name, "rows": int(np.isfinite(rest).sum()), "mean gain": mean_of(rest), "t": t, "p": p}
            )
    schema = {"without": pl.String, "rows": pl.Int64, "mean gain": pl.Float64, "t": pl.Float64, "p": pl.Float64}
    return pl.DataFrame(lines, schema=schema).fill_nan(None)


def friedman(rows: Rows) -> tuple[float, float, int]:
    """Friedman's test of equal gains of all methods within pairs: statistic, p-value, pairs that have every method.

    NaN where there are fewer than 3 methods or 2 such pairs.
    """
    from scipy.stats import friedmanchisquare

    gains, pairs = rows.column(rows.headline), rows.clusters("pair")
    table = [
        [gains[(pairs == pair) & rows.of_method(name)] for name in rows.methods] for pair in np.unique(pairs)
    ]  # fmt: skip
    whole = [[float(np.nanmean(cell)) for cell in line] for line in table if all(np.isfinite(c).any() for c in line)]
    if len(rows.methods) < 3 or len(whole) < 2:
        return np.nan, np.nan, len(whole)
    found = friedmanchisquare(*np.transpose(whole))
    return float(found.statistic), float(found.pvalue), len(whole)


def correlations(rows: Rows, settings: Settings) -> pl.DataFrame:
    """Return H2 to H5 on the headline column: rho, cluster bootstrap interval, p as if rows were independent."""
    gains, clusters, place = rows.column(rows.headline), rows.clusters(settings.cluster), len(rows.columns) - 1
    lines = []
    for hypothesis, meaning in HYPOTHESES.items():
        other = covariate(rows, hypothesis, place)
        rho, p, n = correlation(gains, other)
        found = rho_interval(gains, other, clusters, settings)
        if found is not None:
            lines.append({
                "hypothesis": hypothesis,
                "gain against": meaning,
                "rows": n,
                "rho": rho,
                "low": found.low,
                "high": found.high,
                "p": p,
            })  # fmt: skip
    schema = {"hypothesis": pl.String, "gain against": pl.String, "rows": pl.Int64}
    schema |= dict.fromkeys(("rho", "low", "high", "p"), pl.Float64)
    return pl.DataFrame(lines, schema=schema).fill_nan(None)


def shared_term(rows: Rows, column: int, settings: Settings) -> Swaps:
    """Correlation of the gain with the student's score without a teacher, corrected for the term that both share.

    The gain is S - B and holds the baseline B with a minus sign, so that noise in B alone makes the correlation with B
    negative. If distillation adds the same to every student, S minus the mean gain and B are two measurements of one
    quantity, and all swaps of the two, a cluster at a time (random ones where there are many), give about the distribution of
    the correlation, shared term included. About: several S of one student share its B, so that swapped data are not quite as
    likely as those observed.

    Parameters
    ----------
    rows
        Of the study.
    column
        Place of the scores.
    settings
        The cluster that is swapped, and the seed.

    Returns
    -------
    The correlation, the mean of its distribution, and the share of swaps with one at least as far below that mean
    (alternative=greater: larger gains for weaker students), or as far from it.
    """
    score, baseline = rows.score[:, column], rows.baseline[:, column]
    known = np.isfinite(score) & np.isfinite(baseline)
    score, baseline = score[known], baseline[known]
    _, cluster = np.unique(rows.clusters(settings.cluster)[known], return_inverse=True)
    if score.size < 3 or cluster.max(initial=0) < 1 or np.ptp(baseline) == 0:
        return Swaps(np.nan, np.nan, np.nan)
    level = score - (score - baseline).mean()
    found = _swapped(level, baseline, _signs(int(cluster.max()) + 1, settings.seed)[:, cluster])
    observed, found = found[0], found[~np.isnan(found)]
    if np.isnan(observed):  # all gains are equal
        return Swaps(np.nan, np.nan, np.nan)
    centre = float(found.mean())
    slack = 1e-12
    if settings.alternative == "greater":
        p_value = float((found <= observed + slack).mean())
    else:
        p_value = float((np.abs(found - centre) >= abs(observed - centre) - slack).mean())
    return Swaps(float(observed), centre, p_value)


def _swapped(
    level: Float64[np.ndarray, " rows"], baseline: Float64[np.ndarray, " rows"], swap: Int64[np.ndarray, "swaps rows"]
) -> Float64[np.ndarray, " swaps"]:
    """Spearman's correlation of difference and second measurement under each way of swapping; NaN where it has none."""
    from scipy.stats import rankdata

    one, other = np.where(swap, baseline, level), np.where(swap, level, baseline)
    a, b = rankdata(np.round(one - other, DECIMALS), axis=1), rankdata(other, axis=1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    found: Float64[np.ndarray, " swaps"] = np.full(len(swap), np.nan)
    np.divide((a * b).sum(axis=1), scale, out=found, where=scale > 0)
    return found


def _signs(clusters: int, seed: int) -> Int64[np.ndarray, "swaps clusters"]:
    """Which clusters are swapped, none in the first line: all ways, or as many random ones as `SWAPS`."""
    if clusters <= EXACT_SWAPS:
        return np.array(list(itertools.product((0, 1), repeat=clusters)), dtype=np.int64)
    random = np.random.default_rng(seed).integers(0, 2, (SWAPS, clusters))
    return np.concatenate([np.zeros((1, clusters), dtype=np.int64), random])
