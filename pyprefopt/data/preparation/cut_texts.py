"""The rows of one block with their texts cut first, as `data.truncate` cuts them, and tokenized then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from pyprefopt.data.reading.blocks import parse_block
from pyprefopt.data.reading.extra_columns import carried_columns
from pyprefopt.data.tokenization.block import TokenizedBlock
from pyprefopt.data.tokenization.identical_pairs import mark_after_cut
from pyprefopt.data.tokenization.segments import tokenize_rows
from pyprefopt.data.truncation.dispatch import truncate_by

if TYPE_CHECKING:
    import pyarrow as pa

    from pyprefopt.data.reading.blocks import Block
    from pyprefopt.data.tokenization.tokenizer import Tokenizer
    from pyprefopt.data.truncation.rule import Truncation


def tokenize_cut(
    block: Block,
    format: str,  # noqa: A002
    tokenizer: Tokenizer,
    rule: Truncation,
    *,
    carried: Sequence[str],
    **limits: Any,
) -> tuple[TokenizedBlock, pl.DataFrame]:
    """Parse the rows of a block, cut their texts, and tokenize what is left.

    Args:
        block: the rows.
        format: their format.
        tokenizer: with its template.
        rule: in characters, words or sentences.
        carried: further columns that the rows are to bring.
        **limits: offsets, and limits as `tokenize` takes them.

    Returns:
        The tokens, and the rows that they were made of.
    """
    parsed = parse_block(block, format, carry=bool(carried))
    columns = ("response",) if "response" in parsed.frame.columns else None
    rows = truncate_by(parsed.frame, rule, columns=columns)
    made = tokenize_rows(rows, tokenizer, **limits)
    bad = made.rejects.with_columns(file=pl.lit(block.file)).select(parsed.rejects.columns)
    bad = mark_after_cut(bad, _counts(rows).filter(pl.col("gone") > 0)["row"])
    tokenized = TokenizedBlock(
        made.segments.to_arrow(), pl.concat([parsed.rejects, bad]).sort("row"), block.rows_in, made.responses_cut,
        made.tokenized_apart, made.notes, made.special, made.coverage,
    )  # fmt: skip
    if carried:
        further = carried_columns(parsed, carried)
        both = [name for name in further.columns if name in rows.columns]  # what an earlier cut has counted
        rows = rows.with_columns(
            pl.coalesce(pl.col(name) + further[name].cast(rows.schema[name]), name) for name in both
        )
        rows = rows.hstack(further.drop(both))
    return tokenized, rows


def count_cuts(segments: pa.Table, rows: pl.DataFrame) -> pa.Table:
    """The segments, where `cut` counts also the units that were cut off the texts of `rows`."""
    frame = pl.DataFrame(segments).join(_counts(rows), on=("row", "segment"), how="left", maintain_order="left")
    return frame.with_columns(cut=pl.col("cut") + pl.col("gone").fill_null(0)).drop("gone").to_arrow()


def _counts(rows: pl.DataFrame) -> pl.DataFrame:
    """Units that were cut off each response: row, segment, gone."""
    parts = []
    for number, name in enumerate(("chosen_cut", "rejected_cut"), start=1):
        if name in rows.columns:
            parts.append(rows.select("row", pl.lit(number, pl.UInt16).alias("segment"), gone=name))
    if "response_cut" in rows.columns:
        parts.append(rows.select("row", pl.lit(1, pl.UInt16).alias("segment"), gone="response_cut"))
    if "responses_cut" in rows.columns:
        lists = rows.select("row", gone="responses_cut").filter(pl.col("gone").list.len() > 0).explode("gone")
        place = (pl.int_range(pl.len()).over("row") + 1).cast(pl.UInt16)
        parts.append(lists.select("row", place.alias("segment"), "gone"))
    return pl.concat(parts)
