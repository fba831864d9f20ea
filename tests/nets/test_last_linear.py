"""What the last linear layer reads: found in networks of several forms, and nowhere else."""

import pytest
import torch
from torch import nn

from sanov.nets.last_linear import LastLinear, logits_of

torch.manual_seed(0)
INPUTS = torch.randn(5, 4)


def layers(*more):
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), *more).eval()


def checked(watched, *args, **kwargs):
    logits, embeddings = watched(*args, **kwargs)
    weight, bias = (torch.from_numpy(x).float() for x in watched.head())
    assert weight.shape == (embeddings.shape[1], logits.shape[1])
    torch.testing.assert_close(embeddings @ weight + bias, logits, rtol=1e-5, atol=1e-5)
    return embeddings


def test_a_perceptron():
    model = layers()
    watched = LastLinear(model)
    for rows in (INPUTS, INPUTS[:2]):  # the second pass watches the layer that the first one found
        assert torch.equal(checked(watched, rows), torch.relu(model[0](rows)))
    assert not any(module._forward_hooks for module in model.modules())


def test_of_equal_layers_the_last_counts():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3, bias=False)).eval()
    assert torch.equal(checked(LastLinear(model), INPUTS[:, :3]), torch.tanh(model[0](INPUTS[:, :3])))


@pytest.mark.parametrize("last", [nn.LogSoftmax(dim=-1), nn.Tanh(), nn.LayerNorm(3)], ids=str)
def test_logits_that_no_linear_layer_gave(last):
    watched = LastLinear(layers(last))
    logits, embeddings = watched(INPUTS)
    assert embeddings is None
    assert watched.head() is None
    assert torch.equal(logits, watched.model(INPUTS))


def test_without_a_linear_layer_of_the_classes():
    logits, embeddings = LastLinear(nn.Tanh())(INPUTS)
    assert (logits.shape, embeddings) == ((5, 4), None)


def test_no_gradient_is_kept():
    assert not LastLinear(layers())(INPUTS)[0].requires_grad


def test_half_precision():
    """Logits are formed anew, for bfloat16 rounds them by up to 0.4 %."""
    model = layers().bfloat16()
    logits, embeddings = LastLinear(model)(INPUTS.bfloat16())
    assert logits.dtype == torch.float32
    expected = embeddings.double() @ model[2].weight.double().T + model[2].bias.double()
    torch.testing.assert_close(logits.double(), expected, rtol=1e-6, atol=1e-6)


def test_a_decoder_reads_every_token():
    transformers = pytest.importorskip("transformers", reason="the extra `language` is not installed")
    settings = {
        "vocab_size": 9,
        "n_positions": 8,
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "num_labels": 3,
        "pad_token_id": 0,
    }
    model = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**settings)).eval()
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 0, 0, 0]])
    mask = (ids > 0).long()
    found = checked(LastLinear(model), input_ids=ids, attention_mask=mask)
    hidden = model.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, hidden[torch.arange(3), mask.sum(dim=1) - 1])


def test_logits_among_the_outputs_of_models():
    class Outputs:
        logits = INPUTS

    for outputs in (INPUTS, Outputs(), {"logits": INPUTS}, (INPUTS, None)):
        assert logits_of(outputs) is INPUTS
    with pytest.raises(TypeError, match="without logits"):
        logits_of({"hidden": INPUTS})
