"""Fields of another format beside a row's own: they must say the same, or the row is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from pyprefopt.data.reading.blocks import parse_block
from pyprefopt.data.reading.frames import scan_candidates, scan_instructions, scan_preferences
from pyprefopt.data.reading.sources import open_source
from pyprefopt.data.tokenization.segments import tokenize
from pyprefopt.data.tokenization.tokenizer import load_tokenizer
from pyprefopt.data.truncation.dispatch import truncate
from pyprefopt.errors import DataError

TOKENIZER = Path(__file__).parents[3] / "rust/fuzz/tiny-tokenizer.json"


def chat(*contents, system=None):
    roles = ("user", "assistant")
    said = [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *said] if system else said


def sharegpt(*contents):
    return [{"from": ("human", "gpt")[at % 2], "value": content} for at, content in enumerate(contents)]


TEXTS = {"chosen": "a", "rejected": "b"}
GPT = {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
PAIR = {"prompt": "Q", **TEXTS}
ULTRA = {"prompt": "Q", "chosen": chat("Q", "a"), "rejected": chat("Q", "b")}
SHP = {"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
HH = {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"}
SET = {"prompt": "Q", "responses": ["a", "b"]}
LONG = chat("Q", "a", "R", "b")
RENDERED = "Below is an instruction.\n\n### Instruction:\nQ\n\n### Input:\nI\n\n### Response:\n"
# how a row is read -> (the row, the rival field, what says the same, what says another thing)
CASES = [
    (scan_preferences, PAIR, "instruction", ["Q"], ["Z", "Q Z", "QZ"]),
    (scan_preferences, {"instruction": "Q", **TEXTS}, "prompt", ["Q", chat("Q")], ["Z", chat("Z")]),
    (scan_preferences, {"instruction": "Q", "input": "I", **TEXTS}, "prompt", ["Q\nI", RENDERED], ["Q", "I Q"]),
    (scan_preferences, {"conversations": sharegpt("Q"), **GPT}, "prompt", ["Q", " Q\n"], ["ZZ"]),
    (scan_preferences, PAIR, "conversations", [sharegpt("Q"), sharegpt("Q", "a"), "a note", 5], [sharegpt("ZZ")]),
    (
        scan_preferences,
        PAIR,
        "messages",
        [chat("Q"), chat("Q", "a"), chat("Q", " b "), json.dumps(chat("Q", "a")), 5],
        [chat("Z"), chat("Q", "c"), chat("Z", "a"), chat("Q", "a", system="S"), json.dumps(chat("Z"))],
    ),
    (scan_preferences, ULTRA, "messages", [chat("Q", "a"), chat("Q", "b")], [chat("Q", "c"), chat("Z", "a")]),
    (scan_preferences, {**PAIR, "system": "S"}, "messages", [chat("Q", "a", system="S"), chat("Q")], [chat("Z")]),
    (scan_preferences, HH, "instruction", ["Q"], ["Z"]),
    (scan_preferences, HH, "messages", [chat("Q", "a")], [chat("Z", "a")]),
    (scan_preferences, SHP, "prompt", ["Q"], ["Z"]),
    (scan_preferences, {**SHP, "rejected": "b"}, "chosen", ["a"], ["b", "c"]),
    (scan_preferences, {**SHP, "chosen": "a"}, "rejected", ["b"], ["a", "c"]),
    (scan_preferences, {**SHP, "score_A": 2}, "score_B", [1, 2], [9]),
    (scan_candidates, SET, "messages", [chat("Q"), chat("Q", "b")], [chat("Z"), chat("Q", "c")]),
    (
        scan_instructions,
        {"messages": LONG},
        "prompt",
        ["Q", "R", chat("Q"), chat("Q", "a", "R")],
        ["Z", chat("Q", "c")],
    ),
    (
        scan_instructions,
        {"messages": LONG},
        "response",
        ["b", "a", chat("Q", "b")[1:], LONG],
        ["Q", "c", chat("Q", "b")],
    ),
    (scan_instructions, {"messages": LONG}, "output", ["b"], ["c"]),
    (scan_instructions, {"messages": LONG}, "instruction", ["Q"], ["Z"]),
    (scan_instructions, {"prompt": "Q", "response": "a"}, "instruction", ["Q"], ["Z"]),
    (scan_instructions, {"prompt": "Q", "response": "a"}, "output", ["a"], ["c"]),
    (scan_instructions, {"instruction": "Q", "output": "a"}, "prompt", ["Q", RENDERED[:52]], ["Z"]),
    (scan_instructions, {"instruction": "Q", "output": "a"}, "completion", ["a"], ["c"]),
]


def scanned(folder, row, how):
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return how(folder / "rows.jsonl")


@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_rival_field_says_the_same(tmp_path, case):
    how, row, name, same, others = CASES[case]
    alone = scanned(tmp_path, row, how)
    for value in same:
        found = scanned(tmp_path, {**row, name: value}, how)
        assert found.rejects.is_empty(), (value, found.rejects.to_dicts())
        columns = ["prompt", *(side for side in ("chosen", "rejected", "response", "responses") if side in alone.frame)]
        assert found.frame.select(columns).equals(alone.frame.select(columns)), value
    for value in others:
        for order in ({**row, name: value}, {name: value, **row}):
            rejects = scanned(tmp_path, order, how).rejects
            assert rejects["reason"].to_list() == ["fields_differ"], value
            told = f"{rejects['field'][0]} {rejects['rule'][0]}"
            assert name in told or rejects["field"][0] == "score_A"
    for empty in (None, "", []) if name not in ("score_B", "instruction") else (None,):
        assert scanned(tmp_path, {**row, name: empty}, how).rejects.is_empty()


def test_rivals_in_typed_rows(tmp_path):
    rows = {**{name: [value] * 3 for name, value in PAIR.items()}, "messages": [chat("Q", "a"), None, chat("Z", "a")]}
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    found = scan_preferences(tmp_path / "a.parquet")
    assert found.frame["row"].to_list() == [0, 1]
    assert found.rejects["reason"].to_list() == ["fields_differ"]
    assert "messages" in found.frame.columns
    opened = open_source(tmp_path / "a.parquet")
    blocks = [parse_block(block, opened.format) for block in opened.blocks()]
    assert sum(block.rejects.height for block in blocks) == 1
    assert scan_preferences(found.frame).rejects.is_empty()
    unreadable = pl.DataFrame(PAIR).with_columns(messages=pl.lit(b"\xff"))
    assert scan_preferences(unreadable).frame.height == 1


def test_what_a_cut_leaves_still_agrees(tmp_path):
    row = {
        "prompt": "Q",
        "chosen": "one two three",
        "rejected": "four five six",
        "messages": chat("Q", "one two three"),
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    truncate(tmp_path / "rows.jsonl", length=1, unit="words", out=tmp_path / "cut.jsonl")
    assert scan_preferences(tmp_path / "cut.jsonl").rejects.is_empty()


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_names_of_the_call_are_no_variables_of_the_template(name):
    tokenizer = load_tokenizer(TOKENIZER, eos_token="<|endoftext|>", chat_template="plain")
    with pytest.raises(DataError, match=f"template_kwargs must leave '{name}' alone"):
        tokenize(pl.DataFrame([{**PAIR, "template_kwargs": json.dumps({name: []})}]), tokenizer)
