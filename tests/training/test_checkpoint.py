from __future__ import annotations

import json
import pickle
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from pyprefopt.errors import ArtifactError
from pyprefopt.settings.config import OptimConfig
from pyprefopt.settings.resolve import configure
from pyprefopt.training import checkpoint
from pyprefopt.training.checkpoint import CheckpointStore
from pyprefopt.training.engine import Engine
from pyprefopt.training.progress import Progress
from tests.evil import write_evil
from tests.reference.packing import pack_groups
from tests.training.ranks import metrics_of, run_ranks, train
from tests.training.toy import ToyModel, make_groups

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


def rehashed(path):
    """The checkpoint as whoever has changed a file would leave it: with its hash in the manifest."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = checkpoint.Checkpoint(path).hashes()
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("kind", ["torch", "zip", "bare"])
@pytest.mark.parametrize("name", ["rng-0.safetensors", "deepspeed/mp_rank_00_model_states.pt", "more.safetensors"])
def test_a_pickle_with_a_right_hash_is_named_and_not_run(tmp_path, caplog, kind, name):
    saved(tmp_path, [1, 2])
    path, mark = tmp_path / "checkpoints" / "step-2", tmp_path / "mark"
    write_evil(path / name, mark, kind)
    rehashed(path)
    assert store_in(tmp_path).resume(FakeEngine()) == {"step": 1}
    assert f"step-2/{name} is not a training state as it was saved" in caplog.text
    assert not mark.exists()


@pytest.mark.parametrize(
    ("stage", "zero"),
    [(0, {}), (1, {}), (2, {}), (3, {}), (2, {"offload_optimizer": {"device": "cpu"}}),
     (3, {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}})],
)  # fmt: skip
@pytest.mark.parametrize("frozen", [False, True])
def test_a_checkpoint_holds_no_pickle_and_reading_it_runs_none(tmp_path, stage, zero, frozen, monkeypatch, caplog):
    """Every file of DeepSpeed's in turn, at every ZeRO stage; the untouched one loads without unpickling."""
    store = store_in(tmp_path, zero_stage=stage, keep=9)
    batch = pack_groups(make_groups(4)).to()
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero}))

    def engine_of(seed):
        model = ToyModel(seed=seed)
        model.embedding.requires_grad_(not frozen)
        run = configure(model="m", data="d", zero_stage=stage, deepspeed=str(tmp_path / "ds.json"))
        return Engine(model, OptimConfig(weight_decay=0.1), run)

    def step():
        engine.backward(engine(batch).sum(), last=True)
        engine.step(1e-3)
        return {name: value.tolist() for name, value in engine.export_state_dict().items()}

    engine = engine_of(0)
    step()
    store.save(engine, 1, {})
    expected = step()
    engine.destroy()
    first = tmp_path / "checkpoints" / "step-1"
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert [name for name in names if Path(name).suffix not in (".pt", ".safetensors")] == ["manifest.json"]
    assert len(names) == (3 if stage == 0 else 4)

    engine = engine_of(1)
    for number, name in enumerate((name for name in names if name != "manifest.json"), start=2):
        bad = shutil.copytree(first, tmp_path / "checkpoints" / f"step-{number}")
        write_evil(bad / name, tmp_path / "mark")
        (bad / "manifest.json").write_text(
            (bad / "manifest.json").read_text().replace('"step": 1', f'"step": {number}')
        )
        rehashed(bad)
    with monkeypatch.context() as patch:
        for owner, function in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
            patch.setattr(owner, function, lambda *_, **__: pytest.fail("unpickled"))
        assert store.resume(engine) == {}
    assert step() == expected
    engine.destroy()
    assert caplog.text.count("is not a training state as it was saved") == len(names) - 1
    assert not (tmp_path / "mark").exists()


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    store = store_in(tmp_path)
    engine = Engine(ToyModel(), OptimConfig(), configure(model="m", data="d"))
    store.save(engine, 1, {})
    engine.destroy()
    engine = Engine(ToyModel(width=8), OptimConfig(), configure(model="m", data="d"))
    with pytest.raises(ArtifactError, match=r"step-1 cannot be loaded into this model .*; delete it, and the one befo"):
        store.resume(engine)
    engine.destroy()


