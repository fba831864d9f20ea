"""What LaSeR adds to a step of GRPO, and what its score costs at test time.

Policies of 0.86 and 5.13 million weights after some steps of imitation, on chain sums: 8 prompts a step, 8 completions each,
one thread, float32. `laser` reads the label's log-probability off the forward pass that the update makes anyway, so that a
step costs little more; both variants, with and without the score's part in advantages, are compared with plain GRPO, and the
same tokens are suppressed in all. Single steps take turns: each contestant, in a process of its own, takes one while the
others wait, and the ratio is that of medians over the steps.

At test time the score of an answer needs one more token run through the cache; the peer runs prompt and answer again, as
the paper's released script does. Ratios are taken within a turn.

Run: ``python benchmarks/laser.py [--steps N] [--turns N]``; writes laser.json beside it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import kdrl
from kdrl import SIZES, TOKENIZERS, differing, make, rows
from sanov.data.rewards import Rewards
from sanov.learning import policies, policy
from sanov.learning.rollouts import Rollout
from sanov.nets.causal import load_model
from sanov.systems.laser.scoring import end_log_probs_of
from sanov.systems.laser.signal import SelfReward, SelfRewardSignal

PROMPTS, GROUP, LIMIT, RATE = 8, 8, 64, 1e-5
TOKENIZER = TOKENIZERS["natural"]
LABEL = TOKENIZER.reserved[0]
PLAIN = "GRPO"
WAYS = {
    PLAIN: {"alpha": 0.0, "tau": 0.0},
    "LaSeR, loss alone": {"alpha": 0.1, "tau": 0.0},
    "LaSeR": {"alpha": 0.1, "tau": 0.1, "warmup_steps": 0},
}


class Contestant:
    """A run in a process of its own, that is held between two steps so that others have their turn."""

    def __init__(self, folder: Path, name: str, steps: int):
        words = [
            sys.executable,
            "-W",
            "ignore",
            __file__,
            "--worker",
            name,
            "--folder",
            str(folder),
            "--steps",
            str(steps),
        ]
        found = os.pathsep.join([str(Path(kdrl.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": found}
        )
        self.seconds: list[float] = []

    def step(self) -> None:
        """Let it take one step, and keep the seconds that it says it took."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.seconds.append(float(self.process.stdout.readline()))


def worker(folder: Path, name: str, steps: int) -> None:
    """Take a step at each line of standard input, and print its seconds."""
    signal = SelfRewardSignal(SelfReward(reference="constant", ref_constant=-8.0, **WAYS[name]))
    clock = {"start": 0.0}

    def wait(done: int) -> None:
        if done:
            print(time.perf_counter() - clock["start"], flush=True)
        if done < steps:
            sys.stdin.readline()
            clock["start"] = time.perf_counter()

    wait(0)
    policy.fit(
        rows(),
        load_model(folder),
        TOKENIZER,
        Rewards((differing,)),
        signals=[signal],
        rollouts=Rollout(prompts_per_step=PROMPTS, group_size=GROUP, max_completion_length=LIMIT),
        training=policy.Optimisation(steps=steps, learning_rate=RATE, micro_batch_tokens=8192),
        callbacks=[lambda done, metrics: wait(done)],
    )


def training(folder: Path, steps: int) -> dict:
    """Return milliseconds a step and the ratio to plain GRPO; the first step of each also builds what the run needs."""
    running = {name: Contestant(folder, name, steps + 1) for name in WAYS}
    order = list(running)
    for turn in range(steps + 1):
        for name in order[turn % 3 :] + order[: turn % 3]:
            running[name].step()
    for each in running.values():
        each.process.communicate()
    medians = {name: statistics.median(each.seconds[1:]) for name, each in running.items()}
    found: dict = {f"{name}, ms a step": round(1000 * value, 1) for name, value in medians.items()}
    found |= {f"{name}, ratio": round(medians[name] / medians[PLAIN], 3) for name in WAYS if name != PLAIN}
    return found | {"asked": "at most 1.05", "steps": steps}


def testing(folder: Path, turns: int) -> dict:
    """Return seconds of sampling with the score read off the cache, and of sampling and then running it all again."""
    model, table = load_model(folder), rows(64)
    options = Rollout(max_completion_length=LIMIT, suppress=TOKENIZER.reserved)
    prompts = [[TOKENIZER.bos, *TOKENIZER.encode(text)] for text in table.prompts for _ in range(GROUP)]
    seconds: dict[str, list[float]] = {"no score": [], "one more token": [], "a second pass": []}
    gap = 0.0
    for turn in range(turns):
        for name in seconds:
            start = time.perf_counter()
            watch = (LABEL,) if name == "one more token" else ()
            found = policies.complete(model, TOKENIZER, table, None, options, samples=GROUP, seed=turn, watch=watch)
            if name == "one more token":
                own = found.ends[LABEL].ravel()
            if name == "a second pass":
                again = end_log_probs_of(model, TOKENIZER, prompts, found.ids, found.finished.ravel(), LABEL)
            seconds[name].append(time.perf_counter() - start)
        gap = max(gap, float(np.nanmax(np.abs(own - again))))
    ratios = {
        name: statistics.median(b / a for a, b in zip(seconds["no score"], seconds[name], strict=True))
        for name in ("one more token", "a second pass")
    }
    return {f"{name}, ratio to no score": round(ratio, 3) for name, ratio in ratios.items()} | {
        "largest difference of log-probabilities": gap
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--sizes", default="1M,5M")
    parser.add_argument("--worker")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--imitation", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.worker:
        worker(chosen.folder, chosen.worker, chosen.steps)
        return
    found: dict = {"machine": platform.machine(), "python": platform.python_version(), "threads": 1}
    found["torch"] = version("torch")
    with tempfile.TemporaryDirectory() as place:
        for size in chosen.sizes.split(","):
            folder = Path(place) / size
            make(size, folder, chosen.imitation)
            of = {"weights": sum(p.numel() for p in load_model(folder).parameters()), "shape": SIZES[size].width}
            of["training"] = training(folder, chosen.steps)
            of["test time"] = testing(folder, chosen.turns)
            print(size, of["training"], of["test time"], flush=True)
            found[size] = of
    chosen.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
