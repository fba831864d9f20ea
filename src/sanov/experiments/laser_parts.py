"""What is read off the cells of the claim on `laser`: effects by seed, parts, the verdict, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sanov.claims import Part, Record
from sanov.comparisons import Interval, paired_effect
from sanov.core.results import PartResult
from sanov.experiments.effects import Effect, complete_seeds, difference, interval, interval_figure
from sanov.experiments.policy_starts import FAMILIES

__all__ = ["ARMS", "VOTES", "figures", "parts", "verdict"]

ARMS = {
    "grpo": "GRPO",
    "laser_mse": "LaSeR, loss alone",
    "laser": "LaSeR",
    "bce": "two-label verifier",
    "permuted": "control: permuted labels",
    "score_alone": "control: the score as the only reward",
}
VOTES = (8, 16)
RIVALS = {"auroc_log_prob": ("laser_mse", "mean log-probability"), "auroc_length": ("laser_mse", "length"),
          "auroc": ("grpo", "GRPO's own score")}  # fmt: skip
GAIN, HARM, CHANCE = 0.10, -1.0, (0.47, 0.53)
LOWEST, HIGHEST = 15.0, 60.0  # per cent, where students should start
AUROC, WORTH, NO_HARM = "AUROC - best free measure", "AUROC gain worth having", "no harm"


def _vote(size: int) -> str:
    return f"weighted vote - majority, {size} completions"


def _best_rival(records: Sequence[Record], family: str) -> str:
    """Return the free measure of highest mean validation AUROC."""
    means = {}
    for field, (arm, _) in RIVALS.items():
        found = complete_seeds(records, (arm,), (family,), f"validation_{field}")
        means[field] = np.mean([values[0, 0] for values in found.values()]) if found else -np.inf
    return max(means, key=lambda field: float(means[field]))


def _gain(families: Sequence[str], arm: str = "laser_mse") -> Effect:
    """Return the score's AUROC minus that of the best free measure of each family, averaged over the families."""

    def effect(records: Sequence[Record]) -> dict[int, float]:
        by_family = []
        for family in families:
            field = _best_rival(records, family)
            own = complete_seeds(records, (arm,), (family,), "auroc")
            rival = complete_seeds(records, (RIVALS[field][0],), (family,), field)
            by_family.append({seed: float(own[seed][0, 0] - rival[seed][0, 0]) for seed in own.keys() & rival.keys()})
        seeds = set.intersection(*map(set, by_family))
        return {seed: float(np.mean([found[seed] for found in by_family])) for seed in sorted(seeds)}

    return effect


def _mean_only(effect: Effect) -> Any:
    """Return the mean as an interval of no width: the criterion asks for the mean."""

    def found(records: Sequence[Record]) -> Interval:
        values = list(effect(records).values())
        mean = float(np.mean(values))
        return Interval(mean, mean, mean, len(values), 0)

    return found


def _bonferroni(effect: Effect) -> Any:
    """Return the interval of 97.5 %: either of two votes may decide."""

    def found(records: Sequence[Record]) -> Interval:
        values = list(effect(records).values())
        if len(values) < 2:
            return Interval(values[0] if values else np.nan, np.nan, np.nan, len(values), 0)
        effects = paired_effect(values, confidence=0.975)
        return Interval(effects.mean, effects.low, effects.high, len(values), 0)

    return found


def _value(field: str, families: Sequence[str], arm: str) -> Effect:
    """Return an arm's own value, averaged over the families."""

    def effect(records: Sequence[Record]) -> dict[int, float]:
        return {seed: float(v.mean()) for seed, v in complete_seeds(records, (arm,), families, field).items()}

    return effect


def _between(first: str, second: str, families: Sequence[str], arm: str) -> Effect:
    """Return one value minus another of the same arm."""

    def effect(records: Sequence[Record]) -> dict[int, float]:
        one, two = (complete_seeds(records, (arm,), families, field) for field in (first, second))
        return {seed: float((one[seed] - two[seed]).mean()) for seed in one.keys() & two.keys()}

    return effect


def _gates(families: Sequence[str]) -> Any:
    """Return the reason why the starts say nothing: a student that is never or always right."""

    def reason(records: Sequence[Record]) -> str | None:
        for family in families:
            own = [record.values["start"] for record in records if record.cell.key["data"] == family]
            if any(not LOWEST <= value <= HIGHEST for value in own):
                return f"a student of {FAMILIES[family]} did not start between {LOWEST:g} and {HIGHEST:g} % right"
        return None

    return reason


