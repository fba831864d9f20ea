r"""Mathematics in LaTeX: which box counts, the 500 answers of MATH-500, and answers that keep SymPy busy."""

import subprocess
import sys
import time

import pytest

from sanov.core.errors import InputError, MissingExtra, SanovWarning
from sanov.data import answer_process as processes
from sanov.data import prompts
from sanov.data.answer_process import AnswerProcess, answer_process
from sanov.data.math_answers import Math, last_boxed
from sanov.data.prompt_rows import Prompts


@pytest.fixture
def checker():
    pytest.importorskip("math_verify")
    return Math()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{3}", "3"),
        (r"\boxed{3} or \boxed{ 4 }", "4"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{x} \boxed {y}", "y"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{3\\}", r"3\\"),
        (r"\boxed{3\} \boxed{{4}", None),
        (r"} \boxed{3} }", "3"),
        (r"boxed{3}", None),
        (r"\boxed{3", None),
        (r"\boxed 3", None),
        ("", None),
    ],
)
def test_the_last_box_that_closes_counts(text, found):
    assert last_boxed(text) == found


def test_boxes_are_found_in_bounded_time():
    start = time.perf_counter()
    assert last_boxed(r"\boxed{" * 50_000) is None
    assert last_boxed(r"\boxed{" * 50_000 + "3" + "}" * 50_000) == "3"
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("72", ["72", "72.0", r"\$72", r"\frac{144}{2}", "072"], ["73", "720", "7", "-72", "", "72, 73"]),
        (r"\frac{1}{2}", ["0.5", r"\frac12", "1/2", r"\dfrac{2}{4}"], [r"\frac{1}{3}", "0.51", "2"]),
        ("(3, 4)", ["(3,4)", r"\left(3, 4\right)"], ["(4, 3)", "3"]),
        (r"x^2+2x+1", ["(x+1)^2"], ["(x-1)^2", "y^2+2y+1"]),
    ],
)
def test_equal_answers_are_right(checker, gold, right, wrong):
    row = {"prompt": "Find it.", "answer": gold}
    for text in right:
        assert checker.is_right(rf"It is $\boxed{{{text}}}$.", row), text
    for text in wrong:
        assert not checker.is_right(rf"It is $\boxed{{{text}}}$.", row), text
        assert not checker.is_right(rf"\boxed{{{gold}}} no: \boxed{{{text or 0}}}", row), text
    for nothing in ("", gold, "Find it.", rf"the answer is {gold}"):
        assert not checker.is_right(nothing, row)


@pytest.mark.data
def test_math500_passes_whole(checker, data_folder):
    table = prompts.read(data_folder / "math" / "math500.jsonl")
    assert len(table) == 500
    assert prompts.usual_rewards(table) == ["math"]
    checker.validate(table)  # each gold answer against the row's own worked solution
    for index in range(len(table)):
        row = table.row(index)
        assert checker.is_right(rf"\boxed{{{row['answer']}}}", row), index
        assert not checker.is_right(row["prompt"], row)


@pytest.mark.data
def test_gsm8k_can_be_asked_for_in_boxes(checker, data_folder):
    table = prompts.read(data_folder / "math" / "gsm8k_test.jsonl").take(range(0, 1319, 40))
    with pytest.warns(SanovWarning, match="'math' reads an answer in none of the solutions"):
        checker.validate(table)
    row = table.row(0)
    assert checker.is_right(rf"\boxed{{{row['answer']}}}", row)
    assert not checker.is_right(rf"\boxed{{{int(row['answer']) + 1}}}", row)


def test_a_missing_answer_is_no_text_that_could_be_right(checker):
    table = Prompts(("2+3?", "what?"), {"answer": ["5", None]}, "mine.jsonl")
    with pytest.raises(InputError, match=r"mine\.jsonl, row 2: the gold answer .* fails its own verifier"):
        checker.validate(table)
    assert not checker.is_right(r"\boxed{None}", table.row(1))
    assert checker.is_right(r"\boxed{7}", {"answer": None, "solution": r"It is \boxed{7}."})


