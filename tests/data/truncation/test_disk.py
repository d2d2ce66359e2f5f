"""A disk that takes no more, and a folder that cannot be written: told as that, and nothing is left behind."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pyprefopt.data.truncation import files
from pyprefopt.data.truncation.dispatch import truncate
from pyprefopt.errors import ArtifactError

ROOT = Path(__file__).parents[3]
SOURCES = ("a.parquet", "a.arrow", "a.jsonl")
TARGETS = ("o.parquet", "o.arrow", "o.arrows", "o.jsonl", "o.csv", "o.jsonl.gz", "o.csv.zst", "o.jsonl.xz")
CUT = """
import json, resource, sys
from pathlib import Path
from pyprefopt.data.truncation.dispatch import truncate
folder, sources, targets = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for source in sources:
    for target in targets:
        try:
            truncate(folder / source, ratio=0.9, unit="words", out=folder / target)
        except Exception as error:
            print(type(error).__name__, error)
"""


def test_a_limit_of_a_files_size_is_told(tmp_path):
    chance = random.Random(0)
    words = [" ".join(str(chance.random()) for _ in range(20)) for _ in range(2000)]
    frame = pl.DataFrame({"prompt": words, "chosen": words[::-1], "rejected": words[1:] + words[:1]})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_ipc(tmp_path / "a.arrow")
    frame.write_ndjson(tmp_path / "a.jsonl")
    run = subprocess.run(
        [sys.executable, "-c", CUT, tmp_path, json.dumps(SOURCES), json.dumps(TARGETS)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    remedy = "File too large; raise the limit of a file's size (ulimit -f) and give the same command again"
    wanted = [f"ArtifactError {tmp_path / target}: {remedy}" for _ in SOURCES for target in TARGETS]
    assert run.stdout.splitlines() == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SOURCES)


@pytest.mark.parametrize("number", [28, 13])
def test_the_systems_reason_is_told(tmp_path, monkeypatch, number):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a b", "rejected": "c d"}\n')
    reason = {
        28: "No space left on device, .* are free; make room on the disk and give the same command again",
        13: "Permission denied; choose a folder that you may write to",
    }[number]

    def refuse(*_):
        raise OSError(number, "system", "hidden")

    monkeypatch.setattr(files, "open_writer", refuse)
    with pytest.raises(ArtifactError, match=rf"a.truncated.jsonl: {reason}$"):
        truncate(path, length=1, unit="words")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_target_that_is_a_folder_is_told(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a b", "rejected": "c d"}\n')
    (tmp_path / "o.jsonl").mkdir()
    with pytest.raises(ArtifactError, match=r"o.jsonl: Is a directory; choose a file, not a folder$"):
        truncate(path, length=1, unit="words", out=tmp_path / "o.jsonl", overwrite=True)
