"""`tokenize` of files has no frame in between; it must give what reading and tokenizing give one after another."""

from __future__ import annotations

import json

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pyprefopt import data
from pyprefopt.data import sources
from pyprefopt.data.read import scan_preferences
from pyprefopt.data.tokenize import SEGMENTS, load_tokenizer, tokenize, tokenize_rows
from pyprefopt.errors import ConfigError, DataError
from tests.data.frames import byte_tokenizer

EXTRA = {"role": "user", "content": "and?", "name": "ann"}
PAIRS = [
    {"prompt": "why 😀", "chosen": "as\n\"it\" is", "rejected": "no"},
    {"prompt": [{"role": "system", "content": "s"}, EXTRA], "chosen": "yes", "rejected": "no", "score_chosen": 2},
    {"prompt": "cut", "chosen": "a long answer", "rejected": "b", "chosen_complete": False, "id": 7},
    {"prompt": "bad", "chosen": "", "rejected": "b"},
    {"prompt": "bad", "chosen": 3, "rejected": "b"},
    {"prompt": "tools", "chosen": "a", "rejected": "b", "tools": [{"name": "f"}]},
    {"prompt": "too long " * 40, "chosen": "a", "rejected": "b"},
]  # fmt: skip
TRANSCRIPTS = [
    {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: x",
    },
    {"chosen": "\n\nHuman: why\n\nAssistant: so", "rejected": "\n\nHuman: why\n\nAssistant: no"},
]


@pytest.fixture
def toy(tmp_path):
    return load_tokenizer(byte_tokenizer(tmp_path), eos_token="</s>", chat_template="plain")


def write(path, rows):
    path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("rows", [PAIRS, TRANSCRIPTS])
@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("block_rows", [1, 2, 1000])
def test_files_give_what_frames_give(tmp_path, toy, rows, offsets, block_rows, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_ROWS", block_rows)
    path = write(tmp_path / "pairs.jsonl", rows)
    read = scan_preferences(path)
    limits = {"max_prompt_tokens": 200, "max_tokens": 230}
    expected = tokenize_rows(read.frame, toy, **limits, offsets=offsets)
    ours = tokenize(path, toy, **limits, offsets=offsets, on_error="skip")
    assert_frame_equal(ours, expected.segments)
    assert set(SEGMENTS) - set(ours.columns) == (set() if offsets else {"starts", "ends", "turns"})
    if not read.rejects.is_empty():
        with pytest.raises(DataError) as told:
            tokenize(path, toy, **limits)
        for row in [*read.rejects["row"], *expected.rejects["row"]]:
            assert f"{path}, row {row}" in str(told.value)


def test_candidates_instructions_and_tables_go_the_same_way(tmp_path, toy):
    candidates = [{"prompt": "p", "responses": ["a", "b c", "d"], "scores": [1, None, 0.5]}]
    ours = tokenize(write(tmp_path / "c.jsonl", candidates), toy)
    assert_frame_equal(ours, tokenize(data.read_candidates(tmp_path / "c.jsonl"), toy))
    assert ours["score"].to_list() == [None, 1.0, None, 0.5]
    instructions = [{"prompt": "p", "response": "a"}, {"prompt": "q", "response": "b"}]
    ours = tokenize(write(tmp_path / "i.jsonl", instructions), toy)
    assert_frame_equal(ours, tokenize(data.read_instructions(tmp_path / "i.jsonl"), toy))
    table = pl.DataFrame(TRANSCRIPTS).to_arrow()
    assert_frame_equal(tokenize(table, toy), tokenize(data.read_preferences(table), toy))


def test_a_frame_says_itself_what_it_is(toy):
    with pytest.raises(ConfigError, match="format must be auto for a frame"):
        tokenize(pl.DataFrame(), toy, format="hh")
