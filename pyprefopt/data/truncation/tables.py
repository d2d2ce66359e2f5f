"""Rows of Parquet and Arrow files, and how they are cut as columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import polars as pl

from pyprefopt.data import _native
from pyprefopt.data.columns import to_series
from pyprefopt.data.reading.catalog import TABLE, Format
from pyprefopt.data.truncation.frames import check_text_rule, has_transcripts, truncate_frame
from pyprefopt.data.truncation.rule import Truncation
from pyprefopt.errors import DataError

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import GivenTokenizer

_COUNTS = {  # what is written of a pair, beside its responses
    "chosen_cut": pl.UInt32(), "chosen_complete": pl.Boolean(),
    "rejected_cut": pl.UInt32(), "rejected_complete": pl.Boolean(),
}  # fmt: skip


def truncate_table(
    frame: pl.LazyFrame,
    *,
    format: str,  # noqa: A002
    rule: Truncation,
    tokenizer: GivenTokenizer | None,
    columns: Sequence[str] | None,
    cutter: Callable[[], _native.FileCutter],
    same: list[int],
) -> pl.LazyFrame:
    """`truncate_frame` of typed rows of any format of pairs or candidates.

    format: empty where columns are named, or none was found. cutter: makes the cutter of rows as JSON. same: where the
    frame is computed, the numbers of pairs that are the same by the cut go there.
    """
    schema, known = frame.collect_schema(), TABLE.get(format)
    segments = "ids" in schema
    if known is None or segments:
        return truncate_frame(frame, rule=rule, tokenizer=tokenizer, columns=columns)
    if known.kind == "candidates":
        columns = [next(field.name for field in known.fields if field.role == "responses" and field.name in schema)]
        return truncate_frame(frame, rule=rule, tokenizer=tokenizer, columns=columns)
    if known.plain and "chosen" in schema and not has_transcripts(frame, schema):
        return _count_same(truncate_frame(frame, rule=rule, tokenizer=tokenizer, columns=None), same)
    check_text_rule(rule, tokenizer)
    return _cut_as_json(frame, schema, known, cutter(), same)


def _cut_as_json(
    frame: pl.LazyFrame, schema: pl.Schema, known: Format, cutter: _native.FileCutter, same: list[int]
) -> pl.LazyFrame:
    """The responses of each row cut as those of a JSON line, and read back as the types that they had."""
    needed = {name for group in known.needed for name in group}
    held = [field for field in known.fields if field.name in schema and schema[field.name] != pl.Null]
    sides = [field.name for field in held if field.role in ("chosen", "rejected", "pair")]
    others = [field.name for field in held if field.role == "other" and field.name in needed]
    others += [name for name in ("prompt",) if schema.get(name) == pl.String]  # a transcript says where responses begin
    dtype = pl.Struct({**{name: schema[name] for name in sides}, **_COUNTS})

    def cut(rows: pl.Series) -> pl.Series:
        try:
            lines, pairs = cutter.cut_rows(rows.struct.json_encode())
        except ValueError as error:
            raise DataError(f"truncate{error}") from None
        same.append(pairs)
        return to_series(rows.name, lines, pl.String()).str.json_decode(dtype)

    rows = pl.struct(*sides, *others, *(name for name in _COUNTS if name in schema))
    made = pl.col("_made").struct
    counts = [
        made.field(name).fill_null(pl.lit(0 if kind == pl.UInt32 else True, kind)) for name, kind in _COUNTS.items()
    ]
    frame = frame.with_columns(_made=rows.map_batches(cut, return_dtype=dtype, is_elementwise=True))
    return frame.with_columns(*map(made.field, sides), *counts).drop("_made")


def _count_same(frame: pl.LazyFrame, same: list[int]) -> pl.LazyFrame:
    """The frame after the cut; where it is computed, the pairs that are the same by it are counted."""
    kind = frame.collect_schema()["chosen_cut"]

    def look(columns: Sequence[pl.Series]) -> pl.Series:
        same.append(int(columns[1].sum()))
        return columns[0]

    was_cut = (pl.col("chosen_cut") > 0) | (pl.col("rejected_cut") > 0)
    seen = pl.map_batches(["chosen_cut", "_same"], look, return_dtype=kind, is_elementwise=True)
    frame = frame.with_columns(_same=(pl.col("chosen") == pl.col("rejected")) & was_cut)
    return frame.with_columns(seen.alias("chosen_cut")).drop("_same")
