"""Slow and obvious: every statistic of the report from lists of answers, one example after the other."""

import numpy as np

SYSTEMS = ("teacher", "student", "baseline")


def answers(rows, classes, seed, *, accuracy=(0.8, 0.7, 0.6), copied=0.5):
    """Labels, and answers of a teacher, a student that copies some of them, and a baseline of its own."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)

    def system(right):
        wrong = (labels + rng.integers(1, classes, rows)) % classes
        return np.where(rng.random(rows) < right, labels, wrong)

    teacher, student, baseline = map(system, accuracy)
    return labels, (teacher, np.where(rng.random(rows) < copied, teacher, student), baseline)


def probabilities(given, classes, seed, sharpness=2.0):
    """Rows that sum to 1, whose largest entry is the given answer."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((len(given), classes))
    logits[np.arange(len(given)), given] = logits.max(axis=1) + sharpness * rng.random(len(given)) + 1e-3
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True)


def pair(y, a, b, possible):
    """Statistics of two systems."""
    n = len(y)
    rows = list(zip(y, a, b, strict=True))
    share = lambda condition: sum(bool(condition(*row)) for row in rows) / n  # noqa: E731
    first, second = share(lambda y, a, b: a == y), share(lambda y, a, b: b == y)
    agreement = share(lambda y, a, b: a == b)
    names = set(a) | set(b)
    chance = sum((np.equal(a, k).mean()) * (np.equal(b, k).mean()) for k in names)
    consistent = share(lambda y, a, b: (a == y) == (b == y))
    unrelated = first * second + (1 - first) * (1 - second)
    expected = first * second + (1 - first) * (1 - second) / (possible - 1)
    inherited = share(lambda y, a, b: a == b != y)
    return {
        "agreement": agreement,
        "agreement, lowest possible": max(0, first + second - 1),
        "agreement, highest possible": 1 - abs(first - second),
        "expected agreement": expected,
        "excess agreement": agreement - expected,
        "kappa": (agreement - chance) / (1 - chance),
        "error consistency": (consistent - unrelated) / (1 - unrelated),
        "both right": share(lambda y, a, b: a == b == y),
        "inherited": inherited,
        "both wrong, different": share(lambda y, a, b: len({y, a, b}) == 3),
        "corrected": share(lambda y, a, b: a != y == b),
        "lost": share(lambda y, a, b: a == y != b),
        "errors inherited": inherited / (1 - first),
    }


def calibration(confidence, right, bins):
    """Expected calibration error, one bin after the other; a bin holds its upper edge."""
    error = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins) | ((k == 0) & (confidence == 0))
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return error
