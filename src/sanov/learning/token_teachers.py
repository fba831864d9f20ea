"""Who says how likely sampled tokens are: a model on this machine, what was recorded of it, or a server."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sanov.core.errors import InputError
from sanov.data.prompts import Prompts
from sanov.learning.rollouts import Rollouts, Tokenizer, context_of
from sanov.learning.server_client import PATIENCE, Client
from sanov.nets.causal import load_model, load_tokenizer
from sanov.nets.reads import Read

__all__ = ["LocalTeacher", "RecordedTeacher", "TokenTeacher", "check_tokenizers", "open_teacher"]

TOGETHER = 4096  # tokens of a forward pass
SOME = 256  # numbers of a weight by which a model is known


@runtime_checkable
class TokenTeacher(Protocol):
    """What is asked of a teacher.

    One whose tokenizer is elsewhere may have ``compare(tokenizer, prompts)``: it is given that of the policy, and texts, to
    see by itself that its tokens are the same. One that knows who it is may have ``identity``, by which `RecordedTeacher`
    tells the record of one teacher from that of another.
    """

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What its tokens are; None where it does not say."""

    def log_probs(
        self, rollouts: Rollouts, rows: Int[Tensor, " some"], temperature: float
    ) -> Float[Tensor, "some width"]:
        """Return the log-probability of each token of the completions of some rows; 0 elsewhere."""


