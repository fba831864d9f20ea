"""The chunked heads against the logits written out: values, every gradient, chunks, kinds of number."""

import pytest
import torch
from torch.autograd import gradcheck

from sanov.linear_heads import linear_jensen_shannon, linear_kl, linear_kl_per_token, linear_token_log_probs

TOKENS, VOCABULARY, WIDTH_P, WIDTH_Q = 7, 11, 4, 3


def heads(dtype=torch.float64, tokens=TOKENS, vocabulary=VOCABULARY, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, WIDTH_P), (vocabulary, WIDTH_P), (tokens, WIDTH_Q), (vocabulary, WIDTH_Q)]
    made = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    return made, torch.rand(tokens, generator=generator, dtype=dtype).requires_grad_()


def written_out(kind, hidden_p, weight_p, hidden_q, weight_q, token_weight, temperature, weight=0.5):
    log_p = (hidden_p @ weight_p.T / temperature).log_softmax(-1)
    log_q = (hidden_q @ weight_q.T / temperature).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    if kind == "kl":
        values = (p * (log_p - log_q)).sum(-1)
    else:
        log_m = (weight * p + (1 - weight) * q).log()
        values = weight * (p * (log_p - log_m)).sum(-1) + (1 - weight) * (q * (log_q - log_m)).sum(-1)
    return (token_weight * values).sum()


@pytest.mark.parametrize("chunk", [1, 2, 7, 100, None])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["kl", "js"])
def test_value_and_all_gradients_are_those_of_the_logits(kind, temperature, chunk):
    inputs, token_weight = heads()
    function = linear_kl if kind == "kl" else linear_jensen_shannon
    options = {} if kind == "kl" else {"weight": 0.3}
    ours = function(*inputs, token_weight=token_weight, temperature=temperature, chunk=chunk, **options)
    naive = written_out(kind, *inputs, token_weight, temperature, **options)
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-14)
    for mine, reference in zip(
        torch.autograd.grad(3 * ours, [*inputs, token_weight]),
        torch.autograd.grad(3 * naive, [*inputs, token_weight]),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_float32_gradients_agree_to_1e_5(kind):
    inputs, token_weight = heads(torch.float32, tokens=64, vocabulary=500)
    function = linear_kl if kind == "kl" else linear_jensen_shannon
    ours = torch.autograd.grad(function(*inputs, token_weight=token_weight, chunk=10), inputs)
    wide = [part.detach().double().requires_grad_() for part in inputs]
    exact = torch.autograd.grad(written_out(kind, *wide, token_weight.double(), 1.0), wide)
    for mine, reference in zip(ours, exact, strict=True):
        assert (mine - reference).norm() / reference.norm() < 1e-5


@pytest.mark.parametrize("function", [linear_kl, linear_jensen_shannon])
def test_finite_differences(function):
    inputs, token_weight = heads(tokens=3, vocabulary=4)
    assert gradcheck(lambda *parts: function(*parts[:4], token_weight=parts[4], chunk=2), [*inputs, token_weight])


@pytest.mark.parametrize("which", range(5))
def test_only_the_input_that_asks_gets_a_gradient(which):
    inputs, token_weight = heads()
    everything = [*inputs, token_weight]
    asked = [part.detach().requires_grad_(index == which) for index, part in enumerate(everything)]
    linear_kl(*asked[:4], token_weight=asked[4], chunk=3).backward()
    for index, part in enumerate(asked):
        assert (part.grad is not None) == (index == which)
    reference = torch.autograd.grad(written_out("kl", *everything, 1.0), everything)[which]
    torch.testing.assert_close(asked[which].grad, reference)


@pytest.mark.parametrize("function", [linear_kl, linear_jensen_shannon])
def test_zero_with_zero_gradient_where_the_heads_agree(function):
    (hidden, weight, _, _), token_weight = heads()
    hidden_q, weight_q = hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    total = function(hidden, weight, hidden_q, weight_q, token_weight=token_weight)
    assert abs(float(total.detach())) < 1e-14
    for grad in torch.autograd.grad(total, [hidden, weight, hidden_q, weight_q]):
        assert float(grad.abs().max()) < 1e-14


def test_a_token_of_weight_zero_does_not_count():
    inputs, _ = heads()
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1, 1], dtype=torch.float64)
    kept = mask.bool()
    short = linear_kl(inputs[0][kept], inputs[1], inputs[2][kept], inputs[3])
    torch.testing.assert_close(linear_kl(*inputs, token_weight=mask, chunk=2), short)


