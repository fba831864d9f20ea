"""The options of `fidelity`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from sanov.core.options import Options, option
from sanov.data.predictions import Columns
from sanov.data.spelling import names_as_text
from sanov.systems.fidelity.extraction import Answers
from sanov.systems.fidelity.study_options import StudyOptions

__all__ = ["Config", "Models"]


class Models(Options):
    """Fitted models in the place of files of predictions: each a folder, of sanov or of a Hugging Face classifier."""

    teacher: str = option("", "Folder of the teacher.", source="choice: files of predictions")
    student: str = option("", "Folder of the student.", source="choice: files of predictions")
    baseline: str = option("", "Folder of the undistilled student.", source="choice: files of predictions")


class Config(Options):
    """Options of `fidelity`."""

    mode: Literal["auto", "report", "study"] = option(
        "auto",
        "Report on the predictions of one teacher and one student, or test a table of scores; auto: by the columns.",
        source="choice",
    )
    answers: Answers = option(
        "exact",
        "How an answer is taken out of a prediction: all of it, its last number, its letter, or the option it names.",
        source="choice: predictions are classes; the others are the released code's",
    )
    options: tuple[str, ...] = option(
        (), "Names of the possible answers; what is none of them counts as no answer.", source="choice: any answer"
    )
    confidence: float = option(0.95, "Level of the intervals.", source="choice", gt=0.5, lt=1)
    draws: int = option(10_000, "Bootstrap draws.", source="choice", ge=1000)
    bins: int = option(15, "Bins of confidence, for calibration.", source="guo2017calibration", ge=2)
    jsd_weight: float = option(
        0.5, "Weight of the teacher in the Jensen-Shannon divergence.", source="released code", gt=0, lt=1
    )
    logits: bool = option(False, "The columns of probabilities hold logits.", source="choice")
    baseline: str = option(
        "", "File of the student trained on labels alone; it may also be the third file.", source="choice"
    )
    map: Columns = Columns()
    models: Models = Models()
    study: StudyOptions = StudyOptions()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.answers == "options" and not self.options:
            raise ValueError("answers=options looks for names: give them by options=yes,no")
        if self.answers == "number" and self.options:
            raise ValueError("answers=number takes any number: leave out options")
        if self.answers == "letter" and any(len(name) != 1 for name in self.options):
            raise ValueError("answers=letter takes options of one letter each, such as options=A,B,C")
        if len(set(self.names)) != len(self.options) or len(self.options) == 1:
            raise ValueError("options must be at least two different names")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The options, spelled as answers and labels are once they are read (True is true, 1.0 is 1)."""
        return names_as_text(self.options)
