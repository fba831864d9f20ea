"""How alike the rationales are: mean sentence BLEU, by sacrebleu.

The order of the n-grams is at most 4 and at most the length of the text (effective order), so that a text of two words too
has BLEU 100 with itself. The hypothesis is the second system's text, the reference the first's.

Reference: papineni2002bleu; post2018call for the program and its tokenisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sanov.core.errors import require
from sanov.core.progress import track

__all__ = ["scorer", "sentence_bleu"]

BEST = 100.0


def scorer() -> Any:
    """Return sacrebleu's scorer.

    Raises
    ------
    MissingExtra
        It is not installed.
    """
    return require("sacrebleu.metrics", "rationale").BLEU(effective_order=True)


def sentence_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> Float[ndarray, " rows"]:
    """Return the BLEU of each text against another, 0 to 100.

    Parameters
    ----------
    hypotheses, references
        Texts, none of them empty.

    Raises
    ------
    MissingExtra
        sacrebleu is not installed.
    """
    score = scorer().sentence_score
    pairs = track(zip(hypotheses, references, strict=True), "BLEU", total=len(hypotheses))
    return np.minimum(BEST, [score(text, [reference]).score for text, reference in pairs])  # rounding may pass 100
