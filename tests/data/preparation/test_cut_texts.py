"""Texts that are cut before they are tokenized: as `data.truncate` and then `data.tokenize` do it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pyprefopt import data
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import ConfigError, DataError
from tests.data.prepared import run, small_blocks, write_tokenizer

ROWS = [
    {"prompt": f"say {n}", "chosen": f"näive {n} answer, longer" + " 字" * n, "rejected": f"no {n}" + "!" * (n % 5)}
    for n in range(20)
]
SETS = [
    {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"], f"so {n}?"], "scores": [2.0, 1.0, 0.5]}
    for n, row in enumerate(ROWS)
]
CUTS: list[dict[str, Any]] = [
    {"ratio": 0.5, "unit": "characters", "rounding": "floor"},
    {"ratio": 0.4, "unit": "characters", "rounding": "floor", "cut_end": "template"},
    {"length": 6, "unit": "characters"},
    {"ratio": 0.6, "unit": "words", "ratio_base": "shared_min"},
    {"length": 1, "unit": "sentences", "cut_end": "template"},
    {"ratio": 1, "unit": "characters"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(store: SegmentStore) -> pl.DataFrame:
    return pl.DataFrame(store.table)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize(("rows", "read"), [(ROWS, data.read_preferences), (SETS, data.read_candidates)])
def test_prepared_is_truncated_and_then_tokenized(
    rows: list[dict[str, Any]], read: Any, cut: dict[str, Any], tokenizer: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from pyprefopt.data.files import parts

    monkeypatch.setattr(parts, "BLOCK_BYTES", parts.BLOCK_BYTES)
    monkeypatch.setattr(parts, "BLOCK_ROWS", parts.BLOCK_ROWS)
    small_blocks()
    path = write(tmp_path / "rows.jsonl", rows)
    found = lines(run(path, tokenizer, tmp_path / "out", truncation=cut))
    shorter = data.truncate(read(path), **cut)
    wanted = data.tokenize(shorter, tokenizer)
    for name in ("row", "segment", "ids", "mask", "starts", "ends"):
        assert found[name].to_list() == wanted[name].to_list(), name
    gone = [count for name in shorter.columns if name.endswith("_cut") for count in shorter[name].explode()]
    assert sorted(found.filter(pl.col("segment") > 0)["cut"]) == sorted(gone)
    # and the same by way of a file
    there = data.truncate(path, out=tmp_path / "cut.jsonl", **cut)
    assert data.tokenize(there, tokenizer)["ids"].to_list() == found["ids"].to_list()


def test_an_end_of_turn_follows_what_is_whole_alone(tokenizer: Path, tmp_path: Path) -> None:
    """By hand, in bytes: of `abcd` and `ab` the first two characters are kept."""
    eos = data.load_tokenizer(tokenizer).eos_token_id
    for rows, ends in (
        ([{"prompt": "p", "chosen": "abcd", "rejected": "xy"}], [False, True]),
        ([{"prompt": "p", "responses": ["abcd", "xy"], "scores": [1, 0]}], [False, True]),
    ):
        path = write(tmp_path / f"{len(rows[0])}.jsonl", rows)
        for end, wanted in (("none", ends), ("template", [True, True])):
            cut = {"length": 2, "unit": "characters", "cut_end": end}
            found = lines(
                run(path, tokenizer, tmp_path / f"{len(rows[0])}-{end}-{'chosen' in rows[0]}", truncation=cut)
            )
            responses = found.filter(pl.col("segment") > 0)
            assert [ids[-1] == eos for ids in responses["ids"].to_list()] == wanted
            assert responses["cut"].to_list() == [2, 0]
            assert [max(filter(None, places)) for places in responses["ends"].to_list()] == [2, 2]


def test_minimum_response_tokens_are_those_of_whole_responses(tokenizer: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": chosen, "rejected": "long enough"} for chosen in ("abcdefgh", "ab", "a", "abcdefg")
    ]
    cut = {"length": 1, "unit": "characters"}
    path = write(tmp_path / "rows.jsonl", rows)
    by_characters = run(path, tokenizer, tmp_path / "one", truncation=cut, min_response_tokens=4, on_error="skip")
    by_tokens = run(path, tokenizer, tmp_path / "two", truncation={"tokens": 1}, min_response_tokens=4, on_error="skip")
    assert set(lines(by_characters)["row"]) == set(lines(by_tokens)["row"]) == {0, 3}
    assert by_characters.manifest["rejected"] == {"response_too_short": 2}


@pytest.mark.parametrize("end", ["none", "template"])
@pytest.mark.parametrize("side", ["chosen", "responses"])
def test_spans_of_weights_end_with_a_cut_text(side: str, end: str, tokenizer: Path, tmp_path: Path) -> None:
    spans = [{"start": 0, "end": 2, "weight": 2.0}, {"start": 3, "end": 8, "weight": 3.0}]
    row: dict[str, Any] = {"prompt": "p", "chosen": "abcdefgh", "rejected": "xyzxyz", "chosen_weights": spans}
    if side == "responses":
        row = {"prompt": "p", "responses": ["abcdefgh", "xyzxyz"], "scores": [1, 0], "responses_weights": [spans, None]}
    path = write(tmp_path / "rows.jsonl", [row])
    cut = {"length": 4, "unit": "characters", "cut_end": end}
    found = lines(run(path, tokenizer, tmp_path / "out", truncation=cut)).filter(segment=1)
    assert found["user_weights"].to_list() == [[2, 1, 3] + [1] * (end == "template")]  # ab is one token
    there = data.truncate(path, out=tmp_path / "cut.jsonl", **cut)
    again = lines(run(there, tokenizer, tmp_path / "again")).filter(segment=1)
    assert again["user_weights"].to_list() == found["user_weights"].to_list()


def test_weights_of_tokens_are_refused_where_texts_are_cut(tokenizer: Path, tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "abcd", "rejected": "xy", "chosen_weights": [1.0, 1.0, 1.0, 2.0]}
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=r"a weight for each token has no place where the text was cut .*; give spans"):
        run(path, tokenizer, tmp_path / "out", truncation={"length": 2, "unit": "characters"})


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({"ratio": 0.5, "unit": "characters", "cut_end": "eos"}, "cut_end must be 'none' or 'template' for text"),
        ({"tokens": 2, "unit": "characters"}, "unit must be 'tokens' with tokens, got 'characters'; give length 2"),
        ({"unit": "characters"}, "truncate must be given exactly one of ratio, length and tokens, got none"),
    ],
)
def test_settings_that_no_text_can_honour(cut: dict[str, Any], message: str, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(write(tmp_path / "rows.jsonl", ROWS), tokenizer, tmp_path / "out", truncation=cut)
    assert not (tmp_path / "out").exists()


def test_flags_of_candidates_are_as_many_as_responses(tokenizer: Path, tmp_path: Path) -> None:
    rows = [SETS[0] | {"responses_complete": [True, False]}, SETS[1] | {"responses_complete": [True, "so", None]}]
    result = data.reading.frames.scan_candidates(write(tmp_path / "rows.jsonl", rows))
    assert result.rejects.select("row", "field", "reason").rows() == [
        (0, "responses_complete", "flags_mismatch"), (1, "responses_complete[1]", "not_a_boolean"),
    ]  # fmt: skip
    assert "as many as responses, 3; got 2" in result.rejects["rule"][0]
    named = [{"prompt": "p", "completions": ["abc", "de"], "scores": [1, 0], "completions_complete": [False, None]}]
    frame = data.read_candidates(write(tmp_path / "named.jsonl", named))
    assert frame["responses_complete"].to_list() == [[False, True]]
    frame.write_parquet(tmp_path / "named.parquet")
    assert data.read_candidates(str(tmp_path / "named.parquet"))["responses_complete"].to_list() == [[False, True]]
    pairs = data.pick_pairs(frame, pick="all").pairs
    assert pairs.select("chosen_complete", "rejected_complete").row(0) == (False, True)
    csv = tmp_path / "rows.csv"
    csv.write_text('prompt,responses,scores,responses_complete\np,"[""abc"", ""de""]","[1, 0]","[false, true]"\n')
    assert data.read_candidates(str(csv))["responses_complete"].to_list() == [[False, True]]


def test_null_flags_of_candidates_are_whole_until_they_are_cut(tokenizer: Path, tmp_path: Path) -> None:
    sets = {"prompt": ["p", "q"], "responses": [["abcd", "xy"]] * 2, "scores": [[1.0, 2.0]] * 2}
    frame = pl.DataFrame(sets | {"responses_complete": [[None, False], None]})
    cut = data.truncate(frame, length=2, unit="characters")
    assert cut["responses_complete"].to_list() == [[False, False], [False, True]]
    whole = data.truncate(frame, length=2, unit="characters", cut_end="template")
    assert whole["responses_complete"].to_list() == [[True, False], [True, True]]
    frame.write_parquet(tmp_path / "sets.parquet")
    there = data.truncate(tmp_path / "sets.parquet", length=2, unit="characters")
    eos = data.load_tokenizer(tokenizer).eos_token_id
    ends = data.tokenize(there, tokenizer).filter(pl.col("segment") > 0)["ids"].list.last().to_list()
    assert [end == eos for end in ends] == [False, False, False, True]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([[True]], r"column 'responses_complete' must have a flag for each of the 2 responses, got 1"),
        ([["yes", "no"]], r"column 'responses_complete' must hold lists of booleans"),
        ([True], r"column 'responses_complete' must hold lists of booleans"),
    ],
)
def test_flags_of_a_frame_are_looked_at_wherever_it_goes(flags: list[Any], message: str, tokenizer: Path) -> None:
    frame = data.read_candidates(pl.DataFrame({"prompt": ["p"], "responses": [["abc", "de"]], "scores": [[1.0, 2.0]]}))
    frame = frame.with_columns(responses_complete=pl.Series(flags))
    for step in (
        lambda: data.truncate(frame, length=1, unit="characters"),
        lambda: data.tokenize(frame, tokenizer),
        lambda: data.pick_pairs(frame, pick="all"),
    ):
        with pytest.raises(DataError, match=message):
            step()


def test_flags_under_another_name_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "responses": ["abc", "de"], "scores": [1, 0], "completions_complete": [False, True]}]
    assert data.read_candidates(write(tmp_path / "a.jsonl", rows))["responses_complete"].to_list() == [[False, True]]
    named = [{"prompt": "p", "answers": ["abcd", "d"], "scores": [1, 0]}]
    there = data.truncate(
        write(tmp_path / "b.jsonl", named), length=2, unit="characters", columns={"responses": "answers"}
    )
    columns = {"responses": "answers"}
    assert data.read_candidates(there, columns=columns)["responses_complete"].to_list() == [[False, True]]
    pairs = [{"prompt": "p", "good": "abcd", "bad": "x"}]
    columns = {"chosen": "good", "rejected": "bad"}
    for name in ("c.jsonl", "c.parquet", "c.csv"):
        if name == "c.jsonl":
            write(tmp_path / name, pairs)
        else:
            getattr(pl.DataFrame(pairs), f"write_{name[2:]}")(tmp_path / name)
        cut = data.truncate(tmp_path / name, length=2, unit="characters", columns=columns)
        read = data.read_preferences(cut, columns=columns)
        assert read.select("chosen_complete", "rejected_complete").row(0) == (False, True), name
        assert read["chosen_cut"].cast(pl.Int64).item() == 2
    plain = [{"prompt": "p", "good": "ab", "bad": "x", "chosen_complete": False}]  # ours, of their response
    assert data.read_preferences(write(tmp_path / "d.jsonl", plain), columns=columns)["chosen_complete"].item() is False


def test_what_a_cut_leaves_empty_is_so_by_the_cut(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "  abcd", "rejected": "xyz"}, {"prompt": "p", "chosen": "ab", "rejected": "xyz"}]
    path = write(tmp_path / "rows.jsonl", rows)
    store = run(path, tokenizer, tmp_path / "out", truncation={"length": 2, "unit": "characters"}, on_error="skip")
    line = json.loads((tmp_path / "out" / "rejected.jsonl").read_text())
    assert (line["row"], line["field"], line["reason"]) == (0, "chosen", "empty_after_cut")
    assert "in what the cut keeps" in line["rule"]
    assert store.num_rows == 1


def test_counts_of_an_earlier_cut_of_candidates_add_up(tokenizer: Path, tmp_path: Path) -> None:
    row = {
        "prompt": "p", "responses": ["qzxj", "xyzw"], "scores": [3, 2], "responses_complete": [False, True],
        "responses_weights": [[{"start": 0, "end": 9, "weight": 2.0}], None], "responses_cut": [5, 0],
    }  # fmt: skip
    path = write(tmp_path / "rows.jsonl", [row])
    found = lines(run(path, tokenizer, tmp_path / "out", truncation={"length": 3, "unit": "characters"}))
    assert found["user_weights"].to_list()[1] == [2.0] * len(found["ids"][1])
    assert found["cut"].to_list() == [0, 6, 1]
