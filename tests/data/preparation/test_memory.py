"""Memory does not grow with the input: each preparation in a process of its own, its peak as the kernel counted it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pyprefopt.data.embedded import filler_words, write_tokenizer

ROOT = Path(__file__).parents[3]
RUN = """
import resource, sys
from pyprefopt.data.files import parts
from tests.data.prepared import run

pairs, tokenizer, out, block = sys.argv[1:]
parts.BLOCK_BYTES = int(block)
store = run(pairs, tokenizer, out, on_error="skip")
print(store.manifest["rows"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_long_pairs(path: Path, rows: int) -> None:
    """About 1 KB a row, of thirty texts in random order, so that writing them is quick."""
    seeded = random.Random(0)
    texts = [" ".join(seeded.choices(filler_words(), k=62)) for _ in range(30)]
    with path.open("w") as file:
        for index in range(rows):
            prompt, chosen, rejected = seeded.sample(texts, 3)
            file.write(json.dumps({"prompt": f"{index} {prompt}", "chosen": chosen, "rejected": rejected}) + "\n")


def peak(tmp_path: Path, rows: int, block: int) -> int:
    """Bytes of memory at the most, of a preparation of `rows` rows."""
    pairs, out = tmp_path / f"{rows}.jsonl", tmp_path / f"{rows}"
    write_long_pairs(pairs, rows)
    command = [sys.executable, "-c", RUN, pairs, tmp_path / "tokenizer", out, str(block)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stderr
    prepared, peak_bytes = map(int, done.stdout.split())
    assert prepared == rows
    pairs.unlink()
    return peak_bytes


def test_memory_of_a_small_set(tmp_path):
    """20,000 rows are 20 MB of text and 54 MB of segments: the growth is a part of that."""
    write_tokenizer(tmp_path / "tokenizer")
    assert peak(tmp_path, 20_000, 1 << 18) - peak(tmp_path, 2_000, 1 << 18) < 20e6


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_memory_of_a_million_rows(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    tenth = peak(tmp_path, 100_000, 16 << 20)
    whole = peak(tmp_path, 1_000_000, 16 << 20)
    assert whole < 2 << 30
    assert whole < 1.2 * tenth
