"""Coefficients of the risk for 12 columns (p = 90): time by the number of rows, and against the pair form.

The pair form holds a matrix of rows by rows; ours streams. The ratio is its time divided by ours.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import numpy as np

from sanov.systems.pn.coefficients import estimate
from sanov.systems.pn.sample import Sample
from sanov.systems.pn.statistics import prepare


def table(rows: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, 12)) @ rng.standard_normal((12, 12))


def ours(values: np.ndarray):
    names = [f"x{j}" for j in range(values.shape[1])]
    return estimate(Sample(prepare("gaussian", values, names)), method="simple", bootstrap=0)


def pair_form(values: np.ndarray) -> float:
    """Return b of the simple form, from the matrix of all pairs of rows."""
    z = (values - values.mean(0)) / values.std(0)
    i, j = np.triu_indices(z.shape[1])
    statistics = np.hstack([z, z[:, i] * z[:, j]])
    centred = statistics - statistics.mean(0)
    n, p = centred.shape
    white = np.linalg.solve(np.linalg.cholesky(centred.T @ centred / n), centred.T).T
    pairs = white @ white.T
    size = np.diag(pairs)
    t1, t2 = (pairs**3).sum() / n**2, float((((size[:, None] * white).mean(0)) ** 2).sum())
    return (10 * t1 + 9 * t2 - 9 * ((size**2).mean() - p * (p + 2))) / 24


def main() -> None:
    rows = []
    for size in (10_000, 100_000, 1_000_000):
        values = table(size)
        start = time.perf_counter()
        found = ours(values)
        row = {"rows": size, "parameters": found.parameters, "seconds": round(time.perf_counter() - start, 2)}
        row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        if size == 10_000:
            start = time.perf_counter()
            b = pair_form(values)
            row["ratio to the pair form"] = round((time.perf_counter() - start) / row["seconds"], 2)
            row["relative difference of b"] = float(abs(b / found.b - 1))
            row["peak_mib of the pair form"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        rows.append(row)
        print(row)
    Path(__file__).with_suffix(".json").write_text(json.dumps({"numpy": np.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
