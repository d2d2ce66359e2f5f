"""Every format is detected as itself and as no other, and its rows become the chats that they mean."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from pyprefopt.data import _native
from pyprefopt.data.reading.catalog import TABLE
from pyprefopt.data.reading.frames import read_candidates, read_instructions, scan_candidates, scan_preferences
from pyprefopt.data.reading.sources import open_source
from pyprefopt.errors import DataError


def user(text, **extra):
    return {"role": "user", "content": text, **extra}


def assistant(text, **extra):
    return {"role": "assistant", "content": text, **extra}


def human(*turns):
    return "".join(f"\n\n{'Human' if i % 2 == 0 else 'Assistant'}: {turn}" for i, turn in enumerate(turns))


def said(by, text):
    return {"from": by, "value": text}


CALL = assistant("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}}}])
TOOL = {"role": "tool", "content": "42"}

# name of the case -> (format, a row that means: user Hi; chosen Hello., rejected No.)
PAIRS = {
    "ultrafeedback": (
        "ultrafeedback",
        {"prompt": "Hi", "chosen": [user("Hi"), assistant("Hello.")], "rejected": [user("Hi"), assistant("No.")]},
    ),
    "hh": ("hh", {"chosen": human("Hi", "Hello."), "rejected": human("Hi", "No.")}),
    "skywork": (
        "preference",
        {"chosen": [user("Hi"), assistant("Hello.")], "rejected": [user("Hi"), assistant("No.")], "source": "x"},
    ),
    "rlhflow": (
        "preference",
        {
            "rejected": [user("Hi"), assistant("No.")],
            "rejected_score": 1.0,
            "chosen": [user("Hi"), assistant("Hello.")],
            "chosen_score": 2.0,
        },
    ),
    "shp": (
        "shp",
        {"history": "Hi", "human_ref_A": "No.", "human_ref_B": "Hello.", "labels": 0, "score_A": 1, "score_B": 2},
    ),
    "shp, A": ("shp", {"history": "Hi", "human_ref_A": "Hello.", "human_ref_B": "No.", "labels": 1}),
    "sharegpt": (
        "sharegpt",
        {"conversations": [said("human", "Hi")], "chosen": said("gpt", "Hello."), "rejected": said("gpt", "No.")},
    ),
    "sharegpt, LLaMA-Factory": (
        "sharegpt",
        {
            "conversations": [said("human", "Hi")],
            "chosen": said("gpt", "Hello."),
            "rejected": said("gpt", "No."),
            "system": "",
            "tools": "",
        },
    ),
    "alpaca": ("alpaca", {"instruction": "Hi", "input": "", "chosen": "Hello.", "rejected": "No."}),
    "alpaca, output": ("alpaca", {"instruction": "Hi", "output": ["Hello.", "No."]}),
    "TRL standard": ("preference", {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}),
    "TRL conversational": (
        "preference",
        {"prompt": [user("Hi")], "chosen": [assistant("Hello.")], "rejected": [assistant("No.")]},
    ),
}
OTHERS = {
    "candidates": ("candidates", {"prompt": "Hi", "responses": ["Hello.", "No."], "scores": [2.0, 1.0]}),
    "UltraFeedback": (
        "candidates",
        {
            "instruction": "Hi",
            "completions": [
                {"response": "Hello.", "overall_score": 2.0, "model": "a"},
                {"response": "No.", "overall_score": 1.0},
            ],
        },
    ),
    "candidates, chats": (
        "candidates",
        {"prompt": [user("Hi")], "candidates": [[assistant("Hello.")], [assistant("No.")]], "ratings": [2, 1]},
    ),
    "candidate_rows": ("candidate_rows", {"prompt": "Hi", "response": "Hello.", "score": 2.0}),
    "messages": ("messages", {"messages": [user("Hi"), assistant("Hello.")]}),
    "messages, sharegpt": ("messages", {"conversations": [said("human", "Hi"), said("gpt", "Hello.")]}),
    "prompt_response": ("prompt_response", {"prompt": "Hi", "completion": "Hello."}),
    "instruction": ("instruction", {"instruction": "Hi", "input": "", "output": "Hello."}),
}
CASES = {**PAIRS, **OTHERS}
# A row of the first format is also a row of the second, with the same meaning.
INCLUDED = {("ultrafeedback", "preference"), ("candidate_rows", "prompt_response")}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(tmp_path, row):
    """The pair's parts as (role, content) couples."""
    frame = scan_preferences(jsonl(tmp_path / "a.jsonl", [row])).frame
    assert frame.height == 1
    return {name: [(m["role"], m["content"]) for m in frame[name][0]] for name in ("prompt", "chosen", "rejected")}


