"""Models of a folder as adapters need them: what was never trained is named, and made from a seed alone."""

import pytest
import torch
from torch import nn

import tiny_bert
import tiny_llama
from sanov.core.errors import InputError
from sanov.nets.adaptable import load_base, query_and_value


def test_what_the_folder_lacks_is_named_and_follows_from_the_seed(tmp_path):
    folder = tiny_bert.save(tmp_path / "bert", head=False)
    state = torch.random.get_rng_state()
    first, again, other = (load_base(folder, ("a", "b", "c"), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.fresh == ("classifier",)
    assert first.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert torch.equal(first.model.classifier.weight, again.model.classifier.weight)
    assert not torch.equal(first.model.classifier.weight, other.model.classifier.weight)
    assert not first.model.training


def test_a_head_stays_unless_there_are_other_classes(tmp_path):
    folder = tiny_bert.save(tmp_path / "bert")
    assert load_base(folder, ("neg", "pos")).fresh == ()
    assert load_base(folder, ("a", "b", "c")).fresh == ("classifier",)


def test_what_cannot_be_adapted_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        load_base(tmp_path / "nowhere", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the folder has no config.json"):
        load_base(tmp_path / "empty", None)
    with pytest.raises(InputError):
        load_base(tiny_bert.save(tmp_path / "bert", head=False), None)


def test_query_and_value_by_their_usual_names(tmp_path):
    tiny_llama.save(tiny_llama.llama(), tmp_path / "llama")
    assert query_and_value(load_base(tmp_path / "llama", None).model) == ("q_proj", "v_proj")
    assert query_and_value(load_base(tiny_bert.save(tmp_path / "bert"), ("a", "b")).model) == ("query", "value")
    with pytest.raises(InputError, match="target_modules=first,second"):
        query_and_value(nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)}))
