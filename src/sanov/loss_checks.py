"""Which divergence a loss on sampled tokens really follows, found by enumerating a small softmax.

A distillation loss on the policy's own samples has the expected gradient ``sum_x pi(x) grad loss(x)``, the samples held
fixed as a trainer holds them. It need not be that of the divergence of which the loss is an estimate: k1 is an unbiased
estimate of KL(pi || T) whose expected gradient is zero. Here the sum over all tokens x is taken exactly, for several
policies and teachers, and compared with the gradients of both divergences.

Reference: xu2025kdrl, App. A.3; schulman2020kl.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from sanov.core.errors import InputError
from sanov.divergences import kl

__all__ = ["ARGUMENTS", "Finding", "check_loss"]

Verdict = Literal["reverse KL", "forward KL", "zero", "neither"]
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "log_policy": ("log_prob", "log_probs", "logprobs", "student_log_probs", "trainer_logprobs", "per_token_logps"),
    "log_teacher": ("teacher_log_prob", "teacher_log_probs", "teacher_logprobs", "ref_logprobs", "ref_per_token_logps"),
    "log_old": ("old_log_prob", "old_log_probs", "old_per_token_logps", "inference_logprobs"),
    "policy_logits": ("student_logits", "logits"),
    "teacher_logits": (),
    "tokens": ("input_ids", "completion_ids", "labels"),
    "mask": ("response_mask", "completion_mask", "loss_mask"),
}
VOCABULARY, DRAWS, SEED = 6, 8, 20_250_604
CLOSE = 1e-6  # of the largest gradient: float64 leaves 1e-15, and a user's eps in a denominator about 1e-8


@dataclass(frozen=True)
class Finding:
    """What a loss follows.

    Attributes
    ----------
    follows
        ``reverse KL`` (policy || teacher), ``forward KL`` (teacher || policy), ``zero`` (the teacher does not enter the
        expected gradient, be that zero or not), or ``neither``.
    scale
        How many times the gradient of the divergence that is followed; of both, for `neither`, by least squares.
    residual
        Largest difference from that, relative to the largest gradient.
    cosine_reverse, cosine_forward
        Smallest cosine of the expected gradient with each, over the draws; NaN where it is zero.
    largest_gradient
        Of a logit, over the draws.
    largest_log_ratio
        Of policy to teacher, in nats: what happens beyond it, as where a loss is clamped, was not looked at.
    """

    follows: Verdict
    scale: tuple[float, ...]
    residual: float
    cosine_reverse: float
    cosine_forward: float
    largest_gradient: float
    largest_log_ratio: float

    @property
    def is_sound(self) -> bool:
        """Whether a divergence from the teacher falls."""
        return self.follows in ("reverse KL", "forward KL")

    def to_dict(self) -> dict[str, Any]:
        """Everything, as what JSON can hold."""
        return {**asdict(self), "sound": self.is_sound}

    def sentence(self) -> str:
        """Return the finding in words."""
        if self.follows == "zero":
            if self.largest_gradient == 0 or not self.scale:
                return "the expected gradient is zero: the teacher does not enter, and nothing is distilled"
            return "the expected gradient does not depend on the teacher: nothing is distilled"
        if self.is_sound:
            first, second = ("policy", "teacher") if self.follows == "reverse KL" else ("teacher", "policy")
            return f"the expected gradient is {self.scale[0]:.4g} times that of the {self.follows}, KL({first} || {second})"
        if self.residual < CLOSE:
            reverse, forward = self.scale
            away = ": it moves away from the teacher" if reverse <= 0 and forward <= 0 else ""
            both = f"{reverse:.4g} times that of the reverse and {forward:.4g} times that of the forward KL"
            return f"the expected gradient is {both}{away}"
        return (
            "the expected gradient is that of neither KL: its cosine falls to "
            f"{self.cosine_reverse:.3f} with the reverse, and to {self.cosine_forward:.3f} with the forward KL"
        )


def check_loss(
    loss: Callable[..., Any], *, vocabulary: int = VOCABULARY, draws: int = DRAWS, seed: int = SEED
) -> Finding:
    """Find which divergence the expected gradient of a loss on sampled tokens follows.

    Parameters
    ----------
    loss
        A function of log-probabilities of one sampled token, [1, 1], of the policy (with gradient) and of the teacher; what
        else it asks for by name it gets: see `ARGUMENTS`. It returns a number, or one a token; of a tuple the first.
    vocabulary, draws, seed
        Size of the softmax, number of policies and teachers, and from what they are drawn.

    Raises
    ------
    InputError
        The function asks for something else, fails, or returns something else than finite numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> Tensor:
        return torch.randn(vocabulary, generator=generator, dtype=torch.float64)

    gradients: dict[str, list[Tensor]] = {name: [] for name in ("found", "reverse", "forward", "moved")}
    ratio = 0.0
    given = _arguments(loss)
    for _ in range(draws):
        policy, teacher, other = drawn(), drawn(), drawn()
        expected = _expected(loss, given, policy, teacher)
        log_p, log_t = policy.log_softmax(0), teacher.log_softmax(0)
        gradients["found"].append(expected)
        gradients["moved"].append(_expected(loss, given, policy, other) - expected)
        gradients["reverse"].append(_gradient(policy, kl, log_t))
        gradients["forward"].append(_gradient(policy, _forward, log_t))
        ratio = max(ratio, float((log_p - log_t).abs().max()))
    return _judged({name: torch.stack(rows) for name, rows in gradients.items()}, ratio)


