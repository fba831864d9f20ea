"""A fitted student as a teacher: head and embeddings give its logits, and what it cannot be is told."""

from dataclasses import replace

import numpy as np
import pytest

from sanov.core.errors import InputError
from sanov.learning import distil
from sanov.learning.distil import Validation, label_loss
from sanov.learning.inside import taught_by
from sanov.learning.students import Student
from sanov.learning.training import Training
from sanov.systems import lelp
from systems.lelp_toy import config, table

SHORT = Training(epochs=3, batch_size=32)


@pytest.mark.parametrize("texts", [False, True])
def test_its_head_makes_its_logits_of_its_embeddings(texts):
    data = table(embeddings=None, head=None, logits=None)
    if texts:
        words = tuple(f"{'good' if label else 'bad'} film {row % 7}" for row, label in enumerate(data.labels))
        data = replace(data, inputs=words)
    student = Student(width=10, depth=2, buckets=64, embedding=4)
    fitted = distil.fit(data, [label_loss()], training=SHORT, student=student, validation=Validation(share=0.0))
    taught = taught_by(fitted, data)
    assert taught.embeddings.shape == (240, 10)
    np.testing.assert_allclose(taught.logits, fitted.logits(data), atol=1e-6)
    np.testing.assert_allclose(taught.head.logits(taught.embeddings), taught.logits, atol=1e-5)
    second = lelp.fit(taught, config(training=SHORT))
    assert second.subclasses == 2


def test_a_student_of_subclasses_is_no_teacher():
    fitted = lelp.fit(table(), config())
    with pytest.raises(InputError, match="other outputs than one for each class"):
        taught_by(fitted, table())
