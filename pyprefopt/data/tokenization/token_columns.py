"""User weights: a number per response token, given as such or as spans of text, brought onto the tokens.

The column `{response}_weights` (chosen_weights, rejected_weights; responses_weights of candidates, response_weights of
instructions) stands beside the column `{response}`. Each response's entry is one of
- list<number>: one weight for each token of its content, in order;
- list<{start, end, weight}>: spans of its content, in characters, half open, in any order, none overlapping another.
  A character outside of all spans weighs 1. A token weighs the mean over its bytes that are no ASCII white space
  (of ` word` the word counts), or over all its bytes where it has no other;
- null: every token weighs 1.
The content is that of the response's last message. Tokens that the template writes (the end of turn) and those of
earlier messages weigh 1. A weight is finite and >= 0: a negative one would turn a token's gradient round.
Other numbers of tokens come the same way, under a name of their own (`TokenColumn`): rewards of the data are 0 where
none is given, and may be negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyprefopt.data.reading.rejects import REJECTS
from pyprefopt.data.store.segments import USER_WEIGHTS
from pyprefopt.errors import DataError

# Units that were cut off a text: spans may then reach beyond its end.
CUT_COUNTS = ("chosen_cut", "rejected_cut", "responses_cut")
RESPONSES = ("chosen", "rejected", "response", "responses")
_LINES = 2048  # responses that are worked on at a time: their bytes lie in memory as numbers
_SPACE = np.isin(np.arange(256), np.frombuffer(b" \t\n\v\f\r", np.uint8))
_SHAPES = "lists of numbers (one per token of the content) or of {start, end, weight} (spans of characters)"

Problem = tuple[str, Any, str, str]  # place in the list, value, rule, remedy


@dataclass(frozen=True)
class TokenColumn:
    """What the columns `{response}_{name}` hold for tokens."""

    name: str = "weights"
    noun: str = "weight"  # what errors call one value
    default: float = 1.0  # of tokens and characters that are given none
    signed: bool = False  # a value may be negative

    @property
    def rule(self) -> str:
        """What each value must be."""
        return f"a {self.noun} must be a finite number" + ("" if self.signed else " >= 0")

    @property
    def remedy(self) -> str:
        """What to do about a value that is not."""
        if self.signed:
            return "mend it, or leave it out"
        return f"clamp it or leave it out: a negative {self.noun} would turn the token's gradient round"

    def accepts(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which values keep the rule, as float32."""
        with np.errstate(over="ignore"):
            return np.isfinite(values.astype(np.float32)) & (self.signed | (values >= 0))


WEIGHTS = TokenColumn()


def weight_columns(names: Sequence[str], kind: TokenColumn = WEIGHTS) -> list[str]:
    """Those of the columns that hold user weights (or values of another kind), in the order of the responses."""
    return [f"{name}_{kind.name}" for name in RESPONSES if f"{name}_{kind.name}" in names and name in names]


