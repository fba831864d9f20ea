"""What an adapted model says of texts, and the files that an adapter can become."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sanov.comparisons import paired_effect
from sanov.core.answers import Answer
from sanov.core.errors import InputError
from sanov.nets.foreign_causal import ForeignCausal
from sanov.systems.nola import tasks
from sanov.systems.nola.bank import Bank
from sanov.systems.nola.fitted import Fitted
from sanov.systems.nola.layers import disabled
from sanov.systems.nola.lora import export_lora
from sanov.systems.nola.reading import Texts
from sanov.systems.nola.storage import Adapter

__all__ = ["answer", "exported", "files_of", "short_digest"]

Writers = dict[str, Callable[[Path], None]]


def short_digest(key: str) -> str:
    """Return a few digits by which a text is known again, and cannot be read."""
    return hashlib.blake2b(key.encode(), digest_size=6).hexdigest()


def answer(data: Texts, fitted: Fitted, limit: int) -> Answer:
    """Return what the model says of texts, and how often it is right where that is known.

    Parameters
    ----------
    data
        Texts; labels must be of the model's classes.
    fitted
        The adapted model.
    limit
        Tokens after which a text is cut.

    Raises
    ------
    InputError
        A label is none of the classes.
    """
    found = _labelled(data, fitted, limit) if fitted.classes else _language(data, fitted, limit)
    keys = data.keys()
    known = [key for key in dict.fromkeys(keys) if short_digest(key) in fitted.seen]
    if known:
        what = "prompts" if data.prompts else "texts"
        note = (
            f"{len(known)} of {len(set(keys))} {what} were trained on, such as {known[0][:60]!r}: scores are too good."
        )
        return replace(found, notes=(note,))
    return found


def _labelled(data: Texts, fitted: Fitted, limit: int) -> Answer:
    data = data.aligned(fitted.classes)
    tokens = tasks.text_tokens(data, fitted.base.tokenizer, limit)
    log_probs = tasks.class_log_probs(fitted.base.model.eval(), tokens, fitted.base.tokenizer.pad_token_id)
    names = np.array(fitted.classes, dtype=object)
    columns: dict[str, Any] = {"text": data.texts, "predicted": names[log_probs.argmax(axis=1)].tolist()}
    columns |= {f"prob_{name}": np.exp(log_probs[:, place]) for place, name in enumerate(fitted.classes)}
    values: dict[str, Any] = {"texts": len(data)}
    labels = data.labels
    if labels is None or not (labels >= 0).any():
        table = pl.DataFrame(columns)
        return Answer("nola", f"{len(data)} texts; nothing says which classes are right.", values, {"Texts": table})
    columns["label"] = [None if label < 0 else fitted.classes[label] for label in labels]
    values |= tasks.scores(log_probs, labels)
    right = (log_probs.argmax(axis=1) == labels)[labels >= 0].astype(float)
    text = f"the accuracy on {len(right)} labelled texts is {values['accuracy']:.3f}"
    if len(right) > 1:
        effect = paired_effect(right)
        values["accuracy_low"], values["accuracy_high"] = max(effect.low, 0.0), min(effect.high, 1.0)
        text += f" [{values['accuracy_low']:.3f}, {values['accuracy_high']:.3f}] (95 % interval)"
    return Answer("nola", f"{text}.", values, {"Texts": pl.DataFrame(columns)}, source=data.source)


def _language(data: Texts, fitted: Fitted, limit: int) -> Answer:
    tokens, starts = tasks.language_tokens(data, fitted.base.tokenizer, limit)
    model, pad = ForeignCausal(fitted.base.model.eval()), fitted.base.tokenizer.pad_token_id
    sums, counts = tasks.token_losses(model, tokens, starts, pad)
    with disabled(fitted.base.model):
        before, _ = tasks.token_losses(model, tokens, starts, pad)
    columns: dict[str, Any] = {} if data.prompts is None else {"prompt": data.prompts}
    each = np.maximum(counts, 1)
    columns |= {"text": data.texts, "token_loss": sums / each, "base_token_loss": before / each, "tokens": counts}
    loss, base_loss = sums.sum() / counts.sum(), before.sum() / counts.sum()
    values: dict[str, Any] = {
        "texts": len(data),
        "tokens": int(counts.sum()),
        "token_loss": loss,
        "base_token_loss": base_loss,
    }
    text = f"the loss is {loss:.3f} nats a token, and {base_loss:.3f} without the adapter"
    if len(data) > 1:
        effect = paired_effect((sums - before) / counts.mean())
        values["difference_low"], values["difference_high"] = effect.low, effect.high
        text += (
            f": a difference of {loss - base_loss:.3f} [{effect.low:.3f}, {effect.high:.3f}] (95 % interval over texts)"
        )
    return Answer("nola", f"{text}.", values, {"Texts": pl.DataFrame(columns)}, source=data.source)


def files_of(fitted: Fitted, kinds: Sequence[str], others: Sequence[str]) -> tuple[Writers, pl.DataFrame]:
    """Return writers of what an adapter is to become, by file name, and a table of them.

    Parameters
    ----------
    fitted
        The adapter and its model.
    kinds
        Of ``adapter``, ``lora``, ``merged``, ``bank``.
    others
        Folders of adapters that go into a bank besides.

    Raises
    ------
    InputError
        A weight is quantised, or adapters of a bank do not go together.
    """
    writers: Writers = {}
    for kind in kinds:
        if kind == "adapter":
            writers |= {f"adapter/{name}": _writer(content) for name, content in fitted.contents().items()}
        elif kind == "bank":
            writers["bank.safetensors"] = _bank(fitted, others).save
        else:
            writers |= _folder(kind, partial(_write, fitted, kind))
    rows: dict[str, list[Any]] = {"file": list(writers), "bytes": [_size(write) for write in writers.values()]}
    return writers, pl.DataFrame(rows)


def _write(fitted: Fitted, kind: str, place: Path) -> None:
    adapter = fitted.adapter
    if kind == "lora":
        heads = adapter.head_modules
        export_lora(fitted.base.model, place, base=adapter.base, task=adapter.task, head_modules=heads)
        return
    model: Any = fitted.merged()
    model.save_pretrained(place)
    fitted.base.tokenizer.save_pretrained(place)


class _Aside:
    """A folder that goes when nothing needs it any more."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="sanov-"))
        self._end = weakref.finalize(self, shutil.rmtree, self.place, ignore_errors=True)

    def copy(self, name: str, target: Path) -> None:
        shutil.copyfile(self.place / name, target)


