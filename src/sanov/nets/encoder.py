"""Small classifiers: a multilayer perceptron on features, and one on hashed word n-grams.

The hash is CRC-32 of the n-gram in UTF-8: the same on every machine and in every process, unlike Python's own.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

__all__ = ["HashedNgrams", "hash_ngrams", "mlp"]

SMALL = 0.01  # scale of untrained embeddings: an n-gram that training never saw says next to nothing
WORD = re.compile(r"\w+|[^\w\s]")  # a run of letters and digits, or one mark of punctuation


def mlp(features: int, outputs: int, width: int = 128, depth: int = 1) -> nn.Sequential:
    """Multilayer perceptron with ReLU: ``[rows, features] -> [rows, outputs]``.

    Parameters
    ----------
    features, outputs
        Number of inputs and of outputs.
    width
        Units of each hidden layer.
    depth
        Number of hidden layers; 0 gives a linear map.
    """
    sizes = [features, *[width] * depth]
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


class HashedNgrams(nn.Module):
    """Mean of the embeddings of a text's hashed n-grams, then a multilayer perceptron.

    Parameters
    ----------
    outputs
        Number of outputs.
    buckets
        Number of embeddings, onto which the n-grams are hashed.
    embedding
        Size of an embedding.
    width, depth
        Of the multilayer perceptron.
    """

    def __init__(self, outputs: int, buckets: int = 65_536, embedding: int = 64, width: int = 128, depth: int = 1):
        super().__init__()
        self.bag = nn.EmbeddingBag(buckets, embedding, mode="mean")
        nn.init.normal_(self.bag.weight, std=SMALL)
        self.head = mlp(embedding, outputs, width, depth)

    def forward(self, ids: Int[Tensor, " ngrams"], offsets: Int[Tensor, " texts"]) -> Float[Tensor, "texts outputs"]:
        """Return the outputs of each text; its n-grams are ``ids`` from its offset up to the next one's."""
        logits: Tensor = self.head(self.bag(ids, offsets))
        return logits


def hash_ngrams(
    texts: Sequence[str], buckets: int, orders: int = 2
) -> tuple[Int64[np.ndarray, " ngrams"], Int64[np.ndarray, " bounds"]]:
    """Hash the word n-grams of texts onto buckets.

    Parameters
    ----------
    texts
        Any texts; case does not count.
    buckets
        Number of buckets.
    orders
        Longest n-gram: 2 takes words and pairs of neighbours.

    Returns
    -------
    The buckets of all n-grams one after the other, and where each text begins, with the end as last entry. A text without
    words has none.
    """
    lists = [[zlib.crc32(ngram) % buckets for ngram in _ngrams(text, orders)] for text in texts]
    starts = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return np.fromiter((bucket for found in lists for bucket in found), np.int64, int(starts[-1])), starts


def _ngrams(text: str, orders: int) -> Iterator[bytes]:
    words = [word.encode() for word in WORD.findall(text.lower())]
    for order in range(1, orders + 1):
        for start in range(len(words) - order + 1):
            yield b" ".join(words[start : start + order])
