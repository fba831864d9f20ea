"""Studies for the tests: a made-up one as a long table, the published ones, and a stand-in for the system's options."""

import functools
import os
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from sanov.data import studies
from sanov.systems.fidelity.study_options import StudyOptions

FOLDER = Path(os.environ.get("SANOV_DATA", "")) / "fidelity" if os.environ.get("SANOV_DATA") else None
published = pytest.mark.skipif(
    FOLDER is None or not FOLDER.is_dir(), reason="SANOV_DATA names no folder with fidelity/"
)
FILES = {
    "math": ("math_qwen_accuracy", "math_llama_accuracy", "math_agreement_em1", "math_rationale_similarity_bleu"),
    "commonsense": ("commonsense_qwen_accuracy", "commonsense_llama_accuracy", "commonsense_agreement_em1"),
}


def config(**study):
    """Return what the system's Config gives to the study mode."""
    draws, confidence = study.pop("draws", 200), study.pop("confidence", 0.95)
    return SimpleNamespace(study=StudyOptions.model_validate(study), draws=draws, confidence=confidence)


def paths(field):
    return [FOLDER / f"{name}.csv" for name in FILES[field]]


@functools.cache
def field(name):
    return studies.read(paths(name))


SIZES = {"student-1B": 50.0, "student-3B": 60.0, "student-7B": 70.0, "teacher-9B": 80.0, "teacher-14B": 85.0}


def long_table(
    gain=lambda teacher, student, method, task: 3.0, methods=("KD", "RKD"), tasks=("maths", "facts"), seeds=(0,)
):
    """Return a study of three students and two teachers; tasks differ by a point, seeds by a tenth."""
    rows = []
    for seed in seeds:
        for place, task in enumerate(tasks):
            own = {model: score + place + 0.1 * seed for model, score in SIZES.items()}
            rows += [("-", model, "SFT", task, score, seed) for model, score in own.items()]
            for teacher in ("teacher-9B", "teacher-14B"):
                for student in ("student-1B", "student-3B", "student-7B"):
                    for method in methods:
                        rows.append(
                            (teacher, student, method, task, own[student] + gain(teacher, student, method, task), seed)
                        )
    return pl.DataFrame(rows, schema=["teacher", "student", "method", "task", "score", "seed"], orient="row")
