"""`benchmarks/gpu.py` at toy size, as a machine runs it that has neither Rust, Polars, DeepSpeed nor TRL."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_checks, gpu_file, gpu_steps
from pyprefopt.modeling.attention import backends
from pyprefopt.modeling.attention.backends import Way, choose
from tests.modeling.attention.test_backends import shifted

ROOT = Path(__file__).parents[2]
ABSENT = ("polars", "pyarrow", "deepspeed", "tyro", "ray", "trl", "datasets", "duckdb", "numba", "tests")
BARE = f"""
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in {ABSENT!r} or name == "pyprefopt._rust"
        return None if absent else super().find_spec(name, path, target)

sys.meta_path = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "batch.safetensors"
    gpu_file.write(path, pairs=8, max_tokens=128, budget=512, embedded=True)
    return path


def run(*options: object, before: Path | None = None) -> subprocess.CompletedProcess[str]:
    folders = [str(before), str(ROOT)] if before else [str(ROOT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "benchmarks/gpu.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280)


@pytest.mark.slow
def test_everything_runs_on_a_bare_machine(batch: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)
    probe = [sys.executable, "-c", "import torch; import polars"]
    blocked = subprocess.run(
        probe, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert "No module named 'polars'" in blocked.stderr  # the machine is bare indeed
    out = tmp_path / "out.json"
    done = run("--quick", "--device", "cpu", "--batch", batch, "--out", out, before=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "every check passed" in done.stdout
    assert "no step of TRL: trl, datasets not installed" in done.stdout
    assert "attention: loop, because" in done.stderr
    found = json.loads(out.read_text())
    good = [row for row in found["checks"] if row["verdict"] == "ok"]
    assert {(r["model"], r["dtype"], r["layout"]) for r in good} == {
        (model, dtype, layout)
        for model in ("llama", "mistral", "gemma2", "gpt_neox")
        for dtype in ("float32", "bfloat16")
        for layout in ("separate", "shared")
    }
    assert {r["attention"] for r in found["checks"] if r["verdict"] == "refused"} == {"flash", "varlen", "flex"}
    timed = [row for row in found["steps"] if row["verdict"] == "ok"]
    assert len(timed) == 8 + 2  # methods x layouts x checkpointing, and the loop by itself
    assert all(row["seconds"] > 0 and 0 < row["mfu"] < 2 for row in timed)
    assert not any("memory_gib" in row for row in timed)  # it would be that of all that ran before
    assert "memory_gib" not in done.stdout
    assert [row["verdict"] for row in found["first_loss"]] == ["ok", "ok"]


def test_without_a_batch_file_or_a_gpu_it_says_what_to_do() -> None:
    done = run("--device", "cpu")
    assert done.returncode == 2
    assert "make it with --write-batch FILE" in done.stderr


def test_a_batch_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--batch", tmp_path / "nothere")
    assert done.returncode == 2
    assert f"no file {tmp_path / 'nothere'}; make it with --write-batch FILE" in done.stderr


def test_without_real_data_the_batch_file_names_the_need_and_the_other_way(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYPREFOPT_SHARED", str(tmp_path))
    done = run("--write-batch", tmp_path / "batch")
    assert done.returncode == 1
    assert all(name in done.stderr for name in ("alpaca-pairs-train.parquet", "PYPREFOPT_SHARED", "--embedded"))
    assert run("--write-batch", tmp_path / "batch", "--embedded", "--pairs", 8).returncode == 0
    assert (tmp_path / "batch").exists()


@pytest.mark.slow
def test_the_step_of_trl_stands_beside_ours(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = run("--quick", "--device", "cpu", "--only", "steps", "trl", "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "times TRL's best pairs/s" in done.stdout
    rows = json.loads(out.read_text())["trl"]
    assert [(r["micro"], r["checkpointing"], r["verdict"]) for r in rows] == [
        (micro, on, "ok") for micro in (4, 1) for on in (False, True)
    ]


def test_the_file_holds_one_step_in_both_layouts(batch: Path) -> None:
    file = gpu_file.read(batch)
    assert set(file.batches) == {(s, layout) for s in ("dpo", "sepo", "check") for layout in gpu_file.LAYOUTS}
    for (name, _), batches in file.batches.items():
        assert sum(len(b.pair_chosen) for b in batches) == (gpu_file.CHECKED if name == "check" else 8)
        assert all(len(b.input_ids) <= 512 for b in batches)
    separate, shared = (file.batches["check", layout][0] for layout in gpu_file.LAYOUTS)
    assert np.array_equal(separate.target_ids, shared.target_ids)
    assert len(shared.input_ids) < len(separate.input_ids)
    prompt, chosen, rejected = file.pairs[0]
    assert separate.input_ids.tolist()[: len(prompt) + len(chosen) - 1] == (prompt + chosen)[:-1]
    assert separate.target_ids.tolist()[: len(chosen)] == chosen
    assert len(file.pairs) == 8
    assert max(max(ids) for pair in file.pairs for ids in pair) < file.vocabulary
    scored = {s: sum(len(b.target_ids) for b in file.batches[s, "shared"]) for s in ("dpo", "sepo")}
    assert scored["sepo"] == pytest.approx(gpu_file.RATIO * scored["dpo"], rel=0.05)
    assert len(rejected) == 41


def given(batch: Path, **changes: object) -> argparse.Namespace:
    values = {"batch": batch, "device": "cpu", "quick": True, "steps": 1, "only": ["checks"], "out": None}
    return argparse.Namespace(**(values | changes))


def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = gpu_checks.configurations(448, quick=True)["llama"]
    monkeypatch.setattr(gpu_checks, "configurations", lambda *_, **__: {"llama": llama})


def test_a_check_that_fails_is_the_exit_code(batch: Path, monkeypatch, capsys) -> None:
    one_model(monkeypatch)
    assert gpu.run(given(batch)) == 0
    monkeypatch.setattr(gpu_checks, "BOUNDS", {"float32": (1e-9, 1e-9)})
    assert gpu.run(given(batch)) == 1
    assert "failed rows: 4 of checks" in capsys.readouterr().out


def test_a_step_of_trl_that_breaks_is_the_exit_code_and_has_its_row(batch: Path, monkeypatch, capsys) -> None:
    trl = pytest.importorskip("trl", reason="the extra `bench` is not installed: trl")

    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("no such option\nand a long trace")

    monkeypatch.setattr(trl, "DPOTrainer", type("Broken", (), {"__init__": breaks}))
    assert gpu.run(given(batch, only=["trl"])) == 1
    told = capsys.readouterr().out
    assert "failed rows: 4 of trl" in told
    assert "| 4 | False |  |  | failed | RuntimeError: no such option |" in told


def test_the_last_line_says_whose_figures_it_gives() -> None:
    step = {"method": "dpo", "layout": "shared", "attention": "auto", "verdict": "ok", "mfu": 0.3}
    found = {
        "steps": [step | {"pairs_per_second": pace, "memory_gib": 20.0} for pace in (8.0, 10.0)],
        "trl": [{"verdict": "ok", "pairs_per_second": 4.0, "memory_gib": 40.0}, {"verdict": "failed"}],
    }
    assert gpu._beside(found) == (
        "DPO, shared layout: 2.50 times TRL's best pairs/s (10 against 4), MFU 0.3 against TRL's 0.12, "
        "20 GiB against TRL's 40 (0.50 of it)\n"
    )
    for row in (*found["steps"], *found["trl"]):
        row.pop("memory_gib", None)
    assert "GiB" not in gpu._beside(found)


@pytest.mark.parametrize("tried", [True, False])
def test_a_wrong_kernel_fails(tried: bool, batch: Path, monkeypatch) -> None:
    """By its trial; and by the comparison with float64, where the trial has not seen it."""
    one_model(monkeypatch)
    choose.cache_clear()
    monkeypatch.setitem(backends.WAYS, "varlen", Way(shifted, lambda demand: None, ""))
    if not tried:
        monkeypatch.setattr(backends, "trial", lambda way, demand: None)
    rows = list(gpu_checks.check(gpu_file.read(batch), torch.device("cpu"), quick=True))
    choose.cache_clear()
    verdicts = {(r["dtype"], r["layout"]): r["verdict"] for r in rows if r["attention"] == "varlen"}
    wrong = {(dtype, "shared"): "failed" for dtype in gpu_checks.BOUNDS}
    right = {(dtype, "separate"): "failed" if tried else "ok" for dtype in gpu_checks.BOUNDS}
    assert verdicts == wrong | right


def test_a_kernel_that_breaks_in_a_step_has_its_row(batch: Path, monkeypatch) -> None:
    def breaks(*_: object) -> torch.Tensor:
        raise RuntimeError("an illegal memory access\nand a long trace")

    bench = gpu_steps.Bench(gpu_file.read(batch), torch.device("cpu"), quick=True, steps=1, peak=1.0)
    assert [row["verdict"] for row in bench.add_reference()] == ["ok", "ok"]
    choose.cache_clear()
    monkeypatch.setattr(backends, "trial", lambda way, demand: None)
    monkeypatch.setitem(backends.WAYS, "varlen", Way(breaks, lambda demand: None, ""))
    row = bench.time("dpo", "shared", checkpointing=False, way="varlen")
    choose.cache_clear()
    assert (row["verdict"], row["reason"]) == ("failed", "RuntimeError: an illegal memory access")
    assert bench.time("dpo", "shared", checkpointing=True, way="loop")["verdict"] == "ok"
