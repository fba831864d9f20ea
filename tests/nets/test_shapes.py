"""What a configuration file says of a decoder, and what it says that the decoder cannot do."""

import json

import pytest
import torch

from sanov.core.errors import InputError
from sanov.nets.shapes import RopeScaling, Shape, config_of, rope_frequencies, shape_of, strange

PLAIN = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


@pytest.mark.parametrize(
    "shape",
    [
        Shape(vocabulary=10, width=8, layers=1, heads=2, mlp=12),
        Shape(
            vocabulary=10,
            width=8,
            layers=3,
            heads=4,
            mlp=12,
            kv_heads=2,
            head_width=6,
            context=99,
            tied=True,
            rope_theta=500.0,
            rope_scaling=RopeScaling(factor=4.0, low=1.0, high=2.0, context=16),
            norm_eps=1e-6,
            attention_bias=True,
        ),
    ],
)
def test_a_shape_survives_its_file(shape):
    config = json.loads(json.dumps(config_of(shape, {"eos_token_id": 3}, "float32")))
    again = shape_of(config, "here")
    assert (again.key_heads, again.per_head) == (shape.key_heads, shape.per_head)
    plain = ("vocabulary", "width", "layers", "heads", "mlp", "context", "tied", "norm_eps", "attention_bias")
    for name in (*plain, "rope_theta", "rope_scaling"):
        assert getattr(again, name) == getattr(shape, name)
    assert (config["eos_token_id"], config["pad_token_id"]) == (3, None)


def test_what_is_left_out_is_what_transformers_takes():
    transformers = pytest.importorskip("transformers", reason="the extra `language` is not installed")
    ours, theirs = shape_of(PLAIN, "here"), transformers.LlamaConfig(**{k: v for k, v in PLAIN.items() if "_" in k})
    assert ours.key_heads == theirs.num_key_value_heads
    assert ours.per_head == theirs.head_dim
    assert ours.context == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert (ours.tied, ours.attention_bias) == (theirs.tie_word_embeddings, theirs.attention_bias)


def test_every_key_that_transformers_writes_for_a_llama_is_known():
    transformers = pytest.importorskip("transformers", reason="the extra `language` is not installed")
    assert strange({**transformers.LlamaConfig().to_dict(), "architectures": ["LlamaForCausalLM"]}) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("sliding_window", 16),
        ("attention_dropout", 0.1),
        ("use_qk_norm", True),
        ("model_type", "mistral"),
        ("architectures", ["LlamaForSequenceClassification"]),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        ("partial_rotary_factor", 0.5),
        ("quantization_config", {"bits": 4}),
        ("num_experts", 8),
        ("residual_multiplier", 0.22),
    ],
)
def test_what_the_decoder_does_not_have_is_named(key, value):
    assert len(strange({**PLAIN, key: value})) == 1
    with pytest.raises(InputError, match=f"here: the model has {key} = .*expected a plain Llama decoder.*load_causal"):
        shape_of({**PLAIN, key: value}, "here")


def test_sizes_that_are_missing_or_do_not_fit():
    with pytest.raises(InputError, match="there is no number hidden_size"):
        shape_of({key: value for key, value in PLAIN.items() if key != "hidden_size"}, "here")
    scaling = {"rope_type": "llama3", "factor": 8.0}
    with pytest.raises(InputError, match="lacks low_freq_factor, high_freq_factor"):
        shape_of({**PLAIN, "rope_scaling": scaling}, "here")
    with pytest.raises(InputError, match="3 heads do not share 2 heads"):
        Shape(vocabulary=4, width=6, layers=1, heads=3, mlp=4, kv_heads=2)
    with pytest.raises(InputError, match="even number"):
        Shape(vocabulary=4, width=6, layers=1, heads=2, mlp=4)
    with pytest.raises(InputError, match="layers: it is 0"):
        Shape(vocabulary=4, width=8, layers=0, heads=2, mlp=4)


@pytest.mark.parametrize("theta", [100.0, 10_000.0, 5e5])
def test_frequencies_are_those_of_transformers(theta):
    transformers = pytest.importorskip("transformers", reason="the extra `language` is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = transformers.LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=rope)
    expected, factor = ROPE_INIT_FUNCTIONS["llama3"](config)
    assert factor == 1
    sizes = {"vocabulary": 4, "width": 128, "layers": 1, "heads": 2, "mlp": 4}
    shape = Shape(**sizes, rope_theta=theta, rope_scaling=RopeScaling(context=64))
    torch.testing.assert_close(rope_frequencies(shape), expected, rtol=1e-6, atol=0)
    assert not torch.allclose(rope_frequencies(shape), rope_frequencies(Shape(**sizes, rope_theta=theta)))