def test_gold_answers_may_stand_in_the_solution_alone(checker):
    for solution in (r"$\frac{1}{3}$", r"So it is \boxed{\frac{1}{3}}.", r"\frac{1}{3}"):
        table = Prompts(("1/3?",), {"solution": [solution]})
        assert checker.lacking(table.columns) == []
        checker.validate(table)
        assert checker.is_right(r"\boxed{2/6}", table.row(0))
    assert checker.lacking(["level"]) == ["answer"]
    table = Prompts(("1/3?",), {"answer": ["1/3"], "solution": [r"\boxed{1/4}"]}, "mine")
    with pytest.raises(InputError, match=r"mine, row 1: the gold answer .* fails its own verifier, which reads '1/4'"):
        checker.validate(table)


@pytest.mark.parametrize(
    "bomb", ["9^{9^{9^9}}", r"\binom{1000000000}{500000000}", "(" * 240 + "3" + ")" * 240, "9" * 501]
)
def test_bombs_end_soon(checker, bomb):
    checker.is_right(r"\boxed{3}", {"answer": "3"})  # the imports are not what is timed
    start = time.perf_counter()
    assert not checker.is_right(rf"\boxed{{{bomb}}}", {"answer": "3"})
    assert time.perf_counter() - start < processes.PATIENCE + 5
    assert checker.is_right(r"\boxed{3}", {"answer": "3"})  # and it goes on


# -- the process ------------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys, time
for line in sys.stdin:
    question = json.loads(line)
    if question.get("gold") == "sleep":
        time.sleep(60)
    if question.get("gold") == "die":
        sys.exit(1)
    if question.get("gold") == "stammer":
        print("tru", end="", flush=True)
        sys.exit(1)
    print(json.dumps("load" in question or question["answer"]), flush=True)
"""


@pytest.fixture
def process(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(processes, "SCRIPT", tmp_path / "script.py")
    monkeypatch.setattr(processes, "find_spec", lambda name: name)
    asked = AnswerProcess(patience=1.0)
    yield asked
    asked.end()


@pytest.mark.parametrize("why", ["sleep", "die", "stammer"])
def test_a_process_that_is_slow_or_dies_is_replaced(process, why):
    assert process.ask("math", gold="3", answer="here") == "here"
    first = process._child
    assert process.ask("math", gold=why, answer="here") is None
    assert first.poll() is not None
    assert process.ask("math", gold="3", answer="again") == "again"
    assert process._child is not first


def test_an_answer_that_was_interrupted_is_not_taken_for_the_next(process):
    assert process.ask("math", gold="3", answer="first") == "first"
    lines = process._lines

    class Interrupted:
        def get(self, timeout):
            lines.get(timeout=10)
            raise KeyboardInterrupt

    process._lines = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        process.ask("math", gold="3", answer="second")
    assert process.ask("math", gold="3", answer="third") == "third"
    assert process._lines is not lines


def test_the_process_is_shared_and_ends_with_its_parent():
    assert answer_process() is answer_process()
    program = (
        "from sanov.data import answer_process as p\n"
        "p.find_spec = lambda name: name\n"
        "p.PACKAGES = {'math': ('json', 'language')}\n"
        "q = p.answer_process(); q.ask('math', gold='1', answer='1'); print(q._child.pid)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    if sys.platform == "linux":
        assert not processes.Path("/proc", done.stdout.strip()).exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra, match=r"'math_verify', which is not installed\. Run: pip install 'sanov\[language\]'"
    ):
        Math().is_right(r"\boxed{3}", {"answer": "3"})
    assert not Math().is_right("no box", {"answer": "3"})


def test_a_package_that_cannot_be_imported_is_told(monkeypatch):
    monkeypatch.setattr(processes, "PACKAGES", {"math": ("no_such_package", "language")})
    monkeypatch.setattr(processes, "find_spec", lambda name: name)
    asked = AnswerProcess()
    with pytest.raises(InputError, match="'no_such_package' is installed, but cannot be imported"):
        asked.ask("math", gold="3", answer="3")
    asked.end()
