"""Cluster bootstrap of a study's mean gain and rank correlations, all draws at once: a draw is a weight for each cluster.

With w_c the number of times that cluster c is drawn, a mean is a ratio of two sums over clusters, and the rank of a value
among the drawn rows is the weight below it and half of that at it. So no row is copied, and the draws are those of
`sanov.comparisons.cluster_bootstrap` of the same seed, to which a test holds both.

Reference: davison1997bootstrap, sections 3.8 and 5.3.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64

from sanov.comparisons import Interval

__all__ = ["draw_mean", "draw_rho"]

AT_ONCE = 2**21  # numbers held at a time


def draw_mean(
    values: Float64[np.ndarray, " rows"], clusters: np.ndarray, *, draws: int, confidence: float, seed: int
) -> Interval:
    """Return the mean of rows with its percentile interval.

    Parameters
    ----------
    values
        Finite.
    clusters
        The cluster of each row; at least 2 different ones.
    draws, confidence, seed
        Of the bootstrap.
    """
    _, inverse, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    sums, sizes = np.bincount(inverse, values), counts.astype(np.float64)
    found = np.concatenate([(w @ sums) / (w @ sizes) for w in _weights(len(sums), len(sums), draws, seed)])
    return _interval(float(values.mean()), found, len(sums), confidence)


def draw_rho(
    x: Float64[np.ndarray, " rows"],
    y: Float64[np.ndarray, " rows"],
    clusters: np.ndarray,
    *,
    draws: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Return Spearman's correlation of rows with its percentile interval; draws in which it has none are left out.

    Parameters
    ----------
    x, y
        Finite, neither of them constant.
    clusters
        The cluster of each row; at least 2 different ones.
    draws, confidence, seed
        Of the bootstrap.
    """
    names, inverse = np.unique(clusters, return_inverse=True)
    chunks = _weights(len(names), len(x), draws, seed)
    found = np.concatenate([_weighted_rho(x, y, w[:, inverse]) for w in chunks])
    return _interval(float(_weighted_rho(x, y, np.ones((1, len(x))))[0]), found, len(names), confidence)


def _weights(clusters: int, rows: int, draws: int, seed: int) -> Iterator[Float64[np.ndarray, "chunk clusters"]]:
    """Draw how often each cluster is drawn, as many draws at a time as `rows` numbers a draw allow."""
    generator, step = np.random.default_rng(seed), max(1, AT_ONCE // rows)
    for start in range(0, draws, step):
        chosen = generator.integers(0, clusters, (min(step, draws - start), clusters))
        places = chosen + clusters * np.arange(len(chosen))[:, None]
        yield np.bincount(places.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(np.float64)


def _weighted_rho(
    x: Float64[np.ndarray, " rows"], y: Float64[np.ndarray, " rows"], weights: Float64[np.ndarray, "draws rows"]
) -> Float64[np.ndarray, " draws"]:
    a, b = _centred_ranks(x, weights), _centred_ranks(y, weights)
    scale = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    found: Float64[np.ndarray, " draws"] = np.full(len(weights), np.nan)
    np.divide((weights * a * b).sum(axis=1), scale, out=found, where=scale > 0)
    return found


def _centred_ranks(
    values: Float64[np.ndarray, " rows"], weights: Float64[np.ndarray, "draws rows"]
) -> Float64[np.ndarray, "draws rows"]:
    """Ranks of the values among weighted ones, ties by their mean, less their mean."""
    _, inverse = np.unique(values, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(inverse.max() + 1))
    tied = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(tied, axis=1) - tied / 2
    centred: Float64[np.ndarray, "draws rows"] = middle[:, inverse] - weights.sum(axis=1, keepdims=True) / 2
    return centred


def _interval(estimate: float, found: Float64[np.ndarray, " draws"], clusters: int, confidence: float) -> Interval:
    found, tail = found[~np.isnan(found)], (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail]) if found.size else (np.nan, np.nan)
    return Interval(estimate, float(low), float(high), clusters, found.size)
