"""A few further columns of a source, by name, beside those that its format takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from pyprefopt.data.detect import lines_bytes
from pyprefopt.errors import DataError

if TYPE_CHECKING:
    from pyprefopt.data.sources import Block, ParsedBlock


def carried_columns(parsed: ParsedBlock, names: Sequence[str]) -> pl.DataFrame:
    """The columns of these names, one line a used row; null where a row has none. The block was parsed with `carry`."""
    if isinstance(parsed.carried, pa.Table):
        there = [name for name in names if name in parsed.carried.column_names]
        absent = [pl.lit(None).alias(name) for name in names if name not in there]
        return pl.DataFrame(parsed.carried.select(there)).with_columns(absent).select(names)
    rows = [json.loads(line) for line in (parsed.carried or b"").split(b"\n") if line]
    lines = [json.dumps({name: row.get(name) for name in names}) for row in rows]
    if not lines:
        return pl.DataFrame(schema=dict.fromkeys(names, pl.Null))
    try:
        return pl.read_ndjson("\n".join(lines).encode(), infer_schema_length=None).select(names)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{parsed.file}: {', '.join(names)} must have one type over all rows: {error}") from error


def check_unseen(block: Block, names: Sequence[str]) -> None:
    """DataError where lines of text have one of the fields that the source's first rows do not have."""
    if isinstance(block.rows, pa.Table):
        return  # its columns are known from the start
    text = lines_bytes(block.rows)
    for name in names:
        if f'"{name}"'.encode() in text and any(name in _row(line) for line in text.split(b"\n")):
            raise DataError(
                f"{block.file}: the field '{name}' is in rows after the first ones, which do not have it; put it into "
                "the first row too (null stands for no weights), or drop it"
            )


def _row(line: bytes) -> dict[str, Any]:
    """The object on a line; nothing for a line that is none, which is told as a bad row."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
