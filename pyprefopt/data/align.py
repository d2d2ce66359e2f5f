"""Spans of text and the tokens that overlap them."""

from __future__ import annotations

from typing import Any, TypeVar

import polars as pl

from pyprefopt.data import _native
from pyprefopt.data.columns import to_series
from pyprefopt.errors import DataError

Column = TypeVar("Column", pl.Series, pl.Expr)
_SPANS = pl.List(pl.Struct({"start": pl.UInt32, "end": pl.UInt32}))


def spans_to_mask(spans: Column, starts: Column, ends: Column) -> Column:
    """list<bool>: the tokens that share a byte with one of their line's spans.

    spans: list<struct{start, end}>, half-open byte ranges of the content; starts, ends: list<u32> of a segments frame
    (null: a token of the template, never marked). Absent spans mark nothing. Series give a Series, expressions one.
    Raises DataError where starts and ends have different lengths.
    """
    if isinstance(spans, pl.Expr):
        columns = pl.struct(spans.cast(_SPANS).alias("spans"), starts=starts, ends=ends)
        return columns.map_batches(_mask, return_dtype=pl.List(pl.Boolean), is_elementwise=True)
    columns = pl.DataFrame({"spans": spans.cast(_SPANS), "starts": starts, "ends": ends})
    return _mask(columns.to_struct(spans.name))


def _mask(columns: Any) -> pl.Series:
    try:
        mask = _native.spans_to_mask(columns)
    except (TypeError, ValueError) as error:
        raise DataError(f"spans_to_mask: {error}") from None
    return to_series(columns.name, mask, pl.List(pl.Boolean))
