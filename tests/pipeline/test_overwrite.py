"""A finished policy, and what is no run's, is not replaced unasked."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import pyprefopt
from pyprefopt.errors import ArtifactError
from pyprefopt.pipeline.run import RunResult
from tests.pipeline.runs import digest, small

ONE_STEP: dict[str, Any] = {"method": "simpo", "base": {}, "oracle": {}, "policy_init": None, "max_steps": 1}


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"method": "dpo"}, r"finished sepo policy of other settings \(method was sepo, now dpo and \d+ more\)"),
        ({"loss": {"reward_scale": 2.0}}, r"settings \(loss.reward_scale was 1.0, now 2.0\)"),
        ({"seed": 1}, r"settings \(seed was 0, now 1\)"),
    ],
)
def test_a_finished_policy_is_not_replaced(
    settings: dict[str, Any], what: str, sepo: RunResult, inputs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(sepo.output_dir, run)
    if settings.get("method") == "dpo":
        settings = settings | {"oracle": {}}
    with pytest.raises(ArtifactError, match=rf"^{run} holds a .*{what}; choose another output_dir, or set overwrite"):
        pyprefopt.train(small(inputs, run, **settings))
    assert digest(run) == digest(sepo.output_dir)
    same = small(inputs, run, logging_steps=3, layout="separate")  # nothing that the policy depends on
    assert all(stage["reused"] for stage in pyprefopt.train(same).summary["stages"].values())


def test_what_a_policy_was_trained_on_counts(inputs: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.parquet"
    shutil.copy(inputs / "train.parquet", data)
    config = small(inputs, tmp_path / "run", **ONE_STEP, data=str(data))
    pyprefopt.train(config)
    before = digest(tmp_path / "run")
    pl.read_parquet(data).head(32).write_parquet(data)
    with pytest.raises(ArtifactError, match=r"run holds a finished policy that was trained on other data; choose"):
        pyprefopt.train(config)
    assert digest(tmp_path / "run") == before
    shutil.copy(inputs / "train.parquet", data)
    (tmp_path / "run" / "config.yaml").write_text("method: [")  # contents are looked at, too
    with pytest.raises(ArtifactError, match=r"a finished policy that was made with other max_steps; choose"):
        pyprefopt.train(small(inputs, tmp_path / "run", **ONE_STEP | {"max_steps": 2}, data=str(data)))
    assert digest(tmp_path / "run") == before


def test_files_of_others_are_left_alone(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "mine.txt").write_text("kept")
    config = small(inputs, tmp_path, **ONE_STEP)
    with pytest.raises(ArtifactError, match=r"policy was made by no run that is in .*; choose another output_dir, or"):
        pyprefopt.train(config)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "policy"}
    (tmp_path / "policy").rename(tmp_path / "notes")
    with caplog.at_level(logging.WARNING, "pyprefopt"):
        pyprefopt.train(config)
    assert f"{tmp_path} holds other files (notes) and no run; this run writes beside them" in caplog.text
