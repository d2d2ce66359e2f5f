"""How the suite uses a machine."""

from __future__ import annotations

import os


def pytest_configure() -> None:
    """Give each of several test processes (`pytest -n 2`) its own cores: runs take as many threads as they have."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores, count = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: count] or cores)
