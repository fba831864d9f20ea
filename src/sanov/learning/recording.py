"""What a run writes down while it goes on: checkpoints that transformers loads, its history, and its page."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from torch import nn

from sanov import __version__
from sanov.core import files, pages
from sanov.data.prompts import Prompts
from sanov.learning import run_pages, samples
from sanov.learning.cards import CARD, card, flat, summary
from sanov.learning.diagnosis import why_flat
from sanov.learning.history import History
from sanov.learning.parallel import is_sharded
from sanov.learning.processes import place
from sanov.learning.rollouts import Tokenizer
from sanov.learning.validation import Validation, results_of
from sanov.nets.causal import load_model, save_model
from sanov.nets.transformer import Decoder, plain_copy

__all__ = ["HISTORY", "PAGE", "START", "Record", "write_history"]

HISTORY, PAGE, START = "history.csv", "index.html", "start"
LARGEST = 500_000_000  # weights of a policy that is opened once more to compare tokens with its start
KEPT = 2  # checkpoints


class Record:
    """What is known of a run, and where it is written.

    Parameters
    ----------
    system, config, seed
        Whose run this is.
    prompts
        All prompts, and how many of them are trained on.
    opened
        Model and tokenizer.
    out
        Folder of the run; None for nowhere.
    validation
        What judges the policy; None where nothing is held out.
    """

    def __init__(
        self,
        system: str,
        config: Any,
        seed: int,
        prompts: tuple[Prompts, int],
        opened: tuple[Any, Tokenizer],
        out: str | Path | None,
        validation: Validation | None,
    ):
        self.system, self.config, self.seed, (self.prompts, self.count) = system, config, seed, prompts
        (self.model, self.tokenizer), self.validation = opened, validation
        self.out = None if out is None else Path(out)
        self.kept = samples.Kept()

    def results(self, history: History, noted: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what is known after so many updates; the notes say why the curve is flat, if it is."""
        found = results_of(history, self.validation)
        gained = [found[f"validation_gain{end}"] for end in ("", "_low", "_high") if f"validation_gain{end}" in found]
        flat_because = why_flat(history.to_frame(), gained if len(gained) == 3 else None)
        told = {"prompts": self.count, "seed": self.seed, **(noted or {}), "steps": len(history), **found}
        told["data"] = {"name": self.prompts.name, "digest": self.prompts.digest()}
        notes = [*told.pop("notes", ()), *([flat_because] if flat_because else [])]
        return told | ({"notes": notes} if notes else {})

    def publish(self, history: History) -> Callable[[Path], None] | None:
        """Return what makes a folder of a checkpoint that transformers loads, and brings history and page up to date."""
        model = plain_copy(self.model) if isinstance(self.model, Decoder) and is_sharded(self.model) else self.model
        if place()[0] != 0:
            return None

        def write(folder: Path) -> None:
            results = self.results(history)
            if not is_sharded(model):
                save_model(model, folder, self.tokenizer)
                said = summary(self.system, sum(weight.numel() for weight in model.parameters()), results)
                files.write_text(folder / CARD, card(self.system, self.config.model_dump(mode="json"), results, said))
            if self.out is not None:
                write_history(history.to_frame(), self.out)
                self.write_page(history, results, [])

        return write

    def write_page(self, history: History, results: Mapping[str, Any], blocks: Sequence[pages.Block]) -> None:
        """Write the page of the run into its folder."""
        if self.out is None:
            return
        training = self.config.training
        every = training.checkpoint_every
        notes = [f"The {KEPT} newest checkpoints are kept (one every {every} updates)." if every
                 else f"The {KEPT} newest checkpoints are kept (one is made at the end)."]  # fmt: skip
        frame, how = history.to_frame(), {"steps": training.steps, "notes": notes, "footer": self.footer()}
        files.write_text(
            self.out / PAGE, pages.render(run_pages.page(self.system, frame, results, blocks=blocks, **how))
        )

    def footer(self) -> dict[str, str]:
        """Return version, digest of the prompts, and the command."""
        options = [
            f"{name}={value}" for name, value in flat(self.config.model_dump(mode="json", exclude_defaults=True))
        ]
        words = [
            "sanov",
            "fit",
            self.system,
            self.prompts.name,
            *options,
            "--seed",
            str(self.seed),
            "--out",
            str(self.out),
        ]
        return {"version": f"sanov {__version__}", "input": self.prompts.digest(), "command": shlex.join(words)}

    def samples(self, model: nn.Module) -> list[pages.Block]:
        """Return some completions of the last step, or else of the last evaluation, for the page."""
        options = self.config.rollouts
        if self.kept.rollouts is not None:
            rollouts, where = self.kept.rollouts, "Completions of the last update."
        elif self.validation is not None and self.validation.last is not None and not is_sharded(model):
            rollouts, where = samples.completed(self.validation, model), "Completions of held-out prompts."
        else:
            return []
        return [samples.block(rollouts, self.tokenizer, self._at_start, options.temperature, where)]

    def _at_start(self) -> nn.Module | None:
        """Open the policy that the run began with, where that is a small matter."""
        made = None if self.out is None else self.out / START
        folder = self.config.policy or made
        if (
            not folder
            or not Path(folder).is_dir()
            or sum(weight.numel() for weight in self.model.parameters()) > LARGEST
        ):
            return None
        return load_model(folder)


def write_history(history: pl.DataFrame, folder: Path) -> None:
    """Write a history, one row a step."""
    buffer = io.BytesIO()
    history.write_csv(buffer)
    files.write_bytes(folder / HISTORY, buffer.getvalue())
