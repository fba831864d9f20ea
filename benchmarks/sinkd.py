"""A step of distillation with the transport loss: sanov, the paper's rounds written plainly, and POT inside the loss.

A step is: the student's forward pass, CE + KL + transport, the backward pass, AdamW. The student is a multilayer
perceptron with one hidden layer of 128 units on 64 features. All take 20 rounds at epsilon 0.1 with the 1-norm:

- `plain`: exp(-D / epsilon) whose rows and columns are divided by their sums in turn, gradients by autograd through the
  rounds (the form of the paper's equations, in PyTorch);
- `POT`: ``ot.sinkhorn`` of its PyTorch backend on the same cost, gradients by autograd through its rounds;
- `sanov`: the default, through the rounds as well; `sanov, envelope`: the plan as a constant;
- `no transport`: CE + KL alone, what a step costs anyhow.

Plain and sanov's default are the same function: their losses and gradients are compared. Contestants take turns in one
process on one thread; a ratio is taken within a turn, and its median and quartiles over the turns are reported. Memory
is the peak of what a step allocates beyond what was there before it, by PyTorch's own profiler.

Run: ``python benchmarks/sinkd.py [--turns N]``; writes sinkd.json beside it.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import ot
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from sanov.systems.sinkd import sinkhorn_loss

EPSILON, ROUNDS, TEMPERATURE, WEIGHT, FEATURES, WIDTH = 0.1, 20, 2.0, 0.5, 64, 128
SIZES = [(32, 2), (32, 10), (128, 10), (512, 2), (512, 10), (512, 100)]
TURN_SECONDS = 0.02  # a contestant repeats its step within a turn for about this long
OURS = "sanov"


def clouds(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return torch.softmax(student / TEMPERATURE, -1), torch.softmax(teacher / TEMPERATURE, -1)


def plain(student: Tensor, teacher: Tensor) -> Tensor:
    cost = torch.cdist(*clouds(student, teacher), p=1)
    kernel = torch.exp(-cost / EPSILON)
    for _ in range(ROUNDS):
        kernel = kernel / kernel.sum(1, keepdim=True)
        kernel = kernel / kernel.sum(0, keepdim=True)
    return (kernel * cost).sum() / len(student)


def pot(student: Tensor, teacher: Tensor) -> Tensor:
    cost = torch.cdist(*clouds(student, teacher), p=1)
    even = torch.full((len(student),), 1 / len(student))
    plan = ot.sinkhorn(even, even, cost, EPSILON, method="sinkhorn", numItermax=ROUNDS, stopThr=0.0, warn=False)
    return (plan * cost).sum()


def ours(gradient: str) -> Callable[[Tensor, Tensor], Tensor]:
    def transport(student: Tensor, teacher: Tensor) -> Tensor:
        options = {"epsilon": EPSILON, "iterations": ROUNDS, "temperature": TEMPERATURE, "gradient": gradient}
        return sinkhorn_loss(student, teacher, **options).value

    return transport


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    OURS: ours("unroll"),
    "sanov, envelope": ours("envelope"),
    "plain": plain,
    "POT": pot,
    "no transport": None,
}


class Step:
    """A step of one contestant, on a batch that is the same for all."""

    def __init__(self, transport: Callable[[Tensor, Tensor], Tensor] | None, rows: int, classes: int):
        generator = torch.Generator().manual_seed(0)
        self.transport = transport
        self.inputs = torch.randn(rows, FEATURES, generator=generator)
        self.labels = torch.randint(classes, (rows,), generator=generator)
        noise = torch.randn(rows, classes, generator=generator)
        self.teacher = 6 * nn.functional.one_hot(self.labels, classes) + noise
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def loss(self) -> Tensor:
        """Return CE + KL, with transport where the contestant has one."""
        logits = self.model(self.inputs)
        target = torch.softmax(self.teacher / TEMPERATURE, -1)
        by_row = -(target * torch.log_softmax(logits / TEMPERATURE, -1)).sum(-1).mean()
        total = 0.5 * cross_entropy(logits, self.labels) + 0.5 * by_row
        return total if self.transport is None else total + WEIGHT * self.transport(logits, self.teacher)

    def __call__(self) -> None:
        """Take the step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def gradient(self) -> Tensor:
        """Return the gradient of the loss in all weights."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(self.loss(), list(self.model.parameters()))])

    def peak_bytes(self) -> int:
        """Most that is allocated at once by a step, beyond what was there."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            self()
        events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return peak


def seconds(step: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def take_turns(steps: dict[str, Step], turns: int) -> dict[str, list[float]]:
    calls = {
        name: max(1, round(TURN_SECONDS / min(seconds(step, 1) for _ in range(3)))) for name, step in steps.items()
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            step()  # finds the caches as the one before left them, and is not counted
            times[name].append(seconds(step, calls[name]))
    return times


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def measure(rows: int, classes: int, turns: int) -> dict[str, object]:
    steps = {name: Step(transport, rows, classes) for name, transport in LOSSES.items()}
    reference, own = steps["plain"].gradient(), steps[OURS].gradient()
    value = {name: step.loss().item() for name, step in steps.items()}
    times = take_turns(steps, turns)
    memory = {name: step.peak_bytes() for name, step in steps.items()}
    return {
        "rows": rows,
        "classes": classes,
        "relative_difference_from_plain": {
            "loss": abs(value[OURS] - value["plain"]) / value["plain"],
            "gradient": ((own - reference).norm() / reference.norm()).item(),
        },
        "steps": {
            name: {
                "milliseconds": spread([1e3 * t for t in times[name]]),
                "times_as_long_as_sanov": spread([a / b for a, b in zip(times[name], times[OURS], strict=True)]),
                "peak_kib": round(memory[name] / 1024, 1),
                "times_the_memory_of_sanov": round(memory[name] / memory[OURS], 3),
            }
            for name in steps
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = []
    for rows, classes in SIZES:
        cells.append(measure(rows, classes, arguments.turns))
        print(f"{rows} rows, {classes} classes")
        for name, found in cells[-1]["steps"].items():
            print(
                f"  {name:<16}{found['milliseconds']['median']:>9.3f} ms  x {found['times_as_long_as_sanov']['median']:.2f}"
                f"{found['peak_kib']:>12.0f} KiB  x {found['times_the_memory_of_sanov']:.2f}"
            )
    tree = {
        "settings": {"epsilon": EPSILON, "rounds": ROUNDS, "dtype": "float32", "threads": 1, "turns": arguments.turns},
        "machine": {"machine": platform.machine(), "python": platform.python_version()},
        "versions": {"torch": torch.__version__, "POT": version("POT")},
        "cells": cells,
    }
    arguments.out.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
