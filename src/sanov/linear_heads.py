"""Divergences between two language-model heads, a chunk of tokens at a time.

A head turns hidden states into logits, ``logits = hidden @ weight.T``. The logits of all tokens over a large
vocabulary fill more memory than the model that made them, and nothing but a sum is wanted of them. Here they exist for
`chunk` tokens at a time, and the gradients of the sum are formed while they do: the backward pass only scales what is
already there, so no product is computed twice.

The logits are in the kind of number of the hidden states, or of autocast; all that follows is in float32 or wider. A
gradient that is formed in the forward pass has not been multiplied by a loss scale yet, and in float16 it would vanish.
So where the logits are float16, products that make gradients are float32; elsewhere the one that makes the gradient by
the hidden states is in the kind of number of the logits, as in autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sanov.core.errors import InputError
from sanov.precision import first_derivative_only, wide_dtype, widen

__all__ = ["linear_jensen_shannon", "linear_kl", "linear_kl_per_token", "linear_token_log_probs"]

CHUNK_ELEMENTS = 2**23  # logits held at a time, per head: 32 MiB in float32

# A divergence of the rows of two log-probability arrays, which it may overwrite: values, and gradients by the logits.
Terms = Callable[[Tensor, Tensor, bool, bool], tuple[Tensor, Tensor | None, Tensor | None]]


def linear_kl(
    hidden_p: Float[Tensor, "tokens features_p"],
    weight_p: Float[Tensor, "vocabulary features_p"],
    hidden_q: Float[Tensor, "tokens features_q"],
    weight_q: Float[Tensor, "vocabulary features_q"],
    *,
    token_weight: Float[Tensor, " tokens"] | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Token-weighted sum of KL(p || q) between the softmax outputs of two heads.

    Gradients go to whichever inputs ask for one, `token_weight` included, and are formed in the forward pass, unless
    gradients are off. They have no derivative themselves: ``create_graph=True`` is an error.

    Parameters
    ----------
    hidden_p, hidden_q
        Hidden states, [tokens, features]; the two numbers of features may differ.
    weight_p, weight_q
        Head weights, [vocabulary, features].
    token_weight
        Weight of each token, [tokens]; ones by default, zeros drop a token.
    temperature
        Divides both logits. The result is not multiplied by its square.
    chunk
        Tokens at a time; by default as many as fill 32 MiB of float32 logits.

    Returns
    -------
    The sum, in nats, float32 or wider.

    Raises
    ------
    InputError
        If shapes do not fit, or the temperature or the chunk is not positive.

    Reference
    ---------
    csiszar1975divergence (the divergence); the computation is ours.
    """
    return _linear_divergence(hidden_p, weight_p, hidden_q, weight_q, token_weight, temperature, chunk, _kl_terms)


