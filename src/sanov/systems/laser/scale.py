"""From the log-probability of the label to the score: c_ref, beta, and whether the two go together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from sanov.core.errors import InputError, SanovWarning
from sanov.data.prompts import Prompts
from sanov.learning import policies
from sanov.learning.rollouts import Rollout, Tokenizer
from sanov.systems.laser.losses import self_reward

__all__ = ["ROUGH", "LossKind", "Measured", "Scale", "check_rule", "measure", "usual_beta"]

LossKind = Literal["mse", "bce"]
SAMPLES = 300  # completions over which c_ref is the mean
STREAM = 104_729  # of the random numbers of those completions
FEWEST = 10  # finished ones below which their mean says too little
LIKELY = -2.0  # log-probability above which a right answer would make the label a likely token
ROUGH = 0.1  # standard deviation of the score, from that of the reference, above which a constant is too rough


@dataclass(frozen=True)
class Measured:
    """Mean and standard deviation of the label's log-probability, in nats, over so many finished completions."""

    mean: float
    std: float | None
    samples: int


@dataclass(frozen=True)
class Scale:
    """What turns the log-probability of the label into a score. It is stored with the policy.

    Parameters
    ----------
    token, spare
        The label z_c, and the other reserved token that is never sampled.
    loss
        ``mse``: the score is beta (log pi - c_ref); ``bce``: it is pi(z_c), and needs nothing else.
    beta
        Coefficient of the KL term.
    constant
        c_ref; None where there is none.
    std
        Of what c_ref is the mean of; None where it was given.
    samples
        Completions over which it was measured; 0 where it was given.
    exact
        Whether the reference is the policy at its start, and not the constant.
    correction
        Whether beta log Z is added.
    """

    token: int
    spare: int | None
    loss: LossKind
    beta: float
    constant: float | None
    std: float | None = None
    samples: int = 0
    exact: bool = False
    correction: bool = False

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Tokens that are never sampled."""
        return (self.token,) if self.spare is None else (self.token, self.spare)

    def scores(
        self, log_self: Float[Tensor, " rows"], log_reference: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, " rows"]:
        """Return the score of each row.

        Parameters
        ----------
        log_self
            Log-probability of z_c after EOS.
        log_reference
            The same under the reference, where the scale is exact.
        """
        if self.loss == "bce":
            return log_self.exp()
        if self.exact:
            assert log_reference is not None
            return self_reward(log_self, log_reference, self.beta, correction=self.correction)
        assert self.constant is not None
        return self_reward(log_self, self.constant, self.beta, correction=self.correction)

    def changed(self, **changes: Any) -> Scale:
        """Return it with other values of some fields."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return it as a tree."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Scale:
        """Rebuild it."""
        return cls(**tree)


def measure(
    model: nn.Module, tokenizer: Tokenizer, prompts: Prompts, options: Rollout, token: int, *, seed: int = 0
) -> Measured:
    """Measure c_ref: the label's mean log-probability after some 300 completions that the policy samples itself.

    Parameters
    ----------
    model, tokenizer
        The policy.
    prompts
        Where they come from; all are used if there are fewer than 300, each as often as it takes.
    options
        How to sample; the labels are to be among the suppressed tokens.
    token
        The label.
    seed
        Of which prompts are taken, and of the sampling.

    Raises
    ------
    InputError
        Fewer than 10 completions end.
    """
    rng = np.random.default_rng([seed, STREAM])
    rows = rng.permutation(len(prompts))[:SAMPLES]
    each = -(-SAMPLES // len(rows))
    found = policies.complete(
        model, tokenizer, prompts.take(rows), None, options, samples=each, watch=(token,), seed=seed, stream=STREAM
    )
    values = found.ends[token][found.finished]
    if len(values) < FEWEST:
        text = f"of {found.finished.size} completions {len(values)} end"
        fix = "raise rollouts.max_completion_length, begin with a policy that ends its answers, or give a number"
        raise InputError(
            text, where="self_reward.ref_constant", expected=f"at least {FEWEST}, to measure c_ref", fix=fix
        )
    return Measured(float(values.mean()), float(values.std(ddof=1)), len(values))


def usual_beta(usual: float, c_ref: float) -> float:
    """Return a usual beta, or the least one above it that is comfortable, rounded up to a hundredth.

    That is 2 / |c_ref|, at which a right answer moves the label half of its way to probability 1; nearer to 0 it is what
    leaves the label unlikely then.

    Parameters
    ----------
    usual
        What is taken where c_ref allows it.
    c_ref
        The label's log-probability under the reference.
    """
    if not c_ref < 0:
        return usual
    least = max(2 / -c_ref, 1 / (LIKELY - c_ref) if c_ref < LIKELY else 0.0)
    return max(usual, math.ceil(100 * least) / 100)


def check_rule(found: Measured, beta: float, *, exact: bool = False, correction: bool = False) -> str:
    """Say whether c_ref and beta go together; refuse what cannot work, and warn of what works badly.

    Parameters
    ----------
    found
        c_ref and its standard deviation.
    beta
        Coefficient of the KL term.
    exact
        The reference is a model, and not the constant.
    correction
        beta log Z is added: a right answer then never needs a probability above 1.

    Returns
    -------
    The verdict in a sentence.

    Raises
    ------
    InputError
        c_ref is no log-probability, or 1 / beta is as large as its absolute value.

    Warns
    -----
    SanovWarning
        A right answer would make the label a likely token, or the constant is rough.
    """
    c_ref, reach = found.mean, 1 / beta
    if not (math.isfinite(c_ref) and c_ref < 0):
        found_text = f"it is {c_ref}, and a log-probability must be < 0"
        raise InputError(
            found_text, where="self_reward.ref_constant", expected="what `fit` measures, or a number below 0"
        )
    comfortable = 2 / abs(c_ref)
    told = f"c_ref is {c_ref:.2f}" + ("" if found.std is None else f" with a standard deviation of {found.std:.2f}")
    if found.samples:
        told += f" over {found.samples} completions"
    problems = []
    if not correction:
        if reach >= abs(c_ref):
            text = f"a correct answer would need probability >= 1: 1/beta is {reach:.2f} and |c_ref| {abs(c_ref):.2f}"
            fix = f"set self_reward.beta={usual_beta(0.0, c_ref):.2f}, or self_reward.correction=true"
            raise InputError(text, where="self_reward.beta", expected="1/beta < |c_ref|", fix=fix)
        if c_ref + reach > LIKELY:
            problems.append(
                f"c_ref + 1/beta is {c_ref + reach:.2f} (c_ref {c_ref:.2f}, 1/beta {reach:.2f}): the label of a right "
                f"answer would be a likely token; the smallest comfortable beta is 2/|c_ref| = {comfortable:.3f}"
            )
    if found.std is not None and found.std * beta > ROUGH and not exact:
        problems.append(
            f"one constant is rough: the reference's log-probability is {c_ref:.2f} with a standard deviation of "
            f"{found.std:.2f}, which moves scores by {found.std * beta:.2f}; self_reward.reference=exact takes the model"
        )
    for problem in problems:
        warnings.warn(problem, SanovWarning, stacklevel=3)
    right = f"a right answer has log-probability {c_ref + reach:.2f}" if not correction else "with beta log Z added"
    return f"{told}; {right}, at beta {beta:g}: {'; '.join(problems) or 'they go together'}."
