"""Subclasses for any classifier: a last layer with S outputs a class, and the classifier that sums them again.

::

    student = with_subclasses(classifier, subclasses=4)      # any network that ends in a linear layer of C outputs
    ...                                                      # trained on C * S logits
    deployed = Summed(student, classes=2)                    # gives C logits: logsumexp over the subclasses of each
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sanov.core.errors import InputError
from sanov.nets.last_linear import logits_of

__all__ = ["Summed", "summed_logits", "with_subclasses"]

APART = 0.1  # noise between subclasses of a class, relative to the spread of the weights


def with_subclasses(model: nn.Module, subclasses: int, *, seed: int = 0) -> nn.Module:
    """Give the last linear layer of a classifier S outputs for each class, in place.

    The new outputs of a class are those of the old one with a little noise, so that the summed class probabilities are
    nearly those of before. A Hugging Face model's ``config.num_labels`` and label names are changed with it.

    Parameters
    ----------
    model
        Any network whose last linear layer (the last in the order of its modules) gives one logit a class.
    subclasses
        S.
    seed
        Of the noise.

    Returns
    -------
    The same model. Outputs of a class stand side by side.

    Raises
    ------
    InputError
        The model has no linear layer, or S is below 1.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise InputError("has no linear layer", where=type(model).__name__, expected="a classifier that ends in one")
    if subclasses < 1:
        raise InputError(f"it is {subclasses}", where="subclasses", expected="at least 1")
    path, old = layers[-1]
    new = nn.Linear(old.in_features, old.out_features * subclasses, old.bias is not None)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = old.weight.repeat_interleave(subclasses, dim=0)
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        spread = APART * old.weight.std() if old.weight.numel() > 1 and subclasses > 1 else 0.0
        new.weight.copy_(weight + spread * noise)
        if old.bias is not None:
            new.bias.copy_(old.bias.repeat_interleave(subclasses))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new.to(old.weight))
    _rename(model, old.out_features, subclasses)
    return model


def _rename(model: Any, classes: int, subclasses: int) -> None:
    """Tell a Hugging Face configuration of the new outputs."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "num_labels", None) != classes:
        return
    names = [config.id2label[place] for place in range(classes)]
    labels = [f"{name}/{s + 1}" for name in names for s in range(subclasses)] if subclasses > 1 else names
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: place for place, label in config.id2label.items()}
    if hasattr(model, "num_labels"):
        model.num_labels = classes * subclasses


def summed_logits(
    logits: Float[Tensor, "*rows classes subclasses"], temperature: float = 1.0, student_temperature: float = 1.0
) -> Float[Tensor, "*rows classes"]:
    """Return the logits of classes, tau logsumexp_s(u / T): their softmax at tau is the sum over the subclasses of each.

    Parameters
    ----------
    logits
        u, outputs of all subclasses.
    temperature, student_temperature
        tau of the teacher's softmax and T of the student's, in training.
    """
    scaled = logits / student_temperature
    return temperature * (scaled[..., 0] if logits.shape[-1] == 1 else torch.logsumexp(scaled, dim=-1))


class Summed(nn.Module):
    """A classifier of C classes: a network of C * S outputs whose subclasses are summed.

    Parameters
    ----------
    model
        The network; its outputs are a tensor, a tuple that begins with the logits, or anything with ``logits``.
    classes
        C.
    temperature, student_temperature
        tau of the teacher's softmax and that of the student's, in training.
    """

    def __init__(self, model: nn.Module, classes: int, *, temperature: float = 1.0, student_temperature: float = 1.0):
        super().__init__()
        self.model, self.classes = model, classes
        self.temperature, self.student_temperature = temperature, student_temperature

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the logits of the classes [..., classes]: their softmax at tau is the sum over subclasses.

        Raises
        ------
        InputError
            The outputs of the network are no multiple of the classes.
        """
        logits = logits_of(self.model(*args, **kwargs))
        if logits.shape[-1] % self.classes:
            found = f"the network has {logits.shape[-1]} outputs"
            raise InputError(found, where="Summed", expected=f"a multiple of {self.classes} classes")
        divided = logits.reshape(*logits.shape[:-1], self.classes, -1)
        return summed_logits(divided, self.temperature, self.student_temperature)
