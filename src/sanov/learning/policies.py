"""What systems that train policies share: prompts and rewards in, a Hugging Face folder out, and how good it is."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64, Int
from torch import nn

from sanov import __version__
from sanov.comparisons import paired_effect
from sanov.core import files
from sanov.core.answers import Answer
from sanov.core.errors import InputError
from sanov.core.options import Options, option
from sanov.core.progress import track
from sanov.data import prompts as prompt_tables
from sanov.data.prompts import Prompts
from sanov.data.rewards import Rewards, load
from sanov.learning.checkpoints import refuse_unfinished
from sanov.learning.history import History
from sanov.learning.imitation import imitate
from sanov.learning.policy import Signal
from sanov.learning.policy import fit as fit_policy
from sanov.learning.processes import every_process, place
from sanov.learning.rollouts import Rollout, Tokenizer, context_of, encoded
from sanov.learning.servers import open_sampler
from sanov.nets.causal import load_model, load_tokenizer, save_model, weights_digest
from sanov.nets.sampling import keyed_uniforms, sample
from sanov.nets.transformer import Decoder, Shape

__all__ = [
    "Completed",
    "Evaluation",
    "Fitted",
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
]

SEAL, HISTORY, RUN, CHECKPOINTS, START = "sanov.json", "history.csv", "run.json", "checkpoints", "start"
TOGETHER = 256  # completions that are sampled at once
EVALUATION = 7_919  # of the stream of random numbers that evaluations take: not that of training


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


@dataclass(frozen=True, eq=False)
class Tasks:
    """Prompts, and who rewards what answers them.

    Parameters
    ----------
    prompts
        With the columns that the rewards ask for.
    rewards
        Reward functions; None where there are none to judge by.
    """

    prompts: Prompts
    rewards: Rewards | None


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
    folder: str | Path, start: Start, prompts: Prompts, *, seed: int, kept: Path | None = None
) -> tuple[Any, Tokenizer]:
    """Open a policy's folder; where none is named, make a small one and let it imitate the prompts' solutions.

    Parameters
    ----------
    folder
        A Hugging Face folder; empty to make one.
    start, prompts
        The shape of what is made, and what it imitates.
    seed
        Of its weights.
    kept
        Where what was made is kept for a resumed run.

    Returns
    -------
    The model, and its tokenizer.

    Raises
    ------
    InputError
        The folder cannot be read, or there is nothing to imitate.
    """
    if folder:
        return load_model(folder), load_tokenizer(folder)
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


# -- how good it is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Completed:
    """Completions of prompts, those of one prompt side by side.

    Parameters
    ----------
    texts
        [prompts * samples].
    ids
        Tokens of each completion.
    rewards
        [prompts, samples]; NaN where no reward applies or there is no function.
    lengths
        Tokens of each, [prompts, samples].
    finished
        Whether each ended by itself, [prompts, samples].
    mean_log_prob
        Mean log-probability of its tokens, [prompts, samples].
    ends
        By watched token, its log-probability after EOS, [prompts, samples]; NaN where a completion did not end.
    """

    texts: list[str]
    ids: list[list[int]]
    rewards: Float64[np.ndarray, "prompts samples"]
    lengths: Int[np.ndarray, "prompts samples"]
    finished: np.ndarray
    mean_log_prob: Float64[np.ndarray, "prompts samples"]
    ends: Mapping[int, Float64[np.ndarray, "prompts samples"]] = field(default_factory=dict)


def complete(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Prompts,
    rewards: Rewards | None,
    options: Rollout,
    *,
    samples: int,
    watch: Sequence[int] = (),
    seed: int = 0,
    stream: int = EVALUATION,
) -> Completed:
    """Sample completions of every prompt, and score them.

    Parameters
    ----------
    model, tokenizer
        The policy.
    prompts, rewards
        What is completed, and by whom it is judged.
    options
        How to sample.
    samples
        Completions of a prompt.
    watch
        See `nets.sampling.sample`.
    seed, stream
        Of the noise.

    Raises
    ------
    InputError
        A prompt does not fit, or a reward is refused.
    """
    tokens, limit = encoded(prompts, tokenizer, options.max_completion_length, context_of(model))
    found: list[tuple[list[int], bool, float]] = []
    ends: dict[int, list[float]] = {token: [] for token in watch}
    device = next(model.parameters()).device
    size = max(TOGETHER // samples, 1)
    for start in track(range(0, len(tokens), size), "completions"):
        part = tokens[start : start + size]
        rows = torch.arange(start * samples, (start + len(part)) * samples)
        out = sample(
            model,
            part,
            group_size=samples,
            limit=limit,
            eos=tokenizer.eos,
            pad=tokenizer.pad,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            suppress=options.suppress,
            watch=watch,
            uniforms=keyed_uniforms(seed, stream, rows, limit).to(device),
        )
        for token, values in out.ends.items():
            ends[token] += values.tolist()
        sums = (out.log_probs.double().sum(dim=1) / out.lengths.clamp_min(1)).tolist()
        for row, length, ended, mean in zip(
            out.tokens.tolist(), out.lengths.tolist(), out.finished.tolist(), sums, strict=True
        ):
            found.append((row[:length], ended, mean))
    ids = [row for row, _, _ in found]
    texts = [tokenizer.decode(row) for row in ids]
    shape = (len(tokens), samples)
    repeated = prompts.take(np.repeat(np.arange(len(prompts)), samples))
    totals = np.full(len(ids), np.nan)
    if rewards is not None:
        totals = rewards.total(rewards.score(repeated, texts, completion_ids=ids))
    return Completed(
        texts,
        ids,
        totals.reshape(shape),
        np.array([len(row) for row in ids]).reshape(shape),
        np.array([ended for _, ended, _ in found]).reshape(shape),
        np.array([mean for _, _, mean in found]).reshape(shape),
        {token: np.array(values).reshape(shape) for token, values in ends.items()},
    )


# -- what was trained -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained policy.

    Parameters
    ----------
    system
        Name of the system that trained it.
    model, tokenizer
        The policy.
    config
        Options of the system.
    results
        What is known of the training.
    history
        One row a step.
    """

    system: str
    model: Any
    tokenizer: Tokenizer
    config: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    history: pl.DataFrame = field(default_factory=pl.DataFrame)

    def __repr__(self) -> str:
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        return f"<policy of {self.system}: {weights:,} weights>"

    def to_dict(self) -> dict[str, Any]:
        """Everything but weights and history, as what JSON can hold."""
        tree = {"sanov": __version__, "system": self.system, "config": self.config, "results": self.results}
        found: dict[str, Any] = files.plain(tree)
        return found

    def summary(self) -> str:
        """Return what was trained and how well it does, on one screen."""
        lines = [f"{self.system}: a policy of {sum(p.numel() for p in self.model.parameters()):,} weights"]
        scalars = {name: value for name, value in self.results.items() if isinstance(value, int | float)}
        width = max(map(len, scalars), default=0)
        for name, value in scalars.items():
            text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
            lines.append(f"{name.replace('_', ' '):<{width}}  {text}")
        lines += [f"- {note}" for note in self.results.get("notes", ())]
        return "\n".join(lines)

    def save(self, folder: str | Path) -> None:
        """Write a folder that transformers loads: the seal of the whole last.

        Raises
        ------
        InputError
            The place cannot be written.
        """
        folder = Path(folder)
        (folder / SEAL).unlink(missing_ok=True)
        save_model(self.model, folder, self.tokenizer)
        buffer = io.BytesIO()
        self.history.write_csv(buffer)
        files.write_bytes(folder / HISTORY, buffer.getvalue())
        files.write_json(folder / SEAL, {**self.to_dict(), "weights": weights_digest(folder)})

    @classmethod
    def load(cls, folder: str | Path) -> Fitted:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            The folder is missing, unfinished or damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            found = "is a file" if folder.exists() else "there is no such folder"
            raise InputError(found, where=str(folder), expected="a folder that `sanov fit` wrote")
        if not (folder / SEAL).is_file():
            fix = "a fit that was stopped goes on with --resume"
            raise InputError(f"holds no finished policy (no {SEAL})", where=str(folder), fix=fix)
        tree = files.read_json(folder / SEAL)
        if weights_digest(folder) != tree["weights"]:
            raise InputError(f"the weights are not those that {SEAL} describes", where=str(folder), fix="fit again")
        history = pl.read_csv(folder / HISTORY) if (folder / HISTORY).is_file() else pl.DataFrame()
        about = {"config": tree["config"], "results": tree["results"], "history": history}
        return cls(tree["system"], load_model(folder), load_tokenizer(folder), **about)


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

    Raises
    ------
    InputError
        See `policy.fit`.
    """
    model, tokenizer = opened
    if data.rewards is None:
        raise InputError("nothing says how completions are rewarded", where=data.prompts.name, fix="rewards=...")
    train_on, held_out = divided(data.prompts, config.evaluation, seed)

    def evaluate(policy: nn.Module, done: int) -> dict[str, float]:
        suppress = {*config.rollouts.suppress, *(token for signal in signals for token in signal.suppressed)}
        rollouts = config.rollouts.model_copy(update={"suppress": tuple(sorted(suppress))})  # as in training
        return judged(policy, tokenizer, held_out, data.rewards, rollouts, config.evaluation.samples, seed)

    history, noted = fit_policy(
        train_on,
        model,
        tokenizer,
        data.rewards,
        signals=signals,
        rollouts=config.rollouts,
        grpo=config.grpo,
        training=config.training,
        evaluate=evaluate if held_out is not None else None,
        sampler=open_sampler(config.rollouts),
        seed=seed,
        out=None if out is None else Path(out) / CHECKPOINTS,
        resume=resume,
    )
    return written(system, model, tokenizer, config, history, {"prompts": len(train_on), "seed": seed, **noted}, out)


def imitated(
    data: Tasks,
    *,
    system: str,
    config: Any,
    opened: tuple[Any, Tokenizer],
    seed: int,
    out: str | Path | None,
    resume: bool,
) -> Fitted:
    """Fine-tune a policy on the written solutions of its prompts, and write it down: no completion is sampled.

    A step takes as many solutions as a step of `fit` samples completions.

    Parameters
    ----------
    data, system, config, opened, seed, out, resume
        As in `fit`.

    Raises
    ------
    InputError
        See `imitation.imitate`.
    """
    model, tokenizer = opened
    training = config.training
    train_on, held_out = divided(data.prompts, config.evaluation, seed)

    def evaluate(policy: nn.Module, done: int) -> dict[str, float]:
        return judged(policy, tokenizer, held_out, data.rewards, config.rollouts, config.evaluation.samples, seed)

    history = imitate(
        train_on,
        model,
        tokenizer,
        steps=training.steps,
        batch_size=config.rollouts.prompts_per_step * config.rollouts.group_size,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
        rate=training.schedule,
        warmup=training.warmup,
        evaluate=evaluate if held_out is not None and data.rewards is not None else None,
        evaluate_every=training.evaluate_every,
        out=None if out is None else Path(out) / CHECKPOINTS,
        checkpoint_every=training.checkpoint_every,
        resume=resume,
        parallel=training.parallel,
        seed=seed,
    )
    return written(system, model, tokenizer, config, history, {"prompts": len(train_on), "seed": seed}, out)


def written(
    system: str,
    model: Any,
    tokenizer: Tokenizer,
    config: Any,
    history: History,
    found: Mapping[str, Any],
    out: str | Path | None,
) -> Fitted:
    """Return what was trained, and write it down where a folder is given."""
    results = {**found, "steps": len(history), **history.evaluations.get(len(history), {})}
    fitted = Fitted(system, model.eval(), tokenizer, config.model_dump(mode="json"), results, history.to_frame())
    if out is not None:
        if place()[0] == 0:
            fitted.save(out)
        every_process(None)
    return fitted


def begin(folder: str | Path | None, data: Tasks, config: Any, seed: int, resume: bool) -> None:
    """Refuse a folder that holds something else, and write down what a run is; resume none that was another.

    Raises
    ------
    InputError
        The folder holds other files, a finished policy, an unfinished run, or one of other data or options.
    """
    if folder is None or place()[0] != 0:
        every_process(None)
        return
    folder = Path(folder)
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if found and RUN not in found:
        raise InputError("is a folder with other files in it", where=str(folder), fix="name a new or an empty folder")
    if SEAL in found and not resume:
        raise InputError("holds a finished policy", where=str(folder), fix="name another folder, or delete this one")
    options = _without_addresses(files.plain(config.model_dump(mode="json")))
    run = {"data": data.prompts.digest(), "options": options, "seed": seed}
    if resume and RUN in found:
        other = [name for name, value in files.read_json(folder / RUN).items() if run.get(name) != value]
        if other:
            differ = _differ(files.read_json(folder / RUN), run)
            fix = "resume with the same, or begin anew in another folder"
            raise InputError(f"the run in this folder had other {differ}", where=str(folder), fix=fix)
    else:
        refuse_unfinished(folder / CHECKPOINTS)
        shutil.rmtree(folder / START, ignore_errors=True)  # of a run that was refused before its first step
        files.write_json(folder / RUN, run)
    every_process(None)


def _without_addresses(tree: Any) -> Any:
    """Return options without servers' addresses and how long they are waited for: a restarted server may have another."""
    if isinstance(tree, Mapping):
        return {name: _without_addresses(value) for name, value in tree.items() if name != "patience"}
    return "a server" if isinstance(tree, str) and tree.startswith(("http://", "https://")) else tree


