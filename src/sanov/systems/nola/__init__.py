r"""NOLA: fine-tune a frozen network by a few thousand numbers, the coefficients of random low-rank bases.

Every chosen weight W gets an update whose two factors are sums of random matrices, which a counter makes again from a
seed; only the coefficients are trained and stored::

    W + s B A,     s = alpha_0 / r
    A = A_0 + k^(-1/2) sum_i alpha_i U_i   [r, in]        U_i, V_j ~ U(-1, 1);   A_0 ~ U(-1, 1) / sqrt(in)
    B =       l^(-1/2) sum_j beta_j V_j    [out, r]       alpha = beta = 0 at the start

    minimise the task's negative log-likelihood over {alpha, beta}:   dL/dalpha_i = k^(-1/2) <dL/dA, U_i>

The number of trained numbers, k + l a matrix, depends neither on its size nor on the rank. Without A_0 the start would be a
stationary point. The gradient makes each basis once more, so that none need be in memory.

Deviations from the paper
-------------------------
- The paper, its README and its code for images scale the sums in three ways: ``preset`` gpt (default), readme and vit. Rates
  do not carry over from one to another. The fourth, which reshapes weights ("flat"), is left out, as it gives no LoRA pair.
- The bases are those of a counter (`GENERATOR`), the same on every device and in any chunking, and have a fingerprint that is
  compared at load. A_0 comes from the seed too; the released checkpoints hold it whole. Normal and orthogonal bases are left
  out, as no generator gives them bit for bit everywhere.
- No global random state is touched; seeds are whole numbers. The bases of all fine-tunes are those of ``adapter.seed``, so
  that their coefficients can be averaged and put into one bank.
- Coefficients may be stored in 16, 8 or 4 bits, and rounded while they are trained. A head that the model lacked is trained
  whole, weight and bias, and counted apart.

Reference: koohpayegani2024nola.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from sanov.core.answers import Answer
from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.learning.training import Training
from sanov.nets.adaptable import query_and_value
from sanov.systems.nola import fitting, reading, report
from sanov.systems.nola.bank import Bank, combined
from sanov.systems.nola.factors import Basis, Preset, Space, combine
from sanov.systems.nola.fitted import Fitted, opened
from sanov.systems.nola.layers import Adapted, adapted, attach, detach, disabled
from sanov.systems.nola.lora import export_lora
from sanov.systems.nola.quantised import Bits
from sanov.systems.nola.reading import Columns, Texts
from sanov.systems.nola.storage import Adapter
from sanov.systems.nola.updates import KEPT_BYTES, Plan, Update

__all__ = [
    "Adapted",
    "Adapter",
    "Bank",
    "Basis",
    "Config",
    "Fitted",
    "Plan",
    "Space",
    "Texts",
    "Update",
    "adapted",
    "apply",
    "attach",
    "combine",
    "combined",
    "detach",
    "disabled",
    "export_lora",
    "fit",
    "read",
]

Kind = Literal["adapter", "lora", "merged", "bank"]


class Shape(Options):
    """Size and scale of the update of a weight."""

    rank: int = option(8, "Rank r of the update.", source="released code: GPT-2", ge=1)
    num_basis_a: int = option(64, "Bases k of A.", source="choice; released code: 128 to 512", ge=1)
    num_basis_b: int = option(64, "Bases l of B.", source="choice; released code: 128 to 512", ge=1)
    alpha: float = option(8.0, "The update is scaled by alpha / rank.", source="released code: GPT-2 M", gt=0)
    preset: Preset = option("gpt", "How sums are scaled, and where they start.", source="released code: gpt/")
    distribution: Literal["uniform", "rademacher", "sparse"] = option(
        "uniform", "Law of the entries of a basis, of one variance.", source="paper"
    )
    share_basis: Literal["none", "by_shape"] = option(
        "none", "Whether weights of one shape have the same bases.", source="released code: gpt/, llama/"
    )
    basis_cache: Literal["auto", "recompute", "full"] = option(
        "auto", "Make bases anew when they are needed, or keep them; auto keeps up to 256 MiB.", source="choice"
    )
    chunk: int = option(64, "Bases that are made at a time: a multiple of 16.", source="choice", ge=16, multiple_of=16)
    seed: int = option(0, "Of the bases: adapters of one seed can be put together.", source="choice", ge=0, lt=2**64)


class Optimisation(Training):
    """How the coefficients are trained."""

    learning_rate: float = option(5e-3, "Largest learning rate.", source="released code: GPT-2 M, ViT", gt=0)
    batch_size: int = option(16, "Rows of a step, on all processes together.", source="released code: ViT", ge=1)
    epochs: int = option(3, "How often each row is seen.", source="choice", ge=1)
    weight_decay: float = option(0.0, "Decoupled weight decay.", source="released code", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = option(
        "linear", "Shape of the learning rate after the warm-up.", source="released code: GPT-2"
    )
    warmup: float = option(0.06, "Share of the steps over which the learning rate rises.", source="choice", ge=0, lt=1)


class Config(Options):
    """Options of `nola`."""

    model: str = option(
        "",
        "Folder of a Hugging Face model; empty for the packaged MiniLM. apply: where the base is now.",
        source="choice",
    )
    target_modules: tuple[str, ...] = option(
        (), "Ends of the names of the layers to adapt; none for query and value projections.", source="released code"
    )
    max_length: int = option(128, "Tokens after which a text is cut.", source="choice", unit="tokens", ge=2)
    coefficient_bits: Bits = option(32, "In which coefficients are stored.", source="choice")
    straight_through: bool = option(
        False, "fit: round coefficients as they will be stored, while they are trained.", source="choice"
    )
    validation_share: float = option(0.1, "fit: share of the texts that is held out.", source="choice", ge=0, lt=1)
    write: tuple[Kind, ...] = option(
        (), "apply: what to write: adapter, lora (for PEFT and servers), merged (a whole model), bank.", source="choice"
    )
    adapters: tuple[str, ...] = option((), "apply: folders of further adapters for a bank.", source="choice")
    adapter: Shape = Shape()
    map: Columns = Columns()
    training: Optimisation = Optimisation()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.straight_through and self.coefficient_bits == 32:
            raise ValueError("straight_through rounds nothing in 32 bits: set coefficient_bits to 16, 8 or 4")
        return self

    def plan(self) -> Plan:
        """Return what all adapted layers have in common."""
        own = {name: getattr(self.adapter, name) for name in ("rank", "num_basis_a", "num_basis_b", "alpha", "preset")}
        own |= {"chunk": self.adapter.chunk, "share_basis": self.adapter.share_basis, "law": self.adapter.distribution}
        return Plan(**own, bits=self.coefficient_bits if self.straight_through else 32)


def read(sources: Sequence[Any], config: Config) -> Texts | None:
    """Read texts with labels, texts alone, or prompts with completions.

    Parameters
    ----------
    sources
        A table with columns ``text`` and ``label``, ``text`` alone, or ``prompt`` and ``completion``; a ``.txt`` file of one
        text a line; or ``embedded:reviews``. None where `apply` only writes.
    config
        Names of columns.

    Returns
    -------
    The texts; None without sources.

    Raises
    ------
    InputError
        See `reading.read`.
    """
    if not sources and config.write:
        return None
    return reading.read(sources, config.map)


def fit(
    data: Texts | None, config: Config, *, seed: int = 0, out: str | Path | None = None, resume: bool = False
) -> Fitted:
    """Train the coefficients of an adapter, and a head where the model has none.

    Parameters
    ----------
    data
        What `read` returned: labels are learned where there are any, else the texts themselves.
    config
        The system's options.
    seed
        Of a new head, the order of rows, dropout, and which rows are held out; not of the bases.
    out
        Folder for the adapter, in the layout of PEFT, and for checkpoints.
    resume
        Go on from the newest checkpoint in `out`.

    Raises
    ------
    InputError
        The model cannot be read, has no such layers, or training diverges. Nothing is written before training.
    """
    if data is None:
        raise InputError("no data were given", where="nola", expected="one table of texts")
    folder, data = None if out is None else Path(out), data.labelled()
    base = fitting.base_of(data, config.model, seed)
    targets, plan = config.target_modules or query_and_value(base.model), config.plan()
    size = fitting.kept_bases(base.model, targets, plan)
    kept = config.adapter.basis_cache == "full" or (config.adapter.basis_cache == "auto" and size <= KEPT_BYTES)
    plan = Plan(**{**vars(plan), "kept": kept})
    train_on, held_out = data.divided(config.validation_share, seed)
    options = config.model_dump(mode="json")
    fitting.begin(folder, data, options, seed, resume)
    history = fitting.run(
        train_on,
        base,
        targets,
        plan,
        config.training,
        basis_seed=config.adapter.seed,
        max_length=config.max_length,
        held_out=held_out,
        seed=seed,
        out=None if folder is None else folder / fitting.CHECKPOINTS,
        resume=resume,
    )
    adapter = fitting.adapter_of(base, plan, targets, data.classes)
    results = {
        "texts": len(train_on),
        "coefficients": adapter.numbers,
        "head_weights": adapter.head_numbers,
        "steps": len(history),
        "seed": seed,
        **history.evaluations.get(len(history), {}),
    }
    seen = frozenset(map(report.short_digest, train_on.keys()))
    about: dict[str, Any] = {"config": options, "results": results, "history": history.to_frame(), "seen": seen}
    return fitting.written(Fitted(adapter, base, config.coefficient_bits, data.classes, **about), folder)


def apply(data: Texts | None, config: Config, *, fitted: Fitted | str | Path | None = None, seed: int = 0) -> Answer:
    """Predict the labels of texts, or score texts; and write the adapter as other things.

    Parameters
    ----------
    data
        What `read` returned; None to write alone.
    config
        Of its options, ``write``, ``adapters``, ``model``, ``max_length`` and ``map`` matter here.
    fitted
        What `fit` returned, or its folder.
    seed
        Not used: nothing here is random.

    Raises
    ------
    InputError
        Nothing fitted was given, the base model is another, or a label is none of its classes.
    """
    found = opened(fitted, config.model)
    told = None if data is None else report.answer(data, found, config.max_length)
    if not config.write:
        if told is None:
            raise InputError(
                "no data were given", where="nola", fix="name a table of texts, or what to write: write=lora"
            )
        return told
    return report.exported(found, config.write, config.adapters, told)
