"""A step of policy training, beside TRL's `GRPOTrainer`: samples a second, gradients, memory, and what a teacher costs.

Policies of 0.86 and 5.13 million weights (Llama), after some steps of imitation, on chain sums: 8 prompts a step, 8
completions each, at most 64 tokens, one thread, float32. Both read the same folder, sample at temperature 1, divide by the
tokens of the step, and update once by AdamW. Two cases:

- ``natural``: completions and groups as they come; where no reward differs within a group, sanov leaves its rows out;
- ``fixed``: 64 tokens each, none of which ends a completion, and a reward that differs within every group.

Blocks of steps take turns in one process, and a ratio is taken within a turn, of medians over a block's steps without the
first. Gradients are compared on the same completions and advantages. Memory is how far the peak of a process of its own
rises above what its imports took, at the same 64 rows at once. A teacher of the policy's size joins in the last
comparison, of `kdrl` with plain GRPO, both sanov's.

Run: ``python benchmarks/kdrl.py [--turns N] [--steps N] [--sizes 1M,5M]``; writes kdrl.json beside it.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

from sanov.core.errors import SanovWarning
from sanov.data.prompts import Prompts
from sanov.data.rewards import Rewards
from sanov.data.tasks import named
from sanov.data.tokens import CharTokenizer
from sanov.learning import policy
from sanov.learning.imitation import imitate
from sanov.learning.rollouts import Rollout
from sanov.learning.token_teachers import LocalTeacher
from sanov.nets.causal import load_model, save_model
from sanov.nets.transformer import Decoder, Shape
from sanov.systems.kdrl import Distillation, KdSignal, Mixing

PROMPTS, GROUP, LIMIT, RATE = 8, 8, 64, 1e-5
SIZES = {
    "1M": Shape(32, 128, 4, 4, 384, context=128),
    "5M": Shape(32, 256, 6, 4, 768, context=128),
    "tiny": Shape(32, 16, 1, 2, 32, context=128),
}
OURS, PEER, TAUGHT = "sanov", "TRL", "sanov, with a teacher"
TARGETS = {("1M", "natural"): 2.5, ("5M", "natural"): 1.8, ("1M", "fixed"): 1.2, ("5M", "fixed"): 1.0}
TASK = named("chain_sum", terms=(2, 4), largest=9)


class Endless(CharTokenizer):
    """The same tokens; what ends a text is one that is never sampled."""

    eos = CharTokenizer.reserved[1]


TOKENIZERS = {"natural": CharTokenizer(), "fixed": Endless()}


def rows(count: int = 512) -> Prompts:
    return TASK.rows(count, 0, "train")


def right(prompts, completions, answer, **columns):
    return [TASK.verify(text, {"answer": gold}) for text, gold in zip(completions, answer, strict=True)]


def differing(prompts, completions, **columns):
    """Something that differs within every group."""
    return [float(place % 2) for place in range(len(completions))]


REWARDS = {"natural": right, "fixed": differing}


def make(size: str, folder: Path, steps: int) -> None:
    model = Decoder(SIZES[size], seed=0)
    if steps:
        imitate(rows(4096), model, TOKENIZERS["natural"], steps=steps, batch_size=64, learning_rate=1e-3)
    save_model(model, folder, TOKENIZERS["natural"])


# -- contestants: seconds of each step of a block ---------------------------------------------------------------------


def ours(folder: Path, case: str, steps: int, *, taught: bool = False) -> list[float]:
    model, tokenizer, ends = load_model(folder), TOKENIZERS[case], [time.perf_counter()]
    signals = []
    if taught:
        kd = Distillation(beta=0.2, schedule="constant")
        signals = [KdSignal(LocalTeacher(load_model(folder), tokenizer), kd, Mixing(), steps=steps)]
    warnings.simplefilter("ignore", SanovWarning)
    policy.fit(
        rows(),
        model,
        tokenizer,
        Rewards((REWARDS[case],)),
        signals=signals,
        rollouts=Rollout(prompts_per_step=PROMPTS, group_size=GROUP, max_completion_length=LIMIT),
        training=policy.Optimisation(steps=steps, learning_rate=RATE, micro_batch_tokens=8192),
        callbacks=[lambda done, metrics: ends.append(time.perf_counter())],
    )
    return [end - start for start, end in itertools.pairwise(ends)]


def trainer_of(folder: Path, case: str, steps: int):
    import transformers
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(TOKENIZERS[case].eos)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = model.config.eos_token_id = TOKENIZERS[case].eos
    table = rows()
    data = Dataset.from_dict(
        {"prompt": ["<|bos|>" + text for text in table.prompts], "answer": table.columns["answer"]}
    )
    options = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=LIMIT,
        max_steps=steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    return GRPOTrainer(model, REWARDS[case], args=options, train_dataset=data, processing_class=tokenizer)


def peer(folder: Path, case: str, steps: int) -> list[float]:
    from transformers import TrainerCallback

    found = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments, **options):
            self.start = time.perf_counter()

        def on_step_end(self, *arguments, **options):
            found.append(time.perf_counter() - self.start)

    trainer = trainer_of(folder, case, steps)
    trainer.add_callback(Clock())
    trainer.train()
    return found


RUN = {
    OURS: ours,
    PEER: peer,
    TAUGHT: lambda folder, case, steps: ours(folder, case, steps, taught=True),
}


# -- the same gradient ------------------------------------------------------------------------------------------------


def gradient_gap(folder: Path) -> float:
    """Largest difference of a gradient's entry on the same completions, over the largest entry."""
    model, tokenizer = load_model(folder), TOKENIZERS["natural"]
    table = rows().take(range(PROMPTS))
    seen = []

    class Look(policy.Signal):
        def score(self, rollouts, step, model):
            seen.append(rollouts)

    policy.fit(
        table,
        load_model(folder),
        tokenizer,
        Rewards((differing,)),
        signals=[Look()],
        # transformers keeps the embedding of padding fixed, so that no completion may hold it
        rollouts=Rollout(
            prompts_per_step=PROMPTS, group_size=GROUP, max_completion_length=LIMIT, suppress=(tokenizer.pad,)
        ),
        training=policy.Optimisation(steps=1, micro_batch_tokens=8192),
    )
    (found,) = seen
    (batch,) = policy.packed(found, (), policy.Grpo(), 8192, 0)
    (policy.sums(model, batch, (), policy.Grpo())["policy"][0] / batch["counts"]["policy"]).backward()
    trainer = trainer_of(folder, "natural", 1)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    longest, width = int(found.starts.max()), int(found.completion_lengths.max())
    inputs = {name: torch.zeros(len(found), longest, dtype=torch.long) for name in ("prompt_ids", "prompt_mask")}
    inputs |= {f"completion_{what}": torch.zeros(len(found), width, dtype=torch.long) for what in ("ids", "mask")}
    for row in range(len(found)):
        start, end = int(found.starts[row]), int(found.lengths[row])
        inputs["prompt_ids"][row, longest - start :] = found.ids[row, :start]
        inputs["prompt_mask"][row, longest - start :] = 1
        inputs["completion_ids"][row, : end - start] = found.ids[row, start:end]
        inputs["completion_mask"][row, : end - start] = 1
    inputs |= {"advantages": found.advantages.float(), "num_items_in_batch": inputs["completion_mask"].sum()}
    trainer._compute_loss(trainer.model, inputs).backward()
    theirs = dict(trainer.model.named_parameters())
    gaps = [float((p.grad - theirs[name].grad).abs().max()) for name, p in model.named_parameters()]
    return max(gaps) / max(float(p.grad.abs().max()) for p in model.parameters())


