"""What is read off the cells of the claim on `rlg`: effects by seed, parts, the verdict, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sanov.claims import Part, Record
from sanov.core.results import PartResult
from sanov.experiments.effects import Effect, complete_seeds, difference, interval, interval_figure

__all__ = ["ARMS", "BASELINES", "DATA", "EXACT", "TITLES", "WEIGHTS", "figures", "parts", "verdict"]

DATA = {"ink": "ink", "class": "class probability"}
ARMS = {
    "slider": "interpolated weights",
    "cfg": "guidance by the class",
    "retrained": "retrained at beta / w",
    "gradient": "gradient of the reward",
    "longer": "longer tuning",
    "cfgrl": "guidance by good images",
    "best_of_2": "reference, best of 2",
    "reference": "reference, w = 0",
    "policy": "policy, w = 1",
    "rlg": "RLG, w = 2",
    "negative": "RLG, w = -1",
    "placebo_policy": "control: placebo, w = 1",
    "placebo": "control: placebo, w = 2",
    "rotated": "control: rotated guidance",
    "equal": "control: equal models",
}
BASELINES = ("slider", "cfg", "retrained", "gradient", "longer", "cfgrl", "best_of_2")
TITLES = {"flow_ode": "ODE", "flow_sde": "SDE, a = 0.7", "pc": "predictor-corrector"}
WEIGHTS = (0.5, 1.5, 2.0, 3.0)
WORTH_HAVING, NOTHING, BAND = 0.2, 0.05, 0.1  # standard deviations of the reward
AS_DIVERSE = 0.98  # of the diversity of RLG
FAR = 100.0  # below any effect
EXACT = "exact"


# -- effects ----------------------------------------------------------------------------------------------------------


def _gap(sampler: str, weight: float) -> Effect:
    """Return the gap of a sampler at a weight for each seed."""

    def effect(records: Sequence[Record]) -> dict[int, float]:
        found = complete_seeds(records, (sampler,), (EXACT,), f"gap {weight:g}")
        return {seed: float(values[0, 0]) for seed, values in found.items()}

    return effect


def _value(arm: str, data: str, field: str) -> Effect:
    def effect(records: Sequence[Record]) -> dict[int, float]:
        found = complete_seeds(records, (arm,), (data,), field)
        return {seed: float(values[0, 0]) for seed, values in found.items()}

    return effect


def _less_diverse(arm: str, data: str) -> Callable[[Sequence[Record]], str | None]:
    """Return the reason why more reward of a baseline says nothing: it has less diversity than RLG."""

    def reason(records: Sequence[Record]) -> str | None:
        found = complete_seeds(records, (arm, "rlg"), (data,), "diversity")
        if not found or np.mean(list(difference(arm, "rlg", (data,), "reward")(records).values())) <= 0:
            return None
        own, rlg = np.mean([values[0] for values in found.values()], axis=0)
        return (
            None
            if own >= AS_DIVERSE * rlg
            else f"its diversity is {own / rlg:.3f} of that of RLG, at no setting tried equal"
        )

    return reason


# -- parts ------------------------------------------------------------------------------------------------------------


def _part(name: str, statement: str, effect: Effect, **more: Any) -> Part:
    return Part(name, statement, effect, **{"unit": "sd(R)", **more})


def parts(data: Sequence[str] = tuple(DATA)) -> list[Part]:
    """Return the parts: more reward, controls, baselines, and whether beta / w is what is sampled.

    Parameters
    ----------
    data
        The rewards.
    """
    found: list[Part] = []
    for name in data:
        found += _more_reward(name)
    return [*found, *_equivalence(), *(part for name in data for part in _reported(name))]


def _more_reward(data: str) -> list[Part]:
    title = DATA[data]
    more, worth = difference("rlg", "policy", (data,), "reward"), f"RLG at w = 2 has more {title} than the policy"
    return [
        _part(f"more reward, {title}", f"{worth}.", more),
        _part(
            f"worth having, {title}",
            f"{worth}, by at least {WORTH_HAVING} sd.",
            more,
            kind="not_below",
            bound=WORTH_HAVING,
        ),
        *_control(
            "placebo",
            title,
            "a policy tuned on permuted rewards",
            difference("placebo", "placebo_policy", (data,), "reward"),
        ),
        *_control(
            "rotated", title, "guidance rotated beyond w = 1", difference("rotated", "policy", (data,), "reward")
        ),
        _part(
            f"control: w = -1, {title}",
            f"A negative weight has less {title} than the reference.",
            difference("reference", "negative", (data,), "reward"),
        ),
        _part(
            f"control: equal models, {title}",
            "Where policy and reference are the same, w changes nothing.",
            difference("equal", "reference", (data,), "reward"),
            kind="equal_to",
        ),
        *(
            _part(
                f"{ARMS[arm]} - RLG, {title}",
                f"At as many passes, {ARMS[arm]}, tuned to be as diverse, has no more {title} than RLG.",
                difference(arm, "rlg", (data,), "reward"),
                kind="not_above",
                sanity=_less_diverse(arm, data),
            )
            for arm in BASELINES
        ),
    ]


def _control(name: str, title: str, told: str, effect: Effect) -> list[Part]:
    """Return the two ways in which a control may hold, of which one is asked for: no gain, or less than is worth a word."""
    return [
        _part(
            f"control: {name}, {title}",
            f"With {told}, w = 2 has no more {title} than w = 1.",
            effect,
            kind="not_above",
            required=False,
        ),
        _part(
            f"control: {name}, less than {NOTHING} sd, {title}",
            f"With {told}, w = 2 has at most {NOTHING} sd more {title} than w = 1.",
            effect,
            kind="within",
            bound=(-FAR, NOTHING),
            required=False,
        ),
    ]


def _equivalence() -> list[Part]:
    return [
        _part(
            f"beta / w, {title}, w = {weight:g}",
            f"With exact models of digits, the {title} at w = {weight:g} has the mean ink of the tilt at beta / w.",
            _gap(sampler, weight),
            kind="within",
            bound=(-BAND, BAND),
            required=sampler == "flow_ode",
        )
        for sampler, title in TITLES.items()
        for weight in WEIGHTS
    ]


def _reported(data: str) -> list[Part]:
    title, how = DATA[data], {"kind": "reported", "required": False}
    rlg = difference("rlg", "policy", (data,), "diversity")
    return [
        _part(
            f"diversity, {title}",
            "Diversity of RLG at w = 2 less that of the policy.",
            rlg,
            **{**how, "unit": "distance"},
        ),
        _part(
            f"entropy of classes, {title}",
            "Entropy of the digits seen in images of RLG at w = 2 less that of the policy.",
            difference("rlg", "policy", (data,), "entropy"),
            **{**how, "unit": "nats"},
        ),
        _part(
            f"path KL, {title}",
            "KL of the paths of RLG at w = 2 less that of the policy.",
            difference("rlg", "policy", (data,), "path_kl"),
            **{**how, "unit": "nats"},
        ),
        _part(
            f"guard and placebo, {title}",
            "Whether the guard warns of the placebo at w = 2 (1) or not (0).",
            _value("placebo", data, "flagged"),
            **{**how, "unit": ""},
        ),
    ]


def verdict(verdicts: Mapping[str, str]) -> str:
    """All required parts hold, and each control in one of its two ways."""
    required = {part.name for part in parts() if part.required and part.kind != "reported"}
    own = [each for name, each in verdicts.items() if name in required]
    for name, each in verdicts.items():
        if name.startswith(("control: placebo, ", "control: rotated, ")) and f"less than {NOTHING} sd" not in name:
            kind, title = name.split(", ", 1)
            other = verdicts[f"{kind}, less than {NOTHING} sd, {title}"]
            own.append("holds" if "holds" in (each, other) else each)
    if "fails" in own:
        return "fails"
    return "holds" if own and all(each == "holds" for each in own) else "inconclusive"


# -- figures ----------------------------------------------------------------------------------------------------------


def figures(records: Sequence[Record], judged: Sequence[PartResult]) -> dict[str, dict[str, Any]]:
    """Return effects on the reward against the policy, reward against diversity, and gaps of the samplers."""
    by_arm = [
        {"data": DATA[name], "arm": title, **found}
        for arm, title in ARMS.items()
        for name in DATA
        if arm != "policy" and (found := interval(difference(arm, "policy", (name,), "reward")(records)))
    ]
    gaps = [
        {"w": f"{weight:g}", "sampler": title, **found}
        for sampler, title in TITLES.items()
        for weight in WEIGHTS
        if (found := interval(_gap(sampler, weight)(records)))
    ]
    points = [
        {"arm": ARMS[arm], "data": DATA[name], "reward": float(np.mean(r)), "diversity": float(np.mean(d))}
        for arm in ARMS
        for name in DATA
        if (r := list(_value(arm, name, "reward")(records).values()))
        and (d := list(_value(arm, name, "diversity")(records).values()))
    ]
    return {
        "Mean reward less that of the policy, with 95 % intervals": _in_sd(
            interval_figure(by_arm, "arm", "data", list(ARMS.values()))
        ),
        "Reward against diversity": _scatter(points),
        "Exact digits: mean reward less that of the tilt at beta / w": _in_sd(
            interval_figure(gaps, "w", "sampler", [f"{weight:g}" for weight in WEIGHTS])
        ),
    }


def _in_sd(figure: dict[str, Any]) -> dict[str, Any]:
    for layer in figure["layer"][1:]:
        layer["encoding"]["x"]["title"] = "standard deviations of the reward"
    return figure


def _scatter(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    place = {"type": "quantitative", "scale": {"zero": False}}
    return {
        "data": {"values": list(rows)},
        "mark": {"type": "point", "filled": True},
        "encoding": {
            "x": {"field": "diversity", "title": "mean distance of two images", **place},
            "y": {"field": "reward", "title": "mean reward, in sd(R)", **place},
            "color": {"field": "arm", "type": "nominal", "title": None, "sort": list(ARMS.values())},
            "shape": {"field": "data", "type": "nominal", "title": None},
            "tooltip": [{"field": name} for name in ("arm", "data", "reward", "diversity")],
        },
    }
