"""A policy that scores its answers, with the reference that its scores are read against where that is a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sanov.core import files
from sanov.learning import policies
from sanov.nets.causal import load_model, save_model

__all__ = ["REFERENCE", "Fitted", "save_reference"]

REFERENCE = "reference"  # folder of the policy at its start, inside that of the policy


@dataclass(frozen=True, eq=False, repr=False)
class Fitted(policies.Fitted):
    """A trained policy. ``results["self_reward"]`` is the scale of its scores.

    Parameters
    ----------
    system, model, tokenizer, config, results, history
        See `learning.policies.Fitted`.
    reference
        The policy at its start, where scores are read against it (``self_reward.reference=exact``); else None.
    """

    reference: Any = None

    @classmethod
    def of(cls, found: policies.Fitted, reference: Any = None) -> Fitted:
        """Return a trained policy with its reference."""
        own = {name: getattr(found, name) for name in ("config", "results", "history")}
        return cls(found.system, found.model, found.tokenizer, **own, reference=reference)

    def untrained(self) -> str | None:
        """Say that the score was never trained, where that is known; else return None."""
        if self.results.get("self_reward") is None:
            return f"the score of this policy was never trained (it is one of {self.system})"
        if not len(self.history):
            return None
        losses = self.history["loss_self_reward"] if "loss_self_reward" in self.history.columns else pl.Series([None])
        if losses.cast(pl.Float64).fill_nan(None).is_not_null().any():
            return None
        return f"the score of this policy was never trained (in none of {len(self.history)} steps)"

    def save(self, folder: str | Path) -> None:
        """Write a folder that transformers loads, with the reference beside: the seal of the whole last.

        Raises
        ------
        InputError
            The place cannot be written.
        """
        if self.reference is not None:
            save_reference(self.reference, self.tokenizer, folder)
        super().save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Fitted:
        """Read what `save` wrote, or the policy of another system.

        Raises
        ------
        InputError
            The folder is missing, unfinished or damaged.
        """
        found = policies.Fitted.load(folder)
        kept = Path(folder) / REFERENCE
        return cls.of(found, load_model(kept) if kept.is_dir() else None)


def save_reference(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Write the reference into its place in a policy's folder, whole or not at all.

    Raises
    ------
    InputError
        The place cannot be written.
    """
    with files.atomic_folder(Path(folder) / REFERENCE) as place:
        save_model(model, place, tokenizer)