def _judged(gradients: Mapping[str, Tensor], ratio: float) -> Finding:
    found, reverse, forward, moved = (gradients[name] for name in ("found", "reverse", "forward", "moved"))
    largest = float(found.abs().max())
    cosines = [float(torch.cosine_similarity(found, target, dim=1).min()) for target in (reverse, forward)]
    about: dict[str, Any] = {"largest_gradient": largest, "largest_log_ratio": ratio}
    size = max(largest, float(reverse.abs().max()) * CLOSE)
    if largest < CLOSE * float(reverse.abs().max()):
        return Finding("zero", (), 0.0, float("nan"), float("nan"), **about)
    if float(moved.abs().max()) < CLOSE * size:
        return Finding("zero", (1.0,), 0.0, *cosines, **about)
    names: tuple[Verdict, ...] = ("reverse KL", "forward KL")
    for name, target in zip(names, (reverse, forward), strict=True):
        scale = float((found * target).sum() / target.square().sum())
        residual = float((found - scale * target).abs().max()) / size
        if residual < CLOSE and scale > 0:
            return Finding(name, (scale,), residual, *cosines, **about)
    both = torch.stack([reverse.flatten(), forward.flatten()], dim=1)
    scales = torch.linalg.lstsq(both, found.flatten()[:, None]).solution[:, 0]
    residual = float((found.flatten() - both @ scales).abs().max()) / size
    return Finding("neither", tuple(float(x) if abs(x) > CLOSE else 0.0 for x in scales), residual, *cosines, **about)


def _gradient(
    logits: Tensor, divergence: Callable[[Tensor, Tensor], Tensor], log_teacher: Tensor
) -> Float64[Tensor, " vocabulary"]:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(divergence(leaf.log_softmax(0), log_teacher), leaf)[0]


def _forward(log_p: Tensor, log_t: Tensor) -> Tensor:
    return kl(log_t, log_p)


def _expected(
    loss: Callable[..., Any], given: Mapping[str, str], policy: Tensor, teacher: Tensor
) -> Float64[Tensor, " vocabulary"]:
    """Return sum_x pi(x) grad loss(x), each token a batch of its own."""
    total = torch.zeros_like(policy)
    probs = policy.softmax(0)
    for token in range(len(policy)):
        logits = policy.clone().requires_grad_()
        value = _value(loss, _filled(given, logits, teacher, token))
        if value.requires_grad:
            grad = torch.autograd.grad(value, logits, allow_unused=True)[0]
            total += probs[token] * (torch.zeros_like(policy) if grad is None else grad)
    if not torch.isfinite(total).all():
        raise InputError("its gradient is not finite", where=_name(loss), expected="a loss that can be differentiated")
    return total


def _filled(given: Mapping[str, str], logits: Tensor, teacher: Tensor, token: int) -> dict[str, Tensor]:
    log_policy, log_teacher = logits.log_softmax(0)[token].view(1, 1), teacher.log_softmax(0)[token].view(1, 1)
    everything = {
        "log_policy": log_policy,
        "log_teacher": log_teacher,
        "log_old": log_policy.detach(),
        "policy_logits": logits.view(1, 1, -1),
        "teacher_logits": teacher.view(1, 1, -1),
        "tokens": torch.tensor([[token]]),
        "mask": torch.ones(1, 1, dtype=torch.bool),
    }
    return {name: everything[what] for name, what in given.items()}


def _value(loss: Callable[..., Any], arguments: Mapping[str, Tensor]) -> Tensor:
    try:
        found = loss(**arguments)
    except Exception as error:  # the function is the user's, and may fail in any way
        raise InputError(f"it fails ({type(error).__name__}: {error})", where=_name(loss)) from error
    found = found[0] if isinstance(found, tuple | list) and found else found
    if not isinstance(found, Tensor) or not found.is_floating_point():
        expected = "a tensor: the loss, or one number a token"
        raise InputError(f"it returned a {type(found).__name__}", where=_name(loss), expected=expected)
    if not torch.isfinite(found).all():
        raise InputError("it is not finite", where=_name(loss), expected="finite losses")
    return found.double().sum()


def _arguments(loss: Callable[..., Any]) -> dict[str, str]:
    """Return what each parameter of a function is to be given."""
    known = {other: name for name, others in ARGUMENTS.items() for other in (name, *others)}
    parameters = inspect.signature(loss).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    asked = [each for each in parameters if each.kind in plain]
    found = {each.name: known[each.name] for each in asked if each.name in known}
    needed = [each.name for each in asked if each.name not in known and each.default is inspect.Parameter.empty]
    if needed or not found:
        where, names = _name(loss), ", ".join(sorted(known))
        what = f"its parameter {needed[0]!r} is not known" if needed else "it has no parameter that is known"
        raise InputError(what, where=where, expected=f"some of {names}", fix="rename it, or give it a default")
    return found


def _name(loss: Callable[..., Any]) -> str:
    return str(getattr(loss, "__qualname__", type(loss).__name__))
