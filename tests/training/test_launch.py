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

from tests.training.ranks import free_port, metrics_of, run_ranks, train

SCRIPT = Path(__file__).with_name("launched.py")
ROOT = Path(__file__).parents[2]
STAGES = {f"z{stage}": {"stage": stage} for stage in (0, 1, 2, 3)}
BFLOAT16 = {f"bf16 z{stage}": {"stage": stage, "dtype": "bfloat16"} for stage in (1, 2, 3)}
# Two ranks, packed another way than the one rank, and with a window whose second rank gets a zero-loss batch.
EXACT = ("stage", "step", "epoch", "num_tokens", "num_scored_tokens", "learning_rate", "eval_ranking_accuracy")
OFFLOAD = {
    f"offload z{stage}": {
        "stage": stage,
        "deepspeed": str(ROOT / "configs" / "deepspeed" / f"zero{stage}_offload.json"),
    }
    for stage in (2, 3)
}
COMMON = {"dropout": 0.0, "logging_steps": 1, "save_steps": 0}


def launch(directory: Path, cases: dict) -> subprocess.Popen:
    launcher = Path(sys.executable).with_name("deepspeed")
    return start(
        [launcher, "--num_accelerators", "2", "--master_port", free_port()], directory, cases, directory / "output"
    )


def start(command: list, directory: Path, cases: dict, output: Path, **variables: str) -> subprocess.Popen:
    keep = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    environment = keep | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables
    words = [str(word) for word in [*command, SCRIPT, directory, json.dumps(cases)]]
    with output.open("w") as file:
        return subprocess.Popen(words, env=environment, cwd=ROOT, stdout=file, stderr=file)


def test_two_ranks_train_as_one(tmp_path):
    cases = {
        name: {**COMMON, "per_batch": 5, **settings} for name, settings in {**STAGES, **OFFLOAD, **BFLOAT16}.items()
    }
    assert launch(tmp_path, cases).wait(timeout=200) == 0, (tmp_path / "output").read_text()[-3000:]
    assert run_ranks(1, train, tmp_path / "one", per_batch=2, **COMMON) == [0]
    expected = metrics_of(tmp_path / "one")
    assert len(expected) == 10 + 3
    for name in cases:
        tolerance = 3e-2 if name in BFLOAT16 else 1e-5
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


def of_a_hostfile(directory: Path, node: int, port: str) -> tuple[list, dict[str, str]]:
    """DeepSpeed's launcher on each node, which needs no ssh; the names are not looked up."""
    (directory / "hostfile").write_text("node-a slots=1\nnode-b slots=1\n")
    launcher = Path(sys.executable).with_name("deepspeed")
    words = ["--hostfile", directory / "hostfile", "--no_ssh", "--node_rank", node]
    return [launcher, *words, "--master_addr", "127.0.0.1", "--master_port", port], {}


def of_the_environment(directory: Path, node: int, port: str) -> tuple[list, dict[str, str]]:
    """No launcher: a process a node that is told its place, as a cluster's scheduler does."""
    place = {"RANK": str(node), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
    return [sys.executable], place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@pytest.mark.parametrize("how", [pytest.param(of_a_hostfile, marks=pytest.mark.slow), of_the_environment])
def test_two_nodes_of_one_rank_train_as_one(tmp_path, how):
    port, cases, nodes = free_port(), {"z2": {**COMMON, "per_batch": 5, "stage": 2}}, []
    for node in (0, 1):
        command, variables = how(tmp_path, node, port)
        nodes.append(start(command, tmp_path, cases, tmp_path / f"output{node}", **variables))
    assert [node.wait(timeout=120) for node in nodes] == [0, 0], (tmp_path / "output0").read_text()[-3000:]
    assert run_ranks(1, train, tmp_path / "one", per_batch=2, **COMMON) == [0]
    found, expected = metrics_of(tmp_path / "z2"), metrics_of(tmp_path / "one")
    assert [line.get("loss") for line in found] == pytest.approx([line.get("loss") for line in expected], abs=1e-5)


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


@pytest.mark.slow
def test_ctrl_c_in_the_terminal_writes_a_checkpoint(tmp_path):
    """The terminal sends SIGINT to the command, its launcher and the ranks, and the launcher passes SIGTERM on."""
    process = launch(tmp_path, {"run": {**COMMON, "num_train_epochs": 500.0}})
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3) and time.monotonic() < deadline:
        time.sleep(0.2)
    command = psutil.Process(process.pid)
    everyone = [command, *command.children(recursive=True)]
    for each in everyone:
        each.send_signal(signal.SIGINT)
    psutil.wait_procs(everyone, timeout=60)
    assert "was stopped by Ctrl-C after step" in (tmp_path / "output").read_text()
    (found,) = (tmp_path / "run" / "policy" / "checkpoints").iterdir()
    assert (found / "manifest.json").exists()
