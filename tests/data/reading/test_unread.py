"""Fields that belong to the prompt by their names and are left aside are told, once a file."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import polars as pl
import pytest

from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.reading.frames import read_candidates, read_instructions, read_preferences
from pyprefopt.data.reading.sources import open_source
from pyprefopt.data.tokenization.segments import tokenize
from pyprefopt.data.tokenization.tokenizer import load_tokenizer

TOKENIZER = Path(__file__).parents[3] / "rust/fuzz/tiny-tokenizer.json"

PAIR = {"prompt": "Q", "chosen": "good", "rejected": "bad"}
ASIDE = {"system_prompt": "Be kind.", "history": [["a", "b"]], "input": "I"}


def tokenizer():
    return load_tokenizer(TOKENIZER, eos_token="<|endoftext|>", chat_template="plain")


def written(path, rows):
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


WAYS = {
    "read": lambda path, _: read_preferences(path),
    "tokenize": lambda path, _: tokenize(path, tokenizer()),
    "prepare": lambda path, out: prepare(path, tokenizer(), out),
    "describe": lambda path, _: open_source(path).describe(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_left_aside_is_told_once(tmp_path, caplog, way, suffix):
    path = written(tmp_path / f"a{suffix}", [PAIR | dict.fromkeys(ASIDE), PAIR | ASIDE])
    with caplog.at_level(logging.WARNING, "pyprefopt"):
        for again in range(2):
            WAYS[way](path, tmp_path / f"out{again}")
    told = [message for message in caplog.messages if "not read by format" in message]
    assert told == [
        f"{path}: by the name a part of the prompt, but not read by format preference: system_prompt, history, input; "
        "the prompt stands without it; write it into the prompt (what the system says into 'system'), or leave it out"
    ]


@pytest.mark.parametrize(
    ("read", "row"),
    [
        (read_preferences, PAIR | {"input": "", "history": [], "system_prompt": None, "mine": "x"}),
        (read_preferences, {"instruction": "Q", "chosen": "a", "rejected": "b", "input": "I", "history": [["a", "b"]]}),
        (read_instructions, {"instruction": "Q", "output": "a", "input": "I"}),
    ],
)
def test_what_is_read_or_empty_is_not_told(tmp_path, caplog, read, row):
    read(written(tmp_path / "a.jsonl", [row]))
    assert not caplog.messages


def test_other_kinds_other_files_and_frames(tmp_path, caplog):
    read_instructions(written(tmp_path / "i.jsonl", [{"prompt": "Q", "response": "a", "history": "b"}]))
    read_candidates(written(tmp_path / "c.jsonl", [{"prompt": "Q", "responses": ["a"], "context": "b"}]))
    for suffix in (".jsonl", ".parquet"):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        written(folder / f"1{suffix}", [PAIR])
        written(folder / f"2{suffix}", [PAIR | {"query": "b"}])
        read_preferences(folder)
    read_preferences(pl.DataFrame(PAIR | {"question": "b"}))
    assert [re.search(r"by format \w+: (\w+);", message)[1] for message in caplog.messages] == [
        "history",
        "context",
        "query",
        "query",
        "question",
    ], caplog.messages
