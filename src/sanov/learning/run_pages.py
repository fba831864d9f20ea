"""The page of a run: how good the policy became, its curves, and what else there is to see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from sanov.core import pages
from sanov.learning.cards import merged
from sanov.learning.validation import sentence

__all__ = ["curves", "page"]

POINTS = 400  # of a curve; a longer one is thinned
CURVES: dict[str, dict[str, str]] = {
    "Reward": {"reward": "training", "validation_reward": "held-out prompts"},
    "Loss": {"loss": "objective", "loss_nll": "imitation", "loss_policy": "policy", "loss_kd": "teacher",
             "loss_self_reward": "self-reward"},
    "Length (tokens)": {"completions/mean_length": "all", "completions/mean_terminated_length": "those that ended"},
    "Reverse KL to the teacher (nats a token)": {"kd/k1": "all that is distilled", "kd/k1_right": "right completions",
                                                 "kd/k1_wrong": "wrong completions"},
    "Score of its own answers": {"self_reward/auroc": "AUROC", "self_reward/acc_pos": "right answers judged right",
                                 "self_reward/acc_neg": "wrong answers judged wrong"},
    "Masks": {"kd/mask_frac": "tokens that are distilled", "completions/clipped_ratio": "completions cut at the limit",
              "swa/filtered_frac": "groups whose scores hardly differ"},
    "Entropy (nats a token)": {"entropy": "policy"},
    "Groups": {"groups/mixed": "mixed", "groups/all_right": "all right", "groups/all_wrong": "all wrong"},
    "Norms of gradients": {"grad_norm": "objective", "gradient/reward_norm": "rewards",
                           "gradient/signal_norm": "signal"},
    "Cosine of the gradients of rewards and signal": {"gradient/cosine": "cosine"},
}  # fmt: skip


def curves(history: pl.DataFrame) -> Iterator[pages.Figure]:
    """Yield the curves of what a history has."""
    for title, names in CURVES.items():
        values = [point for name, label in names.items() for point in _points(history, name, label)]
        if values:
            yield pages.Figure(title, _spec(values, title))


def _points(history: pl.DataFrame, name: str, label: str) -> list[dict[str, Any]]:
    if name not in history.columns:
        return []
    found = history.select("step", pl.col(name).cast(pl.Float64).alias("value")).filter(pl.col("value").is_finite())
    every = -(-len(found) // POINTS) or 1
    return [{"step": step, "value": value, "of": label} for step, value in found.gather_every(every).iter_rows()]


def _spec(values: list[dict[str, Any]], title: str) -> dict[str, Any]:
    labels = list(dict.fromkeys(point["of"] for point in values))
    encoding: dict[str, Any] = {
        "x": {"field": "step", "type": "quantitative", "title": "update", "axis": {"tickMinStep": 1}},
        "y": {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}},
    }
    if len(labels) > 1:
        encoding["color"] = {"field": "of", "type": "nominal", "title": None, "sort": labels}
    return {"data": {"values": values}, "mark": {"type": "line", "point": len(values) <= 60}, "encoding": encoding}


def page(
    system: str,
    history: pl.DataFrame,
    results: Mapping[str, Any],
    *,
    steps: int,
    notes: Sequence[str] = (),
    blocks: Sequence[pages.Block] = (),
    footer: Mapping[str, str],
) -> pages.Page:
    """Return the page of a run, also of one that is not at its end.

    Parameters
    ----------
    system
        Name of the system.
    history
        One row a step.
    results
        What is known of the training.
    steps
        Updates of the whole run.
    notes, blocks
        What else is said, and shown after the curves.
    footer
        See `pages.Page`.
    """
    numbers = merged(results)
    table = pl.DataFrame({"quantity": list(numbers), "value": list(numbers.values())})
    shown = [*curves(history), *blocks, pages.Table("Numbers", table, right=("value",))]
    return pages.Page(system, _lead(history, results, steps), [*results.get("notes", ()), *notes], shown, footer)


def _lead(history: pl.DataFrame, results: Mapping[str, Any], steps: int) -> str:
    made = f"{len(history)} updates" if len(history) >= steps else f"{len(history)} of {steps} updates"
    said = sentence(results)
    if said:
        return f"{said[0].upper()}{said[1:]} after {made}."
    name = next((name for name in ("reward", "loss_nll", "loss") if name in history.columns), None)
    known = [] if name is None else [value for value in history[name].to_list() if value is not None and value == value]
    if not known:
        return f"The policy was trained by {made}."
    what = "mean reward of a step" if name == "reward" else "loss"
    few = max(min(len(known) // 3, 10), 1)
    first, last = sum(known[:few]) / few, sum(known[-few:]) / few
    return f"The {what} went from {first:.3g} to {last:.3g} in {made}; no prompts were held out to judge by."
