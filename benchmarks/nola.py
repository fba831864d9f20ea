"""A step of fine-tuning with NOLA's adapter beside one with PEFT's LoRA of rank 4: time, peak memory, and bytes on disk.

MiniLM (22.7 million weights) as a classifier, adapters on query and value of its six layers, a head besides; 32 rows of 48
random tokens, forward, backward and AdamW, float32, one thread. NOLA has rank 8 and 64 bases of each factor:

- ``by shape``: layers of one shape share their bases, which stay in memory;
- ``own``: each layer has bases of its own, which stay in memory;
- ``recomputed``: the same, made anew in each pass.

Blocks of steps take turns in one process, and a ratio is taken within a turn, of medians over the block's steps without the
first. Time is that of the processor, which other work on the machine changes little. Memory is the largest resident set of a
process of its own that imports the same and makes as many steps. Bytes are those of the adapter's file of weights.

Run: ``python benchmarks/nola.py [--turns N] [--steps N]``; writes nola.json beside it.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import peft
import torch
from transformers import BertConfig, BertForSequenceClassification

from sanov.nets.adaptable import load_base, packaged_encoder
from sanov.systems.nola import Adapter, Bank, Plan, attach

ROWS, TOKENS, TARGETS, RANK, COUNT = 32, 48, ("query", "value"), 8, 64
PEER = "PEFT LoRA, r = 4"
OURS = {
    "by shape": Plan(RANK, COUNT, COUNT, share_basis="by_shape", kept=True),
    "own": Plan(RANK, COUNT, COUNT, kept=True),
    "recomputed": Plan(RANK, COUNT, COUNT),
}
TARGET_RATIOS = {"by shape": 1.1, "own": 1.35}


def base(tiny: bool):
    if tiny:
        config = BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=TOKENS,
        )
        return BertForSequenceClassification(config)
    return load_base(packaged_encoder(), ("negative", "positive")).model


def adapted(name: str, tiny: bool):
    torch.manual_seed(0)
    model = base(tiny)
    if name == PEER:
        config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=list(TARGETS))
        model = peft.get_peft_model(model, config)
    else:
        attach(model, TARGETS, OURS[name])
    for parameter_name, parameter in model.named_parameters():
        if "classifier" in parameter_name:
            parameter.requires_grad_(True)
    return model.train()


class Contestant:
    """A model, its optimizer, and a batch."""

    def __init__(self, name: str, tiny: bool):
        self.model = adapted(name, tiny)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.trained = sum(weight.numel() for weight in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
        generator = torch.Generator().manual_seed(0)
        words = self.model.get_input_embeddings().weight.shape[0]
        self.ids = torch.randint(words, (ROWS, TOKENS), generator=generator)
        self.labels = torch.randint(2, (ROWS,), generator=generator)

    def step(self) -> float:
        """Return seconds of the processor."""
        start = time.process_time()
        self.optimizer.zero_grad()
        self.model(input_ids=self.ids, labels=self.labels).loss.backward()
        self.optimizer.step()
        return time.process_time() - start


def times(turns: int, steps: int, tiny: bool) -> dict:
    contestants = {name: Contestant(name, tiny) for name in (PEER, *OURS)}
    blocks: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, contestant in contestants.items():
            contestant.step()
            blocks[name].append(statistics.median(contestant.step() for _ in range(steps)))
    found = {}
    for name in contestants:
        ratios = sorted(own / peer for own, peer in zip(blocks[name], blocks[PEER], strict=True))
        found[name] = {
            "trained": contestants[name].trained,
            "milliseconds": round(1000 * statistics.median(blocks[name]), 2),
            "ratio": round(statistics.median(ratios), 4),
            "ratios": [round(ratio, 4) for ratio in ratios],
            "asked": TARGET_RATIOS.get(name),
        }
    return found


def peak(name: str, steps: int, tiny: bool) -> float:
    """Megabytes of a process of its own."""
    words = ["--one", name, "--steps", str(steps), *(["--tiny"] if tiny else [])]
    out = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True).stdout
    return json.loads(out)["megabytes"]


def one(name: str, steps: int, tiny: bool) -> dict:
    contestant = Contestant(name, tiny)
    for _ in range(steps):
        contestant.step()
    unit = 1 if sys.platform == "darwin" else 1024
    return {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}


def sizes(tiny: bool) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        adapted(PEER, tiny).save_pretrained(place / "lora")
        lora = (place / "lora" / "adapter_model.safetensors").stat().st_size
        found = {PEER: {"bytes": lora}}
        model = adapted("own", tiny)
        for name, weight in model.named_parameters():
            if "nola" in name:
                torch.nn.init.normal_(weight)
        adapter = Adapter.of(model, OURS["own"], TARGETS)
        for bits in (32, 16, 8, 4):
            adapter.save(place / "nola", bits)
            own = (place / "nola" / "adapter_model.safetensors").stat().st_size
            found[f"NOLA, {bits} bits"] = {"bytes": own, "share": round(own / lora, 5)}
        Bank.of({f"user {number}": adapter for number in range(1000)}, bits=4).save(place / "bank.safetensors")
        found["a bank of 1,000, 4 bits"] = {"bytes": (place / "bank.safetensors").stat().st_size}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="A net that shows nothing.")
    parser.add_argument("--one", help="The memory of one contestant, for a process of its own.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(one(options.one, options.steps, options.tiny)))
        return
    # Memory first: a process begins with the peak of the one that started it, which must be small.
    peaks = {name: peak(name, options.steps, options.tiny) for name in (PEER, *OURS)}
    steps = times(options.turns, options.steps, options.tiny)
    for name, found in steps.items():
        found["megabytes"] = round(peaks[name], 1)
        found["memory_ratio"] = round(peaks[name] / peaks[PEER], 4)
    result = {
        "step": steps,
        "files": sizes(options.tiny),
        "turns": options.turns,
        "steps": options.steps,
        "machine": {"processor": platform.machine(), "python": platform.python_version(), "threads": 1},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