# -- memory -----------------------------------------------------------------------------------------------------------


def memory(folder: Path, contestant: str, steps: int) -> float:
    """Peak of a process above what its imports took, in MiB."""
    command = [sys.executable, __file__, "--worker", contestant, "--folder", str(folder), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def worker(folder: Path, contestant: str, steps: int) -> None:
    if contestant == PEER:
        import datasets  # noqa: F401
        from trl import GRPOTrainer  # noqa: F401
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew, or imports would hide it
    before = resident("VmRSS")
    RUN[contestant](folder, "fixed", steps)
    print((resident("VmHWM") - before) / 1024)


def resident(name: str) -> int:
    """Return the memory of this process now (VmRSS) or at its peak (VmHWM), in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# -- all of it --------------------------------------------------------------------------------------------------------


def compare(folder: Path, case: str, first: str, second: str, turns: int, steps: int) -> dict:
    """Return the ratio of the second's seconds a step to the first's, turn by turn."""
    seconds: dict[str, list[float]] = {first: [], second: []}
    for turn in range(turns):
        for name in (first, second) if turn % 2 == 0 else (second, first):
            seconds[name].append(statistics.median(RUN[name](folder, case, steps + 1)[1:]))
    ratios = [b / a for a, b in zip(seconds[first], seconds[second], strict=True)]
    return {
        **{f"{name}, ms a step": round(1000 * statistics.median(found), 1) for name, found in seconds.items()},
        **{
            f"{name}, samples a second": round(PROMPTS * GROUP / statistics.median(found), 1)
            for name, found in seconds.items()
        },
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--sizes", default="1M,5M")
    parser.add_argument("--imitation", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--worker")
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.worker:
        worker(chosen.folder, chosen.worker, chosen.steps)
        return
    found: dict = {"machine": platform.machine(), "python": platform.python_version(), "threads": 1}
    found |= {name: version(name) for name in ("torch", "transformers", "trl")}
    with tempfile.TemporaryDirectory() as place:
        for size in chosen.sizes.split(","):
            folder = Path(place) / size
            make(size, folder, chosen.imitation)
            of = {"weights": sum(p.numel() for p in load_model(folder).parameters())}
            of["gradients: largest difference over largest entry"] = gradient_gap(folder)
            print(size, "gradients differ by", of["gradients: largest difference over largest entry"], flush=True)
            for case in ("natural", "fixed"):
                of[case] = compare(folder, case, OURS, PEER, chosen.turns, chosen.steps)
                of[case]["asked"] = TARGETS.get((size, case))
                print(size, case, f"{of[case]['ratio']:.2f}x TRL's samples a second", of[case]["ratios"], flush=True)
            of["teacher"] = compare(folder, "fixed", OURS, TAUGHT, chosen.turns, chosen.steps) | {
                "asked": "at most 1.3"
            }
            print(
                size, f"with a teacher {of['teacher']['ratio']:.2f}x a plain step", of["teacher"]["ratios"], flush=True
            )
            peaks = {name: memory(folder, name, 3) for name in (OURS, PEER)}
            of["memory above imports, MiB"] = {**peaks, "ratio": round(peaks[OURS] / max(peaks[PEER], 1), 3)}
            print(size, "memory", of["memory above imports, MiB"], flush=True)
            found[size] = of
    chosen.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
