"""An adapter as a folder in the layout of PEFT: what its bases were made from, and the coefficients.

``adapter_config.json`` holds the sizes, and of every layer the seed, the shape, a fingerprint of its bases and a sample of
the weight that it was trained on. ``adapter_model.safetensors`` holds the coefficients under the keys of PEFT, in float32
or float16; in 8 and 4 bits one tensor ``coefficients`` holds them all, layer by layer, and ``scales`` those of each vector.
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
from sanov.systems.nola.layers import DESCRIBED, Adapted, Plan, adapted, attach_seeded, weight_shape
from sanov.systems.nola.quantised import BITS, Bits, dequantised, packed, quantised, unpacked

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

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
SAMPLES = 4  # entries of a weight that are kept, to know the base model again
Coefficients = Mapping[str, tuple[Float[Tensor, " k"], Float[Tensor, " l"]]]


@dataclass(frozen=True)
class Layer:
    """What the bases of one layer were made from, and what they were meant for.

    Attributes
    ----------
    seed
        Of the bases.
    shape
        Outputs and inputs of the weight.
    fingerprint
        Of the bases.
    weight
        A few entries of the weight, in the order of its memory; none where it is quantised.
    dtype
        Of the weight.
    """

    seed: int
    shape: tuple[int, int]
    fingerprint: str
    weight: tuple[float, ...] = ()
    dtype: str = "float32"

    def check(self, name: str, plan: Plan) -> None:
        """Make the bases again, and compare their fingerprint.

        Raises
        ------
        InputError
            They are others.
        """
        found = plan.space(self.shape, self.seed, {}).fingerprint()
        if found != self.fingerprint:
            expected = f"{self.fingerprint}, as the adapter says"
            fix = f"the seed, a size or the law in {CONFIG} was changed: take the adapter as it was saved"
            where = f"{name}, bases of {GENERATOR}"
            raise InputError(f"their fingerprint is {found}", where=where, expected=expected, fix=fix)

    def check_base(self, name: str, layer: nn.Module) -> None:
        """Compare the layer that the adapter is put on with the one that it was trained on.

        Raises
        ------
        InputError
            Its shape or its weights are others.
        """
        if (shape := weight_shape(layer, name)) != self.shape:
            found = f"the weight is {shape[0]} x {shape[1]}"
            raise InputError(found, where=name, expected=f"{self.shape[0]} x {self.shape[1]}, as the adapter says")
        weight: Any = layer.weight
        if not (self.weight and (sample := _sample(weight))):
            return
        coarse = max(torch.finfo(getattr(torch, self.dtype)).eps, torch.finfo(weight.dtype).eps)
        if any(abs(a - b) > 2 * coarse * max(abs(a), abs(b)) for a, b in zip(sample, self.weight, strict=True)):
            found = f"the weight is not that on which the adapter was trained ({sample[0]:.6g}, not {self.weight[0]:.6g} ...)"
            raise InputError(found, where=name, fix="load the base model of the adapter, with nothing merged into it")


def layer_of(layer: Adapted) -> Layer:
    """Return what is to be kept of an adapted layer's bases.

    Raises
    ------
    InputError
        The update is merged into the weight, which is no longer the base model's.
    """
    if layer.merged:
        raise InputError("its update is merged into the weight", where="save", fix="unmerge it first")
    space, weight = layer.update.space, layer.base.weight
    dtype = str(weight.dtype).removeprefix("torch.")
    return Layer(space.first.seed, space.shape, space.fingerprint(), _sample(weight), dtype)


def _sample(weight: Any) -> tuple[float, ...]:
    """Return a few entries, evenly apart; none where there are no numbers to compare."""
    if weight.is_meta or not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        return ()
    flat = weight.detach().flatten()
    places = torch.arange(1, SAMPLES + 1, device=flat.device) * len(flat) // (SAMPLES + 1)
    return tuple(flat[places].double().tolist())


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


def read_config(tree: Any, where: str) -> tuple[Plan, dict[str, Layer]]:
    """Return what an adapter's configuration says, once its bases were made again.

    Parameters
    ----------
    tree
        As `Adapter.config` returns it.
    where
        Its file, for messages.

    Raises
    ------
    InputError
        It is no such configuration, of another generator, without a seed, or a fingerprint does not agree.
    """
    if not isinstance(tree, dict) or tree.get("peft_type") != "NOLA":
        found = f"the kind of adapter is {tree.get('peft_type') if isinstance(tree, dict) else None}"
        raise InputError(found, where=where, expected="NOLA")
    if (generator := tree.get("generator")) != GENERATOR:
        fix = f"load it with the release of sanov whose generator is {generator}, and train it anew for this one"
        raise InputError(f"the bases are of the generator {generator}", where=where, expected=GENERATOR, fix=fix)
    try:
        plan = Plan(**{own: tree[told] for told, own in DESCRIBED.items()})
        layers = {name: _layer(name, entry) for name, entry in tree["layers"].items()}
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(f"the configuration lacks or garbles {error}", where=where) from None
    for name, layer in layers.items():
        layer.check(name, plan)
    return plan, layers


def _layer(name: str, entry: Mapping[str, Any]) -> Layer:
    seed, shape = entry.get("seed"), entry["shape"]
    if type(seed) is not int or not 0 <= seed < 2**64:
        found = "there is no seed" if seed is None else f"the seed is {seed!r}"
        raise InputError(
            found, where=f"{name}, seed", expected="a whole number from 0 to 2^64 - 1", fix="save it again"
        )
    weight = tuple(entry.get("weight", ()))
    return Layer(seed, (int(shape[0]), int(shape[1])), str(entry["fingerprint"]), weight, entry.get("dtype", "float32"))


def compressed(coefficients: Coefficients, bits: Bits = 32) -> dict[str, Tensor]:
    """Return coefficients as the tensors of a file.

    Parameters
    ----------
    coefficients
        alpha and beta by layer.
    bits
        32 or 16: a vector each; 8 or 4: packed in one tensor, the layers in their order, with one scale a vector.

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
    found = [quantised(vector, bits) for pair in coefficients.values() for vector in pair]
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
        Names of the layers, in their order.
    plan
        Tells how many coefficients there are.
    bits
        As they were stored.

    Raises
    ------
    InputError
        A tensor is missing or of another size.
    """
    names, sizes = list(layers), (plan.num_basis_a, plan.num_basis_b)
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
