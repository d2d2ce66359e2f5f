from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.ranks import free_port

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_zero3_gathers_the_head_in_forward_and_backward(ranks: int) -> None:
    settings = {
        "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
        "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.modeling.zero3_script"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=ROOT, env=os.environ | settings | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        ended = [process.communicate(timeout=420) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (stdout, stderr) in zip(started, ended, strict=True):
        assert process.returncode == 0, stderr[-3000:]
        results = json.loads(stdout.split("RESULT ")[1].splitlines()[0])
        assert len(results) == 6
        for name, result in results.items():
            assert result["count"] > 20, name
            assert result["logps"] < 1e-5, name
            assert result["gradients"] < 1e-5, name
            assert result["saved"] < 1e-5, name
            assert 1 <= result["gathers"] <= 2, name  # a vocabulary of two blocks: once a pass, not once a block
