"""An adapter as a folder in the layout of PEFT: what its bases were made from, and the coefficients.

``adapter_config.json`` holds the sizes, and of every layer the seed, the shape, a fingerprint of its bases and a sample of
the weight that it was trained on. ``adapter_model.safetensors`` holds the coefficients under the keys of PEFT, in float32
or float16; in 8 and 4 bits one tensor ``coefficients`` holds them all, by name, and ``scales`` those of each vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from sanov.core import files
from sanov.core.errors import InputError
from sanov.random_bases import GENERATOR
from sanov.systems.nola.layers import Adapted, adapted, attach_seeded
from sanov.systems.nola.quantised import BITS, Bits, dequantised, packed, quantised, unpacked
from sanov.systems.nola.records import CONFIG, Layer, layer_of, read_config
from sanov.systems.nola.updates import Plan

__all__ = [
    "CONFIG",
    "PREFIX",
    "WEIGHTS",
    "Adapter",
    "Coefficients",
    "Layer",
    "compressed",
    "expanded",
    "layer_of",
    "read_config",
]

WEIGHTS, PREFIX = "adapter_model.safetensors", "base_model.model."
Coefficients = Mapping[str, tuple[Float[Tensor, " k"], Float[Tensor, " l"]]]


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter apart from its model.

    Parameters
    ----------
    plan
        Sizes and scales.
    targets
        What the layers were chosen by.
    layers
        What each was made from, by name.
    coefficients
        alpha and beta of each.
    base
        Name or path of the base model.
    task
        PEFT's name of the task, such as ``SEQ_CLS``; None where there is none.
    head
        Weights that were trained besides, by name: kept as they are, and counted apart.
    head_modules
        The modules that they belong to.
    """

    plan: Plan
    targets: str | tuple[str, ...]
    layers: Mapping[str, Layer]
    coefficients: Coefficients
    base: str = ""
    task: str | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)
    head_modules: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        plan: Plan,
        targets: str | Sequence[str],
        *,
        base: str = "",
        task: str | None = None,
        head_modules: Iterable[str] = (),
    ) -> Adapter:
        """Take the adapter out of a model that `attach` changed; copies, on the CPU.

        Parameters
        ----------
        model, plan, targets
            As they were given to `attach`.
        base, task, head_modules
            As above.

        Raises
        ------
        InputError
            There is no adapter in the model, or it is merged.
        """
        found = adapted(model)
        if not found:
            raise InputError("the model has no adapter", where="save", fix="attach one first")
        updates = {name: layer.update for name, layer in found.items()}
        coefficients = {
            name: (update.nola_alpha.detach().cpu().clone(), update.nola_beta.detach().cpu().clone())
            for name, update in updates.items()
        }
        head = {
            f"{module}.{name}": parameter.detach().cpu().clone().contiguous()
            for module in head_modules
            for name, parameter in model.get_submodule(module).named_parameters()
        }
        return cls(
            plan,
            targets if isinstance(targets, str) else tuple(targets),
            {name: layer_of(layer) for name, layer in found.items()},
            coefficients,
            base,
            task,
            head,
            tuple(head_modules),
        )

    @property
    def numbers(self) -> int:
        """Coefficients."""
        return sum(len(vector) for pair in self.coefficients.values() for vector in pair)

    @property
    def head_numbers(self) -> int:
        """Weights that were trained besides."""
        return sum(weight.numel() for weight in self.head.values())

    def put(self, model: nn.Module) -> dict[str, Adapted]:
        """Attach the adapter to its base model, and put its head there.

        Raises
        ------
        InputError
            The model has no such layer, or one of another shape or with other weights.
        """
        modules = dict(model.named_modules())
        for name, layer in self.layers.items():
            if name not in modules:
                fix = "load the base model of the adapter, by the class with which it was trained"
                raise InputError("the model has no such layer", where=name, fix=fix)
            layer.check_base(name, modules[name])
        parameters = dict(model.named_parameters())
        for name, weight in self.head.items():
            if name not in parameters or parameters[name].shape != weight.shape:
                found = "there is none" if name not in parameters else f"its shape is {tuple(parameters[name].shape)}"
                raise InputError(found, where=name, expected=f"a weight of shape {tuple(weight.shape)}")
        placed = attach_seeded(model, self.plan, {name: layer.seed for name, layer in self.layers.items()})
        self.write(placed)
        with torch.no_grad():
            for name, weight in self.head.items():
                parameters[name].copy_(weight)
        return placed

    @torch.no_grad()
    def write(self, layers: Mapping[str, Adapted]) -> None:
        """Put the coefficients into layers that are adapted already."""
        for name, layer in layers.items():
            layer.update.nola_alpha.copy_(self.coefficients[name][0])
            layer.update.nola_beta.copy_(self.coefficients[name][1])

    def config(self, bits: Bits = 32) -> dict[str, Any]:
        """Return what ``adapter_config.json`` holds."""
        return {
            "peft_type": "NOLA",
            "base_model_name_or_path": self.base,
            "task_type": self.task,
            **self.plan.described(),
            "target_modules": self.targets,
            "modules_to_save": list(self.head_modules) or None,
            "generator": GENERATOR,
            "coefficient_bits": bits,
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
        }

    def save(self, folder: str | Path, bits: Bits = 32) -> None:
        """Write the folder, whole or not at all.

        Parameters
        ----------
        folder
            Where; what is there is replaced.
        bits
            In which coefficients are stored: 32, 16, 8 or 4. A head is stored in float32, or in float16 below 32 bits.

        Raises
        ------
        InputError
            A coefficient is not finite, or the place cannot be written.
        """
        contents = self.contents(bits)
        with files.atomic_folder(folder) as temporary:
            for name, content in contents.items():
                (temporary / name).write_bytes(content)

    def contents(self, bits: Bits = 32) -> dict[str, bytes]:
        """Return the files of the folder by name, as `save` writes them."""
        head = {PREFIX + name: weight.float() if bits == 32 else weight.half() for name, weight in self.head.items()}
        tensors = {**compressed(self.coefficients, bits), **head}
        config = files.to_json(self.config(bits), indent=1) + "\n"
        return {WEIGHTS: save_tensors(tensors, {"format": "pt"}), CONFIG: config.encode()}

    def stored(self, bits: Bits) -> Adapter:
        """Return the adapter as it will be read again.

        Raises
        ------
        InputError
            A coefficient is not finite.
        """
        if bits == 32:
            return self
        coefficients = expanded(compressed(self.coefficients, bits), self.layers, self.plan, bits)
        return replace(self, coefficients=coefficients, head={n: w.half().float() for n, w in self.head.items()})

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Read what `save` wrote, and compare the fingerprints of all bases.

        Raises
        ------
        InputError
            The folder is missing or damaged, or its bases cannot be made here.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError("there is no such folder", where=str(folder), expected="the folder of an adapter")
        tree = files.read_json(folder / CONFIG)
        plan, layers = read_config(tree, str(folder / CONFIG))
        try:
            tensors = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot be read ({error})", where=str(folder / WEIGHTS)) from None
        coefficients = expanded(tensors, layers, plan, tree.get("coefficient_bits", 32))
        head = {
            name.removeprefix(PREFIX): weight.float()
            for name, weight in tensors.items()
            if name not in ("coefficients", "scales") and not name.endswith((".nola_alpha", ".nola_beta"))
        }
        return cls.described(tree, plan, layers, coefficients, head)

    @classmethod
    def described(
        cls,
        tree: Mapping[str, Any],
        plan: Plan,
        layers: Mapping[str, Layer],
        coefficients: Coefficients | None = None,
        head: Mapping[str, Tensor] | None = None,
    ) -> Adapter:
        """Return the adapter that a configuration describes, with these coefficients."""
        targets = tree.get("target_modules") or list(layers)
        return cls(
            plan,
            targets if isinstance(targets, str) else tuple(targets),
            layers,
            coefficients or {},
            tree.get("base_model_name_or_path") or "",
            tree.get("task_type"),
            head or {},
            tuple(tree.get("modules_to_save") or ()),
        )


