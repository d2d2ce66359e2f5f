"""Pairs that a cut makes the same are bad rows, wherever ids are cut."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt import data
from pyprefopt.data.files import parts
from pyprefopt.data.tokenization import identical_pairs
from pyprefopt.data.tokenization.identical_pairs import without_identical
from pyprefopt.data.tokenization.segments import tokenize_rows
from pyprefopt.errors import DataError
from tests.data.prepared import contents, run, write_tokenizer
from tests.data.segments import frame
from tests.reference.packing import Group, Response

ROWS = [("pqrs", "pqxy"), ("pqrs", "xyrs"), ("pq", "pq!"), ("p", "q")]  # the first and third begin with the same two
SAME = [0, 2]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def pairs(tmp_path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "p", "chosen": chosen, "rejected": rejected} for chosen, rejected in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def cut_pairs(pairs: list[tuple[list[int], list[int]]], cuts: list[tuple[int, int]]) -> pl.DataFrame:
    """Segments of pairs of ids, at every third row; `cuts` tokens went from chosen and rejected."""
    groups = [
        Group([1], [Response(ids=chosen, kind="chosen"), Response(ids=rejected, kind="rejected")], 3 * row)
        for row, (chosen, rejected) in enumerate(pairs)
    ]
    cut = [count for chosen, rejected in cuts for count in (0, chosen, rejected)]
    return frame(groups).with_columns(cut=pl.Series(cut, dtype=pl.UInt32))


def rejected(folder: Path) -> list[tuple[int, str, str]]:
    lines = map(json.loads, (folder / "rejected.jsonl").read_text().splitlines())
    return [(line["row"], line["reason"], line["file"]) for line in lines]


@pytest.mark.parametrize("budget", [False, True])
def test_prepare_leaves_them_out_and_counts_them(tmp_path, tokenizer, pairs, budget, monkeypatch):
    prompt = run(str(pairs), tokenizer, tmp_path / "whole").manifest["longest_prompt"]
    how = {"max_tokens": prompt + 2} if budget else {"truncation": {"tokens": 2, "cut_end": "template"}}
    with pytest.raises(
        DataError, match=r"2 of 4 rows cannot be used\n  identical_after_cut: 2\n.*row 0, rejected: .ids "
    ):
        run(str(pairs), tokenizer, tmp_path / "out", **how)
    store = run(str(pairs), tokenizer, tmp_path / "out", on_error="skip", **how)
    assert store.rows.tolist() == [1, 3]
    assert store.manifest["rejected"] == {"identical_after_cut": 2}
    assert rejected(tmp_path / "out") == [(row, "identical_after_cut", str(pairs)) for row in SAME]
    run(str(pairs), tokenizer, tmp_path / "again", on_error="skip", **how)
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    monkeypatch.setattr(parts, "BLOCK_ROWS", 1)  # a shard a row; some of them are empty
    blocks = run(str(pairs), tokenizer, tmp_path / "blocks", on_error="skip", **how)
    assert len(blocks.manifest["shards"]) == 2
    assert blocks.table.combine_chunks().equals(store.table.combine_chunks())


def test_tokenize_rejects_them(tokenizer, pairs):
    loaded = data.load_tokenizer(tokenizer)
    read = data.read_preferences(pairs)
    limit = 2 + data.tokenize(read, loaded)["ids"].list.len()[0]
    result = tokenize_rows(read, loaded, max_tokens=limit)
    assert result.rejects["row"].to_list() == SAME
    for source in (read, pairs):
        with pytest.raises(DataError, match=r"identical_after_cut: 2"):
            data.tokenize(source, loaded, max_tokens=limit)
        kept = data.tokenize(source, loaded, max_tokens=limit, on_error="skip")
        assert kept.equals(result.segments)
    assert kept["row"].unique().sort().to_list() == [1, 3]


def test_what_was_not_cut_stays(tmp_path, tokenizer, pairs):
    assert run(str(pairs), tokenizer, tmp_path / "out", truncation={"tokens": 9}).num_rows == 4
    segments = cut_pairs([([2, 3], [2, 3])], [(0, 0)])
    assert without_identical(segments)[0] is segments


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(*[st.lists(st.integers(0, 1), min_size=1, max_size=3)] * 2, st.integers(0, 1), st.integers(0, 1)),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_the_rule_has_a_twin(rows):
    segments = cut_pairs([row[:2] for row in rows], [row[2:] for row in rows])
    wanted = [3 * row for row, (chosen, other, *cuts) in enumerate(rows) if chosen == other and sum(cuts)]
    for given_as, together in ((segments, 1), (segments.to_arrow(), 1 << 14)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(identical_pairs, "_PAIRS", together)
            kept, rejects = without_identical(given_as, "file")
        assert rejects["row"].to_list() == wanted
        assert pl.DataFrame(kept).equals(segments.filter(~pl.col("row").is_in(wanted)))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.lists(
            st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=2), st.sampled_from([None, 1.0, 2.0]),
                      st.integers(0, 1)),
            min_size=1, max_size=4,
        ),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_the_rule_of_candidates_has_a_twin(rows):
    groups = [
        Group([1], [Response(ids=ids, kind="response", score=score) for ids, score, _ in row], 3 * number)
        for number, row in enumerate(rows)
    ]
    cut = [count for row in rows for count in (0, *(gone for *_, gone in row))]
    segments = frame(groups).with_columns(cut=pl.Series(cut, dtype=pl.UInt32))
    wanted = []
    for number, row in enumerate(rows):
        for ids in {tuple(ids) for ids, *_ in row}:
            own = [(score, gone) for other, score, gone in row if tuple(other) == ids]
            if len({score for score, _ in own if score is not None}) > 1 and any(gone for _, gone in own):
                wanted.append(3 * number)
                break
    kept, rejects = without_identical(segments, "file")
    assert rejects["row"].to_list() == wanted
    assert set(rejects["rule"]) <= {"responses of different scores must differ in what the cut keeps"}
    assert kept.equals(segments.filter(~pl.col("row").is_in(wanted)))


@pytest.mark.parametrize("cut", [{"tokens": 2}, {"length": 2, "unit": "characters"}])
def test_candidates_that_a_cut_makes_the_same_are_left_out(tmp_path, tokenizer, cut):
    path = tmp_path / "sets.jsonl"
    sets = [(["pqrs", "pqxy"], [1, 0]), (["pqrs", "pqxy"], [1, 1]), (["pqrs", "xyrs"], [1, 0])]
    path.write_text("".join(json.dumps({"prompt": "p", "responses": r, "scores": s}) + "\n" for r, s in sets))
    store = run(str(path), tokenizer, tmp_path / "out", truncation=cut, on_error="skip")
    assert store.rows.tolist() == [1, 2]
    assert rejected(tmp_path / "out") == [(0, "identical_after_cut", str(path))]
    (line,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert (line["field"], line["rule"]) == (
        "responses", "responses of different scores must differ in what the cut keeps",
    )  # fmt: skip
