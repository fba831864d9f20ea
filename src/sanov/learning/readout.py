"""How the outputs of a student become logits of classes: directly, or as the sum of subclasses.

A student of C classes with S subclasses each has C * S outputs u, those of a class side by side. Its class probabilities
are sums over subclasses of softmax(u / T), and follow the teacher's softmax(t / tau). So the logit of class c is
tau logsumexp_s(u[c, s] / T), whose softmax follows the teacher's at temperature 1. Further outputs after these are hints:
regressions that are trained beside the classes and not used afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from sanov.learning.components import Component, Rows
from sanov.nets.subclass_heads import summed_logits

__all__ = ["Readout", "on_classes"]


@dataclass(frozen=True)
class Readout:
    """What the outputs of a student mean.

    Parameters
    ----------
    classes
        Number of classes.
    subclasses
        Number of subclasses of each class; 1 for none.
    hints
        Number of further outputs.
    temperature, student_temperature
        tau of the teacher's softmax and T of the student's, in training.
    """

    classes: int
    subclasses: int = 1
    hints: int = 0
    temperature: float = 1.0
    student_temperature: float = 1.0

    @property
    def outputs(self) -> int:
        """Number of outputs of the student."""
        return self.classes * self.subclasses + self.hints

    def subclass_logits(self, outputs: Float[Tensor, "*rows outputs"]) -> Float[Tensor, "*rows classes subclasses"]:
        """Return the outputs of all subclasses; the softmax, at the student's temperature, is over both axes at once."""
        used = outputs[..., : self.classes * self.subclasses]
        return used.reshape(*used.shape[:-1], self.classes, self.subclasses)

    def class_logits(self, outputs: Float[Tensor, "*rows outputs"]) -> Float[Tensor, "*rows classes"]:
        """Return logits that follow the teacher's: their softmax at tau is the sum over the subclasses of each class."""
        return summed_logits(self.subclass_logits(outputs), self.temperature, self.student_temperature)

    def hint(self, outputs: Float[Tensor, "*rows outputs"]) -> Float[Tensor, "*rows hints"]:
        """Return the further outputs."""
        return outputs[..., self.classes * self.subclasses :]


def on_classes(component: Component, readout: Readout) -> Component:
    """Return a component for a student whose class logits are read out of its outputs.

    Parameters
    ----------
    component
        One that takes class logits.
    readout
        Of the student.
    """
    monitor = component.monitor

    def loss(outputs: Tensor, rows: Rows) -> Tensor:
        return component.loss(readout.class_logits(outputs), rows)

    told = None if monitor is None else (lambda outputs, rows: monitor(readout.class_logits(outputs), rows))
    return replace(component, loss=loss, monitor=told)
