"""Runs that share data, base and log-probs: made once, whoever comes first, verified at use, never half."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyprefopt
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.stages.scores import flat_values
from pyprefopt.stages.stage import run_stage
from pyprefopt.storage.folders import Folder
from pyprefopt.storage.locks import FolderLock
from tests.pipeline.runs import digest, losses, small, train
from tests.stages.made import RUNTIME, Made
from tests.training.ranks import run_ranks

ONCE = {"data", "base", "ref_logps"}


def dpo(inputs: Path, output_dir: Path, **settings: Any) -> Any:
    """A DPO run of two steps from a trained base."""
    given = {"method": "dpo", "oracle": {}, "max_steps": 2, **settings}
    return pyprefopt.train(small(inputs, output_dir, **given))


def reused(result: Any) -> set[str]:
    return {name for name, stage in result.summary["stages"].items() if stage["reused"]}


def test_other_methods_and_settings_find_what_is_made(inputs: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    first = dpo(inputs, tmp_path / "a", cache=cache)
    assert reused(first) == set()
    assert not (tmp_path / "a" / "stages" / "base").exists()
    assert reused(dpo(inputs, tmp_path / "b", cache=cache, loss={"beta": 0.3})) == ONCE
    assert reused(dpo(inputs, tmp_path / "c", cache=cache, method="ipo", layout="separate")) == ONCE
    assert reused(dpo(inputs, tmp_path / "d", cache=cache, seed=1)) == set()
    alone = dpo(inputs, tmp_path / "alone")
    assert digest(alone.output_dir) == digest(first.output_dir)
    base = {**SMALL_BASE, "max_steps": 2}
    sepo = pyprefopt.train(small(inputs, tmp_path / "e", cache=cache, max_steps=1, base=base))
    assert reused(sepo) == {"data", "base", "base_logps"}  # its oracle's reference is dpo's


SMALL_BASE = {"learning_rate": 1e-3, "global_batch_size": 16}


def test_rows_left_out_are_listed_in_every_run(inputs: Path, tmp_path: Path) -> None:
    import polars as pl

    frame = pl.read_parquet(inputs / "train.parquet")
    chosen = pl.when(pl.int_range(pl.len()) == 5).then(pl.lit("")).otherwise(pl.col("chosen")).alias("chosen")
    frame.with_columns(chosen).write_parquet(tmp_path / "pairs.parquet")
    given = {"data": str(tmp_path / "pairs.parquet"), "on_error": "skip", "cache": str(tmp_path / "cache")}
    for name in ("a", "b"):
        dpo(inputs, tmp_path / name, **given, method="simpo", policy_init=None, base={})
        (row,) = (tmp_path / name / "rejected.jsonl").read_text().splitlines()
        assert json.loads(row)["row"] == 5
    assert not list(tmp_path.glob("rejected.jsonl"))


@pytest.fixture(scope="module")
def filled(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the stages of one DPO run. Not to be changed: copy it first."""
    root = tmp_path_factory.mktemp("filled")
    dpo(inputs, root / "run", cache=str(root / "cache"))
    return root / "cache"


