"""How the suite uses a machine."""

from __future__ import annotations

import os


def pytest_configure() -> None:
    """Give each of several test processes (`pytest -n 2`) its own cores: runs take as many threads as they have."""
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: count] or cores)
