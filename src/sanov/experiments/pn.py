"""The claim of `pn`: the second-order sandwich criterion finds the sample size better than p/(2 delta) does.

Every truth has a risk that is known in closed form or by simulation, hence a true n*, at which the risk is delta. A seed
draws 500 rows, estimates n* in four ways and compares ``|log(estimate / n*)|``. Real tables serve as populations: rows are
drawn from them with replacement, so that the table is the truth. The criterion was fixed before any result was seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.claims import Cell, Claim, Context, Part, Preset, Record
from sanov.comparisons import paired_effect
from sanov.core.results import PartResult
from sanov.data.tabular import DIGESTS, is_available, population
from sanov.data.truths import TRUTHS, Truth, population_truth, risk, sample_size
from sanov.families import kl_threshold, required_sample_size
from sanov.systems.pn.coefficients import estimate
from sanov.systems.pn.drawn import Ising
from sanov.systems.pn.sample import Sample
from sanov.systems.pn.statistics import Prepared, cross, prepare

__all__ = ["CLAIM"]

DELTA = kl_threshold(0.05)
MISSPECIFIED = ("gamma 0.5", "gamma 2", "laplace", "ising tilted")
WELL_SPECIFIED = ("normal 2", "ising")
CONTROL = "independence"
COMPARED = (*MISSPECIFIED, "normal 5", *WELL_SPECIFIED, CONTROL)
PREDICTED = ("exponential", "poisson", "multinomial", "normal 1", "normal 2", "ising", "gamma 0.5", "laplace")
POPULATIONS = {
    "breast_cancer": ("mean radius", "mean concavity", "area error", "worst symmetry"),
    "red_wine": ("volatile acidity", "residual sugar", "chlorides", "sulphates", "alcohol"),
}
METHODS = {
    "first": "p/(2n)",
    "second": "second order",
    "sandwich_first": "sandwich",
    "sandwich": "sandwich, second order",
}
SLACK = 0.05  # of delta: what the terms above the second order and the estimate of n* may cost


# -- cells ------------------------------------------------------------------------------------------------------------


def _cells(seeds: Sequence[int]) -> list[Cell]:
    real = [name for name in POPULATIONS if is_available(name)]
    truths = list(dict.fromkeys([*COMPARED, *PREDICTED, *real]))
    shared = [Cell("shared", {"truth": name}) for name in truths]
    return shared + [Cell("compare", {"truth": name, "seed": seed}) for name in truths for seed in seeds]


def _truth(name: str) -> Truth:
    if name in TRUTHS:
        return TRUTHS[name]()
    return population_truth(name, population(name, POPULATIONS[name]).values)


def _run(cell: Cell, context: Context, folder: Path) -> Mapping[str, Any]:
    name, settings = str(cell.key["truth"]), context.settings
    truth = _truth(name)
    if cell.stage == "shared":
        return {"required": sample_size(truth, DELTA, settings["replicates"], np.random.default_rng(0))}
    rng = np.random.default_rng([int(cell.key["seed"]), zlib.crc32(name.encode())])
    required = float(context.shared(truth=name)[0]["required"])
    found = _estimates(truth, truth.sample(rng, settings["rows"]))
    values: dict[str, float] = {f"error_{method}": abs(float(np.log(n / required))) for method, n in found.items()}
    accepted = found["sandwich"] <= settings["rows"]
    values["right_decision"] = float(accepted == (required <= settings["rows"]))
    if name in PREDICTED:
        predicted = _estimates(truth, truth.sample(rng, settings["many"]))["sandwich"]
        for part, rows in (("at", int(np.ceil(predicted))), ("half", int(predicted / 2))):
            values[f"risk_{part}"] = risk(truth, rows, settings["replicates"], rng).mean / DELTA
    return values


def _estimates(truth: Truth, table: Float[ndarray, "rows columns"]) -> dict[str, float]:
    """Return the estimated n*, by each method."""
    sample = Sample(_prepared(truth, table))
    sandwich = estimate(sample, method="sandwich", order=2, bootstrap=0)
    own = estimate(sample, method="simple", order=2, bootstrap=0)
    return {
        "first": own.a / DELTA,
        "second": required_sample_size(own.a, own.b, DELTA),
        "sandwich_first": sandwich.a / DELTA,
        "sandwich": required_sample_size(sandwich.a, sandwich.b, DELTA),
    }


def _prepared(truth: Truth, table: Float[ndarray, "rows columns"]) -> Prepared:
    if truth.family == "multinomial":
        codes, cells = cross({"x": table[:, 0].astype(int).astype(str)})
        return prepare("multinomial", codes, ["x"], cells=cells)
    columns = tuple(f"x{j + 1}" for j in range(table.shape[1]))
    if truth.family == "independence":
        return Prepared("ising", Ising(columns, interactions=False), columns, table, len(columns))
    return prepare(truth.family, table, columns)


# -- parts ------------------------------------------------------------------------------------------------------------


def _values(name: str, read: Callable[[Mapping[str, Any]], float], records: Sequence[Record]) -> dict[int, float]:
    return {int(r.cell.key["seed"]): read(r.values) for r in records if r.cell.key["truth"] == name}


def _gain(values: Mapping[str, Any]) -> float:
    return float(values["error_first"]) - float(values["error_sandwich"])


def _first(values: Mapping[str, Any]) -> float:
    return float(values["error_first"]) - float(values["error_sandwich_first"])


def _decisions(records: Sequence[Record]) -> dict[int, float]:
    by_seed: dict[int, list[float]] = {}
    for record in records:
        by_seed.setdefault(int(record.cell.key["seed"]), []).append(float(record.values["right_decision"]))
    return {seed: float(np.mean(values)) for seed, values in by_seed.items()}


def _gain_part(name: str, statement: str, **more: Any) -> Part:
    return Part(f"gain, {name}", statement, partial(_values, name, _gain), unit="in log n", **more)


def _parts() -> list[Part]:
    nearer = "the sandwich of second order is nearer to the true n* than p/(2 delta)"
    parts = [_gain_part(name, f"Where the family is wrong ({name}), {nearer}.") for name in MISSPECIFIED]
    parts.append(_gain_part("normal 5", f"For a five-variate normal, {nearer}."))
    parts += [
        _gain_part(name, f"Where the family is right ({name}), it costs at most 0.02.", kind="not_below", bound=-0.02)
        for name in WELL_SPECIFIED
    ]
    parts.append(
        _gain_part(CONTROL, "Negative control: wrong, yet a = p/2, so nothing is to be gained.", kind="equal_to")
    )
    for name in PREDICTED:
        at, half = (
            partial(_values, name, lambda values, key=key: float(values[key])) for key in ("risk_at", "risk_half")
        )
        parts += [
            Part(
                f"risk at n*, {name}",
                f"{name}: at the n* predicted from a large sample the simulated risk is at most delta (within 5 %).",
                at,
                kind="within",
                bound=(0.0, 1 + SLACK),
                unit="of delta",
            ),
            Part(
                f"risk at n*/2, {name}",
                f"{name}: at half of it the risk is above delta.",
                half,
                bound=1.0,
                unit="of delta",
            ),
        ]
    parts += [_gain_part(name, f"Real table ({name}): {nearer}.", required=False) for name in POPULATIONS]
    unmoved = "On the control, the sandwich of first order against p/(2 delta): it must not move where a = p/2."
    parts.append(
        Part("sandwich of first order, control", unmoved, partial(_values, CONTROL, _first), "reported", 0.0, False)
    )
    told = "Share of truths on which the sample of 500 rows is rightly accepted or refused."
    return [*parts, Part("decisions", told, _decisions, kind="reported", required=False)]


def _figures(records: Sequence[Record], judged: Sequence[PartResult]) -> dict[str, dict[str, Any]]:
    rows = []
    for name in (*COMPARED, *POPULATIONS):
        for method, title in METHODS.items():
            found = [float(r.values[f"error_{method}"]) for r in records if r.cell.key["truth"] == name]
            if len(found) > 1:
                effect = paired_effect(found)
                interval = {"error": effect.mean, "low": effect.low, "high": effect.high}
                rows.append({"truth": name, "method": title, **{key: round(v, 4) for key, v in interval.items()}})
    place = {
        "y": {"field": "truth", "type": "nominal", "sort": [*COMPARED, *POPULATIONS], "title": None},
        "yOffset": {"field": "method", "type": "nominal", "sort": list(METHODS.values())},
        "color": {"field": "method", "type": "nominal", "sort": list(METHODS.values()), "title": None},
        "tooltip": [{"field": name} for name in ("truth", "method", "error", "low", "high")],
    }
    axis = {"type": "quantitative", "title": "|log(estimated n* / true n*)|"}
    spec = {
        "data": {"values": rows},
        "height": 60 * len({row["truth"] for row in rows}),
        "layer": [
            {"mark": "rule", "encoding": {**place, "x": {"field": "low", **axis}, "x2": {"field": "high"}}},
            {"mark": {"type": "point", "filled": True}, "encoding": {**place, "x": {"field": "error", **axis}}},
        ],
    }
    return {"Error of the estimated sample size at 500 rows, with 95 % intervals": spec}


CLAIM = Claim(
    system="pn",
    statement="The second-order sandwich criterion estimates the required sample size better than p/(2 delta).",
    source="sheena2021pn; the criterion is ours",
    parts=_parts(),
    presets={
        "smoke": Preset(
            _cells,
            seeds=5,
            scale="500 rows a seed, 5 seeds, epsilon 0.05.",
            settings={"rows": 500, "many": 5_000, "replicates": 1_000},
        ),
        "paper": Preset(
            _cells,
            seeds=20,
            scale="500 rows a seed, 20 seeds, epsilon 0.05; the paper's tables are wine quality and abalone.",
            settings={"rows": 500, "many": 50_000, "replicates": 20_000},
        ),
    },
    run=_run,
    data=lambda settings: {name: DIGESTS[name] for name in POPULATIONS if is_available(name)} | {"truths": "simulated"},
    figures=_figures,
)
