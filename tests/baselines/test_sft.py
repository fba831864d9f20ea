"""Supervised fine-tuning from the command line, and that options of a group keep the others' defaults."""

import json
from pathlib import Path

import pytest

from learning.policy_toy import TOKENIZER
from sanov.baselines import sft
from sanov.core.options import parse
from sanov.nets.causal import load_model
from systems.policy_files import LETTERS, SMALL, prompts_file

pytestmark = pytest.mark.filterwarnings("ignore:.*every completion was cut")


def test_what_is_written_is_learned(tmp_path, command):
    path = prompts_file(tmp_path / "p.jsonl")
    words = [word for word in (*LETTERS, *SMALL) if not word.startswith(("start.steps", "training."))]
    words += ["training.steps=60", "training.learning_rate=0.02"]
    status, said = command("fit", "sft", path, *words, "--out", "teacher", "--quiet")
    assert status == 0, said
    history = Path("teacher/history.csv").read_text().splitlines()
    column = history[0].split(",").index("loss_nll")
    assert float(history[-1].split(",")[column]) < 0.5 * float(history[1].split(",")[column])
    assert json.loads(Path("teacher/sanov.json").read_text())["results"]["steps"] == 60
    assert load_model("teacher").special_tokens["eos_token_id"] == TOKENIZER.eos
    status, said = command("apply", "sft", path, "--fitted", "teacher", *SMALL)
    assert status == 0, said


def test_an_option_of_a_group_leaves_the_others_at_their_defaults():
    config = parse(sft.Config, {"start.width": "32", "training.clip_norm": "0.5"})
    assert (config.start.steps, config.training.steps, config.training.learning_rate) == (0, 600, 1e-3)
