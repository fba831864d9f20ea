"""What is read off the cells of the claim on `kdrl`: effects by seed, parts, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sanov.claims import Part, Record
from sanov.core.results import PartResult
from sanov.experiments.effects import Effect, complete_seeds, difference, interval, interval_figure
from sanov.experiments.policy_starts import FAMILIES

__all__ = ["ARMS", "figures", "parts"]

ARMS = {
    "sft": "SFT",
    "grpo": "GRPO",
    "opd": "KD-RKL",
    "kdrl_constant": "KDRL, constant",
    "kdrl": "KDRL, annealed",
    "mask_response": "KDRL, wrong responses",
    "mask_group": "KDRL, failed groups",
    "opd_then_rl": "KD-RKL, then GRPO",
    "random_teacher": "control: untrained teacher",
    "k1_loss": "control: k1 as a loss",
}
BASELINES = ("grpo", "opd")
LOWEST, HIGHEST, ABLE = 15.0, 60.0, 90.0  # per cent, where students and teachers should be


def _better(records: Sequence[Record], family: str) -> str:
    """Return the baseline of higher mean validation accuracy."""
    found = complete_seeds(records, BASELINES, (family,), "validation")
    means = np.mean([values[0] for values in found.values()], axis=0) if found else np.zeros(len(BASELINES))
    return BASELINES[int(np.argmax(means))]


def _beats(families: Sequence[str], arm: str = "kdrl") -> Effect:
    """Return the effect arm minus the better baseline of each family, averaged over the families."""

    def effect(records: Sequence[Record]) -> dict[int, float]:
        by_family = [difference(arm, _better(records, family), (family,))(records) for family in families]
        seeds = set.intersection(*map(set, by_family))
        return {seed: float(np.mean([found[seed] for found in by_family])) for seed in sorted(seeds)}

    return effect


def _gates(families: Sequence[str]) -> Any:
    """Return the reason why the starts say nothing: a student never or always right, or a teacher that is not able."""

    def reason(records: Sequence[Record]) -> str | None:
        for family in families:
            own = [record.values for record in records if record.cell.key["data"] == family]
            if any(not LOWEST <= values["start"] <= HIGHEST for values in own):
                return f"a student of {FAMILIES[family]} did not start between {LOWEST:g} and {HIGHEST:g} % right"
            if any(values["teacher"] < ABLE for values in own):
                return f"the teacher of {FAMILIES[family]} is below {ABLE:g} %"
        return None

    return reason


def _to_reach(families: Sequence[str], arm: str, other: str) -> Effect:
    """Return how many thousand tokens fewer an arm needs to the reward that both reach."""

    def effect(records: Sequence[Record]) -> dict[int, float]:
        found: dict[int, list[float]] = {}
        for record in records:
            key = record.cell.key
            if key["arm"] == arm and key["data"] in families:
                rival = [r for r in records if r.cell.key == {**key, "arm": other}]
                if rival:
                    found.setdefault(int(key["seed"]), []).append(_gap(record.values, rival[0].values))
        return {seed: float(np.mean(gaps)) for seed, gaps in found.items() if len(gaps) == len(families)}

    return effect


def _gap(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    target = min(max(first["reward_curve"]), max(second["reward_curve"]))
    at = [
        next(t for r, t in zip(v["reward_curve"], v["token_curve"], strict=True) if r >= target)
        for v in (first, second)
    ]
    return float((at[0] - at[1]) / 1000)


def parts(families: Sequence[str]) -> list[Part]:
    """Return the parts: what decides, the controls, and what is reported beside it."""
    points, gates = "percentage points", _gates(families)
    found = [
        Part(
            "KDRL - better baseline",
            "Annealed KDRL is right more often than the better of GRPO and KD-RKL, on the mean over the families.",
            _beats(families),
            unit=points,
            sanity=gates,
        ),
        Part(
            "control: untrained teacher - GRPO",
            "An untrained teacher gives no gain over GRPO.",
            difference("random_teacher", "grpo", families),
            "not_above",
            unit=points,
            sanity=gates,
        ),
        Part(
            "control: k1 as a loss - GRPO",
            "k1 as a loss, whose expected gradient is zero, gives no gain over GRPO.",
            difference("k1_loss", "grpo", families),
            "not_above",
            unit=points,
            sanity=gates,
        ),
    ]
    pairs = [
        ("kdrl", "grpo"),
        ("kdrl", "opd"),
        ("kdrl", "sft"),
        ("opd_then_rl", "kdrl"),
        ("kdrl_constant", "kdrl"),
        ("mask_response", "kdrl"),
        ("mask_group", "kdrl"),
    ]
    for arm, other in pairs:
        name = f"{ARMS[arm]} - {ARMS[other]}"
        effect = difference(arm, other, families)
        found.append(Part(name, f"{name}: test accuracy.", effect, "reported", required=False, unit=points))
    for family in FAMILIES:
        name = f"KDRL - better baseline, {FAMILIES[family]}"
        found.append(Part(name, f"{name}.", _beats((family,)), "reported", required=False, unit=points))
    for arm, other in (("kdrl", "grpo"), ("kdrl", "opd"), ("mask_response", "kdrl")):
        name = f"length: {ARMS[arm]} - {ARMS[other]}"
        effect = difference(arm, other, families, "length")
        found.append(Part(name, f"{name}.", effect, "reported", required=False, unit="tokens"))
    for other in BASELINES:
        name = f"thousand tokens to the same reward: {ARMS['kdrl']} - {ARMS[other]}"
        effect = _to_reach(families, "kdrl", other)
        found.append(Part(name, f"{name}.", effect, "reported", required=False, unit="thousand tokens"))
    return found


def figures(records: Sequence[Record], judged: Sequence[PartResult]) -> dict[str, dict[str, Any]]:
    """Return every arm against GRPO, by family, and how the rewards rose."""
    families = [family for family in FAMILIES if any(record.cell.key["data"] == family for record in records)]
    rows = [
        {"family": FAMILIES[family], "arm": label, **found}
        for family in families
        for arm, label in ARMS.items()
        if arm != "grpo" and (found := interval(difference(arm, "grpo", (family,))(records)))
    ]
    shown: dict[str, dict[str, Any]] = {}
    if rows:
        shown["Test accuracy minus that of GRPO"] = interval_figure(rows, "arm", "family", list(ARMS.values()))
    curves = [
        {"family": FAMILIES[str(r.cell.key["data"])], "arm": ARMS[str(r.cell.key["arm"])], "tokens": t, "reward": reward,
         "seed": r.cell.key["seed"]}
        for r in records
        for t, reward in zip(r.values.get("token_curve", ()), r.values.get("reward_curve", ()), strict=True)
    ]  # fmt: skip
    if curves:
        shown["Reward of the completions in training"] = _curves(curves)
    return shown


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean over seeds at each block of steps, a panel for each family."""
    means: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    places: dict[tuple[Any, ...], int] = {}
    for row in rows:
        run = (row["family"], row["arm"], row["seed"])
        places[run] = places.get(run, -1) + 1
        means.setdefault((row["family"], row["arm"], places[run]), []).append((row["tokens"], row["reward"]))
    values = [
        {"family": family, "arm": arm, "tokens": float(np.mean([t for t, _ in pairs])) / 1000,
         "reward": round(float(np.mean([r for _, r in pairs])), 2)}
        for (family, arm, _), pairs in means.items()
    ]  # fmt: skip
    return {
        "data": {"values": values},
        "facet": {"column": {"field": "family", "type": "nominal", "title": None}},
        "spec": {
            "mark": {"type": "line"},
            "encoding": {
                "x": {"field": "tokens", "type": "quantitative", "title": "thousand sampled tokens"},
                "y": {"field": "reward", "type": "quantitative", "title": "right, %"},
                "color": {"field": "arm", "type": "nominal", "title": None, "sort": list(ARMS.values())},
            },
        },
    }
