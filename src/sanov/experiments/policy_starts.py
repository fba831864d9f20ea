"""Where the claims on policies begin: tasks, a teacher for each family of tasks, and a student that knows a little.

Tasks are generated: chain sums of two to four operands up to 9, and modular arithmetic. Rows to learn from, to choose by
and to test on have no prompt in common. A teacher imitates worked answers until it is nearly always right; a student of a
sixth of its size stops where it is right now and then, so that there is something to reward and something to learn.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sanov.claims import Cell, Context
from sanov.core import files
from sanov.data.tasks import named
from sanov.data.tokens import CharTokenizer

if TYPE_CHECKING:
    from sanov.data.prompts import Prompts
    from sanov.data.rewards import Rewards
    from sanov.nets.transformer import Decoder

__all__ = [
    "FAMILIES",
    "SIZES",
    "TOKENIZER",
    "accuracy",
    "digests",
    "load",
    "make_student",
    "make_teacher",
    "rewards",
    "student_cells",
    "student_folder",
    "table",
    "untrained",
]

FAMILIES = {"sums": "chain sums", "modular": "modular arithmetic"}
SIZES: dict[str, dict[str, Any]] = {
    "sums": {"name": "chain_sum", "terms": (2, 4), "largest": 9},
    "modular": {"name": "modular"},
}
TOKENIZER = CharTokenizer()
TEACHER_SEED, DATA_SEED = 77, 20_250_604
TINY = {"width": 16, "layers": 1, "heads": 2, "mlp": 32, "context": 64}
SMOKE_RUN = {
    "trials": 1,
    "prompts": 4,
    "group_size": 4,
    "limit": 12,
    "rows": {"train": 256, "validation": 20, "test": 20},
}
PAPER_RUN = {
    "trials": 5, "steps": 120, "every": 10, "prompts": 8, "group_size": 8, "limit": 32,
    "rows": {"train": 65_536, "validation": 200, "test": 500},
    "student": {
        "shape": {"width": 128, "layers": 4, "heads": 4, "mlp": 384, "context": 96},
        "steps": 1500, "every": 25, "batch_size": 64, "learning_rate": 2e-3, "judged": 200,
        "until": 20.0, "limit": 32,
    },
}  # fmt: skip
SEEDS_APART = 1_000  # the seed of tuning, which is none of the comparison


@functools.cache
def table(family: str, split: str, count: int) -> Prompts:
    """Return rows of a family's split, the same for all seeds."""
    return named(**SIZES[family]).rows(count, DATA_SEED, split)


def rewards(family: str) -> Rewards:
    """Return the reward that checks a family's answers."""
    from sanov.data.rewards import Rewards

    return Rewards((named(**SIZES[family]).verifier,))


def digests(counts: Mapping[str, int]) -> dict[str, str]:
    """Return the digest of each family's rows."""
    return {
        family: files.digest([table(family, split, count).digest() for split, count in sorted(counts.items())])
        for family in FAMILIES
    }


def _decoder(shape: Mapping[str, Any], seed: int) -> Decoder:
    from sanov.nets.transformer import Decoder, Shape

    return Decoder(Shape(TOKENIZER.vocabulary, **shape), seed=seed)


def untrained(shape: Mapping[str, Any]) -> Decoder:
    """Return a model that was never taught."""
    return _decoder(shape, TEACHER_SEED)


def arm_cells(
    families: Sequence[str], arms: Iterable[str], tuned: Iterable[str], trials: int, seeds: Sequence[int]
) -> Iterator[Cell]:
    """Yield the trials of every arm that is tuned, and then every arm on every seed, seed by seed."""
    for family, arm, trial in product(families, tuned, range(trials)):
        yield Cell("tune", {"data": family, "arm": arm, "trial": trial})
    for seed, family, arm in product(seeds, families, arms):
        yield Cell("compare", {"data": family, "arm": arm, "seed": seed})


