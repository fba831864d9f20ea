"""The systems at a glance. A row is text alone: the module it names is imported when it is first used."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from sanov.core.errors import InputError

if TYPE_CHECKING:
    from sanov.core.answers import Answer

__all__ = ["BASELINES", "SYSTEMS", "Row", "System", "find"]


class Row(NamedTuple):
    """What is said of a system before it is imported."""

    name: str
    title: str
    paper: str  # key in docs/references.bib; arXiv number
    model: str  # what moves
    reference: str  # onto what
    divergence: str  # under what
    question: str  # a user's words
    fits: str  # "yes": there is a `fit`; "no": `apply` alone
    extras: str  # the extras that `fit` and `apply` need, separated by commas
    module: str

    def load(self) -> ModuleType:
        """Import the module."""
        return importlib.import_module(self.module)


SYSTEMS: tuple[Row, ...] = (
    Row(
        name="kdrl",
        title="distillation joined with reinforcement learning",
        paper="xu2025kdrl",
        model="a student policy",
        reference="its teacher, tilted by the reward",
        divergence="reverse KL and policy gradient",
        question="Can I train a small reasoner from a teacher and a verifier at once?",
        fits="yes",
        extras="torch",
        module="sanov.systems.kdrl",
    ),
    Row(
        name="laser",
        title="last-token self-rewarding",
        paper="yang2025laser",
        model="the policy's last-token score",
        reference="the policy tilted by the verifier's reward",
        divergence="closed-form tilt, squared error",
        question="Can my model grade its own answers for free?",
        fits="yes",
        extras="torch",
        module="sanov.systems.laser",
    ),
    Row(
        name="lelp",
        title="learning embedding linear projections",
        paper="loo2024lelp",
        model="student outputs of C * S subclasses",
        reference="the teacher's pseudo-subclasses",
        divergence="forward KL",
        question="Can I distil a teacher that has only two classes?",
        fits="yes",
        extras="torch",
        module="sanov.systems.lelp",
    ),
    Row(
        name="nola",
        title="low-rank adapters from random bases",
        paper="koohpayegani2024nola",
        model="coefficients of an adapter",
        reference="the data, near the pretrained weights",
        divergence="forward KL in a random subspace",
        question="Can I store a thousand fine-tunes in the space of one?",
        fits="yes",
        extras="torch",
        module="sanov.systems.nola",
    ),
    Row(
        name="pn",
        title="the p-n criterion",
        paper="sheena2021pn",
        model="a parametric family",
        reference="the true distribution",
        divergence="forward KL risk of the MLE",
        question="Do I have enough data for this many parameters?",
        fits="no",
        extras="",
        module="sanov.systems.pn",
    ),
    Row(
        name="rlg",
        title="reinforcement learning guidance",
        paper="jin2025rlg",
        model="a sampler's score or velocity",
        reference="the base model, tilted by an implicit reward",
        divergence="geometric path of weight w, nominally KL at beta / w",
        question="Can I turn alignment up or down after training?",
        fits="yes",
        extras="torch",
        module="sanov.systems.rlg",
    ),
    Row(
        name="sinkd",
        title="Sinkhorn knowledge distillation",
        paper="cui2024sinkd",
        model="a batch of student outputs",
        reference="the batch of teacher outputs",
        divergence="Sinkhorn",
        question="Can I distil where teacher and student hardly overlap?",
        fits="yes",
        extras="torch",
        module="sanov.systems.sinkd",
    ),
    Row(
        name="fidelity",
        title="generalisation and fidelity of distillation",
        paper="ramesh2025fidelity",
        model="a student",
        reference="its teacher",
        divergence="agreement, error transfer, KL, Jensen-Shannon: measured, not minimised",
        question="Is my student right for its teacher's reasons?",
        fits="no",
        extras="",
        module="sanov.systems.fidelity",
    ),
)

BASELINES: tuple[Row, ...] = (
    Row(
        name="grpo",
        title="group-relative policy optimisation",
        paper="shao2024grpo",
        model="a policy",
        reference="rewards of its completions",
        divergence="none: a policy gradient",
        question="What do rewards alone give?",
        fits="yes",
        extras="torch",
        module="sanov.baselines.grpo",
    ),
    Row(
        name="sft",
        title="supervised fine-tuning",
        paper="ouyang2022instructgpt",
        model="a policy",
        reference="written solutions",
        divergence="forward KL",
        question="What do written solutions alone give?",
        fits="yes",
        extras="torch",
        module="sanov.baselines.sft",
    ),
    Row(
        name="distillation",
        title="textbook distillation",
        paper="hinton2015distilling",
        model="student outputs",
        reference="teacher outputs",
        divergence="KL, reverse KL, Jensen-Shannon, total variation, sorted L1 or squared error",
        question="What does plain distillation give?",
        fits="yes",
        extras="torch",
        module="sanov.baselines.distillation",
    ),
    Row(
        name="subclasses",
        title="distillation of subclasses",
        paper="muller2020subclass",
        model="student outputs",
        reference="teacher outputs, divided by clusters, a teacher trained anew, or known subclasses",
        divergence="forward KL",
        question="Are other subclasses as good as those of lelp?",
        fits="yes",
        extras="torch",
        module="sanov.baselines.subclasses",
    ),
)


def find(name: str) -> Row:
    """Return the row of a system or baseline.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    rows = {row.name: row for row in SYSTEMS + BASELINES}
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name, rows, n=1, cutoff=0.5)
    fix = f"did you mean '{near[0]}'?" if near else "`sanov list --all` shows them"
    raise InputError("there is no such system", where=name, expected=f"one of {', '.join(rows)}", fix=fix)


