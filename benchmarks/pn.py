"""`pn` on long tables: seconds and memory by rows, and two peers.

Every measurement has a process of its own, on one thread.

*Scale.* 12 columns, the normal family (p = 90), coefficients of second order with 200 bootstrap replicates, 10^4, 10^5
and 10^6 rows: wall and processor seconds, and the largest resident memory of the whole process, interpreter and table
included. Targets at 10^6 rows: 60 s, 1.5 GiB; and processor seconds that grow no
faster than the rows.

*Pairs.* The straightforward NumPy program for the simple form: whiten, hold the matrix of all inner products, cube it.
Same table, same coefficients (their difference is reported), no bootstrap on either side.

*statsmodels.* The first order of a Poisson model, twice the a of which is the ratio of the robust to the plain variance:
`GLM` with an intercept alone and ``cov_type="HC0"``, against `estimate(order=1)`. A fit does more than this ratio.

Run: ``python benchmarks/pn.py [--turns N] [--rows N ...]``; writes pn.json beside it.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import scipy

from sanov.core.progress import quiet
from sanov.systems.pn.coefficients import estimate
from sanov.systems.pn.sample import Sample
from sanov.systems.pn.statistics import prepare

COLUMNS, REPLICATES = 12, 200
ROWS, METHODS = (10_000, 100_000, 1_000_000), ("sandwich", "simple")
PAIR_ROWS = (2_000, 5_000, 10_000)
SECONDS, GIBIBYTES, GROWTH = 60.0, 1.5, 1.1  # targets; the last on the exponent of seconds in rows
UNIT = 2**20 if sys.platform != "darwin" else 2**30  # of ru_maxrss in a GiB


def draw(rows: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, COLUMNS)) @ rng.standard_normal((COLUMNS, COLUMNS))


def sample_of(table: np.ndarray) -> Sample:
    return Sample(prepare("gaussian", table, [f"x{k + 1}" for k in range(COLUMNS)]))


# -- scale ------------------------------------------------------------------------------------------------------------


def one_run(rows: int, method: str) -> dict:
    """Measure this process."""
    table = draw(rows)
    started, processor = time.perf_counter(), time.process_time()
    found = estimate(sample_of(table), method=method, bootstrap=REPLICATES)
    return {
        "rows": rows,
        "method": method,
        "parameters": found.parameters,
        "seconds": round(time.perf_counter() - started, 3),
        "processor_seconds": round(time.process_time() - processor, 3),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNIT, 3),
        "table_gib": round(table.nbytes / 2**30, 3),
        "a": found.a,
        "a_interval": found.interval("a"),
        "b": found.b,
        "b_interval": found.interval("b"),
    }


def scale(rows: tuple[int, ...]) -> list[dict]:
    cells = []
    for method in METHODS:
        for n in rows:
            cell = apart("scale", n, method)
            cells.append(cell)
            print(f"{method:<9}{n:>10} rows {cell['seconds']:>8.2f} s {cell['peak_gib']:>7.3f} GiB", flush=True)
    return cells


def growth(cells: list[dict], method: str) -> float:
    """Exponent of processor seconds in rows, between the two longest tables; 1 is linear."""
    few, many = [cell for cell in cells if cell["method"] == method][-2:]
    return math.log(many["processor_seconds"] / few["processor_seconds"]) / math.log(many["rows"] / few["rows"])


# -- peers ------------------------------------------------------------------------------------------------------------


def in_pairs(table: np.ndarray) -> float:
    """Compute b of the simple form the way one writes it down first."""
    z = (table - table.mean(axis=0)) / table.std(axis=0)
    i, j = np.triu_indices(z.shape[1])
    xi = np.hstack([z, z[:, i] * z[:, j]])
    xi = xi - xi.mean(axis=0)
    rows, p = xi.shape
    values, vectors = np.linalg.eigh(xi.T @ xi / rows)
    u = xi @ (vectors / np.sqrt(values))
    inner = u @ u.T
    length = np.diag(inner)
    t1 = (inner**3).sum() / rows**2
    t2 = np.square((length[:, None] * u).mean(axis=0)).sum()
    k4 = (length**2).mean() - p * (p + 2)
    return float((10 * t1 + 9 * t2 - 9 * k4) / 24)


def take_turns(ours: Callable[[], float], peer: Callable[[], float], turns: int) -> dict:
    """Run both in turn: median milliseconds, and how many times as long the peer took (median and quartiles)."""
    values = ours(), peer()  # also warms up
    seconds: list[tuple[float, float]] = []
    for _ in range(turns):
        marks = [time.perf_counter()]
        for run in (ours, peer):
            run()
            marks.append(time.perf_counter())
        seconds.append((marks[1] - marks[0], marks[2] - marks[1]))
    ratios = sorted(other / own for own, other in seconds)
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "sanov_milliseconds": round(1e3 * statistics.median(own for own, _ in seconds), 2),
        "peer_milliseconds": round(1e3 * statistics.median(other for _, other in seconds), 2),
        "peer_over_sanov": {"median": round(median, 3), "low": round(low, 3), "high": round(high, 3)},
        "relative_difference": abs(values[0] - values[1]) / abs(values[1]),
    }


def against_pairs(rows: int, turns: int) -> dict:
    table = draw(rows)
    ours = lambda: estimate(sample_of(table), method="simple", bootstrap=0).b  # noqa: E731
    return {"rows": rows, **take_turns(ours, lambda: in_pairs(table), turns)}


def against_statsmodels(rows: int, turns: int) -> dict:
    import statsmodels.api as sm

    counts = np.random.default_rng(0).negative_binomial(2, 0.4, size=(rows, 1)).astype(float)

    def ours() -> float:
        return estimate(Sample(prepare("poisson", counts, ["count"])), order=1, bootstrap=0).a

    def peer() -> float:
        model = sm.GLM(counts[:, 0], np.ones((rows, 1)), family=sm.families.Poisson())
        robust, plain = (model.fit(cov_type=kind).cov_params()[0, 0] for kind in ("HC0", "nonrobust"))
        return float(robust / plain) / 2

    return {"rows": rows, **take_turns(ours, peer, turns)}


# -- together -----------------------------------------------------------------------------------------------------------

KINDS = {"scale": one_run, "pairs": against_pairs, "statsmodels": against_statsmodels}
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def apart(kind: str, rows: int, setting: str | int) -> dict:
    """Run one measurement in a process of its own, on one thread."""
    command = [sys.executable, __file__, "--one", kind, str(rows), str(setting)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **THREADS})
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        kind, rows, setting = chosen.one
        with quiet():
            print(json.dumps(KINDS[kind](int(rows), setting if kind == "scale" else int(setting))))
        return
    cells = scale(tuple(chosen.rows))
    pairs = [apart("pairs", rows, chosen.turns) for rows in PAIR_ROWS]
    model = apart("statsmodels", max(ROWS), chosen.turns)
    for name, cell in [*(("pairs", cell) for cell in pairs), ("statsmodels", model)]:
        print(f"{name:<12}{cell['rows']:>8} rows: takes {cell['peer_over_sanov']['median']:.2f} times as long as sanov")
    largest = [cell for cell in cells if cell["rows"] == max(chosen.rows)]
    exponents = {method: round(growth(cells, method), 3) for method in METHODS} if len(chosen.rows) > 1 else {}
    result = {
        "settings": {"columns": COLUMNS, "replicates": REPLICATES, "threads": 1, "turns": chosen.turns},
        "machine": {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "statsmodels": version("statsmodels")},
        "scale": cells,
        "exponent_of_seconds_in_rows": exponents,
        "pairs": pairs,
        "statsmodels": model,
        "targets": {
            "seconds": {"wanted": SECONDS, "met": all(cell["seconds"] < SECONDS for cell in largest)},
            "peak_gib": {"wanted": GIBIBYTES, "met": all(cell["peak_gib"] < GIBIBYTES for cell in largest)},
            "exponent": {"wanted": GROWTH, "met": all(value < GROWTH for value in exponents.values())},
        },
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("exponents of seconds in rows:", exponents)
    print("targets:", {name: target["met"] for name, target in result["targets"].items()})


if __name__ == "__main__":
    main()
