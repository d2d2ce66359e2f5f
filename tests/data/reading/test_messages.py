"""Every key of a message arrives, whatever keys are absent; notes on a message make no turn another one."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from pyprefopt.data.reading.frames import read_candidates, read_preferences, scan_preferences
from pyprefopt.data.tokenization.segments import load_tokenizer, tokenize

TOKENIZER = Path(__file__).parents[3] / "rust/fuzz/tiny-tokenizer.json"
CALLS = [{"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}]
ANSWERS = {"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}


def asked(message):
    """A row whose prompt has the message behind a user's."""
    ending = [{"role": "tool", "content": "1"}]
    return {"prompt": [{"role": "user", "content": "q"}, message, *ending], **ANSWERS}


def read(tmp_path, row, container="a.jsonl"):
    path = tmp_path / container
    if path.suffix == ".parquet":
        pl.DataFrame([row], infer_schema_length=None).write_parquet(path)
    else:
        path.write_text(json.dumps(row) + "\n")
    return scan_preferences(path)


def second(result):
    """Content and further keys of the prompt's second message."""
    message = result.frame["prompt"][0][1]
    return message["content"], json.loads(message["extra"] or "{}")


@pytest.mark.parametrize("container", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}])
@pytest.mark.parametrize(
    "keys",
    [
        {"tool_calls": CALLS},
        {"name": "Ann"},
        {"reasoning_content": "why"},
        {"thinking": "why", "odd": "kept"},
        {"tool_calls": CALLS, "odd": {"deep": [1]}},
    ],
)
def test_further_keys_arrive_whatever_content_is(tmp_path, content, keys, container):
    if content == {"content": []} and container == "a.parquet":
        pytest.skip("a column is of one type")
    for message in ({"role": "assistant", **content, **keys}, {**keys, **content, "role": "assistant"}):
        assert second(read(tmp_path, asked(message), container)) == ("", keys)


@pytest.mark.parametrize("value", [{}, {"value": None}, {"value": ""}])
def test_further_keys_of_from_and_value_arrive(tmp_path, value):
    message = {"from": "gpt", **value, "tool_calls": CALLS, "odd": 1}
    assert second(read(tmp_path, asked(message))) == ("", {"tool_calls": CALLS, "odd": 1})


def test_a_function_call_keeps_its_other_keys(tmp_path):
    message = {"from": "function_call", "value": '{"name": "f", "arguments": {}}', "reasoning_content": "why"}
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    assert second(read(tmp_path, asked(message))) == ("", {"tool_calls": calls, "reasoning_content": "why"})


def test_a_text_under_another_key_is_no_empty_message(tmp_path):
    for key in ("text", "value", "parts"):
        result = read(tmp_path, asked({"role": "user", key: "Hi"}))
        assert result.rejects["reason"].to_list() == ["not_a_message"]
    assert read(tmp_path, asked({"role": "user"})).rejects.is_empty()


def test_a_sender_beside_a_role_is_a_key(tmp_path):
    message = {"role": "assistant", "content": "x", "from": "Ann", "value": 3}
    assert second(read(tmp_path, asked(message))) == ("x", {"from": "Ann", "value": 3})


def test_parts_without_text_are_empty(tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": None}, {"type": "text"}]
    assert second(read(tmp_path, asked({"role": "assistant", "content": parts}))) == ("a", {})


@pytest.mark.parametrize("container", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("text", ["{}", '{"a": 1}', "plain"])
def test_a_key_named_extra_is_a_key(tmp_path, text, container):
    keys = {"extra": text, "tool_calls": CALLS}
    assert second(read(tmp_path, asked({"role": "assistant", "content": "x", **keys}), container)) == ("x", keys)
    alone = {"role": "assistant", "content": "x", "extra": text}
    row = {**asked(alone), "prompt": [{"role": "user", "content": "q", "extra": None}, alone, alone]}
    assert second(read(tmp_path, row, container)) == ("x", {"extra": text})


@pytest.mark.parametrize("container", ["a.jsonl", "a.parquet", "a.arrow"])
def test_frames_of_read_are_known_again(tmp_path, container):
    frame = read(tmp_path, asked({"role": "assistant", "tool_calls": CALLS, "extra": '{"a": 1}'})).frame
    path = tmp_path / f"again.{container[2:]}"
    {".jsonl": frame.write_ndjson, ".parquet": frame.write_parquet, ".arrow": frame.write_ipc}[path.suffix](path)
    assert read_preferences(path).equals(frame)
    assert read_preferences(frame).equals(frame)


def test_role_and_content_are_not_overwritten_by_keys_of_these_names(tmp_path):
    tokenizer = load_tokenizer(TOKENIZER, eos_token="<|endoftext|>", chat_template="plain")
    row = asked({"from": "gpt", "value": "said", "content": None, "role": None})
    assert second(read(tmp_path, row)) == ("said", {})
    frame = read(tmp_path, row).frame
    extra = pl.element().struct.with_fields(extra=pl.lit('{"content": "other", "role": "system"}'))
    other = frame.with_columns(pl.col("prompt").list.eval(extra))
    assert tokenize(other, tokenizer)["ids"].equals(tokenize(frame, tokenizer)["ids"])


NOTES = {"id": "1", "uuid": "2", "timestamp": "3", "message_id": 4}


@pytest.mark.parametrize("note", NOTES)
def test_chats_that_differ_in_a_note_share_their_prompt(tmp_path, note):
    def chat(text, mark):
        return [{"role": "user", "content": "q", note: mark}, {"role": "assistant", "content": text, note: mark}]

    result = read(tmp_path, {"chosen": chat("a", NOTES[note]), "rejected": chat("b", "other")})
    assert result.rejects.is_empty()
    assert json.loads(result.frame["prompt"][0][0]["extra"]) == {note: NOTES[note]}
    same = read(tmp_path, {"chosen": chat("a", NOTES[note]), "rejected": chat("a", "other")})
    assert same.rejects["reason"].to_list() == ["identical_pair"]


def test_ids_of_tool_calls_make_no_other_prompt(tmp_path):
    def chat(text, mark):
        calls = [{"id": mark, **CALLS[0]}]
        tool = {"role": "tool", "content": "1", "tool_call_id": mark}
        before = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": calls}, tool]
        return [*before, {"role": "assistant", "content": text}]

    result = read(tmp_path, {"chosen": chat("a", "x"), "rejected": chat("b", "y")})
    assert [message["role"] for message in result.frame["prompt"][0]] == ["user", "assistant", "tool"]


def test_chats_that_differ_in_what_templates_read_part_there(tmp_path):
    for key, values in {"name": ("Ann", "Bob"), "reasoning_content": ("x", "y")}.items():
        chats = [
            [{"role": "user", "content": "q", key: value}, {"role": "assistant", "content": value}] for value in values
        ]
        result = read(tmp_path, {"chosen": chats[0], "rejected": chats[1]})
        assert result.rejects["reason"].to_list() == ["diverging_chats"]


def test_columns_named_like_ours_are_carried_under_another_name(tmp_path):
    said = {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}}
    row = {**said, "rejected": {"from": "gpt", "value": "b"}, "prompt": "q", "source_prompt": 1}
    for container in ("a.jsonl", "a.parquet"):
        frame = read(tmp_path, row, container).frame
        assert frame["prompt"][0][0]["content"] == "q"
        assert frame.select("source_source_prompt", "source_prompt").row(0) == ("q", 1)
    some = {"prompt": "q", "responses": ["a", "b"], "chosen": "mine"}
    assert read_candidates(pl.DataFrame([some]))["source_chosen"].to_list() == ["mine"]