def _differ(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Name the fields that differ, dotted."""
    names = []

    def walk(a: Any, b: Any, path: str) -> None:
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            for name in sorted({*a, *b}):
                walk(a.get(name), b.get(name), f"{path}.{name}" if path else name)
        elif a != b:
            names.append(path.removeprefix("options."))

    walk(theirs, ours, "")
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


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


def judged(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Prompts | None,
    rewards: Rewards | None,
    options: Rollout,
    samples: int,
    seed: int,
) -> dict[str, float]:
    """Return mean reward, length and share of finished completions on some prompts."""
    assert prompts is not None
    found = complete(model, tokenizer, prompts, rewards, options, samples=samples, seed=seed)
    return {
        "validation_reward": float(np.nanmean(found.rewards)),
        "validation_length": float(found.lengths.mean()),
        "validation_finished": float(found.finished.mean()),
    }


def apply(system: str, data: Tasks, config: Any, fitted: Fitted | str | Path | None, seed: int) -> Answer:
    """Complete prompts with a trained policy, and say how often it is right.

    Parameters
    ----------
    system
        Name of the system that asks.
    data
        What `read` returned.
    config
        Of its options, ``rollouts`` and ``evaluation.samples`` matter.
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
    samples = config.evaluation.samples
    found = complete(
        policy.model, policy.tokenizer, data.prompts, data.rewards, config.rollouts, samples=samples, seed=seed
    )
    return answer(system, data, found, samples=samples)


def opened(fitted: Fitted | str | Path | None, system: str) -> Fitted:
    """Return a fitted policy from what `apply` was given.

    Raises
    ------
    InputError
        Nothing was given, or the folder holds no finished policy.
    """
    if fitted is None:
        fix = f"first: sanov fit {system} PROMPTS --out DIR; then pass --fitted DIR"
        raise InputError("there is no policy", where=system, fix=fix)
    return fitted if isinstance(fitted, Fitted) else Fitted.load(fitted)


def answer(
    system: str, data: Tasks, found: Completed, *, samples: int, more: Mapping[str, pl.Series] | None = None
) -> Answer:
    """Return completions as an answer: how often they are right, with an interval over prompts.

    Parameters
    ----------
    system
        Name of the system.
    data
        What was completed.
    found
        The completions.
    samples
        Of each prompt.
    more
        Further columns of the completions.
    """
    prompts = [prompt if isinstance(prompt, str) else files.to_json(prompt) for prompt in data.prompts.prompts]
    table = pl.DataFrame({
        "prompt": np.repeat(np.array(prompts, dtype=object), samples).tolist(),
        "completion": found.texts,
        "reward": found.rewards.ravel(),
        "finished": found.finished.ravel(),
        "tokens": found.lengths.ravel(),
        "mean_log_prob": found.mean_log_prob.ravel(),
    }).with_columns(pl.col("reward").fill_nan(None), **(more or {}))  # fmt: skip
    values: dict[str, Any] = {"prompts": len(data.prompts), "completions": len(found.texts)}
    values["mean_tokens"], values["finished"] = float(found.lengths.mean()), float(found.finished.mean())
    judged_rows = ~np.isnan(found.rewards).all(axis=1)
    if not judged_rows.any():
        text = f"{len(found.texts)} completions of {len(data.prompts)} prompts; nothing says which are right."
        return Answer(system, text, values, {"Completions": table})
    by_prompt = np.nanmean(found.rewards[judged_rows], axis=1)
    values["mean_reward"] = float(by_prompt.mean())
    text = f"the mean reward of {len(found.texts)} completions is {by_prompt.mean():.3f}"
    if len(by_prompt) > 1:
        effect = paired_effect(by_prompt)
        values["mean_reward_low"], values["mean_reward_high"] = effect.low, effect.high
        text += f" [{effect.low:.3f}, {effect.high:.3f}] (95 % interval over {len(by_prompt)} prompts)"
    means = np.full(len(prompts), np.nan)
    means[judged_rows] = by_prompt
    columns = {"prompt": prompts, "mean_reward": means, "mean_tokens": found.lengths.mean(axis=1)}
    prompt_table = pl.DataFrame(columns).with_columns(pl.col("mean_reward").fill_nan(None))
    return Answer(system, f"{text}.", values, {"Completions": table, "Prompts": prompt_table})
