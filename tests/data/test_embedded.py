"""Tables that need no file, against scikit-learn's own."""

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_wine

from sanov.core.errors import InputError
from sanov.data import distillation
from sanov.data.embedded import resolve


@pytest.fixture(scope="module")
def digits():
    return resolve("embedded:digits")


def test_digits_are_those_of_scikit_learn_in_two_parts(digits):
    found, rest = load_digits(), resolve("embedded:digits-new")
    pixels = [frame.select(r"^pixel_.*$").to_numpy() for frame in (digits, rest)]
    assert np.array_equal(np.concatenate(pixels), found.data)
    assert np.array_equal(np.concatenate([digits["label"], rest["label"]]), found.target)
    assert not any(name.startswith("logit_") for name in rest.columns)


def test_the_teacher_is_right_on_rows_that_it_has_not_seen(digits):
    right = digits.select(r"^logit_.*$").to_numpy().argmax(axis=1) == digits["label"].to_numpy()
    assert 0.9 < right.mean() < 0.995  # fitted to the rows themselves it would be right on all


def test_it_is_a_table_to_distil_from():
    table = distillation.read(["embedded:digits"])
    assert (len(table), table.classes, table.inputs.shape[1]) == (1200, tuple(map(str, range(10))), 64)
    assert table.logits.shape == (1200, 10)


def test_parity_has_a_teacher_that_shows_its_embeddings():
    table, rest = (distillation.read([name]) for name in ("embedded:parity", "embedded:parity-new"))
    found = load_digits()
    assert np.array_equal(np.concatenate([table.inputs, rest.inputs]), found.data)
    assert np.array_equal(np.concatenate([table.labels, rest.labels]), found.target % 2)
    assert table.subclasses + rest.subclasses == tuple(map(str, found.target))
    assert table.classes == rest.classes == ("even", "odd")
    assert table.embeddings.shape == (1200, 300)
    np.testing.assert_allclose(table.head.logits(table.embeddings), table.logits)
    assert (table.logits.argmax(axis=1) == table.labels).mean() > 0.97
    assert rest.logits is None


@pytest.mark.parametrize("name", ["digits", "parity", "wine"])
def test_a_message_calls_a_table_as_its_user_did(name):
    assert distillation.read([f"embedded:{name}"]).name == f"embedded:{name}"


def test_wine():
    frame = resolve("embedded:wine")
    assert frame.columns == load_wine().feature_names
    assert np.array_equal(frame.to_numpy(), load_wine().data)


def test_predictions_are_of_rows_that_the_models_have_not_seen():
    frame = resolve("embedded:predictions")
    assert np.array_equal(frame["label"], load_digits().target)
    right = {}
    for part in ("teacher", "student", "baseline"):
        p = frame.select(f"^{part}_prob_.*$").to_numpy()
        assert p.shape == (1797, 10)
        assert p.sum(axis=1) == pytest.approx(np.ones(1797))
        assert np.array_equal(p.argmax(axis=1), frame[part])
        right[part] = (frame[part] == frame["label"]).mean()
    assert (
        0.995 > right["teacher"] > right["student"] > right["baseline"] > 0.7
    )  # a fit to the rows themselves gets all


def test_other_sources_pass_and_unknown_names_do_not():
    assert resolve("data.csv") == "data.csv"
    with pytest.raises(InputError, match=r"expected embedded:digits or .* or embedded:wine"):
        resolve("embedded:x")
