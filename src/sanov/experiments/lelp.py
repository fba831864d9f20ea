"""The claim of `lelp`: with the same tuning budget it gives a better student than distillation of logits, for few classes.

All arms of a data set have the same trials: one Latin hypercube over learning rate, temperature, subclasses and the other
options, of which each arm uses the coordinates that it has. Trials are judged on validation rows of a seed kept apart;
test rows are read once, by the chosen setting. Labels are learned through the teacher alone, as in every published run.
For two classes decoupled distillation is plain distillation, so it is an arm of TREC alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sanov.claims import Cell, Claim, Context, Preset
from sanov.data import text
from sanov.experiments import lelp_data as source
from sanov.experiments.lelp_parts import ARMS, CLASSES, IMAGES, ROTATIONS, VARIANTS, figures, parts, verdict
from sanov.experiments.trials import draw

if TYPE_CHECKING:
    from sanov.data.distillation import DistilTable
    from sanov.experiments.sinkd_data import Parts
    from sanov.learning.students import Fitted

__all__ = ["CLAIM"]

KNOWN = ("digits", "mnist", "trec")  # data sets whose true subclasses are known
TUNED_BY = {"permuted": "lelp", "lelp_hadamard": "lelp", "ablation": "lelp"}
TUNED = tuple(arm for arm in ARMS if arm not in TUNED_BY)
RANGES = {
    "learning_rate": (1e-3, 2e-2),
    "temperature": (1.0, 8.0),
    "subclass_temperature": (0.2, 2.0),
    "hint_weight": (0.05, 20.0),
    "non_target_weight": (0.5, 8.0),
    "contrast": (0.05, 2.0),
}
CHOICES = {"subclasses": (2, 4, 8), "tempered": (0, 1)}  # tempered: whether the student's softmax is at tau too
TUNING_SEED = 1_000  # no seed of the comparison
TIE = 1e-3  # points of accuracy for a nat of log loss: it decides between trials of equal accuracy alone
ABLATIONS = tuple(product(("null", "whole"), ROTATIONS))


# -- cells ------------------------------------------------------------------------------------------------------------


def arms_of(name: str) -> list[str]:
    """Return the arms of a data set: an oracle needs known subclasses, and decoupled distillation more than two classes."""
    without = {"dkd"} if name != "trec" else set()
    without |= set() if name in KNOWN else {"oracle"}
    return [arm for arm in ARMS if arm not in without]


def _cells(data: Sequence[str], trials: int, extensions: Sequence[str]) -> Callable[[Sequence[int]], list[Cell]]:
    """Teachers (texts: one for all seeds), trials, every arm on every seed, and then what is reported apart."""

    def cells(seeds: Sequence[int]) -> list[Cell]:
        found = list(_teachers(data, seeds))
        found += [
            Cell("tune", {"data": d, "arm": arm, "trial": t})
            for d in data
            for arm in arms_of(d)
            if arm in TUNED
            for t in range(trials)
        ]
        found += [Cell("compare", {"data": d, "arm": a, "seed": s}) for d in data for a in arms_of(d) for s in seeds]
        return found + list(_extensions(extensions, seeds))

    return cells


def _teachers(data: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
    for name in data:
        if name in IMAGES:
            yield Cell("shared", {"data": name, "purpose": "tuning"})
            yield from (Cell("shared", {"data": name, "seed": seed, "classes": 2}) for seed in seeds)
        else:
            yield Cell("shared", {"data": name})


def _extensions(data: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
    """Null space and rotation, few rows, labels beside the teacher, more classes: at the settings already chosen."""
    for name, seed in product(data, seeds):
        for space, rotation in ABLATIONS:
            yield Cell("compare", {"data": name, "arm": "ablation", "seed": seed, "variant": f"{space} {rotation}"})
        for arm, variant in product(("kd", "lelp"), (*(VARIANTS if name == "mnist" else ()), "half labels")):
            yield Cell("compare", {"data": name, "arm": arm, "seed": seed, "variant": variant})
    for seed, count in product(seeds, CLASSES if "mnist" in data else ()):
        yield Cell("shared", {"data": "mnist", "seed": seed, "classes": count})
        for arm in ("kd", "lelp"):
            yield Cell("compare", {"data": "mnist", "arm": arm, "seed": seed, "variant": f"{count} classes"})


def _draw(trial: int, trials: int) -> dict[str, Any]:
    """Return what a trial tries, the same for every arm."""
    return draw(trial, trials, RANGES, choices=CHOICES)


def _run(cell: Cell, context: Context, folder: Path) -> Mapping[str, Any]:
    import torch

    torch.set_num_threads(1)
    name, settings = str(cell.key["data"]), context.settings
    if cell.stage == "shared":
        seed = int(cell.key.get("seed", TUNING_SEED))
        split = _split(name, seed, settings, int(cell.key.get("classes", 2)))
        return source.make_teacher(name, split, seed, settings["teacher"][name], folder)
    arm = str(cell.key["arm"])
    if cell.stage == "tune":
        return _tune(name, arm, int(cell.key["trial"]), context)
    return _compare(name, arm, int(cell.key["seed"]), str(cell.key.get("variant", "")), context)


def _split(name: str, seed: int, settings: Mapping[str, Any], classes: int = 2) -> Parts:
    return source.parts(name, seed, settings["sizes"].get(name, {}), classes=classes)


def _tune(name: str, arm: str, trial: int, context: Context) -> dict[str, float]:
    """Return the mean over initial weights of validation accuracy."""
    settings = context.settings
    chosen = _draw(trial, settings["trials"])
    match = {"purpose": "tuning"} if name in IMAGES else {}
    _, folder = context.shared(data=name, **match)
    split = source.load_teacher(_split(name, TUNING_SEED, settings), folder)
    found = []
    for start in range(settings["starts"]):
        student = _fit(arm, split.train, chosen, TUNING_SEED + start, settings["student"][name])
        logits = student.logits(split.validation)
        found.append(source.accuracy(logits, split.validation) - TIE * source.log_loss(logits, split.validation))
    return {"validation": float(np.mean(found)), **chosen}


def _compare(name: str, arm: str, seed: int, variant: str, context: Context) -> dict[str, Any]:
    settings = context.settings
    classes = int(variant.split()[0]) if variant.endswith("classes") else 2
    match = {"seed": seed, "classes": classes} if name in IMAGES else {}
    teacher, folder = context.shared(data=name, **match)
    best = context.tuned(data=name, arm=TUNED_BY.get(arm, arm)).values
    chosen = {key: best[key] for key in (*RANGES, *CHOICES)}
    split = source.load_teacher(_split(name, seed, settings, classes), folder)
    train = split.train
    if variant.endswith("rows"):
        train = train.take(np.random.default_rng([seed, 7]).permutation(len(train))[: int(variant.split()[0])])
    student = _fit(arm, train, chosen, seed, settings["student"][name], variant)
    logits = student.logits(split.test)
    return {
        "accuracy": source.accuracy(logits, split.test),
        "log_loss": source.log_loss(logits, split.test),
        "teacher": float(teacher["test"]),
        **chosen,
    }


# -- arms -------------------------------------------------------------------------------------------------------------


def _fit(
    arm: str, table: DistilTable, chosen: Mapping[str, float], seed: int, settings: Mapping[str, Any], variant: str = ""
) -> Fitted:
    from sanov.baselines import distillation, subclasses
    from sanov.systems import lelp

    shared = {
        "student": settings["net"],
        "training": {**settings["training"], "learning_rate": chosen["learning_rate"]},
        "validation": {"share": 0.0, "select": "last"},
        "temperature": chosen["temperature"],
    }
    labels = 0.5 if variant == "half labels" else 0.0
    textbook: dict[str, dict[str, Any]] = {
        "ce": {"loss": "ce"},
        "kd": {"alpha": 1 - labels},
        "fitnet": {"alpha": 1.0, "hint_weight": chosen["hint_weight"]},
        "dkd": {"loss": "decoupled", "alpha": 0.5, "non_target_weight": chosen["non_target_weight"]},
    }
    if arm in textbook and not (arm == "kd" and not chosen["tempered"]):
        return distillation.fit(table, distillation.Config.model_validate({**shared, **textbook[arm]}), seed=seed)
    shared |= {"student_temperature": chosen["temperature"] if chosen["tempered"] else 1.0, "alpha": labels}
    partitions = {"kmeans": "kmeans", "retrained": "retrained", "oracle": "given", "random": "random"}
    if arm in partitions:
        of = {"partition": partitions[arm], "subclasses": chosen["subclasses"], "retrained": _retrained(table, chosen)}
        return subclasses.fit(table, subclasses.Config.model_validate({**shared, **of}), seed=seed)
    if arm == "permuted":
        table = source.with_permuted(table, seed)
    own = {"subclasses": 1} if arm == "kd" else _projected(arm, chosen, variant)
    return lelp.fit(table, lelp.Config.model_validate({**shared, **own}), seed=seed)


def _retrained(table: DistilTable, chosen: Mapping[str, float]) -> dict[str, Any]:
    """Images: a teacher of the inputs, as the plain teacher is; texts: one of the fine-tuned encoder's embeddings."""
    how = {"on": "embeddings", "epochs": 8} if table.is_text else {"on": "inputs", "epochs": 20}
    return {**how, "contrast": chosen["contrast"]}


