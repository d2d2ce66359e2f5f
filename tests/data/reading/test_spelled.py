"""A chat or list that stands as JSON text is what it spells, in every container, and is cut there."""

from __future__ import annotations

import csv
import json

import polars as pl
import pytest

from pyprefopt.data.reading.frames import read_candidates, read_instructions, read_preferences, scan_preferences
from pyprefopt.data.truncation.dispatch import truncate
from pyprefopt.errors import DataError

USER, SYSTEM = {"role": "user", "content": "Q"}, {"role": "system", "content": "S"}
CONTAINERS = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow", "frame"]


def answer(text):
    return {"role": "assistant", "content": text}


def source(tmp_path, row, container):
    """Where the row stands, all its values being texts."""
    row = {name: value if isinstance(value, str) else json.dumps(value, indent=1) for name, value in row.items()}
    frame, path = pl.DataFrame([row]), tmp_path / container
    if container == "frame":
        return frame
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".arrow":
        frame.write_ipc(path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerow(row)
    else:
        path.write_text(json.dumps([row] if path.suffix == ".json" else row))
    return path


def chats(frame, *names):
    return [[(m["role"], m["content"]) for m in frame[name][0]] for name in names]


PAIRS = {
    "whole chats": {"prompt": "Q", "chosen": [USER, answer("a b")], "rejected": [USER, answer("c d")]},
    "whole chats alone": {"chosen": [USER, answer("a b")], "rejected": [USER, answer("c d")]},
    "prompt": {"prompt": [USER], "chosen": "a b", "rejected": "c d"},
    "answers": {"prompt": "Q", "chosen": [answer("a b")], "rejected": [answer("c d")]},
    "one message": {"prompt": USER, "chosen": answer("a b"), "rejected": answer("c d")},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "a b"},
        "rejected": [{"from": "gpt", "value": "c d"}],
    },
    "alpaca": {"instruction": "Q", "input": "", "chosen": [answer("a b")], "rejected": "c d"},
    "output": {"instruction": "Q", "output": ["a b", json.dumps([answer("c d")])]},
    "a text and a chat": {"prompt": "Q", "chosen": "a b", "rejected": [answer("c d")]},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("case", PAIRS)
def test_pairs(tmp_path, case, container):
    given = source(tmp_path, PAIRS[case], container)
    expected = [[("user", "Q")], [("assistant", "a b")], [("assistant", "c d")]]
    assert chats(read_preferences(given), "prompt", "chosen", "rejected") == expected
    if case == "output" and container in ("frame", "a.parquet", "a.arrow"):
        return  # a frame is cut by columns; typed files: below
    cut = read_preferences(truncate(given, length=1, unit="words"))
    assert chats(cut, "prompt", "chosen", "rejected") == [[("user", "Q")], [("assistant", "a")], [("assistant", "c")]]
    assert (cut["chosen_cut"].cast(pl.Int64).to_list(), cut["chosen_complete"].to_list()) == ([1], [False])


@pytest.mark.parametrize("container", ["a.parquet", "a.arrow"])
def test_a_list_of_both_in_typed_files(tmp_path, container):
    cut = read_preferences(truncate(source(tmp_path, PAIRS["output"], container), length=1, unit="words"))
    assert chats(cut, "chosen", "rejected") == [[("assistant", "a")], [("assistant", "c")]]


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_shorter_answer_may_be_the_measure(tmp_path, container):
    row = {"prompt": "Q", "chosen": [answer("a b c d")], "rejected": [answer("e f")]}
    given = source(tmp_path, row, container)
    cut = read_preferences(truncate(given, ratio=0.5, unit="words", ratio_base="shared_min"))
    assert chats(cut, "chosen", "rejected") == [[("assistant", "a")], [("assistant", "e")]]


