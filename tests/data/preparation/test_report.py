"""The report on a folder of segments: golden text, colours, marks."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest

from pyprefopt import data
from pyprefopt.data.preparation.report import histogram, inspect
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.errors import ArtifactError, DataError
from tests.data.prepared import flip_a_bit, run, write_pairs, write_tokenizer

GOLDEN = """\
OUT: 11 rows, 33 segments, 461 tokens, 1 shard, 0.0 MiB
input      pairs.jsonl (preference): 12 rows in, 11 used, 1 rejected
  empty_response: 1
settings   boundary split, format preference, max_prompt_tokens 1024, max_tokens 2048, \
min_response_tokens 1, offsets True, prompt_overflow error, score_reasoning True
tokenizer  eos_token </s>, tokenizer.json sha256 HASH, chat template sha256 HASH
rows       0 responses cut to fit max_tokens, 0 with a token across the boundary

prompt: median 25 tokens, mean 25.2, longest 26
  25 - 29 |######################################## 11

chosen: median 10 tokens, mean 10.5, longest 14
   8 -  9 |######################################## 4
  10 - 11 |##############################           3
  12 - 13 |##############################           3
  14 - 15 |##########                               1

rejected: median 6 tokens, mean 6.2, longest 7
  6 |######################################## 9
  7 |#########                                2

row 11, prompt (26 tokens)
[user] say 11</s>[assistant]\x20

row 11, chosen (13 tokens)
11 it is!!!!</s>

row 11, rejected (7 tokens)
no, 11</s>"""


@pytest.fixture
def folder(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    pairs = write_pairs(tmp_path / "pairs.jsonl", 12, bad=(5,))
    run(str(pairs), tokenizer, tmp_path / "out", on_error="skip")
    return tmp_path / "out"


def test_the_report(folder):
    text = inspect(folder, row=11).replace(str(folder), "OUT")
    assert re.sub("sha256 [0-9a-f]{12}", "sha256 HASH", text) == GOLDEN


def test_colours_mark_sides_and_selection_and_cuts(folder, tmp_path):
    store = SegmentStore.open(folder)
    frame = data.truncate(pl.DataFrame(store.table), length=4)
    cut = SegmentStore.write(frame, tmp_path / "cut")
    marks = np.zeros(cut.response_offsets[-1], np.bool_)
    marks[1:3] = True
    ValueStore.write(tmp_path / "selection", cut, marks, key="selection")
    (tmp_path / "cut/tokenizer").symlink_to(folder / "tokenizer")
    plain = inspect(tmp_path / "cut", selection=tmp_path / "selection")
    assert "row 0, chosen (4 tokens, 3 cut, 2 selected)\n0[ i]t[... 3 tokens cut]" in plain
    colored = inspect(tmp_path / "cut", selection=tmp_path / "selection", color=True)
    assert "\x1b[32m0\x1b[0m\x1b[32;7m i\x1b[0m\x1b[32mt\x1b[0m\x1b[33;1m[... 3 tokens cut]\x1b[0m" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain.replace("[ i]", " i")
    with pytest.raises(ArtifactError, match="made for segments"):
        inspect(folder, selection=tmp_path / "selection")


def test_escape_sequences_of_the_data_do_not_reach_the_terminal(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    frame = pl.DataFrame({"prompt": ["a\x1b[31m"], "chosen": ["b\x07é日"], "rejected": ["c\x9b"]})
    run(frame, tokenizer, tmp_path / "out")
    text = inspect(tmp_path / "out")
    assert "a\\x1b[31m" in text
    assert "b\\x07é日</s>" in text
    assert "\x1b" not in text


def test_a_row_that_is_not_there(folder):
    for row in (5, 12, -1):
        with pytest.raises(DataError, match=f"row must be one that the folder holds, got {row}; rows 0 to 11"):
            inspect(folder, row=row)


def test_histograms_have_round_ranges_and_cover_everything():
    for lengths in ([0], [7], [1, 2, 2, 3], list(range(1000)), [5, 100_000]):
        text = histogram(np.array(lengths), "x").splitlines()
        assert len(text) <= 14
        counts = [int(line.split()[-1].replace(",", "")) for line in text[1:]]
        assert sum(counts) == len(lengths)
        assert max(line.count("#") for line in text) == 40


def test_a_damaged_shard_is_refused(folder):
    flip_a_bit(folder / "segments-00000.arrow")
    with pytest.raises(
        ArtifactError, match=r"segments-00000\.arrow is missing or damaged: its sha256 .*; delete .* make"
    ):
        inspect(folder)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    with pytest.raises(ArtifactError, match="must be a prepared folder, but it is a file; make one"):
        inspect(tmp_path / "pairs.jsonl")