def rejected(tmp_path, row, scan=scan_preferences, **options):
    result = scan(jsonl(tmp_path / "a.jsonl", [GOOD[scan], row]), **options)
    assert result.frame["row"].to_list() == [0]
    return result.rejects.row(0, named=True)


GOOD = {scan_preferences: CASES["TRL standard"][1], scan_candidates: CASES["candidates"][1]}


@pytest.mark.parametrize("case", CASES)
def test_detection_in_both_directions(case):
    expected, row = CASES[case]
    data = json.dumps(row).encode()
    everything = list(TABLE)
    fitting = {name for name in everything if _native.detect_format(data, [name])[0] == name}
    assert fitting == {expected} | {name for name in everything if (expected, name) in INCLUDED}
    if expected != "candidate_rows":  # read as instructions unless asked for
        assert _native.detect_format(data, [n for n in everything if n != "candidate_rows"])[0] == expected


@pytest.mark.parametrize("name", TABLE)
def test_the_example_of_a_format_is_a_row_of_it(tmp_path, name):
    path = tmp_path / "a.jsonl"
    path.write_text(TABLE[name].example + "\n")
    source = open_source(path, kind=TABLE[name].kind)
    assert source.format == name
    assert source.describe()["first_block"]["rejected"] == 0
    assert all(field.meaning for field in TABLE[name].fields)
    assert set(source.describe()["fields"]) == set(json.loads(TABLE[name].example))


def test_the_page_shows_every_format():
    page = (Path(__file__).parents[3] / "docs/data.md").read_text(encoding="utf-8")
    rows = "".join(f"| `{row.name}` | {row.looks} |\n" for row in TABLE.values())
    assert f"| format | looks like |\n| --- | --- |\n{rows}\n" in page