def attach_weights(
    segments: pl.DataFrame, frame: pl.DataFrame, kind: TokenColumn = WEIGHTS, *, by_texts: bool = False
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Add the column `user_weights` (list<f32>, null for prompts) to segments.

    Args:
        segments: of `tokenize_rows`, with offsets, before any truncation, which then cuts the weights along.
        frame: the rows that they were made of.
        kind: which columns of `frame` are taken, and what holds for their values.
        by_texts: what is left out of a response was cut off its text, before there were tokens: a list of one value a
            token is then refused where something was cut.

    Returns:
        The segments without the rows of bad weights, and rejects of schema REJECTS: each bad row's first fault.

    Raises:
        DataError: a column is of a type that holds no weights, or the segments have no offsets.

    Example:
        >>> spans = [[{"start": 0, "end": 6, "weight": 2.0}]]  # of one row
        >>> pairs = pairs.with_columns(chosen_weights=pl.Series(spans))
        >>> weighted, rejects = attach_weights(tokenize_rows(pairs, tokenizer).segments, pairs)
    """
    if "starts" not in segments.columns:
        raise DataError("user weights need the tokens' places in the text; tokenize with offsets=True")
    tokens = _Tokens(segments.filter(pl.col("segment") > 0))
    weights, bad = np.full(len(tokens.starts), kind.default, np.float32), []
    for name in weight_columns(frame.columns, kind):
        lines, wrong = _lines(frame, name, name.removesuffix(f"_{kind.name}"))
        bad.append(wrong)
        for shape, part in _by_shape(lines.join(tokens.lines, on=("row", "segment"), maintain_order="left"), name):
            fill = partial(_fill_tokens, by_texts=by_texts) if shape == "tokens" else _fill_spans
            bad += [_rejects(some, fill(some, tokens, weights, kind)) for some in part.iter_slices(_LINES)]
    rejects = pl.concat([REJECTS.to_frame(), *bad]).unique("row", keep="first", maintain_order=True).sort("row")
    counts = np.where(segments["segment"].to_numpy() == 0, 0, segments["ids"].list.len().to_numpy())
    column = _lists(weights, counts, segments["segment"].to_numpy() == 0)
    weighted = segments.with_columns(column.alias(USER_WEIGHTS))
    return weighted.filter(~pl.col("row").is_in(rejects["row"].implode())), rejects


class _Tokens:
    """The tokens of all responses, flat."""

    def __init__(self, responses: pl.DataFrame) -> None:
        self.starts, self.is_content = _flat_places(responses["starts"])
        self.ends, _ = _flat_places(responses["ends"])
        offsets = np.append(0, np.cumsum(responses["ids"].list.len().to_numpy(), dtype=np.int64))
        before = np.append(0, np.cumsum(self.is_content))[offsets]
        self.lines = responses.select("row", "segment", left_out="cut").with_columns(
            first=pl.Series(before[:-1], dtype=pl.Int64), count=pl.Series(np.diff(before), dtype=pl.Int64)
        )  # `first`: the line's first content token, as an index into `content`

    @cached_property
    def content(self) -> NDArray[np.int64]:
        """Which of the flat tokens are content."""
        return np.flatnonzero(self.is_content)


def _flat_places(column: pl.Series) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    values = column.to_arrow().flatten()
    return (
        np.asarray(pc.fill_null(values, 0).to_numpy(zero_copy_only=False), np.uint32),
        np.asarray(values.is_valid().to_numpy(zero_copy_only=False)),
    )


def _lists(values: NDArray[np.float32], counts: NDArray[Any], nulls: NDArray[np.bool_]) -> pl.Series:
    offsets = pa.array(np.append(0, np.cumsum(counts, dtype=np.int64)))
    return pl.Series(pa.LargeListArray.from_arrays(offsets, pa.array(values), mask=pa.array(nulls)))


def _lines(frame: pl.DataFrame, name: str, side: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One line a response with weights: row, segment, field, text, shortened, weights; and rejects."""
    whole = pl.col(f"{side}_complete") if f"{side}_complete" in frame.columns else pl.lit(None)
    gone = pl.col(f"{side}_cut") if f"{side}_cut" in frame.columns else pl.lit(None)
    if side != "responses":
        number = 2 if side == "rejected" else 1
        lines = frame.select(
            "row", segment=pl.lit(number, pl.UInt16), field=pl.lit(name), text=_text(pl.col(side)),
            shortened=_shortened(whole, gone), weights=pl.col(name),
        )  # fmt: skip
        return lines.filter(pl.col("weights").is_not_null()), REJECTS.to_frame()
    _check_nested(frame.schema[name], name)
    given = frame.filter(pl.col(name).is_not_null())
    wrong = given.filter(pl.col(name).list.len() != pl.col(side).list.len())
    shown = wrong.select("row", name, pl.col(side).list.len().alias("count"))
    rejects = _table(
        (row, name, entry, f"{name} must have one entry for each of the {count} responses, got {len(entry)}",
         "null stands for a response whose tokens all weigh 1")
        for row, entry, count in map(shown.row, range(shown.height))
    )  # fmt: skip
    good = given.filter(pl.col(name).list.len() == pl.col(side).list.len(), pl.col(side).list.len() > 0)
    unknown = pl.col(side).list.eval(pl.lit(None))
    lines = good.select(
        "row",
        text=pl.col(side),
        weights=pl.col(name),
        whole=pl.coalesce(whole, unknown),
        gone=pl.coalesce(gone, unknown),
    ).explode("text", "weights", "whole", "gone")
    place = pl.int_range(pl.len()).over("row")
    lines = lines.with_columns(segment=(place + 1).cast(pl.UInt16), field=pl.format(name + "[{}]", place))
    lines = lines.with_columns(text=_text(pl.col("text")), shortened=_shortened(pl.col("whole"), pl.col("gone")))
    return lines.filter(pl.col("weights").is_not_null()), rejects


def _shortened(whole: pl.Expr, gone: pl.Expr) -> pl.Expr:
    """Whether a text was cut: it has no end of turn, or units of it are counted as gone."""
    return ~whole.cast(pl.Boolean).fill_null(value=True) | (gone.cast(pl.UInt32).fill_null(0) > 0)


def _text(chat: pl.Expr) -> pl.Expr:
    return chat.list.last().struct.field("content").fill_null("")


def _check_nested(dtype: pl.DataType, name: str) -> None:
    inner = dtype.inner if isinstance(dtype, pl.List) else None
    if dtype != pl.Null and not isinstance(inner, pl.List | pl.Null):
        raise DataError(f"column '{name}' must hold, for each response, {_SHAPES}, got {dtype}; rename or drop it")


def _by_shape(lines: pl.DataFrame, name: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """The lines with their weights in one type: `tokens`, list<f64>, or `spans`, list<{start, end i64, weight f64}>."""
    dtype = lines.schema["weights"]
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else None
    spans = pl.List(pl.Struct({"start": pl.Int64, "end": pl.Int64, "weight": pl.Float64}))
    kinds = {field.name: field.dtype for field in inner.fields} if isinstance(inner, pl.Struct) else {}
    whole = all(kinds.get(at, pl.String()) == pl.Null or kinds.get(at, pl.String()).is_integer() for at in _ENDS)
    if whole and (kinds.get("weight", pl.String()) == pl.Null or kinds.get("weight", pl.String()).is_numeric()):
        named = pl.col("weights").list.eval(pl.struct(pl.element().struct.field("start", "end", "weight")))
        yield "spans", lines.with_columns(named.cast(spans))
    elif inner is not None and inner.is_numeric():
        yield "tokens", lines.with_columns(pl.col("weights").cast(pl.List(pl.Float64)))
    elif inner == pl.Null:  # every list is empty: no span
        yield "spans", lines.with_columns(pl.col("weights").list.head(0).cast(spans))
    elif dtype != pl.Null:
        raise DataError(
            f"column '{name}' must hold {_SHAPES}, got {dtype}; give one of the two (in JSON lines or Parquet: a CSV "
            "file has no lists), or rename or drop the column"
        )


_ENDS = ("start", "end")


def _fill_tokens(
    lines: pl.DataFrame, tokens: _Tokens, weights: NDArray[np.float32], kind: TokenColumn, *, by_texts: bool
) -> dict[int, Problem]:
    """Write lists of weights onto the content tokens; what is wrong, by line."""
    lists = lines["weights"].to_arrow()
    values = pc.fill_null(lists.flatten(), float("nan")).to_numpy(zero_copy_only=False)
    counts, kept = lines["weights"].list.len().to_numpy().astype(np.int64), lines["count"].to_numpy()
    starts = np.cumsum(counts) - counts
    problems: dict[int, Problem] = {}
    for at in np.flatnonzero(~kind.accepts(values))[::-1]:  # the first of a line is kept
        line = int(np.searchsorted(starts + counts, at, side="right"))
        token = int(at - starts[line])
        problems[line] = (f"[{token}]", lines["weights"][line][token], kind.rule, kind.remedy)
    left_out = lines["left_out"].to_numpy().astype(np.int64)
    for line in map(int, np.flatnonzero(left_out > 0)) if by_texts else ():
        rule = f"a {kind.noun} for each token has no place where the text was cut (truncation.unit)"
        remedy = "give spans {start, end, weight}, or cut tokens: truncation.unit tokens"
        problems[line] = ("", lines.select("weights").row(line)[0], rule, remedy)
    wanted = np.where(left_out > 0, counts, kept) if by_texts else kept + left_out
    for line in map(int, np.flatnonzero(counts != wanted)):
        rule = f"there must be one {kind.noun} for each of the {wanted[line]} tokens of the content, not {counts[line]}"
        remedy = "count the tokens with `starts` in data.tokenize's segments, or give spans {start, end, weight}"
        problems[line] = ("", lines.select("weights").row(line)[0], rule, remedy)
    good = np.setdiff1d(np.arange(lines.height), list(problems))
    source, target = (_ranges(first[good], kept[good]) for first in (starts, lines["first"].to_numpy()))
    weights[tokens.content[target]] = values[source]
    return problems


def _fill_spans(
    lines: pl.DataFrame, tokens: _Tokens, weights: NDArray[np.float32], kind: TokenColumn
) -> dict[int, Problem]:
    """Write the mean weight of each content token's bytes; what is wrong, by line."""
    text, spans = _Text(lines["text"]), _Spans(lines)
    problems = spans.problems(kind)
    good = np.setdiff1d(np.arange(lines.height), list(problems))
    used = np.isin(spans.line, good)
    line = spans.line[used]
    first, last = (text.byte_of(line, at[used]) for at in (spans.start, spans.end))
    by_byte = np.full(len(text.bytes), kind.default)
    by_byte[_ranges(first, last - first)] = np.repeat(spans.weight[used], last - first)
    counts = lines["count"].to_numpy()[good]
    token = tokens.content[_ranges(lines["first"].to_numpy()[good], counts)]
    at = np.repeat(text.first_byte[good], counts)
    first, last = tokens.starts[token] + at, tokens.ends[token] + at
    solid = (~_SPACE[text.bytes]).astype(np.float64)
    inked = _sums(solid, first, last)
    total, size, blank = _sums(by_byte * solid, first, last), inked, inked == 0
    total[blank], size[blank] = _sums(by_byte, first[blank], last[blank]), (last - first)[blank]
    weights[token] = np.where(size > 0, total / np.maximum(size, 1), kind.default)
    return problems


class _Text:
    """Texts as one array of bytes."""

    def __init__(self, texts: pl.Series) -> None:
        self.bytes = np.frombuffer("".join(texts).encode(), np.uint8)
        begins = np.flatnonzero((self.bytes & 0xC0) != 0x80)  # a character's first byte
        self._begins = np.append(begins, len(self.bytes))
        self._characters = _before(texts.str.len_chars().to_numpy())
        self.first_byte = _before(texts.str.len_bytes().to_numpy())

    def byte_of(self, line: NDArray[np.int64], character: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where a character of a line begins, over all texts."""
        begins: NDArray[np.int64] = self._begins[self._characters[line] + character]
        return begins


class _Spans:
    """The spans of all lines, flat, by line and start; those of shortened texts end with the text."""

    def __init__(self, lines: pl.DataFrame) -> None:
        numbered = lines.select("weights", line=pl.int_range(pl.len(), dtype=pl.Int64)).filter(
            pl.col("weights").list.len() > 0
        )
        flat = numbered.explode("weights").with_columns(place=pl.int_range(pl.len()).over("line"))
        flat = flat.with_columns(given=pl.col("weights")).unnest("weights").sort("line", "start", maintain_order=True)
        length, loose = lines["text"].str.len_chars().cast(pl.Int64).to_numpy(), lines["shortened"].to_numpy()
        missing = flat.select(pl.any_horizontal(pl.col("start", "end", "weight").is_null())).to_series().to_numpy()
        self.line = flat["line"].to_numpy()
        ends = [flat[name].fill_null(0).to_numpy() for name in _ENDS]
        self.length, clipped = length[self.line], loose[self.line]
        self.start, self.end = (np.where(clipped, np.minimum(at, self.length), at) for at in ends)
        self.weight = flat["weight"].fill_null(float("nan")).to_numpy()
        self.place, self.given, self.missing = flat["place"].to_numpy(), flat["given"], missing
        self.outside = (ends[0] < 0) | (ends[1] <= ends[0]) | (self.end > self.length)
        same = np.append(self.line[1:] == self.line[:-1], False)[: len(self.line)]
        self.overlaps = same & (np.append(self.start[1:], 0)[: len(self.line)] < self.end)

    def problems(self, kind: TokenColumn) -> dict[int, Problem]:
        """The first fault of each bad line."""
        found: dict[int, Problem] = {}
        remedy = "mend the span; characters count from 0, the end is not in it"
        for wrong, rule, how in (
            (
                self.overlaps,
                "spans must not overlap, but the next one begins before this one ends",
                "cut or merge them",
            ),
            (~kind.accepts(self.weight), kind.rule, kind.remedy),
            (self.outside, "a span must lie in the text, 0 <= start < end <= {} characters", remedy),
            (self.missing, "a span must have start, end and weight", remedy),
        ):
            for at in np.flatnonzero(wrong)[::-1]:
                problem = (f"[{self.place[at]}]", self.given[int(at)], rule.format(self.length[at]), how)
                found[int(self.line[at])] = problem
        return found


def _rejects(lines: pl.DataFrame, problems: dict[int, Problem]) -> pl.DataFrame:
    return _table(
        (lines["row"][line], lines["field"][line] + place, value, rule, remedy)
        for line, (place, value, rule, remedy) in sorted(problems.items())
    )


def _table(faults: Iterator[tuple[Any, str, Any, str, str]]) -> pl.DataFrame:
    rows = [("", row, field, _shown(value), "bad_weights", rule, remedy) for row, field, value, rule, remedy in faults]
    return pl.DataFrame(rows, REJECTS, orient="row")


def _shown(value: Any) -> str:
    """A value in at most 80 characters; a long list ends with ` …]`."""
    text = str(value)
    return text if len(text) <= 80 else text[:76] + (" …]" if text.endswith("]") else " …")


def _before(counts: NDArray[Any]) -> NDArray[np.int64]:
    return np.cumsum(counts, dtype=np.int64) - counts.astype(np.int64)


def _ranges(first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """first[0], first[0] + 1, … (counts[0] of them), first[1], …"""
    return np.repeat(first - _before(counts), counts) + np.arange(counts.sum())


def _sums(values: NDArray[np.float64], first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum over each half-open range, each added up on its own: no rounding comes from its neighbours."""
    if not len(first):
        return np.zeros(0)
    both = np.stack([first, last], axis=1).ravel()
    return np.add.reduceat(np.append(values, 0.0), both)[::2] * (last > first)
