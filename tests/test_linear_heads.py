"""The chunked heads against the logits written out: values, every gradient, chunks, kinds of number."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from sanov.core.errors import InputError
from sanov.linear_heads import linear_jensen_shannon, linear_kl, linear_kl_per_token, linear_token_log_probs
from strategies import unchecked

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


# -- half precision under a loss scale ---------------------------------------------------------------------------------

SUMS = ("kl", "js", "tokens")


def summed(kind, hidden_p, weight_p, hidden_q, weight_q, token_weight):
    """Ours, and the same with autograd of the logits."""
    if kind == "tokens":
        tokens = torch.arange(len(hidden_q)) % len(weight_q)
        ours = linear_token_log_probs(hidden_q, weight_q, tokens, token_weight=token_weight)
        naive = (hidden_q @ weight_q.T).to(token_weight.dtype).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        return ours, (naive * token_weight).sum()
    function = linear_kl if kind == "kl" else linear_jensen_shannon
    ours = function(hidden_p, weight_p, hidden_q, weight_q, token_weight=token_weight, chunk=40)
    log_p, log_q = (
        (hidden @ weight.T).to(token_weight.dtype).log_softmax(-1)
        for hidden, weight in ((hidden_p, weight_p), (hidden_q, weight_q))
    )
    log_m = log_q if kind == "kl" else torch.logaddexp(log_p, log_q) - math.log(2)
    values = (log_p.exp() * (log_p - log_m)).sum(-1)
    if kind == "js":
        values = (values + (log_q.exp() * (log_q - log_m)).sum(-1)) / 2
    return ours, (values * token_weight).sum()


@pytest.mark.parametrize(
    ("half", "autocast", "scale"),
    [
        (torch.float16, False, 2.0**15),
        (torch.float16, False, 2.0**16),
        (torch.float16, True, 2.0**15),
        (torch.float16, True, 1.0),
        (torch.bfloat16, False, 1.0),
        (torch.bfloat16, False, 1 / 3),
        (torch.bfloat16, True, 1.0),
    ],
)
@pytest.mark.parametrize("kind", SUMS)
def test_scaled_gradients_of_half_precision_are_as_good_as_those_of_autograd(kind, autocast, half, scale):
    """A loss scale comes in from behind, after the gradients were formed; they must not have vanished by then."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 32), (32_000, 32)] * 2
    exact = [torch.randn(shape, generator=generator) * (1 if shape[0] == 64 else 0.05) for shape in shapes]
    token_weight = torch.full((64,), 1 / (64 * 256))

    def gradients(which, kind_of_number, scale):
        parts = [part.to(kind_of_number).requires_grad_() for part in exact]
        asked = parts[2:] if kind == "tokens" else parts
        with torch.autocast("cpu", dtype=half, enabled=autocast and kind_of_number != torch.float64):
            total = summed(kind, *parts, token_weight.to(torch.promote_types(kind_of_number, torch.float32)))[which]
        found = torch.autograd.grad(total * scale, asked)
        assert all(grad.dtype == kind_of_number for grad in found)
        return [grad.double() / scale for grad in found]

    wanted = gradients(0, torch.float64, 1)
    ours, naive = (gradients(which, torch.float32 if autocast else half, scale) for which in (0, 1))
    for mine, theirs, reference in zip(ours, naive, wanted, strict=True):
        allowed = (theirs - reference).norm().clamp(max=1e-2 * reference.norm())
        assert (mine - reference).norm() <= 1.3 * allowed  # bfloat16 is rounded once more


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", SUMS)
def test_under_autocast_only_the_logits_are_in_half_precision(kind, half):
    inputs, token_weight = heads(torch.float32, tokens=32, vocabulary=2000)
    with torch.autocast("cpu", dtype=half):
        cast, naive = summed(kind, *inputs, token_weight)
        each = linear_kl_per_token(*inputs)
    inputs, token_weight = [part.detach().to(half) for part in inputs], token_weight.detach()
    torch.testing.assert_close(cast, summed(kind, *inputs, token_weight)[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(each, linear_kl_per_token(*inputs), rtol=0, atol=0)
    torch.testing.assert_close(cast, naive, rtol=1e-2, atol=0)


def test_values_per_token_are_differentiated_with_the_logits_that_gave_them():
    (hidden, weight, _, _), token_weight = heads(torch.float32, tokens=64, vocabulary=500)
    tokens = torch.arange(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        each = (linear_token_log_probs(hidden, weight, tokens) * token_weight.detach()).sum()
        total = linear_token_log_probs(hidden, weight, tokens, token_weight=token_weight.detach())
    for first, second in zip(*(torch.autograd.grad(x, [hidden, weight]) for x in (each, total)), strict=True):
        torch.testing.assert_close(first, second)


# -- what is not computed ----------------------------------------------------------------------------------------------


def all_sums(inputs, token_weight):
    tokens = torch.arange(TOKENS) % VOCABULARY
    yield linear_kl(*inputs, token_weight=token_weight)
    yield linear_jensen_shannon(*inputs, token_weight=token_weight)
    yield linear_token_log_probs(*inputs[:2], tokens, token_weight=token_weight)
    yield linear_token_log_probs(*inputs[:2], tokens).sum()


def test_a_second_derivative_is_an_error_and_never_a_number():
    inputs, token_weight = heads()
    for total in all_sums(inputs, token_weight):
        with pytest.raises(InputError, match="create_graph"):
            torch.autograd.grad(total, inputs[0], create_graph=True)

    def penalised(hidden):
        total = linear_kl(hidden, *inputs[1:])
        return total + torch.autograd.grad(total, hidden, create_graph=True)[0].square().sum()

    with pytest.raises(InputError, match="create_graph"):
        penalised(inputs[0]).backward()
    with pytest.raises(InputError, match="create_graph"):
        torch.autograd.functional.hessian(lambda hidden: linear_kl(hidden, *inputs[1:]), inputs[0])


def test_without_gradients_none_is_formed(monkeypatch):
    inputs, token_weight = heads()
    tracked = [total.detach() for total in all_sums(inputs, token_weight)]

    def refuse(*args, **kwargs):
        raise AssertionError("a gradient is formed")

    monkeypatch.setattr(torch.Tensor, "addmm_", refuse)  # the weight's
    monkeypatch.setattr(torch, "zeros_like", refuse)  # where it is gathered
    with torch.no_grad():
        free = list(all_sums(inputs, token_weight))
    torch.testing.assert_close(free, tracked, rtol=0, atol=0)
    with pytest.raises(AssertionError, match="a gradient is formed"):
        linear_kl(*inputs)


def test_the_backward_pass_does_not_wait_for_the_device():
    from torch.utils._python_dispatch import TorchDispatchMode

    read = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                read.append(function)
            return function(*args, **(kwargs or {}))

    inputs, token_weight = heads()
    with Watch():
        linear_kl(*inputs, token_weight=token_weight).backward()
    assert not read


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [linear_kl, linear_jensen_shannon, linear_kl_per_token, linear_token_log_probs])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.0}, "temperature: it is 0.0"),
        ({"temperature": math.nan}, "temperature: it is nan"),
        ({"temperature": math.inf}, "temperature: it is inf"),
        ({"chunk": 0}, "chunk: it is 0"),
    ],
)
def test_bad_options_are_named(function, options, said):
    inputs, _ = heads()
    if function is linear_token_log_probs:
        inputs = [*inputs[:2], torch.arange(TOKENS)]
    with pytest.raises(InputError, match=said):
        function(*inputs, **options)


