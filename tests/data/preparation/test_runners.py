"""The engines give the same bytes: this process, and a local Ray cluster with two workers."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.data.prepared import contents, run, small_blocks, write_pairs, write_tokenizer

ROOT = Path(__file__).parents[3]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'pyprefopt[ray]'")

RAY = """
import os, signal, sys, time
from pathlib import Path
import ray
from pyprefopt.errors import DataError
from pyprefopt.data.preparation import runners
from tests.data.prepared import contents, run, small_blocks, write_pairs

pairs, tokenizer, out = map(Path, sys.argv[1:])
small_blocks()
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
whole = runners._remote_block


def mortal(block, config, parts):
    # The first worker that gets block 2 dies of it.
    if block.index == 2 and not (out / "died").exists():
        (out / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(block, config, parts)


out.mkdir()
runners._remote_block = mortal
run(str(pairs), tokenizer, out / "ray", engine="ray", on_error="skip")
assert (out / "died").exists()
runners._remote_block = whole
try:
    run(str(pairs), tokenizer, out / "strict", engine="ray", max_prompt_tokens=3)
except DataError as error:
    assert "rows cannot be used" in str(error), error
else:
    raise AssertionError("bad rows were not reported")
assert ray.is_initialized()  # it was the caller's
print("done")
"""


@needs_ray
def test_ray_gives_the_same_bytes_and_survives_a_worker(tmp_path, monkeypatch):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    pairs = write_pairs(tmp_path / "pairs.jsonl", bad=(3, 30))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    command = [sys.executable, "-c", RAY, pairs, tokenizer, tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]
    monkeypatch.setattr("pyprefopt.data.files.parts.BLOCK_BYTES", 600)
    monkeypatch.setattr("pyprefopt.data.files.parts.BLOCK_ROWS", 8)
    run(str(pairs), tokenizer, tmp_path / "local", on_error="skip")
    assert contents(tmp_path / "out/ray") == contents(tmp_path / "local")
    assert small_blocks
