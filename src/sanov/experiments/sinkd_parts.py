"""What is read off the cells of the claim on `sinkd`: effects by seed, parts, the verdict, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from sanov.claims import Part, Record
from sanov.comparisons import paired_effect
from sanov.core.results import PartResult

__all__ = ["ARMS", "DATA", "figures", "parts", "verdict"]

DATA = {"digits": "digits", "mnist": "MNIST-5k", "sst2": "SST-2"}
ARMS = {
    "ce": "CE",
    "kl": "CE + KL",
    "rkl": "CE + reverse KL",
    "js": "CE + Jensen-Shannon",
    "tvd": "CE + total variation",
    "ot": "CE + KL + transport",
    "ot_paper": "CE + KL + transport, paper's weight",
    "wrong_batch": "control: wrong batch",
    "wrong_batch_tuned": "control: wrong batch, tuned",
    "constant": "control: constant teacher",
}
WORTH_HAVING = 0.5  # percentage points


# -- effects ----------------------------------------------------------------------------------------------------------

Effect = Callable[[Sequence[Record]], dict[int, float]]


def _table(records: Sequence[Record], field: str = "accuracy") -> dict[tuple[str, str, int], float]:
    return {
        (str(r.cell.key["data"]), str(r.cell.key["arm"]), int(r.cell.key["seed"])): float(r.values[field])
        for r in records
    }


def _difference(arm: str, other: str, data: Sequence[str] = tuple(DATA), field: str = "accuracy") -> Effect:
    """Arm minus other for each seed, averaged over those of the data sets on which both were run."""

    def effect(records: Sequence[Record]) -> dict[int, float]:
        found = _table(records, field)
        present = [name for name in data if any(key[:2] == (name, arm) for key in found)]
        wanted = [(name, which) for name in present for which in (arm, other)]
        seeds = sorted({seed for _, _, seed in found})
        return {
            seed: float(np.mean([found[name, arm, seed] - found[name, other, seed] for name in present]))
            for seed in seeds
            if present and all((*key, seed) in found for key in wanted)
        }

    return effect


def _rank_agreement(records: Sequence[Record]) -> dict[int, float]:
    """Kendall's tau of each seed between the paper's order SinKD > JS > RKL > KL and that of mean accuracies."""
    from scipy.stats import kendalltau

    order, found = ("ot", "js", "rkl", "kl"), _table(records)
    data = sorted({name for name, _, _ in found})
    complete = [
        seed
        for seed in sorted({seed for _, _, seed in found})
        if all((name, arm, seed) in found for name, arm in product(data, order))
    ]
    means = {seed: [np.mean([found[name, arm, seed] for name in data]) for arm in order] for seed in complete}
    taus = {seed: float(kendalltau([4, 3, 2, 1], values).statistic) for seed, values in means.items()}
    return {seed: 0.0 if np.isnan(tau) else tau for seed, tau in taus.items()}  # no order where all are equal


def _uninformative(name: str) -> Callable[[Sequence[Record]], str | None]:
    """Return a sanity check: where the teacher is no better than a student of labels alone, there is nothing to distil."""

    def reason(records: Sequence[Record]) -> str | None:
        labels_alone = [r for r in records if r.cell.key["data"] == name and r.cell.key["arm"] == "ce"]
        if not labels_alone:
            return None
        teacher, student = (np.mean([r.values[key] for r in labels_alone]) for key in ("teacher", "accuracy"))
        return None if teacher > student else "the teacher is no better than a student trained on labels alone"

    return reason


# -- parts ------------------------------------------------------------------------------------------------------------


def _raises(name: str) -> str:
    return f"transport - KL, {DATA[name]}"


def _worth(name: str) -> str:
    return f"worth having, {DATA[name]}"


CONTROL, TUNED_CONTROL = "control: wrong batch", "control: wrong batch, tuned"


def _part(name: str, statement: str, effect: Effect, **more: Any) -> Part:
    return Part(name, statement, effect, **{"unit": "points", **more})


def parts() -> list[Part]:
    """Return the parts: the primary ones with their controls, then what is reported apart."""
    primary = [
        _part(
            _raises(d),
            f"On {title}, tuned transport beside CE + KL raises test accuracy over tuned CE + KL.",
            _difference("ot", "kl", (d,)),
            sanity=_uninformative(d),
        )
        for d, title in DATA.items()
    ]
    primary += [
        _part(
            _worth(d),
            f"On {title}, it raises it by more than {WORTH_HAVING} points, the smallest effect worth having.",
            _difference("ot", "kl", (d,)),
            bound=WORTH_HAVING,
            required=False,
        )
        for d, title in DATA.items()
    ]
    controls = {
        CONTROL: ("wrong_batch", "transport to the teacher's outputs of other rows, at the same settings", True),
        TUNED_CONTROL: ("wrong_batch_tuned", "transport to the teacher's outputs of other rows, tuned as well", True),
        "control: constant teacher": ("constant", "transport to the batch mean of the teacher's outputs, tuned", False),
    }
    return [
        *primary,
        *(
            _part(
                name,
                f"Tuned transport does better than {told} (mean over data sets).",
                _difference("ot", arm),
                required=need,
            )
            for name, (arm, told, need) in controls.items()
        ),
        *_reported(),
    ]


def _reported() -> list[Part]:
    reported: dict[str, Any] = {"kind": "reported", "required": False}
    low, high = "apart", "near"
    return [
        *(
            _part(
                f"paper's weight - KL, {title}",
                f"On {title}, transport with the paper's weight (0.8e-3 times the batch) against tuned CE + KL.",
                _difference("ot_paper", "kl", (d,)),
                **reported,
            )
            for d, title in DATA.items()
        ),
        _part(
            "KL - labels alone",
            "What a teacher gives at all (mean over data sets).",
            _difference("kl", "ce"),
            **reported,
        ),
        *(
            _part(
                f"little overlap, {title}",
                f"On the half of {title}'s test rows where the untrained student and the teacher are furthest apart in "
                "total variation: tuned transport against tuned CE + KL.",
                _difference("ot", "kl", (d,), f"accuracy_{low}"),
                **reported,
            )
            for d, title in DATA.items()
        ),
        _part(
            "little against much overlap",
            "How much more transport gives on the half of rows with little overlap than on the other (mean over data sets).",
            _contrast(low, high),
            **reported,
        ),
        Part(
            "ranking",
            "Kendall's tau between the paper's order SinKD > JS > RKL > KL and that of mean test accuracy.",
            _rank_agreement,
            kind="reported",
            required=False,
        ),
    ]


def _contrast(low: str, high: str) -> Effect:
    def effect(records: Sequence[Record]) -> dict[int, float]:
        apart, near = (_difference("ot", "kl", field=f"accuracy_{half}")(records) for half in (low, high))
        return {seed: apart[seed] - near[seed] for seed in apart}

    return effect


def verdict(verdicts: Mapping[str, str]) -> str:
    """At least two of three data sets above 0 and none below, and better than the wrong batch.

    A data set where the interval reaches 0 but not the smallest effect worth having counts against the claim; where it
    covers both, it is undecided.
    """
    above = [verdicts[_raises(name)] for name in DATA]
    nothing = [verdicts[_raises(name)] == "inconclusive" and verdicts[_worth(name)] == "fails" for name in DATA]
    controls = [verdicts[CONTROL], verdicts[TUNED_CONTROL]]
    if "fails" in [*above, *controls] or sum(nothing) >= 2:
        return "fails"
    return "holds" if above.count("holds") >= 2 and controls == ["holds", "holds"] else "inconclusive"


# -- figures ----------------------------------------------------------------------------------------------------------


def figures(records: Sequence[Record], judged: Sequence[PartResult]) -> dict[str, dict[str, Any]]:
    """Return effects against tuned CE + KL for every arm, and for rows by their overlap at the start."""
    by_arm = [
        {"data": DATA[name], "arm": title, **interval}
        for (arm, title), name in product(ARMS.items(), DATA)
        if arm != "kl" and (interval := _interval(_difference(arm, "kl", (name,))(records)))
    ]
    halves = {"apart": "little overlap", "near": "much overlap"}
    by_half = [
        {"data": title, "rows": told, **interval}
        for (name, title), (half, told) in product(DATA.items(), halves.items())
        if (interval := _interval(_difference("ot", "kl", (name,), f"accuracy_{half}")(records)))
    ]
    return {
        "Test accuracy minus that of tuned CE + KL, with 95 % intervals": _intervals(
            by_arm, "arm", "data", list(ARMS.values())
        ),
        "Transport minus KL where student and teacher overlapped little, and much, at the start": _intervals(
            by_half, "data", "rows", list(DATA.values())
        ),
    }


def _interval(effects: Mapping[int, float]) -> dict[str, float]:
    if len(effects) < 2:
        return {}
    found = paired_effect(list(effects.values()))
    return {"difference": round(found.mean, 3), "low": round(found.low, 3), "high": round(found.high, 3)}


def _intervals(rows: Sequence[Mapping[str, Any]], y: str, colour: str, order: Sequence[str]) -> dict[str, Any]:
    """One row a value of `y`, in it an interval for each value of `colour`, and a line at 0."""
    place = {
        "y": {"field": y, "type": "nominal", "sort": list(order), "title": None},
        "yOffset": {"field": colour, "type": "nominal"},
        "color": {"field": colour, "type": "nominal", "title": None},
    }
    x = {"field": "difference", "type": "quantitative", "title": "percentage points"}
    ends = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
    tooltip = [{"field": name} for name in (y, colour, "difference", "low", "high")]
    return {
        "data": {"values": list(rows)},
        "height": {"step": 12},
        "layer": [
            {"mark": "rule", "encoding": {"x": {"datum": 0}}},
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {**place, **ends, "tooltip": tooltip}},
            {"mark": {"type": "point", "filled": True}, "encoding": {**place, "x": x, "tooltip": tooltip}},
        ],
    }
