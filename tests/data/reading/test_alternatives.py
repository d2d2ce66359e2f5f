"""Fields that stand in for each other: where two are there they must say the same, or the row is refused by name."""

from __future__ import annotations

import json

import polars as pl
import pytest

from pyprefopt.data.reading.frames import scan_candidates, scan_instructions, scan_preferences
from pyprefopt.data.truncation.dispatch import truncate
from pyprefopt.errors import DataError


def chat(text):
    return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]


def sharegpt(text):
    return [{"from": "human", "value": "Q"}, {"from": "gpt", "value": text}]


PAIR = {"prompt": "Q", "chosen": "good", "rejected": "bad"}
SET = {"prompt": "Q", "responses": ["a", "b"]}
ALPACA = {"instruction": "Q", "chosen": "good", "rejected": "bad"}
# row -> how it is read, the field that says it again, what says the same there, what says another thing
CASES = {
    "chats": ({"messages": chat("A")}, scan_instructions, "conversations", sharegpt("A"), sharegpt("B")),
    "responses": ({"prompt": "Q", "response": "A"}, scan_instructions, "completion", " A", "B"),
    "message": ({"prompt": "Q", "response": "A"}, scan_instructions, "completion", chat("A")[1:], chat("B")[1:]),
    "asked": (SET, scan_candidates, "instruction", "Q", "R"),
    "completions": (SET, scan_candidates, "completions", [{"text": "a"}, {"text": "b"}], ["a", "c"]),
    "candidates": (SET, scan_candidates, "candidates", ["a", "b"], ["a"]),
    "ratings": ({**SET, "scores": [1, 2]}, scan_candidates, "ratings", [1.0, 2.0], [2, 1]),
    "one score": ({"prompt": "Q", "response": "A", "score": 1}, scan_candidates, "rating", "1.0", 2),
    "chosen_score": ({**PAIR, "score_chosen": 1}, scan_preferences, "chosen_score", 1.0, 2),
    "rejected-rating": ({**PAIR, "rejected_score": 0}, scan_preferences, "rejected-rating", 0.0, 1),
    "kwargs": ({**PAIR, "template_kwargs": {"a": 1}}, scan_preferences, "chat_template_kwargs", '{"a":  1}', {"a": 2}),
    "output": (ALPACA, scan_preferences, "output", ["good", "bad"], ["bad", "good"]),
}


def scanned(folder, row, how):
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return how(folder / "rows.jsonl", **({"format": "alpaca"} if "instruction" in row and "chosen" in row else {}))


@pytest.mark.parametrize("case", CASES)
def test_two_statements_are_compared(tmp_path, case):
    row, how, name, same, other = CASES[case]
    alone = scanned(tmp_path, row, how)
    assert alone.rejects.is_empty()
    for order in (lambda one, two: {**one, **two}, lambda one, two: {**two, **one}):
        agreeing = scanned(tmp_path, order(row, {name: same}), how)
        assert agreeing.rejects.is_empty(), agreeing.rejects.to_dicts()
        assert agreeing.frame.height == 1
        found = scanned(tmp_path, order(row, {name: other}), how).rejects
        assert found["reason"].to_list() == ["fields_differ"]
        assert found["rule"][0].endswith("stand for the same, and must say the same")
        told = f"{found['field'][0]} {found['rule'][0]}"
        assert name in told
    for empty in (None, "", [] if isinstance(same, list) else " "):
        filled = scanned(tmp_path, {**row, name: empty}, how)
        assert filled.frame.drop("row").equals(alone.frame.drop("row")), empty


INSIDE = {
    "score": ([{"response": "a", "score": 1, "overall_score": 2}, "b"], "responses[0].score"),
    "text": ([{"response": "a", "text": "c"}, "b"], "responses[0].text"),
    "message": (
        [[{"role": "assistant", "content": "a", "from": "gpt", "value": "c"}], "b"],
        "responses[0][0].value",
    ),
    "role": ([[{"role": "assistant", "content": "a", "from": "human", "value": "a"}], "b"], "responses[0][0].value"),
}


@pytest.mark.parametrize("case", INSIDE)
def test_two_statements_inside_of_a_response_are_compared(tmp_path, case):
    responses, field = INSIDE[case]
    rejects = scanned(tmp_path, {"prompt": "Q", "responses": responses}, scan_candidates).rejects
    assert rejects.select("reason", "field").rows() == [("fields_differ", field)]


def test_scores_beside_scores_in_the_responses(tmp_path):
    responses = [{"response": "a", "score": 1}, {"response": "b"}]
    good, bad = ({"prompt": "Q", "responses": responses, "scores": scores} for scores in ([1, 2], [3, 2]))
    assert scanned(tmp_path, good, scan_candidates).frame["scores"].to_list() == [[1, 2]]
    rejects = scanned(tmp_path, bad, scan_candidates).rejects
    assert rejects.select("reason", "field").rows() == [("fields_differ", "scores")]


def test_notes_beside_a_message_are_no_second_statement(tmp_path):
    noted = [{"role": "assistant", "content": "a", "from": "gpt-4", "value": 3}, {"role": "user", "content": "b"}]
    row = {"prompt": [{"role": "user", "content": "Q"}, *noted], "chosen": "good", "rejected": "bad"}
    assert scanned(tmp_path, row, scan_preferences).rejects.is_empty()
    same = {"role": "assistant", "content": "good", "from": "gpt", "value": "good "}
    assert scanned(tmp_path, {**PAIR, "chosen": [same]}, scan_preferences).rejects.is_empty()


def test_a_text_beside_chosen_and_rejected_is_no_pair(tmp_path):
    found = scanned(tmp_path, {**ALPACA, "output": "a reference answer"}, scan_preferences)
    assert found.frame.height == 1


def test_typed_rows_and_cells(tmp_path):
    rows = {"prompt": ["Q"] * 3, "response": ["A", "A", None], "completion": [None, "B", "C"]}
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame(rows).write_csv(tmp_path / "a.csv")
    for name in ("a.parquet", "a.csv"):
        found = scan_instructions(tmp_path / name)
        assert found.frame["row"].to_list() == [0, 2]
        assert [response[0]["content"] for response in found.frame["response"]] == ["A", "C"]
        assert found.rejects["reason"].to_list() == ["fields_differ"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "responses": [{"response": "one two three", "text": "one two three"}]},
        {"prompt": "Q", "responses": [[{"role": "assistant", "content": "a b", "from": "gpt", "value": "a b"}]]},
        {"instruction": "Q", "chosen": "a b", "rejected": "c d", "output": ["a b", "c d"]},
    ],
)
def test_of_two_texts_that_say_the_same_none_is_cut_alone(tmp_path, row):
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="stand for the same; mend the row"):
        truncate(tmp_path / "in.jsonl", length=1, unit="words")
