"""Labels as people write them, as indices of classes: names, numbers, true and false, and none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from sanov.core.errors import InputError

__all__ = ["encode_labels", "listed"]

TRUTH = {"false": 0, "true": 1}


def encode_labels(
    labels: Sequence[str | None], classes: Sequence[str] | None, *, name: str, fix: str | None = None
) -> tuple[Int64[np.ndarray, " rows"], tuple[str, ...]]:
    """Turn labels into indices of classes; -1 where there is none.

    Parameters
    ----------
    labels
        Names of classes; or their numbers, counted from 0. None means that a row has no label, and so does ``"-1"``
        where no class has that name. ``"true"`` and ``"false"`` are the classes of those names, in whatever case; where
        classes are numbered, 1 and 0.
    classes
        Names of the classes; None takes those that occur.
    name
        What to call the table in a message.
    fix
        What to do about a label that is no class.

    Raises
    ------
    InputError
        A label that is no class, with its row; labels that can be read in two ways.
    """
    unlabelled = {None} if "-1" in (classes or ()) else {None, "-1"}
    present = {label for label in labels if label is not None and label not in unlabelled}
    numbers = all(label.isdecimal() for label in present)
    if classes is None:
        top = max((int(label) for label in present), default=-1) if numbers else -1
        names = tuple(map(str, range(top + 1))) if numbers and top < 1000 else tuple(sorted(present))
    else:
        names = tuple(classes)
    _refuse_two_readings(labels, present, names, name)
    index: dict[str | None, int] = dict.fromkeys(unlabelled, -1)
    if numbers and not any(_is_whole(name) for name in names):
        index |= {str(place): place for place in range(len(names))}
    else:
        index |= _truths(present, names) | {name: place for place, name in enumerate(names)}
    for row, label in enumerate(labels, start=1):
        if label not in index:
            expected = f"0 to {len(names) - 1}" if numbers else f"one of {listed(names)}"
            raise InputError(f"the label is {label!r}", where=f"{name}, row {row}", expected=expected, fix=fix)
    return np.array([index[label] for label in labels], dtype=np.int64), names


def _refuse_two_readings(labels: Sequence[str | None], present: set[str], names: Sequence[str], where: str) -> None:
    """Refuse numbers that most people mean otherwise than they would be read."""
    signs = "-1" in labels and present in ({"1"}, {"+1"})
    if signs and set(names) <= {"0", "1", "+1"}:
        fix = "for two classes write 0 and 1 (or name them: logit_-1, logit_1), for rows without a label leave it empty"
        raise InputError("the labels are -1 and 1, and -1 means that there is no label", where=where, fix=fix)
    places = {name.lower(): place for place, name in enumerate(names)}
    crossed = any(places.get(word, number) != number for word, number in TRUTH.items())
    if crossed and present & {"0", "1"}:
        expected = "true and false, as the classes are named"
        raise InputError("the labels are 0 and 1", where=where, expected=expected, fix="write the labels so")


def _truths(present: set[str], names: Sequence[str]) -> dict[str | None, int]:
    """Where labels are true and false, the place of each: by name in any case, or by number."""
    if not {label.lower() for label in present} <= set(TRUTH):
        return {}
    places = {name.lower(): place for place, name in enumerate(names)}
    if not places.keys() & set(TRUTH):
        places = {word: places[str(number)] for word, number in TRUTH.items() if str(number) in places}
    return {label: places[label.lower()] for label in present if label.lower() in places}


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").removeprefix("+").isdecimal()


def listed(names: Sequence[str]) -> str:
    """Return names as a message shows them: the first six."""
    shown = ", ".join(repr(name) for name in names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
