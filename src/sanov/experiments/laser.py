"""The claim of `laser`: the policy's last-token score tells right answers from wrong ones, costs nothing, and helps to vote.

All arms of a family of tasks start from the same student and see the same prompts with the same noise; the label and its
spare are never sampled in any of them. Each arm has the same trials (one Latin hypercube over learning rate and weight of
the loss), judged on validation prompts of a seed kept apart: by accuracy for GRPO, by the mean of accuracy and AUROC, both
in per cent, where a score is trained. Test prompts are read once, with 16 completions each; a vote of 8 takes the first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sanov.claims import Cell, Claim, Context, Preset
from sanov.core.errors import SanovWarning
from sanov.experiments import policy_starts as starts
from sanov.experiments.laser_parts import ARMS, VOTES, figures, parts, verdict
from sanov.experiments.trials import draw

__all__ = ["CLAIM"]

TUNED_BY = {"permuted": "laser_mse", "score_alone": "laser_mse"}
TUNED = tuple(arm for arm in ARMS if arm not in TUNED_BY)
RANGES = {"learning_rate": (2e-5, 1e-3), "alpha": (0.03, 1.0)}
SELF: dict[str, dict[str, Any]] = {
    "laser_mse": {"tau": 0.0},
    "laser": {"tau": 0.1},
    "bce": {"tau": 0.0, "loss": "bce"},
    "permuted": {"tau": 0.0},
    "score_alone": {"tau": 1.0, "warmup_steps": 0},
}
QUARTERS = 4  # of completions by length


def _cells(families: Sequence[str], trials: int) -> Callable[[Sequence[int]], list[Cell]]:
    """A student for each family and seed, trials, and every arm on every seed."""

    def cells(seeds: Sequence[int]) -> list[Cell]:
        found = list(starts.student_cells(families, seeds))
        return found + list(starts.arm_cells(families, ARMS, TUNED, trials, seeds))

    return cells


def _run(cell: Cell, context: Context, folder: Path) -> Mapping[str, Any]:
    import torch

    torch.set_num_threads(1)
    family, settings = str(cell.key["data"]), context.settings
    if cell.stage == "shared":
        return starts.make_student(family, int(cell.key.get("seed", starts.SEEDS_APART)), settings, folder)
    arm = str(cell.key["arm"])
    if cell.stage == "tune":
        chosen = draw(int(cell.key["trial"]), settings["trials"], RANGES)
        policy, signal, _ = _trained(arm, family, starts.SEEDS_APART, chosen, context)
        found = _examined(policy, signal, family, "validation", starts.SEEDS_APART, settings)
        worth = found["accuracy"] if arm == "grpo" else (found["accuracy"] + 100 * found["auroc"]) / 2
        return {"validation": worth, **chosen}
    best = context.tuned(data=family, arm=TUNED_BY.get(arm, arm)).values
    chosen = {name: best[name] for name in RANGES}
    seed = int(cell.key["seed"])
    policy, signal, curves = _trained(arm, family, seed, chosen, context)
    validation = _examined(policy, signal, family, "validation", seed, settings)
    start, _ = context.shared(data=family, model="student", seed=seed)
    about = {f"validation_{name}": validation[name] for name in ("accuracy", "auroc", "auroc_log_prob", "auroc_length")}
    return {
        **_examined(policy, signal, family, "test", seed, settings),
        **about,
        "start": start["validation"],
        **curves,
        **chosen,
    }


# -- arms -------------------------------------------------------------------------------------------------------------


def _trained(
    arm: str, family: str, seed: int, chosen: Mapping[str, float], context: Context
) -> tuple[Any, Any, dict[str, Any]]:
    """Return the student as an arm leaves it, the signal with its scale, and how the reward rose."""
    from sanov.systems.laser.signal import SelfReward, SelfRewardSignal, permuted_labels

    settings = context.settings
    folder = starts.student_folder(context, family, seed)
    student = starts.load(folder)
    own = {"alpha": 0.0, "tau": 0.0} if arm == "grpo" else {"alpha": chosen["alpha"], **SELF[arm]}
    own = {"warmup_steps": settings["warmup"], "reference": "constant", **own}
    kind = _alone() if arm == "score_alone" else SelfRewardSignal
    signal = kind(SelfReward(**own), seed=seed, labels=permuted_labels(seed) if arm == "permuted" else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SanovWarning)  # that one constant is rough: part of what is tested
        history, _ = _fit(family, student, signal, chosen, settings, seed)
    return student, signal, starts.curve(history, settings["every"])


def _alone() -> Any:
    """Return the signal whose scores are the only reward: a group that they do not tell apart learns nothing."""
    import torch

    from sanov.systems.laser.signal import SelfRewardSignal

    class Alone(SelfRewardSignal):
        def advantages(self, rollouts: Any, step: int) -> None:
            rollouts.advantages = torch.zeros_like(rollouts.advantages)
            super().advantages(rollouts, step)

    return Alone


def _fit(
    family: str, student: Any, signal: Any, chosen: Mapping[str, float], settings: Mapping[str, Any], seed: int
) -> Any:
    from sanov.learning import policy
    from sanov.learning.rollouts import Rollout

    return policy.fit(
        starts.table(family, "train", settings["rows"]["train"]),
        student,
        starts.TOKENIZER,
        starts.rewards(family),
        signals=[signal],
        rollouts=Rollout(
            prompts_per_step=settings["prompts"],
            group_size=settings["group_size"],
            max_completion_length=settings["limit"],
            suppress=(starts.TOKENIZER.reserved[1],),
        ),
        training=policy.Optimisation(steps=settings["steps"], learning_rate=chosen["learning_rate"]),
        seed=seed,
    )


# -- what a policy's answers and scores are worth ---------------------------------------------------------------------


def _examined(
    policy: Any, signal: Any, family: str, split: str, seed: int, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Return accuracy, what each score says of right and wrong, and the gain of votes over the majority."""
    import torch

    from sanov.learning.policies import complete
    from sanov.learning.rollouts import Rollout
    from sanov.systems.laser.calibration import verdicts

    rows = starts.table(family, split, settings["rows"][split])
    samples, scale = settings["samples"][split], signal.scale
    options = Rollout(max_completion_length=settings["limit"], suppress=starts.TOKENIZER.reserved)
    found = complete(
        policy,
        starts.TOKENIZER,
        rows,
        starts.rewards(family),
        options,
        samples=samples,
        seed=seed,
        watch=(scale.token,),
    )
    ends, right = found.ends[scale.token], found.rewards > 0
    log_self = np.where(found.finished, ends, 0.0)
    scores = scale.scores(torch.from_numpy(log_self.ravel())).numpy().reshape(log_self.shape)
    scores = np.where(found.finished, scores, 0.0)
    own = verdicts(scores.ravel(), right.ravel())
    rivals = {
        "log_prob": _auroc(found.mean_log_prob, right),
        "length": _auroc(-found.lengths.astype(float), right),
        "agreement": _auroc(_agreement(found, samples), right),
    }
    return {
        "accuracy": 100 * float(right.mean()),
        "length": float(found.lengths.mean()),
        "auroc": own["auroc"],
        "f1": own["f1"],
        "ece": own["ece"],
        "auroc_by_length": _within(scores, found.lengths, right),
        "log_prob_by_length": _within(found.mean_log_prob, found.lengths, right),
        **{f"auroc_{name}": value for name, value in rivals.items()},
        **_votes(found, scores, right, rows, samples),
    }


