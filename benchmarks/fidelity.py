"""`fidelity` in report mode on a million pairs of predictions: seconds and memory of the command, and two peers.

Every measurement has a process of its own, on one thread.

*Command.* ``sanov apply fidelity teacher.csv student.csv --json``, from its start to its end, all intervals included
(10,000 draws): wall seconds, and the largest resident memory of its process. Ten classes; the student's rows are in another
order than the teacher's, so that they are joined by id. Once more with a third file, the baseline's, and with probabilities
of all classes in all three (the two KL, Jensen-Shannon, calibration). Target for the first: 10 s at 10^6 pairs.

*Loop.* What one writes down first for the same statistics of teacher and student (two accuracies, agreement, Cohen's kappa,
error consistency, the five cells of error transfer) with their intervals: draw row numbers, take the rows, compute with
scikit-learn and NumPy, for every draw. It makes the few draws stated, and its time is scaled to 10,000; sanov makes all.
Memory is the peak of a process less that of one that only makes the answers; what a contestant imports counts for it.

*scipy.stats.bootstrap.* The interval of one statistic, the difference of two accuracies (percentile, 10,000 draws, 100 at a
time, none scaled), against all of sanov's statistics.

Run: ``python benchmarks/fidelity.py [--turns N] [--rows N ...]``; writes fidelity.json beside it.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl

from sanov.systems.fidelity.counts import count
from sanov.systems.fidelity.labels import label_statistics
from sanov.systems.fidelity.resampling import draw_counts

CLASSES, DRAWS = 10, 10_000
ROWS = (10_000, 100_000, 1_000_000)
LOOP_DRAWS = {10_000: 200, 100_000: 40, 1_000_000: 10}  # of the peer, by rows
SCIPY_ROWS = (10_000, 100_000)
SECONDS = 10.0  # target for the command
UNIT = 2**20 if sys.platform != "darwin" else 2**30  # of ru_maxrss in a GiB
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
Statistics = dict[str, np.ndarray]


def make(rows: int) -> np.ndarray:
    """Labels, and the answers of a teacher, of a student that follows it in part, and of a baseline."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, rows)
    teacher, own, baseline = (
        np.where(rng.random(rows) < right, labels, rng.integers(0, CLASSES, rows)) for right in (0.9, 0.8, 0.75)
    )
    return np.stack([labels, teacher, np.where(rng.random(rows) < 0.5, teacher, own), baseline])


# -- the command ------------------------------------------------------------------------------------------------------


def write(folder: Path, rows: int, probabilities: bool) -> list[str]:
    """Write the files of the command, and return its words."""
    labels, *systems = make(rows)
    rng = np.random.default_rng(1)
    names = ["teacher", "student", "baseline"][: 3 if probabilities else 2]
    for name, given in zip(names, systems, strict=False):
        columns = {"id": np.arange(rows), "prediction": given} | ({"label": labels} if name == "teacher" else {})
        if probabilities:
            logits = rng.standard_normal((rows, CLASSES))
            logits[np.arange(rows), given] += 4
            p = np.exp(logits)
            columns |= dict(
                zip([f"prob_{k}" for k in range(CLASSES)], (p / p.sum(axis=1, keepdims=True)).T, strict=True)
            )
        order = rng.permutation(rows)
        pl.DataFrame({key: values[order] for key, values in columns.items()}).write_csv(folder / f"{name}.csv")
    return [str(folder / f"{name}.csv") for name in names]


def command(rows: int, probabilities: bool) -> dict:
    """Run the command once, and measure its process."""
    with tempfile.TemporaryDirectory() as place:
        files = write(Path(place), rows, probabilities)
        words = [sys.executable, "-m", "sanov.cli", "apply", "fidelity", *files, "--json"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        started = time.perf_counter()
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **THREADS})
        seconds = time.perf_counter() - started
        size = sum(Path(file).stat().st_size for file in files)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert peak > before, "an earlier child was larger"
    cells = json.loads(done.stdout)["tables"]["Statistics"]
    return {
        "rows": rows,
        "files": len(files),
        "probabilities": probabilities,
        "file_gib": round(size / 2**30, 3),
        "seconds": round(seconds, 2),
        "peak_gib": round(peak / UNIT, 3),
        "statistics": len(cells["value"]),
        "with_interval": sum(low is not None for low in cells["low"]),
    }


# -- the contestants --------------------------------------------------------------------------------------------------


def ours(data: np.ndarray) -> Statistics:
    """All statistics of labels, and all their draws."""
    labels, teacher, student, _ = data
    counts = count(("teacher", "student"), np.stack([teacher, student]), labels)
    drawn = label_statistics(counts, *draw_counts(counts, DRAWS, 0), CLASSES)
    gain = drawn["student", "accuracy"] - drawn["teacher", "accuracy"]
    return {"gain": gain, **{name: values for (_, name), values in drawn.items() if name != "accuracy"}}


def of_rows(labels: np.ndarray, teacher: np.ndarray, student: np.ndarray) -> dict[str, float]:
    """Compute the same from rows."""
    from sklearn.metrics import accuracy_score, cohen_kappa_score

    a, b = accuracy_score(labels, teacher), accuracy_score(labels, student)
    right, other, same = teacher == labels, student == labels, teacher == student
    by_chance = a * b + (1 - a) * (1 - b)
    return {
        "agreement": same.mean(),
        "expected agreement": a * b + (1 - a) * (1 - b) / (CLASSES - 1),
        "kappa": cohen_kappa_score(teacher, student),
        "error consistency": ((right == other).mean() - by_chance) / (1 - by_chance),
        "both right": (right & other).mean(),
        "inherited": (~right & same).mean(),
        "both wrong, different": (~right & ~other & ~same).mean(),
        "corrected": (~right & other).mean(),
        "lost": (right & ~other).mean(),
    }


