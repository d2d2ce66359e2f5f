"""Planted tokens: columns of the data that say which tokens carry the preference, as in the embedded set."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

PLANTED = ("chosen_planted", "rejected_planted")


def has_planted(schema: pl.Schema) -> bool:
    """Whether the data says which tokens carry the preference: both columns, lists of {start, end}."""
    import polars as pl

    spans = {pl.List(pl.Struct({"start": kind, "end": kind})) for kind in (pl.UInt32, pl.Int64)}  # Parquet, JSON
    return all(schema.get(name) in spans for name in PLANTED)


def planted_spans(frame: pl.DataFrame) -> pl.DataFrame:
    """`chosen_planted` and `rejected_planted` by (row, segment)."""
    import polars as pl

    return pl.concat(
        frame.select("row", pl.lit(segment, pl.UInt16).alias("segment"), pl.col(name).alias("spans"))
        for segment, name in enumerate(PLANTED, start=1)
    )


def planted_mask(segments: pl.DataFrame, spans: pl.DataFrame) -> pl.Series:
    """list<bool> per line of `segments`: the tokens that overlap a planted span."""
    from pyprefopt.data.batching.alignment import spans_to_mask

    joined = segments.select("row", "segment").join(spans, on=["row", "segment"], how="left", maintain_order="left")
    return spans_to_mask(joined["spans"], segments["starts"], segments["ends"])
