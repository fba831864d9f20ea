"""Slow, obvious references, which tests compare the package with."""

import itertools
import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

# -- distributions: lists of probabilities, in plain Python ------------------------------------------------------------


def kl_by_sum(p, q):
    """Sum of p log(p / q) over the support of p."""
    pairs = [(x, y) for x, y in zip(p, q, strict=True) if x > 0]
    return math.inf if any(y == 0 for _, y in pairs) else math.fsum(x * math.log(x / y) for x, y in pairs)


def jensen_shannon_by_entropies(p, q, weight):
    """Entropy of the mixture less the mixture of the entropies."""

    def entropy(distribution):
        return -math.fsum(x * math.log(x) for x in distribution if x > 0)

    mixture = [weight * x + (1 - weight) * y for x, y in zip(p, q, strict=True)]
    return entropy(mixture) - weight * entropy(p) - (1 - weight) * entropy(q)


def largest_event_difference(p, q):
    """The largest difference in probability, over all subsets of the classes."""
    subsets = itertools.product([False, True], repeat=len(p))
    return max(abs(sum(x - y for x, y, inside in zip(p, q, s, strict=True) if inside)) for s in subsets)


# -- policy gradients, an element at a time ----------------------------------------------------------------------------


def group_advantages_by_loop(rewards, group_size, scale, eps):
    """Centre each group of a list of rewards, and divide by a standard deviation with n - 1."""

    def spread(values):
        mean = sum(values) / len(values)
        return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))

    advantages = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        divisor = {"group": spread(group) + eps, "batch": spread(rewards) + eps, "none": 1.0}[scale]
        advantages += [(reward - sum(group) / group_size) / divisor for reward in group]
    return advantages


def clipped_surrogate_by_cases(ratio, advantage, low, high):
    """Value and derivative by the ratio for one token: flat where moving on would be rewarded outside the range."""
    if advantage > 0 and ratio > 1 + high:
        return (1 + high) * advantage, 0.0
    if advantage < 0 and ratio < 1 - low:
        return (1 - low) * advantage, 0.0
    return ratio * advantage, advantage


# -- scores and tests, by their definitions ----------------------------------------------------------------------------


def auroc_by_pairs(scores, outcomes):
    """Share of pairs of a 1 and a 0 in which the 1 has the higher score, ties counting one half."""
    ones = [s for s, y in zip(scores, outcomes, strict=True) if y == 1]
    zeros = [s for s, y in zip(scores, outcomes, strict=True) if y == 0]
    won = sum((one > zero) + (one == zero) / 2 for one in ones for zero in zeros)
    return won / (len(ones) * len(zeros))


def calibration_error_by_rows(p, outcomes, bins):
    """Gap of each bin (lower edge excluded, but for the first), weighted by its rows."""
    total = 0.0
    for place in range(bins):
        low, high = place / bins, (place + 1) / bins
        inside = [i for i, x in enumerate(p) if low < x <= high or (place == 0 and x == 0)]
        total += abs(sum(p[i] for i in inside) - sum(outcomes[i] for i in inside))
    return total / len(p)


