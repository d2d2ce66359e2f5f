"""The benchmark runs, checks what it compares, and writes its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import compare, sets
from benchmarks.memory import Peak

ROOT = Path(__file__).parents[2]
needs_data = pytest.mark.skipif(
    not sets.TOKENIZER.exists(), reason="no real data: neither ../shared/data nor PYPREFOPT_SHARED"
)


def quick(folder: Path, *options: str) -> dict:
    command = [
        sys.executable,
        "benchmarks/data.py",
        "--quick",
        "--sets",
        folder,
        "--out",
        folder / "out.json",
        *options,
    ]
    environment = os.environ | {"PYPREFOPT_SHARED": str(sets.SHARED)}
    done = subprocess.run(map(str, command), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "out.json").read_text())


@needs_data
def test_our_side_of_a_quick_run(tmp_path):
    page = tmp_path / "speed.md"
    found = quick(tmp_path, "--sides", "memory", "disk", "--only", "first", "mask", "memory", "--write", str(page))
    assert [one["work"] for one in found["results"]] == ["first", "mask", "memory", "memory"]
    assert all(one["peak_bytes"] >= one["before_bytes"] > 0 for one in found["results"][2:])
    assert "top-30 % mask" in page.read_text()
    assert "A quick run" in page.read_text()


@needs_data
@pytest.mark.slow
def test_a_quick_run_with_all_peers(tmp_path):
    for name in ("trl", "gigatoken", "numba"):
        pytest.importorskip(name, reason=f"the extra `bench` is not installed: {name}")
    found = quick(tmp_path)
    assert {one["work"] for one in found["results"]} == {
        "preparation",
        "tokenize",
        "first",
        "mask",
        "packing",
        "memory",
    }
    assert {one["check"] for one in found["results"] if one["work"] == "preparation"} == {"ids, masks and splits equal"}


@needs_data
def test_the_sets_are_seeded_and_keep_their_shared_prefix(tmp_path):
    one, two = (sets.write_set(tmp_path / name, "hh", 1600).read_text() for name in ("a.jsonl", "b.jsonl"))
    assert one == two
    rows = [json.loads(line) for line in one.splitlines()]
    assert len(rows) == 1600
    assert len({row["chosen"] for row in rows[:100] + rows[-100:]}) == 200
    prompts = [[row[side].rpartition("\n\nAssistant:")[0] for side in ("chosen", "rejected")] for row in rows]
    assert all(chosen == rejected for chosen, rejected in prompts)


def side(folder: Path, name: str, ids: list[list[int]], mask: list[list[bool]]) -> None:
    lists = pa.array(ids, pa.large_list(pa.uint32())), pa.array(mask, pa.large_list(pa.bool_()))
    names = [f"{segment}_{kind}" for segment in ("prompt", "chosen", "rejected") for kind in ("ids", "mask")]
    table = pa.table(dict(zip(names, lists * 3, strict=True)))
    with pa.ipc.new_file(str(folder / f"{name}.arrow"), table.schema) as writer:
        writer.write_table(table)


def test_what_differs_is_found(tmp_path):
    ids, mask = [[209, 5], [7, 8, 209]], [[True] * 2, [True] * 3]
    side(tmp_path, "peer", ids, mask)
    side(tmp_path, "same", ids, mask)
    assert compare.tables(tmp_path, "peer", "same", 2) == "ids, masks and splits equal"
    for name, other_ids, other_mask in [
        ("ids", [[209, 5], [7, 9, 209]], mask),
        ("split", [[209], [5, 7, 8, 209]], [[True], [True] * 4]),
        ("mask", ids, [[True, True], [True, True, False]]),
        ("prompt mask", ids, [[False, True], [True] * 3]),
    ]:
        side(tmp_path, name, other_ids, other_mask)
        with pytest.raises(SystemExit, match=f"{name}: .* peer"):
            compare.tables(tmp_path, "peer", name, 2)


def test_a_lone_space_of_the_template_is_counted(tmp_path):
    ids = pa.array([[209, 5]], pa.large_list(pa.uint32()))
    for name, first in (("peer", True), ("ours", False)):
        mask = pa.array([[first, True]], pa.large_list(pa.bool_()))
        full = pa.array([[True, True]], pa.large_list(pa.bool_()))
        table = pa.table({"prompt_ids": ids, "prompt_mask": full, "chosen_ids": ids, "chosen_mask": mask})
        with pa.ipc.new_file(str(tmp_path / f"{name}.arrow"), table.schema) as writer:
            writer.write_table(table)
    assert "1 answers whose first token" in compare.tables(tmp_path, "peer", "ours", 1)


def test_the_peak_is_seen():
    with Peak() as peak:
        array = np.ones(20_000_000)
        assert array.sum() == 2e7
        before_the_end = peak._now()
    assert peak.bytes - peak.before > 120e6
    assert before_the_end - peak.before > 120e6
