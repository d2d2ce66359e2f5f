"""A finished policy, and what is no run's, is not replaced unasked."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import polars as pl
import pytest

import pyprefopt
from pyprefopt.errors import ArtifactError
from pyprefopt.pipeline.overwrite import REPLACEMENT
from pyprefopt.pipeline.run import RunResult
from pyprefopt.settings.typed import parse_yaml
from tests.pipeline.runs import SMALL, digest, small

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
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "policy", "run.log"}
    (tmp_path / "policy").rename(tmp_path / "notes")
    with caplog.at_level(logging.WARNING, "pyprefopt"):
        pyprefopt.train(config)
    assert f"{tmp_path} holds other files (notes) and no run; this run writes beside them" in caplog.text


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run, but for those of the run that is to replace it."""
    paths = (path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    found = {str(path.relative_to(run)): path.read_bytes() for path in paths}
    return {name: content for name, content in found.items() if not name.startswith((REPLACEMENT, "run.log"))}


def stop_at(call: str, number: int, patch: pytest.MonkeyPatch) -> None:
    """End the process' work at the n-th call of a function, as a kill would: nothing handles it."""
    calls = count(1)
    owner, name = call.rsplit(".", 1)
    original = getattr(resolve_name(owner), name)

    def stopped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    patch.setattr(call, stopped)


@pytest.mark.parametrize(
    ("call", "number", "moved"),
    [
        ("pyprefopt.training.trainer.accumulate", 3, False),
        ("pyprefopt.stages.training.save_policy", 1, False),
        ("pyprefopt.pipeline.run.write_summary", 1, False),
        ("pyprefopt.pipeline.overwrite.take_place", 1, False),
        ("pyprefopt.pipeline.overwrite._move", 2, True),  # the first looks for what an earlier run has left
        ("pyprefopt.pipeline.overwrite._swap", 2, True),
        ("pyprefopt.pipeline.overwrite._swap", 5, True),
    ],
)
def test_a_run_stays_whole_until_the_one_that_replaces_it_is_finished(
    call: str, number: int, moved: bool, sepo: RunResult, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(sepo.output_dir, run)
    before = contents(run)
    config = small(inputs, run, **ONE_STEP | {"max_steps": 4}, overwrite=True)
    with monkeypatch.context() as patch:
        if "take_place" in call:
            patch.setattr("pyprefopt.pipeline.run.take_place", lambda *_: interrupt())
        else:
            stop_at(call, number, patch)
        with pytest.raises(KeyboardInterrupt):
            pyprefopt.train(config)
    if moved:  # the next run, whichever it is, moves the rest
        with pytest.raises(ArtifactError, match=r"holds a finished simpo policy of other settings"):
            pyprefopt.train(small(inputs, run))
    else:
        assert contents(run) == before
        with pytest.raises(ArtifactError, match=rf"sepo policy.*or set overwrite to replace.*/{REPLACEMENT} has"):
            pyprefopt.train(replace(config, overwrite=False))
    again = pyprefopt.train(config)
    assert again.policy == run / "policy"
    assert not (run / REPLACEMENT).exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert {line["stage"] for line in lines} == {"policy"}
    assert [path.name for path in (run / "tensorboard").iterdir()] == ["policy"]
    assert parse_yaml((run / "config.yaml").read_text())["method"] == "simpo"
    assert json.loads((run / "summary.json").read_text())["method"] == "simpo"
    assert pyprefopt.train(replace(config, overwrite=False)).summary["stages"]["policy"]["reused"]
    fresh = pyprefopt.train(replace(config, output_dir=str(tmp_path / "fresh")))
    assert digest(run) == digest(fresh.output_dir)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_what_fits_of_the_replaced_run_is_used_again(sepo: RunResult, inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(sepo.output_dir, run)
    (run / "rejected.jsonl").write_text("of other data\n")
    once = {"num_train_epochs": 1.0}  # steps are of the policy alone
    below = {"base": {**SMALL["base"], **once}, "oracle": {**SMALL["oracle"], **once}}
    result = pyprefopt.train(small(inputs, run, max_steps=1, **below, overwrite=True))
    made = {name for name, facts in result.summary["stages"].items() if not facts["reused"]}
    assert made == {"policy"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    old = [json.loads(line) for line in (sepo.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if line["stage"] != "policy"] == [line for line in old if line["stage"] != "policy"]
    assert max(line["step"] for line in lines if line["stage"] == "policy") == 1
    assert {path.name for path in (run / "tensorboard").iterdir()} == {"base", "oracle", "policy"}
    assert not (run / "rejected.jsonl").exists()
