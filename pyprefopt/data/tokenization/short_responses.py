"""Rows of a response with fewer tokens than a setting asks for: left out, and counted."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from pyprefopt.data.reading.rejects import REJECTS, TOO_SHORT, no_rejects


def without_short(
    uncut: pa.Table, minimum: int, file: str = "", segments: pa.Table | None = None
) -> tuple[pa.Table, pl.DataFrame]:
    """The segments without the rows of a response of fewer tokens, and these rows as rejects of `file`.

    A response's tokens are those that the assistant wrote, the end of its turn among them. Of `segments` whose texts
    were cut they are counted in `uncut`, which holds the same rows and more.
    """
    segments = uncut if segments is None else segments
    if minimum <= 1:  # the tokenization refuses empty responses
        return segments, no_rejects()
    there = pl.Series(segments["row"]).implode()
    frame = pl.from_arrow(uncut.select(["row", "segment", "kind", "mask"]), rechunk=False)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101  (a table gives no Series)
    lines = frame.filter(pl.col("row").is_in(there)).select("row", "segment", "kind", tokens=pl.col("mask").list.sum())
    short = lines.filter((pl.col("segment") > 0) & (pl.col("tokens") < minimum)).unique("row", keep="first")
    if short.is_empty():
        return segments, no_rejects()
    several = pl.format("responses[{}]", pl.col("segment") - 1)
    rejects = short.sort("row").select(
        file=pl.lit(file),
        row="row",
        field=pl.when(pl.col("kind") == "response").then(several).otherwise("kind"),
        value=pl.format("{} tokens", "tokens"),
        reason=pl.lit(TOO_SHORT),
        rule=pl.lit(f"min_response_tokens asks for responses of at least {minimum} tokens"),
        remedy=pl.lit("nothing, or lower min_response_tokens"),
    ).cast(REJECTS)  # fmt: skip
    keep = ~pl.Series(segments["row"]).is_in(short["row"].implode())
    return segments.filter(keep.to_arrow()), rejects
