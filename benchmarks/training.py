"""The training loop against a bare loop of PyTorch and against Hugging Face's Trainer, on the same net and data.

All three take the same number of steps with AdamW, a gradient clipped to norm 1 and batches drawn without replacement
in epochs; bare loop and sanov take the same rows in the same order, and their losses are compared. What is timed is a
whole run: making the optimizer (and the Trainer), then all steps, after one run of each that is not timed. Contestants
take turns in one process on one thread; a ratio is taken within a turn, and its median and quartiles over the turns are
reported. `Trainer` writes no logs and no checkpoints here; the bare loop keeps each loss and norm, as sanov does.

Two nets: `small`, 1,004 weights, batches of 32, where only overhead is seen, and `medium`, 669,706 weights, batches of
128, where hardly any is.

Run: ``python benchmarks/training.py [--turns N]``; writes training.json beside it.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from sanov.learning.training import History, shuffled, train

STEPS, SEED, RATE, CLIP = 100, 0, 1e-3, 1.0
LIMIT = 0.5  # seconds that STEPS steps of the small net may cost


@dataclass(frozen=True)
class Task:
    """A net, and rows to fit it to."""

    name: str
    widths: tuple[int, ...]
    rows: int
    batch: int

    def net(self) -> nn.Sequential:
        """Return the net, always with the same weights."""
        torch.manual_seed(SEED)
        pairs = zip(self.widths, self.widths[1:], strict=False)
        layers = [layer for narrow, wide in pairs for layer in (nn.Linear(narrow, wide), nn.Tanh())]
        return nn.Sequential(*layers[:-1])

    def data(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets."""
        generator = torch.Generator().manual_seed(SEED)
        x = torch.randn(self.rows, self.widths[0], generator=generator)
        return x, torch.sin(x[:, : self.widths[-1]])


TASKS = (Task("small", (20, 40, 4), 1024, 32), Task("medium", (784, 512, 512, 10), 2048, 128))


def bare(task: Task) -> list[float]:
    """Return the losses of a loop written by hand."""
    model, (x, y) = task.net(), task.data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    losses, norms, epoch, place = [], [], 0, task.rows
    for _ in range(STEPS):
        if place >= task.rows:
            order = torch.from_numpy(np.random.default_rng([SEED, epoch]).permutation(task.rows))
            epoch, place = epoch + 1, 0
        rows = order[place : place + task.batch]
        place += task.batch
        loss = (model(x[rows]) - y[rows]).square().sum() / len(rows)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        losses.append(loss.item())
    return losses


def ours(task: Task) -> list[float]:
    """Return the losses of `sanov.learning.training.train`."""
    model, (x, y) = task.net(), task.data()
    order = shuffled(task.rows, task.batch, seed=SEED)

    def batches(step: int, model: nn.Module):
        rows = torch.from_numpy(order(step))
        yield {"x": x[rows], "y": y[rows], "counts": {"square": len(rows)}}

    def loss(model: nn.Module, batch: dict):
        return {"square": ((model(batch["x"]) - batch["y"]).square().sum(), 1.0)}

    history: History = train(
        model,
        batches,
        loss,
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=RATE),
        steps=STEPS,
        clip_norm=CLIP,
        seed=SEED,
    )
    return history.losses["square"]


class WithLoss(nn.Module):
    """What `Trainer` trains: a net that returns its loss."""

    def __init__(self, net: nn.Sequential):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean over rows of the squared error."""
        return {"loss": (self.net(x) - labels).square().sum() / len(x)}


def trainer(task: Task) -> list[float]:
    """Train by `transformers.Trainer`; return its mean loss."""
    model, (x, y) = WithLoss(task.net()), task.data()
    rows = [{"x": x[row], "labels": y[row]} for row in range(task.rows)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=task.batch,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.01,
            max_grad_norm=CLIP,
            optim="adamw_torch",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=SEED,
        )
        run = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
        run.remove_callback(transformers.trainer_callback.PrinterCallback)
        return [run.train().training_loss]


CONTESTANTS: dict[str, Callable[[Task], list[float]]] = {"sanov": ours, "bare loop": bare, "Trainer": trainer}


def measure(task: Task, turns: int) -> dict:
    losses = {name: run(task) for name, run in CONTESTANTS.items()}
    np.testing.assert_allclose(losses["sanov"], losses["bare loop"], rtol=1e-4)
    np.testing.assert_allclose(np.mean(losses["sanov"]), losses["Trainer"], rtol=0.1)
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for turn in range(turns):
        for name in np.roll(list(CONTESTANTS), turn):  # so that none always follows the same one
            start = time.perf_counter()
            CONTESTANTS[name](task)
            seconds[name].append(time.perf_counter() - start)
    found = {
        name: {
            "seconds": summary(values),
            "times_as_long_as_bare_loop": ratio(values, seconds["bare loop"]),
            "times_as_long_as_sanov": ratio(values, seconds["sanov"]),
        }
        for name, values in seconds.items()
    }
    return {
        "net": task.name,
        "weights": sum(weight.numel() for weight in task.net().parameters()),
        "batch": task.batch,
        "contestants": found,
    }


def ratio(values: list[float], others: list[float]) -> dict[str, float]:
    return summary([value / other for value, other in zip(values, others, strict=True)])


def summary(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 4), "low": round(low, 4), "high": round(high, 4)}


def table(cells: list[dict]) -> str:
    header = f"{'net':<9}{'weights':>9}{'':>3}{'':<10}{'seconds':>9}{'of bare loop':>26}{'of sanov':>26}"
    lines = [f"{STEPS} steps", header, "-" * len(header)]
    for cell in cells:
        for name, found in cell["contestants"].items():
            line = f"{cell['net']:<9}{cell['weights']:>9,}{'':>3}{name:<10}{found['seconds']['median']:>9.3f}"
            for other in ("bare_loop", "sanov"):
                value = found[f"times_as_long_as_{other}"]
                interval = f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
                line += f"{interval:>26}"
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    cells = [measure(task, turns) for task in TASKS]
    small = cells[0]["contestants"]["sanov"]["seconds"]["median"]
    result = {
        "settings": {"steps": STEPS, "clip_norm": CLIP, "dtype": "float32", "threads": 1, "turns": turns},
        "machine": {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "cells": cells,
        "targets": [{"net": "small", "seconds": small, "wanted": LIMIT, "met": small < LIMIT}],
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(cells))
    print(f"{STEPS} steps of the small net take {small:.3f} s; wanted: less than {LIMIT} s")


if __name__ == "__main__":
    main()
