"""What subclasses cost: finding them, beside scikit-learn's PCA by class, and a training step, beside plain distillation.

Finding: embeddings and a head of two classes go in, log p(s | c) of every row and class comes out. `scikit-learn` takes the
head's directions out by NumPy, fits ``PCA(subclasses)`` to each class, rotates, projects, and takes SciPy's log-softmax; the
two agree up to the signs of directions, which the rotation `none` leaves to see (they are compared in absolute value).

A step: forward pass of a multilayer perceptron (64 features, one hidden layer of 128), loss, backward pass, AdamW, for plain
distillation of two classes and for S subclasses of each.

Contestants take turns in one process on one thread; a ratio is taken within a turn, and its median and quartiles over the
turns are reported. Memory is what the process holds at most beyond what it held before, in a process of its own.

Run: ``python benchmarks/lelp.py [--turns N]``; writes lelp.json beside it.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch
from scipy.special import log_softmax
from sklearn.decomposition import PCA
from torch import nn

from sanov.learning.components import Rows
from sanov.learning.readout import Readout
from sanov.learning.subclasses import components
from sanov.systems.lelp import project

CLASSES, SUBCLASSES, TEMPERATURE = 2, 4, 0.3
SIZES = [(5_000, 384), (50_000, 384), (10_000, 1_024)]
STEPS = [(64, 2), (64, 4), (64, 8), (512, 4)]
CALLS = 100


def data(rows: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return embeddings that vary less and less from direction to direction, classes, and a head."""
    generator = np.random.default_rng(0)
    embeddings = generator.standard_normal((rows, width)) / np.sqrt(np.arange(1, width + 1))
    return embeddings, np.arange(rows) % CLASSES, generator.standard_normal((width, CLASSES))


def ours(embeddings: np.ndarray, members: np.ndarray, head: np.ndarray) -> np.ndarray:
    found = project(embeddings, members, ("a", "b"), subclasses=SUBCLASSES, head=head, rotation="none", scale=False)
    return found.log_conditional(embeddings, TEMPERATURE)


def coordinates(embeddings: np.ndarray, members: np.ndarray, head: np.ndarray) -> np.ndarray:
    q = np.linalg.qr(head)[0]
    rest = embeddings - (embeddings @ q) @ q.T
    found = [PCA(SUBCLASSES, svd_solver="covariance_eigh").fit(rest[members == c]) for c in range(CLASSES)]
    return np.stack([pca.transform(rest) for pca in found], axis=1)


def theirs(embeddings: np.ndarray, members: np.ndarray, head: np.ndarray) -> np.ndarray:
    return log_softmax(coordinates(embeddings, members, head) / TEMPERATURE, axis=-1)


def peak(work: Callable[..., np.ndarray], rows: int, width: int) -> int:
    """Bytes that a process holds at most beyond what it held with its data."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (work, rows, width))


def _peak(work: Callable[..., np.ndarray], rows: int, width: int) -> int:
    torch.set_num_threads(1)
    work(*data(200, 16))  # what is loaded at the first call is not counted
    given = data(rows, width)
    process, seen, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.001):
            seen[0] = max(seen[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work(*given)
    done.set()
    watcher.join()
    return max(seen[0] - before, 0)


def seconds(work: Callable[[], object], calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def finding(rows: int, width: int, turns: int) -> dict[str, object]:
    given = data(rows, width)
    found = project(*given[:2], ("a", "b"), subclasses=SUBCLASSES, head=given[2], rotation="none", scale=False)
    gap = np.abs(np.abs(found.coordinates(given[0])) - np.abs(coordinates(*given))).max()
    times: dict[str, list[float]] = {"sanov": [], "scikit-learn": []}
    for _ in range(turns):
        for name, work in (("sanov", ours), ("scikit-learn", theirs)):
            times[name].append(seconds(lambda work=work: work(*given)))
    memory = {"sanov": peak(ours, rows, width), "scikit-learn": peak(theirs, rows, width)}
    return {
        "rows": rows,
        "width": width,
        "largest_difference": float(gap),
        "milliseconds": {name: spread([1e3 * t for t in values]) for name, values in times.items()},
        "scikit_learn_takes_times": spread([b / a for a, b in zip(*times.values(), strict=True)]),
        "peak_mib": {name: round(value / 2**20, 1) for name, value in memory.items()},
    }


class Step:
    """A training step on one batch."""

    def __init__(self, rows: int, subclasses: int):
        generator = torch.Generator().manual_seed(0)
        readout = Readout(CLASSES, subclasses, temperature=4.0)
        self.terms = components(readout)[1 : 2 + (subclasses > 1)]
        self.inputs = torch.randn(rows, 64, generator=generator)
        divided = torch.log_softmax(torch.randn(rows, CLASSES, subclasses, generator=generator), dim=-1)
        labels = torch.zeros(rows, dtype=torch.int64)
        self.rows = Rows(torch.randn(rows, CLASSES, generator=generator), labels, extras={"subclasses": divided})
        self.model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, readout.outputs))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def __call__(self) -> None:
        """Take the step."""
        self.optimizer.zero_grad()
        outputs = self.model(self.inputs)
        sum(term.loss(outputs, self.rows) for term in self.terms).backward()
        self.optimizer.step()


def stepping(rows: int, subclasses: int, turns: int) -> dict[str, object]:
    steps = {"plain": Step(rows, 1), "subclasses": Step(rows, subclasses)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        seconds(step, CALLS)
    for _ in range(turns):
        for name, step in steps.items():
            times[name].append(seconds(step, CALLS))
    return {
        "rows": rows,
        "subclasses": subclasses,
        "milliseconds": {name: spread([1e3 * t for t in values]) for name, values in times.items()},
        "subclasses_take_times": spread([b / a for a, b in zip(*times.values(), strict=True)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = [finding(*size, arguments.turns) for size in SIZES]
    steps = [stepping(*size, arguments.turns) for size in STEPS]
    for one in found:
        ratio, memory = one["scikit_learn_takes_times"]["median"], one["peak_mib"]
        print(f"{one['rows']} x {one['width']}: scikit-learn takes {ratio:.2f} times as long; MiB {memory}")
    for one in steps:
        print(f"{one['rows']} rows, S = {one['subclasses']}: x {one['subclasses_take_times']['median']:.2f} of plain")
    tree = {
        "settings": {"classes": CLASSES, "subclasses": SUBCLASSES, "threads": 1, "turns": arguments.turns},
        "machine": {"machine": platform.machine(), "python": platform.python_version()},
        "versions": {"torch": torch.__version__, "scikit-learn": version("scikit-learn"), "numpy": np.__version__},
        "finding": found,
        "steps": steps,
    }
    arguments.out.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
