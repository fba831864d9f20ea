"""What is read off the cells of the claim on `sinkd`: effects by seed, parts, the verdict, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from sanov.claims import Part, Record
from sanov.core.results import PartResult
from sanov.experiments.effects import Effect, complete_seeds, difference, interval, interval_figure, uninformative

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


def _rank_agreement(data: Sequence[str]) -> Effect:
    """Kendall's tau of each seed between the paper's order SinKD > JS > RKL > KL and that of mean accuracies."""

    def effect(records: Sequence[Record]) -> dict[int, float]:
        from scipy.stats import kendalltau

        found = complete_seeds(records, ("ot", "js", "rkl", "kl"), data, "accuracy")
        taus = {seed: float(kendalltau([4, 3, 2, 1], v.mean(axis=0)).statistic) for seed, v in found.items()}
        return {seed: 0.0 if np.isnan(tau) else tau for seed, tau in taus.items()}  # no order where all are equal

    return effect


# -- parts ------------------------------------------------------------------------------------------------------------


def _raises(name: str) -> str:
    return f"transport - KL, {DATA[name]}"


def _worth(name: str) -> str:
    return f"worth having, {DATA[name]}"


CONTROL, TUNED_CONTROL = "control: wrong batch", "control: wrong batch, tuned"


def _part(name: str, statement: str, effect: Effect, **more: Any) -> Part:
    return Part(name, statement, effect, **{"unit": "points", **more})


def parts(data: Sequence[str] = tuple(DATA)) -> list[Part]:
    """Return the parts: the primary ones with their controls, then what is reported apart.

    Parameters
    ----------
    data
        The data sets that a mean over data sets is of; a seed without one of them has no mean.
    """
    mean = f"(mean over {', '.join(DATA[name] for name in data)})"
    primary = [
        _part(
            _raises(d),
            f"On {title}, tuned transport beside CE + KL raises test accuracy over tuned CE + KL.",
            difference("ot", "kl", (d,)),
            sanity=uninformative((d,)),
        )
        for d, title in DATA.items()
    ]
    primary += [
        _part(
            _worth(d),
            f"On {title}, it raises it by more than {WORTH_HAVING} points, the smallest effect worth having.",
            difference("ot", "kl", (d,)),
            bound=WORTH_HAVING,
            required=False,
            sanity=uninformative((d,)),
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
                f"Tuned transport does better than {told} {mean}.",
                difference("ot", arm, data),
                required=need,
                sanity=uninformative(data),
            )
            for name, (arm, told, need) in controls.items()
        ),
        *_reported(data, mean),
    ]


def _reported(data: Sequence[str], mean: str) -> list[Part]:
    reported: dict[str, Any] = {"kind": "reported", "required": False}
    low, high = "apart", "near"
    return [
        *(
            _part(
                f"paper's weight - KL, {title}",
                f"On {title}, transport with the paper's weight (0.8e-3 times the batch) against tuned CE + KL.",
                difference("ot_paper", "kl", (d,)),
                **reported,
            )
            for d, title in DATA.items()
        ),
        _part(
            "KL - labels alone",
            f"What a teacher gives at all {mean}.",
            difference("kl", "ce", data),
            **reported,
        ),
        *(
            _part(
                f"little overlap, {title}",
                f"On the half of {title}'s test rows where the untrained student and the teacher are furthest apart in "
                "total variation: tuned transport against tuned CE + KL.",
                difference("ot", "kl", (d,), f"accuracy_{low}"),
                **reported,
            )
            for d, title in DATA.items()
        ),
        _part(
            "little against much overlap",
            f"How much more transport gives on the half of rows with little overlap than on the other {mean}.",
            _contrast(low, high, data),
            **reported,
        ),
        Part(
            "ranking",
            f"Kendall's tau between the paper's order SinKD > JS > RKL > KL and that of test accuracy {mean}.",
            _rank_agreement(data),
            kind="reported",
            required=False,
        ),
    ]


def _contrast(low: str, high: str, data: Sequence[str]) -> Effect:
    def effect(records: Sequence[Record]) -> dict[int, float]:
        apart, near = (difference("ot", "kl", data, f"accuracy_{half}")(records) for half in (low, high))
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
        {"data": DATA[name], "arm": title, **found}
        for (arm, title), name in product(ARMS.items(), DATA)
        if arm != "kl" and (found := interval(difference(arm, "kl", (name,))(records)))
    ]
    halves = {"apart": "little overlap", "near": "much overlap"}
    by_half = [
        {"data": title, "rows": told, **found}
        for (name, title), (half, told) in product(DATA.items(), halves.items())
        if (found := interval(difference("ot", "kl", (name,), f"accuracy_{half}")(records)))
    ]
    return {
        "Test accuracy minus that of tuned CE + KL, with 95 % intervals": interval_figure(
            by_arm, "arm", "data", list(ARMS.values())
        ),
        "Transport minus KL where student and teacher overlapped little, and much, at the start": interval_figure(
            by_half, "data", "rows", list(DATA.values())
        ),
    }
