"""One transport loss with its gradient: ours against the released formulation written out, and against POT.

Turn by turn in one process, one thread, float32; the ratio is the time of the peer divided by ours.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import ot
import torch

from sanov.systems.sinkd import sinkhorn_loss

ROUNDS, EPSILON, TEMPERATURE, REPEATS = 20, 0.1, 2.0, 21


def ours(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return sinkhorn_loss(student, teacher, epsilon=EPSILON, iterations=ROUNDS, temperature=TEMPERATURE).value


def written_out(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    p, q = torch.softmax(student / TEMPERATURE, -1), torch.softmax(teacher / TEMPERATURE, -1)
    cost = (p[:, None] - q[None]).abs().sum(-1)
    plan = torch.exp(-cost / EPSILON)
    for _ in range(ROUNDS):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * cost).sum() / len(student)


def with_pot(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    p, q = torch.softmax(student / TEMPERATURE, -1), torch.softmax(teacher / TEMPERATURE, -1)
    cost = torch.cdist(p, q, p=1)
    uniform = torch.full((len(p),), 1 / len(p))
    options = {"numItermax": ROUNDS, "stopThr": 0.0, "warn": False}
    plan = ot.sinkhorn(uniform, uniform, cost, EPSILON, method="sinkhorn_log", **options)
    return (plan * cost).sum()


def seconds(function, student: torch.Tensor, teacher: torch.Tensor) -> float:
    start = time.perf_counter()
    function(student, teacher).backward()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for batch in (32, 128, 512):
        for classes in (2, 10):
            generator = torch.Generator().manual_seed(0)
            student = (3 * torch.randn(batch, classes, generator=generator)).requires_grad_()
            teacher = 3 * torch.randn(batch, classes, generator=generator)
            peers = {"written out": written_out, "POT sinkhorn_log": with_pot}
            taken: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
            for _ in range(REPEATS):
                for name, function in {"ours": ours, **peers}.items():
                    taken[name].append(seconds(function, student, teacher))
            median = {name: statistics.median(values[1:]) for name, values in taken.items()}
            row = {"batch": batch, "classes": classes, "ours_ms": round(1e3 * median["ours"], 3)}
            row |= {f"ratio to {name}": round(median[name] / median["ours"], 2) for name in peers}
            rows.append(row)
            print(row)
    told = {"torch": torch.__version__, "threads": 1, "repeats": REPEATS, "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
