"""Options of an adapter of low rank, which is trained instead of the policy's own weights."""

from __future__ import annotations

from pathlib import Path

from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.nets.adapters import with_adapter
from sanov.nets.foreign_causal import ForeignCausal

__all__ = ["Lora", "adapted"]


class Lora(Options):
    """The adapter (LoRA) that a policy in a folder gets, and that is trained alone."""

    rank: int = option(0, "Rank; 0 for no adapter: all weights are trained.", source="choice", ge=0)
    alpha: float | None = option(
        None, "The adapter counts alpha / rank times; none for twice the rank.", source="choice", gt=0
    )
    target_modules: tuple[str, ...] = option(
        (),
        "Ends of the names of its layers, such as q_proj,v_proj; none for all linear ones but the head.",
        source="choice",
    )
    dropout: float = option(
        0.0, "Of what goes into it; only where solutions are imitated.", source="choice", ge=0, lt=1
    )


def adapted(folder: str | Path, lora: Lora, *, seed: int) -> ForeignCausal:
    """Open a policy's folder with a new adapter.

    Parameters
    ----------
    folder
        A Hugging Face folder.
    lora
        With a rank above 0.
    seed
        Of the adapter's weights.

    Raises
    ------
    InputError
        There is no folder, or see `nets.adapters.with_adapter`.
    """
    if not folder:
        fix = "policy=DIR, or leave lora.rank out"
        raise InputError("the small policy that is made has no use for an adapter", where="lora.rank", fix=fix)
    alpha = 2.0 * lora.rank if lora.alpha is None else lora.alpha
    targets = lora.target_modules
    return with_adapter(folder, rank=lora.rank, alpha=alpha, target_modules=targets, dropout=lora.dropout, seed=seed)
