"""A reference and its policy, together: how they are sampled, saved and told apart."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from sanov import __version__
from sanov.core import files
from sanov.core.errors import InputError
from sanov.nets.denoiser import Denoiser, DenoiserShape
from sanov.nets.encoder import mlp
from sanov.systems.rlg.mixing import Guidance, Mixed
from sanov.systems.rlg.mixtures import Mixture
from sanov.systems.rlg.rewards import Reward, load
from sanov.systems.rlg.sampling import Sampled, Sampler, sample
from sanov.systems.rlg.training import CLASSIFIER_UNITS
from sanov.systems.rlg.weights import Weight, Window, check_compatible

__all__ = ["Fitted", "clear", "digest", "interpolated", "is_finished", "network"]

CONFIG, HISTORY, REFERENCE, POLICY = "config.json", "history.csv", "reference.safetensors", "policy.safetensors"
CLASSIFIER = "classifier.safetensors"
OFFSET = 0x5EED  # what the seed of further noise is away from that of the first


@dataclass(frozen=True, eq=False)
class Fitted:
    """A reference and its tuned version.

    Parameters
    ----------
    reference, policy
        Networks of one shape, or exact mixtures.
    shape
        Of images, and what the networks say.
    classes
        Names of the classes; none where nothing is asked for.
    reward, beta
        What the policy was tuned for; beta is None where its method has none with that meaning.
    classifier
        Where the reward is a class's probability.
    config, results, history
        What is known of the training.
    """

    reference: nn.Module
    policy: nn.Module
    shape: DenoiserShape
    classes: tuple[str, ...] = ()
    reward: str = "ink"
    beta: float | None = None
    classifier: nn.Module | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    history: pl.DataFrame = field(default_factory=pl.DataFrame)

    def sample(
        self,
        weight: Weight = 1.0,
        rows: int = 16,
        *,
        sampler: Sampler | None = None,
        condition: Int[Tensor, " rows"] | None = None,
        others: Sequence[tuple[nn.Module, Weight]] = (),
        window: Window | None = None,
        guidance: Guidance | None = None,
        skip: bool = True,
        measure: bool = False,
        seed: int = 0,
    ) -> Sampled:
        """Sample images in [-1, 1]; the same seed gives the same noise whatever the weights.

        Parameters
        ----------
        weight
            w: a number, one a row, or a function of sigma.
        rows
            Number of images.
        sampler
            How.
        condition
            Class of each; None for none.
        others
            Further policies of the same reference, with their weights.
        window, guidance, skip, measure
            As in `mixing.Mixed`.
        seed
            Of the noise.
        """
        policies, weights = [self.policy, *(model for model, _ in others)], [weight, *(w for _, w in others)]
        mixed = Mixed(self.reference, policies, weights, window, guidance or Guidance(), skip, measure)
        start = torch.randn(rows, *self.shape.event, generator=torch.Generator().manual_seed(seed))
        return sample(
            mixed,
            start,
            sampler or Sampler(),
            prediction=self.shape.predicts,  # type: ignore[arg-type]
            path=self.shape.path,  # type: ignore[arg-type]
            condition=condition,
            generator=torch.Generator().manual_seed(seed ^ OFFSET),
        )

    def asked(self, rows: int) -> Int[Tensor, " rows"] | None:
        """Return the classes in turn, one a row; None where nothing is asked for."""
        return torch.arange(rows) % self.shape.classes if self.shape.classes else None

    def scorer(self, name: str = "") -> Reward:
        """Return the reward that it was tuned for, or another one of that name.

        Raises
        ------
        InputError
            There is no such reward, or it needs a classifier that was not trained.
        """

        def classifier() -> nn.Module:
            if self.classifier is None:
                fix = "fit with this reward"
                raise InputError("no classifier was trained", where=f"reward={name}", fix=fix)
            return self.classifier

        return load(name or self.reward, self.classes, classifier)

    def check_same(self, other: Fitted, where: str) -> None:
        """Refuse another fit whose policy cannot be mixed with this one's.

        Raises
        ------
        InputError
            Its networks have another shape or say something else, or its reference is another one.
        """
        check_compatible(asdict(self.shape), asdict(other.shape), where=where)
        own, theirs = digest(self.reference)[:12], digest(other.reference)[:12]
        check_compatible(
            {"reference": own}, {"reference": theirs}, where=where, expected="policies tuned from one reference"
        )

    def digests(self) -> dict[str, str]:
        """Return digests of the weights of reference and policy."""
        return {"reference": digest(self.reference), "policy": digest(self.policy)}

    def to_dict(self) -> dict[str, Any]:
        """Everything but weights and history, as what JSON can hold."""
        tree: dict[str, Any] = files.plain({
            "sanov": __version__,
            "system": "rlg",
            "kind": type(self.reference).__name__.lower(),
            "shape": asdict(self.shape),
            "classes": self.classes,
            "reward": self.reward,
            "beta": self.beta,
            "config": self.config,
            "results": self.results,
            "weights": self.digests(),
        })  # fmt: skip
        return tree

    def summary(self) -> str:
        """Return what was trained, on what, and how, on one screen."""
        weights = sum(value.numel() for value in self.reference.state_dict().values())
        channels, height, width = self.shape.event
        size = f"{height} x {width}{f' x {channels}' if channels > 1 else ''}"
        kind = "exact mixtures" if isinstance(self.reference, Mixture) else f"networks ({self.shape.kind})"
        lines = [f"rlg: a reference and its policy, {kind} of {weights:,} numbers on images of {size}"]
        scalars = {name: value for name, value in self.results.items() if isinstance(value, int | float | str)}
        length = max(map(len, scalars), default=0)
        for name, value in scalars.items():
            text = value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
            lines.append(f"{name.replace('_', ' '):<{length}}  {text}")
        return "\n".join([*lines, *(f"- {note}" for note in self.results.get("notes", ()))])

    def __repr__(self) -> str:
        return f"<policy of rlg for {self.reward}>"

    def save(self, folder: str | Path) -> None:
        """Write a folder; its configuration last, as the seal of the whole.

        Raises
        ------
        InputError
            The place cannot be written.
        """
        folder = Path(folder)
        (folder / CONFIG).unlink(missing_ok=True)
        models = {REFERENCE: self.reference, POLICY: self.policy, CLASSIFIER: self.classifier}
        for name, model in models.items():
            if model is not None:
                files.write_bytes(folder / name, _packed(model))
        buffer = io.BytesIO()
        self.history.write_csv(buffer)
        files.write_bytes(folder / HISTORY, buffer.getvalue())
        files.write_json(folder / CONFIG, self.to_dict())

    @classmethod
    def load(cls, folder: str | Path) -> Fitted:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            The folder is missing, unfinished or damaged.
        """
        folder = Path(folder)
        tree = _read_config(folder)
        try:
            shape = DenoiserShape(**tree["shape"])
            reference, policy = (_opened(folder / name, tree["kind"], shape) for name in (REFERENCE, POLICY))
            classifier = _classifier(folder / CLASSIFIER, shape, len(tree["classes"]))
            own = (tuple(tree["classes"]), tree["reward"], tree["beta"], classifier, tree["config"], tree["results"])
            found = cls(reference, policy, shape, *own, _history(folder / HISTORY))
            if found.digests() != tree["weights"]:
                raise ValueError("the weights are not those that config.json describes")
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            raise InputError(f"is damaged ({error})", where=str(folder), fix="fit again") from None
        return found


