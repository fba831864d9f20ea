"""A small run that tests of the training loop share, in this process and in others: two terms of different counts."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sanov.learning.training import micro_batches, schedule, shuffled, train

ROWS, FEATURES, CLASSES = 36, 6, 3


class Block(nn.Module):
    """A residual layer, which FSDP may shard apart."""

    def __init__(self, width, dropout):
        super().__init__()
        self.linear, self.dropout = nn.Linear(width, width), nn.Dropout(dropout)

    def forward(self, x):
        return x + self.dropout(torch.tanh(self.linear(x)))


class Net(nn.Module):
    """Two heads on a body; a tied, a frozen and an unused layer."""

    _no_split_modules = ("Block",)

    def __init__(self, width=8, dropout=0.0):
        super().__init__()
        self.blocks = nn.ModuleList([Block(FEATURES, dropout), Block(FEATURES, dropout)])
        self.value, self.label = nn.Linear(FEATURES, 2), nn.Linear(FEATURES, CLASSES)
        self.frozen, self.unused = nn.Linear(FEATURES, FEATURES), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.value(x), self.label(self.frozen(x))


def net(seed=0, dropout=0.0):
    """Weights that follow from the seed alone, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(dropout=dropout).double()


def data():
    """Features, targets, and labels that a third of the rows lack."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, FEATURES))
    labels = np.where(np.arange(ROWS) % 3 == 0, -1, np.arange(ROWS) % CLASSES)
    return torch.from_numpy(x), torch.from_numpy(np.sin(x[:, :2])), torch.from_numpy(labels)


def batches_of(batch_size=7, micro_batch=0, seed=0):
    """Micro-batches of the toy's rows, as a function of the step."""
    x, y, labels = data()
    order = shuffled(ROWS, batch_size, seed=seed)

    def batches(step, model):
        for rows in micro_batches(order(step), micro_batch):
            rows = torch.from_numpy(rows)
            counts = {"value": len(rows), "label": int((labels[rows] >= 0).sum())}
            yield {"x": x[rows], "y": y[rows], "labels": labels[rows], "counts": counts}

    return batches


def loss(model, batch):
    """A squared error over all rows, and a cross-entropy over those with a label, whose weight depends on the step."""
    value, logits = model(batch["x"])
    label = nn.functional.cross_entropy(logits, batch["labels"], ignore_index=-1, reduction="sum")
    return {"value": ((value - batch["y"]).square().sum(), 0.7), "label": (label, lambda step: 1 / (1 + step))}


def sgd(weights, lr=0.1):
    """Plain gradient descent."""
    return torch.optim.SGD(weights, lr=lr)


def adam(weights, lr=0.02):
    """An optimizer with a state, whose epsilon is no amplifier of rounding."""
    return torch.optim.AdamW(weights, lr=lr, eps=1e-3)


def run(model=None, batches=None, **options):
    """Train the toy; return the model and the history."""
    model = net() if model is None else model
    defaults = {"optimizer": adam, "steps": 10, "clip_norm": 0.5}
    return model, train(model, batches or batches_of(), options.pop("loss", loss), **(defaults | options))


def vector(model):
    """All weights and buffers in one."""
    return torch.cat([values.detach().flatten().double() for values in model.state_dict().values()])


def random_state():
    """State of the global generators of NumPy and torch; that of Python is used by the checks of types in tests."""
    return np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def long_run(steps, **options):
    """Train with everything that has a state, or draws random numbers; return model, history and what was drawn."""
    drawn = []

    def batches(step, model):
        drawn.append((step, torch.rand(()).item(), np.random.rand()))  # noqa: NPY002
        return batches_of(8, micro_batch=4)(step, model)

    def evaluate(model, updates):
        return {"score": vector(model).sum().item(), "none": float("nan")}

    defaults = {"checkpoint_every": 3, "evaluate": evaluate, "evaluate_every": 2, "keep": 3, "resume": True, "seed": 5}
    model = nn.ModuleDict({"net": net(dropout=0.2), "norm": nn.BatchNorm1d(FEATURES).double()})

    def normed(model, batch):
        return loss(model["net"], {**batch, "x": model["norm"](batch["x"])})

    rate = schedule("cosine", steps, warmup=0.1)
    _, history = run(model, batches, loss=normed, steps=steps, schedule=rate, **(defaults | options))
    return model, history, drawn


def search_path():
    """PYTHONPATH with which another process finds this module."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
