"""What an adapted model learns: the label of a text, or the text itself. Batches, losses, and what is read off a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from torch.nn import functional

from sanov.core.errors import InputError, SanovWarning
from sanov.core.progress import track
from sanov.learning.sentences import Sentences, padded
from sanov.nets.foreign_causal import ForeignCausal
from sanov.nets.reads import Read
from sanov.systems.nola.reading import Texts

__all__ = ["class_log_probs", "feed", "language_tokens", "loss_of", "scores", "text_tokens", "token_losses"]

TOGETHER = 64  # texts of a forward pass without gradient
NO_LIMIT = 1_000_000  # tokenizers without a limit name a number beyond this
Tokens = list[list[int]]


def text_tokens(texts: Texts, tokenizer: Any, limit: int) -> Tokens:
    """Return the tokens of texts for a classifier, cut at a limit, with a warning where one was cut."""
    limit = min(limit, tokenizer.model_max_length)
    tokens: Tokens = tokenizer(list(texts.texts), truncation=True, max_length=limit)["input_ids"]
    cut = sum(len(row) >= limit for row in tokens)
    if cut:
        text = f"{cut} of {len(tokens)} texts reach the limit of {limit} tokens (max_length), and were cut there if longer."
        warnings.warn(text, SanovWarning, stacklevel=4)
    return tokens


def language_tokens(texts: Texts, tokenizer: Any, limit: int) -> tuple[Tokens, Int64[np.ndarray, " rows"]]:
    """Return the tokens of texts for a language model, each with its end, and where what is learned begins.

    Of a text that stands alone the first token is not learned, since nothing stands before it.

    Raises
    ------
    InputError
        The tokenizer has no end of text, or a prompt fills the limit.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end of text (eos_token)", where=texts.name)
    limit = min(limit, tokenizer.model_max_length)
    tokens, starts, cut = [], [], 0
    prompts = texts.prompts or ("",) * len(texts)
    for row, (prompt, text) in enumerate(zip(prompts, texts.texts, strict=True), start=1):
        head = tokenizer(prompt)["input_ids"] if prompt else []
        head = head[:-1] if head and head[-1] == tokenizer.eos_token_id else head
        body = tokenizer(text, add_special_tokens=not head)["input_ids"]
        body = body if body and body[-1] == tokenizer.eos_token_id else [*body, tokenizer.eos_token_id]
        if len(head) >= limit:
            found = f"the prompt has {len(head)} tokens, and max_length is {limit}"
            raise InputError(found, where=f"{texts.name}, row {row}", fix="raise max_length, or leave out such rows")
        cut += len(head) + len(body) > limit
        tokens.append([*head, *body][:limit])
        starts.append(max(len(head), 1))
    if cut:
        text = f"{cut} of {len(tokens)} texts are longer than {limit} tokens (max_length), and were cut."
        warnings.warn(text, SanovWarning, stacklevel=4)
    return tokens, np.array(starts)


def feed(
    sentences: Sentences,
    pad: int,
    micro_batch: int,
    *,
    labels: np.ndarray | None = None,
    starts: np.ndarray | None = None,
) -> Callable[[int, nn.Module], Iterator[dict[str, Any]]]:
    """Return the batches of `train`: with labels those of a classifier, with starts those of a language model.

    Parameters
    ----------
    sentences
        Tokens, and the order in which they are taken.
    pad
        The token that fills up rows.
    micro_batch
        Rows at a time; 0 for all.
    labels, starts
        Of each row.
    """

    def batches(step: int, model: nn.Module) -> Iterator[dict[str, Any]]:
        for rows in sentences.rows(step, micro_batch):
            batch = padded([sentences.tokens[row] for row in rows], pad)
            if labels is not None:
                yield _labelled(batch, labels[rows])
            else:
                assert starts is not None
                yield _continued(batch, starts[rows])

    return batches


def _labelled(batch: dict[str, Any], labels: np.ndarray) -> dict[str, Any]:
    known = np.full(len(batch["input_ids"]), -1)
    known[: len(labels)] = labels
    return {**batch, "labels": torch.from_numpy(known), "counts": {"label": float((known >= 0).sum())}}


def _continued(batch: dict[str, Any], starts: np.ndarray) -> dict[str, Any]:
    first = np.full(len(batch["input_ids"]), batch["input_ids"].shape[1])
    first[: len(starts)] = starts
    learned = (torch.arange(batch["input_ids"].shape[1])[None] >= torch.from_numpy(first)[:, None]) & batch[
        "attention_mask"
    ].bool()
    before = functional.pad(learned[:, 1:], (0, 1))
    return {**batch, "learned": learned, "before": before, "counts": {"token": float(learned.sum())}}


def loss_of(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, tuple[Tensor, float]]:
    """Return the summed negative log-likelihood of labels, or of tokens."""
    if "labels" in batch:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        value = functional.cross_entropy(logits.float(), batch["labels"], reduction="sum", ignore_index=-1)
        return {"label": (value, 1.0)}
    reads = {"token": Read(batch["before"], batch["input_ids"][batch["learned"]])}
    found = model(batch["input_ids"], batch["attention_mask"].bool(), reads)["token"]
    return {"token": (-found.sum(), 1.0)}


@torch.no_grad()
def class_log_probs(model: Any, tokens: Tokens, pad: int) -> Float64[np.ndarray, "rows classes"]:
    """Return the log-probabilities of the classes of each text; texts of like length go together."""
    device = next(model.parameters()).device
    found: dict[int, np.ndarray] = {}
    for rows in track(_by_length(tokens), "texts"):
        batch = padded([tokens[row] for row in rows], pad)
        logits = model(**{name: values.to(device) for name, values in batch.items()}).logits
        found |= dict(zip(rows, torch.log_softmax(logits.double(), dim=-1).cpu().numpy(), strict=True))
    return np.stack([found[row] for row in range(len(tokens))])


@torch.no_grad()
def token_losses(
    model: ForeignCausal, tokens: Tokens, starts: Int64[np.ndarray, " rows"], pad: int
) -> tuple[Float64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
    """Return the summed negative log-likelihood of each text, in nats, and of how many tokens it is."""
    device = next(model.parameters()).device
    sums, counts = np.zeros(len(tokens)), np.zeros(len(tokens), dtype=np.int64)
    for rows in track(_by_length(tokens), "texts"):
        batch = _continued(padded([tokens[row] for row in rows], pad), starts[rows])
        ids, mask, learned = (batch[name].to(device) for name in ("input_ids", "attention_mask", "learned"))
        reads = {"token": Read(batch["before"].to(device), ids[learned])}
        values = torch.zeros(learned.shape, dtype=torch.float64, device=device)
        values[learned] = -model(ids, mask.bool(), reads)["token"].double()
        sums[rows], counts[rows] = values.sum(dim=1).cpu().numpy(), learned.sum(dim=1).cpu().numpy()
    return sums, counts


def _by_length(tokens: Sequence[Sequence[int]]) -> list[list[int]]:
    order = np.argsort([-len(row) for row in tokens], kind="stable").tolist()
    return [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]


def scores(log_probs: Float64[np.ndarray, "rows classes"], labels: Int64[np.ndarray, " rows"]) -> dict[str, float]:
    """Return accuracy and log loss (nats) on the rows that have a label."""
    known = labels >= 0
    right = log_probs[known].argmax(axis=1) == labels[known]
    losses = -log_probs[known, labels[known]]
    return {"accuracy": float(right.mean()), "log_loss": float(losses.mean())}
