"""Top-k% token selection (SePO, Yang et al. 2024, Eq. 25): columns cross to Rust as Arrow, never as Python lists."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa

from pyprefopt.data import _native
from pyprefopt.errors import DataError, check, did_you_mean

Rounding = Literal["half_up", "floor"]
Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)
Column = TypeVar("Column", pl.Series, pl.Expr, pa.Array, pa.ChunkedArray)

_KINDS = {"prompt": 0, "chosen": 1, "rejected": 2}
_SELECTED = pl.List(pl.Boolean)


def top_k_mask(
    scores: Column,
    ratio: float,
    *,
    largest: bool = True,
    mask: Column | None = None,
    rounding: Rounding = "half_up",
) -> Column:
    """Mark the `ratio` of each list's tokens with the largest (or smallest) scores.

    scores: list<f32>, a Polars Series or expression, or a PyArrow array; the same kind comes back, as list<bool>.
    mask: list<bool> of the tokens that may be selected; without it, all. T is their number.
    The number selected is max(1, floor(ratio * T + 0.5)) in float64 for `half_up`, max(1, floor(ratio * T)) for
    `floor`, and 0 where T is 0. Ties go to the earlier token, -0.0 equals 0.0, null lists stay null.

    Raises ConfigError for a bad ratio or rounding, DataError (naming the list) for a NaN or null score at a candidate
    or lists of different lengths.
    """
    _check_settings(rounding, ratio=ratio)
    kernel = partial(_top_k_arrow, ratio=ratio, largest=largest, rounding=rounding)
    if isinstance(scores, pl.Expr):
        columns = [scores] if mask is None else [scores, mask]
        return pl.map_batches(columns, partial(_on_series, kernel), return_dtype=_SELECTED, is_elementwise=True)
    if isinstance(scores, pl.Series):
        return _on_series(kernel, [scores] if mask is None else [scores, mask])
    selected = pa.array(kernel(scores, mask))
    return pa.chunked_array([selected]) if isinstance(scores, pa.ChunkedArray) else selected


def select_top_k(
    frame: Frame,
    *,
    chosen_ratio: float | None = 0.3,
    rejected_ratio: float | None = 0.3,
    rounding: Rounding = "half_up",
) -> Frame:
    """Add `selected` (list<bool>) to a segments frame that has `scores` (list<f32>): SePO's selection, Eq. 25.

    Chosen responses keep the tokens with the highest scores, rejected ones those with the lowest; only tokens in
    `mask` are candidates. A ratio of None keeps all candidates of that side. Prompts get null. Numbers and ties as in
    `top_k_mask`; the result does not depend on the number of threads. Works in the eager, lazy and streaming engine.

    Raises DataError naming the row for a NaN or null score at a candidate and for kinds without a side (`response`).
    """
    chosen, rejected = (1.0 if ratio is None else ratio for ratio in (chosen_ratio, rejected_ratio))
    _check_settings(rounding, chosen_ratio=chosen, rejected_ratio=rejected)
    _check_schema(frame.collect_schema())
    kernel = partial(_select_arrow, chosen_ratio=chosen, rejected_ratio=rejected, rounding=rounding)
    names = ["scores", "mask", "kind", "row"]
    if isinstance(frame, pl.DataFrame):
        return frame.with_columns(_on_series(kernel, [frame[name] for name in names]).alias("selected"))
    selected = pl.map_batches(names, partial(_on_series, kernel), return_dtype=_SELECTED, is_elementwise=True)
    return frame.with_columns(selected.alias("selected"))


def _check_settings(rounding: str, **ratios: float) -> None:
    for name, ratio in ratios.items():
        check(0 < ratio <= 1, name, ratio, "in (0, 1]", "the paper uses 0.3 or 0.5")
    check(rounding in ("half_up", "floor"), "rounding", rounding, "'half_up' or 'floor'")


def _check_schema(schema: pl.Schema) -> None:
    wanted = {"scores": pl.List(pl.Float32), "mask": _SELECTED, "kind": pl.String(), "row": pl.UInt64()}
    for name, dtype in wanted.items():
        if name not in schema:
            raise DataError(f"the segments frame has no column '{name}' ({dtype}){did_you_mean(name, schema)}")
        if schema[name] != dtype:
            raise DataError(f"column '{name}' must be {dtype}, got {schema[name]}; cast it")


def _on_series(kernel: Any, columns: Sequence[pl.Series]) -> pl.Series:
    """Run an Arrow kernel on Polars columns; the result has the first one's name."""
    return pl.Series(columns[0].name, pa.array(kernel(*columns)), dtype=_SELECTED)


def _top_k_arrow(scores: Any, mask: Any = None, *, ratio: float, **settings: Any) -> Any:
    try:
        return _native.top_k_mask(scores, ratio, mask=mask, **settings)
    except ValueError as error:
        raise DataError(f"top_k_mask: {error}") from None


def _select_arrow(scores: Any, mask: Any, kind: pl.Series, row: pl.Series, **settings: Any) -> Any:
    codes = kind.replace_strict(list(_KINDS), list(_KINDS.values()), default=255, return_dtype=pl.UInt8).to_numpy()
    rows = np.ascontiguousarray(row.to_numpy())
    if (codes == 255).any():
        line = int((codes == 255).argmax())
        raise DataError(
            f"row {rows[line]}: kind '{kind[line]}' has no side to select; select_top_k works on chosen and rejected "
            "responses, top_k_mask on any"
        )
    try:
        return _native.select_top_k(scores, mask, np.ascontiguousarray(codes), rows, **settings)
    except ValueError as error:
        raise DataError(f"select_top_k, column scores: {error}") from None
