"""Spans of text as token masks, and values moved between tokenizations, against slow twins over bytes."""

from __future__ import annotations

import math
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt.data.batching.alignment import spans_to_mask, transfer_values
from pyprefopt.data.tokenization.segments import load_tokenizer, tokenize
from pyprefopt.errors import DataError
from tests.data.frames import (
    REAL_TOKENIZERS,
    SHARED,
    alpaca,
    byte_tokenizer,
    needs_shared,
    preferences,
    word_tokenizer,
)
from tests.reference.transfer import Token, transfer

SPANS = pl.List(pl.Struct({"start": pl.UInt32, "end": pl.UInt32}))
OFFSETS = pl.List(pl.UInt32)
PER_TOKEN = ("starts", "ends", "turns", "mask")

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


def test_offsets_of_different_lengths_are_reported():
    spans, starts, ends = columns([([(0, 1)], [(0, 1), (1, 2)])])
    with pytest.raises(DataError, match="equal lengths"):
        spans_to_mask(spans, starts, ends.list.head(1))


def test_columns_of_other_types_are_reported():
    numbers = pl.Series([[1.0]])
    with pytest.raises(DataError, match=r"spans must be lists of \{start, end\}.*got spans List\(Float64\)"):
        spans_to_mask(numbers, numbers, numbers)


def series(sides, values):
    """The columns of `transfer_values` for lines of (source, target) tokens."""
    columns = {"values": pl.Series(values, dtype=pl.List(pl.Float32))}
    for end, tokens in zip(("from", "to"), zip(*sides, strict=True), strict=True):
        for name, at in (("starts", 0), ("ends", 1)):
            offsets = [[t.span and t.span[at] if t.span else None for t in line] for line in tokens]
            columns[f"{name}_{end}"] = pl.Series(offsets, dtype=OFFSETS)
        columns[f"turns_{end}"] = pl.Series([[t.turn for t in line] for line in tokens], dtype=pl.List(pl.UInt16))
        columns[f"mask_{end}"] = pl.Series([[t.scored for t in line] for line in tokens], dtype=pl.List(pl.Boolean))
    return columns


def moved(sides, values):
    return transfer_values(**series(sides, values)).to_list()


tokens = st.lists(st.builds(Token, st.none() | ranges, st.integers(0, 1), st.booleans()), max_size=8)
numbers = st.floats(-30, 30, width=32)


@st.composite
def two_sides(draw):
    source = draw(tokens)
    return source, draw(tokens), draw(st.lists(numbers, min_size=len(source), max_size=len(source)))


@settings(max_examples=200, deadline=None)
@given(lines=st.lists(two_sides(), min_size=1, max_size=4))
def test_moved_values_equal_the_twin_and_keep_the_total(lines):
    got = moved([line[:2] for line in lines], [line[2] for line in lines])
    for (source, target, values), line in zip(lines, got, strict=True):
        assert line == pytest.approx(transfer(values, source, target), rel=1e-6, abs=1e-5)
        given = sum(value for value, token in zip(values, source, strict=True) if token.scored)
        wanted = given if any(token.scored for token in target) else 0.0
        assert math.fsum(line) == pytest.approx(wanted, rel=1e-6, abs=1e-4)
        assert all(value == 0 for value, token in zip(line, target, strict=True) if not token.scored)


@settings(max_examples=100, deadline=None)
@given(line=two_sides())
def test_equal_tokenizations_give_the_very_same_values(line):
    source, _, values = line
    kept = [value if token.scored else 0.0 for value, token in zip(values, source, strict=True)]
    assert moved([(source, source)], [values]) == [kept]


@st.composite
def split_twice(draw):
    """Two divisions of the same bytes, with the turn's end behind them."""
    size = draw(st.integers(1, 12))
    sides = []
    for _ in range(2):
        cuts = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=6))})
        sides.append([*(Token(span) for span in pairwise(cuts)), Token(None)])
    values = draw(st.lists(numbers, min_size=len(sides[0]), max_size=len(sides[0])))
    return sides[0], sides[1], values


@settings(max_examples=100, deadline=None)
@given(line=split_twice())
def test_a_value_stays_within_its_bytes(line):
    """Between bytes where both tokenizations have an edge, the totals are equal; the end keeps its own value."""
    source, target, values = line
    got = moved([(source, target)], [values])[0]
    edges = sorted({t.span[0] for t in source[:-1]} & {t.span[0] for t in target[:-1]})
    for start, end in zip(edges, [*edges[1:], 99], strict=True):
        ours = math.fsum(v for v, t in zip(got, target, strict=True) if t.span and start <= t.span[0] < end)
        theirs = math.fsum(v for v, t in zip(values, source, strict=True) if t.span and start <= t.span[0] < end)
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-5)
    assert got[-1] == values[-1]


def spans(*ranges, end=0):
    return [Token(span) for span in ranges] + [Token(None)] * end


