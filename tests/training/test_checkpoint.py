from __future__ import annotations

import json
import random
import signal

import numpy as np
import pytest
import torch

from pyprefopt.errors import ArtifactError
from pyprefopt.training import checkpoint
from pyprefopt.training.checkpoint import CheckpointStore
from tests.training.ranks import metrics_of, run_ranks, train

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("world", "stage", "dtype"),
    [
        (1, 0, "float32"),
        pytest.param(2, 2, "float32", marks=slow),
        pytest.param(1, 2, "float32", marks=slow),
        pytest.param(2, 0, "float32", marks=slow),
        pytest.param(2, 3, "float32", marks=slow),
        pytest.param(2, 1, "bfloat16", marks=slow),
        pytest.param(2, 2, "bfloat16", marks=slow),
    ],
)
def test_a_run_killed_anywhere_ends_bit_for_bit_as_if_it_had_not_been(tmp_path, world, stage, dtype):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_ranks(world, train, whole, stage=stage, dtype=dtype) == [0] * world
    before_any = [("step", 2)] if world == 1 else []
    for die in [*before_any, ("step", 5), ("save", 6), ("manifest", 6)]:
        assert -signal.SIGKILL in run_ranks(world, train, cut, stage=stage, dtype=dtype, die=die)
    # SIGTERM for one rank of several: all finish the step and save
    assert run_ranks(world, train, cut, stage=stage, dtype=dtype, die=("sigterm", 7)) == [1] * world
    assert run_ranks(world, train, cut, stage=stage, dtype=dtype) == [0] * world
    assert (cut / "started").read_text().split() == ["0"] * len(before_any) + ["0", "3", "3", "3", "7"]
    assert json.loads((cut / "result.json").read_text()) == json.loads((whole / "result.json").read_text())
    assert metrics_of(cut) == metrics_of(whole)


def test_another_launch_is_refused_with_the_remedy(tmp_path):
    assert run_ranks(1, train, tmp_path, die=("step", 4)) == [-signal.SIGKILL]
    assert run_ranks(2, train, tmp_path) == [1, 1]
    assert run_ranks(1, train, tmp_path, stage=2) == [1]
    assert (tmp_path / "policy" / "checkpoints" / "step-3" / "manifest.json").exists()
    assert run_ranks(1, train, tmp_path) == [0]
    assert (tmp_path / "started").read_text().split() == ["0", "3"]


class FakeEngine:
    """Keeps one number."""

    value = 0

    def save(self, path):
        (path / "deepspeed").mkdir()
        (path / "deepspeed" / "weights").write_text(str(self.value))

    def load(self, path):
        self.value = int((path / "deepspeed" / "weights").read_text())


def store_in(tmp_path, **changes):
    return CheckpointStore(
        **{"directory": tmp_path / "checkpoints", "key": "key", "zero_stage": 0, "keep": 2, **changes}
    )


def saved(tmp_path, steps, scores=None):
    engine = FakeEngine()
    for step in steps:
        engine.value = step
        store_in(tmp_path).save(engine, step, {"step": step}, (scores or {}).get(step))
    return sorted(int(path.name.split("-")[1]) for path in (tmp_path / "checkpoints").iterdir())


def test_the_newest_is_loaded(tmp_path):
    assert store_in(tmp_path).resume(FakeEngine()) is None
    saved(tmp_path, [9, 10])
    engine = FakeEngine()
    assert store_in(tmp_path).resume(engine) == {"step": 10}
    assert engine.value == 10


def test_the_last_and_the_best_are_kept(tmp_path):
    assert saved(tmp_path, [1, 2, 3, 4, 5]) == [4, 5]
    assert saved(tmp_path, [6, 7, 8, 9, 10], {6: 0.5, 7: 0.9, 8: 0.7}) == [7, 9, 10]


@pytest.mark.parametrize("harm", ["cut", "flip", "missing", "extra", "no manifest", "schema", "key"])
def test_what_does_not_verify_is_removed_and_the_one_before_is_taken(tmp_path, harm, caplog):
    saved(tmp_path, [1, 2])
    path = tmp_path / "checkpoints" / "step-2"
    weights, manifest = path / "deepspeed" / "weights", path / "manifest.json"
    if harm == "cut":
        weights.write_text("")
    elif harm == "flip":
        weights.write_text("3")
    elif harm == "missing":
        weights.unlink()
    elif harm == "extra":
        (path / "deepspeed" / "more").write_text("x")
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {harm: 99}))
    assert store_in(tmp_path).resume(FakeEngine()) == {"step": 1}
    assert not path.exists()
    assert "step-2 is removed" in caplog.text


def test_another_zero_stage_or_world_size_names_the_remedy(tmp_path, monkeypatch):
    saved(tmp_path, [1])
    with pytest.raises(ArtifactError, match="zero_stage 0, this run has 2; start it with zero_stage 0, or delete"):
        store_in(tmp_path, zero_stage=2).resume(FakeEngine())
    monkeypatch.setattr(checkpoint, "world_size", lambda: 4)
    with pytest.raises(ArtifactError, match="world_size 1, this run has 4; start it with world_size 1, or delete"):
        store_in(tmp_path).resume(FakeEngine())
    assert (tmp_path / "checkpoints" / "step-1").exists()


def draws():
    drawn = [*torch.rand(3).tolist(), *np.random.rand(3), np.random.randn()]
    return [*drawn, random.gauss(0, 1), random.choice("abcdefgh")]


def test_random_states_come_back(tmp_path):
    np.random.randn()  # leaves the second of a pair in the state
    random.gauss(0, 1)
    checkpoint._save_rng(tmp_path / "rng.safetensors")
    expected = draws()
    assert draws() != expected
    checkpoint._load_rng(tmp_path / "rng.safetensors")
    assert draws() == expected