def _auroc(scores: np.ndarray, right: np.ndarray) -> float:
    from sanov.scores import auroc

    return auroc(scores.ravel(), right.ravel().astype(float))


def _answers(found: Any, samples: int) -> list[list[str | None]]:
    texts = [text.rpartition(":")[2] or None if ":" in text else None for text in found.texts]
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def _agreement(found: Any, samples: int) -> np.ndarray:
    """Return the share of a prompt's completions that give the same answer."""
    return np.array(
        [[group.count(answer) / samples if answer else 0.0 for answer in group] for group in _answers(found, samples)]
    )


def _within(scores: np.ndarray, lengths: np.ndarray, right: np.ndarray) -> float:
    """Return the mean AUROC within quarters of completions by length, of those that hold right and wrong ones."""
    order = np.argsort(lengths.ravel(), kind="stable")
    values = [_auroc(scores.ravel()[part], right.ravel()[part]) for part in np.array_split(order, QUARTERS)]
    return float(np.nanmean(values))


def _votes(found: Any, scores: np.ndarray, right: np.ndarray, rows: Any, samples: int) -> dict[str, float]:
    """Return the accuracy of the majority, of the weighted vote and of the best score, in per cent."""
    from sanov.systems.laser.votes import best_of_n, majority_vote, weighted_vote

    gold = [str(answer) for answer in rows.columns["answer"]]
    out: dict[str, float] = {}
    for size in (size for size in VOTES if size <= samples):
        cases = list(zip(_answers(found, samples), scores, gold, strict=True))
        kinds = {
            "majority": [majority_vote(a[:size]).answer == g for a, _, g in cases],
            "weighted": [weighted_vote(a[:size], s[:size]).answer == g for a, s, g in cases],
            "best": [best_of_n(a[:size], s[:size]).answer == g for a, s, g in cases],
        }
        out |= {f"{kind}_{size}": 100 * float(np.mean(good)) for kind, good in kinds.items()}
    return out


# -- sizes ------------------------------------------------------------------------------------------------------------

SMOKE = {
    **starts.SMOKE_RUN,
    "steps": 6,
    "every": 3,
    "warmup": 2,
    "samples": {"validation": 2, "test": 16},
    "student": {
        "shape": starts.TINY, "steps": 60, "every": 30, "batch_size": 32, "learning_rate": 1e-2,
        "judged": 10, "until": 25.0, "limit": 12,
    },
}  # fmt: skip
PAPER = {
    **starts.PAPER_RUN,
    "warmup": 50,
    "samples": {"validation": 8, "test": 16},
}  # fmt: skip

CLAIM = Claim(
    system="laser",
    statement=(
        "The last-token score of a policy tells its own right answers from wrong ones better than free measures of "
        "confidence do, at no cost in accuracy, and makes votes better."
    ),
    source="yang2025laser, sec. 4; the criterion is ours",
    parts=parts(tuple(starts.FAMILIES)),
    presets={
        "smoke": Preset(
            _cells(("sums",), 1),
            seeds=2,
            scale="Chain sums alone, nets of a few thousand weights, 6 updates, 1 trial an arm.",
            settings=SMOKE,
            parts=parts(("sums",)),
            extras="demo",
        ),
        "paper": Preset(
            _cells(tuple(starts.FAMILIES), 5),
            seeds=10,
            scale=(
                "Two families of generated tasks, students of 0.86 million weights (one for each family and seed), 64 "
                "completions a step, 120 updates, 5 trials an arm on a seed kept apart, 500 test prompts with 16 completions "
                "each, one constant for the reference as in the paper. The paper trains models of 3 and 7 billion weights on "
                "128 prompts a step."
            ),
            settings=PAPER,
            extras="torch",
        ),
    },
    run=_run,
    data=lambda settings: starts.digests(settings["rows"]),
    holds=verdict,
    figures=figures,
    tuned_by=TUNED_BY,
)
