"""TRL's ``GRPOTrainer`` with KDRL's signal, and with LaSeR's: two classes, to be used and derived from as it is.

They are told what is ours by name, and everything else is passed on. To import this module imports TRL.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sanov.bridges.trl import kdrl, laser, with_signals
from sanov.learning.token_teachers import TokenTeacher

__all__ = ["KDRLTrainer", "LaSeRTrainer"]

Signalled: Any = with_signals([])


class KDRLTrainer(Signalled):  # type: ignore[misc]
    """Trains on a verifier's rewards and a teacher's log-probabilities at once.

    Parameters
    ----------
    args, kwargs
        Of TRL's ``GRPOTrainer``.
    teacher
        A folder, a server, recorded log-probabilities, an open teacher, or a model of transformers.
    teacher_tokenizer
        For a model.
    record
        File in which the teacher's log-probabilities are kept, and looked up.
    kd
        Options of ``kd`` and ``mixing`` in ``sanov show kdrl``.

    Raises
    ------
    InputError
        See `bridges.trl.kdrl` and `bridges.trl.with_signals`.
    """

    def __init__(
        self,
        *args: Any,
        teacher: str | Path | TokenTeacher | nn.Module,
        teacher_tokenizer: Any = None,
        record: str | Path = "",
        kd: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.given = (kdrl(teacher, teacher_tokenizer, record=record, **(kd or {})),)
        super().__init__(*args, **kwargs)


class LaSeRTrainer(Signalled):  # type: ignore[misc]
    """Trains the policy, and the score that it gives to its own answers.

    Parameters
    ----------
    args, kwargs
        Of TRL's ``GRPOTrainer``.
    self_reward
        Options of ``self_reward`` in ``sanov show laser``.
    self_reward_seed
        Of the completions over which c_ref is measured.

    Raises
    ------
    InputError
        See `bridges.trl.laser` and `bridges.trl.with_signals`.
    """

    def __init__(
        self, *args: Any, self_reward: Mapping[str, Any] | None = None, self_reward_seed: int = 0, **kwargs: Any
    ):
        self.given = (laser(seed=self_reward_seed, **(self_reward or {})),)
        super().__init__(*args, **kwargs)