def test_values_per_token_are_what_the_sum_adds():
    inputs, token_weight = heads()
    values = linear_kl_per_token(*inputs, chunk=3, temperature=1.7)
    assert values.shape == (TOKENS,)
    assert not values.requires_grad
    total = linear_kl(*inputs, token_weight=token_weight, temperature=1.7)
    torch.testing.assert_close(values @ token_weight.detach(), total.detach())


def test_half_precision_is_computed_in_float32():
    inputs, _ = heads(torch.float32, tokens=32, vocabulary=300)
    half = [part.detach().to(torch.bfloat16).requires_grad_() for part in inputs]
    total = linear_kl(*half, chunk=5)
    assert total.dtype == torch.float32
    exact = [part.detach().double().requires_grad_() for part in half]
    reference = written_out("kl", *exact, torch.ones(32, dtype=torch.float64), 1.0)
    assert float(total.detach()) == pytest.approx(float(reference.detach()), rel=2e-2)
    total.backward()
    assert all(part.grad.dtype == torch.bfloat16 for part in half)


@pytest.mark.parametrize("chunk", [1, 3, None])
@pytest.mark.parametrize("summed", [True, False])
def test_token_log_probs(summed, chunk):
    (hidden, weight, _, _), token_weight = heads()
    tokens = torch.arange(TOKENS) % VOCABULARY
    options = {"temperature": 1.3, "chunk": chunk}
    naive = (hidden @ weight.T / 1.3).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    if summed:
        ours = linear_token_log_probs(hidden, weight, tokens, token_weight=token_weight, **options)
        reference, wanted = naive @ token_weight, [hidden, weight, token_weight]
    else:
        ours = (linear_token_log_probs(hidden, weight, tokens, **options) * token_weight.detach()).exp().sum()
        reference, wanted = (naive * token_weight.detach()).exp().sum(), [hidden, weight]
    torch.testing.assert_close(ours, reference)
    for mine, other in zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(reference, wanted), strict=True):
        torch.testing.assert_close(mine, other)


def test_token_log_probs_finite_differences():
    (hidden, weight, _, _), token_weight = heads(tokens=3, vocabulary=4)
    tokens = torch.tensor([0, 3, 1])
    assert gradcheck(lambda h, w: linear_token_log_probs(h, w, tokens, chunk=2), [hidden, weight])
    assert gradcheck(
        lambda h, w, t: linear_token_log_probs(h, w, tokens, token_weight=t, chunk=2), [hidden, weight, token_weight]
    )


def test_backward_can_be_called_again_with_another_scale():
    inputs, _ = heads()
    total = linear_kl(*inputs)
    first = torch.autograd.grad(total, inputs[0], retain_graph=True)[0]
    second = torch.autograd.grad(2 * total, inputs[0])[0]
    torch.testing.assert_close(second, 2 * first)


@pytest.mark.parametrize(
    ("options", "message"), [({"temperature": 0.0}, "temperature is 0.0"), ({"chunk": 0}, "chunk is 0")]
)
def test_bad_options_are_named(options, message):
    inputs, _ = heads()
    with pytest.raises(ValueError, match=message):
        linear_kl(*inputs, **options)
    with pytest.raises(ValueError, match="weight is 1"):
        linear_jensen_shannon(*inputs, weight=1.0)


def test_logits_of_all_tokens_never_exist():
    """The largest tensor made on the way holds a chunk of logits or a gradient, never [tokens, vocabulary]."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            for part in made if isinstance(made, tuple | list) else [made]:
                if isinstance(part, torch.Tensor):
                    largest = max(largest, part.numel())
            return made

    inputs, token_weight = heads(tokens=60, vocabulary=50)
    with Watch():
        linear_kl(*inputs, token_weight=token_weight, chunk=4).backward()
    assert largest <= max(4 * 50, 60 * WIDTH_P, 50 * WIDTH_P)
