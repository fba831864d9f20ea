"""What is read off the cells of the claim on `nola`: effects by seed, parts, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sanov.claims import Part, Record
from sanov.comparisons import paired_effect
from sanov.core.results import PartResult
from sanov.experiments.effects import Effect, complete_seeds, difference, interval, interval_figure
from sanov.experiments.nola_data import NAMES

__all__ = ["ARMS", "FEW", "figures", "parts"]

ARMS = {
    "nola": "NOLA, k = 64",
    "lora1": "LoRA, r = 1",
    "probe": "linear probe",
    "coordinates": "control: coordinates",
    "shuffled": "control: shuffled labels",
    "lora4": "LoRA, r = 4",
    "a0_only": "control: A_0 alone",
    "nola4": "NOLA, k = 4",
    "nola16": "NOLA, k = 16",
    "nola256": "NOLA, k = 256",
    "full": "full fine-tuning",
    "vera": "VeRA",
    "unilora": "UniLoRA",
    "tinylora": "TinyLoRA",
    "vblora": "VB-LoRA",
    "randlora": "RandLoRA",
}
FEW = 5  # seeds of what is reported alone, and of the language model
MARGIN, NATS = 1.0, 0.02  # points of accuracy and nats a token that NOLA may be worse
CHANCE = (45.0, 55.0)  # per cent, of two classes equally often
FAR = 100.0
POINTS, NATS_A_TOKEN = "percentage points", "nats a token"


def _spoilt(how: str, labelled: Sequence[str]) -> Effect:
    """Return the accuracy of a spoilt adapter minus that of the probe."""

    def effect(records: Sequence[Record]) -> dict[int, float]:
        spoilt = complete_seeds(records, ("nola",), labelled, how)
        probe = complete_seeds(records, ("probe",), labelled)
        return {seed: float((spoilt[seed] - probe[seed]).mean()) for seed in spoilt.keys() & probe.keys()}

    return effect


def _level(arm: str, labelled: Sequence[str]) -> Effect:
    def effect(records: Sequence[Record]) -> dict[int, float]:
        return {seed: float(values.mean()) for seed, values in complete_seeds(records, (arm,), labelled).items()}

    return effect


def _uninformative(labelled: Sequence[str]) -> Callable[[Sequence[Record]], str | None]:
    """Return why data say nothing: where LoRA gains nothing over the probe, there is nothing to fall behind in."""
    gain = difference("lora1", "probe", labelled)

    def reason(records: Sequence[Record]) -> str | None:
        found = list(gain(records).values())
        informative = len(found) > 1 and paired_effect(found).low > 0
        return None if informative or not found else "LoRA is not shown to be better than the probe: uninformative"

    return reason


def _seeds(language: Sequence[str]) -> Callable[[Sequence[Record]], str | None]:
    gap = difference("nola", "lora1", language, "token_loss")

    def reason(records: Sequence[Record]) -> str | None:
        found = len(gap(records))
        return None if found == FEW else f"{found} seeds, {FEW} planned"

    return reason


def parts(labelled: Sequence[str], language: Sequence[str]) -> list[Part]:
    """Return the parts: what decides, the controls, and what is reported beside it.

    Parameters
    ----------
    labelled, language
        Data sets: values are means over them.
    """
    return [*_deciding(labelled, language), *_reported(labelled, language)]


def _deciding(labelled: Sequence[str], language: Sequence[str]) -> list[Part]:
    return [
        Part(
            "NOLA - LoRA r = 1",
            "With one sixth of the parameters NOLA is at most one point less accurate, on the mean over the data sets.",
            difference("nola", "lora1", labelled),
            "not_below",
            -MARGIN,
            unit=POINTS,
            sanity=_uninformative(labelled),
        ),
        Part(
            "LoRA r = 1 - linear probe",
            "The test is sensitive: LoRA is more accurate than a probe. Where it is not, the first part is inconclusive.",
            difference("lora1", "probe", labelled),
            required=False,
            unit=POINTS,
        ),
        Part(
            "NOLA - control: coordinates",
            "Dense random bases matter: as many numbers that are single entries of A and B do less.",
            difference("nola", "coordinates", labelled),
            unit=POINTS,
            sanity=_uninformative(labelled),
        ),
        Part(
            "control: wrong seed - linear probe",
            "With other bases the trained coefficients are worth nothing: at most one point above the probe.",
            _spoilt("wrong_seed", labelled),
            "within",
            (-FAR, MARGIN),
            unit=POINTS,
        ),
        Part(
            "control: shuffled labels",
            "Trained on shuffled labels, accuracy is chance.",
            _level("shuffled", labelled),
            "within",
            CHANCE,
            unit="per cent",
        ),
        Part(
            "NOLA - LoRA r = 1, language",
            "The language model's loss is at most 0.02 nats a token higher.",
            difference("nola", "lora1", language, "token_loss"),
            "within",
            (-FAR, NATS),
            unit=NATS_A_TOKEN,
            sanity=_seeds(language),
            over="seed of five",
        ),
    ]


def _reported(labelled: Sequence[str], language: Sequence[str]) -> list[Part]:
    found = []
    for how in ("permuted", "random_update"):
        name = f"control: {how.replace('_', ' ')} - linear probe"
        found.append(Part(name, f"{name}.", _spoilt(how, labelled), "reported", required=False, unit=POINTS))
    for arm in [name for name in ARMS if name not in ("nola", "lora1", "probe", "coordinates", "shuffled")]:
        name = f"NOLA - {ARMS[arm]}"
        effect = difference("nola", arm, labelled)
        found.append(Part(name, f"{name}: test accuracy.", effect, "reported", required=False, unit=POINTS))
    for data in ("rotten", "sst2"):
        name = f"NOLA - LoRA r = 1, {NAMES[data]}"
        effect = difference("nola", "lora1", (data,))
        found.append(Part(name, f"{name}.", effect, "reported", required=False, unit=POINTS))
    effect = difference("nola", "lora4", language, "token_loss")
    found.append(
        Part(
            "NOLA - LoRA r = 4, language",
            "The same against LoRA r = 4.",
            effect,
            "reported",
            required=False,
            unit=NATS_A_TOKEN,
        )
    )
    return found


def figures(records: Sequence[Record], judged: Sequence[PartResult]) -> dict[str, dict[str, Any]]:
    """Return accuracy against the number of trained numbers, and every arm against LoRA r = 1."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in records:
        data, arm = str(record.cell.key["data"]), str(record.cell.key["arm"])
        if "accuracy" in record.values and arm not in ("probe", "shuffled"):
            points.setdefault((data, arm), []).append((record.values["trained"], record.values["accuracy"]))
    rows = [
        {
            "data": NAMES[data],
            "arm": ARMS[arm],
            "trained": pairs[0][0],
            "accuracy": round(float(np.mean([a for _, a in pairs])), 2),
        }
        for (data, arm), pairs in points.items()
    ]
    shown: dict[str, dict[str, Any]] = {}
    if rows:
        shown["Test accuracy and trained numbers, without the head"] = _curve(rows)
    names = [name for name in NAMES if any(data == name for data, _ in points)]
    against = [
        {"data": NAMES[data], "arm": label, **found}
        for data in names
        for arm, label in ARMS.items()
        if arm != "lora1" and (found := interval(difference(arm, "lora1", (data,))(records)))
    ]
    if against:
        shown["Test accuracy minus that of LoRA r = 1"] = interval_figure(against, "arm", "data", list(ARMS.values()))
    return shown


def _curve(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "data": {"values": list(rows)},
        "mark": {"type": "point", "filled": True, "tooltip": True},
        "encoding": {
            "x": {"field": "trained", "type": "quantitative", "scale": {"type": "log"}, "title": "trained numbers"},
            "y": {"field": "accuracy", "type": "quantitative", "scale": {"zero": False}, "title": "test accuracy, %"},
            "color": {"field": "arm", "type": "nominal", "title": None, "sort": list(ARMS.values())},
            "shape": {"field": "data", "type": "nominal", "title": None},
        },
    }
