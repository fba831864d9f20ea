"""What a student's subclasses are said to be: words and features that were planted to set them apart, and known truths."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from sanov.core import charts
from sanov.data.distillation import DistilTable
from sanov.learning.subclass_cards import cards


def log_probs(classes, subclasses, size=2, sure=0.9):
    """Log-probabilities of a student that is this sure of the class and the subclass of each row."""
    p = np.full((len(classes), 2, size), (1 - sure) / (2 * size - 1))
    p[np.arange(len(classes)), classes, subclasses] = sure
    return np.log(p)


def test_words_that_set_texts_apart():
    classes, halves = np.arange(80) % 2, (np.arange(80) // 2) % 2
    topics = np.array([["acting is fine", "music is loud"], ["plot is thin", "jokes are stale"]])
    texts = tuple(f"the {topics[c, h]} number{i}" for i, (c, h) in enumerate(zip(classes, halves, strict=True)))
    table = DistilTable(texts, ("good", "bad"))
    found = cards(table, log_probs(classes, halves))
    assert found.table["rows"].to_list() == [20, 20, 20, 20]
    assert found.table["share of class"].to_list() == [0.5] * 4
    signs = [set(row.split(", ")) for row in found.table["set apart by"]]
    assert signs == [{"acting", "fine"}, {"loud", "music"}, {"is", "plot", "thin"}, {"are", "jokes", "stale"}]
    assert all(row.count(" | ") == 2 for row in found.table["typical rows"])
    assert np.array_equal(found.subclass, halves)
    np.testing.assert_allclose(found.table["mean certainty"], 0.9 / (0.9 + 0.1 / 3))


def test_features_that_set_rows_apart():
    rng = np.random.default_rng(0)
    classes, halves = np.arange(200) % 2, (np.arange(200) // 2) % 2
    inputs = rng.standard_normal((200, 3))
    inputs[:, 1] += 4 * halves
    table = DistilTable(inputs, ("a", "b"), features=("age", "height", "weight"))
    found = cards(table, log_probs(classes, halves))
    assert [row.split(", ")[0] for row in found.table["set apart by"]] == ["height low", "height high"] * 2


def test_typical_rows_are_the_surest():
    p = np.full((6, 2, 2), 0.01)
    p[:, 0, 0] = [0.5, 0.9, 0.6, 0.95, 0.7, 0.8]
    table = DistilTable(np.zeros((6, 1)), ("a", "b"), ids=tuple("uvwxyz"))
    found = cards(table, np.log(p))
    assert found.table["typical rows"][0] == "x | v | z"
    assert found.table.row(1, named=True)["rows"] == 0
    assert found.table.row(2, named=True)["share of class"] is None


def test_agreement_with_known_subclasses_is_within_classes():
    """Subclasses that only repeat the class agree with nothing, though they would over all rows."""
    rng = np.random.default_rng(1)
    classes, halves = np.arange(400) % 2, rng.integers(2, size=400)
    known = tuple(f"{c}{h}" for c, h in zip(classes, halves, strict=True))
    table = DistilTable(np.zeros((400, 1)), ("a", "b"), subclasses=known)
    assert cards(table, log_probs(classes, halves)).values == {"adjusted_rand": 1.0}
    other = rng.integers(2, size=400)
    found = cards(table, log_probs(classes, other)).values["adjusted_rand"]
    rows = [classes == c for c in (0, 1)]
    expected = np.mean([adjusted_rand_score(halves[r], other[r]) for r in rows])
    assert found == pytest.approx(expected)
    assert abs(found) < 0.05
    assert adjusted_rand_score(known, [f"{c}{o}" for c, o in zip(classes, other, strict=True)]) > 0.3


def test_rows_without_a_known_subclass_are_left_out():
    known = ("x", "y", None, "x")
    table = DistilTable(np.zeros((4, 1)), ("a", "b"), subclasses=known)
    found = cards(table, log_probs(np.zeros(4, dtype=int), np.array([0, 1, 1, 0])))
    assert found.values == {"adjusted_rand": 1.0}
    assert "index of 1.00" in found.notes[0]


def test_square_images_are_averaged():
    rng = np.random.default_rng(0)
    classes, halves = np.arange(40) % 2, (np.arange(40) // 2) % 2
    inputs = rng.random((40, 16))
    found = cards(DistilTable(inputs, ("a", "b")), log_probs(classes, halves))
    (figure,) = found.figures.values()
    assert charts.svg(figure).startswith("<svg")
    cells = {(c["class"], c["subclass"], c["x"], c["y"]): c["mean"] for c in figure["data"]["values"]}
    mean = inputs[(classes == 1) & (halves == 0)].mean(axis=0).reshape(4, 4)
    assert cells["b", 1, 2, 3] == pytest.approx(mean[3, 2], abs=1e-3)
    assert not cards(DistilTable(inputs[:, :15], ("a", "b")), log_probs(classes, halves)).figures