class LocalTeacher:
    """A model on this machine.

    Parameters
    ----------
    model
        ``model(ids, mask, reads)``; it is frozen, and put into evaluation mode. One on the CPU goes where the completions
        are as soon as it is asked about some; one that was put elsewhere stays there.
    tokenizer
        Its tokenizer.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer):
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer

    @property
    def identity(self) -> str:
        """Digest of some numbers of each weight: another checkpoint of the same shape has another."""
        found = hashlib.sha256()
        for name, weight in self.model.named_parameters():
            some = weight.detach().flatten()[:: max(weight.numel() // SOME, 1)]
            found.update(f"{name} {list(weight.shape)} ".encode() + some.cpu().double().numpy().tobytes())
        return found.hexdigest()

    def log_probs(
        self, rollouts: Rollouts, rows: Int[Tensor, " some"], temperature: float
    ) -> Float[Tensor, "some width"]:
        """Return the log-probability of each token of the completions of some rows; 0 elsewhere."""
        found = torch.zeros((len(rows), rollouts.ids.shape[1]), device=rollouts.ids.device)
        for part, completion, values in self._passes(rollouts, rows, temperature, logits=False):
            found = found.to(values.dtype)
            inner = torch.zeros(completion.shape, dtype=values.dtype, device=values.device)
            inner = inner.masked_scatter(completion, values)
            found[part.to(found.device), : completion.shape[1]] = inner.to(found.device)
        return found

    def logits(
        self, rollouts: Rollouts, rows: Int[Tensor, " some"], temperature: float
    ) -> Float[Tensor, "some width vocabulary"]:
        """Return the log-probabilities of the whole vocabulary at each token of the completions; 0 elsewhere."""
        found: Tensor | None = None
        for part, completion, values in self._passes(rollouts, rows, temperature, logits=True):
            values = (values / temperature).log_softmax(dim=-1).to(rollouts.ids.device)
            if found is None:
                shape = (len(rows), rollouts.ids.shape[1], values.shape[1])
                found = torch.zeros(shape, dtype=values.dtype, device=values.device)
            where = torch.nonzero(completion.to(rollouts.ids.device))
            found[part.to(found.device)[where[:, 0]], where[:, 1]] = values
        return torch.zeros(0, rollouts.ids.shape[1], 0) if found is None else found

    @torch.no_grad()
    def _passes(
        self, rollouts: Rollouts, rows: Int[Tensor, " some"], temperature: float, *, logits: bool
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Run rows of like length together: their places among the rows, where completions are, and what was read."""
        self._follow(rollouts.ids.device)
        device = next(self.model.parameters()).device
        order = torch.argsort(rollouts.lengths[rows], descending=True, stable=True).cpu()
        rows = rows.cpu()
        while len(order):
            width = int(rollouts.lengths[rows[order[0]]])
            if width > context_of(self.model):
                found, fix = f"its context is {context_of(self.model)} tokens", "lower rollouts.max_completion_length"
                raise InputError(
                    found, where="teacher", expected=f"at least the {width} of prompt and completion", fix=fix
                )
            size = max(TOGETHER // width, 1)
            part, order = order[:size], order[size:]
            chosen = rows[part].to(rollouts.ids.device)
            ids = rollouts.ids[chosen, :width].to(device)
            completion = rollouts.completion[chosen, :width].to(device)
            before = torch.nn.functional.pad(completion[:, 1:], (0, 1))
            read = Read(before, None if logits else ids[completion], 1.0 if logits else temperature)
            yield (
                part,
                completion,
                self.model(ids, rollouts.real[chosen, :width].to(device), {"teacher": read})["teacher"],
            )

    def _follow(self, device: torch.device) -> None:
        if next(self.model.parameters()).device.type == "cpu":
            self.model.to(device)


class RecordedTeacher:
    """Log-probabilities in a file, by the tokens; those that are missing are asked of a teacher, and recorded.

    A row is known by its tokens, where its completion begins, and the temperature: a run over the same completions, as one
    with another beta from the same start and seed is at its first step, asks nothing again. The file is that of one
    teacher, and SQLite's, which several processes may share.

    Parameters
    ----------
    path
        The file; it is made where it is missing and a teacher is given.
    teacher
        Who is asked about what the file lacks; None for nobody.

    Raises
    ------
    InputError
        There is no such file, it is another one, or of another teacher; later, that a row is missing and nobody can be
        asked.
    """

    def __init__(self, path: str | Path, teacher: TokenTeacher | None = None):
        self.path, self.teacher = Path(path), teacher
        self.tokenizer = None if teacher is None else teacher.tokenizer
        if teacher is None and not self.path.is_file():
            raise InputError("there is no such file", where=str(path), expected="recorded log-probabilities")
        try:
            with closing(self._open()) as store, store:
                store.execute("CREATE TABLE IF NOT EXISTS log_probs (row BLOB PRIMARY KEY, found BLOB)")
                known = self._of_one(store)
        except sqlite3.Error as error:
            raise InputError(
                f"cannot be read ({error})", where=str(path), expected="recorded log-probabilities"
            ) from None
        if not known:
            fix = "name another file for this teacher"
            raise InputError("it holds what another teacher said", where=str(path), fix=fix)

    def _of_one(self, store: sqlite3.Connection) -> bool:
        """Whether the file is this teacher's, as far as that can be told; an empty one becomes so."""
        identity = getattr(self.teacher, "identity", None)
        if identity is None:
            return True
        store.execute("CREATE TABLE IF NOT EXISTS teacher (one INTEGER PRIMARY KEY, identity TEXT)")
        store.execute("INSERT OR IGNORE INTO teacher VALUES (1, ?)", (identity,))
        return bool(store.execute("SELECT identity FROM teacher").fetchone() == (identity,))

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)

    def compare(self, tokenizer: Tokenizer, prompts: Prompts) -> None:
        """Let the teacher that is asked compare tokens, if it does that by itself."""
        compare = getattr(self.teacher, "compare", None)
        if compare is not None:
            compare(tokenizer, prompts)

    def log_probs(
        self, rollouts: Rollouts, rows: Int[Tensor, " some"], temperature: float
    ) -> Float[Tensor, "some width"]:
        """Return the log-probability of each token of the completions of some rows; 0 elsewhere.

        Raises
        ------
        InputError
            A row is missing, and there is no teacher to ask.
        """
        keys = [_key(rollouts, int(row), temperature) for row in rows]
        found = torch.zeros((len(rows), rollouts.ids.shape[1]))
        with closing(self._open()) as store:
            missing = [
                place for place, key in enumerate(keys) if not self._take(store, key, rollouts, rows, place, found)
            ]
            if missing:
                self._ask(store, keys, rollouts, rows, missing, temperature, found)
        return found.to(rollouts.ids.device)

    def _take(
        self, store: sqlite3.Connection, key: bytes, rollouts: Rollouts, rows: Tensor, place: int, found: Tensor
    ) -> bool:
        held = store.execute("SELECT found FROM log_probs WHERE row = ?", (key,)).fetchone()
        if held is None:
            return False
        start, end = int(rollouts.starts[rows[place]]), int(rollouts.lengths[rows[place]])
        found[place, start:end] = torch.from_numpy(np.frombuffer(held[0], dtype="<f4").copy())
        return True

    def _ask(
        self,
        store: sqlite3.Connection,
        keys: list[bytes],
        rollouts: Rollouts,
        rows: Tensor,
        missing: list[int],
        temperature: float,
        found: Tensor,
    ) -> None:
        if self.teacher is None:
            first = rollouts.texts[int(rows[missing[0]])]
            text = f"{len(missing)} of {len(keys)} completions are not recorded (the first: {first!r})"
            raise InputError(text, where=str(self.path), fix="give a teacher too: it is asked, and recorded")
        values = self.teacher.log_probs(rollouts, rows[torch.tensor(missing)], temperature).cpu()
        with store:
            for place, row in zip(missing, values, strict=True):
                found[place] = row
                start, end = int(rollouts.starts[rows[place]]), int(rollouts.lengths[rows[place]])
                store.execute(
                    "INSERT OR REPLACE INTO log_probs VALUES (?, ?)",
                    (keys[place], row[start:end].numpy().astype("<f4").tobytes()),
                )


