"""A last layer with subclasses on any classifier: what it said before it still says, and Hugging Face knows of it."""

import numpy as np
import pytest
import torch

import tiny_bert
from sanov.core.errors import InputError
from sanov.learning.readout import Readout
from sanov.nets.encoder import HashedNgrams, mlp
from sanov.nets.subclass_heads import Summed, with_subclasses


@pytest.mark.parametrize("depth", [0, 2])
def test_class_probabilities_are_nearly_those_of_before(depth):
    torch.manual_seed(0)
    model, x = mlp(5, 3, width=16, depth=depth), torch.randn(40, 5)
    before = torch.softmax(model(x), dim=-1)
    after = torch.softmax(Summed(with_subclasses(model, 4), 3)(x), dim=-1)
    assert model(x).shape == (40, 12)
    assert (after - before).abs().max() < 0.05
    assert not torch.equal(model(x)[:, 0], model(x)[:, 1])


def test_one_subclass_changes_nothing():
    torch.manual_seed(0)
    model, x = mlp(5, 3), torch.randn(8, 5)
    before = model(x)
    assert torch.equal(with_subclasses(model, 1)(x), before)
    assert torch.allclose(Summed(model, 3)(x), before)


def test_the_sum_is_that_of_probabilities():
    logits = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Summed(torch.nn.Identity(), 2)(logits)
    joint = torch.softmax(logits, dim=-1)
    summed = torch.stack([joint[:, :4].sum(dim=1), joint[:, 4:].sum(dim=1)], dim=1)
    np.testing.assert_allclose(torch.softmax(found, dim=-1), summed, rtol=1e-12)
    assert torch.equal(found, Readout(2, 4).class_logits(logits))


def test_on_texts():
    model = with_subclasses(HashedNgrams(2, buckets=32, embedding=4), 3)
    assert model(torch.tensor([1, 2, 3]), torch.tensor([0, 2])).shape == (2, 6)


def test_on_a_hugging_face_classifier(tmp_path):
    from transformers import AutoModelForSequenceClassification

    folder = tiny_bert.save(tmp_path / "classifier")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    classes = model.config.num_labels
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    model.eval()
    before = torch.softmax(model(**inputs).logits, dim=-1)
    with_subclasses(model, 2)
    assert model.config.num_labels == model.num_labels == 2 * classes
    assert model.config.id2label[1].endswith("/2")
    assert model(**inputs).logits.shape == (1, 2 * classes)
    assert (torch.softmax(Summed(model, classes)(**inputs), dim=-1) - before).abs().max() < 0.05
    model.save_pretrained(tmp_path / "student")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    assert torch.allclose(again(**inputs).logits, model(**inputs).logits)
    loss = model(**inputs, labels=torch.tensor([2 * classes - 1])).loss
    assert torch.isfinite(loss)


def test_it_can_be_exported():
    """What is deployed gives classes alone: the sum is part of the graph."""
    torch.manual_seed(0)
    model = Summed(with_subclasses(mlp(5, 2), 4), 2).eval()
    x = torch.randn(3, 5)
    program = torch.export.export(model, (x,))
    assert torch.allclose(program.module()(x), model(x))


def test_what_cannot_be():
    with pytest.raises(InputError, match="has no linear layer"):
        with_subclasses(torch.nn.Identity(), 2)
    with pytest.raises(InputError, match="at least 1"):
        with_subclasses(mlp(3, 2), 0)
    with pytest.raises(InputError, match="7 outputs; expected a multiple of 2 classes"):
        Summed(mlp(3, 7), 2)(torch.zeros(1, 3))
