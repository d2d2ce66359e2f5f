"""Spans of text and the tokens that overlap them; values of one tokenization as another's."""

from __future__ import annotations

import polars as pl

from pyprefopt.data import _native
from pyprefopt.data.columns import Column, apply, as_floats, to_series
from pyprefopt.errors import DataError

_OFFSETS = pl.List(pl.UInt32)
_SPANS = pl.List(pl.Struct({"start": pl.UInt32, "end": pl.UInt32}))


def spans_to_mask(spans: Column, starts: Column, ends: Column) -> Column:
    """Mark the tokens that share a byte with one of their line's spans.

    Args:
        spans: list<struct{start, end}>, half-open byte ranges of the content; null marks nothing. Columns of any kind,
            see `top_k_mask`.
        starts: list<u32> of a segments frame, in bytes; null: a token of the template, which is never marked.
        ends: likewise.

    Returns:
        list<bool>, one a token, of the kind of `spans`.

    Raises:
        DataError: starts and ends of a line have different lengths, or a column is of another type.

    Example:
        >>> offsets = pl.List(pl.UInt32)
        >>> starts, ends = pl.Series([[0, 4, None]], dtype=offsets), pl.Series([[4, 7, None]], dtype=offsets)
        >>> spans_to_mask(pl.Series([[{"start": 0, "end": 3}]]), starts, ends).to_list()
        [[True, False, False]]
    """
    return apply(_mask, [spans, starts, ends], pl.List(pl.Boolean))


def _mask(spans: pl.Series, starts: pl.Series, ends: pl.Series) -> pl.Series:
    given = {"spans": (spans, _SPANS), "starts": (starts, _OFFSETS), "ends": (ends, _OFFSETS)}
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


def transfer_values(
    values: Column,
    starts_from: Column,
    ends_from: Column,
    starts_to: Column,
    ends_to: Column,
    *,
    turns_from: Column | None = None,
    turns_to: Column | None = None,
    mask_from: Column | None = None,
    mask_to: Column | None = None,
) -> Column:
    """Bring the values of one tokenization of each response onto the tokens of another; each total is kept.

    A value is shared out over the tokens that overlap its bytes, by bytes in common. Tokens of the very same bytes, as
    many on one side as on the other, are matched one to one, and so are the template's tokens (without offsets) of the
    same turn on the same side of the content; where their numbers differ they share their total evenly. So equal
    tokenizations give equal values. What meets no token (a space that the other tokenizer drops) goes to the next
    token, or to the last. Tokens outside a mask neither give nor take.

    Args:
        values: list<f32> (or of other numbers), one a token `from`; a column of any kind, see `top_k_mask`.
        starts_from: list<u32> of the segments frame that the values belong to, in bytes.
        ends_from: likewise.
        starts_to: list<u32> of a segments frame of the same texts by another tokenizer.
        ends_to: likewise.
        turns_from: list<u16>, the message of each token; None: all are of one turn.
        turns_to: likewise.
        mask_from: list<bool>; None: all tokens give.
        mask_to: list<bool>; None: all tokens take.

    Returns:
        list<f32>, one a token `to`, of the kind of `values`. Null values stay null; a line without tokens to take them
        gives zeros.

    Raises:
        DataError: the columns of a line have different lengths, or a column is of another type.

    Example:
        >>> offsets = pl.List(pl.UInt32)
        >>> two = [pl.Series([[0, 4]], dtype=offsets), pl.Series([[4, 8]], dtype=offsets)]
        >>> one = [pl.Series([[0]], dtype=offsets), pl.Series([[8]], dtype=offsets)]
        >>> transfer_values(pl.Series([[1.0, 2.0]]), *two, *one).to_list()
        [[3.0]]
    """
    columns = [values, starts_from, ends_from, starts_to, ends_to, turns_from, turns_to, mask_from, mask_to]
    return apply(_transfer, columns, pl.List(pl.Float32))


_TRANSFER = {
    "values": pl.List(pl.Float32),
    **dict.fromkeys(("starts_from", "ends_from", "starts_to", "ends_to"), _OFFSETS),
    **dict.fromkeys(("turns_from", "turns_to"), pl.List(pl.UInt16)),
    **dict.fromkeys(("mask_from", "mask_to"), pl.List(pl.Boolean)),
}


def _transfer(*columns: pl.Series | None) -> pl.Series:
    given = {name: column for name, column in zip(_TRANSFER, columns, strict=True) if column is not None}
    given["values"] = as_floats(given["values"], "transfer_values: values")
    try:
        typed = pl.DataFrame({name: column.cast(_TRANSFER[name]) for name, column in given.items()})
    except pl.exceptions.PolarsError as error:
        got = ", ".join(f"{name} {column.dtype}" for name, column in given.items())
        rule = "values must be lists of numbers, starts, ends and turns lists of whole numbers, masks lists of bool"
        raise DataError(f"transfer_values: {rule}; got {got} ({error})") from None
    try:
        moved = _native.transfer_values(typed.to_struct("values"))
    except (TypeError, ValueError) as error:
        raise DataError(f"transfer_values: {error}") from None
    return to_series("values", moved, pl.List(pl.Float32))