def _key(rollouts: Rollouts, row: int, temperature: float) -> bytes:
    start, end = int(rollouts.starts[row]), int(rollouts.lengths[row])
    tokens = rollouts.ids[row, :end].cpu().numpy().astype("<i8").tobytes()
    return hashlib.sha256(f"{start} {temperature!r} ".encode() + tokens).digest()


def open_teacher(teacher: str | Path, record: str | Path = "", *, patience: float = PATIENCE) -> TokenTeacher:
    """Open a teacher: a Hugging Face folder, a server, or what was recorded; with `record`, what it says is kept.

    Parameters
    ----------
    teacher
        Folder, ``http://...``, or a file that `RecordedTeacher` wrote; empty where `record` holds all that is asked.
    record
        File to look up and to keep.
    patience
        Seconds that a server is waited for.

    Raises
    ------
    InputError
        It cannot be opened.
    """
    found: TokenTeacher | None = None
    if str(teacher).startswith(("http://", "https://")):
        from sanov.learning.servers import ServerTeacher

        found = ServerTeacher(Client(str(teacher), patience=patience))
    elif teacher and Path(teacher).is_file():
        found = RecordedTeacher(teacher)
    elif teacher:
        found = LocalTeacher(load_model(teacher), load_tokenizer(teacher))
    return RecordedTeacher(record, found) if record or found is None else found


def check_tokenizers(policy: Tokenizer, teacher: Tokenizer) -> None:
    """Refuse a teacher whose tokens mean something else; unused ids at the end of a vocabulary do not matter.

    Raises
    ------
    InputError
        The first token whose ids differ, or the sizes of the vocabularies.
    """
    ours, theirs = (tokenizer.token_ids() for tokenizer in (policy, teacher))
    for number, token in sorted((number, token) for token, number in ours.items()):
        if theirs.get(token) != number:
            found = f"the token {token!r} is {number} for the policy and {theirs.get(token, 'unknown')} for the teacher"
            fix = "take a teacher with the policy's tokenizer"
            raise InputError(found, where="the tokenizers", expected="the same token ids", fix=fix)
    if len(ours) != len(theirs):
        found = f"the policy's tokenizer has {len(ours)} tokens and the teacher's {len(theirs)}"
        raise InputError(found, where="the tokenizers", expected="the same token ids")
