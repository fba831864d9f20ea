"""The command line as a user meets it: what it prints, and how it says that something is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sanov.systems import SYSTEMS

SANOV = [sys.executable, "-m", "sanov.cli"]


def sanov(*words, cwd, env=None):
    environment = {**os.environ, **(env or {}), "COLUMNS": "100"}
    return subprocess.run(
        [*SANOV, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=250, env=environment
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    draws = np.random.default_rng(1).standard_normal((400, 3))
    pl.DataFrame({"a": draws[:, 0], "b": draws[:, 0] + draws[:, 1], "c": draws[:, 2]}).write_csv(folder / "data.csv")
    return folder / "data.csv"


def test_list_is_quick_and_shows_every_system(tmp_path):
    from sanov.systems import BASELINES, SYSTEMS

    def seconds():
        """Of the processor: other tests run beside this one."""
        start = sum(os.times()[2:4])
        done = sanov("list", "--all", cwd=tmp_path)
        assert done.returncode == 0
        assert all(row.name in done.stdout for row in SYSTEMS + BASELINES)
        return sum(os.times()[2:4]) - start

    assert min(seconds() for _ in range(5)) < 0.3


def test_list_imports_nothing_heavy(tmp_path):
    script = (
        "import sys; sys.argv = ['sanov', 'list']\nfrom sanov.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'polars', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_apply_prints_one_screen_and_saves_every_form(table, tmp_path):
    done = sanov("apply", "pn", table, "family=gaussian", "bootstrap=20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 3 <= len(done.stdout.splitlines()) <= 24
    for name in ("a.json", "a.csv", "a.parquet", "a.xlsx", "a.html", "a.tex", "everything"):
        done = sanov("apply", "pn", table, "bootstrap=0", "--out", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name).exists()
    assert f"sanov apply pn {table} bootstrap=0 --out a.html" in (tmp_path / "a.html").read_text()


def test_json_is_json(table, tmp_path):
    done = sanov("apply", "pn", table, "bootstrap=20", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["system"] == "pn"
    assert {row["name"] for row in json.loads(sanov("list", "--json", cwd=tmp_path).stdout)} >= {"pn", "sinkd"}
    assert json.loads(sanov("show", "pn", "--json", cwd=tmp_path).stdout)["options"]


def test_show_gives_options_with_their_sources(tmp_path):
    done = sanov("show", "sinkd", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("epsilon", "transport_weight", "Source:", "released code", "@inproceedings{cui2024sinkd,"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["reproduce", "pn", "--preset", "smoke", "--only", "truht=laplace"],
            "no cell has such a key; expected truth or seed",
        ),
        (
            ["reproduce", "pn", "--preset", "smoke", "--only", "truth=cauchy"],
            "no cell has that truth; expected gamma 0.5 or",
        ),
        (["reproduce", "pn", "--preset", "smoke", "--only", "laplace"], "--only laplace: is no KEY=VALUE"),
        (
            ["reproduce", "pn", "--preset", "smoke", "--backend", "foo"],
            "foo: there is no such preset or backend; expected loky",
        ),
        (["apply", "pm", "data.csv"], "Did you mean 'pn'?"),
        (["fit", "pn", "data.csv", "--out", "x"], "there is nothing to fit"),
        (["apply", "pn", "data.csv", "epsilom=0.1"], "Did you mean 'epsilon'?"),
        (["apply", "pn", "data.csv", "epsilon=0.7"], "epsilon: the value is '0.7'; expected a number > 0 and < 0.5"),
        (["apply", "pn", "data.csv", "epsilon=0.1", "epsilon=0.2"], "given twice"),
        (["apply", "pn", "nowhere.csv"], "nowhere.csv"),
        (["apply", "pn", "."], "folder"),
        (["apply", "pn", "data.csv", "--config", "none.toml"], "none.toml: no such file"),
        (["apply", "pn", "data.csv", "--out", "no/where/x.json"], "no/where"),
        (["reproduce", "pn", "--preset", "huge"], "smoke or paper"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_mistake_ends_with_2_and_one_message(words, message, table, tmp_path):
    (tmp_path / "data.csv").write_bytes(table.read_bytes())
    done = sanov(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.csv"]


def test_a_number_out_of_range_is_said(table, tmp_path):
    done = sanov("apply", "pn", table, "--seed", "-1", cwd=tmp_path)
    assert done.returncode == 2
    assert "Invalid value for '--seed'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("preset", "extras"), [("paper", "paper"), ("smoke", "demo")])
def test_what_a_claim_needs_is_named_before_it_starts(preset, extras, tmp_path):
    """The two sizes of `sinkd` need other packages."""
    script = (
        "import sys; from sanov import cli, claims; from sanov.core import extras\n"
        "def never(*words, **more): raise AssertionError\n"
        "claims.reproduce = never\n"
        "extras.missing = lambda names: ['a-package'] if names else []\n"
        f"sys.argv = ['sanov', 'reproduce', 'sinkd', '--preset', '{preset}']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"'a-package', which is not installed. Run: pip install 'sanov[{extras}]'" in done.stderr


def test_config_file_and_options_together(table, tmp_path):
    (tmp_path / "options.toml").write_text("epsilon = 0.2\nbootstrap = 0\n")
    done = sanov("apply", "pn", table, "--config", "options.toml", "epsilon=0.1", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert told["values"]["epsilon"] == pytest.approx(0.1)


def test_demo_writes_its_page_and_every_claim(tmp_path):
    done = sanov("demo", "--jobs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    names = [row.name for row in SYSTEMS]
    for name in names:
        told = json.loads((tmp_path / f"build/results/{name}-smoke.json").read_text())
        assert told["statement"] in done.stdout
        assert f"{name}-smoke" in page or told["statement"][:40] in page
        assert told["seconds"] < 60
    assert "95 %" in done.stdout
    told = json.loads(sanov("demo", "--json", cwd=tmp_path).stdout)  # the cells are there
    assert told["page"] == str(Path("report") / "index.html")
    assert [result["system"] for result in told["results"]] == names


# -- the page of claims -----------------------------------------------------------------------------------------------


def result(preset, verdict):
    from sanov.core.results import ClaimResult

    return ClaimResult(
        system=f"{verdict}er", statement="A statement.", source="A paper.", preset=preset, scale="Small.",
        verdict=verdict, parts=[], cells={"compare": 1}, older_cells=0, cell_seconds=1.0, figures={}, data={},
        provenance={"version": "1"}, seconds=1.0,
    )  # fmt: skip


def test_the_heading_counts_verdicts_of_the_paper_preset_alone(tmp_path):
    from sanov import report

    results = [result("paper", "fails"), result("paper", "holds"), result("smoke", "holds"), result("smoke", "fails")]
    page = report._page(results)
    assert (page.title, page.lead) == ("2 published claims, tested", "1 holds, 1 fails.")
    assert [section.badge for section in page.blocks] == ["fails", "holds", "smoke", "smoke"]
    page = report._page(results[2:])
    assert (page.title, page.lead) == ("2 published claims, run at a small size", "No verdict at this size.")
    assert "smoke" in report.write(tmp_path, results[2:]).read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- begin: a -->\nold\n<!-- end: a -->\n", None),
        ("one\n<!-- begin: a -->\nold\n<!-- end: aa -->\n", "line 2: '<!-- begin: a -->' has no partner"),
        (
            "<!-- begin: a -->\nold\n<!-- ende: a -->\n",
            "line 1: '<!-- begin: a -->' has no partner; expected <!-- end: a",
        ),
        ("old\n<!-- end: a -->\n", "line 2: '<!-- end: a -->' has no partner"),
        ("<!-- begin: a -->\n<!-- begin: b -->\nold\n<!-- end: a -->\n", "'<!-- begin: b -->' has no partner"),
        ("<!-- begin: c -->\nold\n<!-- end: c -->\n", "there is no block 'c'"),
    ],
)
def test_a_mark_without_its_partner_is_an_error(text, message, tmp_path):
    from sanov import report
    from sanov.core.errors import InputError

    document = tmp_path / "x.md"
    document.write_text(text)
    if message is None:
        assert report.refresh([document], {"a": "new"}) == [document]
        assert document.read_text() == "<!-- begin: a -->\nnew\n<!-- end: a -->\n"
        return
    with pytest.raises(InputError) as caught:
        report.refresh([document], {"a": "new", "b": "new"})
    assert message in str(caught.value)
    assert document.read_text() == text


def test_generated_blocks_are_current():
    done = sanov("report", "--check", cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
