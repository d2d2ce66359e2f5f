"""How the suite uses a machine, and one small SePO run that many tests look at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pyprefopt

if TYPE_CHECKING:
    from pyprefopt import RunResult


def pytest_configure() -> None:
    """Give each of several test processes (`pytest -n 2`) its own cores: runs take as many threads as they have."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores, count = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: count] or cores)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What runs remember between processes stays in the suite's own folder."""
    os.environ["PYPREFOPT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, instructions and a tokenizer."""
    from tests.pipeline.runs import write_inputs

    directory = tmp_path_factory.mktemp("inputs")
    write_inputs(directory)
    return directory


@pytest.fixture(scope="session")
def sepo(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Not to be changed: copy its folder first."""
    from tests.pipeline.runs import small

    return pyprefopt.train(small(inputs, tmp_path_factory.mktemp("sepo")))
