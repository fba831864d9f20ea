"""What a step of guidance costs: the base network alone, and sanov's mixture at several w, with and without classes.

The network is the default for digits (8 x 8, a residual perceptron of 256 units and 3 blocks, told time and class); reference
and policy are two of them, untrained. A step is the networks' passes, the mixture and Euler's update, for a batch of images:

- `base`: the reference's pass and the update, written out; `policy alone`: the same of the policy, to which w = 1 is held;
- `w = 1.6`, `w = 0`, `w = 1`: `Mixed` and the same update;
- `released form`: both networks at every step, ``ref + w (policy - ref)``, written out;
- `base, guided by class` and `w = 1.6, guided by class`: with guidance of scale 4.5, so two passes and four.

All take turns, call by call in random order, in one process on one thread, and are timed by the processor's time. A ratio
is of medians within a turn; its median and quartiles over the turns are reported. Asked: at most 2.05 times the base at
w = 1.6, and 1.02 at w = 0 and 1.

Run: ``python benchmarks/rlg.py [--turns N]``; writes rlg.json beside it.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from sanov.nets.denoiser import Denoiser, DenoiserShape
from sanov.systems.rlg import Guidance, Mixed

ROWS, UNITS, DEPTH, DT, TIME, SCALE, WEIGHT = 256, 256, 3, -0.05, 0.5, 4.5, 1.6
TURN_SECONDS = 0.04  # a contestant repeats its step within a turn for about this long
BASE, ALONE, GUIDED_BASE = "base", "policy alone", "base, guided by class"
BASE_OF = {"w = 1": ALONE, "w = 1.6, guided by class": GUIDED_BASE, GUIDED_BASE: GUIDED_BASE}
ASKED = {"w = 1.6": 2.05, "w = 0": 1.02, "w = 1": 1.02}
Step = Callable[[], Tensor]


def steps() -> dict[str, Step]:
    """Return a step of every contestant, on the same batch."""
    shape = DenoiserShape(1, 8, 8, classes=10, units=UNITS, depth=DEPTH)
    reference, policy = (Denoiser(shape, seed=seed).eval().requires_grad_(False) for seed in (0, 1))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, *shape.event, generator=generator)
    condition = torch.arange(ROWS) % 10

    def one(model: Denoiser) -> Tensor:
        return model(x, torch.full((ROWS,), TIME), condition)

    def guided(model: Denoiser) -> Tensor:
        nothing = model(x, torch.full((ROWS,), TIME), None)
        return nothing + SCALE * (one(model) - nothing)

    def mixed(weight: float, guidance: Guidance) -> Step:
        both = Mixed(reference, [policy], [weight], guidance=guidance)
        return lambda: x + DT * both(x, TIME, condition)

    def released() -> Tensor:
        own = one(reference)
        return x + DT * (own + WEIGHT * (one(policy) - own))

    off, on = Guidance(), Guidance(SCALE, SCALE)
    return {
        BASE: lambda: x + DT * one(reference),
        "w = 1.6": mixed(WEIGHT, off),
        "w = 0": mixed(0.0, off),
        "w = 1": mixed(1.0, off),
        ALONE: lambda: x + DT * one(policy),
        "released form": released,
        GUIDED_BASE: lambda: x + DT * guided(reference),
        "w = 1.6, guided by class": mixed(WEIGHT, on),
    }


def seconds(step: Step, calls: int) -> float:
    start = time.thread_time()
    for _ in range(calls):
        step()
    return (time.thread_time() - start) / calls


def take_turns(contestants: dict[str, Step], turns: int) -> dict[str, list[float]]:
    """Time all of them in turn, a call of each after another, so that what slows one slows the others."""
    calls = max(1, round(TURN_SECONDS / min(seconds(contestants[BASE], 1) for _ in range(3))))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names, order = list(contestants), random.Random(0)
    for _ in range(turns):
        spent: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(calls):
            order.shuffle(names)  # whose weights are still in the cache is nobody's merit
            for name in names:
                spent[name].append(seconds(contestants[name], 1))
        for name, own in spent.items():
            times[name].append(statistics.median(own))
    return times


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def measure(turns: int) -> dict[str, object]:
    with torch.no_grad():
        contestants = steps()
        assert torch.equal(contestants["w = 0"](), contestants[BASE]())
        torch.testing.assert_close(contestants["w = 1.6"](), contestants["released form"](), rtol=1e-4, atol=1e-5)
        times = take_turns(contestants, turns)
    found = {}
    for name, own in times.items():
        base = times[BASE_OF.get(name, BASE)]
        ratio = spread([mine / theirs for mine, theirs in zip(own, base, strict=True)])
        found[name] = {"milliseconds": spread([1e3 * value for value in own]), "times_the_base": ratio}
        if name in ASKED:
            found[name]["asked"] = ASKED[name]
            found[name]["reached"] = ratio["median"] <= ASKED[name]
    return {"rows": ROWS, "units": UNITS, "depth": DEPTH, "contestants": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=40)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    result = {
        "what": "processor time of a step, and how many times that of the base",
        "turns": turns,
        "threads": 1,
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {"torch": version("torch"), "sanov": version("sanov")},
        "steps": measure(turns),
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, found in result["steps"]["contestants"].items():
        print(f"{name:<26}{found['milliseconds']['median']:8.3f} ms  {found['times_the_base']['median']:.3f} x base")


if __name__ == "__main__":
    main()
