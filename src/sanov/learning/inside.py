"""A fitted student as a teacher: its logits, its embeddings, and its last linear layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sanov.core.errors import InputError
from sanov.data.distillation import DistilTable, Head
from sanov.learning.students import Fitted
from sanov.nets.last_linear import LastLinear

__all__ = ["taught_by"]


def taught_by(fitted: Fitted, table: DistilTable) -> DistilTable:
    """Return a table with the outputs of a fitted student: logits, embeddings and head.

    Parameters
    ----------
    fitted
        A student with one output a class. Its embeddings are the input of its last linear layer.
    table
        Rows with the inputs that it was trained on.

    Raises
    ------
    InputError
        The student has subclasses or hints, or other inputs or classes than the table.
    """
    if fitted.readout.outputs != len(fitted.classes):
        raise InputError("the teacher has other outputs than one for each class", where=fitted.system)
    table = table.aligned(fitted.classes)
    watched, device = LastLinear(fitted.model.eval()), next(fitted.model.parameters()).device
    arguments = fitted.encoder.encode(table).rows(np.arange(len(table)))
    logits, embeddings = watched(*(values.to(device) for values in arguments.values()))
    last = watched.head()
    assert embeddings is not None  # every student ends in a linear layer
    assert last is not None
    wide, inner = (x.double().cpu().numpy() for x in (logits, embeddings))
    return replace(table, logits=wide, embeddings=inner, head=Head(*last))
