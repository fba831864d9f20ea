"""A table and options small enough for a test, which processes can share."""

import numpy as np

from sanov.data.distillation import DistilTable
from sanov.learning.distil import Validation
from sanov.learning.students import Student
from sanov.learning.training import Training
from sanov.systems import sinkd

SMALL = Student(width=8, depth=1, buckets=64, embedding=4)
SHORT = Training(batch_size=16, epochs=2, learning_rate=0.01)
LAST = Validation(share=0.0, select="last")


def table(rows=96, classes=3, seed=0, **changes):
    """Gaussian blobs; the teacher knows their centres."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    inputs = 2 * np.eye(classes, 4)[labels] + rng.standard_normal((rows, 4))
    parts = {
        "inputs": inputs,
        "classes": tuple("abcdef"[:classes]),
        "logits": 2 * inputs[:, :classes],
        "labels": labels,
    }
    return DistilTable(**(parts | changes))


def config(**options):
    return sinkd.Config(**({"student": SMALL, "training": SHORT, "validation": LAST} | options))