def _projected(arm: str, chosen: Mapping[str, float], variant: str) -> dict[str, Any]:
    own: dict[str, Any] = {
        "subclasses": chosen["subclasses"],
        "subclass_temperature": chosen["subclass_temperature"],
    }
    if arm == "projections":
        own["projection"] = {"directions": "random"}
    if arm == "pca":
        own |= {"null_space": False, "rotation": "none"}
    if arm == "lelp_hadamard":
        own["rotation"] = "hadamard"
    if arm == "ablation":
        space, rotation = variant.split()
        own |= {"null_space": space == "null", "rotation": rotation}
    return own


# -- sizes ------------------------------------------------------------------------------------------------------------

SMOKE = {
    "trials": 2,
    "starts": 1,
    "sizes": {"digits": {"train": 300, "validation": 300, "test": 597}},
    "teacher": {"digits": {"net": {"width": 64, "depth": 1}, "training": {"epochs": 15, "batch_size": 64}}},
    "student": {"digits": {"net": {"width": 12}, "training": {"epochs": 3, "batch_size": 32}}},
}
TEXT_TEACHER = {"learning_rate": 5e-5, "epochs": 2, "batch_size": 32, "max_length": 64}
TEXT_STUDENT = {
    "net": {"width": 32, "buckets": 16_384, "embedding": 32},
    "training": {"epochs": 3, "batch_size": 32},
}
PAPER = {
    "trials": 12,
    "starts": 2,
    "sizes": {
        "digits": {"train": 600, "validation": 600, "test": 597},
        "mnist": {"train": 1500, "validation": 1500, "test": 2000},
        "reviews": {"validation": 1000, "test": 2000},
        "trec": {"validation": 1000},
    },
    "teacher": {
        "digits": {"net": {"width": 256, "depth": 2}, "training": {"epochs": 40, "batch_size": 64}},
        "mnist": {"net": {"width": 512, "depth": 2}, "training": {"epochs": 15, "batch_size": 64}},
        "sst2": TEXT_TEACHER,
        "reviews": TEXT_TEACHER,
        "trec": {**TEXT_TEACHER, "epochs": 4},
    },
    "student": {
        "digits": {"net": {"width": 16}, "training": {"epochs": 20, "batch_size": 32}},
        "mnist": {"net": {"width": 24}, "training": {"epochs": 10, "batch_size": 32}},
        "sst2": TEXT_STUDENT,
        "reviews": TEXT_STUDENT,
        "trec": {**TEXT_STUDENT, "training": {"epochs": 5, "batch_size": 32}},
    },
}
DATA = ("digits", "mnist", "sst2", "reviews", "trec")