def is_finished(folder: Path) -> bool:
    """Whether a folder holds finished models."""
    return (folder / CONFIG).is_file()


def clear(folder: Path) -> None:
    """Remove finished models from a folder, the seal first."""
    for name in (CONFIG, REFERENCE, POLICY, CLASSIFIER, HISTORY):
        (folder / name).unlink(missing_ok=True)


def digest(model: nn.Module) -> str:
    """Return a digest of a model's weights."""
    return files.digest(_packed(model))


def interpolated(reference: nn.Module, policy: nn.Module, weight: float) -> nn.Module:
    """Return the network whose weights are mixed in place of its outputs: half the passes, and another thing.

    It agrees with the mixture of outputs at w = 0 and 1, and to first order in the change of the weights elsewhere.

    Parameters
    ----------
    reference, policy
        Networks of one shape.
    weight
        w.

    Reference
    ---------
    rame2023rewarded.
    """
    model, tuned = copy.deepcopy(reference), policy.state_dict()
    model.load_state_dict(
        {name: torch.lerp(value, tuned[name], weight) for name, value in reference.state_dict().items()}
    )
    return model


def network(shape: DenoiserShape, *, seed: int = 0) -> nn.Module:
    """Return an untrained network."""
    return Denoiser(shape, seed=seed)


def _packed(model: nn.Module) -> bytes:
    packed: bytes = save_tensors({
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    })  # fmt: skip
    return packed


def _read_config(folder: Path) -> dict[str, Any]:
    if not is_finished(folder):
        found = "holds no finished models" if folder.is_dir() else "there is no such folder"
        fix = "first: sanov fit rlg IMAGES --out DIR; a fit that was stopped goes on with --resume"
        raise InputError(found, where=str(folder), fix=fix)
    tree: dict[str, Any] = files.read_json(folder / CONFIG)
    if tree.get("system") != "rlg":
        raise InputError("is of another system", where=str(folder), expected="a folder that `sanov fit rlg` wrote")
    return tree


def _opened(path: Path, kind: str, shape: DenoiserShape) -> nn.Module:
    tensors = load_tensors(path.read_bytes())
    model: nn.Module
    if kind == "mixture":
        means, variance, log_weights = (tensors[name] for name in ("means", "variance", "log_weights"))
        model = Mixture(means, variance, log_weights, prediction=shape.predicts, path=shape.path)  # type: ignore[arg-type]
    else:
        model = network(shape)
        model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def _classifier(path: Path, shape: DenoiserShape, classes: int) -> nn.Module | None:
    if not path.is_file():
        return None
    channels, height, width = shape.event
    model = mlp(channels * height * width, classes, CLASSIFIER_UNITS, 2)
    model.load_state_dict(load_tensors(path.read_bytes()))
    return model.eval().requires_grad_(False)


def _history(path: Path) -> pl.DataFrame:
    return pl.read_csv(path) if path.is_file() and path.stat().st_size > 1 else pl.DataFrame()
