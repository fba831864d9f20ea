"""What an adapter of `nola` is, as a configuration of PEFT: its fields are those of ``adapter_config.json``."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.utils.peft_types import PeftType
from torch import nn

from sanov.core.errors import InputError, SanovWarning
from sanov.random_bases import GENERATOR
from sanov.systems.nola.layers import drawn_seeds
from sanov.systems.nola.quantised import BITS
from sanov.systems.nola.records import CONFIG, Layer, read_config
from sanov.systems.nola.updates import DESCRIBED, KEPT_BYTES, Plan, weight_shape

__all__ = ["NAME", "AdapterError", "NolaConfig"]

NAME = "NOLA"
CHOICES: dict[str, tuple[object, ...]] = {
    "preset": ("gpt", "readme", "vit"),
    "distribution": ("uniform", "rademacher", "sparse"),
    "share_basis": ("none", "by_shape"),
    "basis_cache": ("auto", "recompute", "full"),
    "bias": ("none", "all", "nola_only"),
    "coefficient_bits": BITS,
}
TOLD = {own: told for told, own in DESCRIBED.items()}  # names of options in a configuration


class AdapterError(InputError, ValueError):
    """A mistake in what PEFT was asked to do with an adapter: a ``ValueError``, as PEFT's callers expect."""


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class NolaConfig(PeftConfig):
    """Options of an adapter whose factors are sums of random bases; each field tells its meaning (``metadata["help"]``).

    Those that `LoraConfig` has too mean the same. ``layers`` is what the bases were made from: it is written when the
    adapter is put into a model or saved, and where it was read from a folder, bases are made from nothing else.

    Raises
    ------
    InputError
        A value is out of range, or `sanov.bridges.peft.register` was not called. It is a ``ValueError``.
    """

    r: int = field(default=8, metadata=_help("Rank of an update."))
    num_basis_a: int = field(default=64, metadata=_help("Random bases of A: so many coefficients a layer."))
    num_basis_b: int = field(default=64, metadata=_help("Random bases of B: so many coefficients a layer."))
    nola_alpha: float = field(default=8.0, metadata=_help("An update is scaled by nola_alpha / r."))
    nola_dropout: float = field(
        default=0.0, metadata=_help("Share of its inputs that an update does not see in training.")
    )
    preset: str = field(default="gpt", metadata=_help("How sums are scaled and where they start: gpt, readme or vit."))
    distribution: str = field(default="uniform", metadata=_help("Law of an entry: uniform, rademacher or sparse."))
    share_basis: str = field(
        default="none", metadata=_help("none; or by_shape: layers of one shape share their bases.")
    )
    seed: int = field(default=0, metadata=_help("From which the seeds of the layers follow, 0 to 2^64 - 1."))
    chunk: int = field(default=64, metadata=_help("Bases that are made at a time, a multiple of 16."))
    basis_cache: str = field(
        default="auto",
        metadata=_help("recompute bases when they are needed; full: keep them; auto: keep up to 256 MiB."),
    )
    coefficient_bits: int = field(default=32, metadata=_help("To which coefficients are rounded, in training too."))
    target_modules: list[str] | str | None = field(
        default=None,
        metadata=_help("Names of layers or ends of them, a regular expression, or all-linear; by default as LoRA's."),
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata=_help("Layers to leave out, in the same way.")
    )
    fan_in_fan_out: bool = field(
        default=False, metadata=_help("Recorded only: a layer's type tells how its weight lies.")
    )
    bias: str = field(default="none", metadata=_help("Which biases are trained: none, all or nola_only."))
    modules_to_save: list[str] | None = field(
        default=None, metadata=_help("Modules that are trained whole, such as a head.")
    )
    init_weights: bool = field(default=True, metadata=_help("False starts from random coefficients, for tests."))
    layers_to_transform: list[int] | int | None = field(default=None, metadata=_help("Blocks that get an adapter."))
    layers_pattern: list[str] | str | None = field(
        default=None, metadata=_help("Name of the list of blocks, if unusual.")
    )
    generator: str = field(default=GENERATOR, metadata=_help("Version of the generator of the bases."))
    layers: dict[str, Any] | None = field(
        default=None, metadata=_help("By layer: seed, shape, fingerprint of the bases, and a sample of the weight.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if NAME not in PeftType.__members__:
            fix = "call sanov.bridges.peft.register() first"
            raise AdapterError("PEFT does not know this method yet", where="NolaConfig", fix=fix)
        self.peft_type = PeftType(NAME)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as PEFT's own configurations do
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self.drawn = self.layers is None  # whether seeds follow from `seed`, and not from a folder
        self.kept = False  # whether bases stay in memory, once it is known how many there are
        self._check()

    def _check(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                expected = ", ".join(map(str, choices[:-1])) + f" or {choices[-1]}"
                raise AdapterError(f"is {value!r}", where=name, expected=expected)
        if not 0 <= self.seed < 2**64:
            raise AdapterError(f"is {self.seed}", where="seed", expected="0 to 2^64 - 1")
        if not 0 <= self.nola_dropout < 1:
            raise AdapterError(f"is {self.nola_dropout}", where="nola_dropout", expected="at least 0, below 1")
        for name in ("layers_to_transform", "layers_pattern"):
            if isinstance(self.target_modules, str) and getattr(self, name) is not None:
                found = "target_modules is a regular expression"
                raise AdapterError(found, where=name, fix="put the numbers of the blocks into the expression")
        try:
            self.plan()
        except InputError as error:
            raise AdapterError(
                error.found, where=TOLD.get(str(error.where), error.where), expected=error.expected
            ) from None

    def plan(self) -> Plan:
        """Return the sizes and scales."""
        return Plan(
            rank=self.r,
            num_basis_a=self.num_basis_a,
            num_basis_b=self.num_basis_b,
            alpha=self.nola_alpha,
            preset=self.preset,  # type: ignore[arg-type]
            law=self.distribution,  # type: ignore[arg-type]
            chunk=self.chunk,
            share_basis=self.share_basis,  # type: ignore[arg-type]
            kept=self.kept,
            bits=self.coefficient_bits,  # type: ignore[arg-type]
        )

    def records(self) -> dict[str, Layer]:
        """Return what the layers' bases are made from, once they were made and compared.

        Raises
        ------
        InputError
            A seed is missing or of the wrong kind, the generator is another, or a fingerprint does not agree.
        """
        return read_config(self.to_dict(), CONFIG)[1]

    def keep(self, records: Mapping[str, Layer]) -> None:
        """Write down what bases are made from."""
        self.layers = {name: dict(vars(record)) for name, record in sorted(records.items())}

    def settle(self, layers: Mapping[str, nn.Module], modules: Mapping[str, nn.Module]) -> None:
        """Draw seeds for the layers of a model; or, where they were read, see that they are for this model.

        Parameters
        ----------
        layers
            Those that get an adapter, by name, in the model's order.
        modules
            All modules of the model, by name.

        Raises
        ------
        InputError
            A layer is of a type that has no such update; or what was read is of another model, or damaged.
        """
        shapes = {name: weight_shape(layer, name) for name, layer in layers.items()}
        self._warn_of_size(shapes)
        plan = self.plan()
        if self.drawn:
            seeds = drawn_seeds(shapes, self.seed, plan.share_basis)
            records = {name: Layer.of(plan.space(shapes[name], seeds[name], {}), layers[name]) for name in layers}
        else:
            records = self._read(layers, modules)
        self.keep(records)
        size = sum(plan.bytes(shape) for _, shape in {(record.seed, record.shape) for record in records.values()})
        self.kept = self.basis_cache == "full" or (self.basis_cache == "auto" and size <= KEPT_BYTES)

    def _read(self, layers: Collection[str], modules: Mapping[str, nn.Module]) -> dict[str, Layer]:
        records = self.records()
        for name, record in records.items():
            if name not in modules:
                fix = "load the base model of the adapter, by the class with which it was trained"
                raise AdapterError("the model has no such layer", where=name, fix=fix)
            record.check_base(name, modules[name])
        if missing := [name for name in layers if name not in records]:
            fix = "save the adapter again, or set `layers` to None to draw new bases"
            raise AdapterError("there is no seed for it in the configuration", where=missing[0], fix=fix)
        if spare := [name for name in records if name not in layers]:
            fix = "leave target_modules, exclude_modules and the like as they were saved"
            raise AdapterError(
                "the adapter changes it, but the configuration does not choose it", where=spare[0], fix=fix
            )
        return records

    def _warn_of_size(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        for name, (outputs, inputs) in shapes.items():
            for field_, width in (("num_basis_a", inputs), ("num_basis_b", outputs)):
                if (count := getattr(self, field_)) > self.r * width:
                    found = f"{field_}: {count} bases are more than the {self.r * width} numbers of a factor of {name}"
                    warnings.warn(f"{found}, which is no gain over LoRA", SanovWarning, stacklevel=3)
                    return
