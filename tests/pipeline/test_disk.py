"""A disk with too little room: told before training where it can be known, else in one sentence, with nothing half."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pyprefopt
from pyprefopt.errors import ArtifactError
from pyprefopt.pipeline.pipeline import Pipeline
from pyprefopt.pipeline.room import Plan
from pyprefopt.pipeline.run import RunResult
from pyprefopt.pipeline.score import score
from pyprefopt.storage.files import used_bytes
from pyprefopt.training.checkpoint import CheckpointStore
from tests.pipeline.runs import digest, losses, small
from tests.training.ranks import run_ranks

ONE_STAGE: dict[str, Any] = {"method": "simpo", "base": {}, "oracle": {}, "policy_init": None, "max_steps": 4}
ROOMY = 300_000  # bytes: more than any file of these runs but those of a checkpoint


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """While inside, no file can grow beyond so many bytes: as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def leftovers(run: Path) -> list[Path]:
    """What a failed writer must not leave."""
    half = [path for path in run.rglob("step-*") if path.is_dir() and not (path / "manifest.json").exists()]
    return [*half, *run.rglob("*.tmp"), *run.rglob(".*.partial-*")]


def test_too_little_room_is_told_before_training(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyprefopt.pipeline.room.free_bytes", lambda path: 100_000)
    needs = r"run needs 3\.\d\d MiB more on its disk, where 97\.7 KiB are free"
    parts = r"base \d+ KiB, its 2 checkpoints of \d+ KiB; .*policy \d+ KiB, its 2 checkpoints of \d+ KiB"
    with pytest.raises(ArtifactError, match=rf"{needs} \({parts}.*\): make room, choose another output_dir, or lower"):
        pyprefopt.train(small(inputs, tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run" / "stages").iterdir()} == {"data"}
    config = small(inputs, tmp_path / "score", method="tgdpo", rewards={"name": "dpo"}, eval_data=None, eval_ratio=0.0)
    with pytest.raises(ArtifactError, match=r"needs .* more on its disk, where 97\.7 KiB are free"):
        score(config, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_the_room_that_is_asked_for_is_what_a_run_takes(sepo: RunResult, inputs: Path, tmp_path: Path) -> None:
    config = small(inputs, tmp_path / "run")
    pipeline = Pipeline(config)
    _ = pipeline.checked
    plan = Plan(pipeline)
    _ = plan.policy
    rooms = plan.rooms()
    assert {place.name.partition("-")[0] for place in rooms} == {
        "base",
        "oracle",
        "logps",
        "scores",
        "selection",
        "policy",
    }
    for name in ("base", "oracle", "policy"):
        own = sepo.output_dir / "stages" / name
        taken = used_bytes(own) + (used_bytes(sepo.policy) if name == "policy" else 0)
        assert 0.75 * taken < rooms[config_place(config, name)].stays < 1.05 * taken, name
    again = Plan(Pipeline(small(inputs, sepo.output_dir)))
    _ = again.policy
    assert not again.missing


def config_place(config: Any, name: str) -> Path:
    return Path(config.output_dir) / "stages" / name


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(inputs, tmp_path / "run", **ONE_STAGE, save_total_limit=1)
    save = CheckpointStore.save

    def full_from_step_4(self: CheckpointStore, engine: Any, step: int, *rest: Any) -> None:
        with largest_file(ROOMY if step == 4 else resource.RLIM_INFINITY):
            save(self, engine, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", full_from_step_4)
        told = r"step-4: File too large; raise the limit .* same command again: training goes on from step-2, which is"
        with pytest.raises(ArtifactError, match=told):
            pyprefopt.train(config)
    assert [path.name for path in (tmp_path / "run/stages/policy/checkpoints").iterdir()] == ["step-2"]
    assert not leftovers(tmp_path / "run")
    pyprefopt.train(config)
    whole = pyprefopt.train(replace(config, output_dir=str(tmp_path / "whole")))
    assert digest(tmp_path / "run") == digest(whole.output_dir)
    assert losses(tmp_path / "run") == losses(whole.output_dir)


@pytest.mark.parametrize("size", [150_000, 60_000, 2_000, 500])
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing_half(size: int, inputs: Path, tmp_path: Path) -> None:
    """The policy, the data, the metrics, the settings."""
    config = small(inputs, tmp_path / "run", **ONE_STAGE, save_steps=0)
    with largest_file(size), pytest.raises(ArtifactError, match=r"^[^\n]*: File too large; raise the limit [^\n]*$"):
        pyprefopt.train(config)
    assert not leftovers(tmp_path / "run")
    assert not (tmp_path / "run" / "policy").exists()
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert all(json.loads(line) for line in (metrics.read_text().splitlines() if metrics.exists() else []))
    again = pyprefopt.train(config)
    assert again.policy.exists()


def train_where_rank_1_is_full(directory: str, output_dir: str) -> None:
    from pyprefopt import ranks

    with largest_file(60_000 if ranks.rank() == 1 else resource.RLIM_INFINITY):
        pyprefopt.train(small(Path(directory), Path(output_dir), **ONE_STAGE, zero_stage=1, dtype="bfloat16"))


@pytest.mark.slow
def test_a_rank_that_cannot_write_ends_all_of_them(inputs: Path, tmp_path: Path) -> None:
    codes = run_ranks(2, train_where_rank_1_is_full, str(inputs), str(tmp_path / "run"))
    assert all(codes)
    assert not leftovers(tmp_path / "run")
