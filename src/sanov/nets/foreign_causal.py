from sanov.nets.transformer import load_decoder as load_causal, save_decoder as save_causal
