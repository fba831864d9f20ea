r"""Fidelity: say whether a distilled student moved onto its *teacher*, or onto the right answers alone.

Distillation is judged twice. *Generalisation*: is the student more often right than the same student without a teacher?
*Fidelity*: does it decide like its teacher, beyond what two systems of these accuracies do anyway? For teacher T, student S
and K possible answers::

    agreement = P(S = T)             max(0, a_T + a_S - 1) <= agreement <= 1 - |a_T - a_S|
    expected  = a_T a_S + (1 - a_T)(1 - a_S) / (K - 1)
    excess    = agreement - expected                   beside that of the undistilled baseline
    transfer  = both right + inherited + both wrong, different + corrected + lost = 1
    a_S - a_T = corrected - lost                       (McNemar tests these two)

with Cohen's kappa, error consistency, KL both ways and Jensen-Shannon between the probabilities, calibration, and BLEU
between rationales; everything with paired bootstrap intervals. Nothing is fitted.

Two modes. *Report*: predictions of one teacher and one student (and of the undistilled baseline). *Study*: a table of scores
of many pairs, in which the paper's claims are tested again, and tested as dependent rows ask for.

Deviations from the paper
-------------------------
- Chance-expected agreement and the excess over it, Cohen's kappa, error consistency, the five cells of error transfer,
  intervals, McNemar's test and the verdict against the undistilled baseline are ours; the paper reports agreement and BLEU.
- Answers are taken out of texts by mended rules (`fidelity.extraction` says which); an example without an answer counts as
  wrong, and is counted.
- BLEU has an effective order, so that a short text too has BLEU 100 with itself. The Jensen-Shannon weight is the first
  argument's, at any value.
- In a study the temperature is fixed beforehand and rows of one pair stay together; the paper's own way, best of
  temperatures and independent rows, is there too, and says so.

Reference: ramesh2025fidelity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sanov.core.answers import Answer
from sanov.core.errors import InputError
from sanov.core.frames import is_path
from sanov.systems.fidelity import reading, report, study
from sanov.systems.fidelity.config import Config
from sanov.systems.fidelity.reading import Data
from sanov.systems.fidelity.sources import open_sources

__all__ = ["Config", "Data", "apply", "read"]


def read(sources: Sequence[Any], config: Config) -> Any:
    """Read predictions (report mode) or scores (study mode); which, the columns say, unless `mode` does.

    Parameters
    ----------
    sources
        Report: the teacher's predictions, the student's, then in any order at most one table of the baseline's and one of
        labels; or one wide table with columns `teacher` and `student`; or, with ``models``, one table of inputs.
        ``embedded:predictions`` needs no file. Study: tables of scores by teacher, student and method.
    config
        The options.

    Returns
    -------
    What `apply` takes.

    Raises
    ------
    InputError
        Anything that is wrong with the input; the message names the file and the row.
    """
    if not sources:
        fix = "name the teacher's file and the student's, or embedded:predictions, which needs none"
        raise InputError("there are no data", where="fidelity", expected="predictions, or a table of scores", fix=fix)
    if config.mode == "study":
        return study.read(sources, config)
    if config.mode == "report" or any((config.models.teacher, config.models.student, config.models.baseline)):
        return reading.read(sources, config)
    if any(is_path(source) and Path(source).is_dir() for source in sources):
        return study.read(sources, config)
    opened = open_sources(sources, config)
    if study.looks_like_study([table.frame for table in opened], config):
        return study.read(sources, config)
    return reading.read(sources, config, opened)


def apply(data: Any, config: Config, *, fitted: Any = None, seed: int = 0) -> Answer:
    """Say whether the student is right more often, and whether it decides like its teacher.

    Parameters
    ----------
    data
        What `read` returned.
    config
        The options.
    fitted
        Not used: there is nothing to fit.
    seed
        Of the bootstrap.

    Raises
    ------
    InputError
        Something fitted was given.
    """
    if fitted is not None:
        fix = "leave out --fitted; folders of models are named by models.teacher and models.student"
        raise InputError("there is nothing to fit, so nothing fitted to apply", where="fidelity", fix=fix)
    if isinstance(data, Data):
        return report.answer(data, config, seed=seed)
    return study.answer(data, config, seed=seed)