def test_a_mixture_weight_outside_is_refused():
    inputs, _ = heads()
    for weight in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="weight: it is"):
            linear_jensen_shannon(*inputs, weight=weight)


@pytest.mark.parametrize("function", [linear_kl, linear_jensen_shannon, linear_kl_per_token])
@pytest.mark.parametrize(
    ("place", "shape"),
    [
        (2, (TOKENS + 5, WIDTH_Q)),  # rows beyond those of p
        (2, (1, WIDTH_Q)),  # would be repeated
        (2, (TOKENS, WIDTH_Q + 1)),
        (2, (TOKENS,)),
        (3, (1, WIDTH_Q)),  # would be repeated over the vocabulary: a negative divergence
        (3, (VOCABULARY + 1, WIDTH_Q)),
    ],
)
def test_heads_that_do_not_fit_are_refused(function, place, shape):
    inputs, _ = heads()
    inputs[place] = torch.ones(shape, dtype=torch.float64)
    with unchecked(), pytest.raises(InputError, match=r"hidden states and head weights: .*expected \[tokens"):
        function(*inputs, chunk=3)


@pytest.mark.parametrize("length", [1, TOKENS - 1, TOKENS + 1])
def test_weights_and_tokens_of_another_length_are_refused(length):
    inputs, _ = heads()
    weights, tokens = torch.ones(length, dtype=torch.float64), torch.zeros(TOKENS, dtype=torch.int64)
    calls = {
        "token_weight": [
            lambda: linear_kl(*inputs, token_weight=weights, chunk=3),
            lambda: linear_jensen_shannon(*inputs, token_weight=weights, chunk=3),
            lambda: linear_token_log_probs(*inputs[:2], tokens, token_weight=weights, chunk=3),
        ],
        "tokens": [lambda: linear_token_log_probs(*inputs[:2], tokens.new_zeros(length), chunk=3)],
    }
    for name, functions in calls.items():
        for function in functions:
            with unchecked(), pytest.raises(InputError, match=rf"^{name}: it has shape"):
                function()


# -- memory ------------------------------------------------------------------------------------------------------------


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
