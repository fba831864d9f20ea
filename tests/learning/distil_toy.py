"""Distillation small enough for a test: blobs whose teacher knows their centres, texts of two words, and short fits."""

import numpy as np
import torch

from sanov.data.distillation import DistilTable
from sanov.learning import distil
from sanov.learning.components import label_loss, teacher_loss
from sanov.learning.distil import Validation
from sanov.learning.students import Student
from sanov.learning.training import Training

SMALL = Student(width=8, depth=1, buckets=64, embedding=4)
SHORT = Training(batch_size=16, epochs=2, learning_rate=0.01)


def table(rows=60, classes=3, seed=0, unlabelled=0):
    """Gaussian blobs; the teacher knows their centres."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    inputs = 2 * np.eye(classes, 4)[labels] + rng.standard_normal((rows, 4))
    logits = 2 * inputs[:, :classes] - 1
    labels[:unlabelled] = -1
    return DistilTable(inputs, tuple("abcdef"[:classes]), logits, labels)


def texts(rows=40):
    words = ["good film", "bad film"]
    inputs = tuple(f"{words[i % 2]} {i // 2}" for i in range(rows))
    logits = np.where(np.arange(rows)[:, None] % 2 == [0, 1], 2.0, -2.0)
    return DistilTable(inputs, ("pos", "neg"), logits, np.arange(rows) % 2, features=("text",))


def weights(fitted):
    return torch.cat([values.flatten() for values in fitted.model.state_dict().values()])


def fit(data, *components, **options):
    defaults = {"training": SHORT, "student": SMALL, "validation": Validation(share=0, select="last")}
    return distil.fit(data, components or (label_loss(0.1), teacher_loss(0.9)), **(defaults | options))
