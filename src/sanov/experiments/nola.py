"""The claim of `nola`: with one sixth of the parameters of LoRA r = 1 it is not worse.

All arms of a seed see the same rows in the same order and begin with the same head; learning rates are chosen on validation
data of a seed kept apart, as many for each arm. Splits, heads and bases are drawn anew for each seed. The probe is a logistic
regression on what the head reads, whose penalty is tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sanov.claims import Cell, Claim, Context, Preset
from sanov.experiments import nola_data as data
from sanov.experiments.nola_parts import FEW, figures, parts

__all__ = ["CLAIM"]

APART = 10_000  # seed of the tuning
MAIN = ("nola", "lora1", "probe", "coordinates", "shuffled")
OTHERS = (
    "lora4", "a0_only", "nola4", "nola16", "nola256", "full", "vera", "unilora", "tinylora", "vblora", "randlora"
)  # fmt: skip
LANGUAGE = ("nola", "lora1", "lora4")
TUNED_BY = {"shuffled": "nola", "a0_only": "nola", "nola4": "nola", "nola16": "nola", "nola256": "nola"}


def _cells(
    labelled: Sequence[str], language: Sequence[str], trials: tuple[int, int], others: Sequence[str]
) -> Callable[[Sequence[int]], list[Cell]]:
    """Trials and arms on every data set; what is reported alone has the first five seeds."""

    def cells(seeds: Sequence[int]) -> list[Cell]:
        found = [Cell("shared", {"data": name, "model": "base"}) for name in language if name == "e2e"]
        for names, arms, count in ((labelled, (*MAIN, *others), trials[0]), (language, LANGUAGE, trials[1])):
            for name in names:
                found += [
                    Cell("tune", {"data": name, "arm": arm, "trial": trial})
                    for arm in arms
                    if arm not in TUNED_BY
                    for trial in range(count)
                ]
        for seed in seeds:
            found += [Cell("compare", {"data": name, "arm": arm, "seed": seed}) for name in labelled for arm in MAIN]
        for seed in list(seeds)[:FEW]:
            found += [
                Cell("compare", {"data": name, "arm": arm, "seed": seed}) for name in language for arm in LANGUAGE
            ]
            found += [Cell("compare", {"data": name, "arm": arm, "seed": seed}) for name in labelled for arm in others]
        return found

    return cells


def _run(cell: Cell, context: Context, folder: Path) -> Mapping[str, Any]:
    import torch

    from sanov.experiments.nola_arms import GRIDS

    torch.set_num_threads(1)
    if cell.stage == "shared":
        return data.convert_language_model(folder)
    name, arm = str(cell.key["data"]), str(cell.key["arm"])
    if cell.stage == "tune":
        setting = _grid(GRIDS[arm], name, context.settings)[int(cell.key["trial"])]
        return {**_scored(arm, name, APART, setting, context, "validation"), "setting": setting}
    setting = context.tuned(data=name, arm=TUNED_BY.get(arm, arm)).values["setting"]
    return {**_scored(arm, name, int(cell.key["seed"]), setting, context, "test"), "setting": setting}


def _grid(grid: Sequence[float], name: str, settings: Mapping[str, Any]) -> Sequence[float]:
    """Return the settings to try: all five, or the middle ones where there are fewer trials."""
    count = settings["trials"][0 if name in data.LABELS else 1]
    start = (len(grid) - count) // 2
    return grid[start : start + count]


def _scored(arm: str, name: str, seed: int, setting: float, context: Context, part: str) -> dict[str, Any]:
    """Train an arm, and judge it on a part."""
    settings = context.settings
    rows = settings["rows"][name]
    train_on, judged_on = (data.split(name, each, seed, rows) for each in ("train", part))
    folder = context.shared(data=name, model="base")[1] if name == "e2e" else None
    model, tokenizer, heads = data.load_model(name, seed, settings, folder)
    if name not in data.LABELS:
        data.refuse_shared(train_on, judged_on)
        return _language(arm, model, tokenizer, train_on, judged_on, seed, setting, settings, part)
    if arm == "probe":
        return _probe(model, tokenizer, heads, train_on, judged_on, setting, settings, part)
    if arm == "shuffled":
        assert train_on.labels is not None
        order = np.random.default_rng([seed, 5]).permutation(len(train_on))
        train_on = type(train_on)(train_on.texts, train_on.labels[order], train_on.classes, name=train_on.name)
    return _classifier(arm, model, tokenizer, heads, train_on, judged_on, seed, setting, settings, part)


def _classifier(
    arm: str, model: Any, tokenizer: Any, heads: Any, train_on: Any, judged_on: Any, seed: int, setting: float,
    settings: Any, part: str,
) -> dict[str, Any]:  # fmt: skip
    from sanov.experiments.nola_arms import adapt
    from sanov.nets.adaptable import query_and_value
    from sanov.systems.nola import tasks
    from sanov.systems.nola.controls import damaged
    from sanov.systems.nola.layers import adapted

    called = adapt(arm, model, query_and_value(model), heads, seed)
    trained = _trained(called, train_on, tokenizer, seed, setting, settings)
    head = sum(w.numel() for each in heads for w in model.get_submodule(each).parameters())
    tokens = tasks.text_tokens(judged_on, tokenizer, settings["max_length"])

    def accuracy() -> dict[str, float]:
        found = tasks.class_log_probs(called.eval(), tokens, tokenizer.pad_token_id)
        return tasks.scores(found, judged_on.labels)

    found: dict[str, Any] = accuracy()
    values = {
        "accuracy": 100 * found["accuracy"],
        "log_loss": found["log_loss"],
        "trained": trained - head,
        "head": head,
    }
    if part == "validation":
        return {
            "validation": values["accuracy"] - found["log_loss"] / 1000,
            **values,
        }  # the loss decides between equals
    if arm == "nola":
        for how in ("wrong_seed", "permuted", "random_update"):
            before = damaged(model, how, seed)
            values[how] = 100 * accuracy()["accuracy"]
            for name, layer in adapted(model).items():
                layer.update = before[name]
    return values


def _probe(
    model: Any, tokenizer: Any, heads: Any, train_on: Any, judged_on: Any, setting: float, settings: Any, part: str
) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    from sanov.systems.nola import tasks

    seen: list[np.ndarray] = []
    model.get_submodule(heads[0]).register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].numpy()))
    features = []
    for texts in (train_on, judged_on):
        tokens = tasks.text_tokens(texts, tokenizer, settings["max_length"])
        seen.clear()
        for row in tokens:
            tasks.class_log_probs(model.eval(), [row], tokenizer.pad_token_id)
        features.append(np.concatenate(seen))
    fitted = LogisticRegression(C=setting, max_iter=2000).fit(features[0], train_on.labels)
    log_probs = fitted.predict_log_proba(features[1].astype(np.float64))
    found = tasks.scores(log_probs, judged_on.labels)
    head = fitted.coef_.size * 2 + 2
    values = {"accuracy": 100 * found["accuracy"], "log_loss": found["log_loss"], "trained": 0, "head": head}
    return {"validation": values["accuracy"] - found["log_loss"] / 1000, **values} if part == "validation" else values


def _language(
    arm: str,
    model: Any,
    tokenizer: Any,
    train_on: Any,
    judged_on: Any,
    seed: int,
    setting: float,
    settings: Any,
    part: str,
) -> dict[str, Any]:
    from sanov.experiments.nola_arms import adapt
    from sanov.nets.adaptable import query_and_value
    from sanov.systems.nola import tasks

    called = adapt(arm, model, query_and_value(model), (), seed)
    trained = _trained(called, train_on, tokenizer, seed, setting, settings)
    tokens, starts = tasks.language_tokens(judged_on, tokenizer, settings["language_length"])
    sums, counts = tasks.token_losses(model.eval(), tokens, starts, tokenizer.pad_token_id)
    loss = float(sums.sum() / counts.sum())
    if part == "validation":
        return {"validation": -loss, "token_loss": loss, "trained": trained}
    written = _written(model, tokenizer, judged_on, settings) if arm == "nola" and seed == 0 else {}
    return {"token_loss": loss, "trained": trained, **written}


def _written(model: Any, tokenizer: Any, judged_on: Any, settings: Any) -> dict[str, Any]:
    """Return greedy completions to look at, and the share of values that they leave out."""
    import torch

    from sanov.nets.sampling import sample
    from sanov.systems.nola.layers import adapted, detach

    for layer in adapted(model).values():
        layer.merge()
    detach(model)
    prompts = list(dict.fromkeys(judged_on.prompts))[: settings["written"]]
    heads = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    limit = settings["language_length"] // 2
    uniforms = torch.full((len(heads), limit), 0.5, dtype=torch.float64)
    out = sample(
        model, heads, limit=limit, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id, temperature=0.0, uniforms=uniforms
    )  # fmt: skip
    ids = [row[:length] for row, length in zip(out.tokens.tolist(), out.lengths.tolist(), strict=True)]
    ended = tokenizer.eos_token_id
    texts = [tokenizer.decode([token for token in row if token != ended]) for row in ids]
    slips = [data.slot_errors(prompt, told) for prompt, told in zip(prompts, texts, strict=True)]
    return {
        "written": [list(pair) for pair in zip(prompts, texts, strict=True)],
        "slot_errors": 100 * float(np.mean(slips)),
    }


def _trained(model: Any, texts: Any, tokenizer: Any, seed: int, rate: float, settings: Any) -> int:
    """Train a model in place; return how many numbers were trained."""
    from functools import partial

    from sanov.learning.optimizers import adamw
    from sanov.learning.sentences import Sentences
    from sanov.learning.training import schedule, train
    from sanov.systems.nola import tasks

    labels, starts = texts.labels, None
    if labels is None:
        tokens, starts = tasks.language_tokens(texts, tokenizer, settings["language_length"])
    else:
        tokens = tasks.text_tokens(texts, tokenizer, settings["max_length"])
    size = settings["batch_size"] if labels is not None else settings["language_batch_size"]
    sentences = Sentences(tokens, batch_size=size, epochs=settings["epochs"], seed=seed)
    train(
        model,
        tasks.feed(sentences, tokenizer.pad_token_id, 0, labels=labels, starts=starts),
        tasks.loss_of,
        optimizer=partial(adamw, learning_rate=rate, weight_decay=0.0),
        steps=sentences.steps,
        schedule=schedule("linear", sentences.steps, 0.06),
        clip_norm=1.0,
        seed=seed,
    )
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _unavailable(cell: Cell) -> str | None:
    return data.unavailable(str(cell.key["data"]))


# -- sizes ------------------------------------------------------------------------------------------------------------

SMOKE = {
    "rows": {
        "planted": {"train": 64, "validation": 32, "test": 64},
        "pairs": {"train": 8, "validation": 6, "test": 6},
    },
    "trials": (1, 1), "epochs": 2, "batch_size": 16, "language_batch_size": 4, "max_length": 16, "language_length": 16,
    "written": 2, "width": 16,
}  # fmt: skip
PAPER = {
    "rows": {
        "rotten": {"train": 2048, "validation": 1024, "test": 3000},
        "sst2": {"train": 2048, "validation": 872, "test": 1821},
        "e2e": {"train": 400, "validation": 60, "test": 200, "references": 2},
    },
    "trials": (5, 3), "epochs": 3, "batch_size": 32, "language_batch_size": 8, "max_length": 48, "language_length": 160,
    "written": 50,
}  # fmt: skip

CLAIM = Claim(
    system="nola",
    statement=(
        "NOLA with one sixth of the parameters of LoRA r = 1 is not worse: its accuracy is at most one point lower, and its "
        "loss of a language model at most 0.02 nats a token higher."
    ),
    source="koohpayegani2024nola, tables 1 to 4; the criterion is ours",
    parts=parts(("rotten", "sst2"), ("e2e",)),
    presets={
        "smoke": Preset(
            _cells(("planted",), ("pairs",), (1, 1), ()),
            seeds=2,
            scale="Planted words and pairs, nets of a few thousand weights, 8 updates, 1 trial an arm.",
            settings=SMOKE,
            parts=parts(("planted",), ("pairs",)),
            extras="demo",
        ),
        "paper": Preset(
            _cells(("rotten", "sst2"), ("e2e",), (5, 3), OTHERS),
            seeds=10,
            scale=(
                "MiniLM (22.7 million weights) on 2,048 film reviews of two data sets, 3 epochs, 5 settings an arm, 10 seeds "
                "for the arms that decide and 5 for the others; SmolLM2 (135 million, Q4_1-dequantised) on 400 references, "
                "3 learning rates, 5 seeds. The paper tunes GPT-2, LLaMA-2 and ViT with up to 70 billion weights."
            ),
            settings=PAPER,
            extras="paper",
        ),
    },
    run=_run,
    data=lambda settings: data.digests(list(settings["rows"])),
    figures=figures,
    tuned_by=TUNED_BY,
    unavailable=_unavailable,
)
