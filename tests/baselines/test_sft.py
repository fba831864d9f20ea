"""Supervised fine-tuning from the command line, and that options of a group keep the others' defaults."""

import json
from pathlib import Path

import pytest
import torch

from learning.policy_toy import TOKENIZER
from learning.toy_run import vector
from sanov.baselines import sft
from sanov.core.errors import InputError
from sanov.core.options import parse
from sanov.learning import imitation
from sanov.nets.causal import load_model
from sanov.nets.transformer import Decoder
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


def test_long_rows_are_divided_and_trackers_are_passed_on(tmp_path, monkeypatch):
    chosen = {**dict(word.split("=") for word in (*LETTERS, *SMALL)), "training.learning_rate": "0.02"}
    data = sft.read([prompts_file(tmp_path / "p.jsonl")], parse(sft.Config, chosen))
    whole = sft.fit(data, parse(sft.Config, chosen))
    named, sizes, run, forward = [], [], imitation.train, Decoder.forward

    def noting(self, ids, *rest):
        if self.training or torch.is_grad_enabled():
            sizes.append(ids.numel())
        return forward(self, ids, *rest)

    monkeypatch.setattr(imitation, "train", lambda *a, trackers, **k: named.extend(trackers) or run(*a, **k))
    monkeypatch.setattr(Decoder, "forward", noting)
    more = {"training.micro_batch_tokens": "24", "training.trackers": "somewhere"}
    parts = sft.fit(data, parse(sft.Config, {**chosen, **more}))
    assert named == ["somewhere"]
    assert len(sizes) > 3
    assert max(sizes) <= 24
    torch.testing.assert_close(vector(whole.model), vector(parts.model), rtol=0, atol=1e-4)
    with pytest.raises(InputError, match=r"training.micro_batch_tokens: it is 2, and a row has \d+ tokens"):
        sft.fit(data, parse(sft.Config, {**chosen, "training.micro_batch_tokens": "2"}))


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ({"prompt": "What is 1+1?"}, "row 2: character 1 is 'W'"),
        ({"solution": "two"}, "row 2, column 'solution': char"),
    ],
)
def test_ordinary_text_is_told_with_its_row_and_a_remedy(tmp_path, command, row, where):
    rows = [{"prompt": "a1+1=", "solution": "2"}, {"prompt": "a1+2=", "solution": "3", **row}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    status, said = command("fit", "sft", "p.jsonl", *LETTERS, "training.steps=1", "--out", "out")
    assert status == 2, said
    assert f"p.jsonl, {where}" in said
    assert "policy=DIR for a model that knows ordinary text" in said


def test_an_option_of_a_group_leaves_the_others_at_their_defaults():
    config = parse(sft.Config, {"start.width": "32", "training.clip_norm": "0.5"})
    assert (config.start.steps, config.training.steps, config.training.learning_rate) == (0, 600, 1e-3)
