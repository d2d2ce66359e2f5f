"""A few further columns of a source, by name, beside those that its format takes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from pyprefopt.data import _native
from pyprefopt.data.arrow import MOST_COLUMNS
from pyprefopt.data.columns import frame_of
from pyprefopt.data.files.unfolding import MOST_BYTES, MOST_TIMES
from pyprefopt.data.reading.formats import lines_bytes, texts_of
from pyprefopt.errors import DataError

if TYPE_CHECKING:
    from pyprefopt.data.reading.blocks import Block, ParsedBlock
    from pyprefopt.data.reading.sources import Source


CELL_BYTES = 16  # that a column takes for a value, whatever it is

logger = logging.getLogger("pyprefopt")


def carried_columns(parsed: ParsedBlock, names: Sequence[str]) -> pl.DataFrame:
    """The columns of these names, one line a used row; null where a row has none. The block was parsed with `carry`."""
    if isinstance(parsed.carried, pa.Table):
        there = [name for name in names if name in parsed.carried.column_names]
        absent = [pl.lit(None).alias(name) for name in names if name not in there]
        return frame_of(parsed.carried.select(there), parsed.file).with_columns(absent).select(names)
    rows = [json.loads(line) for line in (parsed.carried or b"").split(b"\n") if line]
    lines = [json.dumps({name: row.get(name) for name in names}) for row in rows]
    if not lines:
        return pl.DataFrame(schema=dict.fromkeys(names, pl.Null))
    try:
        return pl.read_ndjson("\n".join(lines).encode(), infer_schema_length=None).select(names)
    except pl.exceptions.PolarsError as error:
        raise _two_types([parsed], names, parsed.file, error) from error


def frame_of_lines(blocks: Sequence[ParsedBlock], file: str, read: Sequence[str]) -> pl.DataFrame:
    """The further fields of all blocks as columns; one of values of two types as texts, what is no text as JSON.

    Raises:
        DataError: a field of `read`, which is more than carried, has values of two types; all rows together have more
            fields than a table may have, or their table would be far larger than they are.
    """
    carried = [block.carried for block in blocks if isinstance(block.carried, bytes)]
    lines = b"".join(carried)
    if not lines.strip(b"{}\n"):
        return pl.DataFrame()
    _check_fields(lines, blocks, file)
    try:
        return pl.read_ndjson(lines, infer_schema_length=None)
    except pl.exceptions.PolarsError:
        rows = [json.loads(line) for line in lines.split(b"\n") if line]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pl.DataFrame([_column(name, rows, blocks, file, name in read) for name in names])


def _check_fields(lines: bytes, blocks: Sequence[ParsedBlock], file: str) -> None:
    """DataError for more columns, or cells, than a table may have."""
    count, beyond = _native.count_names(lines)
    remedy = "name them the same in all rows, or drop them; prepare and tokenize take the file as it is"
    if beyond is not None:
        line, name = beyond
        row = int(np.concatenate([block.table["row"].to_numpy() for block in blocks])[line])
        raise DataError(
            f"{file}: all rows together must have at most {MOST_COLUMNS:,} further fields, and row {row} brings one "
            f"more, '{name:.80}'; {remedy}"
        )
    cells = count * lines.count(b"\n")
    if cells * CELL_BYTES > max(MOST_BYTES, MOST_TIMES * len(lines)):
        raise DataError(
            f"{file}: {count:,} further fields, of which few rows have each, are a table of {cells:,} cells, most of "
            f"them empty; {remedy}"
        )


def _column(
    name: str, rows: list[dict[str, Any]], blocks: Sequence[ParsedBlock], file: str, is_read: bool
) -> pl.Series:
    """The values of one field, or where they have no common type their texts."""
    values = [row.get(name) for row in rows]
    try:
        lines = "\n".join(json.dumps({name: value}) for value in values)
        return pl.read_ndjson(lines.encode(), infer_schema_length=None)[name]
    except pl.exceptions.PolarsError as error:
        if is_read:
            raise _two_types(blocks, [name], file, error) from error
        found = _of_two_types(blocks, [name])
        what = found[1] if found else "has values of two types"
        logger.warning("%s: field '%s' %s: its column holds texts, all else as JSON", file, name, what)
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pl.Series(name, texts, dtype=pl.String)


def _two_types(blocks: Iterable[ParsedBlock], names: Sequence[str], file: str, error: Exception) -> DataError:
    """The error for fields that are read and have values of two types."""
    found = _of_two_types(blocks, names)
    what = f"field '{found[0]}'" if found else f"each of the fields {', '.join(names)}"
    but = found[1] if found else str(error).splitlines()[0]
    rule = f"must have one type over all rows, but {but}"
    return DataError(f"{file}: {what} {rule}; write one type in all rows, or drop the field")


def _of_two_types(blocks: Iterable[ParsedBlock], names: Sequence[str]) -> tuple[str, str] | None:
    """Which field of `names` is of which types in which rows; none where no field is found to have two."""
    first: dict[str, tuple[int, str]] = {}
    for block in blocks:
        lines = (block.carried or b"").split(b"\n") if not isinstance(block.carried, pa.Table) else []
        for row, line in zip(block.table["row"].to_numpy(), lines, strict=False):  # the last line is empty
            for name, value in _row(line).items():
                kind = _kind(value) if name in names else None
                before, other = first.setdefault(name, (row, kind)) if kind is not None else (row, kind)
                if kind != other:
                    return name, f"is {other} in row {before} and {kind} in row {row}"
    return None


def _kind(value: Any) -> str | None:
    """What a JSON value is, in words; None for null and empty lists, which are of any type."""
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", dict: "an object"}
    if not isinstance(value, list):
        return kinds.get(type(value))
    inner = {kind.removeprefix("a ").removeprefix("an ") for entry in value if (kind := _kind(entry)) is not None}
    plural = {"number": "numbers", "object": "objects", "text": "texts"}
    return f"a list of {' and '.join(sorted(plural.get(kind, kind) for kind in inner))}" if inner else None


def may_have(block: Block, names: Sequence[str]) -> list[str]:
    """Those of the fields whose names stand in quotes somewhere in lines of text: no row has one of the others."""
    return _native.quoted_names(texts_of(block.rows, ()), list(names))


def named_in_any_row(source: Source, names: Sequence[str]) -> list[str]:
    """Those of the names that are fields of any row: of lines of text, all are looked through."""
    found = set(source.named(names))
    if not any(part.columns for part in source.parts):
        for block in source.blocks():
            if found.issuperset(names):
                break
            found |= set(_fields_of(block, [name for name in names if name not in found]))
    return [name for name in names if name in found]


def _fields_of(block: Block, names: Sequence[str]) -> list[str]:
    """Those of the names that are fields of a line."""
    lines = lines_bytes(block.rows).split(b"\n") if (seen := may_have(block, names)) else []
    return [name for name in seen if any(name in _row(line) for line in lines)]


def check_unseen(block: Block, names: Sequence[str]) -> None:
    """DataError where lines of text have one of the fields that the source's first rows do not have."""
    if not isinstance(block.rows, pa.Table):  # whose columns are known from the start
        for name in _fields_of(block, names):
            raise DataError(
                f"{block.file}: the field '{name}' is in rows after the first ones, which do not have it; put it into "
                "the first row too (null stands for no weights), or drop it"
            )


def _row(line: bytes) -> dict[str, Any]:
    """The object on a line; nothing for a line that is none, which is reported as a bad row."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
