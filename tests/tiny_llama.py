"""Causal language models small enough to be made in a test, and a tokenizer for them."""

import torch

VOCABULARY = 24
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def make(config):
    """A random model of a configuration of transformers, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:  # gains of one and biases of zero would hide what is done with them
                torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model


def llama(**settings):
    """A random Llama of transformers."""
    from transformers import LlamaConfig

    return make(LlamaConfig(**{**SIZES, **settings}))


def save_tokenizer(folder):
    """Write a tokenizer of one token a word: w2 ... w23, <pad> and <eos>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, **{f"w{number}": number for number in range(2, VOCABULARY)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)


def save(model, folder, **settings):
    """Write a model of transformers and a tokenizer, without its reports on the screen."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder, **settings)
    save_tokenizer(folder)
    return folder
