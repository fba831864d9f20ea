"""The door for Hugging Face models: a folder in, logits out, and a message for every folder that is no classifier."""

import json

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the extra `language` is not installed")

import torch

import tiny_bert
from sanov.core.errors import InputError, SanovWarning
from sanov.nets.foreign import classifier_classes, classifier_logits, load_classifier, new_classifier

TEXTS = ["good film", "a very bad film", "bad", "a very very very good film", "good"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert.save(tmp_path_factory.mktemp("teacher") / "bert")


def test_logits_are_those_of_each_text_alone(folder):
    """Batches by length and padding change nothing, and the order is the caller's."""
    together = classifier_logits(folder, TEXTS, batch_size=2)
    model, tokenizer = load_classifier(folder)
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")).logits[0].double().numpy() for text in TEXTS]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(together[:, 0]) > 1e-3


def test_names_of_classes(folder, tmp_path):
    assert classifier_classes(folder) == ("neg", "pos")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"1": "LABEL_1", "0": "LABEL_0", "2": "LABEL_2"}}))
    assert classifier_classes(tmp_path) == ("0", "1", "2")


def test_long_texts_are_told(folder):
    with pytest.warns(SanovWarning, match="1 of 2 texts reach the teacher's limit of 16 tokens"):
        classifier_logits(folder, ["good " * 40, "bad"])


def test_a_model_without_a_trained_head(tmp_path, capfd):
    with pytest.raises(InputError, match=r"lacks trained weights \(classifier.*Fine-tune"):
        load_classifier(tiny_bert.save(tmp_path / "base", head=False))
    assert "Loading weights" not in capfd.readouterr().err


def test_a_new_head_on_an_encoder(tmp_path):
    """The seed gives the head; the encoder is the folder's; and what is saved is a classifier."""
    base = tiny_bert.save(tmp_path / "base", head=False)
    state = torch.get_rng_state()
    model, tokenizer = new_classifier(base, ("a", "b", "c"), seed=1)
    again, _ = new_classifier(base, 3, seed=1)
    other, _ = new_classifier(base, 3, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert not torch.equal(model.classifier.weight, other.classifier.weight)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, other.bert.embeddings.word_embeddings.weight)
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    assert classifier_classes(tmp_path / "trained") == ("a", "b", "c")
    assert classifier_logits(tmp_path / "trained", ["good film"]).shape == (1, 3)


def test_folders_that_hold_no_classifier(folder, tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        classifier_classes(tmp_path / "none")
    with pytest.raises(InputError, match=r"has no config\.json"):
        classifier_classes(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        classifier_classes(folder / "config.json")
    with pytest.raises(InputError, match="several labels a text"):
        classifier_classes(tiny_bert.save(tmp_path / "multi", problem_type="multi_label_classification"))
    with pytest.raises(InputError, match="one output"):
        classifier_classes(tiny_bert.save(tmp_path / "single", classes=("score",)))


def test_damaged_weights(tmp_path):
    folder = tiny_bert.save(tmp_path / "bert")
    (folder / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(InputError, match="cannot be loaded as a classifier"):
        load_classifier(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded as a classifier"):
        load_classifier(folder)


def test_a_folder_without_a_tokenizer(tmp_path):
    """The library itself would make an empty one, and give every text the same tokens."""
    folder = tiny_bert.save(tmp_path / "bert")
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"has no tokenizer \(tokenizer.json or vocab.txt\)"):
        load_classifier(folder)


def test_a_tokenizer_of_another_model(tmp_path):
    folder = tiny_bert.save(tmp_path / "bert")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"##s": 10', '"##s": 10, "superb": 11'))
    with pytest.raises(InputError, match="the tokenizer gives the token 11, and the model knows 11"):
        classifier_logits(folder, ["good", "a superb film"])