def compressed(coefficients: Coefficients, bits: Bits = 32) -> dict[str, Tensor]:
    """Return coefficients as the tensors of a file.

    Parameters
    ----------
    coefficients
        alpha and beta by layer.
    bits
        32 or 16: a vector each; 8 or 4: packed in one tensor, the layers by name, with one scale a vector.

    Raises
    ------
    InputError
        One is not finite.
    """
    if bits not in BITS:
        raise InputError(f"is {bits}", where="coefficient_bits", expected="32, 16, 8 or 4")
    for name, pair in coefficients.items():
        if not all(bool(vector.isfinite().all()) for vector in pair):
            fix = "training diverged: lower the learning rate"
            raise InputError("coefficients are not finite", where=name, fix=fix)
    if bits >= 16:
        dtype = torch.float32 if bits == 32 else torch.float16
        return {
            f"{PREFIX}{name}.nola_{kind}": vector.to(dtype).contiguous()
            for name, pair in coefficients.items()
            for kind, vector in zip(("alpha", "beta"), pair, strict=True)
        }
    found = [quantised(vector, bits) for _, pair in sorted(coefficients.items()) for vector in pair]
    codes = torch.cat([codes for codes, _ in found])
    return {"coefficients": packed(codes, bits), "scales": torch.stack([scale for _, scale in found])}


def expanded(
    tensors: Mapping[str, Tensor], layers: Iterable[str], plan: Plan, bits: Bits = 32
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return coefficients in float32 from the tensors of a file.

    Parameters
    ----------
    tensors
        As `compressed` returns them; others are left alone.
    layers
        Names of the layers.
    plan
        Tells how many coefficients there are.
    bits
        As they were stored.

    Raises
    ------
    InputError
        A tensor is missing or of another size.
    """
    names, sizes = sorted(layers), (plan.num_basis_a, plan.num_basis_b)
    if bits < 16:
        if missing := [name for name in ("coefficients", "scales") if name not in tensors]:
            raise InputError(f"there is no tensor {missing[0]}", where=WEIGHTS)
        codes, scales = unpacked(tensors["coefficients"], sizes * len(names), bits), tensors["scales"]
        if len(scales) != len(codes):
            raise InputError(f"there are {len(scales)} scales", where=WEIGHTS, expected=str(len(codes)))
        vectors = [dequantised(part, scale) for part, scale in zip(codes, scales, strict=True)]
        return {name: (vectors[2 * place], vectors[2 * place + 1]) for place, name in enumerate(names)}
    return {
        name: (_vector(tensors, name, "alpha", sizes[0]), _vector(tensors, name, "beta", sizes[1])) for name in names
    }


def _vector(tensors: Mapping[str, Tensor], name: str, kind: str, size: int) -> Tensor:
    vector = tensors.get(f"{PREFIX}{name}.nola_{kind}")
    if vector is None or vector.shape != (size,):
        found = f"there is no {kind}" if vector is None else f"{kind} has the shape {tuple(vector.shape)}"
        raise InputError(found, where=f"{WEIGHTS}, {name}", expected=f"{size} coefficients")
    return vector.float()