def _folder(kind: str, write: Callable[[Path], None]) -> Writers:
    """Write a folder aside, and return what copies each of its files."""
    aside = _Aside()
    write(aside.place / kind)
    found = sorted(path for path in aside.place.rglob("*") if path.is_file())
    names = [path.relative_to(aside.place).as_posix() for path in found]
    return {name: partial(aside.copy, name) for name in names}


def _writer(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def _size(write: Callable[[Path], None]) -> int:
    with tempfile.TemporaryDirectory(prefix="sanov-") as folder:
        write(Path(folder) / "file.safetensors")
        return (Path(folder) / "file.safetensors").stat().st_size


def _bank(fitted: Fitted, others: Sequence[str]) -> Bank:
    found: dict[str, Any] = {"first": fitted.adapter}
    for folder in others:
        name = Path(folder).name
        if name in found:
            raise InputError("two adapters have this name", where=name, fix="rename one of the folders")
        found[name] = Adapter.load(folder)
    return Bank.of(found, bits=fitted.bits)


def exported(fitted: Fitted, kinds: Sequence[str], others: Sequence[str], found: Answer | None) -> Answer:
    """Return an answer with the files that were asked for."""
    writers, table = files_of(fitted, kinds, others)
    about = fitted.adapter
    if found is None:
        numbers: Mapping[str, Any] = {"coefficients": about.numbers, "head_weights": about.head_numbers}
        text = f"{about.numbers:,} coefficients become {len(writers)} files of {int(table['bytes'].sum()):,} bytes"
        found = Answer("nola", f"{text}: give --out a folder to write them.", numbers)
    return replace(found, files=writers, tables={**found.tables, "Files": table})
