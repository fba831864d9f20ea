"""A fitted student as a teacher: its logits, its embeddings, and its last linear layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from sanov.core.errors import InputError
from sanov.data.distillation import DistilTable, Head
from sanov.learning.students import Fitted, outputs

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
    last = [module for module in fitted.model.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, given, result: seen.append(given[0].detach().cpu()))
    try:
        logits = outputs(fitted.model, fitted.encoder.encode(table), len(table))
    finally:
        hook.remove()
    weight, bias = (values.detach().double().cpu().numpy() for values in (last.weight, last.bias))
    return replace(
        table,
        logits=logits.double().numpy(),
        embeddings=np.asarray(torch.cat(seen).double().numpy()),
        head=Head(weight.T.copy(), bias),
    )
