"""The child of `answer_process`: a JSON object a line in, one value a line out. It imports nothing of sanov."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["gym", "main", "math"]

ALARM = 2 if os.name == "posix" else None  # seconds of each step; elsewhere the parent's patience is all there is
MEMORY = 4 * 2**30  # bytes, where the system keeps such limits


def math(gold: str, answer: str) -> bool:
    """Whether two LaTeX answers are equal, by math-verify."""
    checker = importlib.import_module("math_verify")
    # Its other way to read an expression hands text to `eval`.
    latex = [checker.LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]
    first, second = (checker.parse(rf"\boxed{{{text}}}", latex, parsing_timeout=ALARM) for text in (gold, answer))
    return bool(first and second and checker.verify(first, second, timeout_seconds=ALARM))


def gym(name: str, options: dict[str, Any], seed: int, size: int, index: int, answer: str) -> float:
    """Return what a data set of reasoning-gym gives an answer to one of its questions."""
    data = _data(name, json.dumps(options), seed, size)
    return float(data.score_answer(answer, data[index]))


@functools.lru_cache(maxsize=16)
def _data(name: str, options: str, seed: int, size: int) -> Any:
    return importlib.import_module("reasoning_gym").create_dataset(name, seed=seed, size=size, **json.loads(options))


KINDS: dict[str, Callable[..., Any]] = {"math": math, "gym": gym}


def answered(question: dict[str, Any]) -> Any:
    """Return the answer to one question; None where it fails."""
    try:
        if "load" in question:
            importlib.import_module(question["load"])
            return True
        return KINDS[question.pop("kind")](**question)
    except Exception:  # whatever a library raises at an answer, it is none
        return None


def main() -> None:
    """Answer until the parent is gone."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not an answer
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        out.write(json.dumps(answered(json.loads(line))) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