@pytest.mark.parametrize(
    ("source", "target", "values", "wanted"),
    [
        (spans((0, 4)), spans((0, 1), (1, 4)), [8.0], [2.0, 6.0]),
        (spans((0, 1), (1, 4)), spans((0, 4)), [2.0, 6.0], [8.0]),
        (spans((0, 3), (3, 6)), spans((0, 2), (2, 4), (4, 6)), [3.0, 6.0], [2.0, 3.0, 4.0]),
        (spans((0, 3)), spans((0, 3), (0, 3)), [3.0], [1.5, 1.5]),  # a character spread over two tokens
        (spans((0, 3), (0, 3)), spans((0, 3), (0, 3)), [1.0, 2.0], [1.0, 2.0]),
        (spans((0, 1), (1, 2), (2, 3)), spans((0, 1), (2, 3)), [1.0, 5.0, 2.0], [1.0, 7.0]),  # a space is dropped
        (spans((0, 1), (1, 2), end=1), spans((0, 1), end=1), [1.0, 5.0, 2.0], [1.0, 7.0]),
        (spans((0, 1), (1, 2)), spans((0, 1)), [1.0, 5.0], [6.0]),
        (spans((0, 1), end=2), spans((0, 1), end=1), [1.0, 2.0, 3.0], [1.0, 5.0]),
        (spans((0, 1), end=1), spans((0, 1), end=2), [1.0, 2.0], [1.0, 1.0, 1.0]),
        (spans((0, 1), end=1), spans((0, 1)), [1.0, 2.0], [3.0]),
        (spans((0, 1)), spans((0, 1), end=1), [1.0], [1.0, 0.0]),
        ([Token(None, 1), Token((0, 1), 3)], [Token(None, 1), Token(None, 2), Token((0, 1), 3)], [4.0, 1.0], [4, 0, 1]),
        ([Token(None, 2), Token((0, 1), 3)], [Token(None, 1), Token((0, 1), 3)], [4.0, 1.0], [0.0, 5.0]),
    ],
)
def test_worked_lines(source, target, values, wanted):
    assert moved([(source, target)], [values]) == [wanted]
    assert transfer(values, source, target) == wanted


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_transfer_as_expression_keeps_nulls_and_the_name(engine):
    sides = [(spans((0, 2)), spans((0, 1), (1, 2))), (spans((0, 2)), spans((0, 2))), (spans(), spans())]
    frame = pl.DataFrame(series(sides, [[2.0], None, []])).rename({"values": "logps"})
    frame = pl.concat([frame[:1], frame[1:]], rechunk=False)
    places = {name: pl.col(name) for name in frame.columns if name != "logps"}
    out = frame.lazy().with_columns(transfer_values(pl.col("logps"), **places)).collect(engine=engine)
    assert out["logps"].to_list() == [[1.0, 1.0], None, []]
    bare = transfer_values(*(frame[name] for name in ("logps", "starts_from", "ends_from", "starts_to", "ends_to")))
    assert bare.to_list() == out["logps"].to_list()


def test_bytes_to_words_and_back(tmp_path):
    template = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'user' %}\n\n{% endif %}{% endfor %}</s>"
    bytewise, words = (
        load_tokenizer(make(tmp_path), eos_token="</s>", chat_template=template)
        for make in (byte_tokenizer, word_tokenizer)
    )
    frame = preferences(("why", "yes no", "é yes"))
    one, two = (tokenize(frame, tokenizer)[1:] for tokenizer in (bytewise, words))
    values = pl.Series([[1.0 + i for i in range(n)] for n in one["ids"].list.len()], dtype=pl.List(pl.Float32))
    there = transfer_values(
        values, one["starts"], one["ends"], two["starts"], two["ends"], turns_from=one["turns"], turns_to=two["turns"]
    )
    assert there.list.len().to_list() == two["ids"].list.len().to_list()
    assert there.list.sum().to_list() == pytest.approx(values.list.sum().to_list())
    assert there[0][0] == sum(values[0][:3])  # "yes"
    assert there[1][0] == sum(values[1][:2])  # "é", two tokens of bytes


@needs_shared
@pytest.mark.parametrize("target", REAL_TOKENIZERS)
def test_real_tokenizers_on_real_texts(target):
    """Totals to float32's last digits, and the very same values for the same tokenizer."""
    sides = []
    for name in ("gpt-neox-20b", target):
        path = SHARED / "tokenizers" / f"{name}.json"
        segments = tokenize(alpaca(), load_tokenizer(path, eos_token="<|endoftext|>", chat_template="chatml"))
        sides.append(segments.filter(pl.col("segment") > 0))
    source, other = sides
    numbers = [[-1.0 - (7 * i) % 11 / 4 for i in range(n)] for n in source["ids"].list.len()]
    values = pl.Series(numbers, dtype=pl.List(pl.Float32))
    columns = {f"{n}_{end}": side[n] for end, side in (("from", source), ("to", other)) for n in PER_TOKEN}
    got = transfer_values(values, **columns).to_list()
    assert [math.fsum(line) for line in got] == pytest.approx([math.fsum(line) for line in numbers], rel=1e-6)
    assert (got == numbers) == (target == "gpt-neox-20b")


def test_lines_that_do_not_fit_are_reported():
    columns = series([(spans((0, 1), (1, 2)), spans((0, 2)))], [[1.0, 2.0]])
    with pytest.raises(DataError, match="line 0 has 1 values for 2 tokens"):
        transfer_values(**columns | {"values": columns["values"].list.head(1)})
    with pytest.raises(DataError, match="line 0: starts_to and mask_to must have equal lengths"):
        transfer_values(**columns | {"mask_to": columns["mask_to"].list.head(0)})
    with pytest.raises(DataError, match=r"values must be lists of numbers.*got values List\(String\)"):
        transfer_values(**columns | {"values": pl.Series([["a"]])})
