"""The claim of `kdrl`: at equal completions, annealed KDRL beats the better of tuned GRPO and tuned KD-RKL.

All arms of a family of tasks start from the same student and see the same prompts with the same noise, have the same
trials (one Latin hypercube over learning rate, coefficient and the share of steps with distillation, of which each arm
uses the coordinates that it has), and the same number of updates and of completions. Trials are judged on validation
prompts of a seed kept apart; the better baseline is that of higher mean validation accuracy over the seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sanov.claims import Cell, Claim, Context, Preset
from sanov.experiments import policy_starts as starts
from sanov.experiments.kdrl_parts import ARMS, figures, parts
from sanov.experiments.trials import draw

__all__ = ["CLAIM"]

TUNED_BY = {"random_teacher": "kdrl", "k1_loss": "kdrl"}
TUNED = tuple(arm for arm in ARMS if arm not in TUNED_BY)
RANGES = {"learning_rate": (2e-5, 1e-3), "beta": (0.02, 1.0), "share": (0.25, 0.75)}
KD: dict[str, dict[str, Any]] = {
    "opd": {"combine": "opd"},
    "kdrl_constant": {"combine": "loss", "schedule": "constant"},
    "kdrl": {"combine": "loss"},
    "mask_response": {"combine": "loss", "mask": "response"},
    "mask_group": {"combine": "loss", "mask": "group"},
    "opd_then_rl": {"combine": "opd_then_rl"},
    "random_teacher": {"combine": "loss"},
    "k1_loss": {"combine": "loss"},
}
FLOOR, ANNEALED = 0.01, 0.5  # of beta, and of the steps, at which it is reached


def _cells(families: Sequence[str], trials: int) -> Callable[[Sequence[int]], list[Cell]]:
    """A teacher for each family, a student for each seed, trials, and every arm on every seed."""

    def cells(seeds: Sequence[int]) -> list[Cell]:
        found = [Cell("shared", {"data": family, "model": "teacher"}) for family in families]
        found += list(starts.student_cells(families, seeds))
        return found + list(starts.arm_cells(families, ARMS, TUNED, trials, seeds))

    return cells


def _run(cell: Cell, context: Context, folder: Path) -> Mapping[str, Any]:
    import torch

    torch.set_num_threads(1)
    family, settings = str(cell.key["data"]), context.settings
    if cell.stage == "shared":
        if cell.key["model"] == "teacher":
            return starts.make_teacher(family, settings, folder)
        return starts.make_student(family, int(cell.key.get("seed", starts.SEEDS_APART)), settings, folder)
    arm = str(cell.key["arm"])
    if cell.stage == "tune":
        chosen = draw(int(cell.key["trial"]), settings["trials"], RANGES)
        policy, _ = _trained(arm, family, starts.SEEDS_APART, chosen, context)
        return {"validation": _judged(policy, family, "validation", starts.SEEDS_APART, settings)["accuracy"], **chosen}
    best = context.tuned(data=family, arm=TUNED_BY.get(arm, arm)).values
    chosen = {name: best[name] for name in RANGES}
    seed = int(cell.key["seed"])
    policy, curves = _trained(arm, family, seed, chosen, context)
    validation = _judged(policy, family, "validation", seed, settings)["accuracy"]
    start, _ = context.shared(data=family, model="student", seed=seed)
    teacher, _ = context.shared(data=family, model="teacher")
    about = {"start": start["validation"] * 1.0, "teacher": teacher["validation"] * 1.0, "validation": validation}
    return {**_judged(policy, family, "test", seed, settings), **about, **curves, **chosen}


def _judged(policy: Any, family: str, split: str, seed: int, settings: Mapping[str, Any]) -> dict[str, float]:
    rows = starts.table(family, split, settings["rows"][split])
    samples = settings["samples"][split]
    return starts.accuracy(policy, family, rows, samples, seed, settings["limit"])


# -- arms -------------------------------------------------------------------------------------------------------------


def _trained(
    arm: str, family: str, seed: int, chosen: Mapping[str, float], context: Context
) -> tuple[Any, dict[str, Any]]:
    """Return the student as an arm leaves it, and how its reward rose."""
    from sanov.learning import policy
    from sanov.learning.imitation import imitate
    from sanov.learning.rollouts import Rollout

    settings = context.settings
    folder = starts.student_folder(context, family, seed)
    student = starts.load(folder)
    rows = starts.table(family, "train", settings["rows"]["train"])
    if arm == "sft":
        size = settings["prompts"] * settings["group_size"]
        imitate(rows, student, starts.TOKENIZER, steps=settings["steps"], batch_size=size, seed=seed,
                learning_rate=chosen["learning_rate"])  # fmt: skip
        return student, {}
    history, _ = policy.fit(
        rows,
        student,
        starts.TOKENIZER,
        starts.rewards(family),
        signals=[] if arm == "grpo" else [_signal(arm, family, chosen, context)],
        rollouts=Rollout(
            prompts_per_step=settings["prompts"],
            group_size=settings["group_size"],
            max_completion_length=settings["limit"],
        ),
        training=policy.Optimisation(steps=settings["steps"], learning_rate=chosen["learning_rate"]),
        seed=seed,
    )
    return student, starts.curve(history, settings["every"])


def _signal(arm: str, family: str, chosen: Mapping[str, float], context: Context) -> Any:
    from sanov.learning.token_teachers import LocalTeacher
    from sanov.systems.kdrl import Distillation, KdSignal, Mixing

    settings = context.settings
    if arm == "random_teacher":
        model = starts.untrained(settings["teacher"]["shape"])
    else:
        _, folder = context.shared(data=family, model="teacher")
        model = starts.load(folder)
    beta = chosen["beta"]
    kd = Distillation(beta=beta, beta_end=FLOOR * beta, anneal_share=ANNEALED, **KD[arm])
    mixing = Mixing(opd_steps=round(chosen["share"] * settings["steps"]))
    make = _k1() if arm == "k1_loss" else KdSignal
    return make(LocalTeacher(model, starts.TOKENIZER), kd, mixing, steps=settings["steps"])


def _k1() -> Any:
    """Return the signal whose loss is k1, which `kdrl` itself refuses: a control."""
    import torch

    from sanov.systems.kdrl import KdSignal

    class K1(KdSignal):
        def _values(self, found: Any, reads: Any, batch: Any) -> Any:
            gap = found.log_new - batch.tokens["log_teacher"]
            return torch.where(batch.tokens["kd_mask"], gap, 0.0)

    return K1


# -- sizes ------------------------------------------------------------------------------------------------------------

SMOKE = {
    **starts.SMOKE_RUN,
    "steps": 4,
    "every": 2,
    "samples": {"validation": 1, "test": 2},
    "teacher": {
        "shape": {**starts.TINY, "width": 32}, "steps": 30, "every": 30, "batch_size": 32, "learning_rate": 3e-3,
        "judged": 10, "until": 90.0, "limit": 12,
    },
    "student": {
        "shape": starts.TINY, "steps": 10, "every": 10, "batch_size": 32, "learning_rate": 3e-3,
        "judged": 10, "until": 25.0, "limit": 12,
    },
}  # fmt: skip
PAPER = {
    **starts.PAPER_RUN,
    "samples": {"validation": 4, "test": 8},
    "teacher": {
        "shape": {"width": 256, "layers": 6, "heads": 4, "mlp": 768, "context": 96},
        "steps": 2400, "every": 100, "batch_size": 64, "learning_rate": 1.5e-3, "rate": "cosine", "warmup": 0.04,
        "judged": 200, "until": 95.0, "limit": 32,
    },
}  # fmt: skip

CLAIM = Claim(
    system="kdrl",
    statement=(
        "At equal numbers of completions and updates, KDRL with an annealed coefficient has higher held-out accuracy than "
        "the better of tuned GRPO and tuned KD-RKL."
    ),
    source="xu2025kdrl, sec. 4; the criterion is ours",
    parts=parts(tuple(starts.FAMILIES)),
    presets={
        "smoke": Preset(
            _cells(("sums",), 1),
            seeds=2,
            scale="Chain sums alone, nets of a few thousand weights, 4 updates, 1 trial an arm.",
            settings=SMOKE,
            parts=parts(("sums",)),
            extras="demo",
        ),
        "paper": Preset(
            _cells(tuple(starts.FAMILIES), 5),
            seeds=5,
            scale=(
                "Two families of generated tasks, a teacher of 5.1 million weights (one for each family) and students of "
                "0.86 million (one for each seed), 64 completions a step, 120 updates, 5 trials an arm on a seed kept apart, "
                "500 test prompts with 8 completions each. The paper trains 1.5 billion weights for about 280 updates."
            ),
            settings=PAPER,
            extras="torch",
        ),
    },
    run=_run,
    data=lambda settings: starts.digests(settings["rows"]),
    figures=figures,
    tuned_by=TUNED_BY,
)
