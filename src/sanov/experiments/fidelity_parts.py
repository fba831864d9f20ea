"""What is read off the cells of the claim on `fidelity`: gains, excess agreement, parts, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float64

from sanov.claims import Part, Record
from sanov.comparisons import Interval, cluster_bootstrap
from sanov.core.results import PartResult
from sanov.experiments.fidelity_data import TEACHERS, expected_agreement

__all__ = ["DATA", "METHODS", "SETS", "Gains", "figures", "gains", "parts"]

DATA = {"digits": "digits", "mnist": "MNIST-5k", "sst2": "SST-2", "reviews": "movie reviews"}
SETS = ("mnist", "sst2", "reviews")  # of the preset `paper`
METHODS = {"fkl": "forward KL", "rkl": "reverse KL", "jsd": "Jensen-Shannon"}
WORTH_HAVING = 0.5  # percentage points
CEILING = 1.0  # points below a teacher within which a student of labels alone leaves it nothing to give
WIDEST = 0.6  # of the interval of a correlation that is to say that there is none
DRAWS = 10_000  # of the bootstrap


@dataclass(frozen=True, eq=False)
class Gains:
    """A row a data set, teacher, student and method; a column a seed that all of them have.

    ``gain`` in points over the student of labels alone; ``excess`` agreement in points; ``size`` the student's number of
    weights; ``room`` the teacher's accuracy minus that of the student of labels alone.
    """

    data: np.ndarray
    teacher: np.ndarray
    student: np.ndarray
    method: np.ndarray
    seeds: tuple[int, ...]
    gain: Float64[np.ndarray, "rows seeds"]
    excess: Float64[np.ndarray, "rows seeds"]
    size: Float64[np.ndarray, " rows"]
    room: Float64[np.ndarray, "rows seeds"]

    @property
    def pairs(self) -> np.ndarray:
        """The cluster of each row: a data set's pair of teacher and student."""
        return np.array([" ".join(each) for each in zip(self.data, self.teacher, self.student, strict=True)])


def gains(records: Sequence[Record], data: Sequence[str], methods: Sequence[str] = tuple(METHODS)) -> Gains | None:
    """Collect the gains of methods over the baseline of the same seed; None where no seed has all of them."""
    wanted = list(product(data, ("ce", *methods)))
    found = {_place(r): r.values for r in records if (r.cell.key.get("data"), r.cell.key["arm"]) in wanted}
    seeds = sorted({seed for *_, seed in found})
    seeds = [seed for seed in seeds if all((*each, seed) in found for each in wanted)]
    if not seeds:
        return None
    rows = [(d, m, pair) for d, m in product(data, methods) for pair in found[d, m, seeds[0]]["accuracy"]]
    names = [pair.split("/") for _, _, pair in rows]

    def table(value: Callable[[Any, Any, str], float]) -> Float64[np.ndarray, "rows seeds"]:
        return np.array([[value(found[d, m, s], found[d, "ce", s], pair) for s in seeds] for d, m, pair in rows])

    return Gains(
        np.array([d for d, _, _ in rows]),
        np.array([teacher for teacher, _ in names]),
        np.array([student for _, student in names]),
        np.array([m for _, m, _ in rows]),
        tuple(seeds),
        table(lambda kd, ce, pair: kd["accuracy"][pair] - ce["accuracy"][_student(pair)]),
        table(_excess),
        np.array([found[d, m, seeds[0]]["weights"][_student(pair)] for d, m, pair in rows], dtype=np.float64),
        table(lambda kd, ce, pair: kd["teacher"][pair.split("/")[0]] - ce["accuracy"][_student(pair)]),
    )


def _place(record: Record) -> tuple[str, str, int]:
    key = record.cell.key
    return str(key["data"]), str(key["arm"]), int(key["seed"])


def _student(pair: str) -> str:
    """A student of labels alone has no teacher in its name."""
    return "-/" + pair.split("/")[1]


def _excess(kd: Any, _: Any, pair: str) -> float:
    """Agreement with the teacher minus that of two models of these accuracies that err independently."""
    expected = expected_agreement(kd["teacher"][pair.split("/")[0]], kd["accuracy"][pair], int(kd["classes"]))
    return float(kd["agreement"][pair] - expected)


# -- statistics -------------------------------------------------------------------------------------------------------


