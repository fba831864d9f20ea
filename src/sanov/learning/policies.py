"""What systems that train policies share: prompts and rewards in, a Hugging Face folder out, and how good it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sanov.core import files, pages
from sanov.core.answers import Answer
from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.data import prompts as prompt_tables
from sanov.data.prompts import Prompts
from sanov.data.rewards import Rewards, load
from sanov.learning.adapters import Lora, adapted
from sanov.learning.completing import EVALUATION, Completed, Tasks, answer, complete
from sanov.learning.history import History
from sanov.learning.imitation import imitate
from sanov.learning.live import REWARDED, live
from sanov.learning.parallel import is_sharded
from sanov.learning.policy import Optimisation, Signal
from sanov.learning.policy import fit as fit_policy
from sanov.learning.policy_folders import CHECKPOINTS, START, Fitted, begin, opened
from sanov.learning.processes import every_process, place
from sanov.learning.recording import Record
from sanov.learning.remembered import remembered
from sanov.learning.rollouts import Tokenizer
from sanov.learning.servers import open_sampler
from sanov.learning.validation import Validation
from sanov.nets.causal import load_model, load_tokenizer, save_model, trainable
from sanov.nets.transformer import Decoder, Shape, plain_copy

__all__ = [
    "CHECKPOINTS",
    "START",
    "Completed",
    "Evaluation",
    "Fitted",
    "Lora",
    "Start",
    "Tasks",
    "answer",
    "apply",
    "begin",
    "complete",
    "fit",
    "imitated",
    "open_policy",
    "opened",
    "read",
    "start",
]


More = Callable[[Fitted, Validation], tuple[Mapping[str, Any], list[pages.Block]]]


class Evaluation(Options):
    """How a policy is judged."""

    samples: int = option(4, "Completions of a prompt.", source="choice", unit="completions", ge=1)
    share: float = option(0.1, "fit: share of the prompts that is held out to judge by.", source="choice", ge=0, lt=1)
    prompts: int = option(100, "fit: most prompts that are held out.", source="choice", unit="prompts", ge=1)


class Start(Options):
    """The small policy that is made, and taught to imitate `solution`, where no folder is given."""

    steps: int = option(300, "Steps of imitation; 0 for a policy that knows nothing.", source="choice", ge=0)
    learning_rate: float = option(1e-3, "Of them.", source="choice", gt=0)
    batch_size: int = option(64, "Rows of such a step.", source="choice", unit="rows", ge=1)
    width: int = option(128, "Of the hidden states.", source="choice", ge=2)
    layers: int = option(4, "Number of layers.", source="choice", ge=1)
    heads: int = option(4, "Attention heads.", source="choice", ge=1)
    mlp: int = option(384, "Units of a layer's perceptron.", source="choice", ge=1)
    context: int = option(128, "Tokens of prompt and completion together.", source="choice", ge=2)


def read(
    sources: Sequence[Any], rewards: Sequence[str], weights: Sequence[float] = (), *, needed: bool = True
) -> Tasks:
    """Read prompts, and find the reward functions.

    Parameters
    ----------
    sources
        Tables with a column ``prompt``, or ``embedded:NAME``.
    rewards
        Names of built-in functions or ``module:function``; none for what the columns of the prompts allow.
    weights
        One a function; none for 1 each.
    needed
        Whether prompts without a reward are refused.

    Raises
    ------
    InputError
        See `data.prompts.read` and `data.rewards.Rewards.check`.
    """
    table = prompt_tables.read(sources)
    names = list(rewards) or prompt_tables.usual_rewards(table)
    if not names:
        if needed:
            fix = "rewards=module:function for your own, or a column `answer` for the built-in ones"
            raise InputError("nothing says how completions are rewarded", where=table.name, fix=fix)
        return Tasks(table, None)
    found = Rewards(tuple(map(load, names)), tuple(weights) or None)
    found.check(table)
    return Tasks(table, found)


def open_policy(
    folder: str | Path,
    start: Start,
    prompts: Prompts,
    *,
    seed: int,
    kept: Path | None = None,
    lora: Lora | None = None,
) -> tuple[Any, Tokenizer]:
    """Open a policy's folder; where none is named, make a small one and let it imitate the prompts' solutions.

    Parameters
    ----------
    folder
        A Hugging Face folder, or that of an adapter of PEFT, whose weights alone are then trained; empty to make one.
    start, prompts
        The shape of what is made, and what it imitates.
    seed
        Of its weights.
    kept
        Where what was made is kept for a resumed run.
    lora
        The adapter that is put on what is in the folder, and trained alone.

    Returns
    -------
    The model, and its tokenizer.

    Raises
    ------
    InputError
        The folder cannot be read, or there is nothing to imitate.
    """
    if lora is not None and lora.rank:
        return trainable(adapted(folder, lora, seed=seed)), load_tokenizer(folder)
    if folder:
        return trainable(load_model(folder)), load_tokenizer(folder)
    if kept is not None and (kept / "config.json").is_file():
        return load_model(kept), load_tokenizer(kept)
    from sanov.data.tokens import CharTokenizer

    tokenizer = CharTokenizer()
    shape = Shape(tokenizer.vocabulary, start.width, start.layers, start.heads, start.mlp, context=start.context)
    model = Decoder(shape, seed=seed)
    if start.steps:
        if "solution" not in prompts.columns:
            fix = "policy=DIR for a Hugging Face folder, or start.steps=0"
            raise InputError("there is no policy, and no column `solution` to imitate", where=prompts.name, fix=fix)
        imitate(
            prompts,
            model,
            tokenizer,
            steps=start.steps,
            batch_size=start.batch_size,
            learning_rate=start.learning_rate,
            seed=seed,
        )
    if kept is not None and place()[0] == 0:
        with files.atomic_folder(kept) as temporary:
            save_model(model, temporary, tokenizer)
    return model, tokenizer


def start(
    data: Tasks, config: Any, *, seed: int, out: str | Path | None, resume: bool, follows: bool = False
) -> tuple[Any, Tokenizer]:
    """Begin or resume a run in a folder, and open the policy that it trains.

    Parameters
    ----------
    data
        Prompts and rewards.
    config
        With ``policy`` and ``start``.
    seed, out, resume, follows
        As in `fit`.

    Returns
    -------
    The model, and its tokenizer.

    Raises
    ------
    InputError
        See `policy_folders.begin` and `open_policy`.
    """
    unused = [f"start.{name}" for name in sorted(config.start.model_fields_set)]
    if config.policy and unused:
        found, fix = f"policy={config.policy} is given, so that no policy is made", "leave these out, or the policy"
        raise InputError(found, where=", ".join(unused), fix=fix)
    begin(out, data, config, seed, resume, lengthens=_lengthens(config.training, follows))
    kept = None if out is None else Path(out) / START
    return open_policy(config.policy, config.start, data.prompts, seed=seed, kept=kept, lora=config.lora)


def _lengthens(training: Optimisation, follows: bool) -> bool:
    """Whether a run may be made longer: nothing that was done so far would have been done otherwise."""
    return training.schedule == "constant" and training.warmup == 0 and not follows


def fit(
    data: Tasks,
    *,
    system: str,
    config: Any,
    signals: Sequence[Signal] = (),
    opened: tuple[Any, Tokenizer],
    seed: int,
    out: str | Path | None,
    resume: bool,
    rewarded: bool = True,
    follows: bool = False,
    more: More | None = None,
) -> Fitted:
    """Train a policy by GRPO and signals, and write it down.

    Parameters
    ----------
    data
        Prompts and rewards.
    system, config
        Whose options these are; with ``rollouts``, ``grpo``, ``training`` and ``evaluation``.
    signals
        What the system adds.
    opened
        Model and tokenizer.
    seed
        Of everything random.
    out
        Folder for the policy and the checkpoints.
    resume
        Go on from the newest checkpoint.
    rewarded
        Whether it takes a reward to learn from.
    follows
        Whether something of the system follows from the number of steps, so that a run cannot be made longer.
    more
        Told what was trained and who judged it, returns further results, and blocks for the page.

    Raises
    ------
    InputError
        See `policy.fit`.
    """
    model, tokenizer = opened
    if data.rewards is None and rewarded:
        raise InputError("nothing says how completions are rewarded", where=data.prompts.name, fix="rewards=...")
    train_on, held_out = divided(data.prompts, config.evaluation, seed)
    validation = _judge(data, held_out, tokenizer, config, seed, out, signals)
    record = Record(system, config, seed, (data.prompts, len(train_on)), opened, out, validation)
    columns = {"KL", "distilled"} if system == "kdrl" else {"AUROC", "filtered"} if system == "laser" else set[str]()
    with live(config.training.steps, REWARDED | columns, here=place()[0] == 0) as callbacks:
        history, noted = fit_policy(
            train_on,
            model,
            tokenizer,
            data.rewards,
            signals=[*signals, record.kept],
            rollouts=config.rollouts,
            grpo=config.grpo,
            training=config.training,
            evaluate=validation,
            evaluate_start=True,
            sampler=open_sampler(config.rollouts),
            callbacks=callbacks,
            seed=seed,
            out=None if out is None else Path(out) / CHECKPOINTS,
            publish=record.publish,
            resume=resume,
            lengthen=_lengthens(config.training, follows),
            rewarded=rewarded,
        )
    return written(record, history, noted, more)


def _judge(
    data: Tasks,
    held_out: Prompts | None,
    tokenizer: Tokenizer,
    config: Any,
    seed: int,
    out: str | Path | None,
    signals: Sequence[Signal] = (),
) -> Validation | None:
    if held_out is None or data.rewards is None:
        return None
    folder, samples = None if out is None else Path(out), config.evaluation.samples
    return Validation(held_out, data.rewards, tokenizer, config.rollouts, samples, seed, signals=signals, folder=folder)


def imitated(
    data: Tasks,
    *,
    system: str,
    config: Any,
    opened: tuple[Any, Tokenizer],
    seed: int,
    out: str | Path | None,
    resume: bool,
    follows: bool = False,
) -> Fitted:
    """Fine-tune a policy on the written solutions of its prompts, and write it down: no completion is sampled.

    A step takes as many solutions as a step of `fit` samples completions.

    Parameters
    ----------
    data, system, config, opened, seed, out, resume, follows
        As in `fit`.

    Raises
    ------
    InputError
        See `imitation.imitate`.
    """
    model, tokenizer = opened
    training = config.training
    train_on, held_out = divided(data.prompts, config.evaluation, seed)
    validation = _judge(data, held_out, tokenizer, config, seed, out)
    record = Record(system, config, seed, (data.prompts, len(train_on)), opened, out, validation)
    with live(training.steps, set(), here=place()[0] == 0) as callbacks:
        history = imitate(
            train_on,
            model,
            tokenizer,
            steps=training.steps,
            batch_size=config.rollouts.prompts_per_step * config.rollouts.group_size,
            micro_batch_tokens=training.micro_batch_tokens,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            clip_norm=training.clip_norm,
            rate=training.schedule,
            warmup=training.warmup,
            evaluate=validation,
            evaluate_every=training.evaluate_every,
            evaluate_start=True,
            callbacks=callbacks,
            out=None if out is None else Path(out) / CHECKPOINTS,
            checkpoint_every=training.checkpoint_every,
            publish=record.publish,
            resume=resume,
            lengthen=_lengthens(training, follows),
            parallel=training.parallel,
            trackers=training.trackers,
            seed=seed,
        )
    return written(record, history, {})


def written(record: Record, history: History, noted: Mapping[str, Any], more: More | None = None) -> Fitted:
    """Return what was trained, and write it down where there is a folder, with its page."""
    model, tokenizer, config, validation = record.model, record.tokenizer, record.config, record.validation
    if isinstance(model, Decoder) and is_sharded(model):  # every process helps to gather what the first one writes
        model = plain_copy(model)
    model = model.eval()
    if validation is not None and validation.last is None:  # a finished run, of which nothing was left to do
        validation(model, len(history))
    results, frame = record.results(history, noted), history.to_frame()
    fitted = Fitted(record.system, model, tokenizer, config.model_dump(mode="json"), results, frame)
    blocks: list[pages.Block] = []
    if more is not None and validation is not None:
        found, blocks = more(fitted, validation)
        fitted = replace(fitted, results={**results, **found})
    if record.out is not None:
        if place()[0] == 0:
            fitted.save(record.out)
            record.write_page(history, fitted.results, [*blocks, *record.samples(model)])
        every_process(None)
    return fitted


def divided(prompts: Prompts, evaluation: Evaluation, seed: int) -> tuple[Prompts, Prompts | None]:
    """Return the prompts to train on and those held out; the same prompt is never in both."""
    keys = [files.to_json(prompt) if prompts.chat else prompt for prompt in prompts.prompts]
    distinct = list(dict.fromkeys(keys))
    count = min(round(evaluation.share * len(distinct)), evaluation.prompts, len(distinct) - 1)
    if count < 1:
        return prompts, None
    chosen = set(np.random.default_rng([seed, EVALUATION]).permutation(len(distinct))[:count].tolist())
    held = {distinct[place] for place in chosen}
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    return (
        prompts.take([row for row, key in enumerate(keys) if key not in held]),
        prompts.take(sorted(first[key] for key in held)),
    )


def apply(system: str, data: Tasks, config: Any, fitted: Fitted | str | Path | None, seed: int) -> Answer:
    """Complete prompts with a trained policy, and say how often it is right.

    Parameters
    ----------
    system
        Name of the system that asks.
    data
        What `read` returned.
    config
        Of its options, ``rollouts`` and ``evaluation.samples`` matter; what is not given is as it was in the training.
    fitted
        What `fit` returned, or its folder.
    seed
        Of the sampling.

    Raises
    ------
    InputError
        Nothing fitted was given, or a prompt does not fit the context.
    """
    policy = opened(fitted, system)
    data, config, notes = remembered(data, config, policy)
    samples = config.evaluation.samples
    found = complete(
        policy.model, policy.tokenizer, data.prompts, data.rewards, config.rollouts, samples=samples, seed=seed
    )
    answered = answer(system, data, found, samples=samples)
    return replace(answered, notes=(*answered.notes, *notes))