def _unavailable(cell: Cell) -> str | None:
    """Texts of SST-2 and TREC are read from a folder of the user's."""
    if cell.key.get("data") in {"sst2", "trec"} and text.folder() is None:
        return "SANOV_DATA names no folder with the texts"
    return None


CLAIM = Claim(
    system="lelp",
    statement="For teachers with few classes, LELP gives higher student test accuracy than KD with tuned temperature.",
    source="loo2024lelp, abstract; the criterion is ours",
    parts=parts(DATA),
    presets={
        "smoke": Preset(
            _cells(("digits",), SMOKE["trials"], ()),  # type: ignore[arg-type]
            seeds=5,
            scale="Parity of digits alone, 300 training rows, students of 12 units, 2 trials an arm.",
            settings=SMOKE,
            parts=parts(("digits",)),
            extras="demo",
        ),
        "paper": Preset(
            _cells(DATA, PAPER["trials"], IMAGES),  # type: ignore[arg-type]
            seeds=10,
            scale=(
                "Parity of digits and MNIST-5k, SST-2, Rotten Tomatoes and TREC (6 classes); students of one hidden layer "
                "(texts: on hashed n-grams), 12 trials an arm, 10 seeds. Image teachers are wider nets, one for each seed; "
                "text teachers one MiniLM fine-tuned for each data set, whose split is the same for all seeds. Tuning is one "
                "draw, on a seed kept apart, that all seeds share: the intervals cover neither. The paper distils ResNet-92 "
                "and ALBERT-XXL, three runs each."
            ),
            settings=PAPER,
            extras="paper",
        ),
    },
    run=_run,
    data=lambda settings: source.digests(tuple(settings["student"])),
    holds=verdict,
    figures=figures,
    tuned_by=TUNED_BY,
    unavailable=_unavailable,
)
