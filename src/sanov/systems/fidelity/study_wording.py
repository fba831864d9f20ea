"""The sentences of a study: the answer first, then each claim of the paper, then what there is to know."""

from __future__ import annotations

from typing import Any

import polars as pl

from sanov.data.studies import AVERAGE
from sanov.systems.fidelity.study_corrected import Settings
from sanov.systems.fidelity.study_findings import FEWEST_CLUSTERS, FEWEST_PAIRS, Findings, Side

__all__ = ["few_clusters", "lines", "notes", "sentence", "verdict"]

VERDICTS = {1: "BEATS", 0: "INCONCLUSIVE", -1: "WORSE", None: "no verdict"}
FITS = 0.9  # share of cells in their bounds below which a table is not of the students that it is set against
TASKS_TOLD = 4
WIDE = 0.6  # of an interval of rho, from which one around 0 does not speak for no relation either


def verdict(side: Side) -> str:
    """BEATS, INCONCLUSIVE or WORSE than the undistilled baseline; no verdict without an interval."""
    return VERDICTS[side.sign]


def sentence(found: Findings) -> str:
    """Whether distillation raised the scores, by how much, by which rule; and where another rule says otherwise."""
    side = found.asked
    opening = {
        1: "Distillation raised {0} by {1}",
        -1: "Distillation lowered {0} by {1}",
        0: "Undecided whether distillation raised {0}: the gain is {1}",
        None: "Distillation changed {0} by {1}, without an interval",
    }[side.sign]
    flipped = side.sign == -1
    told = opening.format(_what(found), _points(side, flip=flipped))
    text = f"{told}{_at(side.label)} ({_basis(found)})"
    if others := [other for other in found.sides if other.sign != side.sign]:
        text += "; but " + ", and ".join(f"{_points(other)}{_at(other.label)}" for other in others)
    return text


def _what(found: Findings) -> str:
    tasks = len(found.data.tasks)
    return f"the mean score of {tasks} tasks" if tasks > 1 else f"the score on {found.data.tasks[0]}"


def _at(label: str) -> str:
    return f" {label}" if label.startswith("without ") else f" at {label}" if label else ""


def _basis(found: Findings) -> str:
    level = f"{found.settings.confidence:.0%}".replace("%", " %")
    kinds = {"pair": "pairs of teacher and student", "student": "students", "teacher": "teachers", "none": "rows"}
    return f"{found.asked.rows} rows, {level} interval over {found.n_clusters} {kinds[found.options.cluster]}"


def _points(side: Side, *, flip: bool = False) -> str:
    sign = -1 if flip else 1
    mean = f"{sign * side.mean:.1f} points"
    if side.interval is None:
        return mean
    low, high = sorted((sign * side.interval.low, sign * side.interval.high))
    return f"{mean} [{low:.1f}, {high:.1f}]"


# -- lines ------------------------------------------------------------------------------------------------------------


def lines(found: Findings) -> dict[str, str]:
    """What the summary says, by heading."""
    return {
        "verdict": _verdict_line(found.asked),
        "tasks": _tasks_line(found),
        "methods": _methods_line(found),
        "size": _correlation_line(found, "H3"),
        "own score": _own_score_line(found),
        "teacher": _correlation_line(found, "H2"),
        "agreement": _agreement_line(found),
        "similarity": _correlation_line(found, "H5"),
        "clusters": _clusters_line(found),
        "teachers out": _teachers_line(found),
    }


def _verdict_line(side: Side) -> str:
    said = verdict(side)
    if side.sign == 1:
        return f"{said} the undistilled baseline"
    if side.sign is None or not side.few:
        return said
    units = "pairs of teacher and student" if side.pairs < FEWEST_PAIRS else "clusters"
    number = side.pairs if side.pairs < FEWEST_PAIRS or side.interval is None else side.interval.clusters
    return f"{said}: {number} {units} are fewer than {FEWEST_PAIRS}"


def _tasks_line(found: Findings) -> str:
    if len(found.data.tasks) < 2:
        return ""
    column = "p adjusted"
    table = found.tasks.filter(pl.col("task") != AVERAGE)
    beyond = table.filter(pl.col(column) <= 1 - found.settings.confidence)
    clear = beyond.filter(pl.col("mean gain") > 0)["task"].to_list()
    lost = beyond.filter(pl.col("mean gain") < 0)["task"].to_list()
    rest = [name for name in table["task"] if name not in (*clear, *lost)]
    losing = f", {len(lost)} lose" if lost else ""
    told = (
        f"{len(clear)} of {table.height} gain{losing} beyond chance{_corrected(found.settings)} (rows as independent)"
    )
    return (
        f"{told}; not {', '.join(rest[:TASKS_TOLD])}{' ...' if rest[TASKS_TOLD:] else ''}" if rest and clear else told
    )