def parts(families: Sequence[str]) -> list[Part]:
    """Return the parts: verification, no harm, use, the controls, and what is reported beside them."""
    gates, points = _gates(families), "percentage points"
    gain, harm = _gain(families), difference("laser_mse", "grpo", families)
    found = [
        Part(AUROC, "The score's AUROC is above that of mean log-probability, length and GRPO's own score.", gain,
             sanity=gates, unit="AUROC"),
        Part(WORTH, f"The mean gain of AUROC is at least {GAIN:.2f}.", gain, "not_below", GAIN, interval=_mean_only(gain),
             sanity=gates, unit="AUROC"),
        Part(NO_HARM, "Accuracy is not more than a point below GRPO's.", harm, "not_below", HARM, sanity=gates, unit=points),
    ]  # fmt: skip
    for size in VOTES:
        effect = _between(f"weighted_{size}", f"majority_{size}", families, "laser_mse")
        statement = f"A vote of {size} weighted by the score is right more often than the majority (97.5 % interval)."
        found.append(
            Part(
                _vote(size), statement, effect, interval=_bonferroni(effect), required=False, sanity=gates, unit=points
            )
        )
    permuted = _value("auroc", families, "permuted")
    found.append(
        Part("control: permuted labels, AUROC", "A score that learned permuted labels says nothing.", permuted, "within",
             CHANCE, unit="AUROC")
    )  # fmt: skip
    for size in VOTES:
        effect = _between(f"weighted_{size}", f"majority_{size}", families, "permuted")
        name = f"control: permuted labels, {_vote(size)}"
        found.append(Part(name, "It does not help to vote.", effect, "not_above", unit=points))
    alone = difference("score_alone", "grpo", families)
    name = "control: score alone - GRPO"
    found.append(
        Part(name, "The score as the only reward gives no gain.", alone, "not_above", required=False, unit=points)
    )
    swa = difference("laser", "laser_mse", families)
    reported = [
        ("LaSeR - LaSeR, loss alone", swa, points),
        ("AUROC: LaSeR, loss alone - two-label verifier", difference("laser_mse", "bce", families, "auroc"), "AUROC"),
        ("accuracy: two-label verifier - GRPO", difference("bce", "grpo", families), points),
        ("AUROC of the score", _value("auroc", families, "laser_mse"), "AUROC"),
        ("AUROC of mean log-probability", _value("auroc_log_prob", families, "laser_mse"), "AUROC"),
        ("AUROC of agreement among 16", _value("auroc_agreement", families, "laser_mse"), "AUROC"),
        ("AUROC within quarters of length: score - mean log-probability",
         _between("auroc_by_length", "log_prob_by_length", families, "laser_mse"), "AUROC"),
        ("harmonic mean of accuracies at 0.5", _value("f1", families, "laser_mse"), ""),
        ("calibration error", _value("ece", families, "laser_mse"), ""),
        ("best of 16 - majority of 16", _between("best_16", "majority_16", families, "laser_mse"), points),
    ]  # fmt: skip
    for name, effect, unit in reported:
        found.append(Part(name, f"{name}.", effect, "reported", required=False, unit=unit))
    for family in FAMILIES:
        name = f"{AUROC}, {FAMILIES[family]}"
        found.append(Part(name, f"{name}.", _gain((family,)), "reported", required=False, unit="AUROC"))
    return found


def verdict(found: Mapping[str, str]) -> str:
    """Return the claim's verdict: verification, no harm and the controls, and one of the two votes."""
    needed = [AUROC, WORTH, NO_HARM, *(name for name in found if name.startswith("control: permuted"))]
    own, votes = [found[name] for name in needed], [found[_vote(size)] for size in VOTES]
    if all(value == "holds" for value in own) and "holds" in votes:
        return "holds"
    if "fails" in own or all(value == "fails" for value in votes):
        return "fails"
    return "inconclusive"


def figures(records: Sequence[Record], judged: Sequence[PartResult]) -> dict[str, dict[str, Any]]:
    """Return the AUROC of every measure of confidence, and what votes gain."""
    families = [family for family in FAMILIES if any(record.cell.key["data"] == family for record in records)]
    fields = {
        "score": ("laser_mse", "auroc"),
        "score, with advantages": ("laser", "auroc"),
        "two-label verifier": ("bce", "auroc"),
        "mean log-probability": ("laser_mse", "auroc_log_prob"),
        "length": ("laser_mse", "auroc_length"),
        "agreement": ("laser_mse", "auroc_agreement"),
        "GRPO's own score": ("grpo", "auroc"),
        "permuted labels": ("permuted", "auroc"),
    }
    rows = [
        {"family": FAMILIES[family], "measure": label, **found}
        for family in families
        for label, (arm, field) in fields.items()
        if (found := interval(_value(field, (family,), arm)(records)))
    ]
    votes = [
        {"family": FAMILIES[family], "vote": f"{ARMS[arm]}, {size}", **found}
        for family in families
        for arm in ("laser_mse", "laser", "bce", "permuted")
        for size in VOTES
        if (found := interval(_between(f"weighted_{size}", f"majority_{size}", (family,), arm)(records)))
    ]
    shown: dict[str, dict[str, Any]] = {}
    if rows:
        figure = interval_figure(rows, "measure", "family", list(fields))
        shown["AUROC of measures of confidence"] = _titled(figure, "AUROC")
    if votes:
        order = list(dict.fromkeys(str(row["vote"]) for row in votes))
        shown["Weighted vote minus majority"] = interval_figure(votes, "vote", "family", order)
    return shown


def _titled(figure: dict[str, Any], title: str) -> dict[str, Any]:
    """Return a figure of intervals with another title of its axis."""
    for layer in figure["layer"][1:]:
        layer["encoding"]["x"] = {**layer["encoding"]["x"], "title": title, "scale": {"zero": False}}
    figure["layer"] = figure["layer"][1:]
    return figure
