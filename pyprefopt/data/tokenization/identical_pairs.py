"""Pairs whose two responses a cut has made the same: bad rows, as pairs are that were the same before."""

from __future__ import annotations

from typing import TypeVar

import polars as pl
import pyarrow as pa

from pyprefopt.data.reading.rejects import REJECTS, no_rejects

Segments = TypeVar("Segments", pl.DataFrame, pa.Table)

IDENTICAL = "identical_after_cut"
_SAME = {
    "reason": pl.lit(IDENTICAL),
    "rule": pl.lit("chosen and rejected must differ in what the cut keeps"),
    "remedy": pl.lit("cut less (truncation, max_tokens), or drop the row"),
}
_PAIRS = 1 << 14  # compared together
_SHOWN = 10  # tokens of a response


def without_identical(segments: Segments, file: str = "") -> tuple[Segments, pl.DataFrame]:
    """The segments without the pairs that a cut has made the same, and these pairs as rejects of `file`."""
    frame = _viewed(segments)
    rejects = _rejects(frame, file)
    if rejects.is_empty():
        return segments, rejects
    keep = ~frame["row"].is_in(rejects["row"].implode())
    return segments.filter(keep if isinstance(segments, pl.DataFrame) else keep.to_arrow()), rejects


def _viewed(segments: pl.DataFrame | pa.Table) -> pl.DataFrame:
    """The columns that are looked at, not copied."""
    names = ["row", "kind", "ids", "cut"]
    if isinstance(segments, pl.DataFrame):
        return segments.select(names)
    frame = pl.from_arrow(segments.select(names), rechunk=False)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101  (a table gives no Series)
    return frame


def _rejects(segments: pl.DataFrame, file: str) -> pl.DataFrame:
    """A line each pair of the same ids of which one response, or both, were cut."""
    lines = segments.select("row", "kind", "cut", length=pl.col("ids").list.len()).with_row_index("line")
    chosen, rejected = (lines.filter(pl.col("kind") == side).drop("kind") for side in ("chosen", "rejected"))
    pairs = chosen.join(rejected, on=("row", "length"), suffix="_rejected", maintain_order="left")
    pairs = pairs.filter((pl.col("cut") > 0) | (pl.col("cut_rejected") > 0))
    if pairs.is_empty():
        return no_rejects()
    ids = segments["ids"]
    same = [ids.gather(part["line"]) == ids.gather(part["line_rejected"]) for part in pairs.iter_slices(_PAIRS)]
    pairs = pairs.filter(pl.concat(same))
    shown = pl.col("ids").list.head(_SHOWN).cast(pl.List(pl.String)).list.join(" ")
    more = pl.when(pl.col("length") > _SHOWN).then(pl.lit(" …")).otherwise(pl.lit(""))
    return pairs.with_columns(ids.gather(pairs["line"])).select(
        file=pl.lit(file), row="row", field=pl.lit("rejected"), value=pl.format("ids {}{}", shown, more), **_SAME
    ).cast(REJECTS)  # fmt: skip


def mark_after_cut(rejects: pl.DataFrame, cut: pl.Series) -> pl.DataFrame:
    """The rejects; identical pairs among the rows that were cut, as texts, are so by the cut."""
    is_same = (pl.col("reason") == "identical_pair") & pl.col("row").is_in(cut.implode())
    return rejects.with_columns(
        pl.when(is_same).then(value).otherwise(pl.col(name)).alias(name) for name, value in _SAME.items()
    )