def broken_manifests():
    good = {"schema": 2, "key": "key", "step": 2, "world_size": 1, "zero_stage": 0, "score": None, "state": {},
            "files": {}}  # fmt: skip
    yield from ("", "{", "[]", "null", "3", '"x"', "\xff", "[" * 100_000)
    for name, right in good.items():
        yield json.dumps({other: value for other, value in good.items() if other != name} | {"extra": 1})
        yield from (json.dumps(good | {name: None}) for _ in range(name != "score"))
        for value in ([], {"a": 1}, "text", True, 1.5, -1, 10**30):
            if name != "state" and value != right and (name, type(value)) not in CHECKED_LATER:
                yield json.dumps(good | {name: value})


CHECKED_LATER = {("key", str), ("score", float), ("world_size", int), ("zero_stage", int)}


@pytest.mark.parametrize("text", broken_manifests())
def test_a_manifest_that_lies_is_named_and_the_one_before_is_taken(tmp_path, caplog, text):
    saved(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "step-2" / "manifest.json").write_text(text, encoding="latin-1")
    assert store_in(tmp_path).resume(FakeEngine()) == {"step": 1}
    assert "step-2 is removed: " in caplog.text
    assert len(caplog.records) == 1
    assert len(caplog.text.strip().splitlines()) == 1


def test_a_state_that_is_none_is_named_and_the_one_before_is_taken(tmp_path, caplog):
    progress, store = Progress(total_steps=9, steps_per_epoch=3), store_in(tmp_path)
    good = progress.state()
    assert Progress.is_state(json.loads(json.dumps(good)))
    bad = [{}, good | {"total_steps": 3}, good | {"step": "3"}, good | {"step": True}, good | {"step": None},
           good | {"pending": []}, good | {"recent": {}}, good | {"now": []}, good | {"eval_last": {"a": "b"}},
           good | {"recent": [None]}]  # fmt: skip
    for state in bad:
        store.save(FakeEngine(), 1, good)
        store.save(FakeEngine(), 2, state)
        assert store.resume(FakeEngine(), Progress.is_state) == good
    assert caplog.text.count("'state' in its manifest is not as it was written") == len(bad)


@pytest.mark.parametrize(
    "name",
    [
        "step-foo",
        "step-",
        "step--1",
        "step-007",
        "step-1_0",
        "step-²",
        "step-1.5",
        "step-2 ",
        "step-" + "9" * 200,
    ],
)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_checkpoint_is_left_aside(tmp_path, caplog, name, kind):
    saved(tmp_path, [1, 2])
    other = tmp_path / "checkpoints" / name
    other.mkdir() if kind == "folder" else other.touch()
    assert store_in(tmp_path).resume(FakeEngine()) == {"step": 2}
    assert f"{name} is no folder of a checkpoint and is left aside" in caplog.text
    saved_again = store_in(tmp_path)
    saved_again.save(FakeEngine(), 3, {"step": 3})
    saved_again.save(FakeEngine(), 4, {"step": 4})
    assert other.exists()


@pytest.mark.parametrize("target", ["checkpoint", "nothing", "itself", "file"])
def test_a_link_is_left_aside_and_what_it_leads_to_stays(tmp_path, caplog, target):
    saved(tmp_path, [1])
    elsewhere = tmp_path / "elsewhere"
    if target == "checkpoint":
        shutil.copytree(tmp_path / "checkpoints" / "step-1", elsewhere)
    elif target == "file":
        elsewhere.touch()
    link = tmp_path / "checkpoints" / "step-2"
    link.symlink_to(link if target == "itself" else elsewhere)
    assert store_in(tmp_path).resume(FakeEngine()) == {"step": 1}
    assert "step-2 is a link and is left aside" in caplog.text
    store_in(tmp_path).save(FakeEngine(), 2, {"step": 2})  # takes the link's place
    assert store_in(tmp_path).resume(FakeEngine()) == {"step": 2}
    assert not link.is_symlink()
    assert elsewhere.exists() == (target in ("checkpoint", "file"))
    assert target != "checkpoint" or (elsewhere / "manifest.json").exists()


def test_an_empty_folder_and_a_file_in_its_place(tmp_path, caplog):
    saved(tmp_path, [1])
    (tmp_path / "checkpoints" / "step-2").mkdir()
    (tmp_path / "checkpoints" / "step-3").touch()
    (tmp_path / "checkpoints" / "step-4" / "manifest.json").mkdir(parents=True)
    assert store_in(tmp_path).resume(FakeEngine()) == {"step": 1}
    assert "step-2 is removed: it is incomplete" in caplog.text
    assert "step-3 is no folder of a checkpoint" in caplog.text
    assert "step-4 is removed: " in caplog.text
    store_in(tmp_path).save(FakeEngine(), 3, {"step": 3})
    assert store_in(tmp_path).resume(FakeEngine()) == {"step": 3}


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
