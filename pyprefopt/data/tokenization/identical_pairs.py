"""Pairs, and candidates of different scores, that a cut has made the same: bad rows, as those that were so before."""

from __future__ import annotations

from typing import TypeVar

import polars as pl
import pyarrow as pa

from pyprefopt.data.reading.rejects import REJECTS

Segments = TypeVar("Segments", pl.DataFrame, pa.Table)

IDENTICAL = "identical_after_cut"
_SAME = {
    "reason": pl.lit(IDENTICAL),
    "rule": pl.when(pl.col("field") == "responses")
    .then(pl.lit("responses of different scores must differ in what the cut keeps"))
    .otherwise(pl.lit("chosen and rejected must differ in what the cut keeps")),
    "remedy": pl.lit("cut less (truncation, max_tokens), or drop the row"),
}
_EMPTY = {
    "reason": pl.lit("empty_after_cut"),
    "rule": pl.lit("a response must have content, and an answer that is scored, in what the cut keeps"),
    "remedy": pl.lit("cut less (truncation), or drop the row"),
}
_PAIRS = 1 << 14  # compared together
_SHOWN = 10  # tokens of a response


def without_identical(segments: Segments, file: str = "") -> tuple[Segments, pl.DataFrame]:
    """The segments without the rows whose responses a cut has made the same, and these rows as rejects of `file`."""
    frame = _viewed(segments)
    same = pl.concat([_same_pairs(frame), _same_candidates(frame)])
    rejects = _rejects(same, file)
    if rejects.is_empty():
        return segments, rejects
    keep = ~frame["row"].is_in(rejects["row"].implode())
    return segments.filter(keep if isinstance(segments, pl.DataFrame) else keep.to_arrow()), rejects


def _viewed(segments: pl.DataFrame | pa.Table) -> pl.DataFrame:
    """The columns that are looked at, not copied."""
    names = ["row", "kind", "ids", "cut", "score"]
    if isinstance(segments, pl.DataFrame):
        return segments.select(names)
    frame = pl.from_arrow(segments.select(names), rechunk=False)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101  (a table gives no Series)
    return frame


def _same_pairs(segments: pl.DataFrame) -> pl.DataFrame:
    """The pairs of the same ids of which one response, or both, were cut: row, field, ids."""
    lines = segments.select("row", "kind", "cut", length=pl.col("ids").list.len()).with_row_index("line")
    chosen, rejected = (lines.filter(pl.col("kind") == side).drop("kind") for side in ("chosen", "rejected"))
    pairs = chosen.join(rejected, on=("row", "length"), suffix="_rejected", maintain_order="left")
    pairs = pairs.filter((pl.col("cut") > 0) | (pl.col("cut_rejected") > 0))
    ids = segments["ids"]
    same = [ids.gather(part["line"]) == ids.gather(part["line_rejected"]) for part in pairs.iter_slices(_PAIRS)]
    pairs = pairs.filter(pl.concat(same)) if same else pairs.clear()
    return pairs.with_columns(ids.gather(pairs["line"])).select("row", pl.lit("rejected").alias("field"), "ids")


def _same_candidates(segments: pl.DataFrame) -> pl.DataFrame:
    """The same of sets: two responses of different scores, one of which was cut; the first such of a row."""
    lines = segments.lazy().filter(pl.col("kind") == "response")
    lines = lines.filter(pl.len().over("row", pl.col("ids").list.len()) > 1)
    groups = lines.group_by("row", "ids", maintain_order=True).agg(
        scores=pl.col("score").drop_nulls().drop_nans().n_unique(), cut=pl.col("cut").max()
    )
    same = groups.filter(pl.col("scores") > 1, pl.col("cut") > 0).unique("row", keep="first", maintain_order=True)
    return same.select("row", pl.lit("responses").alias("field"), "ids").collect()


def _rejects(same: pl.DataFrame, file: str) -> pl.DataFrame:
    """A line each row that is the same by a cut."""
    shown = pl.col("ids").list.head(_SHOWN).cast(pl.List(pl.String)).list.join(" ")
    more = pl.when(pl.col("ids").list.len() > _SHOWN).then(pl.lit(" …")).otherwise(pl.lit(""))
    return same.select(
        file=pl.lit(file), row="row", field="field", value=pl.format("ids {}{}", shown, more), **_SAME
    ).cast(REJECTS)


def mark_after_cut(rejects: pl.DataFrame, cut: pl.Series) -> pl.DataFrame:
    """The rejects; what is the same, or empty, among the rows that were cut, as texts, is so by the cut."""
    was_cut = pl.col("row").is_in(cut.implode())
    is_same = (pl.col("reason") == "identical_pair") & was_cut
    is_empty = pl.col("reason").is_in(["empty_response", "no_answer"]) & was_cut
    return rejects.with_columns(
        pl.when(is_same).then(_SAME[name]).when(is_empty).then(_EMPTY[name]).otherwise(pl.col(name)).alias(name)
        for name in _SAME
    )