@pytest.mark.parametrize("container", CONTAINERS)
def test_candidates_and_examples(tmp_path, container):
    row = {"prompt": [USER], "responses": ["a b", json.dumps([answer("c d")])], "scores": [1, 2.5]}
    frame = read_candidates(source(tmp_path, row, container))
    assert [[m["content"] for m in chat] for chat in frame["responses"][0]] == [["a b"], ["c d"]]
    assert frame["scores"][0].to_list() == [1.0, 2.5]
    for row in (
        {"messages": [SYSTEM, USER, answer("a")]},
        {"conversations": [SYSTEM, USER, answer("a")]},
        {"prompt": [SYSTEM, USER], "response": [answer("a")]},
        {"prompt": [SYSTEM, USER], "completion": "a"},
    ):
        frame = read_instructions(source(tmp_path, row, container))
        assert chats(frame, "prompt", "response") == [[("system", "S"), ("user", "Q")], [("assistant", "a")]]


@pytest.mark.parametrize("container", ["a.jsonl", "a.csv"])
def test_candidates_are_cut(tmp_path, container):
    row = {"prompt": [USER], "responses": ["a b", json.dumps([answer("c d")])]}
    cut = read_candidates(truncate(source(tmp_path, row, container), length=1, unit="words"))
    assert [[m["content"] for m in chat] for chat in cut["responses"][0]] == [["a"], ["c"]]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    "text", ["[1, 2]", '[{"role": "Engineer"}]', '{"role": "x", "content": "y"}', "[]", "{", '[{"a": 1}]', "[ ]  "]
)
def test_answers_that_are_other_json_stay_texts(tmp_path, text, container):
    frame = read_preferences(source(tmp_path, {"prompt": "Q", "chosen": text, "rejected": "no"}, container))
    assert chats(frame, "chosen") == [[("assistant", text)]]
    frame = read_instructions(source(tmp_path, {"instruction": "Q", "output": text}, container), format="instruction")
    assert chats(frame, "response") == [[("assistant", text)]]


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_list_as_python_prints_it_is_refused(tmp_path, container):
    row = {"prompt": "Q", "chosen": str([USER, answer("a")]), "rejected": str([USER, answer("b")])}
    rejects = scan_preferences(source(tmp_path, row, container)).rejects
    assert rejects.select("reason", "remedy").row(0) == ("not_a_chat", "write it with json.dumps")


def test_all_but_the_cut_text_stays_as_it_was_written(tmp_path):
    path = tmp_path / "a.jsonl"
    inner = '[ {"role": "user", "content": "Q\\u00e9"},\\n {"content": "a b",  "role": "assistant", "n": 1.50} ]'
    row = json.dumps({"prompt": "Qé", "chosen": "CHAT", "rejected": "no"}).replace("CHAT", inner.replace('"', '\\"'))
    path.write_text(row + "\n")
    cut = truncate(path, length=1, unit="words").read_text()
    assert cut.startswith(row.replace("a b", "a")[:-1])


def test_half_a_surrogate_pair_in_a_spelled_chat_is_a_reject(tmp_path):
    path = tmp_path / "a.jsonl"
    chat = '[{"role": "assistant", "content": "\\ud800"}]'
    path.write_text(json.dumps({"prompt": "Q", "chosen": chat, "rejected": "b"}) + "\n")
    assert scan_preferences(path).rejects["reason"].to_list() == ["lone_surrogate"]


def test_transcripts_in_typed_files_are_cut_as_turns_and_in_frames_refused(tmp_path):
    begun = "\n\nHuman: Q\n\nAssistant:"
    row = {"prompt": begun, "chosen": " abcd", "rejected": " efgh"}
    for container in CONTAINERS[:-1]:
        cut = read_preferences(truncate(source(tmp_path, row, container), length=2, unit="characters"))
        assert chats(cut, "prompt", "chosen", "rejected") == [
            [("user", "Q")],
            [("assistant", "ab")],
            [("assistant", "ef")],
        ]
    with pytest.raises(DataError, match="holds transcripts"):
        truncate(source(tmp_path, row, "frame"), length=2, unit="characters")
