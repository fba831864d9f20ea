"""A teacher of two classes whose embeddings show two halves of each: a table small enough for a test."""

import numpy as np

from sanov.data.distillation import DistilTable, Head
from sanov.learning.distil import Validation
from sanov.learning.students import Student
from sanov.learning.training import Training
from sanov.systems import lelp

SMALL = Student(width=8, depth=1, buckets=64, embedding=4)
SHORT = Training(batch_size=32, epochs=3, learning_rate=0.02)
LAST = Validation(share=0.0, select="last")


def table(rows=240, seed=0, **changes):
    """The class is at +-2 along what the head reads, the half at +-3 along another axis; the inputs mix them."""
    rng = np.random.default_rng(seed)
    labels, halves = np.arange(rows) % 2, (np.arange(rows) // 2) % 2
    embeddings = 0.4 * rng.standard_normal((rows, 4))
    embeddings[:, 0] += 4 * labels - 2
    embeddings[:, 1] += 6 * halves - 3
    head = Head(np.array([[-1.0, 1.0], [0, 0], [0, 0], [0, 0]]), np.zeros(2))
    mixing = np.linalg.qr(rng.standard_normal((6, 4)))[0].T
    parts = {
        "inputs": embeddings @ mixing,
        "classes": ("a", "b"),
        "logits": head.logits(embeddings),
        "labels": labels,
        "embeddings": embeddings,
        "head": head,
        "subclasses": tuple(f"{'ab'[c]}{'lr'[h]}" for c, h in zip(labels, halves, strict=True)),
    }
    return DistilTable(**(parts | changes))


def config(**options):
    return lelp.Config(**({"student": SMALL, "training": SHORT, "validation": LAST, "subclasses": 2} | options))
