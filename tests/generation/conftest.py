"""A policy, what it was trained from, and prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pyprefopt
from tests.pipeline.runs import small

PROMPTS = ["cow", "cat", "duck says", "dog"]


@pytest.fixture(scope="session")
def models(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy, and what it was trained from."""
    folder = tmp_path_factory.mktemp("run")
    settings: dict[str, Any] = {"base": {"max_steps": 2, "learning_rate": 1e-3}, "oracle": {}, "max_steps": 3}
    run = pyprefopt.train(small(inputs, folder, method="dpo", **settings))
    return run.policy, next((folder / "stages").glob("base*/model"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return path
