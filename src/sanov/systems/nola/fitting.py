"""How an adapter is trained: the model is opened and adapted, and its coefficients go through the one training loop."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sanov.core import files
from sanov.core.errors import InputError, SanovWarning
from sanov.learning.checkpoints import refuse_unfinished
from sanov.learning.history import History
from sanov.learning.optimizers import adamw
from sanov.learning.processes import every_process, place
from sanov.learning.sentences import Sentences
from sanov.learning.training import Training, train
from sanov.nets.adaptable import Base, load_base, packaged_encoder
from sanov.nets.foreign_causal import ForeignCausal
from sanov.systems.nola import tasks
from sanov.systems.nola.fitted import SEAL, Fitted
from sanov.systems.nola.layers import Adapted, attach, chosen
from sanov.systems.nola.reading import Texts
from sanov.systems.nola.storage import Adapter
from sanov.systems.nola.updates import Plan, weight_shape

__all__ = ["CHECKPOINTS", "adapter_of", "base_of", "begin", "check_plan", "check_start", "kept_bases", "run", "written"]

CHECKPOINTS, RUN = "checkpoints", "run.json"
README_RATE = 1e-3


def base_of(data: Texts, folder: str, seed: int) -> Base:
    """Open the model that is adapted: that of a folder, or for labelled texts the packaged encoder.

    Raises
    ------
    InputError
        There is none, or it cannot be read.
    """
    classifies = data.labels is not None
    if not folder and not classifies:
        fix = "name a folder of one: model=DIR"
        raise InputError("texts without labels need a causal language model", where="model", fix=fix)
    if classifies and len(data.classes) < 2:
        raise InputError(f"all labels are {data.classes}", where=data.name, expected="at least two classes")
    return load_base(folder or packaged_encoder(), data.classes if classifies else None, seed=seed)


def kept_bases(model: nn.Module, targets: str | tuple[str, ...], plan: Plan) -> int:
    """Return the bytes of all bases of a model, if they were kept in memory."""
    shapes = [weight_shape(layer) for layer in chosen(model, targets).values()]
    shapes = sorted(set(shapes)) if plan.share_basis == "by_shape" else shapes
    return sum(plan.bytes(shape) for shape in shapes)


def check_plan(model: nn.Module, targets: str | tuple[str, ...], plan: Plan, training: Training) -> None:
    """Refuse sizes beyond the space of an update; warn of rates and decays that do not go with the scale.

    Parameters
    ----------
    model, targets, plan
        As for `attach`.
    training
        The rate and the decay.

    Raises
    ------
    InputError
        There are more bases than a factor has entries.
    """
    shapes = {weight_shape(layer) for layer in chosen(model, targets).values()}
    for (outputs, inputs), (name, count) in (
        (shape, size) for shape in shapes for size in (("a", plan.num_basis_a), ("b", plan.num_basis_b))
    ):
        dimensions = plan.rank * (inputs if name == "a" else outputs)
        if count > dimensions:
            told = f"r*{'in' if name == 'a' else 'out'} = {dimensions}"
            found, fix = (
                f"{count} bases are more than dimensions, and no gain over LoRA",
                "take fewer, or a larger rank",
            )
            raise InputError(found, where=f"adapter.num_basis_{name}", expected=f"at most {told}", fix=fix)
    if plan.preset == "readme" and training.learning_rate > README_RATE:
        times = f"{plan.num_basis_b**0.5:.3g}"
        text = f"preset=readme does not divide by the root of the number of bases: a step is {times} times that of gpt"
        warnings.warn(f"{text}, and learning_rate > {README_RATE:g} is likely too large", SanovWarning, stacklevel=4)
    if training.weight_decay > 0:
        text = "weight decay draws the coefficients, and with them the update, to zero: 0 is usual here"
        warnings.warn(text, SanovWarning, stacklevel=4)


def check_start(layers: Mapping[str, Adapted]) -> None:
    """Refuse a start from which no gradient leads away.

    Raises
    ------
    InputError
        Coefficients are zero, and the bases have no offset.
    """
    for name, layer in layers.items():
        update = layer.update
        if update.space.preset == "vit" and not (update.nola_alpha.any() or update.nola_beta.any()):
            found = "zero coefficients without an offset are a stationary point: no gradient leads away from it"
            raise InputError(found, where=name, fix="start as the preset does, or take preset gpt")


def begin(folder: Path | None, data: Texts, options: Mapping[str, Any], seed: int, resume: bool) -> None:
    """Refuse a folder that holds something else, and write down what a run is; resume none that was another.

    Raises
    ------
    InputError
        The folder holds other files, a finished adapter, an unfinished run, or one of other data or options.
    """
    if folder is not None and place()[0] == 0:
        found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if found and RUN not in found:
            fix = "name a new or an empty folder"
            raise InputError("is a folder with other files in it", where=str(folder), fix=fix)
        if SEAL in found and not resume:
            raise InputError(
                "holds a finished adapter", where=str(folder), fix="name another folder, or delete this one"
            )
        run = {"data": data.digest(), "options": files.plain(options), "seed": seed}
        if resume and RUN in found:
            other = " and other ".join(k for k, value in files.read_json(folder / RUN).items() if run.get(k) != value)
            if other:
                fix = "resume with the same, or begin anew in another folder"
                raise InputError(f"the run in this folder had other {other}", where=str(folder), fix=fix)
        else:
            refuse_unfinished(folder / CHECKPOINTS)
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            files.write_json(folder / RUN, run)
    every_process(None)


def run(
    data: Texts,
    base: Base,
    targets: str | tuple[str, ...],
    plan: Plan,
    training: Training,
    *,
    basis_seed: int,
    max_length: int,
    held_out: Texts | None = None,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
) -> History:
    """Attach an adapter to a model, and train it in place with what was never trained before.

    Parameters
    ----------
    data
        With labels: their classes are learned; without, the texts.
    base, targets, plan
        The model, its layers, and the sizes.
    training
        Options of the loop.
    basis_seed
        Of the bases.
    max_length
        Tokens after which a text is cut.
    held_out
        Rows to evaluate on.
    seed
        Of the order of rows and of dropout.
    out, resume
        Folder of the checkpoints, and whether to go on from the newest.

    Raises
    ------
    InputError
        See `attach`, `tasks` and `training.train`.
    """
    check_plan(base.model, targets, plan, training)
    check_start(attach(base.model, targets, plan, seed=basis_seed))
    for name in base.fresh:
        base.model.get_submodule(name).requires_grad_(True)
    pad = base.tokenizer.pad_token_id
    labels, starts, model = data.labels, None, base.model
    if labels is not None:
        tokens = tasks.text_tokens(data, base.tokenizer, max_length)
    else:
        tokens, starts = tasks.language_tokens(data, base.tokenizer, max_length)
        model = ForeignCausal(base.model)
    sentences = Sentences(tokens, batch_size=training.batch_size, epochs=training.epochs, seed=seed)
    history = train(
        model,
        tasks.feed(sentences, pad, training.micro_batch, labels=labels, starts=starts),
        tasks.loss_of,
        optimizer=partial(adamw, learning_rate=training.learning_rate, weight_decay=training.weight_decay),
        steps=sentences.steps,
        schedule=training.factor(sentences.steps),
        clip_norm=training.clip_norm,
        evaluate=None if held_out is None else _judge(held_out, base, max_length),
        evaluate_every=training.evaluate_every or sentences.steps_per_epoch,
        out=out,
        checkpoint_every=training.checkpoint_every,
        resume=resume,
        seed=seed,
        parallel=training.parallel,
        trackers=training.trackers,
    )
    base.model.eval()
    return history


def _judge(held_out: Texts, base: Base, limit: int) -> Any:
    """Return what evaluates a model on rows held out, whose tokens are made once."""
    pad = base.tokenizer.pad_token_id
    if held_out.labels is not None:
        labels, tokens = held_out.labels, tasks.text_tokens(held_out, base.tokenizer, limit)

        def judge(model: nn.Module, done: int) -> dict[str, float]:
            found = tasks.scores(tasks.class_log_probs(model, tokens, pad), labels)
            return {f"validation_{name}": value for name, value in found.items()}

        return judge
    tokens, starts = tasks.language_tokens(held_out, base.tokenizer, limit)

    def loss(model: Any, done: int) -> dict[str, float]:
        sums, counts = tasks.token_losses(model, tokens, starts, pad)
        return {"validation_token_loss": float(sums.sum() / counts.sum())}

    return loss


@torch.no_grad()
def written(fitted: Fitted, folder: Path | None) -> Fitted:
    """Make a model what will be read from its folder again, and write that."""
    stored = fitted.adapter.stored(fitted.bits)
    layers: Any = {name: fitted.base.model.get_submodule(name) for name in stored.layers}
    stored.write(layers)
    for name, weight in stored.head.items():
        fitted.base.model.get_parameter(name).copy_(weight)
    found = Fitted(
        stored, fitted.base, fitted.bits, fitted.classes, fitted.config, fitted.results, fitted.history, fitted.seen
    )
    if folder is not None:
        if place()[0] == 0:
            found.save(folder)
        every_process(None)
    return found


def adapter_of(base: Base, plan: Plan, targets: str | tuple[str, ...], classes: tuple[str, ...]) -> Adapter:
    """Take the adapter out of a trained model, with what the base model's folder does not hold."""
    labelled = "SEQ_CLS" if base.fresh else None  # of which PEFT asks for a head in the folder
    task = labelled if classes else "CAUSAL_LM"
    return Adapter.of(base.model, plan, targets, base=base.folder, task=task, head_modules=base.fresh)
