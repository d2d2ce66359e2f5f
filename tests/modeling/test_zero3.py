from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_zero3_gathers_the_head_in_forward_and_backward() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.modeling.zero3_script"],
        cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.split("RESULT ")[1].splitlines()[0])
    assert len(results) == 4
    for name, result in results.items():
        assert result["count"] > 20, name
        assert result["logps"] < 1e-5, name
        assert result["gradients"] < 1e-5, name
        assert result["saved"] < 1e-5, name