class System:
    """A system from Python: call it to apply it, `fit` it, or reach into its module (``sanov.pn.Config``).

    Parameters
    ----------
    row
        The system's row.
    """

    def __init__(self, row: Row):
        self._row = row
        self.__doc__ = f"{row.title}: {row.question} `sanov show {row.name}` lists the options."

    def __call__(self, *data: Any, fitted: Any = None, seed: int = 0, **options: Any) -> Answer:
        """Apply the system to data frames or paths.

        Parameters
        ----------
        data
            Data frames (pandas, Polars, Arrow) or paths; none where the system can do without.
        fitted
            What `fit` returned, or the folder it was saved in.
        seed
            Seed of everything random.
        options
            The fields of the system's `Config`; a group is a dictionary: ``map={"clusters": "hospital"}``.
        """
        module, config = self._configured(options)
        answer: Answer = module.apply(module.read(list(data), config), config, fitted=fitted, seed=seed)
        return answer

    def fit(self, *data: Any, out: Any = None, seed: int = 0, resume: bool = False, **options: Any) -> Any:
        """Fit the system to data frames or paths, and return what was fitted.

        Parameters
        ----------
        data
            Data frames (pandas, Polars, Arrow) or paths.
        out
            Folder for what is fitted; None keeps it in memory.
        seed
            Seed of everything random.
        resume
            Go on from the newest checkpoint in `out`.
        options
            The fields of the system's `Config`; a group is a dictionary: ``training={"epochs": 3}``.
        """
        if self._row.fits != "yes":
            raise InputError("there is nothing to fit", where=self._row.name, fix=f"use sanov.{self._row.name}(data)")
        module, config = self._configured(options)
        return module.fit(module.read(list(data), config), config, seed=seed, out=out, resume=resume)

    def _configured(self, options: Mapping[str, Any]) -> tuple[ModuleType, Any]:
        from sanov.core.options import parse

        module = self._row.load()
        return module, parse(module.Config, _plain(options))

    def __dir__(self) -> list[str]:
        return sorted({"fit", *self._row.load().__all__})

    def __reduce__(self) -> tuple[type[System], tuple[Row]]:
        return System, (self._row,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what Python itself asks for, and asks before there is a row
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._row.load(), name)

    def __repr__(self) -> str:
        return f"<sanov.{self._row.name}: {self._row.title}>"


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn groups that are pydantic models into dictionaries of what was given, validated like any other."""
    return {
        name: value.model_dump(exclude_unset=True) if hasattr(value, "model_dump") else value
        for name, value in options.items()
    }
