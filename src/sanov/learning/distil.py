"""A student trained on a teacher's outputs, as a sum of components.

A component is a pure loss of the student's logits and of what is known of the same rows; it returns a sum over rows, and
the training loop divides by the number of rows that count for it. Initial weights, order of rows and validation split
follow from the seed alone, so that runs that differ in their components are paired.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sanov.core import files
from sanov.core.errors import InputError, SanovWarning
from sanov.core.options import Options, option
from sanov.data.distillation import DistilTable
from sanov.learning.checkpoints import refuse_unfinished
from sanov.learning.components import Component, Rows, gradient_norms, label_loss, teacher_loss, weighted_sums
from sanov.learning.readout import Readout
from sanov.learning.selection import BEST, Judge
from sanov.learning.students import Encoder, Fitted, Student, build, clear, is_finished
from sanov.learning.teachers import CACHE, Teacher, with_teacher
from sanov.learning.training import History, Training, micro_batches, place, shuffled, train
from sanov.precision import widen

__all__ = [
    "Component",
    "Rows",
    "Validation",
    "divided",
    "fit",
    "held_out_rows",
    "label_loss",
    "settings",
    "teacher_loss",
]

FAR_BELOW = 4.0  # standard errors
SAMPLE = 2048  # training rows on which the untrained student is looked at
RUN = "run.json"  # what the run in a folder is
CHECKPOINTS = "checkpoints"  # folder inside that of the fitted student
EXTRA = "extra."  # marks the table's further arrays among the tensors of a batch
SPLIT, LOOK = 1, 2  # third words of seeds, of which those of the epochs have two


class Validation(Options):
    """Rows held out of training, by which the best evaluation is chosen."""

    share: float = option(0.1, "Share of rows held out; 0 for none.", source="choice", ge=0, lt=1)
    select: Literal["best", "last"] = option(
        "best", "Weights that are kept: of the best evaluation on the rows held out, or the last.", source="choice"
    )
    drop_last: bool = option(False, "Leave out the last batch of an epoch where it is smaller.", source="choice")


def fit(
    table: DistilTable,
    components: Sequence[Component],
    *,
    teacher: Teacher = "",
    embeddings: bool = False,
    readout: Readout | None = None,
    hint: str = "",
    prepare: Callable[[DistilTable], DistilTable] | None = None,
    training: Training | None = None,
    student: Student | None = None,
    validation: Validation | DistilTable | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    system: str = "distil",
    config: Mapping[str, Any] | None = None,
    before: Callable[[Tensor, Tensor], Mapping[str, Any]] | None = None,
    diagnose: bool = True,
) -> Fitted:
    """Train a student on the sum of components.

    Parameters
    ----------
    table
        Inputs with the teacher's logits, labels or both.
    components
        The terms of the objective.
    teacher
        What gives the logits where the table has none: the folder of a Hugging Face classifier, or any other teacher that
        `teachers.outputs` takes.
    embeddings
        Whether the teacher's embeddings are needed as well.
    readout
        What the student's outputs mean; None for one a class. Components get the outputs as they are.
    hint
        Name of an extra array of the rows to train on: the student has a further output for each of its columns.
    prepare
        Called with the rows to train on, once the teacher's outputs are known; what it returns is trained on.
    training
        Options of the loop.
    student
        Options of the network: a multilayer perceptron on features, or on hashed n-grams where the inputs are texts.
    validation
        The share of rows to hold out and what they choose; or a table, by which the best evaluation is chosen. Where the
        teacher is asked of the rows it is asked of that table too, unless it is an array.
    seed
        Of everything random.
    out
        Folder for the fitted student and the checkpoints. A finished student in it is replaced, as a saved answer is, with a
        warning where it is of other data, options or seed; a run that was stopped is not.
    resume
        Go on from the newest checkpoint in `out`.
    system, config
        What is written down with the student.
    before
        Called with the untrained student's outputs and the teacher's logits of up to 2,048 training rows; what it returns
        is written down with the student.
    diagnose
        Log at each evaluation how strong the gradient of each component is.

    Returns
    -------
    The student with the weights of the best evaluation, or of the last step.

    Raises
    ------
    InputError
        The table lacks what a component needs, or holds one class. Nothing is written then.
    """
    training, student = training or Training(), student or Student()
    choice = validation if isinstance(validation, Validation) else Validation()
    folder, main = None if out is None else Path(out), place()[0] == 0
    active = [component for component in components if component.weight > 0 or component.balance > 0]
    _check(table, active, teacher)
    _check_whole(active, training)
    if folder is not None and main:
        _check_folder(folder, resume)
    given, table = table, with_teacher(table, teacher, folder=folder, embeddings=embeddings)
    _check(table, active)  # again: not every teacher gives logits
    if isinstance(validation, DistilTable) and given.logits is None and not isinstance(teacher, Mapping | np.ndarray):
        validation = with_teacher(validation, teacher, folder=folder)
    rows, held_out = divided(table, validation, seed)
    rows = rows if prepare is None else prepare(rows)
    encoder = Encoder.of(rows, student)
    readout = readout or Readout(len(table.classes))
    readout = replace(readout, hints=rows.extras[hint].shape[1]) if hint else readout
    model = build(encoder, student, readout.outputs, seed=seed)
    feed = _Feed(rows, encoder, active, training, seed=seed, drop_last=choice.drop_last)
    found: dict[str, Any] = {"rows": len(rows), "labelled_rows": rows.n_labelled, "seed": seed, **_teacher_of(rows)}
    if before is not None:
        found |= before(*feed.sample(model))
    if folder is not None and main:
        _begin(folder, {"data": table.digest(), "options": files.plain(config or {}), "seed": seed}, resume)
    judge = Judge(
        held_out,
        encoder,
        feed.diagnosis if diagnose else None,
        readout=readout,
        select=choice.select == "best",
        folder=folder,
        resume=resume,
        main=main,
    )
    history = _train(model, feed, judge, training, None if folder is None else folder / CHECKPOINTS, resume)
    best = len(history) if judge.best is None else judge.best.step
    found |= {"steps": len(history), "kept_step": best, **history.evaluations.get(best, {})}
    kept = build(encoder, student, readout.outputs, seed=seed)  # free of what several processes made of the other
    kept.load_state_dict(judge.chosen(model))
    shape = (student, encoder, table.classes, readout)
    fitted = Fitted(system, kept.eval(), *shape, config or {}, found, history.to_frame())
    if folder is not None and main:
        fitted.save(folder)
    return fitted


def settings(config: Any, system: str) -> dict[str, Any]:
    """Return the options of `fit` that every system of students has in its `Config`.

    Parameters
    ----------
    config
        With ``teacher``, ``training``, ``student`` and ``validation``.
    system
        Its name.
    """
    own = {name: getattr(config, name) for name in ("teacher", "training", "student", "validation")}
    return {**own, "system": system, "config": config.model_dump(mode="json")}


def _train(
    model: nn.Module, feed: _Feed, judge: Judge, training: Training, folder: Path | None, resume: bool
) -> History:
    return train(
        model,
        feed.batches,
        feed.loss,
        optimizer=lambda parameters: torch.optim.AdamW(
            parameters, lr=training.learning_rate, weight_decay=training.weight_decay
        ),
        steps=feed.steps,
        schedule=training.factor(feed.steps),
        clip_norm=training.clip_norm,
        whole_batch={
            component.name: component.whole_batch or "own"
            for component in feed.components
            if component.whole_batch or component.balance > 0
        },
        evaluate=judge if judge.looks else None,
        evaluate_every=training.evaluate_every or feed.steps_per_epoch,
        out=folder,
        checkpoint_every=training.checkpoint_every,
        resume=resume,
        seed=feed.seed,
        parallel=training.parallel,
        trackers=training.trackers,
    )


def _check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder with other files in it; say where there is nothing to resume."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if RUN not in found:
        if found - {CACHE}:
            raise InputError(
                "is a folder with other files in it", where=str(folder), fix="name a new or an empty folder"
            )
        if resume:
            warnings.warn(f"there is nothing to resume in {folder}: it begins anew", SanovWarning, stacklevel=4)


def _begin(folder: Path, run: dict[str, Any], resume: bool) -> None:
    """Write down what a run is; resume none that was another, and clear away what a finished one left, as is said.

    Raises
    ------
    InputError
        The run that was stopped had other data or options, or would be overwritten. Nothing is changed then.
    """
    path = folder / RUN
    before = files.read_json(path) if path.is_file() and (resume or is_finished(folder)) else {}
    other = " and other ".join(name for name, value in before.items() if run.get(name) != value)
    if resume and before:
        if other:
            fix = "resume with the same, or begin anew in another folder"
            raise InputError(f"the run in this folder had other {other}", where=str(folder), fix=fix)
        return
    refuse_unfinished(folder / CHECKPOINTS)
    if other:
        warnings.warn(
            f"{folder} held a finished student of other {other}, which is replaced.", SanovWarning, stacklevel=4
        )
    clear(folder)
    (folder / BEST).unlink(missing_ok=True)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    files.write_json(path, run)


def held_out_rows(table: DistilTable, validation: Validation) -> int:
    """Return how many rows of a table are held out: at least one of them, and one of the others."""
    wanted = round(validation.share * len(table))
    return min(max(wanted, 1), len(table) - 1) if validation.share > 0 else 0


def divided(
    table: DistilTable, validation: Validation | DistilTable | None, seed: int
) -> tuple[DistilTable, DistilTable | None]:
    """Return the rows to train on and those held out; without a teacher, rows with a label are held out first.

    Parameters
    ----------
    table
        All rows.
    validation, seed
        As in `fit`.
    """
    if isinstance(validation, DistilTable):
        if validation.logits is None and not validation.n_labelled:
            raise InputError("there are neither labels nor teacher logits to choose by", where=validation.name)
        return table, validation.aligned(table.classes)
    count = held_out_rows(table, validation or Validation())
    order = np.random.default_rng([seed, 0, SPLIT]).permutation(len(table))
    if table.logits is None and table.labels is not None:
        labelled = table.labels[order] >= 0
        order = np.concatenate([order[labelled], order[~labelled]])
        count = min(count, max(table.n_labelled - 1, 1))
    return table.take(np.sort(order[count:])), table.take(np.sort(order[:count])) if count else None


def _check(table: DistilTable, active: Sequence[Component], teacher: Teacher = "") -> None:
    if len(table) < 2:
        raise InputError(f"there are {len(table)} rows", where=table.name, expected="at least two")
    if len(table.classes) < 2:
        raise InputError(f"there are {len(table.classes)} classes", where=table.name, expected="at least two")
    if not active or all(component.balance > 0 for component in active):
        raise InputError("every term has weight 0 or a weight relative to the others", where="the objective")
    if all(component.counts == "labelled" for component in active) and not table.n_labelled:
        raise InputError("there are no labels, and only labels were to be learned", where=table.name)
    asked = not isinstance(teacher, str) or bool(teacher)
    if table.logits is None and not asked and any(component.counts == "rows" for component in active):
        if table.embeddings is not None and table.head is None:
            fix = "add `head_weight` and `head_bias`, the teacher's last layer, or logits"
            raise InputError("there are embeddings, and neither head nor logits", where=table.name, fix=fix)
        fix = "add the array `logits` (.npz) or columns logit_CLASS (a table), a second file of logits by row id, or "
        fix += "teacher=DIR for a Hugging Face classifier"
        raise InputError("there are no teacher logits", where=table.name, fix=fix)
    present = set() if table.labels is None else set(table.labels[table.labels >= 0].tolist())
    if len(present) == 1:
        name = table.classes[present.pop()]
        fix = "leave out the column of labels to learn from the teacher alone"
        raise InputError(f"all labels are of one class ({name!r})", where=table.name, expected="at least two", fix=fix)


def _teacher_of(rows: DistilTable) -> dict[str, float]:
    """How often the teacher is right on labelled training rows; a warning where that is far below chance."""
    if rows.logits is None or rows.labels is None or not rows.n_labelled:
        return {}
    kept = rows.labels >= 0
    accuracy = float((rows.logits[kept].argmax(axis=1) == rows.labels[kept]).mean())
    chance = 1 / len(rows.classes)
    if accuracy < chance - FAR_BELOW * (chance * (1 - chance) / int(kept.sum())) ** 0.5:
        text = f"the teacher is right on {accuracy:.0%} of {kept.sum()} labelled rows, far below chance: are its classes in"
        warnings.warn(f"{text} another order, or its head turned or of another sign?", SanovWarning, stacklevel=4)
    return {"teacher_accuracy": accuracy}


def _check_whole(active: Sequence[Component], training: Training) -> None:
    whole = [component.name for component in active if component.whole_batch or component.balance > 0]
    if whole and 0 < training.micro_batch < training.batch_size:
        found = f"{whole[0]!r} is no sum over rows, and training.micro_batch splits the batch"
        raise InputError(found, where="training.micro_batch", expected="0", fix="make training.batch_size smaller")


class _Feed:
    """Batches as a function of the step, and looks at a fixed one.

    Parameters
    ----------
    table
        Rows to train on.
    encoder
        Of the student.
    components
        For which rows are counted.
    training
        Options of the loop.
    """

    def __init__(
        self,
        table: DistilTable,
        encoder: Encoder,
        components: Sequence[Component],
        training: Training,
        *,
        seed: int,
        drop_last: bool,
    ):
        self.components, self.seed = components, seed
        self.inputs = encoder.encode(table)
        logits = np.zeros((len(table), len(table.classes))) if table.logits is None else table.logits
        labels = np.full(len(table), -1) if table.labels is None else table.labels
        self.teacher, self.labels = torch.from_numpy(logits).float(), torch.from_numpy(labels)
        self.extras = {name: _tensor(values) for name, values in table.extras.items()}
        self.micro_batch = training.micro_batch
        self.order = shuffled(len(table), min(training.batch_size, len(table)), seed=seed, drop_last=drop_last)
        self.epochs = training.epochs

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return self.order.steps_per_epoch

    @property
    def steps(self) -> int:
        """Number of batches in all epochs."""
        return self.steps_per_epoch * self.epochs

    def batches(self, step: int, model: nn.Module) -> Iterator[dict[str, Any]]:
        """Yield this process's micro-batches of a step."""
        for index in micro_batches(self.order(step), self.micro_batch):
            yield self.batch(index, step)

    def batch(self, index: np.ndarray, step: int) -> dict[str, Any]:
        """Return rows as tensors, with the numbers of rows that count for each component."""
        rows = torch.from_numpy(index)
        labels = self.labels[rows]
        return {
            **self.inputs.rows(index),
            "teacher": self.teacher[rows],
            "labels": labels,
            **{f"{EXTRA}{name}": values[rows] for name, values in self.extras.items()},
            "progress": (step // self.steps_per_epoch) / max(self.epochs - 1, 1),
            "counts": {component.name: component.count(labels) for component in self.components},
        }

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, tuple[Tensor, float]]:
        """Return each component's sum and weight: what the training loop asks for."""
        return weighted_sums(self.components, *self._outputs(model, batch))

    def _outputs(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Rows]:
        logits = model(*(batch[name] for name in self.inputs.names))
        extras = {name: batch[f"{EXTRA}{name}"] for name in self.extras}
        rows = Rows(batch["teacher"], batch["labels"], batch["progress"], extras)
        return widen(logits), rows

    def diagnosis(self, model: nn.Module) -> dict[str, float]:
        """Return gradient norms of the components and their further numbers, on the first batch."""
        (index,) = micro_batches(self.order(0))
        batch = self.batch(index, 0)
        device = next(model.parameters()).device
        batch = {name: values.to(device) if isinstance(values, Tensor) else values for name, values in batch.items()}
        with torch.no_grad():
            logits, rows = self._outputs(model, batch)
            found: dict[str, float] = {}
            for component in self.components:
                found |= component.monitor(logits, rows) if component.monitor is not None else {}
        return found | gradient_norms(self.components, logits, rows)

    def sample(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the logits of a student and of the teacher on some rows."""
        order = np.random.default_rng([self.seed, 0, LOOK]).permutation(len(self.labels))[:SAMPLE]
        with torch.no_grad():
            logits, rows = self._outputs(model, self.batch(order, 0))
        return logits, rows.teacher


def _tensor(values: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(values)
    return tensor.float() if tensor.is_floating_point() else tensor
