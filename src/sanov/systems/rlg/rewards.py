"""What images are rewarded for: ink, symmetry, the probability of a class, or a user's own function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from sanov.core.errors import InputError, SanovError
from sanov.core.user_code import load_function, place_of

__all__ = ["BUILT_IN", "Reward", "ink", "load", "symmetry"]

BUILT_IN = ("ink", "symmetry", "class", "class:NAME")
CLASS = "class"


def ink(images: Float[Tensor, "rows channels height width"]) -> Float[Tensor, " rows"]:
    """Return the mean pixel, 0 for black and 1 for white: linear in the image.

    Parameters
    ----------
    images
        In [-1, 1]; what lies outside counts as it is.
    """
    return (images.flatten(1).mean(dim=1) + 1) / 2


def symmetry(images: Float[Tensor, "rows channels height width"]) -> Float[Tensor, " rows"]:
    """Return minus the mean absolute difference between left and right, 0 for an image that is its own mirror image.

    Parameters
    ----------
    images
        In [-1, 1].
    """
    return -(images - images.flip(-1)).abs().flatten(1).mean(dim=1) / 2


@dataclass(frozen=True)
class Reward:
    """A reward of images, checked.

    Parameters
    ----------
    name
        As the user writes it.
    function
        From images in [-1, 1] and their conditions to one number a row.
    classifier
        What gives class probabilities, where that is the reward.
    """

    name: str
    function: Callable[[Tensor, Tensor | None], Tensor]
    classifier: nn.Module | None = None

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "rows channels height width"], condition: Int[Tensor, " rows"] | None = None
    ) -> Float64[Tensor, " rows"]:
        """Return the reward of each image.

        Raises
        ------
        InputError
            The function fails, or gives another number of values, or one that is not finite.
        """
        found = self.function(images, condition)
        if found.shape != (len(images),):
            expected = f"one number an image: shape ({len(images)},)"
            raise InputError(f"it gave shape {tuple(found.shape)}", where=f"reward={self.name}", expected=expected)
        values = found.double()
        bad = (~torch.isfinite(values)).nonzero()[:, 0]
        if len(bad):
            first = int(bad[0])
            told = f"{len(bad)} of {len(values)} values are not finite; the first is {values[first]} at row {first + 1}"
            raise InputError(told, where=f"reward={self.name}", expected="finite numbers")
        return values


def load(name: str, classes: tuple[str, ...], make_classifier: Callable[[], nn.Module]) -> Reward:
    """Return a reward by its name.

    Parameters
    ----------
    name
        ``ink``, ``symmetry``, ``class`` (the log-probability of the class that was asked for), ``class:NAME`` (of one
        class), or ``module:function``, which is called with images [rows, height, width, channels] in [0, 1] and the names
        of their classes (or None), and returns one number a row.
    classes
        Names of the classes; none where images have none.
    make_classifier
        Called where a classifier is needed.

    Raises
    ------
    InputError
        There is no such reward, class or function.
    """
    if name == "ink":
        return Reward(name, lambda images, _: ink(images))
    if name == "symmetry":
        return Reward(name, lambda images, _: symmetry(images))
    kind, _, which = name.partition(":")
    if kind == CLASS:
        return _of_class(name, which, classes, make_classifier)
    if ":" not in name:
        raise InputError(
            f"there is no reward {name!r}", where="reward", expected=f"{', '.join(BUILT_IN)} or module:function"
        )
    return Reward(name, _own(name, classes))


def _of_class(name: str, which: str, classes: tuple[str, ...], make_classifier: Callable[[], nn.Module]) -> Reward:
    if not classes:
        raise InputError("the images have no labels", where=f"reward={name}", fix="add `labels`, or take reward=ink")
    if which and which not in classes:
        raise InputError(f"there is no class {which!r}", where=f"reward={name}", expected=", ".join(classes))
    classifier = make_classifier()

    def log_probability(images: Tensor, condition: Tensor | None) -> Tensor:
        log_p: Tensor = classifier(images.flatten(1)).log_softmax(dim=1)
        if which:
            return log_p[:, classes.index(which)]
        if condition is None:
            fix = f"write class:NAME, for one of {', '.join(classes)}"
            raise InputError("no class was asked for", where=f"reward={name}", fix=fix)
        return log_p.gather(1, condition[:, None])[:, 0]

    return Reward(name, log_probability, classifier)


def _own(name: str, classes: tuple[str, ...]) -> Callable[[Tensor, Tensor | None], Tensor]:
    function = load_function(name)

    def called(images: Tensor, condition: Tensor | None) -> Tensor:
        pixels = ((images.double() + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()
        labels = None if condition is None else [classes[place] for place in condition.tolist()]
        try:
            found: Any = np.asarray(function(pixels, labels), dtype=np.float64)
        except SanovError:
            raise
        except Exception as error:  # the user's code may fail in any way
            told = f"it failed ({type(error).__name__}: {error}; {place_of(error, function)})"
            raise InputError(told, where=f"reward={name}", expected="one number an image") from error
        return torch.from_numpy(np.atleast_1d(found))

    return called
