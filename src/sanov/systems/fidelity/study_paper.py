"""The tests of ramesh2025fidelity on a study's rows, as its notebooks run them: every row counts as independent.

====  ==================================================================================================================
H1    the gain is above 0: one-sample t, over all rows and for each method; one-way ANOVA of the gain over methods
H2    Spearman's correlation of the gain with the teacher's own score
H3    with the student's size; H3.2 with the student's score without a teacher
H4    with the agreement of teacher and student; H5 with the similarity of their texts
====  ==================================================================================================================
"""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64

from sanov.systems.fidelity.study_options import Alternative
from sanov.systems.fidelity.study_rows import Rows

__all__ = ["FLAT", "HYPOTHESES", "by_method", "by_size", "correlation", "covariate", "mean_of", "paper_tests", "t_test"]

HYPOTHESES = {
    "H2": "the teacher's score",
    "H3": "the student's size",
    "H3.2": "the student's score without a teacher",
    "H4": "agreement with the teacher",
    "H5": "similarity to the teacher's texts",
}
FEWEST = 3  # rows below which a correlation says nothing
FLAT = 1e-9  # points: gains that differ by less are equal but for rounding


def t_test(gains: Float64[np.ndarray, " rows"], alternative: Alternative) -> tuple[float, float]:
    """Student's t of the hypothesis that the mean gain is 0, with its p-value; NaN where there are fewer than 2 rows."""
    from scipy.stats import ttest_1samp

    gains = gains[np.isfinite(gains)]
    if gains.size < 2 or np.ptp(gains) < FLAT:
        return np.nan, np.nan
    found = ttest_1samp(gains, 0.0, alternative=alternative)
    return float(found.statistic), float(found.pvalue)


def covariate(rows: Rows, hypothesis: str, column: int) -> Float64[np.ndarray, " rows"]:
    """Return what a hypothesis sets the gains of a column against."""
    match hypothesis:
        case "H2":
            return rows.teacher[:, column]
        case "H3":
            return rows.size
        case "H3.2":
            return rows.baseline[:, column]
        case "H4":
            return rows.agreement[:, column]
    return rows.similarity[:, column]


def correlation(x: Float64[np.ndarray, " rows"], y: Float64[np.ndarray, " rows"]) -> tuple[float, float, int]:
    """Spearman's correlation, its two-sided p-value and the number of rows where both are known; NaN if it has none."""
    from scipy.stats import spearmanr

    known = np.isfinite(x) & np.isfinite(y)
    n = int(known.sum())
    if n < FEWEST or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return np.nan, np.nan, n
    found = spearmanr(x[known], y[known])
    return float(found.statistic), float(found.pvalue), n


def paper_tests(rows: Rows, alternative: Alternative) -> pl.DataFrame:
    """Return a row a column of scores: mean gain, t, p, ANOVA's F and p, and rho and p of H2 to H5."""
    lines = []
    for place, name in enumerate(rows.columns):
        gains = rows.gain[:, place]
        t, p = t_test(gains, alternative)
        f, f_p = _anova(rows, gains)
        line: dict[str, str | float | int] = {"task": name, "rows": int(np.isfinite(gains).sum())}
        line |= {"mean gain": mean_of(gains), "t": t, "p": p, "F": f, "F p": f_p}
        for hypothesis in HYPOTHESES:
            rho, rho_p, _ = correlation(gains, covariate(rows, hypothesis, place))
            line |= {f"{hypothesis} rho": rho, f"{hypothesis} p": rho_p}
        lines.append(line)
    return pl.DataFrame(lines).fill_nan(None)


def _anova(rows: Rows, gains: Float64[np.ndarray, " rows"]) -> tuple[float, float]:
    """One-way analysis of variance over the methods, as if each method's rows were others."""
    from scipy.stats import f_oneway

    groups = [gains[rows.of_method(name) & np.isfinite(gains)] for name in rows.methods]
    groups = [group for group in groups if group.size > 1]
    if len(groups) < 2 or all(np.ptp(group) < FLAT for group in groups):
        return np.nan, np.nan
    found = f_oneway(*groups)
    return float(found.statistic), float(found.pvalue)


def by_method(rows: Rows, alternative: Alternative) -> pl.DataFrame:
    """Return the headline column's mean gain, t and p for each method."""
    gains = rows.column(rows.headline)
    lines = []
    for name in rows.methods:
        mine = gains[rows.of_method(name)]
        t, p = t_test(mine, alternative)
        lines.append({"method": name, "rows": int(np.isfinite(mine).sum()), "mean gain": mean_of(mine), "t": t, "p": p})
    return pl.DataFrame(lines).fill_nan(None)


def by_size(rows: Rows) -> pl.DataFrame:
    """Return the headline column's mean gain by size of the student, a column a method."""
    gains = rows.column(rows.headline)
    lines = []
    for size in np.unique(rows.size[np.isfinite(rows.size)]):
        mine: Bool[np.ndarray, " rows"] = rows.size == size
        means = {name: mean_of(gains[mine & rows.of_method(name)]) for name in rows.methods}
        lines.append({"size": float(size), "rows": int(mine.sum()), "all": mean_of(gains[mine]), **means})
    return pl.DataFrame(lines).fill_nan(None)


def mean_of(values: Float64[np.ndarray, " rows"]) -> float:
    """Mean of what is known; NaN where nothing is."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else np.nan
