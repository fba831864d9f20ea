"""Calls on other processes."""

import operator

import pytest

from sanov.core.workers import BACKENDS, spread


@pytest.mark.filterwarnings("ignore")  # of the clusters' own
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_calls_come_back(backend, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    pytest.importorskip(BACKENDS[backend], reason="the extra `cluster` is not installed")
    found = spread(operator.mul, ((i, i) for i in range(7)), jobs=2, backend=backend)
    assert sorted(found) == [i * i for i in range(7)]
