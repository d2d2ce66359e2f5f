"""Memory of the data stage does not grow with the input: prepared, held out and cut, a shard at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pyprefopt.data.embedded import write_tokenizer
from tests.data.preparation.test_memory import ROOT, write_long_pairs

RUN = """
import json, resource, sys
from pathlib import Path
from pyprefopt.data.files import parts
from pyprefopt.data.store import shards
from pyprefopt.settings.resolve import configure
from tests.stages.made import build_data

out, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
parts.BLOCK_BYTES, shards.SHARD_TOKENS = 1 << 18, 1 << 17
facts = build_data(configure(method="simpo", model="embedded:tiny", output_dir=str(out), **settings), out)["facts"]
print(facts["train"]["rows"] + facts["eval"]["rows"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak(tmp_path: Path, rows: int) -> int:
    """Bytes of memory at the most, of the stage over `rows` rows."""
    pairs, out = tmp_path / f"{rows}.jsonl", tmp_path / f"{rows}"
    write_long_pairs(pairs, rows)
    settings: dict[str, Any] = {"data": str(pairs), "tokenizer": str(tmp_path / "tokenizer"), "eval_ratio": 0.2}
    settings["truncation"] = {"ratio": 0.9}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(out), json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    written, peak_bytes = map(int, done.stdout.split())
    assert written == rows
    return peak_bytes


def test_memory_of_a_small_set(tmp_path: Path) -> None:
    """40,000 rows are 40 MB of text and 108 MB of segments: the growth is a part of that."""
    write_tokenizer(tmp_path / "tokenizer")
    assert peak(tmp_path, 40_000) - peak(tmp_path, 2_000) < 60e6
