"""A fine-tune: an adapter with its base model, and the folder that holds the one and names the other."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from torch import nn

from sanov import __version__
from sanov.core import files
from sanov.core.errors import InputError
from sanov.learning.recording import HISTORY, write_history
from sanov.nets.adaptable import Base, load_base
from sanov.systems.nola.layers import adapted, detach
from sanov.systems.nola.quantised import Bits
from sanov.systems.nola.storage import WEIGHTS, Adapter

__all__ = ["SEEN", "Fitted", "opened"]

SEAL, SEEN = "sanov.json", "seen.json"
WIDTH = 100


@dataclass(frozen=True, eq=False)
class Fitted:
    """An adapter, and the model that it is on.

    Parameters
    ----------
    adapter
        Its coefficients as they are stored.
    base
        The model, with the adapter on it.
    bits
        In which coefficients are stored.
    classes
        Names of the classes; none for a language model.
    config, results, history
        Options, what is known of the training, and one row a step.
    seen
        Short digests of the texts (or prompts) that were trained on.
    """

    adapter: Adapter
    base: Base
    bits: Bits = 32
    classes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    history: pl.DataFrame = field(default_factory=pl.DataFrame)
    seen: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<nola: {self.adapter.numbers:,} coefficients in {self.bits} bits on {self.base.folder}>"

    def to_dict(self) -> dict[str, Any]:
        """Everything but weights and history, as what JSON can hold."""
        found: dict[str, Any] = files.plain({
            "sanov": __version__, "system": "nola", "classes": self.classes, "bits": self.bits,
            "config": self.config, "results": self.results,
        })  # fmt: skip
        return found

    def summary(self) -> str:
        """Return what was trained and how well it does, on one screen."""
        head = f"{self.adapter.head_numbers:,} weights of a head, " if self.adapter.head else ""
        size = len(self.adapter.contents(self.bits)[WEIGHTS])
        text = f"nola: {self.adapter.numbers:,} coefficients in {self.bits} bits, {head}{size:,} bytes; on {self.base.folder}"
        lines = textwrap.wrap(text, WIDTH)
        scalars = {name: value for name, value in self.results.items() if isinstance(value, int | float)}
        width = max(map(len, scalars), default=0)
        for name, value in scalars.items():
            shown = f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
            lines.append(f"{name.replace('_', ' '):<{width}}  {shown}")
        return "\n".join(lines)

    def merged(self) -> nn.Module:
        """Return a copy of the model with the update in its weights, as if it had been trained whole.

        Raises
        ------
        InputError
            A weight is quantised.
        """
        model: nn.Module = copy.deepcopy(self.base.model)
        for layer in adapted(model).values():
            layer.merge()
        detach(model)
        return model

    def save(self, folder: str | Path) -> None:
        """Write a folder in the layout of PEFT, with what is known of the training; the seal of the whole last.

        Raises
        ------
        InputError
            The place cannot be written.
        """
        folder = Path(folder)
        (folder / SEAL).unlink(missing_ok=True)
        write_history(self.history, folder)
        for name, content in self.contents().items():
            files.write_bytes(folder / name, content)

    def contents(self) -> dict[str, bytes]:
        """Return the files that make up the adapter, by name: the seal is the last."""
        found = self.adapter.contents(self.bits)
        about = {**self.to_dict(), "weights": files.digest(found[WEIGHTS])}
        seen, seal = (files.to_json(tree, indent=1).encode() + b"\n" for tree in (sorted(self.seen), about))
        return {**found, SEEN: seen, SEAL: seal}

    @classmethod
    def load(cls, folder: str | Path, *, model: str | Path = "") -> Fitted:
        """Read what `save` wrote, and its base model.

        Parameters
        ----------
        folder
            Of the adapter.
        model
            Folder of the base model, where it is not where it was.

        Raises
        ------
        InputError
            The folder is missing, unfinished or damaged; or the base model is another.
        """
        folder = Path(folder)
        if not folder.is_dir():
            found = "is a file" if folder.exists() else "there is no such folder"
            raise InputError(found, where=str(folder), expected="a folder that `sanov fit nola` wrote")
        if not (folder / SEAL).is_file():
            fix = "a fit that was stopped goes on with --resume"
            raise InputError(f"holds no finished adapter (no {SEAL})", where=str(folder), fix=fix)
        tree = files.read_json(folder / SEAL)
        if files.digest(folder / WEIGHTS) != tree["weights"]:
            raise InputError(
                f"the coefficients are not those that {SEAL} describes", where=str(folder), fix="fit again"
            )
        adapter = Adapter.load(folder)
        place = str(model or adapter.base)
        if not Path(place).is_dir():
            fix = "name its folder: model=DIR"
            raise InputError(f"the base model is not at {place!r}", where=str(folder), fix=fix)
        base = load_base(place, tuple(tree["classes"]) or None)
        adapter.put(base.model)
        history = pl.read_csv(folder / HISTORY) if (folder / HISTORY).is_file() else pl.DataFrame()
        seen = frozenset(files.read_json(folder / SEEN)) if (folder / SEEN).is_file() else frozenset()
        about = {"config": tree["config"], "results": tree["results"], "history": history, "seen": seen}
        return cls(adapter, base, tree["bits"], tuple(tree["classes"]), **about)


def opened(fitted: Fitted | str | Path | None, model: str = "") -> Fitted:
    """Return what `apply` was given, read from its folder if need be.

    Raises
    ------
    InputError
        Nothing was given, or see `Fitted.load`.
    """
    if fitted is None:
        fix = "first: sanov fit nola TEXTS --out DIR; then pass --fitted DIR"
        raise InputError("there is no adapter", where="nola", fix=fix)
    return fitted if isinstance(fitted, Fitted) else Fitted.load(fitted, model=model)