def student_cells(families: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
    """Yield the cells that make students: one for tuning, and one for each seed, of every family."""
    for family in families:
        yield Cell("shared", {"data": family, "model": "student", "purpose": "tuning"})
        yield from (Cell("shared", {"data": family, "model": "student", "seed": seed}) for seed in seeds)


def student_folder(context: Context, family: str, seed: int) -> Path:
    """Return the folder of the student that a run begins with."""
    which = {"purpose": "tuning"} if seed == SEEDS_APART else {"seed": seed}
    return context.shared(data=family, model="student", **which)[1]


def make_teacher(family: str, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Let a teacher imitate worked answers until it is right on enough validation rows, or its steps are used up."""
    return _taught(family, settings["teacher"], settings, TEACHER_SEED, folder)


def make_student(family: str, seed: int, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Let a student imitate worked answers until it is right now and then."""
    return _taught(family, settings["student"], settings, seed, folder)


def _taught(
    family: str, how: Mapping[str, Any], settings: Mapping[str, Any], seed: int, folder: Path
) -> dict[str, Any]:
    from sanov.learning.imitation import imitate
    from sanov.nets.causal import save_model

    model = _decoder(how["shape"], seed)
    rows, judge_by = (
        table(family, "train", settings["rows"]["train"]),
        table(family, "validation", settings["rows"]["validation"]),
    )
    judge_by = judge_by.take(range(min(how["judged"], len(judge_by))))

    def evaluate(policy: Any, done: int) -> dict[str, float]:
        return {"accuracy": accuracy(policy, family, judge_by, 1, seed, how["limit"])["accuracy"]}

    history = imitate(
        rows,
        model,
        TOKENIZER,
        steps=how["steps"],
        batch_size=how["batch_size"],
        learning_rate=how["learning_rate"],
        rate=how.get("rate", "constant"),
        warmup=how.get("warmup", 0.0),
        evaluate=evaluate,
        evaluate_every=how["every"],
        callbacks=[lambda done, metrics: metrics.get("accuracy", 0.0) >= how["until"]],
        seed=seed,
    )
    save_model(model, folder, TOKENIZER)
    last = max(history.evaluations)
    return {"validation": history.evaluations[last]["accuracy"], "steps": len(history), "files": ["model.safetensors"]}


def load(folder: Path) -> Decoder:
    """Return a model that was made here."""
    from sanov.nets.transformer import load_decoder

    return load_decoder(folder)


def accuracy(policy: Any, family: str, rows: Prompts, samples: int, seed: int, limit: int) -> dict[str, float]:
    """Return the share of right completions, their mean length, and the share that ended, in per cent and tokens."""
    from sanov.learning.policies import complete
    from sanov.learning.rollouts import Rollout

    options = Rollout(max_completion_length=limit)
    found = complete(policy, TOKENIZER, rows, rewards(family), options, samples=samples, seed=seed)
    return {
        "accuracy": 100 * float(found.rewards.mean()),
        "length": float(found.lengths.mean()),
        "finished": float(found.finished.mean()),
        "majority": 100 * _majority(found, rows, samples),
    }


def _majority(found: Any, rows: Prompts, samples: int) -> float:
    """Return how often the most frequent answer is right."""
    texts = [text.rpartition(":")[2] for text in found.texts]
    right = 0
    for place, answer in enumerate(rows.columns["answer"]):
        votes = texts[place * samples : (place + 1) * samples]
        right += max(dict.fromkeys(votes), key=votes.count) == str(answer)
    return float(right / len(rows))


def curve(history: Any, every: int = 10) -> dict[str, list[float]]:
    """Return the mean reward of each so many steps, and the tokens sampled until their end."""
    reward = np.array([report["reward"] for report in history.reports.values()])
    tokens = np.cumsum([report["num_tokens"] for report in history.reports.values()])
    ends = range(every, len(reward) + 1, every)
    return {
        "reward_curve": [round(100 * float(np.mean(reward[end - every : end])), 2) for end in ends],
        "token_curve": [float(tokens[end - 1]) for end in ends],
    }
