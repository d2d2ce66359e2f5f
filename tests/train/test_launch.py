"""Through DeepSpeed's own launcher: one start costs about ten seconds, so each checks many things."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.train.ranks import metrics_of, run_ranks, train

SCRIPT = Path(__file__).with_name("launched.py")
ROOT = Path(__file__).parents[2]
STAGES = {f"z{stage}": {"stage": stage} for stage in (0, 1, 2, 3)}
BFLOAT16 = {f"bf16 z{stage}": {"stage": stage, "dtype": "bfloat16"} for stage in (1, 2, 3)}
# Two ranks, packed another way than the one rank, and with a window whose second rank gets a zero-loss batch.
EXACT = ("stage", "step", "epoch", "num_tokens", "num_scored_tokens", "learning_rate", "eval_ranking_accuracy")
COMMON = {"dropout": 0.0, "logging_steps": 1, "save_steps": 0}


def launch(directory: Path, cases: dict) -> subprocess.Popen:
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [launcher, "--num_accelerators", "2", "--master_port", "0", SCRIPT, directory, json.dumps(cases)]
    keep = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    environment = keep | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    from pyprefopt.train.engine import _free_port

    command[4] = _free_port()
    output = (directory / "output").open("w")
    return subprocess.Popen(list(map(str, command)), env=environment, cwd=ROOT, stdout=output, stderr=output)


def test_two_ranks_train_as_one(tmp_path):
    cases = {name: {**COMMON, "per_batch": 5, **settings} for name, settings in {**STAGES, **BFLOAT16}.items()}
    assert launch(tmp_path, cases).wait(timeout=200) == 0, (tmp_path / "output").read_text()[-3000:]
    assert run_ranks(1, train, tmp_path / "one", per_batch=2, **COMMON) == [0]
    expected = metrics_of(tmp_path / "one")
    assert len(expected) == 10 + 3
    for name in cases:
        tolerance = 1e-5 if name in STAGES else 3e-2
        for ours, theirs in zip(metrics_of(tmp_path / name), expected, strict=True):
            assert ours.keys() == theirs.keys()
            assert [ours.get(key) for key in EXACT] == [theirs.get(key) for key in EXACT]
            for key in ours.keys() - set(EXACT) - {"rewards/accuracies", "eval_rewards/accuracies"}:
                assert ours[key] == pytest.approx(theirs[key], rel=tolerance, abs=tolerance), (name, key)
    output = (tmp_path / "output").read_text()
    ours = [line for line in output.splitlines() if "[runner.py" not in line and "[launch.py" not in line]
    assert not [line for line in ours if "[WARNING]" in line or "[INFO]" in line]
    assert "MA 0." not in output  # DeepSpeed's memory prints
    assert output.count(" tokens/s, ") == len(cases)  # rank 0 speaks, once a stage


@pytest.mark.slow
def test_sigterm_through_the_launcher_writes_a_checkpoint(tmp_path):
    process = launch(tmp_path, {"run": {**COMMON, "num_train_epochs": 500.0}})
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3) and time.monotonic() < deadline:
        time.sleep(0.2)
    launcher = psutil.Process(process.pid).children()[0]  # launch.py, which passes the signal on
    launcher.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    assert "was stopped by SIGTERM after step" in (tmp_path / "output").read_text()
    (found,) = (tmp_path / "run" / "policy" / "checkpoints").iterdir()
    assert (found / "manifest.json").exists()
