"""What `pip install sanov` alone gives: a search path that holds the core's requirements and nothing else."""

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from packaging.requirements import Requirement

SOURCE = Path(__file__).parents[1] / "src"
NOT_CORE = ("torch", "accelerate", "sklearn", "statsmodels", "pandas", "pyarrow", "transformers", "xlsxwriter")


def requirements(name):
    """Names of what a distribution needs without any extra, and of what that needs."""
    found, queue = set(), [name]
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            needs = map(Requirement, distribution(name).requires or ())
            queue += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run Python in an empty folder; returns the finished process and the folder."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    for name in requirements("sanov"):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files if file.parts[0] != ".."}:
            place = site / top
            if not place.exists():
                place.symlink_to(Path(found.locate_file(top)).resolve())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), str(site)])}

    def python(*words):
        command = [sys.executable, "-S", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment), folder

    return python


@pytest.mark.parametrize("module", NOT_CORE)
def test_the_path_holds_the_core_alone(run, module):
    done, _ = run("-c", f"import {module}")
    assert f"No module named '{module}'" in done.stderr


def test_demo_tests_what_is_installed_and_says_what_is_not(run):
    done, folder = run("-m", "sanov.cli", "demo", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "pn: With the second-order sandwich criterion" in done.stdout
    assert "sinkd: not run" in done.stderr
    assert "pip install 'sanov[demo]'" in done.stderr
    assert "second-order sandwich" in (folder / "report" / "index.html").read_text(encoding="utf-8")


def test_pn_works_on_a_file(run):
    _, folder = run("-c", "")
    rng = np.random.default_rng(0)
    pl.DataFrame({name: rng.standard_normal(300) for name in "ab"}).write_csv(folder / "data.csv")
    done, _ = run("-m", "sanov.cli", "apply", "pn", "data.csv", "--out", "answer")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pn: ")
    assert (folder / "answer").is_dir()


def test_fidelity_works_on_files(run):
    _, folder = run("-c", "")
    answers = ["yes", "no"] * 50
    pl.DataFrame({"id": range(100), "prediction": answers, "label": answers}).write_csv(folder / "teacher.csv")
    pl.DataFrame({"id": range(100), "prediction": [*answers[:90], *["yes"] * 10]}).write_csv(folder / "student.csv")
    done, _ = run("-m", "sanov.cli", "apply", "fidelity", "teacher.csv", "student.csv", "--out", "report.html")
    assert done.returncode == 0, done.stderr
    assert "they agree on 95.0 %" in done.stdout
    assert (folder / "report.html").is_file()


def test_mathematics_without_torch_can_be_imported(run):
    names = ("families", "comparisons", "scores", "systems.pn", "core.answers", "claims", "report", "data.tabular")
    done, _ = run("-c", ";".join(f"import sanov.{name}" for name in names))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("words", "extra"), [(["fit", "sinkd", "data.csv", "--out", "m"], "torch")])
def test_what_is_missing_is_said_with_its_install(run, words, extra):
    done, _ = run("-m", "sanov.cli", *words)
    assert done.returncode == 2
    assert f"pip install 'sanov[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