def _corrected(settings: Settings) -> str:
    return " after Holm's correction" if settings.correction == "holm" else ", uncorrected"


def _methods_line(found: Findings) -> str:
    means = ", ".join(f"{row['method']} {_signed(row['mean gain'])}" for row in found.methods.to_dicts())
    _, p, pairs = found.friedman
    return means + (f"; that they are equal has p = {_p(p)} (Friedman, {pairs} pairs)" if p == p else "")


def _correlation_line(found: Findings, hypothesis: str) -> str:
    row = found.correlation(hypothesis)
    if row is None:
        return ""
    told = {
        "H3": ("smaller students gain more", "larger students gain more", "no clear relation of gain and size"),
        "H2": (
            "weaker teachers give more",
            "better teachers give more",
            "the teacher's score does not predict the gain",
        ),
        "H4": ("more agreement, less gain", "more agreement, more gain", "agreement does not predict the gain"),
        "H5": ("more alike, less gain", "more alike, more gain", "similar texts do not predict the gain"),
    }[hypothesis]
    said = told[0] if row["high"] < 0 else told[1] if row["low"] > 0 else told[2]
    if row["low"] <= 0 <= row["high"] and row["high"] - row["low"] >= WIDE:
        said = "no clear relation (interval too wide to say)"
    return f"{said}: rho {row['rho']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _agreement_line(found: Findings) -> str:
    said, excess = _correlation_line(found, "H4"), found.correlation("H4 excess")
    if excess is None:
        return said
    return f"{said}; beyond independent errors {excess['rho']:.2f} [{excess['low']:.2f}, {excess['high']:.2f}]"


def _own_score_line(found: Findings) -> str:
    shared = found.shared
    if shared.rho != shared.rho:
        return ""
    return (
        f"gain and the student's own score, which it holds with a minus: rho {shared.rho:.2f}, {shared.null:.2f} over "
        f"swaps of the two scores (approximate p = {_p(shared.p_value)})"
    )


def _clusters_line(found: Findings) -> str:
    rows = found.clusters.filter(pl.col("clusters").is_in(["pair", "student"])).to_dicts()
    drawn = not all(row["exact"] for row in rows)
    how = {True: " (exact)", False: " (signs drawn at random)"} if drawn else {True: ""}
    told = [f"{row['number']} {row['clusters']} means p = {_p(row['sign-flip p'])}{how[row['exact']]}" for row in rows]
    return f"{'' if drawn else 'exact '}test of signs: {', '.join(told)}"


def _teachers_line(found: Findings) -> str:
    t = sorted(found.without_teacher["t"].drop_nulls().to_list())
    return f"without one teacher t is {t[0]:.1f} to {t[-1]:.1f}" if len(t) > 1 else ""


def _signed(value: float) -> str:
    return f"{value:+.1f}"


def _p(value: float) -> str:
    return f"{value:.2g}"


# -- notes ------------------------------------------------------------------------------------------------------------


def notes(found: Findings) -> tuple[str, ...]:
    """What was left out, assumed, or should make the reader careful; the gravest first."""
    said = [
        *_below_notes(found),
        *_chance_notes(found),
        *_selection_notes(found),
        *_bounds_notes(found),
        *_cluster_notes(found),
        *_headline_notes(found),
        *found.rows.notes,
        *found.data.notes,
    ]
    return tuple(said)


def _below_notes(found: Findings) -> list[str]:
    counts = found.below_counts.filter(pl.col("below chance") > 0).sort("below chance", descending=True)
    told = [
        f"{row['below chance']} of {row['cells']} scores of {_group(row['group'])}{_temperature(row['temperature'])}"
        for row in counts.head(3).iter_rows(named=True)
    ]
    if not told:
        return []
    first = found.below.row(0, named=True)
    example = f"{first['student']} {first['score']:g} on {first['task']}, where guessing gets {first['chance']:.3g}"
    margin = f"more than {found.options.below_chance_margin:g} points below chance"
    return [
        f"likely answer-format failures: {', '.join(told)} lie {margin} (lowest: {example}); look for missing answers"
    ]


