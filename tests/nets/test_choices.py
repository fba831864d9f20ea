"""Tokens are chosen with the probabilities that they should have, and never where they should not."""

import numpy as np
import pytest
import torch
from scipy import stats

from sanov.core.errors import InputError
from sanov.nets.choices import Choice

GRID = 100_000


def drawn(vocabulary=8, rows=1, seed=0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 1.5


def shares(choice, logits, count=GRID):
    """Share of each token where the uniform numbers are an even grid: its probability, to one part of the grid."""
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, _ = choice(logits.expand(count, -1), uniforms)
    return torch.bincount(tokens, minlength=logits.shape[1]).double() / count


def test_random_numbers_give_the_softmax():
    logits = drawn()
    uniforms = torch.rand(GRID, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, probs = Choice()(logits.expand(GRID, -1), uniforms)
    expected = logits[0].double().softmax(-1)
    assert stats.chisquare(np.bincount(tokens, minlength=8), expected.numpy() * GRID).pvalue > 1e-3
    torch.testing.assert_close(probs.double(), expected[tokens], rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_an_even_grid_gives_the_softmax(temperature):
    expected = (drawn()[0].double() / temperature).softmax(-1)
    assert (shares(Choice(temperature), drawn()) - expected).abs().max() < 2 / GRID


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(3, 1.0), (0, 0.8), (0, 0.3), (4, 0.7), (1, 1.0), (100, 1.0), (0, 1e-9), (8, 0.95)]
)
def test_cuts_are_those_of_transformers(top_k, top_p):
    pytest.importorskip("transformers", reason="the extra `language` is not installed")
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    for seed in range(5):
        warped = logits = drawn(seed=seed)
        if top_k:
            warped = TopKLogitsWarper(top_k)(None, warped)
        if top_p < 1:
            warped = TopPLogitsWarper(top_p)(None, warped)
        choice = Choice(top_k=top_k, top_p=top_p)
        assert (shares(choice, logits, 10_000) - warped[0].double().softmax(-1)).abs().max() < 2e-4
        _, probs = choice(logits, torch.tensor([0.5], dtype=torch.float64))
        assert (probs - logits[0].softmax(-1)).abs().min() < 1e-6  # that of before the cuts


def test_a_share_that_is_met_exactly_is_enough():
    """As in transformers: of two equal tokens the first alone makes up one half."""
    assert shares(Choice(top_p=0.5), torch.zeros(1, 2)).tolist() == [1.0, 0.0]


def test_suppressed_tokens_never_appear():
    """Not even at the ends of the unit interval, and however much the model prefers them."""
    logits = torch.tensor([[30.0, 0.0, 29.0, -1.0, 31.0]])
    choice = Choice(suppress=(0, 2, 4))
    expected = torch.tensor([0.0, 1.0, -torch.inf, -1.0, 0.0])[[1, 1, 1, 1, 1]]
    found = shares(choice, logits)
    assert not found[[0, 2, 4]].any()
    expected = torch.tensor([0.0, -1.0], dtype=torch.float64).softmax(-1)
    assert (found[[1, 3]] - expected).abs().max() < 2 / GRID
    ends = torch.tensor([0.0, 1e-300, 1 - 2.0**-53, 1.0], dtype=torch.float64)
    tokens, _ = choice(logits.expand(4, -1), ends)
    assert tokens.tolist() == [1, 1, 3, 3]
    assert Choice(0.0, suppress=(4,))(logits, ends[:1])[0].tolist() == [0]


def test_a_token_of_no_probability_is_not_chosen_at_the_ends():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 1.0, -torch.inf]])
    ends = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert Choice()(logits.expand(3, -1), ends)[0].tolist() == [1, 3, 3]


def test_the_likeliest_at_temperature_0():
    logits = drawn(rows=20)
    tokens, probs = Choice(0.0)(logits, torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(probs, logits.softmax(-1).amax(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature: it is -0.1"),
        ({"temperature": float("nan")}, "temperature: it is nan"),
        ({"temperature": float("inf")}, "temperature: it is inf"),
        ({"top_p": 0.0}, "top_p: it is 0.0"),
        ({"top_p": 1.1}, "top_p: it is 1.1"),
        ({"top_k": -1}, "top_k: it is -1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        Choice(**options)


def test_what_could_never_be_sampled():
    with pytest.raises(InputError, match="cannot suppress EOS: rollouts would never end"):
        Choice(suppress=(3, 1)).check(1, 8)
    with pytest.raises(InputError, match="there is no token 8; expected 0 to 7"):
        Choice(suppress=(3, 8)).check(1, 8)
    with pytest.raises(InputError, match="all tokens are suppressed"):
        Choice(suppress=(0, 1)).check(5, 2)
    Choice(suppress=(3,)).check(1, 8)