@pytest.mark.parametrize("container", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("case", PAIRS)
def test_every_pair_means_the_same(tmp_path, case, container):
    _, row = PAIRS[case]
    path = tmp_path / container
    if path.suffix == ".parquet":
        pl.DataFrame([row]).write_parquet(path)
    else:
        jsonl(path, [row])
    result = scan_preferences(path)
    assert result.rejects.is_empty()
    turns = {"prompt": ("user", "Hi"), "chosen": ("assistant", "Hello."), "rejected": ("assistant", "No.")}
    for name, turn in turns.items():
        assert [(m["role"], m["content"], m["extra"]) for m in result.frame[name][0]] == [(*turn, None)]
    if case in ("rlhflow", "shp"):
        assert result.frame.select("score_chosen", "score_rejected").row(0) == (2.0, 1.0)
    made = {"row", *turns, "chosen_complete", "rejected_complete", "score_chosen", "score_rejected"}
    assert set(result.frame.columns) - made == ({"source"} if case == "skywork" else set())


def test_system_tools_and_history(tmp_path):
    row = {"instruction": "b", "input": "c", "history": [["h1", "a1"]], "system": "S", "chosen": "x", "rejected": "y"}
    expected = [("system", "S"), ("user", "h1"), ("assistant", "a1"), ("user", "b\n\nc")]
    assert one(tmp_path, row)["prompt"] == expected
    path = jsonl(tmp_path / "b.jsonl", [{**row, "output": "z", "tools": "[1]"}])
    frame = read_instructions(path)
    assert [(m["role"], m["content"]) for m in frame["prompt"][0]] == expected
    assert frame["tools"][0] == "[1]"
    whole = {name: [{"role": "system", "content": "S"}, user("a"), assistant(name)] for name in ("chosen", "rejected")}
    assert one(tmp_path, {**whole, "system": "S"})["prompt"] == [("system", "S"), ("user", "a")]
    assert rejected(tmp_path, {**whole, "system": "T"})["reason"] == "two_systems"


def test_chat_template_variables(tmp_path):
    row = {**PAIRS["TRL standard"][1], "chat_template_kwargs": {"enable_thinking": False}}
    frame = scan_preferences(jsonl(tmp_path / "a.jsonl", [row])).frame
    assert json.loads(frame["template_kwargs"][0]) == {"enable_thinking": False}
    assert "chat_template_kwargs" not in frame.columns


def test_function_calls_of_sharegpt(tmp_path):
    conversation = [
        said("human", "Hi"),
        said("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        said("observation", "42"),
    ]
    row = {**PAIRS["sharegpt"][1], "conversations": conversation, "tools": '[{"name": "f"}]'}
    frame = scan_preferences(jsonl(tmp_path / "a.jsonl", [row])).frame
    assert [m["role"] for m in frame["prompt"][0]] == ["user", "assistant", "tool"]
    calls = json.loads(frame["prompt"][0][1]["extra"])["tool_calls"]
    assert calls == [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    bad = {**row, "conversations": [said("human", "Hi"), said("function_call", "f(1)")]}
    result = scan_preferences(jsonl(tmp_path / "b.jsonl", [row, bad]))
    assert result.rejects.select("reason", "field").row(0) == ("not_a_tool_call", "conversations[1].value")


# -- where prompt and response part


def test_a_response_may_be_several_messages(tmp_path):
    row = {"prompt": [user("Hi")], "chosen": [CALL, TOOL, assistant("x")], "rejected": [assistant("y")]}
    assert [role for role, _ in one(tmp_path, row)["chosen"]] == ["assistant", "tool", "assistant"]
    whole = {"chosen": [user("Hi"), *row["chosen"]], "rejected": [user("Hi"), *row["rejected"]]}
    assert one(tmp_path, whole) == one(tmp_path, row)


def test_a_call_of_a_tool_is_a_response(tmp_path):
    row = {"prompt": [user("Hi")], "chosen": [CALL], "rejected": [assistant("y")]}
    assert one(tmp_path, row)["chosen"] == [("assistant", "")]


def test_chats_that_part_at_a_tool_part_before_its_call(tmp_path):
    chats = [[user("Hi"), CALL, {**TOOL, "content": text}, assistant("x")] for text in "ab"]
    parts = one(tmp_path, {"chosen": chats[0], "rejected": chats[1]})
    assert parts["prompt"] == [("user", "Hi")]
    assert [role for role, _ in parts["rejected"]] == ["assistant", "tool", "assistant"]


def test_the_shared_start_belongs_to_the_prompt_unless_the_row_decides_otherwise(tmp_path):
    answers = [[CALL, TOOL, assistant(text)] for text in ("x", "y")]
    implicit = one(tmp_path, {"chosen": [user("Hi"), *answers[0]], "rejected": [user("Hi"), *answers[1]]})
    assert [role for role, _ in implicit["prompt"]] == ["user", "assistant", "tool"]
    explicit = one(tmp_path, {"prompt": [user("Hi")], "chosen": answers[0], "rejected": answers[1]})
    assert explicit["prompt"] == [("user", "Hi")]
    turns = [[assistant("a"), user("b"), assistant(text)] for text in ("x", "y")]
    longer = one(tmp_path, {"prompt": [user("Hi")], "chosen": turns[0], "rejected": turns[1]})
    assert [role for role, _ in longer["prompt"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("chosen", "other"),
    [
        (
            [user("a"), assistant("x"), user("b"), assistant("y")],
            [user("a"), assistant("z"), user("b"), assistant("y")],
        ),
        ([user("a"), assistant("x"), user("b"), assistant("y")], [user("a"), assistant("z")]),
        ([user("a"), assistant("x"), assistant("y")], [user("a"), assistant("z")]),
        ([user("a"), assistant("x")], [user("b"), assistant("y")]),
    ],
)
def test_chats_that_part_earlier_are_rejects(tmp_path, chosen, other):
    assert rejected(tmp_path, {"chosen": chosen, "rejected": other})["reason"] == "diverging_chats"


def test_whole_texts_without_a_prompt_are_refused_with_the_remedy(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"chosen": "The sky is blue.", "rejected": "The sky is green."}])
    with pytest.raises(DataError, match="where the prompt ends is not known: give the column prompt"):
        scan_preferences(path)


# -- contents


def test_text_parts_are_joined(tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "\nb"}]
    row = {"prompt": [user(parts)], "chosen": [assistant("x")], "rejected": [assistant("y")]}
    assert one(tmp_path, row)["prompt"] == [("user", "a\nb")]
    image = {**row, "prompt": [user([*parts, {"type": "image", "url": "u"}])]}
    reject = rejected(tmp_path, image)
    assert (reject["reason"], reject["field"]) == ("not_a_string", "prompt[0].content")
    assert "parts that are all {type: text, text}" in reject["rule"]


def test_nulls_of_typed_rows_are_absent_keys(tmp_path):
    rows = [
        {"prompt": [user("Hi", name=None)], "chosen": [CALL], "rejected": [assistant("x", tool_calls=None)]},
        {
            "prompt": [user("Hi", name="Ann")],
            "chosen": [
                assistant("", tool_calls=[{"type": "function", "function": {"name": "g", "arguments": {"x": 1}}}])
            ],
            "rejected": [assistant("x", tool_calls=None)],
        },
    ]
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(tmp_path / "a.parquet")
    frame = scan_preferences(tmp_path / "a.parquet").frame
    assert frame["prompt"][0][0]["extra"] is None
    assert json.loads(frame["prompt"][1][0]["extra"]) == {"name": "Ann"}
    assert "null" not in frame["chosen"][0][0]["extra"]


# -- candidates


@pytest.mark.parametrize("case", ["candidates", "UltraFeedback", "candidates, chats"])
@pytest.mark.parametrize("typed", [False, True])
def test_candidates(tmp_path, case, typed):
    row = {**CASES[case][1], "id": 7}
    frame = read_candidates(pl.DataFrame([row]) if typed else jsonl(tmp_path / "a.jsonl", [row]))
    assert frame["prompt"][0].to_list() == [{"role": "user", "content": "Hi", "extra": None}]
    assert [[m["content"] for m in chat] for chat in frame["responses"][0]] == [["Hello."], ["No."]]
    assert frame["scores"].dtype == pl.List(pl.Float32)
    assert frame["scores"][0].to_list() == [2.0, 1.0]
    assert frame["id"].to_list() == [7]


def test_candidates_without_scores(tmp_path):
    row = {"prompt": "Hi", "responses": ["a", "b"]}
    assert read_candidates(jsonl(tmp_path / "a.jsonl", [row]))["scores"].to_list() == [None]
    row["scores"] = [1, None]
    assert read_candidates(jsonl(tmp_path / "a.jsonl", [row]))["scores"].to_list() == [[1.0, None]]


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"scores": [1]}, "scores_mismatch", "scores"),
        ({"scores": [1, "high"]}, "not_a_number", "scores[1]"),
        ({"responses": ["a", " "]}, "empty_response", "responses[1]"),
        ({"responses": []}, "empty_response", "responses"),
        ({"responses": "a"}, "not_a_list", "responses"),
        ({"responses": ["a", 3]}, "not_a_string", "responses[1]"),
        ({"responses": ["a", [user("b"), assistant("c")]]}, "prompt_mismatch", "prompt"),
        ({"responses": ["a", [assistant("b"), user("c"), assistant("d")]]}, "not_assistant", "responses[1]"),
        ({"prompt": ""}, "empty_prompt", "prompt"),
        ({"prompt": None}, "missing_field", "prompt"),
    ],
)
def test_bad_candidates_are_named(tmp_path, change, reason, field):
    reject = rejected(tmp_path, {**CASES["candidates"][1], **change}, scan_candidates)
    assert (reject["reason"], reject["field"]) == (reason, field)


@pytest.mark.parametrize("typed", [False, True])
def test_one_response_a_row_is_grouped_by_prompt(tmp_path, typed):
    rows = [
        {"prompt": prompt, "response": response, "score": score, "model": response}
        for prompt, response, score in [("p", "a", 1.0), ("q", "b", 2.0), ("p", "c", None), ("p", "", 3.0)]
    ]
    result = scan_candidates(pl.DataFrame(rows) if typed else jsonl(tmp_path / "a.jsonl", rows))
    assert result.format == "candidate_rows"
    assert result.frame["row"].to_list() == [0, 1]
    assert [[c[0]["content"] for c in chats] for chats in result.frame["responses"].to_list()] == [["a", "c"], ["b"]]
    assert result.frame["scores"].to_list() == [[1.0, None], [2.0]]
    assert result.frame["model"].to_list() == [["a", "c"], ["b"]]
    assert result.rejects["row"].to_list() == [3]
    assert result.rows_in == 4


def test_auto_takes_what_a_source_holds(tmp_path):
    for case, kind in [("hh", "preferences"), ("UltraFeedback", "candidates"), ("candidate_rows", "instructions")]:
        assert open_source(jsonl(tmp_path / "a.jsonl", [CASES[case][1]])).kind == kind
