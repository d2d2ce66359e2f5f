"""What is read depends on no order of the rows, and on no field that is not read."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from pyprefopt.data import load_tokenizer, prepare, tokenize
from pyprefopt.data.reading.blocks import parse_block
from pyprefopt.data.reading.candidate_sets import open_candidates
from pyprefopt.data.reading.frames import scan_candidates, scan_preferences, scan_source
from pyprefopt.data.reading.sources import open_source
from pyprefopt.errors import DataError

TOKENIZER = Path(__file__).parents[3] / "rust/fuzz/tiny-tokenizer.json"
PLAIN = {"prompt": "Q", "chosen": "good", "rejected": "bad"}
CHATS = {
    "prompt": "Q",
    **{
        side: [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]
        for side, text in (("chosen", "good"), ("rejected", "bad"))
    },
}
ALPACA = {"instruction": "Q", "chosen": "good", "rejected": "bad"}
HH = {side: f"\n\nHuman: Q\n\nAssistant: {text}" for side, text in (("chosen", "good"), ("rejected", "bad"))}
EXAMPLE = {"prompt": "Q", "response": "good"}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parsed(path):
    source = open_source(path)
    blocks = [parse_block(block, source.format) for block in source.blocks()]
    rejects = pl.concat([block.rejects for block in blocks])
    used = sum(block.table.num_rows for block in blocks)
    return source.format, used, sorted(rejects["reason"].to_list()), source.fields


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([CHATS] + [PLAIN] * 5, ("preference", 6, [])),
        ([CHATS] * 6, ("ultrafeedback", 6, [])),
        ([ALPACA] * 2 + [PLAIN] * 4, ("preference", 4, ["another_format"] * 2)),
        ([ALPACA] * 3 + [PLAIN] * 3, ("alpaca", 3, ["another_format"] * 3)),
        ([HH] * 4 + [PLAIN, ALPACA], ("hh", 4, ["another_format"] * 2)),
        ([HH, HH, PLAIN, PLAIN] + [EXAMPLE] * 3, ("hh", 2, ["another_format"] * 5)),
        ([EXAMPLE] * 4 + [PLAIN] * 2, ("prompt_response", 4, ["another_format"] * 2)),
    ],
)
def test_the_order_of_rows_changes_nothing(tmp_path, rows, expected):
    orders = [rows, rows[::-1], rows[::2] + rows[1::2], rows[3:] + rows[:3]]
    for number, order in enumerate(orders):
        found = parsed(jsonl(tmp_path / f"{number}.jsonl", order))
        assert found[:3] == expected
        array = tmp_path / f"{number}.json"
        array.write_text(json.dumps(order))
        assert parsed(array)[:3] == expected


def test_a_row_of_another_format_says_which(tmp_path):
    rejects = scan_preferences(jsonl(tmp_path / "a.jsonl", [PLAIN, PLAIN, ALPACA])).rejects
    assert rejects["rule"][0] == (
        "a row must be of format preference, which most of the first rows have; this one is of format alpaca"
    )
    assert rejects["remedy"][0] == "read the rows of each format apart"


@pytest.mark.parametrize(
    ("row", "reason", "other"),
    [
        ({"prompt": "p", "completion": "c"}, "another_format", "prompt_response"),
        ({"prompt": "p", "response": "c", "score": 1}, "another_format", "prompt_response"),
        ({"prompt": "p", "responses": ["a", "b"]}, "another_format", "candidates"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "another_format",
            "messages",
        ),
        ({"prompt": "p", "chosen": "c", "response": "d"}, "missing_field", ""),
        ({"prompt": "p", "rejected": None, "chosenn": "c"}, "missing_field", ""),
    ],
)
def test_a_row_of_another_kind_says_which(tmp_path, row, reason, other):
    rejects = scan_preferences(jsonl(tmp_path / "a.jsonl", [PLAIN, PLAIN, row])).rejects
    assert rejects["reason"].to_list() == [reason]
    assert rejects["rule"][0].endswith(f"this one is of format {other}") or not other


def test_weights_and_labels_are_seen_in_any_row(tmp_path):
    weighted = {**PLAIN, "chosen_weights": [1.0]}
    for order in itertools.permutations([PLAIN, PLAIN, weighted]):
        assert open_source(jsonl(tmp_path / "a.jsonl", order)).named(["chosen_weights"]) == ["chosen_weights"]
    labelled = {**EXAMPLE, "label": False}
    for rows in ([EXAMPLE] * 200 + [labelled], [labelled] + [EXAMPLE] * 200):
        with pytest.raises(DataError, match="'label' true or false"):
            open_source(jsonl(tmp_path / "a.jsonl", rows))


# -- fields that are not read

TWO_TYPES = [1, {"a": 1}, [2], "x", None, True]


def test_a_field_of_two_types_that_nobody_reads(tmp_path):
    tokenizer = load_tokenizer(TOKENIZER, eos_token="<|endoftext|>", chat_template="plain")
    rows = [{**PLAIN, "chosen": f"good {number}", "m": value} for number, value in enumerate(TWO_TYPES)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert prepare(path, tokenizer, tmp_path / "out").num_rows == len(rows)
    assert tokenize(path, tokenizer)["row"].n_unique() == len(rows)
    weighted = [{**row, "chosen_weights": None, "rejected_weights": None} for row in rows]
    path = jsonl(tmp_path / "b.jsonl", weighted)
    assert prepare(path, tokenizer, tmp_path / "weighted").num_rows == len(rows)


def test_columns_are_read_by_name(tmp_path):
    rows = [{**PLAIN, "chosen": f"good {number}", "m": m, "mine": 1} for number, m in enumerate(TWO_TYPES)]
    source = open_source(jsonl(tmp_path / "a.jsonl", rows))
    assert "m" not in scan_source(source).frame.columns
    assert scan_source(source, ["mine", "absent"]).frame["mine"].to_list() == [1] * len(rows)
    assert "absent" not in scan_source(source, ["mine", "absent"]).frame.columns


def test_candidates_of_a_row_each_with_a_field_of_two_types(tmp_path):
    rows = [
        {"prompt": "Q", "response": str(number), "score": number, "m": value} for number, value in enumerate(TWO_TYPES)
    ]
    sets = open_candidates(jsonl(tmp_path / "a.jsonl", rows))
    (block,) = sets.blocks()
    assert parse_block(block, sets.format).table["scores"].to_pylist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]


def test_columns_of_other_formats_need_not_be_texts(tmp_path):
    odd = pl.DataFrame([PLAIN]).with_columns(input=pl.Series([b"\xff"]), history=pl.Series([b"\xff"]), mine=b"\xff")
    odd.write_parquet(tmp_path / "a.parquet")
    for source in (odd, tmp_path / "a.parquet"):
        assert scan_preferences(source).frame["chosen"].list.len().to_list() == [1]
        opened = open_source(source)
        assert opened.first_block.rows.column_names == ["prompt", "chosen", "rejected", "input", "history"]
        assert opened.describe()["carried"] == ["input", "history", "mine"]
    with pytest.raises(DataError, match="cannot be read as text"):
        scan_preferences(odd.with_columns(chosen=pl.lit(b"\xff")))


# -- scores


def test_decimal_scores_are_numbers(tmp_path):
    scores = pl.Series([Decimal("1.50"), None])
    frame = pl.DataFrame([PLAIN, {**PLAIN, "chosen": "x"}]).with_columns(score_chosen=scores)
    frame.write_parquet(tmp_path / "a.parquet")
    assert scan_preferences(tmp_path / "a.parquet").frame["score_chosen"].to_list() == [1.5, None]
    some = pl.DataFrame({"prompt": ["q"], "responses": [["a", "b"]], "scores": [[Decimal("1.5"), Decimal(2)]]})
    assert scan_candidates(some).frame["scores"].to_list() == [[1.5, 2.0]]
    rows = {"prompt": ["q", "q"], "response": ["a", "b"], "score": [Decimal("0.5"), Decimal("1")]}
    assert scan_candidates(pl.DataFrame(rows)).frame["scores"].to_list() == [[0.5, 1.0]]


@pytest.mark.parametrize("score", [float("inf"), float("-inf")])
def test_infinite_scores_are_bad_rows(score):
    frame = pl.DataFrame([{**PLAIN, "chosen": text} for text in "abc"])
    frame = frame.with_columns(score_chosen=pl.Series([1.0, score, float("nan")]))
    result = scan_preferences(frame)
    assert result.rejects.select("row", "reason", "field").rows() == [(1, "not_a_number", "score_chosen")]
    assert result.frame["score_chosen"].to_list() == [1.0, None]
    some = pl.DataFrame({"prompt": ["q"], "responses": [["a", "b"]], "scores": [[1.0, score]]})
    assert scan_candidates(some).rejects["field"].to_list() == ["scores[1]"]
    nested = pl.DataFrame({"prompt": ["q"], "responses": [[{"text": "a", "score": score}]]})
    assert scan_candidates(nested).rejects["field"].to_list() == ["responses[0].score"]


@pytest.mark.parametrize("score", ["1e39", "-1e39", "1e400", '"inf"', '"high"'])
def test_scores_that_float32_does_not_hold_are_bad_rows(tmp_path, score):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**PLAIN, "score_chosen": 5}).replace("5", score) + "\n")
    assert scan_preferences(path).rejects["reason"].to_list() == ["not_a_number"]


# -- size


def test_long_rows_take_time_in_proportion(tmp_path):
    """Quadratic work on these would take an hour."""
    count = 100_000
    turns = "".join(f"\n\nHuman: a{number}\n\nAssistant: b" for number in range(count // 2))
    rows = [
        {"prompt": turns + "\n\nHuman: q\n\nAssistant:", "chosen": " x", "rejected": " y"},
        {"prompt": "q", "chosen": turns + " x", "rejected": turns + " y"},
        {**PLAIN, **{f"k{number}": 1 for number in range(9_000)}},
        {**PLAIN, "prompt": [{"role": "user", "content": "q", **{f"k{number}": 1 for number in range(count)}}]},
    ]
    result = scan_preferences(jsonl(tmp_path / "a.jsonl", rows))
    assert result.frame["prompt"].list.len().to_list() == [count + 1, 1, 1]
    assert result.rejects["reason"].to_list() == ["prompt_mismatch"]
