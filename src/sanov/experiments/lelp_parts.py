"""What is read off the cells of the claim on `lelp`: effects by seed, parts, the verdict, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sanov.claims import Part, Record
from sanov.core.results import PartResult
from sanov.experiments.effects import Effect, complete_seeds, difference, interval, interval_figure, uninformative

__all__ = ["ARMS", "CLASSES", "DATA", "IMAGES", "ROTATIONS", "VARIANTS", "figures", "parts", "verdict"]

DATA = {
    "digits": "digits parity",
    "mnist": "MNIST-5k parity",
    "sst2": "SST-2",
    "reviews": "Rotten Tomatoes",
    "trec": "TREC",
}
PRIMARY = ("digits", "mnist", "sst2", "reviews")  # two classes
KNOWN = ("digits", "mnist", "trec")
ARMS = {
    "ce": "CE",
    "kd": "KD",
    "fitnet": "KD + hints (FitNet)",
    "dkd": "decoupled KD",
    "lelp": "LELP",
    "lelp_hadamard": "LELP, Hadamard rotation",
    "projections": "random projections",
    "pca": "principal directions alone",
    "kmeans": "k-means subclasses",
    "retrained": "subclass distillation",
    "random": "control: random split",
    "permuted": "control: permuted embeddings",
    "oracle": "true subclasses",
}
WORTH_HAVING = 0.5  # percentage points
IMAGES = ("digits", "mnist")
VARIANTS = ("400 rows", "1000 rows")
CLASSES = (3, 5, 10)  # besides two
ROTATIONS = ("random", "hadamard", "rescale", "none")


def _raises(name: str) -> str:
    return f"LELP - KD, {DATA[name]}"


def _worth(name: str) -> str:
    return f"worth having, {DATA[name]}"


def _control(name: str) -> str:
    return f"control: KD - random split, {DATA[name]}"


def _headroom(name: str) -> str:
    return f"true subclasses - KD, {DATA[name]}"


def parts(data: Sequence[str] = tuple(DATA)) -> list[Part]:
    """Return the parts: the primary ones with their controls, then what is reported apart.

    Parameters
    ----------
    data
        The data sets that a mean over data sets is of; a seed without one of them has no mean.
    """
    few = tuple(name for name in data if name in PRIMARY)
    mean = f"(mean over {', '.join(DATA[name] for name in few)})"
    found: list[Part] = []
    for name in PRIMARY:
        sane: dict[str, Any] = {"sanity": uninformative((name,)), "unit": "points"}
        title = DATA[name]
        tells = f"On {title}, LELP raises test accuracy over KD with tuned temperature"
        found += [
            Part(_raises(name), f"{tells}.", difference("lelp", "kd", (name,)), **sane),
            Part(
                _worth(name),
                f"{tells} by more than {WORTH_HAVING} points, the smallest effect worth having.",
                difference("lelp", "kd", (name,)),
                bound=WORTH_HAVING,
                required=False,
                **sane,
            ),
            Part(
                _control(name),
                f"On {title}, KD does better than subclasses drawn at random, tuned alike; the control fails where these "
                "do better.",
                difference("kd", "random", (name,)),
                required=False,
                **sane,
            ),
        ]
    found += [
        Part(
            _headroom(name),
            f"On {DATA[name]}, true subclasses raise test accuracy over KD: there is something to be found.",
            difference("oracle", "kd", (name,)),
            required=False,
            unit="points",
        )
        for name in KNOWN
    ]
    return [*found, *_reported(few, mean)]


def _reported(few: Sequence[str], mean: str) -> list[Part]:
    told: dict[str, Any] = {"kind": "reported", "required": False, "unit": "points"}
    others = {
        "permuted": "embeddings of other rows of the class, at the same settings (a control)",
        "projections": "random directions in place of principal ones",
        "pca": "principal directions without null space and rotation",
        "kmeans": "subclasses by k-means",
        "retrained": "subclasses of a teacher trained anew (subclass distillation)",
        "fitnet": "KD beside a regression of the embeddings (FitNet)",
    }
    found = [
        Part(f"LELP - {ARMS[arm]}", f"LELP against {text} {mean}.", difference("lelp", arm, few), **told)
        for arm, text in others.items()
    ]
    found += [
        Part(
            "LELP, Hadamard rotation - LELP",
            f"The Hadamard rotation against random ones, at the same settings {mean}.",
            difference("lelp_hadamard", "lelp", few),
            **told,
        ),
        Part("KD - labels alone", f"What a teacher gives at all {mean}.", difference("kd", "ce", few), **told),
        Part("LELP - KD, TREC", "The same for six classes.", difference("lelp", "kd", ("trec",)), **told),
        Part("LELP - decoupled KD, TREC", "The same for six classes.", difference("lelp", "dkd", ("trec",)), **told),
    ]
    return [*found, *_apart(told)]


def _apart(told: Mapping[str, Any]) -> list[Part]:
    """Few rows, labels beside the teacher, null space and rotation: at the settings of the main runs."""
    mean = f"(mean over {', '.join(DATA[name] for name in IMAGES)})"
    found = [
        Part(
            f"LELP - KD, {DATA['mnist']}, {variant}",
            f"On {DATA['mnist']} with {variant} to train the student on.",
            difference("lelp", "kd", ("mnist",), variant=variant),
            **told,
        )
        for variant in VARIANTS
    ]
    found += [
        Part(
            f"LELP - KD, MNIST-5k, {count} classes",
            f"On MNIST-5k with the remainder of the digit by {count} as class, at the settings of two.",
            difference("lelp", "kd", ("mnist",), variant=f"{count} classes"),
            **told,
        )
        for count in CLASSES
    ]
    found.append(
        Part(
            "LELP - KD, half labels",
            f"With alpha = 0.5 in both {mean}.",
            difference("lelp", "kd", IMAGES, variant="half labels"),
            **told,
        )
    )
    for rotation in ROTATIONS:
        statement = f"With the null-space step against without it, {rotation} rotation {mean}."
        effect = _ablation(f"null {rotation}", f"whole {rotation}")
        found.append(Part(f"null space, {rotation} rotation", statement, effect, **told))
    for rotation in ROTATIONS[1:]:
        statement = f"The {rotation} rotation against a random one, with the null-space step {mean}."
        effect = _ablation(f"null {rotation}", "null random")
        found.append(Part(f"{rotation} - random rotation", statement, effect, **told))
    return found


def _ablation(variant: str, other: str) -> Effect:
    def effect(records: Sequence[Record]) -> dict[int, float]:
        one, two = (complete_seeds(records, ("ablation",), IMAGES, variant=each) for each in (variant, other))
        return {seed: float((one[seed] - two[seed]).mean()) for seed in one if seed in two}

    return effect


def verdict(verdicts: Mapping[str, str]) -> str:
    """At least two of four data sets above 0 and none below, with headroom somewhere and no control that does better.

    A data set where the interval reaches 0 but not the smallest effect worth having counts against the claim; where it
    covers both, it is undecided.
    """
    above = [verdicts[_raises(name)] for name in PRIMARY]
    nothing = [verdicts[_raises(name)] == "inconclusive" and verdicts[_worth(name)] == "fails" for name in PRIMARY]
    broken = any(verdicts[_control(name)] == "fails" for name in PRIMARY)
    headroom = any(verdicts[_headroom(name)] == "holds" for name in KNOWN)
    if "fails" in above or sum(nothing) >= 3:
        return "fails"
    return "holds" if above.count("holds") >= 2 and headroom and not broken else "inconclusive"


# -- figures ----------------------------------------------------------------------------------------------------------


def figures(records: Sequence[Record], judged: Sequence[PartResult]) -> dict[str, dict[str, Any]]:
    """Return effects against tuned KD for every arm and data set."""
    rows = [
        {"data": title, "arm": told, **found}
        for arm, told in ARMS.items()
        for name, title in DATA.items()
        if arm != "kd" and (found := interval(difference(arm, "kd", (name,))(records)))
    ]
    return {
        "Test accuracy minus that of KD with tuned temperature, with 95 % intervals": interval_figure(
            rows, "arm", "data", list(ARMS.values())
        )
    }
