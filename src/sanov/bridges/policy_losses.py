"""KDRL's objective as a plain function of log-probabilities, and in the signatures that other trainers register.

::

    loss, metrics = policy_loss(log_policy, log_teacher, advantages, mask, beta=0.2)
    loss.backward()

Nothing of another trainer is imported here. verl's registry takes a function of its own arguments, to which the teacher is
added by name, or comes inside the advantages (`teacher_advantages`); prime-rl's takes one sequence at a time, with the
teacher in ``ref_logprobs``::

    from verl.trainer.ppo.core_algos import register_policy_loss

    register_policy_loss("kdrl")(verl_loss(beta=0.2))

    [trainer.loss]                                                           # prime-rl's TOML
    type = "custom"
    import_path = "sanov.bridges.policy_losses.prime_rl_loss"
    kwargs = {beta = 0.2}

Reference: xu2025kdrl; schulman2017ppo, eq. 7.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from sanov.advantages import clipped_surrogate
from sanov.bridges.losses import Loss
from sanov.core.errors import InputError
from sanov.systems import find

__all__ = ["Aggregation", "policy_loss", "prime_rl_loss", "teacher_advantages", "verl_loss"]

Aggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "sum"]


def policy_loss(
    log_policy: Float[Tensor, "rows tokens"],
    log_teacher: Float[Tensor, "rows tokens"] | None,
    advantages: Float[Tensor, " rows"] | Float[Tensor, "rows tokens"],
    mask: Num[Tensor, "rows tokens"] | Bool[Tensor, "rows tokens"],
    *,
    beta: float,
    log_old: Float[Tensor, "rows tokens"] | None = None,
    estimator: str = "k2",
    kd_mask: Num[Tensor, "rows tokens"] | Bool[Tensor, "rows tokens"] | None = None,
    kd_clip: float | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregation: Aggregation = "token-mean",
    weights: Float[Tensor, "rows tokens"] | None = None,
) -> Loss:
    """Return GRPO's clipped surrogate plus beta times the reverse KL to a teacher, to be minimised.

    Parameters
    ----------
    log_policy
        Log-probabilities of the sampled tokens, with gradient, [rows, tokens].
    log_teacher
        The teacher's, without gradient; None for the surrogate alone, as where the teacher is in the advantages.
    advantages
        One a row, or one a token.
    mask
        1 or True on tokens that count, of any type of number.
    beta
        Coefficient of the teacher's term.
    log_old
        The policy's when it sampled; None for now: the ratio is 1 then.
    estimator
        ``k2``, ``k3`` or ``k3_is``; k1 is refused, because its expected gradient is zero.
    kd_mask
        Tokens that are distilled, of those that count; None for all.
    kd_clip
        Largest factor of grad log pi in the teacher's term; None for any.
    clip_low, clip_high
        How far the ratio may fall below and rise above 1.
    aggregation
        ``token-mean``: one mean over all tokens; ``seq-mean-token-sum`` and ``seq-mean-token-mean``: of each row first; rows
        without a token do not count; ``sum``.
    weights
        Of each token, such as those that correct for the engine that sampled.

    Returns
    -------
    The loss, and means without gradient: ``policy``, ``kd``, ``kd/k1`` (an unbiased estimate of the KL), ``clip_share``.

    Raises
    ------
    InputError
        Shapes differ, an option is out of range, or no token counts.
    """
    shapes = {"log_teacher": log_teacher, "mask": mask, "log_old": log_old, "kd_mask": kd_mask, "weights": weights}
    for name, values in shapes.items():
        if values is not None and values.shape != log_policy.shape:
            found = f"it is of shape {list(values.shape)}, and log_policy of {list(log_policy.shape)}"
            raise InputError(found, where=name, expected="a number for each sampled token")
    counts = mask > 0
    if not counts.any():
        raise InputError("no token counts", where="mask", expected="at least one")
    old = log_policy.detach() if log_old is None else log_old.detach()
    surrogate = clipped_surrogate(log_policy, old, advantages, counts, clip_low, clip_high)
    own = torch.ones_like(surrogate) if weights is None else weights
    terms = {"policy": _aggregated(-surrogate * own, counts, aggregation)}
    ratio = torch.where(counts, log_policy.detach() - old, 0.0).exp()
    told = {"clip_share": ((ratio < 1 - clip_low) | (ratio > 1 + clip_high))[counts].to(surrogate.dtype).mean()}
    if log_teacher is not None:
        distilled = counts if kd_mask is None else counts & (kd_mask > 0)
        values = (
            find("kdrl")
            .load()
            .distillation_values(log_policy, log_teacher, distilled, estimator, log_old=log_old, clip=kd_clip)
        )
        terms["kd"] = _aggregated(values * own, counts, aggregation)
        told["kd/k1"] = (log_policy.detach() - log_teacher)[counts].mean()
    loss = terms["policy"] if "kd" not in terms else terms["policy"] + beta * terms["kd"]
    return Loss(loss, {name: values.detach() for name, values in (terms | told).items()})


def _aggregated(values: Tensor, mask: Tensor, how: Aggregation) -> Tensor:
    if how not in get_args(Aggregation):
        raise InputError(f"it is {how!r}", where="aggregation", expected=", ".join(get_args(Aggregation)))
    if how == "sum":
        return values.sum()
    if how == "token-mean":
        return values.sum() / mask.sum()
    rows, lengths = values.sum(dim=1), mask.sum(dim=1)
    rows = rows / lengths.clamp_min(1) if how == "seq-mean-token-mean" else rows
    return rows.sum() / (lengths > 0).sum()


def teacher_advantages(
    advantages: Float[Tensor, " rows"] | Float[Tensor, "rows tokens"],
    log_old: Float[Tensor, "rows tokens"],
    log_teacher: Float[Tensor, "rows tokens"],
    mask: Num[Tensor, "rows tokens"] | Bool[Tensor, "rows tokens"],
    *,
    beta: float,
) -> Float[Tensor, "rows tokens"]:
    """Return A + beta (log pi_T - log pi_old) on the tokens that count: the teacher inside the advantages.

    Where one update is made of a batch, the surrogate with these has, sample by sample, the gradient of `policy_loss`.

    Parameters
    ----------
    advantages
        One a row, or one a token.
    log_old, log_teacher
        Log-probabilities of the sampled tokens under the policy that sampled them, and under the teacher.
    mask
        1 or True on tokens that count.
    beta
        Coefficient of the teacher's term.
    """
    own = advantages if advantages.ndim == 2 else advantages[:, None]
    return torch.where(mask > 0, own + beta * (log_teacher - log_old).detach(), 0.0)


def verl_loss(*, beta: float, **options: Any) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """Return a function for verl's registry of policy losses.

    Its clip range is that of verl's ``config`` (``clip_ratio_low``, ``clip_ratio_high``, ``clip_ratio``) where there is one.

    Parameters
    ----------
    beta, options
        Of `policy_loss`.
    """

    def kdrl(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
        *,
        teacher_log_prob: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the loss and what verl logs of it; all arguments are [rows, tokens]."""
        both = _of(config, "clip_ratio")
        clip = {"clip_low": _of(config, "clip_ratio_low"), "clip_high": _of(config, "clip_ratio_high")}
        clip = {name: both if value is None else value for name, value in clip.items()}
        given = {**{name: value for name, value in clip.items() if value is not None}, **options}
        found = policy_loss(
            log_prob,
            teacher_log_prob,
            advantages,
            response_mask,
            beta=beta,
            log_old=old_log_prob,
            aggregation=loss_agg_mode,  # type: ignore[arg-type]
            weights=rollout_is_weights,
            **given,
        )
        return found.value, {f"actor/{name}": float(value) for name, value in found.metrics.items()}

    return kdrl


