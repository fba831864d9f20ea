"""The command line as a user meets it: what it prints, and how it says that something is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

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
    for word in ("epsilon", "transport_weight", "Source:", "released code", "cui2024sinkd"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
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


def test_config_file_and_options_together(table, tmp_path):
    (tmp_path / "options.toml").write_text("epsilon = 0.2\nbootstrap = 0\n")
    done = sanov("apply", "pn", table, "--config", "options.toml", "epsilon=0.1", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert told["values"]["epsilon"] == pytest.approx(0.1)


def test_demo_writes_its_page_and_both_claims(tmp_path):
    done = sanov("demo", "--jobs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    for name in ("pn", "sinkd"):
        told = json.loads((tmp_path / f"build/results/{name}-smoke.json").read_text())
        assert told["statement"] in done.stdout
        assert f"{name}-smoke" in page or told["statement"][:40] in page
        assert told["seconds"] < 60
    assert "95 %" in done.stdout


def test_generated_blocks_are_current():
    done = sanov("report", "--check", cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
