"""A few further columns of a source, by name, beside those that its format takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from pyprefopt.data import _native
from pyprefopt.data.columns import frame_of
from pyprefopt.data.reading.formats import lines_bytes, texts_of
from pyprefopt.errors import DataError

if TYPE_CHECKING:
    from pyprefopt.data.reading.sources import Block, ParsedBlock, Source


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
        raise DataError(f"{parsed.file}: {of_two_types([parsed], names) or one_line(error)}") from error


def of_two_types(blocks: Iterable[ParsedBlock], names: Sequence[str] | None = None) -> str:
    """Which field (of `names`, if given) has which types in which rows; empty where no field is found to have two."""
    first: dict[str, tuple[int, str]] = {}
    for block in blocks:
        lines = (block.carried or b"").split(b"\n") if not isinstance(block.carried, pa.Table) else []
        for row, line in zip(block.table["row"].to_numpy(), lines, strict=False):  # the last line is empty
            for name, value in _row(line).items():
                kind = _kind(value) if names is None or name in names else None
                before, other = first.setdefault(name, (row, kind)) if kind is not None else (row, kind)
                if kind != other:
                    return (
                        f"field '{name}' must have one type over all rows, but is {other} in row {before} and {kind} "
                        f"in row {row}; write one type in all rows, or drop the field"
                    )
    return ""


def one_line(error: Exception) -> str:
    """The first line of Polars' error about a field of two types."""
    return f"a field must have one type over all rows: {str(error).splitlines()[0]}; give it one, or drop it"


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
