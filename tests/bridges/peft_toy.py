"""Networks of a few hundred weights with layers of every kind, and the same adapter as LoRA and as NOLA."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from sanov.bridges.peft import NolaConfig, register

METHODS = ("lora", "nola")


class Block(nn.Module):
    """Two linear layers, as blocks of transformers have them."""

    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """Token ids in, logits of a classifier out: an embedding, a convolution, a Conv1D, linear layers and a head."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.patch = nn.Conv2d(1, 4, (3, 2), stride=(1, 2), padding=1)
        self.mix = Conv1D(5, 4)
        self.layers = nn.ModuleList([Block(5), Block(5)])
        self.head = nn.Linear(5, 3)

    def forward(self, ids):
        x = self.patch(self.tokens(ids)[:, None]).mean(-1).transpose(1, 2)
        x = self.mix(x.contiguous())
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


LINEAR = ["up", "down"]
EVERY = ["tokens", "patch", "mix", "up", "down", "head"]
IDS = torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(0))


def net(kind=Net, dtype=torch.float32):
    """The same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().to(dtype).eval()


def config(method="nola", **options):
    """An adapter that is not zero at the start, unless it is said otherwise."""
    shared = {"target_modules": LINEAR, "r": 2, **options}
    start = shared.pop("init", False)
    if method == "lora":
        if (bias := shared.get("bias", "none")) != "none":
            shared["bias"] = bias.replace("nola", "lora")
        return LoraConfig(init_lora_weights=start, lora_alpha=3, **shared)
    register()
    return NolaConfig(init_weights=start, **{"nola_alpha": 3.0, "num_basis_a": 5, "num_basis_b": 4, **shared})


def adapted(method="nola", model=None, name="default", **options):
    """A network with an adapter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return get_peft_model(net() if model is None else model, config(method, **options), name).eval()


def add(model, name, method="nola", **options):
    """Add an adapter of another seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model.add_adapter(name, config(method, **({"seed": 1} if method == "nola" else {}), **options))


def output(model, ids=IDS):
    """Logits, without gradients."""
    with torch.no_grad():
        return model(ids)
