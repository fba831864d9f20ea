"""Divergences between two language-model heads, a chunk of tokens at a time.

A head turns hidden states into logits, ``logits = hidden @ weight.T``. The logits of all tokens over a large
vocabulary fill more memory than the model that made them, and nothing but a sum is wanted of them. Here they exist for
`chunk` tokens at a time, and the gradients of the sum are formed while they do: the backward pass only scales what is
already there, so no product is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

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

    Gradients go to whichever inputs ask for one, `token_weight` included, and are formed in the forward pass. It can be
    differentiated once.

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
    ValueError
        If the temperature or the chunk is not positive.

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
    ValueError
        If the weight is not inside (0, 1), or as `linear_kl`.

    Reference
    ---------
    lin1991divergence, eq. 4.1.
    """
    if not 0 < weight < 1:
        raise ValueError(f"weight is {weight}; it must lie inside (0, 1)")
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
    ValueError
        As `linear_kl`.

    Reference
    ---------
    csiszar1975divergence.
    """
    values = [
        _kl_terms(_log_probs(hidden_p[rows], weight_p, temperature), _log_probs(hidden_q[rows], weight_q, temperature))[
            0
        ]
        for rows in _chunks(len(hidden_p), len(weight_p), chunk, temperature)
    ]
    return torch.cat(values) if values else hidden_p.new_zeros(0, dtype=_wide(hidden_p.dtype))


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
    ValueError
        If the temperature or the chunk is not positive.

    Reference
    ---------
    The computation is ours; equal to `estimators.token_log_probs` of the logits.
    """
    rows = list(_chunks(len(hidden), len(weight), chunk, temperature))
    if token_weight is None:
        values: Tensor = _TokenLogProbs.apply(hidden, weight, tokens, temperature, rows)  # type: ignore[no-untyped-call]
        return values
    summed = _WeightedTokenLogProbs.apply
    total: Tensor = summed(hidden, weight, tokens, token_weight, temperature, rows)  # type: ignore[no-untyped-call]
    return total


# -- chunks -----------------------------------------------------------------------------------------------------------


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _chunks(tokens: int, vocabulary: int, chunk: int | None, temperature: float) -> Iterator[slice]:
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    size = chunk or max(1, CHUNK_ELEMENTS // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))


def _log_probs(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = (hidden / temperature) @ weight.to(hidden.dtype).T
    return logits.to(_wide(hidden.dtype)).log_softmax(-1)


class _Gradients:
    """Gradients of one head, gathered chunk by chunk; None for an input that asks for none."""

    def __init__(self, hidden: Tensor, weight: Tensor, needs: tuple[bool, bool], temperature: float):
        wide = _wide(hidden.dtype)
        self.head, self.temperature = weight, temperature
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None

    def add(self, rows: slice, grad_logits: Tensor, hidden: Tensor) -> None:
        """Take in the gradient by the logits of some rows."""
        if self.hidden is not None:
            self.hidden[rows] = (grad_logits.to(self.head.dtype) @ self.head) / self.temperature
        if self.weight is not None:
            self.weight.addmm_(grad_logits.T, hidden.to(grad_logits.dtype), alpha=1 / self.temperature)

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients in the kinds of number of the inputs."""
        return self.hidden, None if self.weight is None else self.weight.to(self.head.dtype)


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
    rows = list(_chunks(len(hidden_p), len(weight_p), chunk, temperature))
    if token_weight is None:
        token_weight = hidden_p.new_ones(len(hidden_p), dtype=_wide(hidden_p.dtype))
    total: Tensor = _LinearDivergence.apply(  # type: ignore[no-untyped-call]
        hidden_p, weight_p, hidden_q, weight_q, token_weight, temperature, rows, terms
    )
    return total


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_p: Tensor,
        weight_p: Tensor,
        hidden_q: Tensor,
        weight_q: Tensor,
        token_weight: Tensor,
        temperature: float,
        rows: list[slice],
        terms: Terms,
    ) -> Tensor:
        need_p, need_q = ctx.needs_input_grad[0:2], ctx.needs_input_grad[2:4]
        grads_p = _Gradients(hidden_p, weight_p, need_p, temperature)
        grads_q = _Gradients(hidden_q, weight_q, need_q, temperature)
        values = token_weight.new_empty(len(hidden_p), dtype=_wide(hidden_p.dtype))
        for part in rows:
            log_p = _log_probs(hidden_p[part], weight_p, temperature)
            log_q = _log_probs(hidden_q[part], weight_q, temperature)
            values[part], by_p, by_q = terms(log_p, log_q, any(need_p), any(need_q))
            scale = token_weight[part, None].to(values.dtype)
            if by_p is not None:
                grads_p.add(part, by_p.mul_(scale), hidden_p[part])
            if by_q is not None:
                grads_q.add(part, by_q.mul_(scale), hidden_q[part])
        by_token = values.to(token_weight.dtype) if ctx.needs_input_grad[4] else None
        ctx.save_for_backward(*grads_p.result(), *grads_q.result(), by_token)
        return torch.dot(values, token_weight.to(values.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_scaled(ctx.saved_tensors, grad), None, None, None)


class _WeightedTokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        token_weight: Tensor,
        temperature: float,
        rows: list[slice],
    ) -> Tensor:
        grads = _Gradients(hidden, weight, ctx.needs_input_grad[0:2], temperature)
        values = token_weight.new_empty(len(hidden), dtype=_wide(hidden.dtype))
        for part in rows:
            log_p = _log_probs(hidden[part], weight, temperature)
            values[part] = log_p.gather(1, tokens[part, None])[:, 0]
            if any(ctx.needs_input_grad[0:2]):
                grads.add(part, _score(log_p, tokens[part], token_weight[part]), hidden[part])
        by_token = values.to(token_weight.dtype) if ctx.needs_input_grad[3] else None
        ctx.save_for_backward(*grads.result(), by_token)
        return torch.dot(values, token_weight.to(values.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight, by_token = _scaled(ctx.saved_tensors, grad)
        return by_hidden, by_weight, None, by_token, None, None


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, rows: list[slice]
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, tokens)
        ctx.temperature, ctx.rows = temperature, rows
        values = hidden.new_empty(len(hidden), dtype=_wide(hidden.dtype))
        for part in rows:
            log_p = _log_probs(hidden[part], weight, temperature)
            values[part] = log_p.gather(1, tokens[part, None])[:, 0]
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, tokens = ctx.saved_tensors
        grads = _Gradients(hidden, weight, ctx.needs_input_grad[0:2], ctx.temperature)
        for part in ctx.rows:
            log_p = _log_probs(hidden[part], weight, ctx.temperature)
            grads.add(part, _score(log_p, tokens[part], grad[part]), hidden[part])
        return (*grads.result(), None, None, None)


def _score(log_p: Tensor, tokens: Tensor, scale: Tensor) -> Tensor:
    """Gradient of ``scale log p(token)`` by the logits, written over `log_p`."""
    scale = scale[:, None].to(log_p.dtype)
    return log_p.exp_().mul_(-scale).scatter_add_(1, tokens[:, None], scale)


def _scaled(grads: tuple[Tensor | None, ...], scale: Tensor) -> tuple[Tensor | None, ...]:
    if bool(scale == 1):  # a copy of the gradient of the head is what this file avoids
        return grads
    return tuple(None if grad is None else grad * scale.to(grad.dtype) for grad in grads)