def loop(data: np.ndarray) -> Statistics:
    """Resample rows."""
    rng, rows = np.random.default_rng(0), data.shape[1]
    found = []
    for _ in range(LOOP_DRAWS[rows]):
        chosen = rng.integers(0, rows, rows)
        found.append(of_rows(*(row[chosen] for row in data[:3])))
    return {name: np.array([each[name] for each in found]) for name in found[0]}


def by_scipy(data: np.ndarray) -> Statistics:
    """Draw one statistic by SciPy."""
    from scipy.stats import bootstrap

    labels, teacher, student, _ = data
    gap = (student == labels).astype(float) - (teacher == labels)
    drawn = bootstrap((gap,), np.mean, n_resamples=DRAWS, method="percentile", batch=100, rng=np.random.default_rng(0))
    return {"gain": drawn.bootstrap_distribution}


CONTESTANTS: dict[str, Callable[[np.ndarray], Statistics]] = {"sanov": ours, "loop": loop, "scipy": by_scipy}


def take_turns(peer: str, rows: int, turns: int) -> dict:
    """Run both in turn: median seconds, and how many times as long the peer takes for 10,000 draws."""
    data = make(rows)
    own, other = ours(data), CONTESTANTS[peer](data)  # also warms up
    scale = DRAWS / LOOP_DRAWS[rows] if peer == "loop" else 1.0
    seconds: list[tuple[float, float]] = []
    for _ in range(turns):
        marks = [time.perf_counter()]
        for run in (ours, CONTESTANTS[peer]):
            run(data)
            marks.append(time.perf_counter())
        seconds.append((marks[1] - marks[0], scale * (marks[2] - marks[1])))
    low, median, high = statistics.quantiles([b / a for a, b in seconds], n=4, method="inclusive")
    both = own.keys() & other.keys()
    return {
        "rows": rows,
        "peer_draws": len(next(iter(other.values()))),
        "sanov_seconds": round(statistics.median(a for a, _ in seconds), 4),
        "peer_seconds_for_10000_draws": round(statistics.median(b for _, b in seconds), 2),
        "peer_over_sanov": {"median": round(median, 1), "low": round(low, 1), "high": round(high, 1)},
        "largest_gap_of_means_in_standard_errors": round(max(_gap(own[n], other[n]) for n in both), 2),
    }


def _gap(own: np.ndarray, other: np.ndarray) -> float:
    """How far the means of the draws are apart, in standard errors of the shorter run."""
    return float(abs(own.mean() - other.mean()) / (own.std() / np.sqrt(len(other))))


def memory(contestant: str, rows: int) -> dict:
    """Peak of this process, in GiB."""
    data = make(rows)
    if contestant in CONTESTANTS:
        CONTESTANTS[contestant](data)
    return {"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNIT}


# -- together ---------------------------------------------------------------------------------------------------------


def apart(kind: str, *words: object) -> dict:
    """Run one measurement in a process of its own, on one thread."""
    line = [sys.executable, __file__, "--one", kind, *map(str, words)]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **THREADS})
    return json.loads(done.stdout)


def one(kind: str, words: list[str]) -> dict:
    match kind:
        case "command":
            return command(int(words[0]), words[1] == "True")
        case "turns":
            return take_turns(words[0], int(words[1]), int(words[2]))
        case _:
            return memory(words[0], int(words[1]))


def peaks(rows: int, peer: str) -> dict[str, float]:
    bare = apart("memory", "nobody", rows)["gib"]
    found = {name: apart("memory", name, rows)["gib"] - bare for name in ("sanov", peer)}
    return {"sanov_gib": round(found["sanov"], 3), "peer_gib": round(found[peer], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(chosen.one[0], chosen.one[1:])))
        return
    commands = [apart("command", rows, full) for full in (False, True) for rows in chosen.rows]
    for cell in commands:
        kind = "with probabilities" if cell["probabilities"] else "predictions"
        print(f"{kind:<20}{cell['rows']:>9} rows {cell['seconds']:>7.2f} s {cell['peak_gib']:>7.3f} GiB", flush=True)
    peers: dict[str, list[dict]] = {"loop": [], "scipy": []}
    for peer, sizes in (("loop", chosen.rows), ("scipy", [n for n in SCIPY_ROWS if n in chosen.rows])):
        for rows in sizes:
            peers[peer].append(apart("turns", peer, rows, chosen.turns) | peaks(rows, peer))
            cell = peers[peer][-1]
            print(
                f"{peer:<20}{rows:>9} rows: takes {cell['peer_over_sanov']['median']:.1f} times as long as sanov "
                f"({cell['sanov_gib']} against {cell['peer_gib']} GiB)",
                flush=True,
            )
    largest = [cell for cell in commands if cell["rows"] == max(chosen.rows) and not cell["probabilities"]]
    result = {
        "settings": {"classes": CLASSES, "draws": DRAWS, "threads": 1, "turns": chosen.turns},
        "machine": {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("numpy", "polars", "scikit-learn", "scipy")},
        "command": commands,
        **peers,
        "targets": {"seconds": {"wanted": SECONDS, "met": all(cell["seconds"] < SECONDS for cell in largest)}},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("targets:", {name: target["met"] for name, target in result["targets"].items()})


if __name__ == "__main__":
    main()