def _chance_notes(found: Findings) -> list[str]:
    """Say of which tasks it is not known what guessing gets, and which levels look like fractions."""
    unknown = [task for task in found.data.tasks if task not in found.chance]
    tiny = [task for task, level in found.chance.items() if 0 < level < 1]
    said = []
    if unknown:
        more = f" and {len(unknown) - TASKS_TOLD} more" if unknown[TASKS_TOLD:] else ""
        told = f"what guessing gets on {', '.join(unknown[:TASKS_TOLD])}{more} is not known (study.chance=TASK:PERCENT)"
        said.append(f"{told}: no score there is held against chance")
    if tiny:
        level = found.chance[tiny[0]]
        said.append(f"guessing is taken to get {level:g} percent on {tiny[0]}, as among {100 / level:.0f} options")
    return said


def _group(name: str) -> str:
    return {
        "not trained": "models that were not trained",
        "teacher unaware of the task": "students of a teacher unaware of the task",
        "baseline": "baselines",
    }.get(name, name)


def _temperature(value: float | None) -> str:
    return "" if value is None else f" at temperature {value:g}"


def _selection_notes(found: Findings) -> list[str]:
    table = found.budgets
    unequal = (
        table["most temperatures"].n_unique() > 1 or (table["fewest temperatures"] < table["most temperatures"]).any()
    )
    if found.options.selection != "best" or not unequal:
        return []
    told = [f"{row['method']} {_tried(row)}" for row in table.to_dicts()]
    return [f"budgets are unequal, and the best of several is larger by chance: temperatures tried {', '.join(told)}"]


def _tried(row: dict[str, Any]) -> str:
    few, most = row["fewest temperatures"], row["most temperatures"]
    return (
        f"{most}" if few == most else f"{most} on {row['pairs with most']} of {row['pairs']} pairs, else {few} or more"
    )


def _bounds_notes(found: Findings) -> list[str]:
    table = found.bounds
    if table.is_empty():
        return []
    said = []
    base = table.filter(pl.col("kind") == "SFT")
    if base.height and base["within"].sum() < base["cells"].sum():
        inside = f"{base['within'].sum()} of {base['cells'].sum()}"
        said.append(f"agreement of the baseline is possible at these accuracies in {inside} cells only")
    kept = _at_selected(found, table.filter(pl.col("kind") != "SFT"))
    off = kept.filter(pl.col("within") < FITS * pl.col("cells"))
    if off.height:
        best = kept.sort(pl.col("within") / pl.col("cells"), descending=True).row(0, named=True)
        wrong = ", ".join(f"{row['student']} ({row['within']} of {row['cells']} cells)" for row in off.to_dicts())
        said.append(
            f"the agreement table cannot be of {wrong}: outside what their accuracies allow; it fits {best['student']} best "
            f"({best['within']} of {best['cells']}), so that its correlation with the gain is of mismatched students"
        )
    return said


def _at_selected(found: Findings, table: pl.DataFrame) -> pl.DataFrame:
    """Return the counts of the selected temperature; under other rules, those of the one that most students have."""
    at = found.options.temperature if found.options.selection == "fixed" else None
    if at is None or table.filter(pl.col("temperature") == at).is_empty():
        most = table.sort("cells", descending=True).head(1)["temperature"]
        at = most.item() if len(most) else None
    return table.filter(pl.col("temperature").eq_missing(pl.lit(at, pl.Float64)))


def _headline_notes(found: Findings) -> list[str]:
    """Say which rows the headline is not of, and where its interval has no width."""
    said, lost = [], len(found.rows) - found.asked.rows
    if lost:
        teacher, student, method = found.rows.labels.filter(~found.rows.has_headline).row(0)[:3]
        said.append(
            f"{lost} of {len(found.rows)} rows have no score on every task, and so no part in the mean (the first: {teacher} "
            f"-> {student} by {method})"
        )
    if found.asked.flat:
        said.append("all clusters have the same mean gain: the interval has no width, and does not say how gains vary")
    return said


def _cluster_notes(found: Findings) -> list[str]:
    if found.options.cluster == "none":
        return ["rows are taken as independent, though they share teachers and students (study.cluster=pair)"]
    if found.n_clusters >= FEWEST_CLUSTERS:
        return []
    return [few_clusters(found)]


def few_clusters(found: Findings) -> str:
    """What is to be known where there are few clusters."""
    k, sides = found.n_clusters, 1 if found.options.alternative == "greater" else 2
    return (
        f"there are {k} clusters ({found.options.cluster}), fewer than {FEWEST_CLUSTERS}: the interval is rough, and no "
        f"exact p can be below {sides}/2^{k} = {sides / 2**k:.3g}"
    )
