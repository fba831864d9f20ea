"""Gradients written by hand are those of autograd, and the values are those of the plain formula."""

import pytest
import torch
from torch.nn import functional

from sanov.core.errors import InputError
from sanov.nets.fused import gated, root_norm, turned


def drawn(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype, requires_grad=True)


def angles(places, size):
    angle = torch.rand(places, 1, size // 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 7
    return angle, torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)


def test_the_root_norm():
    x, gain = drawn(3, 5, 8), drawn(8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * gain
    torch.testing.assert_close(root_norm(x, gain, 1e-3), expected)
    assert torch.autograd.gradcheck(lambda x, gain: root_norm(x, gain, 1e-3), (x, gain))


def test_turning_is_a_product_of_complex_numbers():
    angle, cos, sin = angles(5, 6)
    x = drawn(5, 2, 6)
    product = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turned(x, cos, sin), torch.cat([product.real, product.imag], -1))
    assert torch.autograd.gradcheck(lambda x: turned(x, cos, sin), (x,))
    assert torch.autograd.gradgradcheck(lambda x: turned(x, cos, sin), (x,))


def test_the_gate():
    gate, up = drawn(4, 6), drawn(3, 4, 6)[0]
    torch.testing.assert_close(gated(gate, up), gate * gate.sigmoid() * up)
    assert torch.autograd.gradcheck(gated, (gate, up))


@pytest.mark.parametrize("function", [lambda x: root_norm(x, x[0].detach(), 1e-5), lambda x: gated(x, x)])
def test_a_second_derivative_is_refused(function):
    x = drawn(3, 4)
    value = function(x).sum()
    with pytest.raises(InputError, match="create_graph"):
        torch.autograd.grad(value, x, create_graph=True)


def test_half_precision_is_left_to_torch():
    x, gain = drawn(3, 8).bfloat16(), drawn(8).bfloat16()
    torch.testing.assert_close(root_norm(x, gain, 1e-5), functional.rms_norm(x, (8,), gain, 1e-5))
