"""Tokens are laid out and taken back without loss, whatever is padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sanov.nets.layout import layout_of

MASKS = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 6).flatmap(
        lambda tokens: st.lists(st.lists(st.booleans(), min_size=tokens, max_size=tokens), min_size=rows, max_size=rows)
    )
)


@settings(deadline=None)
@given(MASKS, st.booleans())
def test_every_real_token_is_found_again(mask, dense):
    mask = torch.tensor(mask)
    ids = torch.arange(1, mask.numel() + 1).view_as(mask)
    layout = layout_of(ids, mask, dense=dense)
    assert torch.equal(layout.ids[layout.index][mask], ids[mask])
    assert torch.equal(layout.positions[layout.index][mask], (mask.cumsum(1) - 1)[mask])
    rows = layout.spread(layout.ids[:, None].double())[..., 0]
    for row, inside, original in zip(rows, mask, ids, strict=True):
        real = original[inside].double()
        assert torch.equal(row[: len(real)], real)
        assert not row[len(real) :].any()
    assert torch.equal(layout.collect(rows), layout.ids.double())


def test_padding_is_left_out_where_there_is_much():
    mask = torch.tensor([[True] * 8, [True] + [False] * 7])
    ids = torch.arange(16).view(2, 8)
    assert len(layout_of(ids, mask).ids) == 9
    assert len(layout_of(ids, mask, dense=True).ids) == 16
    assert len(layout_of(ids, torch.ones_like(mask)).ids) == 16


@pytest.mark.parametrize("tokens", [3, 8])
def test_gradients_go_there_and_back(tokens):
    mask = torch.zeros(2, tokens, dtype=torch.bool)
    mask[0], mask[1, 1] = True, True
    layout = layout_of(torch.zeros(2, tokens, dtype=torch.int64), mask)
    x = torch.randn(
        len(layout.ids), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    y = torch.randn(2, tokens, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    for function, at in ((layout.spread, x), (layout.collect, y)):
        assert torch.autograd.gradcheck(function, (at,))
        assert torch.autograd.gradgradcheck(function, (at,))