def sign_flip_by_enumeration(differences):
    """Share of all assignments of signs whose sum is as far from zero as the observed one; integers only."""
    assert all(isinstance(difference, int) for difference in differences)
    flips = list(itertools.product([-1, 1], repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
    return sum(total >= abs(sum(differences)) for total in sums) / len(flips)


# -- transport ---------------------------------------------------------------------------------------------------------


def sinkhorn_unit_marginals(cost, epsilon, iterations, columns_first=False):
    """The plain iteration on a plan of unit marginals, as a distillation loss writes it: rows, then columns."""
    plan = torch.exp(-cost / epsilon)
    axes = (-2, -1) if columns_first else (-1, -2)
    for _ in range(iterations):
        for axis in axes:
            plan = plan / plan.sum(axis, keepdim=True)
    return plan


def sinkhorn_logarithmic(cost, epsilon, iterations, row=None, column=None):
    """The iteration on logarithms, one logsumexp a half-step, in plain autograd; total mass 1."""
    n, m = cost.shape[-2:]
    log_row = cost.new_full((n,), 1 / n).log() if row is None else row.log()
    log_column = cost.new_full((m,), 1 / m).log() if column is None else column.log()
    exponents, log_v = -cost / epsilon, torch.zeros_like(log_column)
    for _ in range(iterations):
        log_u = log_row - torch.logsumexp(exponents + log_v.unsqueeze(-2), -1)
        log_v = log_column - torch.logsumexp(exponents + log_u.unsqueeze(-1), -2)
    return torch.exp(exponents + log_u.unsqueeze(-1) + log_v.unsqueeze(-2))


def assignment_cost(cost):
    """The smallest sum over all one-to-one assignments."""
    rows, columns = linear_sum_assignment(cost.numpy())
    return cost[rows, columns].sum()


def central_differences(function, point, step=1e-5):
    """Gradient of a scalar function of one float64 tensor, an entry at a time."""
    gradient = torch.zeros_like(point)
    for place in range(point.numel()):
        shift = torch.zeros_like(point).view(-1)
        shift[place] = step
        shift = shift.view_as(point)
        gradient.view(-1)[place] = (function(point + shift) - function(point - shift)) / (2 * step)
    return gradient


# -- exponential families ----------------------------------------------------------------------------------------------


def cumulant_tensors(states, probabilities):
    """Mean, covariance, and all third and fourth cumulants of a distribution on listed states."""
    mean = probabilities @ states
    w = states - mean
    second = np.einsum("s,si,sj->ij", probabilities, w, w)
    third = np.einsum("s,si,sj,sk->ijk", probabilities, w, w, w)
    fourth = np.einsum("s,si,sj,sk,sl->ijkl", probabilities, w, w, w, w)
    pairings = ("ij,kl->ijkl", "ik,jl->ijkl", "il,jk->ijkl")
    return mean, second, third, fourth - sum(np.einsum(pairing, second, second) for pairing in pairings)


def risk_by_duality(second, third, fourth, covariance, skewness):
    """a and b from the derivatives of the Legendre dual: sum over k of (k - 1)/k! phi_k[t^k], in any coordinates."""
    inverse = np.linalg.inv(second)
    up3 = np.einsum("abc,ia,jb,kc->ijk", third, inverse, inverse, inverse)
    up4 = np.einsum("abcd,ia,jb,kc,ld->ijkl", fourth, inverse, inverse, inverse, inverse)
    joined = np.einsum("ije,ef,fkl->ijkl", up3, second, up3)
    dual4 = -up4 + joined + joined.transpose(0, 2, 1, 3) + joined.transpose(0, 3, 2, 1)
    pairs = np.einsum("ij,kl->ijkl", covariance, covariance)
    pairs = pairs + pairs.transpose(0, 2, 1, 3) + pairs.transpose(0, 3, 2, 1)
    a = (inverse * covariance).sum() / 2
    return a, -(up3 * skewness).sum() / 3 + (dual4 * pairs).sum() / 8


def risk_of_design(statistics, weights, clusters, multipliers, model=None):
    """a and b for clusters that count `multipliers` times, every tensor written out; model: mean -> its cumulants.

    Without a model the cumulants of the rows stand for it.
    """
    _, place = np.unique(clusters, return_inverse=True)
    counted = weights * multipliers[place]
    total = counted.sum()
    mean, *cumulants = cumulant_tensors(statistics, counted / total)
    second, third, fourth = cumulants if model is None else model(mean)
    sums = np.zeros((place.max() + 1, statistics.shape[1]))
    np.add.at(sums, place, weights[:, None] * (statistics - mean))
    covariance = np.einsum("c,ci,cj->ij", multipliers, sums, sums) / total
    skewness = np.einsum("c,ci,cj,ck->ijk", multipliers, sums, sums, sums) / total
    return np.array(risk_by_duality(second, third, fourth, covariance, skewness))


# -- subclasses, with NumPy alone ---------------------------------------------------------------------------------------


def subclass_coordinates_by_hand(embeddings, members, head, subclasses, rotation):
    """Null space, principal directions by SVD (sign of the largest score), rotation, class mean, pooled deviation."""
    h = np.asarray(embeddings, dtype=float)
    if head is not None:
        h = h - h @ head @ np.linalg.pinv(head.T @ head) @ head.T
    found, spread = [], []
    for c in range(max(members) + 1):
        rows = h[np.asarray(members) == c]
        centred = rows - rows.mean(axis=0)
        directions = np.linalg.svd(centred, full_matrices=False)[2][:subclasses]
        for direction in directions:
            scores = centred @ direction
            direction *= np.sign(scores[np.argmax(np.abs(scores))])
        rotated = directions.T @ rotation
        found.append((h - rows.mean(axis=0)) @ rotated)
        spread.append(centred @ rotated)
    return np.stack(found, axis=1) / np.sqrt(np.mean(np.concatenate(spread) ** 2))


def subclass_targets_by_hand(logits, coordinates, temperature, subclass_temperature):
    """p_c p_{s|c}, an entry at a time."""
    targets = np.zeros(np.shape(coordinates))
    for i, row in enumerate(logits):
        p = [math.exp(x / temperature) for x in row]
        for c in range(len(row)):
            weights = [math.exp(z / subclass_temperature) for z in coordinates[i][c]]
            targets[i, c] = [p[c] / sum(p) * w / sum(weights) for w in weights]
    return targets


# -- random bases, a word at a time ------------------------------------------------------------------------------------


def philox_by_integers(counter, key, rounds=10):
    """Four words of Philox4x32, in whole numbers of any length."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(second >> 32) ^ c[1] ^ k[0], second % 2**32, (first >> 32) ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def basis_by_integers(seed, stream, number, size):
    """One basis, element after element."""
    words = [
        philox_by_integers((element // 4, 0, number, stream), (seed % 2**32, seed >> 32))[element % 4]
        for element in range(size)
    ]
    return np.array([(word >> 8) / 2**23 - 1 for word in words])
