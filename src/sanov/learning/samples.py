"""Some completions of a run, token by token, each with how much likelier the policy made it than a reference does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sanov.core import files
from sanov.core.pages import Passage, Passages
from sanov.learning.completing import Completed
from sanov.learning.rollouts import Rollouts, Tokenizer, encoded
from sanov.learning.signals import Signal
from sanov.learning.validation import Validation
from sanov.nets.reads import Read

__all__ = ["Kept", "block", "completed"]

PROMPTS, EACH = 8, 4  # that a page shows


class Kept(Signal):
    """Keeps some completions of the newest step, and changes nothing: it stands after the other signals."""

    observes = True

    def __init__(self) -> None:
        self.rollouts: Rollouts | None = None

    def advantages(self, rollouts: Rollouts, step: int) -> None:
        """Copy the rows of some prompts, first of those whose rewards differ."""
        groups = rollouts.rewards.cpu().reshape(-1, rollouts.group_size).numpy()
        with np.errstate(invalid="ignore"):
            same = groups.max(axis=1) == groups.min(axis=1)
        chosen = np.argsort(same, kind="stable")[:PROMPTS]
        size = min(EACH, rollouts.group_size)
        rows = [int(group) * rollouts.group_size + int(row) for group in chosen for row in _ends(groups[group], size)]
        at = torch.tensor(rows, device=rollouts.ids.device)
        tokens: dict[str, Tensor] = {
            name: rollouts.tokens[name][at] for name in ("log_teacher", "kd_mask") if name in rollouts.tokens
        }
        named = ("ids", "starts", "lengths", "finished", "log_probs", "rewards")
        self.rollouts = replace(
            rollouts,
            prompts=rollouts.prompts.take(chosen.tolist()),
            group_size=size,
            texts=[rollouts.texts[row] for row in rows],
            index=rollouts.index[chosen],
            tokens=tokens,
            rows={},
            shaped=None,
            scores=rollouts.scores[rows],
            ends={token: values[at] for token, values in rollouts.ends.items()},
            advantages=rollouts.advantages[at],
            **{name: getattr(rollouts, name)[at] for name in named},
        )


def _ends(rewards: np.ndarray, size: int) -> list[int]:
    """Return the best and the worst of a group in turn: both kinds are seen where there are both."""
    order = np.argsort(-np.nan_to_num(rewards, nan=-np.inf), kind="stable").tolist()
    return [order.pop(0) if number % 2 == 0 else order.pop() for number in range(size)]


def completed(validation: Validation, model: nn.Module) -> Rollouts:
    """Return some completions of the last evaluation, with the log-probabilities that the policy gives them."""
    found = validation.last
    assert found is not None
    count, each = min(PROMPTS, len(validation.prompts)), found.rewards.shape[1]
    prompts = validation.prompts.take(list(range(count)))
    heads, _ = encoded(prompts, validation.tokenizer, None, 2**31)
    size = min(EACH, each)
    rows = [group * each + row for group in range(count) for row in range(size)]
    rollouts = _placed(prompts, heads, found, rows, size, validation.tokenizer)
    rollouts.log_probs = log_probs(model, rollouts, validation.options.temperature)
    return rollouts


def _placed(
    prompts: Any, heads: Sequence[list[int]], found: Completed, rows: list[int], size: int, tokenizer: Tokenizer
) -> Rollouts:
    starts = torch.tensor([len(heads[number // size]) for number in range(len(rows))])
    whole = [heads[number // size] + found.ids[row] for number, row in enumerate(rows)]
    lengths = torch.tensor([len(ids) for ids in whole])
    width = int(lengths.max())
    ids = torch.tensor([[*row, *[tokenizer.pad] * (width - len(row))] for row in whole])
    index, ended = np.arange(len(prompts)), torch.from_numpy(found.finished.ravel()[rows])
    texts = [found.texts[row] for row in rows]
    rollouts = Rollouts(prompts, size, ids, starts, lengths, ended, torch.zeros(ids.shape), texts, 0, index)
    rollouts.rewards = torch.from_numpy(found.rewards.ravel()[rows])
    return rollouts


@torch.no_grad()
def log_probs(model: nn.Module, rollouts: Rollouts, temperature: float) -> Float[Tensor, "rows width"]:
    """Return the log-probability of each token of completions under a model; 0 elsewhere."""
    device, found = next(model.parameters()).device, torch.zeros(rollouts.ids.shape)
    for row in range(len(rollouts)):  # one by one: there are few, and they may be long
        ids, completion = rollouts.ids[row : row + 1].to(device), rollouts.completion[row : row + 1].to(device)
        read = Read(torch.nn.functional.pad(completion[:, 1:], (0, 1)), ids[completion], temperature)
        values = model(ids, rollouts.real[row : row + 1].to(device), {"sample": read})["sample"]
        found[row, completion[0].cpu()] = values.float().cpu()
    return found


def block(
    rollouts: Rollouts, tokenizer: Tokenizer, reference: Callable[[], nn.Module | None], temperature: float, where: str
) -> Passages:
    """Return completions for a page.

    Parameters
    ----------
    rollouts
        What `Kept` kept or `completed` returned.
    tokenizer
        Of the policy.
    reference
        Opens what tokens are compared with where no teacher was asked: the policy at its start, or None for nothing.
    temperature
        Of sampling.
    where
        Which completions these are.
    """
    ours, mask = rollouts.log_probs.float().cpu(), rollouts.completion.cpu()
    if "log_teacher" in rollouts.tokens and bool(rollouts.tokens["kd_mask"].any()):
        who, theirs, mask = (
            "the teacher",
            rollouts.tokens["log_teacher"].float().cpu(),
            rollouts.tokens["kd_mask"].cpu(),
        )
    else:
        other = reference()
        who = "" if other is None else "the policy at its start"
        theirs = ours if other is None else log_probs(other, rollouts, temperature)
    names = {token: text for text, token in tokenizer.token_ids().items()}
    passages = []
    for row in range(len(rollouts)):
        span = range(int(rollouts.starts[row]), int(rollouts.lengths[row]))
        texts = [_text(tokenizer, int(rollouts.ids[row, at]), names) for at in span]
        ratios = [float(ours[row, at] - theirs[row, at]) if who and bool(mask[row, at]) else None for at in span]
        reward = float(rollouts.rewards[row])
        label = "no reward" if reward != reward else f"reward {reward:g}"
        label += "" if bool(rollouts.finished[row]) else ", cut at the limit"
        prompt = rollouts.prompts.prompts[row // rollouts.group_size]
        passages.append(Passage(prompt if isinstance(prompt, str) else files.to_json(prompt), label, texts, ratios))
    caption = where if not who else (
        f"{where} Blue: the policy makes the token likelier than {who}; orange: less likely; the darker, the more. "
        "The number appears over the token."
    )  # fmt: skip
    return Passages("Samples", passages, caption)


def _text(tokenizer: Tokenizer, token: int, names: dict[int, str]) -> str:
    text = tokenizer.decode([token])
    return text if text else names.get(token, f"[{token}]")
