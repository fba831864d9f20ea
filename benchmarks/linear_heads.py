"""Divergences between two language-model heads, a chunk at a time, against the logits written out.

Each call takes hidden states and head weights to a sum over tokens, and its gradients: `sanov` by `sanov.linear_heads`,
`naive` with all logits, `log_softmax` and autograd. The gradients of both are compared. Cases:

- `kl`: KL(teacher || student) by the student's hidden states and head, as in distillation; `kl, both heads`: by both;
- `jensen-shannon`: by the student; `jensen-shannon, both heads`: by both;
- `token log-probabilities, summed`: the weighted sum of log p(token), whose gradients are formed in the forward pass;
- `token log-probabilities, each`: a value per token and a loss of those, so that the logits are computed twice.

Naive and sanov take turns in one process on one thread; a ratio is taken within a turn, and its median and quartiles
over the turns are reported. Memory is the peak of what a call allocates beyond its inputs, less the gradients that it
returns, by PyTorch's own profiler.

Run: ``python benchmarks/linear_heads.py [--turns N]``; writes linear_heads.json beside it.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sanov.linear_heads import linear_jensen_shannon, linear_kl, linear_token_log_probs

TOKENS, WIDTH, VOCABULARY = 2048, 576, 49152
TIME_TARGET, MEMORY_TARGET = 1.0, 1 / 6
GRADIENT_TARGET = 1e-5


class Inputs:
    """A batch: hidden states and heads of teacher and student, the next tokens, and the weight of each."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.teacher, self.student = (torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(2))
        self.teacher_head, self.student_head = (
            0.1 * torch.randn(VOCABULARY, WIDTH, generator=generator) for _ in range(2)
        )
        self.tokens = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
        self.token_weight = torch.rand(TOKENS, generator=generator) / TOKENS

    @property
    def heads(self) -> tuple[Tensor, ...]:
        """All that a divergence of the two heads takes, the teacher first."""
        return self.teacher, self.teacher_head, self.student, self.student_head


def log_probs(hidden: Tensor, head: Tensor) -> Tensor:
    return (hidden @ head.T).log_softmax(-1)


def naive_kl(x: Inputs) -> Tensor:
    log_p, log_q = log_probs(x.teacher, x.teacher_head), log_probs(x.student, x.student_head)
    return torch.dot((log_p.exp() * (log_p - log_q)).sum(-1), x.token_weight)


def naive_jensen_shannon(x: Inputs) -> Tensor:
    log_p, log_q = log_probs(x.teacher, x.teacher_head), log_probs(x.student, x.student_head)
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    return torch.dot((p * (log_p - log_m) + q * (log_q - log_m)).sum(-1) / 2, x.token_weight)


def weighted(function: Callable[..., Tensor]) -> Callable[[Inputs], Tensor]:
    return lambda x: function(*x.heads, token_weight=x.token_weight)


def our_sum(x: Inputs) -> Tensor:
    return linear_token_log_probs(x.student, x.student_head, x.tokens, token_weight=x.token_weight)


def naive_sum(x: Inputs) -> Tensor:
    values = log_probs(x.student, x.student_head).gather(1, x.tokens[:, None])[:, 0]
    return torch.dot(values, x.token_weight)


def our_each(x: Inputs) -> Tensor:
    return torch.dot(linear_token_log_probs(x.student, x.student_head, x.tokens), x.token_weight)


STUDENT, BOTH = ("student", "student_head"), ("teacher", "teacher_head", "student", "student_head")
CASES: dict[str, tuple[Callable[[Inputs], Tensor], Callable[[Inputs], Tensor], tuple[str, ...]]] = {
    "kl": (weighted(linear_kl), naive_kl, STUDENT),
    "kl, both heads": (weighted(linear_kl), naive_kl, BOTH),
    "jensen-shannon": (weighted(linear_jensen_shannon), naive_jensen_shannon, STUDENT),
    "jensen-shannon, both heads": (weighted(linear_jensen_shannon), naive_jensen_shannon, BOTH),
    "token log-probabilities, summed": (our_sum, naive_sum, STUDENT),
    "token log-probabilities, each": (our_each, naive_sum, STUDENT),
}


class Call:
    """Value and gradients of one function of the inputs."""

    def __init__(self, function: Callable[[Inputs], Tensor], inputs: Inputs, asked: tuple[str, ...]):
        self.function, self.inputs, self.asked = function, inputs, asked

    def __call__(self) -> tuple[Tensor, ...]:
        """Forward and backward."""
        leaves = [getattr(self.inputs, name).requires_grad_() for name in self.asked]
        try:
            return torch.autograd.grad(self.function(self.inputs), leaves)
        finally:
            for leaf in leaves:
                leaf.requires_grad_(False)

    def extra_bytes(self) -> int:
        """Most that is allocated at once, less what is returned."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            returned = sum(grad.nbytes for grad in self())
        events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return peak - returned


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(values: list[float], digits: int = 4) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": round(middle, digits), "low": round(low, digits), "high": round(high, digits)}


def difference(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True))


def measure(name: str, inputs: Inputs, turns: int) -> dict[str, object]:
    ours, naive, asked = CASES[name]
    calls = {"sanov": Call(ours, inputs, asked), "naive": Call(naive, inputs, asked)}
    gradient = difference(calls["sanov"](), calls["naive"]())
    memory = {who: call.extra_bytes() for who, call in calls.items()}
    times: dict[str, list[float]] = {who: [] for who in calls}
    for _ in range(turns):
        for who, call in calls.items():
            times[who].append(seconds(call))
    share = spread([a / b for a, b in zip(times["sanov"], times["naive"], strict=True)])
    return {
        "case": name,
        "seconds": {who: spread(values) for who, values in times.items()},
        "time_over_naive": share,
        "extra_mib": {who: round(count / 2**20, 1) for who, count in memory.items()},
        "extra_memory_over_naive": round(memory["sanov"] / memory["naive"], 4),
        "relative_difference_of_gradients": gradient,
        "met": {
            "time": share["median"] <= TIME_TARGET,
            "memory": memory["sanov"] <= MEMORY_TARGET * memory["naive"],
            "gradient": gradient <= GRADIENT_TARGET,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    inputs, cells = Inputs(), []
    for name in arguments.cases:
        cell = measure(name, inputs, arguments.turns)
        cells.append(cell)
        mebibytes, share = cell["extra_mib"], cell["time_over_naive"]
        print(
            f"{name:<33}{cell['seconds']['sanov']['median']:>7.2f} s, {share['median']:.3f} of naive"
            f" [{share['low']:.3f}, {share['high']:.3f}];{mebibytes['sanov']:>7.0f} MiB of {mebibytes['naive']:.0f},"
            f" {cell['extra_memory_over_naive']:.3f}; gradients {cell['relative_difference_of_gradients']:.1e}",
            flush=True,
        )
    tree = {
        "settings": {
            "tokens": TOKENS,
            "width": WIDTH,
            "vocabulary": VOCABULARY,
            "dtype": "float32",
            "threads": 1,
            "turns": arguments.turns,
        },
        "machine": {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "versions": {"torch": torch.__version__},
        "targets": {"time_over_naive": TIME_TARGET, "extra_memory_over_naive": round(MEMORY_TARGET, 4)},
        "cells": cells,
    }
    arguments.out.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
