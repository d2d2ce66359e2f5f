"""Spans of text and the tokens that overlap them."""

from __future__ import annotations

import polars as pl

from pyprefopt.data import _native
from pyprefopt.data.columns import Column, apply, to_series
from pyprefopt.errors import DataError

_SPANS = pl.List(pl.Struct({"start": pl.UInt32, "end": pl.UInt32}))


def spans_to_mask(spans: Column, starts: Column, ends: Column) -> Column:
    """list<bool>: the tokens that share a byte with one of their line's spans.

    spans: list<struct{start, end}>, half-open byte ranges of the content; starts, ends: list<u32> of a segments frame
    (null: a token of the template, never marked). Absent spans mark nothing. Columns of any kind, see `top_k_mask`.
    Raises DataError where starts and ends have different lengths.
    """
    return apply(_mask, [spans, starts, ends], pl.List(pl.Boolean))


def _mask(spans: pl.Series, starts: pl.Series, ends: pl.Series) -> pl.Series:
    offsets = pl.List(pl.UInt32)
    given = {"spans": (spans, _SPANS), "starts": (starts, offsets), "ends": (ends, offsets)}
    try:
        columns = pl.DataFrame({name: column.cast(dtype) for name, (column, dtype) in given.items()})
    except pl.exceptions.PolarsError as error:
        got = ", ".join(f"{name} {column.dtype}" for name, (column, _) in given.items())
        rule = "spans must be lists of {start, end}, starts and ends lists of whole numbers"
        raise DataError(f"spans_to_mask: {rule}; got {got} ({error})") from None
    try:
        mask = _native.spans_to_mask(columns.to_struct(spans.name))
    except (TypeError, ValueError) as error:
        raise DataError(f"spans_to_mask: {error}") from None
    return to_series(spans.name, mask, pl.List(pl.Boolean))
