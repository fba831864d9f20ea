"""Batches of texts: every row once an epoch, rows of like length together, and padding that is no token."""

import numpy as np
import pytest
import torch

from sanov.learning.sentences import Sentences, padded

LENGTHS = np.random.default_rng(0).integers(1, 60, size=103)
TOKENS = [list(range(1, length + 1)) for length in LENGTHS]


@pytest.fixture
def sentences():
    return Sentences(TOKENS, batch_size=8, epochs=3, seed=4)


def test_every_row_is_taken_once_an_epoch(sentences):
    assert sentences.steps == 3 * sentences.steps_per_epoch == 3 * 13
    epochs = [np.concatenate([sentences.rows(13 * e + s)[0] for s in range(13)]) for e in range(3)]
    assert all(sorted(rows) == list(range(103)) for rows in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_the_order_is_that_of_the_seed(sentences):
    again, other = (Sentences(TOKENS, batch_size=8, epochs=3, seed=seed) for seed in (4, 5))
    assert all(np.array_equal(sentences.rows(s)[0], again.rows(s)[0]) for s in range(39))
    assert any(not np.array_equal(sentences.rows(s)[0], other.rows(s)[0]) for s in range(39))


def test_little_is_padded(sentences):
    def waste(batches):
        return sum(LENGTHS[rows].max() * len(rows) for rows in batches) / LENGTHS.sum()

    own = waste([sentences.rows(step)[0] for step in range(13)])
    shuffled = np.random.default_rng(1).permutation(103)
    assert own < 1.2 < 1.5 < waste([shuffled[start : start + 8] for start in range(0, 103, 8)])


def test_micro_batches_divide_a_step(sentences):
    parts = sentences.rows(2, 3)
    assert [len(part) for part in parts] == [3, 3, 2]
    assert np.array_equal(np.concatenate(parts), sentences.rows(2)[0])


def test_padding_is_told_from_tokens():
    found = padded([[5, 0, 6], [7]], pad=0)
    assert found["input_ids"].tolist() == [[5, 0, 6], [7, 0, 0]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert torch.equal(padded([], pad=3)["input_ids"], torch.tensor([[3]]))