def linear_jensen_shannon(
    hidden_p: Float[Tensor, "tokens features_p"],
    weight_p: Float[Tensor, "vocabulary features_p"],
    hidden_q: Float[Tensor, "tokens features_q"],
    weight_q: Float[Tensor, "vocabulary features_q"],
    *,
    weight: float = 0.5,
    token_weight: Float[Tensor, " tokens"] | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Token-weighted sum of the generalised Jensen-Shannon divergence between two heads.

    ``weight KL(p || m) + (1 - weight) KL(q || m)`` with ``m = weight p + (1 - weight) q``. The other parameters, the
    gradients and the errors are those of `linear_kl`.

    Parameters
    ----------
    weight
        Mixture weight of p, in (0, 1).

    Raises
    ------
    InputError
        If the weight is not inside (0, 1), or as `linear_kl`.

    Reference
    ---------
    lin1991divergence, eq. 4.1.
    """
    if not 0 < weight < 1:
        raise InputError(f"it is {weight}", where="weight", expected="a number between 0 and 1, both excluded")
    shift = torch.tensor([weight, 1 - weight], dtype=torch.float64).log().tolist()

    def terms(log_p: Tensor, log_q: Tensor, need_p: bool, need_q: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        log_m = torch.logaddexp(log_p + shift[0], log_q + shift[1])
        value_p, grad_p = _side(log_p, log_m, weight, need_p)
        value_q, grad_q = _side(log_q, log_m, 1 - weight, need_q)
        return value_p + value_q, grad_p, grad_q

    return _linear_divergence(hidden_p, weight_p, hidden_q, weight_q, token_weight, temperature, chunk, terms)


@torch.no_grad()
def linear_kl_per_token(
    hidden_p: Float[Tensor, "tokens features_p"],
    weight_p: Float[Tensor, "vocabulary features_p"],
    hidden_q: Float[Tensor, "tokens features_q"],
    weight_q: Float[Tensor, "vocabulary features_q"],
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Float[Tensor, " tokens"]:
    """KL(p || q) of each token between two heads, without gradient. The parameters are those of `linear_kl`.

    Returns
    -------
    Values in nats, [tokens], float32 or wider.

    Raises
    ------
    InputError
        As `linear_kl`.

    Reference
    ---------
    csiszar1975divergence.
    """
    _check(temperature, chunk, (hidden_p, weight_p), (hidden_q, weight_q))
    how = _how(hidden_p, weight_p, temperature, chunk)
    values = hidden_p.new_empty(len(hidden_p), dtype=wide_dtype(hidden_p))
    with torch.autocast(hidden_p.device.type, enabled=False):
        head_p, head_q = _Head(hidden_p, weight_p, how), _Head(hidden_q, weight_q, how)
        for part in how.rows:
            values[part] = _kl_terms(head_p.log_probs(part), head_q.log_probs(part))[0]
    return values


def linear_token_log_probs(
    hidden: Float[Tensor, "tokens features"],
    weight: Float[Tensor, "vocabulary features"],
    tokens: Int[Tensor, " tokens"],
    *,
    token_weight: Float[Tensor, " tokens"] | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Float[Tensor, "*tokens_or_scalar"]:
    """Log-probability that a head gives to each token, or their weighted sum.

    With `token_weight` the result is the sum, and its gradients are formed in the forward pass. Without it the result
    has a value per token; the gradient by the weight then depends on what is done with the values, so the backward pass
    computes the logits of each chunk once more.

    Parameters
    ----------
    hidden
        Hidden states, [tokens, features].
    weight
        Head weights, [vocabulary, features].
    tokens
        Indices into the vocabulary, [tokens].
    token_weight
        Weights of the sum, [tokens].
    temperature
        Divides the logits.
    chunk
        Tokens at a time; by default as many as fill 32 MiB of float32 logits.

    Returns
    -------
    Log-probabilities, [tokens], or their weighted sum, a scalar; nats, float32 or wider.

    Raises
    ------
    InputError
        If shapes do not fit, or the temperature or the chunk is not positive.

    Reference
    ---------
    The computation is ours; equal to `estimators.token_log_probs` of the logits.
    """
    _check(temperature, chunk, (hidden, weight), tokens=tokens, token_weight=token_weight)
    how = _how(hidden, weight, temperature, chunk)
    if token_weight is None:
        return _apply(_TokenLogProbs, hidden, weight, tokens, how)
    return _apply(_WeightedTokenLogProbs, hidden, weight, tokens, token_weight, how)


# -- what is checked and decided before a computation -----------------------------------------------------------------


def _check(temperature: float, chunk: int | None, *heads: tuple[Tensor, Tensor], **by_token: Tensor | None) -> None:
    """Refuse options out of range, and shapes of which a part would be ignored or repeated."""
    if not 0 < temperature < math.inf:
        raise InputError(f"it is {temperature}", where="temperature", expected="a positive number")
    if chunk is not None and chunk < 1:
        raise InputError(f"it is {chunk}", where="chunk", expected="at least 1, or None")
    count, vocabulary = len(heads[0][0]), len(heads[0][1])
    for hidden, weight in heads:
        features = hidden.shape[-1]
        if hidden.shape != (count, features) or weight.shape != (vocabulary, features) or not vocabulary:
            found = " and ".join(f"{list(h.shape)} with {list(w.shape)}" for h, w in heads)
            expected = "[tokens, features] with [vocabulary, features], tokens and vocabulary being those of every head"
            raise InputError(f"the shapes are {found}", where="hidden states and head weights", expected=expected)
    for name, values in by_token.items():
        if values is not None and values.shape != (count,):
            raise InputError(
                f"it has shape {list(values.shape)}", where=name, expected=f"one for each of {count} tokens"
            )


@dataclass(frozen=True, slots=True)
class _How:
    """How logits are made: which rows at a time, at what temperature, in what kind of number if autocast says one."""

    rows: list[slice]
    temperature: float
    autocast: torch.dtype | None


def _how(hidden: Tensor, weight: Tensor, temperature: float, chunk: int | None) -> _How:
    size, device = chunk or max(1, CHUNK_ELEMENTS // len(weight)), hidden.device.type
    rows = [slice(start, start + size) for start in range(0, len(hidden), size)]
    return _How(rows, temperature, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)


def _apply(function: type[torch.autograd.Function], *inputs: Any) -> Tensor:
    """Apply a function of this file, which minds autocast itself and forms no gradient where gradients are off."""
    if not torch.is_grad_enabled():
        inputs = tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs)
    with torch.autocast(inputs[0].device.type, enabled=False):
        result: Tensor = function.apply(*inputs)  # type: ignore[no-untyped-call]
    return result


# -- one head ---------------------------------------------------------------------------------------------------------


class _Head:
    """The log-probabilities of a head, and gradients of a sum of them gathered chunk by chunk.

    The gradients are by hidden states and weight, and None for one that needs none.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, how: _How, needs: tuple[bool, bool] = (False, False)):
        dtype = how.autocast if how.autocast and hidden.dtype != torch.float64 else hidden.dtype
        self.hidden, self.temperature, self.needs = hidden, how.temperature, any(needs)
        self.logit_weight = weight.to(dtype)
        self.gradient_weight = weight.to(_before_loss_scale(dtype)) if needs[0] else self.logit_weight
        self.by_hidden = torch.empty_like(hidden, dtype=_before_loss_scale(hidden.dtype)) if needs[0] else None
        self.by_weight = torch.zeros_like(weight, dtype=wide_dtype(hidden)) if needs[1] else None
        self.kept = _before_loss_scale(weight.dtype)

    def log_probs(self, rows: slice) -> Tensor:
        """Log-probabilities of some rows, float32 or wider."""
        hidden = (self.hidden[rows] / self.temperature).to(self.logit_weight.dtype)
        return widen(hidden @ self.logit_weight.T).log_softmax(-1)

    def add(self, rows: slice, by_logits: Tensor) -> None:
        """Take in the gradient by the logits of some rows."""
        if self.by_hidden is not None:
            self.by_hidden[rows] = by_logits.to(self.gradient_weight.dtype) @ self.gradient_weight / self.temperature
        if self.by_weight is not None:
            self.by_weight.addmm_(by_logits.T, self.hidden[rows].to(by_logits.dtype), alpha=1 / self.temperature)

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients by the hidden states and the weight."""
        return self.by_hidden, None if self.by_weight is None else self.by_weight.to(self.kept)


def _before_loss_scale(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for float16, in which a gradient that no loss scale has multiplied yet would vanish."""
    return torch.float32 if dtype == torch.float16 else dtype


