"""One small SePO run that many tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyprefopt
from pyprefopt.stages.run import RunResult
from tests.stages.runs import small, write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inputs")
    write_inputs(directory)
    return directory


@pytest.fixture(scope="session")
def sepo(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Not to be changed: copy its folder first."""
    return pyprefopt.train(small(inputs, tmp_path_factory.mktemp("sepo")))
