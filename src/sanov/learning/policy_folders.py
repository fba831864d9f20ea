"""Folders of policies: what a finished one holds, and what a run that was stopped may go on with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from sanov import __version__
from sanov.core import files
from sanov.core.errors import InputError
from sanov.learning.cards import CARD, card, summary
from sanov.learning.checkpoints import refuse_unfinished
from sanov.learning.completing import Tasks
from sanov.learning.processes import every_process, place
from sanov.learning.recording import HISTORY, PAGE, START, write_history
from sanov.learning.rollouts import Tokenizer
from sanov.learning.validation import VALIDATION
from sanov.nets.causal import load_model, load_tokenizer, save_model, weights_digest

__all__ = ["CHECKPOINTS", "START", "Fitted", "begin", "opened"]

SEAL, RUN, CHECKPOINTS = "sanov.json", "run.json", "checkpoints"
STEPS = "options.training.steps"


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained policy.

    Parameters
    ----------
    system
        Name of the system that trained it.
    model, tokenizer
        The policy.
    config
        Options of the system.
    results
        What is known of the training.
    history
        One row a step.
    """

    system: str
    model: Any
    tokenizer: Tokenizer
    config: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    history: pl.DataFrame = field(default_factory=pl.DataFrame)

    def __repr__(self) -> str:
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        return f"<policy of {self.system}: {weights:,} weights>"

    def to_dict(self) -> dict[str, Any]:
        """Everything but weights and history, as what JSON can hold."""
        tree = {"sanov": __version__, "system": self.system, "config": self.config, "results": self.results}
        found: dict[str, Any] = files.plain(tree)
        return found

    def summary(self) -> str:
        """Return what was trained and how well it does, on one screen."""
        return summary(self.system, sum(weight.numel() for weight in self.model.parameters()), self.results)

    def card(self) -> str:
        """Return the model card, as Hugging Face's hub reads it."""
        return card(self.system, self.config, self.results, self.summary())

    def save(self, folder: str | Path) -> None:
        """Write a folder that transformers loads, with a model card: the seal of the whole last.

        Raises
        ------
        InputError
            The place cannot be written.
        """
        folder = Path(folder)
        (folder / SEAL).unlink(missing_ok=True)
        save_model(self.model, folder, self.tokenizer)
        files.write_text(folder / CARD, self.card())
        write_history(self.history, folder)
        files.write_json(folder / SEAL, {**self.to_dict(), "weights": weights_digest(folder)})

    @classmethod
    def load(cls, folder: str | Path) -> Fitted:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            The folder is missing, unfinished or damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            found = "is a file" if folder.exists() else "there is no such folder"
            raise InputError(found, where=str(folder), expected="a folder that `sanov fit` wrote")
        if not (folder / SEAL).is_file():
            fix = "a fit that was stopped goes on with --resume"
            raise InputError(f"holds no finished policy (no {SEAL})", where=str(folder), fix=fix)
        tree = files.read_json(folder / SEAL)
        if weights_digest(folder) != tree["weights"]:
            raise InputError(f"the weights are not those that {SEAL} describes", where=str(folder), fix="fit again")
        history = pl.read_csv(folder / HISTORY) if (folder / HISTORY).is_file() else pl.DataFrame()
        about = {"config": tree["config"], "results": tree["results"], "history": history}
        return cls(tree["system"], load_model(folder), load_tokenizer(folder), **about)


def begin(
    folder: str | Path | None, data: Tasks, config: Any, seed: int, resume: bool, *, lengthens: bool = False
) -> None:
    """Refuse a folder that holds something else, and write down what a run is; resume none that was another.

    One of fewer steps is resumed where nothing depends on their number (`lengthens`).

    Raises
    ------
    InputError
        The folder holds other files, a finished policy, an unfinished run, or one of other data or options.
    """
    if folder is None or place()[0] != 0:
        every_process(None)
        return
    folder = Path(folder)
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if found and RUN not in found:
        raise InputError("is a folder with other files in it", where=str(folder), fix="name a new or an empty folder")
    if SEAL in found and not resume:
        raise InputError("holds a finished policy", where=str(folder), fix="name another folder, or delete this one")
    options = _without_addresses(files.plain(config.model_dump(mode="json")))
    run = {"data": data.prompts.digest(), "options": options, "seed": seed}
    if resume and RUN in found:
        differ = _differing(files.read_json(folder / RUN), files.plain(run))
        if lengthens and differ.keys() == {STEPS} and differ[STEPS][0] < differ[STEPS][1]:
            files.write_json(folder / RUN, run)
        elif differ:
            fix = "resume with the same, or begin anew in another folder"
            if STEPS in differ:
                fix += "; a run grows longer only where no schedule or warm-up follows from the number of its steps"
            raise InputError(f"the run in this folder had other {_listed(differ)}", where=str(folder), fix=fix)
    else:
        refuse_unfinished(folder / CHECKPOINTS)
        shutil.rmtree(folder / START, ignore_errors=True)  # of a run that was refused before its first step
        for name in (VALIDATION, HISTORY, PAGE):
            (folder / name).unlink(missing_ok=True)
        files.write_json(folder / RUN, run)
    every_process(None)


def _without_addresses(tree: Any) -> Any:
    """Return options without servers' addresses and how long they are waited for: a restarted server may have another."""
    if isinstance(tree, Mapping):
        return {name: _without_addresses(value) for name, value in tree.items() if name != "patience"}
    return "a server" if isinstance(tree, str) and tree.startswith(("http://", "https://")) else tree


def _differing(theirs: Any, ours: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return by dotted name what differs, there and here."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for name in sorted({*theirs, *ours}):
            found |= _differing(theirs.get(name), ours.get(name), f"{path}.{name}" if path else name)
        return found
    return {} if theirs == ours else {path: (theirs, ours)}


def _listed(differ: Mapping[str, tuple[Any, Any]]) -> str:
    """Name what differs, with both values where they are short."""
    told = []
    for name, (theirs, ours) in differ.items():
        short = name.removeprefix("options.")
        told.append(short if name == "data" else f"{short} ({theirs} there, {ours} here)")
    return ", ".join(told[:4]) + (f" and {len(told) - 4} more" if len(told) > 4 else "")


def opened(fitted: Fitted | str | Path | None, system: str) -> Fitted:
    """Return a fitted policy from what `apply` was given.

    Raises
    ------
    InputError
        Nothing was given, or the folder holds no finished policy.
    """
    if fitted is None:
        fix = f"first: sanov fit {system} PROMPTS --out DIR; then pass --fitted DIR"
        raise InputError("there is no policy", where=system, fix=fix)
    return fitted if isinstance(fitted, Fitted) else Fitted.load(fitted)
