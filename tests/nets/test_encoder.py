"""Small classifiers: shapes, a hash that does not depend on the process, and bags that are means."""

import zlib

import numpy as np
import pytest
import torch

from sanov.nets.encoder import HashedNgrams, hash_ngrams, mlp


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_mlp_has_the_layers_asked_for(depth):
    net = mlp(5, 3, width=7, depth=depth)
    sizes = [5, *[7] * depth, 3]
    weights = sum(a * b + b for a, b in zip(sizes, sizes[1:], strict=False))
    assert sum(parameter.numel() for parameter in net.parameters()) == weights
    assert net(torch.zeros(2, 5)).shape == (2, 3)


def test_mlp_without_hidden_layer_is_linear():
    net = mlp(4, 2, depth=0)
    x, y = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x + y) + net(torch.zeros(3, 4)), net(x) + net(y))


def test_ngrams_are_words_and_pairs_in_any_case():
    ids, starts = hash_ngrams(["A film, good", "", "film"], buckets=2**31)
    expected = [b"a", b"film", b",", b"good", b"a film", b"film ,", b", good"]
    assert ids[: starts[1]].tolist() == [zlib.crc32(ngram) % 2**31 for ngram in expected]
    assert starts.tolist() == [0, 7, 7, 8]
    assert hash_ngrams(["film"], buckets=2**31, orders=1)[0].tolist() == ids[7:].tolist()


def test_hash_is_the_published_one():
    """The check value of CRC-32; Python's own hash of text differs from process to process."""
    assert hash_ngrams(["123456789"], buckets=2**32)[0].tolist() == [0xCBF43926]


def test_a_text_is_the_mean_of_its_embeddings():
    net = HashedNgrams(2, buckets=50, embedding=4, width=3)
    ids, starts = hash_ngrams(["a good film", "bad"], buckets=50)
    logits = net(torch.from_numpy(ids), torch.from_numpy(starts[:-1]))
    for row, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
        bag = net.bag.weight[ids[start:end]].mean(dim=0)
        torch.testing.assert_close(logits[row], net.head(bag))


def test_a_text_without_words_gets_finite_outputs():
    net = HashedNgrams(2, buckets=50, embedding=4, width=3)
    ids, starts = hash_ngrams(["", "  "], buckets=50)
    logits = net(torch.from_numpy(ids), torch.from_numpy(starts[:-1]))
    assert np.isfinite(logits.detach().numpy()).all()
