"""The claim of `rlg`: w beyond 1 gives more reward than the policy, as if it had been tuned at beta / w.

C1 is tested on digits with trained networks and two rewards, against every other way to more of the reward at as many passes:
each has as many trials, on a seed kept apart, of which the one with the largest reward is taken that is as diverse as RLG. C2
is tested with exact models, so that a gap is the sampler's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from sanov.claims import Cell, Claim, Context, Preset
from sanov.experiments import rlg_arms as arms
from sanov.experiments.rlg_parts import ARMS, DATA, EXACT, TITLES, WEIGHTS, figures, parts, verdict

__all__ = ["CLAIM"]

TUNING_SEED = 1_000  # no seed of the comparison
TUNED_BY = {arm: "" for arm in (*ARMS, *TITLES) if arm not in arms.KNOBS}
AS_DIVERSE = 0.99  # of RLG's diversity, on the seed kept apart
SHORT = 1_000.0  # what is taken off for being less diverse: more than any reward


def _cells(data: Sequence[str], trials: int) -> Callable[[Sequence[int]], list[Cell]]:
    """Models of each reward and seed, trials of each baseline, every arm on every seed, and exact digits."""

    def cells(seeds: Sequence[int]) -> list[Cell]:
        shared = [Cell("shared", {"data": name, "purpose": "tuning"}) for name in data]
        shared += [Cell("shared", {"data": name, "seed": seed}) for name, seed in product(data, seeds)]
        tune = [Cell("tune", {"data": d, "arm": a, "trial": t}) for d, a, t in product(data, arms.KNOBS, range(trials))]
        compare = [Cell("compare", {"data": d, "arm": a, "seed": s}) for d, a, s in product(data, ARMS, seeds)]
        compare += [Cell("compare", {"data": EXACT, "arm": a, "seed": s}) for a, s in product(TITLES, seeds)]
        return shared + tune + compare

    return cells


def _run(cell: Cell, context: Context, folder: Path) -> Mapping[str, Any]:
    import torch

    torch.set_num_threads(1)
    data, settings = str(cell.key["data"]), context.settings
    if cell.stage == "shared":
        return arms.make_models(data, int(cell.key.get("seed", TUNING_SEED)), settings, folder)
    arm = str(cell.key["arm"])
    if cell.stage == "tune":
        return _tune(data, arm, int(cell.key["trial"]), context)
    seed = int(cell.key["seed"])
    if data == EXACT:
        return arms.exact_gaps(arm, WEIGHTS, seed, settings)
    _, models = context.shared(data=data, seed=seed)
    knob = float(context.tuned(data=data, arm=arm).values["knob"]) if arm in arms.KNOBS else 0.0
    return {**arms.scored(arm, knob, models, seed, settings), "knob": knob}


def _tune(data: str, arm: str, trial: int, context: Context) -> dict[str, float]:
    """Return the reward of a setting, or how far it is from being as diverse as RLG."""
    _, models = context.shared(data=data, purpose="tuning")
    knob = arms.KNOBS[arm][trial]
    own = arms.scored(arm, knob, models, TUNING_SEED, context.settings)
    rlg = arms.scored("rlg", 0.0, models, TUNING_SEED, context.settings)
    share = own["diversity"] / rlg["diversity"]
    validation = own["reward"] if share >= AS_DIVERSE else SHORT * (share - 1) - SHORT
    return {"validation": validation, "knob": knob, "reward": own["reward"], "diversity_share": share}


SMOKE = {
    "base": {"units": 24, "depth": 1, "steps": 40, "batch_size": 64},
    "tune": {"steps": 20, "batch_size": 64},
    "classifier": 40,
    "images": 48,
    "steps": 4,
    "every": 18,
    "rows": 16,
    "exact_steps": 5,
}
PAPER = {
    "base": {"units": 256, "depth": 3, "steps": 4000, "batch_size": 128},
    "tune": {"steps": 1500, "batch_size": 128},
    "classifier": 600,
    "images": 1000,
    "steps": 20,
    "every": 1,
    "rows": 400,
    "exact_steps": 100,
}

CLAIM = Claim(
    system="rlg",
    statement=(
        "Guidance at w = 2 has at least 0.2 sd more reward than the policy, no tuned baseline of the same diversity has more "
        "at as many passes, and what the ODE samples at w has the reward of the tilt at beta / w."
    ),
    source="jin2025rlg, abstract; the criterion is ours",
    parts=parts(),
    presets={
        "smoke": Preset(
            _cells(("ink",), 2),
            seeds=2,
            scale="Ink alone, nets of a few thousand weights, 48 images, 2 trials a baseline; the paper has SD3.5.",
            settings=SMOKE,
            extras="demo",
        ),
        "paper": Preset(
            _cells(tuple(DATA), 4),
            seeds=5,
            scale=(
                "Digits of 8 x 8, a class-conditional flow of 0.7 million weights and a reward-weighted policy for each seed "
                "and reward, 1,000 images, 20 steps of two passes, 4 trials a baseline on a seed kept apart; for beta / w "
                "exact mixtures of 1,797 kernels, 400 images, 100 steps. The paper has SD3.5 and others."
            ),
            settings=PAPER,
            extras="demo",
        ),
    },
    run=_run,
    data=lambda settings: _digests(),
    holds=verdict,
    figures=figures,
    tuned_by=TUNED_BY,
)


def _digests() -> dict[str, str]:
    from sanov.data.images import DIGESTS

    return {"digits": DIGESTS["digits"]}