def _of(config: Any, name: str) -> Any:
    """Return a value of verl's config, which is a mapping, a dataclass, or not there."""
    return config.get(name) if hasattr(config, "get") else getattr(config, name, None)


def prime_rl_loss(inputs: Any, *, beta: float = 0.2, **options: Any) -> Any:
    """Return the loss of one sequence, for prime-rl's ``[trainer.loss] type = "custom"``.

    Parameters
    ----------
    inputs
        Its ``LossInputs``: ``trainer_logprobs``, ``inference_logprobs``, ``ref_logprobs`` (the teacher's; an older version
        calls them ``teacher_logprobs``), ``advantages`` and ``loss_mask``, each [tokens]. The sum is returned, which
        prime-rl divides by its own count.
    beta, options
        Of `policy_loss`.

    Returns
    -------
    An object with ``loss`` and ``metrics``, as its ``LossOutputs`` has them.

    Raises
    ------
    InputError
        There is no teacher, or as in `policy_loss`.
    """
    teacher = getattr(inputs, "ref_logprobs", None)
    teacher = getattr(inputs, "teacher_logprobs", None) if teacher is None else teacher
    if teacher is None:
        fix = "let the run score its rollouts with a reference: the teacher"
        raise InputError("there are no log-probabilities of a teacher", where="ref_logprobs", fix=fix)
    if not bool(inputs.loss_mask.any()):
        return SimpleNamespace(loss=inputs.trainer_logprobs.sum() * 0, metrics={})
    weights = getattr(inputs, "loss_weights", None)
    found = policy_loss(
        inputs.trainer_logprobs[None],
        teacher[None],
        inputs.advantages[None],
        inputs.loss_mask[None],
        beta=beta,
        log_old=inputs.inference_logprobs[None],
        aggregation="sum",
        weights=None if weights is None else weights[None],
        **options,
    )
    return SimpleNamespace(loss=found.value, metrics=found.metrics)
