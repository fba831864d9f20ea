"""One thread a worker; nothing random that a seed does not fix."""

import os
import sys
import warnings

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(name, "1")

from pathlib import Path

import pytest

from sanov.cli import main

try:
    import torch
except ModuleNotFoundError:
    torch = None
else:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The real data, or a skip with the reason; never a skip where the folder exists."""
    named = os.environ.get("SANOV_DATA", "")
    if not named or not Path(named).is_dir():
        pytest.skip("SANOV_DATA names no folder of real data")
    return Path(named)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run `sanov` in an empty folder; return the status and what was written to standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["sanov", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        return status, capsys.readouterr().err

    return run