def _bootstrap(values: np.ndarray, clusters: np.ndarray, draws: int) -> Interval:
    return cluster_bootstrap(values.mean(axis=1), clusters, draws=draws)


def _within(rows: Float64[np.ndarray, "rows three"]) -> float:
    """Spearman's correlation of the second with the third column within each value of the first, averaged."""
    found = [_spearman(*rows[rows[:, 0] == each, 1:].T) for each in np.unique(rows[:, 0])]
    known = [rho for rho in found if not np.isnan(rho)]
    return float(np.mean(known)) if known else np.nan


def _spearman(x: Float64[np.ndarray, " rows"], y: Float64[np.ndarray, " rows"]) -> float:
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else np.nan


def _ranks(values: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
    """Ranks, ties by their mean: what `scipy.stats.rankdata` gives, without the checks that cost most of its time."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation of the gain with something else, within data sets, over rows that count."""

    data: Sequence[str]
    other: Callable[[Gains], np.ndarray]
    counts: Callable[[Gains], np.ndarray] = lambda found: np.ones(len(found.gain), dtype=bool)
    draws: int = DRAWS

    def _rows(self, found: Gains, gain: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = self.counts(found)
        place = np.unique(found.data, return_inverse=True)[1]
        return np.stack([place, gain, other], axis=1)[kept], found.pairs[kept]

    def by_seed(self, records: Sequence[Record]) -> dict[int, float]:
        """Return the correlation in each seed."""
        found = gains(records, self.data)
        if found is None:
            return {}
        other = self.other(found)
        columns = {seed: (found.gain[:, j], other[:, j]) for j, seed in enumerate(found.seeds)}
        return {seed: _within(self._rows(found, *each)[0]) for seed, each in columns.items()}

    def interval(self, records: Sequence[Record]) -> Interval:
        """Return the correlation of means over seeds, with its interval by pairs of teacher and student."""
        found = gains(records, self.data)
        assert found is not None
        rows, pairs = self._rows(found, found.gain.mean(axis=1), self.other(found).mean(axis=1))
        if len(np.unique(pairs)) < 2:
            return Interval(np.nan, np.nan, np.nan, len(pairs), 0)
        return cluster_bootstrap(rows, pairs, _within, draws=self.draws)


def _log_size(found: Gains) -> Float64[np.ndarray, "rows seeds"]:
    return np.repeat(np.log(found.size)[:, None], len(found.seeds), axis=1)


def _has_room(found: Gains) -> np.ndarray:
    return np.asarray(found.room.mean(axis=1) > CEILING)


# -- parts ------------------------------------------------------------------------------------------------------------

Effect = Callable[[Sequence[Record]], dict[int, float]]


def _mean_gain(data: Sequence[str], draws: int, methods: Sequence[str] = tuple(METHODS)) -> dict[str, Any]:
    """Return the effect and the interval of a mean gain."""

    def effect(records: Sequence[Record]) -> dict[int, float]:
        found = gains(records, data, methods)
        return {} if found is None else dict(zip(found.seeds, found.gain.mean(axis=0).tolist(), strict=True))

    def interval(records: Sequence[Record]) -> Interval:
        found = gains(records, data, methods)
        assert found is not None
        return _bootstrap(found.gain, found.pairs, draws)

    return {"effect": effect, "interval": interval}


def _real_minus_random(data: Sequence[str], draws: int) -> dict[str, Any]:
    """Return effect and interval of what a real teacher gives beyond a random one, by the same method and settings."""

    def differences(records: Sequence[Record]) -> tuple[tuple[int, ...], np.ndarray, np.ndarray] | None:
        real, random = gains(records, data, ("fkl",)), gains(records, data, ("random",))
        if real is None or random is None or real.seeds != random.seeds:
            return None
        return real.seeds, real.gain - random.gain, real.pairs

    def effect(records: Sequence[Record]) -> dict[int, float]:
        found = differences(records)
        return {} if found is None else dict(zip(found[0], found[1].mean(axis=0).tolist(), strict=True))

    def interval(records: Sequence[Record]) -> Interval:
        found = differences(records)
        assert found is not None
        return _bootstrap(found[1], found[2], draws)

    return {"effect": effect, "interval": interval}


def _ceiling(data: Sequence[str]) -> Effect:
    """Agreement of the large teacher with its twin, minus that of its students with it."""

    def effect(records: Sequence[Record]) -> dict[int, float]:
        found = [r for r in records if r.cell.key["arm"] in METHODS and r.cell.key["data"] in data]
        seeds = sorted({int(r.cell.key["seed"]) for r in found})
        cells = {seed: [r.values for r in found if r.cell.key["seed"] == seed] for seed in seeds}
        return {
            seed: float(np.mean([v["twin"] - x for v in each for p, x in v["agreement"].items() if "large" in p]))
            for seed, each in cells.items()
            if len(each) == len(METHODS) * len(data)
        }

    return effect


def _published(field: str, selection: str, draws: int, *, without: bool = False) -> dict[str, Any]:
    """Return effect and interval of a published field: mean gain by pair; without the methods that collapsed, if so asked."""

    def rows(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray] | None:
        found = [r.values for r in records if r.cell.key["arm"] == "published" and r.cell.key["field"] == field]
        if not found:
            return None
        table, left_out = found[0]["rows"][selection], found[0]["collapsed"] if without else []
        kept = np.array([method not in left_out for method in table["method"]])
        return np.array(table["gain"])[kept], np.array(table["pair"])[kept]

    def effect(records: Sequence[Record]) -> dict[str, float]:
        found = rows(records)
        return {} if found is None else {p: float(found[0][found[1] == p].mean()) for p in np.unique(found[1]).tolist()}

    def interval(records: Sequence[Record]) -> Interval:
        found = rows(records)
        assert found is not None
        return cluster_bootstrap(*found, draws=draws)

    return {"effect": effect, "interval": interval, "over": "pair"}


def _differing(records: Sequence[Record]) -> dict[str, float]:
    cells = [r for r in records if r.cell.key["arm"] == "published"]
    counts = {str(r.cell.key["field"]): r.values["differing"] for r in cells}
    return {f"{field} {column}": float(count) for field, each in counts.items() for column, count in each.items()}


def parts(data: Sequence[str], draws: int = DRAWS) -> list[Part]:
    """Return the parts: the published files, then our own study with its controls, then what is reported apart.

    Parameters
    ----------
    data
        The data sets of our own study; a seed without one of them has no number.
    draws
        Of every bootstrap.
    """
    return [*_published_parts(draws), *_own_parts(data, draws), *_reported(data, draws)]


def _published_parts(draws: int) -> list[Part]:
    reported: dict[str, Any] = {"kind": "reported", "required": False, "unit": "points"}
    return [
        Part(
            "A: recomputed",
            "The paper's tests on its published files give the published numbers (best temperature, rows independent).",
            _differing,
            kind="equal_to",
            unit="numbers differ",
            over="column",
        ),
        Part(
            "A: math",
            "In the published math results the mean gain at temperature 1 is above 0, pairs being the independent units.",
            unit="points",
            **_published("math", "fixed", draws),
        ),
        Part(
            "A: commonsense",
            "In the published commonsense results the mean gain at temperature 1 is above 0.",
            unit="points",
            **_published("commonsense", "fixed", draws),
        ),
        Part(
            "A: commonsense without the collapsed method",
            "The same without methods of which a tenth of the scores lies more than 3 points below chance.",
            **reported,
            **_published("commonsense", "fixed", draws, without=True),
        ),
        *(
            Part(
                f"A: {field}, best temperature",
                f"The published {field} results, each column at its best temperature, as in the paper.",
                **reported,
                **_published(field, "best", draws),
            )
            for field in ("math", "commonsense")
        ),
    ]


def _own_parts(data: Sequence[str], draws: int) -> list[Part]:
    names = ", ".join(DATA[name] for name in data)
    by_size = Correlation(data, _log_size, _has_room, draws)
    by_agreement = Correlation(data, lambda found: found.excess, draws=draws)

    def too_wide(records: Sequence[Record]) -> str | None:
        found = by_agreement.interval(records)
        wide = found.high - found.low >= WIDEST and found.low <= 0
        return f"the interval is {found.high - found.low:.2f} wide, not below {WIDEST}" if wide else None

    return [
        Part(
            "B: gain",
            f"Distillation raises the student's test accuracy over labels alone, equally tuned ({names}).",
            unit="points",
            **_mean_gain(data, draws),
        ),
        Part(
            "B: worth having",
            f"It raises it by more than {WORTH_HAVING} points, the smallest effect worth having.",
            unit="points",
            bound=WORTH_HAVING,
            required=False,
            **_mean_gain(data, draws),
        ),
        Part(
            "B: smaller students gain more",
            "Spearman's correlation of gain and log size within data sets lies below 0, over the pairs in which the student "
            f"of labels alone is more than {CEILING:g} point below its teacher.",
            by_size.by_seed,
            kind="within",
            bound=(-1.0, 0.0),
            interval=by_size.interval,
        ),
        Part(
            "B: paradox",
            "Spearman's correlation of gain and excess agreement within data sets does not lie above 0; inconclusive where "
            f"its interval is {WIDEST} wide or wider.",
            by_agreement.by_seed,
            kind="not_above",
            interval=by_agreement.interval,
            sanity=too_wide,
        ),
        Part(
            "B: control: random teacher",
            "A teacher gives more than a random one of the same accuracy and confidence (forward KL, same settings).",
            unit="points",
            **_real_minus_random(data, draws),
        ),
    ]


def _reported(data: Sequence[str], draws: int) -> list[Part]:
    reported: dict[str, Any] = {"kind": "reported", "required": False, "unit": "points"}
    told = {
        "other": "a teacher of another task",
        "permuted": "a teacher whose inputs were permuted",
        "random": "a random teacher",
    }
    return [
        *(
            Part(f"B: gain, {DATA[d]}", f"The gain on {DATA[d]} alone.", **reported, **_mean_gain((d,), draws))
            for d in SETS
        ),
        *(
            Part(
                f"B: gain, {name}",
                f"The gain by {name}, all data sets.",
                **reported,
                **_mean_gain(data, draws, (method,)),
            )
            for method, name in METHODS.items()
        ),
        *(
            Part(
                f"B: gain from {text}",
                f"The gain from {text} (forward KL).",
                **reported,
                **_mean_gain(data, draws, (arm,)),
            )
            for arm, text in told.items()
        ),
        Part(
            "B: agreement ceiling",
            "How much more often the large teacher agrees with itself retrained from other weights than its students do.",
            _ceiling(data),
            **reported,
        ),
    ]


# -- figures ----------------------------------------------------------------------------------------------------------


def figures(records: Sequence[Record], judged: Sequence[PartResult]) -> dict[str, dict[str, Any]]:
    """Return the gain against the student's size, and against excess agreement, one point a teacher, student and method."""
    data = sorted({str(r.cell.key["data"]) for r in records if r.cell.key["arm"] in METHODS}, key=list(DATA).index)
    found = gains(records, data)
    if found is None:
        return {}
    columns = (found.data, found.teacher, found.student, found.method, found.size)
    means = (found.gain.mean(axis=1), found.excess.mean(axis=1))
    rows = [
        {
            "data": DATA[d],
            "teacher": t,
            "student": s,
            "method": METHODS[m],
            "size": w,
            "gain": round(float(g), 3),
            "excess": round(float(e), 3),
        }
        for d, t, s, m, w, g, e in zip(*columns, *means, strict=True)
    ]
    titles = {"size": "weights of the student", "excess": "agreement beyond that of independent errors, points"}
    return {
        "Gain against the student's size": _scatter(rows, "size", titles["size"], log=True),
        "Gain against excess agreement": _scatter(rows, "excess", titles["excess"]),
    }


def _scatter(rows: Sequence[Mapping[str, Any]], x: str, title: str, *, log: bool = False) -> dict[str, Any]:
    scale = {"type": "log"} if log else {"zero": False}
    names = ("data", "teacher", "student", "method", x, "gain")
    point = {
        "x": {"field": x, "type": "quantitative", "title": title, "scale": scale},
        "y": {"field": "gain", "type": "quantitative", "title": "gain over labels alone, points"},
        "color": {"field": "data", "type": "nominal", "title": None},
        "shape": {"field": "teacher", "type": "nominal", "sort": list(TEACHERS)},
        "tooltip": [{"field": name} for name in names],
    }
    return {
        "data": {"values": list(rows)},
        "layer": [
            {"mark": "rule", "encoding": {"y": {"datum": 0}}},
            {"mark": {"type": "point", "filled": True, "opacity": 0.7}, "encoding": point},
        ],
    }