def flip_a_byte(folder: Path) -> None:
    """One bit of a stored number, in the middle of the values; the file's size stays."""
    (shard,) = folder.glob("train/values-*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))


def of_other_tokens(folder: Path) -> None:
    """The values of the test split where those of the training split were: a whole store, of other tokens."""
    shutil.rmtree(folder / "train")
    shutil.copytree(folder / "eval", folder / "train")


def cut_in_the_middle(folder: Path) -> None:
    (shard,) = folder.glob("train/values-*.arrow")
    shard.write_bytes(shard.read_bytes()[:-40])


@pytest.mark.parametrize("damage", [flip_a_byte, of_other_tokens, cut_in_the_middle])
def test_a_store_that_is_not_as_written_is_made_again(
    inputs: Path, filled: Path, tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(filled, cache)
    (folder,) = cache.glob("logps-*")
    before = flat_values(folder / "train").copy()
    damage(folder)
    result = dpo(inputs, tmp_path / "run", cache=str(cache))
    assert reused(result) == ONCE - {"ref_logps"}
    assert np.array_equal(flat_values(folder / "train"), before)
    if damage is flip_a_byte:  # the others show in the sizes of the files
        assert caplog.text.count("is not as it was written (sha256 differs): it is made again") == 1


def test_a_base_of_other_weights_is_made_again(inputs: Path, filled: Path, tmp_path: Path) -> None:
    """As large as before, so that only its content tells; log-probs of the right base stay what they are."""
    cache = tmp_path / "cache"
    shutil.copytree(filled, cache)
    (weights,) = cache.glob("base-*/model/model.safetensors")
    before = weights.read_bytes()
    weights.write_bytes(before[:-4096] + bytes(byte ^ 1 for byte in before[-4096:]))
    result = dpo(inputs, tmp_path / "run", cache=str(cache), method="simpo")
    assert "base" not in reused(result)
    assert weights.read_bytes() == before


def test_two_runs_at_once_make_everything_once(inputs: Path, tmp_path: Path) -> None:
    codes: dict[str, list[int]] = {}

    def run(name: str, beta: float) -> None:
        settings = {"cache": str(tmp_path / "cache"), "method": "dpo", "oracle": {}, "max_steps": 2}
        codes[name] = run_ranks(1, train, str(inputs), str(tmp_path / name), loss={"beta": beta}, **settings)

    threads = [threading.Thread(target=run, args=(name, beta)) for name, beta in (("a", 0.1), ("b", 0.4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {"a": [0], "b": [0]}
    summaries = [json.loads((tmp_path / name / "summary.json").read_text())["stages"] for name in ("a", "b")]
    for stage in ONCE:
        assert sorted(summary[stage]["reused"] for summary in summaries) == [False, True], stage
    assert losses(tmp_path / "a")[0][2] == pytest.approx(np.log(2), abs=1e-6)
    assert losses(tmp_path / "b")[0][2] == pytest.approx(np.log(2), abs=1e-6)


def test_a_run_waits_for_the_one_that_makes_a_stage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    stage, folder = Made(seconds=1.2), tmp_path / "s-1"
    threads = [
        threading.Thread(target=run_stage, args=(stage, folder, RUNTIME), kwargs={"run": name}) for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stage.calls == [folder]
    assert "waiting for it" in caplog.text
    with FolderLock(tmp_path, name=".lock-s-1"):  # given back
        pass


class MadeByAll(Made):
    """Built by every rank."""

    collective = True


def test_another_rank_follows_rank_0_and_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another run makes the stage, rank 1 of this run does not: its rank 0 waits for that one's result."""
    stage, folder = MadeByAll(), tmp_path / "s-1"
    Folder(folder).begin({"key": stage.key, "run": "theirs"})
    monkeypatch.setenv("RANK", "1")

    def finish() -> None:
        time.sleep(0.6)
        Folder(folder).finish({"key": stage.key, "reads": {}, "facts": {}, "files": {}})

    thread = threading.Thread(target=finish)
    thread.start()
    made = run_stage(stage, folder, RUNTIME, run="ours")
    thread.join()
    assert (made.reused, stage.calls) == (True, [])


def test_a_killed_scoring_goes_on_in_another_run_on_other_ranks(inputs: Path, tmp_path: Path) -> None:
    """Killed at its fourth part on one rank; two ranks of another run make only what is missing, to the same values."""
    cache = tmp_path / "cache"
    settings = {"cache": str(cache), "method": "dpo", "oracle": {}, "max_steps": 1, "max_tokens_per_batch": 256}
    die = ("pyprefopt.stages.scoring.tokens", "score_part", 4)
    assert run_ranks(1, train, str(inputs), str(tmp_path / "a"), die, **settings) == [-9]
    (folder,) = cache.glob("logps-*")
    left = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(left) == 3
    held = {path: path.read_bytes() for path in left}
    assert run_ranks(2, watch, str(inputs), str(tmp_path / "b"), str(tmp_path), None, **settings) == [0, 0]
    scored = sum(int(path.read_text()) for path in tmp_path.glob("scored-*"))
    alone = {**settings, "cache": str(tmp_path / "fresh")}
    assert run_ranks(1, watch, str(inputs), str(tmp_path / "c"), str(tmp_path / "fresh"), None, **alone) == [0]
    assert scored == int((tmp_path / "fresh" / "scored-0").read_text()) - len(held)
    (other,) = (tmp_path / "fresh").glob("logps-*")
    for split in ("train", "eval"):
        np.testing.assert_allclose(flat_values(folder / split), flat_values(other / split), atol=3e-6, rtol=0)
        store = SegmentStore.open(next(cache.glob("data-*")) / split)
        ValueStore.open(folder / split).check(store)


@pytest.mark.parametrize("damage", ["flip", pytest.param("cut", marks=pytest.mark.slow)])
def test_a_part_that_is_not_as_written_is_scored_again(
    inputs: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"method": "dpo", "oracle": {}, "max_steps": 1, "max_tokens_per_batch": 256}
    die = ("pyprefopt.stages.scoring.tokens", "score_part", 4)
    cache = tmp_path / "cache"
    assert run_ranks(1, train, str(inputs), str(tmp_path / "a"), die, cache=str(cache), **settings) == [-9]
    part = min(cache.glob("logps-*/*.safetensors"))
    content = part.read_bytes()
    part.write_bytes(content[:-8] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with caplog.at_level("INFO", "pyprefopt"):
        dpo(inputs, tmp_path / "b", cache=str(cache), max_tokens_per_batch=256, max_steps=1)
    assert "ref_logps: train goes on, 2 of " in caplog.text
    assert f"ref_logps: {part} is not as it was written and is scored again" in caplog.text
    dpo(inputs, tmp_path / "c", cache=str(tmp_path / "fresh"), max_tokens_per_batch=256, max_steps=1)
    made, right = (next(folder.glob("logps-*")) for folder in (cache, tmp_path / "fresh"))
    for split in ("train", "eval"):
        np.testing.assert_allclose(flat_values(made / split), flat_values(right / split), atol=3e-6, rtol=0)


def watch(directory: str, output_dir: str, notes: str, die: Any, **settings: Any) -> None:
    """`train` that writes how many parts this rank scored."""
    from pyprefopt import ranks
    from pyprefopt.stages.scoring import tokens

    original, calls = tokens.score_part, [0]

    def counted(*args: Any) -> Any:
        calls[0] += 1
        return original(*args)

    tokens.score_part = counted
    train(directory, output_dir, die, **settings)
    Path(notes).mkdir(exist_ok=True)
    (Path(notes) / f"scored-{ranks.rank()}").write_text(str(calls[0]))
