"""Independent calls on several processes, or on a cluster, through joblib."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

__all__ = ["BACKENDS", "spread"]

BACKENDS = {"loky": "joblib", "ray": "ray.util.joblib", "dask": "distributed"}  # and the module that each needs


def spread(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *, jobs: int, backend: str) -> Iterator[Any]:
    """Yield what calls of a function return, in the order in which they end (`ray`: when all have ended).

    Parameters
    ----------
    function
        Importable by name: the workers import it.
    calls
        The arguments of each call.
    jobs
        Processes, of one thread each.
    backend
        ``loky`` (this machine), ``ray`` or ``dask`` (a cluster that the environment names, or a local one).
    """
    from joblib import Parallel, delayed

    order = "list" if backend == "ray" else "generator_unordered"  # joblib's ray cannot give them one by one
    with _workers(jobs, backend):
        yield from Parallel(return_as=order)(delayed(function)(*arguments) for arguments in calls)


@contextmanager
def _workers(jobs: int, backend: str) -> Iterator[None]:
    from joblib import parallel_config

    with ExitStack() as stack:
        if backend == "ray":
            importlib.import_module(BACKENDS["ray"]).register_ray()
        elif backend == "dask":
            address = os.environ.get("DASK_SCHEDULER_ADDRESS")
            local = {} if address else {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
            stack.enter_context(importlib.import_module(BACKENDS["dask"]).Client(address, **local))
        limit: dict[str, Any] = {"inner_max_num_threads": 1} if backend == "loky" else {}
        stack.enter_context(parallel_config(backend=backend, n_jobs=jobs, **limit))
        yield
