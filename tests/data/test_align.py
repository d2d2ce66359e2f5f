"""Spans of text as token masks, against a slow twin over bytes."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt.data.align import spans_to_mask
from pyprefopt.data.tokenize import load_tokenizer, tokenize
from pyprefopt.errors import DataError
from tests.data.frames import byte_tokenizer, preferences

SPANS = pl.List(pl.Struct({"start": pl.UInt32, "end": pl.UInt32}))
OFFSETS = pl.List(pl.UInt32)

ranges = st.tuples(st.integers(0, 12), st.integers(0, 4)).map(lambda pair: (pair[0], pair[0] + pair[1]))
line = st.tuples(st.none() | st.lists(ranges, max_size=3), st.lists(st.none() | ranges, max_size=6))


def columns(lines):
    spans = [None if s is None else [{"start": a, "end": b} for a, b in s] for s, _ in lines]
    starts, ends = ([[None if t is None else t[side] for t in tokens] for _, tokens in lines] for side in (0, 1))
    return (
        pl.Series("planted", spans, dtype=SPANS),
        pl.Series("starts", starts, dtype=OFFSETS),
        pl.Series("ends", ends, dtype=OFFSETS),
    )


def overlaps(spans, token):
    return token is not None and any(set(range(*token)) & set(range(*span)) for span in spans or [])


def twin(lines):
    return [[overlaps(spans, token) for token in tokens] for spans, tokens in lines]


@settings(max_examples=80, deadline=None)
@given(lines=st.lists(line, max_size=5))
def test_mask_equals_the_twin(lines):
    mask = spans_to_mask(*columns(lines))
    assert mask.to_list() == twin(lines)
    assert (mask.name, mask.dtype) == ("planted", pl.List(pl.Boolean))


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_expressions_and_chunks(engine):
    lines = [([(0, 2)], [(0, 1), (1, 3), None]), (None, [(0, 1)]), ([(5, 6)], [(4, 6), (6, 7)])]
    frame = pl.DataFrame(columns(lines))
    frame = pl.concat([frame[:1], frame[1:]], rechunk=False)
    out = frame.lazy().select(mask=spans_to_mask(pl.col("planted"), pl.col("starts"), pl.col("ends")))
    assert out.collect(engine=engine)["mask"].to_list() == twin(lines)
    series = spans_to_mask(frame["planted"], frame["starts"].rechunk(), frame["ends"])
    assert series.to_list() == twin(lines)


def test_planted_words_of_a_response(tmp_path):
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path), eos_token="</s>", chat_template="plain")
    segments = tokenize(preferences(("why", "c ab é", "c")), tokenizer)
    spans = pl.Series([None, [{"start": 2, "end": 4}, {"start": 6, "end": 7}], []], dtype=SPANS)
    mask = spans_to_mask(spans, segments["starts"], segments["ends"])
    # " c", " a" (not the space before: the token begins with it) …
    marked = [i for m, i in zip(mask.to_list()[1], segments["ids"].to_list()[1], strict=True) if m]
    assert marked == tokenizer.encode(pl.Series([" ab"])).to_list()[0] + tokenizer.encode(pl.Series(["é"])).to_list()[0]
    assert not any(mask.to_list()[0] + mask.to_list()[2])


def test_offsets_of_different_lengths_are_told():
    spans, starts, ends = columns([([(0, 1)], [(0, 1), (1, 2)])])
    with pytest.raises(DataError, match="equal lengths"):
        spans_to_mask(spans, starts, ends.list.head(1))


def test_columns_of_other_types_are_told():
    numbers = pl.Series([[1.0]])
    with pytest.raises(DataError, match=r"spans must be lists of \{start, end\}.*got spans List\(Float64\)"):
        spans_to_mask(numbers, numbers, numbers)
