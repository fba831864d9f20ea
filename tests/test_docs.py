"""Every command that README and docs show is parsed by the real command line, and run where it takes seconds."""

import re
import shlex
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import typer
from typer.testing import CliRunner

import tiny_bert
from sanov.cli import app
from sanov.core.options import parse, split
from sanov.systems import SYSTEMS, find

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SLOW = ("sanov demo", "sanov reproduce", "sanov report")
COMMAND = re.compile(r"^(?:\$ )?(sanov [^#\n]+?)\s*(?:#.*)?$", re.MULTILINE)
BLOCK = re.compile(r"```(console|bash|sh|python)\n(.*?)```", re.DOTALL)
PREDICTED = {"teacher": 0.9, "student": 0.8, "baseline": 0.7}
INLINE = re.compile(r"`(sanov [^`\n]+)`")


def commands(page):
    blocks = "\n".join(text for language, text in BLOCK.findall(page.read_text()) if language != "python")
    return list(dict.fromkeys(COMMAND.findall(blocks)))


def mentions(page):
    """Commands inside a sentence: forms such as `sanov show NAME`, with words in capitals and dots."""
    return [line for line in INLINE.findall(page.read_text()) if not re.search(r"[A-Z]{3,}|\.\.\.", line)]


every_command = [(page, line) for page in PAGES for line in commands(page)]
every_mention = [(page, line) for page in PAGES for line in mentions(page)]


@pytest.mark.parametrize(("page", "line"), every_command, ids=lambda part: getattr(part, "name", part))
def test_command_is_understood(page, line):
    words = shlex.split(line)[1:]
    group = typer.main.get_command(app)
    command = group.commands[words[0]]
    context = command.make_context(words[0], words[1:], resilient_parsing=False)
    name = context.params.get("name")
    if name and name != "all":
        row = find(name)
        _, options = split(context.params.get("words") or [])
        config = row.load().Config
        assert isinstance(parse(config, options), config)


@pytest.mark.parametrize(("page", "line"), every_mention, ids=lambda part: getattr(part, "name", part))
def test_mentioned_command_exists(page, line):
    words = shlex.split(line)[1:]
    assert words[0] in typer.main.get_command(app).commands
    if len(words) > 1 and words[0] in {"show", "fit", "apply", "reproduce"}:
        row = find(words[1])
        parse(row.load().Config, split(words[2:])[1])


def test_help_shows_every_command():
    shown = CliRunner().invoke(app, ["--help"]).output
    for name in ("list", "show", "fit", "apply", "demo", "reproduce", "report", "check-loss"):
        assert re.search(rf"^\W*{name}\b", shown, re.MULTILINE), name


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory):
    """The files that the docs speak of."""
    folder = tmp_path_factory.mktemp("user")
    rng = np.random.default_rng(0)
    rows, classes = 240, 3
    correlated = rng.standard_normal((rows, 4)) @ np.array(
        [[1, 0.5, 0, 0], [0, 1, 0.3, 0], [0, 0, 1, 0], [0, 0.2, 0, 1]]
    )
    frame = pl.DataFrame(dict(zip("abcd", correlated.T, strict=True)))
    binary = pl.Series("died", (correlated[:, 0] + rng.standard_normal(rows) > 0.8).astype(int))
    frame.write_csv(folder / "data.csv")
    frame.with_columns(binary).write_csv(folder / "patients.csv")
    labels = rng.integers(0, classes, rows)
    inputs = (np.eye(classes)[labels] @ rng.standard_normal((classes, 8)) + rng.standard_normal((rows, 8))).astype("f4")
    logits = (3 * np.eye(classes)[labels] + rng.standard_normal((rows, classes))).astype("f4")
    np.savez(folder / "teacher.npz", inputs=inputs, logits=logits, labels=labels)
    np.savez(folder / "new.npz", inputs=inputs[:40], labels=labels[:40])
    guesses = {name: np.where(rng.random(rows) < right, labels, 0) for name, right in PREDICTED.items()}
    for name, said in guesses.items():
        pl.DataFrame({"id": range(rows), "prediction": said}).write_csv(folder / f"{name}.csv")
    pl.DataFrame({"id": range(rows), "label": labels}).write_csv(folder / "labels.csv")
    study_of_pairs().write_csv(folder / "scores.csv")
    texts = ["a good film", "a very bad film", "good film", "very bad"] * 6
    pl.DataFrame({"text": texts, "label": ["pos", "neg"] * 12}).write_csv(folder / "reviews.csv")
    tiny_bert.save(folder / "bert")
    tiny_bert.save(folder / "small-bert")
    return folder


def study_of_pairs():
    """Six pairs of a teacher and a student, on two tasks."""
    own = {f"net-{size}B": 40.0 + size for size in (1, 3, 7, 14, 32)}
    rows = [("-", model, "SFT", task, score) for model, score in own.items() for task in ("law", "tax")]
    for place, teacher in enumerate(("net-14B", "net-32B")):
        for size in (1, 3, 7):
            student = f"net-{size}B"
            rows += [(teacher, student, "KD", task, own[student] + 5 - size / 2 + place) for task in ("law", "tax")]
    return pl.DataFrame(rows, schema=["teacher", "student", "method", "task", "score"], orient="row")


def run_command(line, monkeypatch):
    words = shlex.split(line)[1:]
    monkeypatch.setattr("sys.argv", ["sanov", *words])
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
    assert done.output.strip()


def names_of_a_page():
    """What the Python of a page may take for granted."""
    return {
        "frame": pl.read_csv("data.csv"),
        "student_logits": torch.randn(6, 3, requires_grad=True),
        "teacher_logits": torch.randn(6, 3),
        "labels": torch.tensor([0, 1, 2, 0, -1, -1]),
    }


@pytest.mark.filterwarnings("default::sanov.core.errors.SanovWarning")  # a note to the user is no mistake of the page
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*pin_memory.*:UserWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_a_page_run_in_order(page, users_folder, monkeypatch):
    monkeypatch.chdir(users_folder)
    names = {}
    for language, text in BLOCK.findall(page.read_text()):
        if language == "python" and ": ..." not in text:  # a skeleton to fill in
            names |= names_of_a_page()
            if file := re.match(r"# (\w+\.py)\n", text):
                Path(file[1]).write_text(text)
            exec(compile(text, page.name, "exec"), names)
        for line in COMMAND.findall(text) if language != "python" else ():
            if not line.startswith(SLOW):  # run by test_cli and by the tests of the experiments
                run_command(line, monkeypatch)


def test_every_system_has_a_page_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text()
    assert all(f"systems/{row.name}.md" in site for row in SYSTEMS)


def test_no_machine_paths_and_no_hosts_of_registries():
    registry = re.compile("|".join(["py" + "pi", "python" + "hosted", "npm" + "js"]) + r"\.org")
    for path in [*PAGES, *(ROOT / "results").rglob("*.json*"), *(ROOT / "benchmarks").glob("*.json")]:
        text = path.read_text()
        assert not re.search(r"/(home|root|Users|work|tmp)/", text), path
        assert not registry.search(text), path


def test_every_citation_is_in_the_bibliography():
    known = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "docs" / "references.bib").read_text(), re.MULTILINE))
    for path in [*PAGES, *(ROOT / "src").rglob("*.py")]:
        cited = set(re.findall(r"\b[a-z]{3,}(?:19|20)\d\d[a-z]{2,}\b", path.read_text()))
        assert cited <= known, path
    assert {row.paper for row in SYSTEMS} <= known
