"""What is read off hidden states is what the log-softmax of all logits would give, and nothing more is computed."""

import pytest
import torch

from sanov.core.errors import InputError
from sanov.nets import reads as module
from sanov.nets.reads import Read, read_logits, read_off

ROWS, TOKENS, WIDTH, VOCABULARY = 3, 5, 4, 7


@pytest.fixture(params=["held", "chunked"])
def either_way(request, monkeypatch):
    """Both sides of the border between small and large vocabularies."""
    monkeypatch.setattr(module, "HELD", 10**6 if request.param == "held" else 0)


def drawn(*, grad=False):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, TOKENS, WIDTH, generator=generator, dtype=torch.float64, requires_grad=grad)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64, requires_grad=grad)
    at = torch.rand(2, ROWS, TOKENS, generator=generator) < 0.5
    tokens = torch.randint(VOCABULARY, (int(at[0].sum()),), generator=generator)
    return hidden, weight, at, tokens


def reads_of(at, tokens):
    return {"policy": Read(at[0], tokens), "hot": Read(at[0], tokens, 2.0), "logits": Read(at[1], temperature=0.5)}


def plain(hidden, weight, at, tokens):
    logits = torch.einsum("rtw,vw->rtv", hidden, weight)
    index = torch.arange(len(tokens))
    return {
        "policy": logits[at[0]].log_softmax(-1)[index, tokens],
        "hot": (logits[at[0]] / 2).log_softmax(-1)[index, tokens],
        "logits": logits[at[1]] * 2,
    }


@pytest.mark.usefixtures("either_way")
def test_reads_and_their_gradients_are_those_of_all_logits():
    found, expected = read_off(*drawn()[:2], reads_of(*drawn()[2:])), plain(*drawn())
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)
    gradients = []
    for way in (lambda h, w, a, t: read_off(h, w, reads_of(a, t)), plain):
        hidden, weight, at, tokens = drawn(grad=True)
        loss = sum(
            (number + 1) * values.square().sum()
            for number, values in enumerate(way(hidden, weight, at, tokens).values())
        )
        gradients.append(torch.autograd.grad(loss, (hidden, weight)))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_logits_of_all_tokens_give_the_same():
    hidden, weight, at, tokens = drawn()
    reads = reads_of(at, tokens)
    found = read_logits(hidden @ weight.T, reads)
    for name, values in read_off(hidden, weight, reads).items():
        torch.testing.assert_close(found[name], values)


@pytest.mark.usefixtures("either_way")
def test_states_that_no_read_asks_for_do_not_matter():
    hidden, weight, at, tokens = drawn()
    hidden[~at.any(dim=0)] = torch.nan
    assert all(values.isfinite().all() for values in read_off(hidden, weight, reads_of(at, tokens)).values())


@pytest.mark.usefixtures("either_way")
def test_half_precision_is_read_in_single():
    hidden, weight, at, tokens = drawn()
    for values in read_off(hidden.bfloat16(), weight.bfloat16(), reads_of(at, tokens)).values():
        assert values.dtype == torch.float32


@pytest.mark.usefixtures("either_way")
def test_a_read_of_no_place_is_empty():
    hidden, weight, at, tokens = drawn()
    nowhere = torch.zeros_like(at[0])
    found = read_off(hidden, weight, {"none": Read(nowhere, tokens[:0]), "logits": Read(nowhere)})
    assert found["none"].shape == (0,)
    assert found["logits"].shape == (0, VOCABULARY)


def test_reads_that_do_not_fit():
    hidden, weight, at, tokens = drawn()
    with pytest.raises(InputError, match=f"the read 'a': 1 tokens are asked for at {len(tokens)} places"):
        read_off(hidden, weight, {"a": Read(at[0], tokens[:1])})
    with pytest.raises(InputError, match=r"the read 'a': the places are of \[3, 4\].*expected \[3, 5\]"):
        read_off(hidden, weight, {"a": Read(at[0][:, 1:])})
    with pytest.raises(InputError, match="nothing is to be read"):
        read_off(hidden, weight, {})
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="expected a positive number"):
            Read(at[0], temperature=temperature)
