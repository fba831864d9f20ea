"""The small denoising networks: shapes, what they are told, and that they learn."""

import pytest
import torch

from sanov.core.errors import InputError
from sanov.nets.denoiser import Denoiser, DenoiserShape

KINDS = {
    "mlp": DenoiserShape(1, 8, 8, classes=3, units=16, depth=2),
    "unet": DenoiserShape(2, 8, 4, classes=3, kind="unet", units=8, depth=1),
}
every_kind = pytest.mark.parametrize("shape", KINDS.values(), ids=KINDS)
T = torch.tensor([0.1, 0.5, 1.0])


def inputs(shape):
    return torch.randn(3, *shape.event, generator=torch.Generator().manual_seed(0))


@every_kind
def test_output_is_an_image_and_depends_on_all_it_is_told(shape):
    model, x = Denoiser(shape, seed=0), inputs(shape)
    labels = torch.tensor([0, 1, 2])
    found = model(x, T, labels)
    assert found.shape == x.shape
    assert torch.equal(model(x, T), model(x, T, torch.full((3,), 3)))
    for other in (model(x, T), model(x, T.flip(0), labels), model(x.flip(0), T, labels)):
        assert not torch.allclose(other[0], found[0], atol=1e-6)
    alone = model(x[1:2], T[1:2], labels[1:2])
    torch.testing.assert_close(alone, found[1:2], rtol=1e-4, atol=1e-5)


@every_kind
def test_weights_follow_from_the_seed_and_touch_no_other_random_state(shape):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = Denoiser(shape, seed=1), Denoiser(shape, seed=1), Denoiser(shape, seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


@every_kind
def test_every_weight_has_a_gradient(shape):
    model = Denoiser(shape, seed=0)
    model(inputs(shape), T, torch.tensor([0, 1, 3])).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(InputError, match=r"images of 9 x 8 .* divisible by 4.* kind mlp"):
        Denoiser(DenoiserShape(1, 9, 8, kind="unet"))
