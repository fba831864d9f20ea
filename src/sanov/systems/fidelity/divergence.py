"""How far the student's probabilities are from the teacher's: KL in both directions and the Jensen-Shannon divergence.

::

    forward KL = mean_i KL(a_i || b_i),   reverse KL = mean_i KL(b_i || a_i)
    JSD_w = w KL(a || m) + (1 - w) KL(b || m),   m = w a + (1 - w) b

for a pair of systems whose first is a, in nats. JSD_w / w tends to the forward KL as w tends to 0, JSD_w / (1 - w) to the
reverse KL as w tends to 1, and JSD_w itself to 0 at both ends.

Reference: kullback1951information, lin1991divergence; stanton2021does for their use as fidelity.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import rel_entr

__all__ = ["DIVERGENCES", "divergences", "jensen_shannon", "kl"]

DIVERGENCES = ("forward KL", "reverse KL", "JSD")
AT_ONCE = 2**16  # examples whose terms are held at a time


def kl(p: Float[ndarray, "rows classes"], q: Float[ndarray, "rows classes"]) -> Float[ndarray, " rows"]:
    """KL(p || q) of each row, in nats; infinite where q gives 0 to a class that p holds possible."""
    return np.asarray(rel_entr(p, q).sum(axis=-1))


def jensen_shannon(
    p: Float[ndarray, "rows classes"], q: Float[ndarray, "rows classes"], weight: float = 0.5
) -> Float[ndarray, " rows"]:
    """Jensen-Shannon divergence of each row, in nats.

    Parameters
    ----------
    p, q
        Probabilities.
    weight
        Of p, in the mixture and of its term; it lies in (0, 1).
    """
    mixture = weight * p + (1 - weight) * q
    return np.maximum(weight * kl(p, mixture) + (1 - weight) * kl(q, mixture), 0.0)  # rounding may leave -1e-17


def divergences(
    p: Float[ndarray, "rows classes"], q: Float[ndarray, "rows classes"], weight: float
) -> Float[ndarray, "rows 3"]:
    """Return `DIVERGENCES` of each row.

    Parameters
    ----------
    p, q
        Probabilities of the first and the second system.
    weight
        Of the first system in the Jensen-Shannon divergence.
    """
    found = np.empty((len(p), len(DIVERGENCES)))
    for start in range(0, len(p), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        a, b = p[part], q[part]
        found[part] = np.stack([kl(a, b), kl(b, a), jensen_shannon(a, b, weight)], axis=1)
    return found
