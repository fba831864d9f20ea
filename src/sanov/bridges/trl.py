"""Distillation and self-verification inside TRL's ``GRPOTrainer``: your script, with another class for the trainer.

::

    from sanov.bridges.trl import KDRLTrainer

    trainer = KDRLTrainer(model="policy-folder", reward_funcs=is_right, args=GRPOConfig(...), train_dataset=prompts,
                          teacher="teacher-folder", kd={"beta": 0.2, "schedule": "constant"})    # these two are ours
    trainer.train()

`LaSeRTrainer` is the other; ``with_signals([kdrl(...), laser(...)])`` makes a class of both, or of yours and them.

Everything else is TRL's: sampling, rewards, the surrogate, the optimiser, logs (where ``kd/k1`` and the like appear),
checkpoints, PEFT, evaluation, and how Accelerate, FSDP or DeepSpeed spread the policy. A local teacher is a whole model on
each process. Signals are those of `learning.policy`, unchanged; each component is divided by its own count over the
micro-batches and processes of a step. With no signal, or none that asks for anything, the gradients are TRL's bit for bit.

A step costs what the teacher costs, and one pass of the policy without gradient for the log-probabilities of what it
sampled, unless TRL keeps those itself (``num_iterations`` > 1) and no signal watches a token.

Touched of TRL's internals, and looked for before anything begins (`trl_checks`): ``_generate_and_score_completions``, which
returns a step's completions as a dictionary of tensors; ``_calculate_rewards``, whose result is read;
``_get_per_token_logps_and_entropies``, which computes log-probabilities, once for TRL's loss and the signals together; and
the attributes that `trl_trainer.Signalled` lists. ``compute_loss`` and ``log`` are hooks of transformers' ``Trainer``.
Versions of TRL other than those in `VERSIONS`, where this was read and tested, are refused.

Completions that were cut have no tokens at all for TRL where ``mask_truncated_completions`` is set, and so none for signals.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sanov.bridges.trl_checks import VERSIONS, check_version
from sanov.bridges.trl_trainer import Maker, Signalled
from sanov.core.errors import InputError, require
from sanov.core.options import parse
from sanov.learning.policy import Signal
from sanov.learning.token_teachers import LocalTeacher, RecordedTeacher, TokenTeacher, open_teacher
from sanov.nets.foreign_causal import ForeignCausal
from sanov.nets.vocabulary import Vocabulary
from sanov.systems import find

__all__ = ["VERSIONS", "KDRLTrainer", "LaSeRTrainer", "kdrl", "laser", "with_signals"]  # noqa: F822 (two are made on demand)


def __getattr__(name: str) -> Any:
    """Make the two trainers when they are asked for: they derive from TRL's, which takes seconds to import."""
    if name not in ("KDRLTrainer", "LaSeRTrainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sanov.bridges import trl_classes

    return getattr(trl_classes, name)


def with_signals(signals: Sequence[Any], base: type | None = None) -> type:
    """Return a ``GRPOTrainer`` to which signals are added.

    Parameters
    ----------
    signals
        Signals, or functions that make one for a number of steps, as `kdrl` returns. None of them is plain GRPO.
    base
        A class of yours that derives from TRL's ``GRPOTrainer``; None for TRL's own.

    Raises
    ------
    MissingExtra
        TRL is not installed.
    InputError
        It is of a version whose internals are not known, or ``base`` derives from something else. The trainer itself
        refuses, by their names, options of TRL that exclude signals.
    """
    trl = require("trl", "trl")
    parent: Any = trl.GRPOTrainer if base is None else base
    if not (isinstance(parent, type) and issubclass(parent, trl.GRPOTrainer)):
        raise InputError(f"it is {parent!r}", where="base", expected="a class that derives from trl.GRPOTrainer")
    check_version(str(trl.__version__), parent)
    for signal in signals:
        if not (isinstance(signal, Signal) or callable(signal)):
            expected = "signals, or functions of the number of steps that make one"
            raise InputError(f"one is {signal!r}", where="signals", expected=expected)
    return type(
        f"{parent.__name__}WithSignals", (Signalled, parent), {"given": tuple(signals), "peer": trl.GRPOTrainer}
    )


def kdrl(
    teacher: str | Path | TokenTeacher | nn.Module, tokenizer: Any = None, *, record: str | Path = "", **options: Any
) -> Maker:
    """Return what makes KDRL's signal, for `with_signals`.

    Parameters
    ----------
    teacher
        A folder, a server or recorded log-probabilities (`token_teachers.open_teacher`); a teacher that is open; or a causal
        language model of transformers, which is frozen.
    tokenizer
        Of transformers, for a model.
    record
        File in which the teacher's log-probabilities are kept, and looked up.
    options
        Those of ``kd`` and ``mixing`` in ``sanov show kdrl``, without these prefixes: ``beta=0.2, schedule="constant"``.

    Raises
    ------
    InputError
        An unknown option, a value out of range, options that exclude one another, or the teacher cannot be opened.
    """
    system: Any = find("kdrl").load()
    groups = {name: "mixing" if name in system.Mixing.model_fields else "kd" for name in options}
    config = parse(system.Config, {f"{groups[name]}.{name}": value for name, value in options.items()})
    if config.kd.combine == "sft":
        raise InputError("sft samples nothing", where="kd.combine", fix="use TRL's SFTTrainer, or `sanov fit sft`")
    if config.kd.combine == "loss" and config.kd.estimator == "exact":
        found = "TRL gives log-probabilities of sampled tokens, and not of the vocabulary"
        raise InputError(found, where="kd.estimator", fix="use k2, or train by `sanov fit kdrl`")
    opened = _opened(teacher, tokenizer, record)

    def make(steps: int) -> Signal:
        signal: Signal = system.KdSignal(opened, config.kd, config.mixing, steps=steps)
        return signal

    make(1)  # options that exclude one another are told now, and not when the first completions are there
    return make


def laser(*, seed: int = 0, **options: Any) -> Signal:
    """Return LaSeR's signal, for `with_signals`.

    What it measures at the start is written to ``sanov_signals.json`` in the trainer's output folder; a run that goes on
    takes it from there.

    Parameters
    ----------
    seed
        Of the completions over which c_ref is measured.
    options
        Those of ``self_reward`` in ``sanov show laser``, without this prefix: ``alpha=0.1, tau=0.1``.

    Raises
    ------
    InputError
        An unknown option, or a value out of range.
    """
    system: Any = find("laser").load()
    config = parse(system.Config, {f"self_reward.{name}": value for name, value in options.items()})
    signal: Signal = system.SelfRewardSignal(config.self_reward, seed=seed)
    return signal


def _opened(teacher: Any, tokenizer: Any, record: str | Path) -> TokenTeacher:
    if isinstance(teacher, str | Path):
        return open_teacher(teacher, record)
    if isinstance(teacher, nn.Module):
        if tokenizer is None:
            raise InputError("there is none", where="tokenizer", expected="that of the teacher, which is a model")
        model = teacher if isinstance(teacher, ForeignCausal) else ForeignCausal(teacher)
        teacher = LocalTeacher(model, Vocabulary(tokenizer, "the teacher's tokenizer"))
    opened: TokenTeacher = RecordedTeacher(record, teacher) if record else teacher
    return opened
