"""A data file with further columns: its rows, their order and their values stay as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from pyprefopt.data.columns import frame_of
from pyprefopt.data.files.data_file import DataFile
from pyprefopt.data.files.parts import BLOCK_BYTES, file_part, lines_of
from pyprefopt.data.files.typed_files import batches
from pyprefopt.data.files.writing import (
    check_new,
    convert,
    known_file,
    new_file,
    one_file,
    scan_typed,
    write_rows,
)
from pyprefopt.errors import ConfigError, DataError, counted


def check_target(path: Path, out: Path, *, overwrite: bool) -> None:
    """ConfigError where `add_columns` would refuse the names, before the columns are made."""
    source, target = one_file(path), known_file(out)
    check_new(target, path, overwrite=overwrite)
    if target.suffix == ".json" and source.container not in ("json", "csv"):
        raise ConfigError(f"out must not be a .json file here, got '{out}'; write .jsonl, which every reader takes")


def add_columns(path: Path, out: Path, columns: pl.DataFrame, *, overwrite: bool = False, remedy: str = "") -> None:
    """Write the rows of a file with further columns. A row of JSON keeps its bytes, and ends with the new fields.

    Args:
        path: a file of any kind that reading takes.
        out: the file to write, of any of these kinds.
        columns: a line a row of the file; numbers, or lists of numbers.
        overwrite: replace a file that is there.
        remedy: what to do where the file has such a column already.

    Raises:
        ConfigError: `out` is there, is the input, or is of no kind that is known; a column is there already.
        DataError: the file has another number of rows, or cannot be read.
        ArtifactError: the disk takes no more.
    """
    check_target(path, out, overwrite=overwrite)
    source, target = one_file(path), known_file(out)
    with new_file(target) as parts:
        if source.container in ("json", "csv"):
            done = write_rows(source.name, _with_fields(source, columns, remedy), target, parts)
        else:
            schema = scan_typed(source).collect_schema()
            _check_free(schema.names(), columns, source.name, remedy)
            done = convert(path, partial(_beside, source, schema, columns), target, parts)
        done.replace(target.path)


def check_columns_free(path: Path, names: Sequence[str], remedy: str) -> None:
    """ConfigError where a file has a column of these names already; of a text file its first rows are looked at."""
    part = file_part(one_file(path))
    taken = part.columns
    if taken is None:
        first = next(part.small_blocks(), None)
        taken = [] if first is None else [name for line in lines_of(first[0]) for name in json.loads(line)]
    _check_free(taken, pl.DataFrame(schema=names), str(path), remedy)


def _check_free(taken: Sequence[str], columns: pl.DataFrame, name: str, remedy: str) -> None:
    if both := [column for column in columns.columns if column in set(taken)]:
        raise ConfigError(f"{name} must not have the column '{both[0]}', which is to be written; {remedy}")


def _beside(source: DataFile, schema: pl.Schema, columns: pl.DataFrame) -> pl.LazyFrame:
    """The rows of a Parquet or Arrow file with the columns beside them, batch by batch."""

    def frames(wanted: list[str] | None, *_: object) -> Iterator[pl.DataFrame]:
        first = 0
        for batch in batches(source, schema.names(), BLOCK_BYTES):
            rows = frame_of(batch, source.name)
            further, first = columns.slice(first, rows.height), first + rows.height
            if further.height < rows.height:
                _check_rows(first, columns, source.name)
            yield rows.hstack(further) if wanted is None else rows.hstack(further).select(wanted)
        _check_rows(first, columns, source.name)

    return register_io_source(frames, schema=pl.Schema({**schema, **columns.schema}))


def _check_rows(count: int, columns: pl.DataFrame, name: str) -> None:
    if count != columns.height:
        raise DataError(
            f"{name} has {counted(count, 'row')} now, and values are there for {columns.height:,}: it has changed, "
            "run again"
        )


def _with_fields(source: DataFile, columns: pl.DataFrame, remedy: str) -> Iterator[bytes]:
    """Each row as JSON, with a field more for each column."""
    texts = [[_json(value) for value in _values(column)] for column in columns]
    names = [json.dumps(name) for name in columns.columns]
    count = 0
    for line in chain.from_iterable(lines_of(rows) for rows, _, _ in file_part(source).blocks()):
        row = json.loads(line)
        if not isinstance(row, dict):
            raise DataError(f"{source.name}, row {count}: it must be an object, got {type(row).__name__}; mend the row")
        _check_free([*row], columns, f"{source.name}, row {count}", remedy)
        if count < columns.height:
            fields = ", ".join(f"{name}: {values[count]}" for name, values in zip(names, texts, strict=True))
            yield line.rstrip()[:-1].rstrip() + f"{', ' if row else ''}{fields}}}".encode()
        count += 1
    _check_rows(count, columns, source.name)


def _values(column: pl.Series) -> list[Any]:
    """Its values, with the fewest digits that tell a float32 from others."""
    if isinstance(column.dtype, pl.List):
        return [None if value is None else _values(value) for value in column]
    if column.dtype == pl.Float32:
        return [None if value is None else float(str(np.float32(value))) for value in column]
    return column.to_list()


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
