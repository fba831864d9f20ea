"""Every benchmark runs, at sizes that show nothing: a script that is started twice a year must not rot unseen."""

import importlib.util
import itertools
import json
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tiny_bert
from sanov.data.distillation import DistilTable

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))

# What is smaller than in the script, and the words of the runs. What a benchmark does in processes of its own is done here.
SIZES = {
    "fidelity": {"LOOP_DRAWS": {500: 2}, "DRAWS": 20},
    "lelp": {"SIZES": [(200, 16)], "STEPS": [(16, 2)], "CALLS": 1},
    "linear_heads": {"TOKENS": 16, "WIDTH": 8, "VOCABULARY": 64},
    "pn": {"REPLICATES": 20},
    "rlg": {"ROWS": 4, "UNITS": 8, "TURN_SECONDS": 0.0},
    "sinkd": {"SIZES": [(16, 2)], "TURN_SECONDS": 0.0},
    "transport": {"ROWS": (16,), "CLASSES": (2,), "KINDS": ("independent",), "TURN_SECONDS": 0.0},
}
RUNS = {
    "fidelity": [
        "--one command 500 True",
        "--one turns loop 500 2",
        "--one turns scipy 500 2",
        "--one memory sanov 500",
    ],
    "kdrl": ["--turns 1 --steps 1 --sizes tiny --imitation 2"],
    "laser": ["--turns 1 --steps 1 --sizes tiny --imitation 40"],
    "lelp": ["--turns 2"],
    "linear_heads": ["--turns 2"],
    "nola": ["--turns 1 --steps 1 --tiny", "--one own --steps 1 --tiny"],
    "pn": ["--one scale 500 simple", "--one pairs 200 2", "--one statsmodels 500 2"],
    "rlg": ["--turns 2"],
    "sinkd": ["--turns 2"],
    "teachers": [f"--only {name} --rows 20 --teacher bert --seed 0" for name in ("sanov", "'plain loop'")],
    "training": ["--turns 2"],
    "transport": ["--turns 2"],
}


def loaded(name, folder, monkeypatch):
    """The script as a module, in a folder of its own, where it writes its figures too."""
    monkeypatch.syspath_prepend(FOLDER)  # that of laser takes its policies from that of kdrl
    path = Path(shutil.copy(FOLDER / f"{name}.py", folder))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    for constant, value in SIZES.get(name, {}).items():
        assert hasattr(module, constant)
        monkeypatch.setattr(module, constant, value)
    return module


def arranged(name, module, folder, monkeypatch):
    """What a size alone cannot make small."""
    if name == "fidelity":  # other tests' processes may have been larger
        peaks = itertools.count(1)
        monkeypatch.setattr(module.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=next(peaks)))
    if name == "kdrl":
        monkeypatch.setattr(module, "memory", lambda folder, contestant, steps: 1.0)
    if name == "nola":
        monkeypatch.setattr(module, "peak", lambda name, steps, tiny: 1.0)
    if name == "lelp":
        monkeypatch.setattr(module, "peak", lambda work, rows, width: 0)
    if name == "teachers":
        monkeypatch.setattr(module, "sentences", lambda part, rows=None: sentences(module.CLASSES))
        monkeypatch.setattr(module, "define_vision", lambda: None)
        tiny_bert.save(folder / "bert", classes=module.CLASSES)
    if name == "training":
        monkeypatch.setattr(module, "TASKS", (module.Task("small", (20, 4), 64, 32),))


def sentences(classes):
    return DistilTable(("a bad film", "a good film") * 10, classes, labels=np.arange(20) % 2, features=("text",))


@pytest.mark.filterwarnings("ignore")  # of peers at sizes that they are not made for
@pytest.mark.parametrize("name", NAMES)
def test_benchmark_runs(name, tmp_path, monkeypatch, capsys):
    module = loaded(name, tmp_path, monkeypatch)
    arranged(name, module, tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for words in RUNS.get(name, []):
        monkeypatch.setattr("sys.argv", [name, *shlex.split(words)])
        module.main()
        said = capsys.readouterr().out
        assert said
        figures = json.loads(said) if words.startswith("--o") else json.loads((tmp_path / f"{name}.json").read_text())
        assert figures
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    assert "--turns" in capsys.readouterr().out