def _scaled(grads: tuple[Tensor | None, ...], scale: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients times what comes in from behind; autograd then casts each to the kind of number of its input."""
    return tuple(None if grad is None else widen(grad) * scale for grad in grads)


# -- gradients by the logits ------------------------------------------------------------------------------------------


def _kl_terms(
    log_p: Tensor, log_q: Tensor, need_p: bool = False, need_q: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    p = log_p.exp()
    log_ratio = log_p.sub_(log_q)
    value = torch.linalg.vecdot(p, log_ratio)
    grad_q = log_q.exp_().sub_(p) if need_q else None
    grad_p = log_ratio.sub_(value[:, None]).mul_(p) if need_p else None
    return value, grad_p, grad_q


def _side(log_p: Tensor, log_m: Tensor, weight: float, need: bool) -> tuple[Tensor, Tensor | None]:
    """Return ``weight KL(p || m)`` and its gradient by the logits of p, m moving with p."""
    score = (log_p - log_m).mul_(weight)
    p = log_p.exp_()
    value = torch.linalg.vecdot(p, score)
    return value, score.sub_(value[:, None]).mul_(p) if need else None


def _score(log_p: Tensor, tokens: Tensor, scale: Tensor) -> Tensor:
    """Gradient of ``scale log p(token)`` by the logits, written over `log_p`."""
    scale = scale[:, None].to(log_p.dtype)
    return log_p.exp_().mul_(-scale).scatter_add_(1, tokens[:, None], scale)


# -- the custom gradients ---------------------------------------------------------------------------------------------


def _linear_divergence(
    hidden_p: Tensor,
    weight_p: Tensor,
    hidden_q: Tensor,
    weight_q: Tensor,
    token_weight: Tensor | None,
    temperature: float,
    chunk: int | None,
    terms: Terms,
) -> Tensor:
    _check(temperature, chunk, (hidden_p, weight_p), (hidden_q, weight_q), token_weight=token_weight)
    if token_weight is None:
        token_weight = hidden_p.new_ones(len(hidden_p), dtype=wide_dtype(hidden_p))
    how = _how(hidden_p, weight_p, temperature, chunk)
    return _apply(_LinearDivergence, hidden_p, weight_p, hidden_q, weight_q, token_weight, how, terms)


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_p: Tensor,
        weight_p: Tensor,
        hidden_q: Tensor,
        weight_q: Tensor,
        token_weight: Tensor,
        how: _How,
        terms: Terms,
    ) -> Tensor:
        head_p = _Head(hidden_p, weight_p, how, ctx.needs_input_grad[0:2])
        head_q = _Head(hidden_q, weight_q, how, ctx.needs_input_grad[2:4])
        values = token_weight.new_empty(len(hidden_p), dtype=wide_dtype(hidden_p))
        token_weight = token_weight.to(values.dtype)
        for part in how.rows:
            log_p, log_q = head_p.log_probs(part), head_q.log_probs(part)
            values[part], by_p, by_q = terms(log_p, log_q, head_p.needs, head_q.needs)
            if by_p is not None:
                head_p.add(part, by_p.mul_(token_weight[part, None]))
            if by_q is not None:
                head_q.add(part, by_q.mul_(token_weight[part, None]))
        by_token = values if ctx.needs_input_grad[4] else None
        ctx.save_for_backward(*head_p.gradients(), *head_q.gradients(), by_token)
        return torch.dot(values, token_weight)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_scaled(ctx.saved_tensors, grad), None, None)


class _WeightedTokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, token_weight: Tensor, how: _How) -> Tensor:
        head = _Head(hidden, weight, how, ctx.needs_input_grad[0:2])
        values = token_weight.new_empty(len(hidden), dtype=wide_dtype(hidden))
        token_weight = token_weight.to(values.dtype)
        for part in how.rows:
            log_p = head.log_probs(part)
            values[part] = log_p.gather(1, tokens[part, None])[:, 0]
            if head.needs:
                head.add(part, _score(log_p, tokens[part], token_weight[part]))
        by_token = values if ctx.needs_input_grad[3] else None
        ctx.save_for_backward(*head.gradients(), by_token)
        return torch.dot(values, token_weight)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight, by_token = _scaled(ctx.saved_tensors, grad)
        return by_hidden, by_weight, None, by_token, None


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, how: _How) -> Tensor:
        ctx.save_for_backward(hidden, weight, tokens)
        ctx.how = how
        head, values = _Head(hidden, weight, how), hidden.new_empty(len(hidden), dtype=wide_dtype(hidden))
        for part in how.rows:
            values[part] = head.log_probs(part).gather(1, tokens[part, None])[:, 0]
        return values

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, tokens = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(hidden, weight, ctx.how, ctx.needs_input_grad[0:2])
            for part in ctx.how.rows:
                head.add(part, _score(head.log_probs(part), tokens[part], grad[part]))
        return (*head.gradients(), None, None)
