"""Tables in memory, of any library, as Arrow: recognised by what they can do, so that none is imported here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pyprefopt.data.arrow import check_schema, check_sound, first_line
from pyprefopt.errors import DataError

FRAME = "<frame>"
READER_ROWS = 4096  # asked for at once where the rows' sizes are not known


@dataclass(frozen=True)
class TableSource:
    """`batches()` gives pyarrow batches or tables, in order; a reader's only once."""

    schema: pa.Schema
    batches: Callable[[], Iterator[pa.RecordBatch | pa.Table]]
    rows: int | None = None


def to_table(stream: Any) -> pa.Table:
    """Anything with an Arrow stream as a table, its batches as they are (`pa.table` would import pandas first)."""
    return pa.RecordBatchReader.from_stream(stream).read_all()


def without_views(table: pa.Table) -> pa.Table:
    """The table with view types (`string_view`, `list_view`, ...) as plain ones, which PyArrow and Polars can take."""
    columns = [_without_views(column, name) for name, column in zip(table.column_names, table.columns, strict=True)]
    return pa.Table.from_arrays(columns, names=table.column_names)


def _without_views(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type):
        lists = column.combine_chunks()  # rebuilt, because PyArrow's cast gives offsets that do not rise
        offsets = np.append(0, np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)))
        values = _without_views(pa.chunked_array([lists.flatten()]), name).combine_chunks()
        return pa.chunked_array(
            [pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values, mask=lists.is_null())]
        )
    plain = _plain(column.type, name)
    return column if plain == column.type else column.cast(plain)


def _plain(kind: pa.DataType, name: str) -> pa.DataType:
    """The type with strings and bytes in the place of their views. DataError for views of lists in it."""
    types = pa.types
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        raise DataError(f"column '{name}' holds list views inside of another type; write them as lists, or drop it")
    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type, name)) for field in kind])
    for is_kind, make in ((types.is_list, pa.list_), (types.is_large_list, pa.large_list)):
        if is_kind(kind):
            return make(kind.value_field.with_type(_plain(kind.value_type, name)))
    if types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type, name)), kind.list_size)
    return kind


def as_tables(source: Any) -> TableSource:
    """A Polars frame, pyarrow table or reader, `datasets.Dataset`, DuckDB relation, or anything with an Arrow stream.

    Raises DataError for anything else, naming the remedy.
    """
    if isinstance(source, pl.LazyFrame):
        source = source.collect()
    if isinstance(source, pl.DataFrame):  # made by Polars, and sound
        table = source.to_arrow()
        return TableSource(check_schema(table.schema, FRAME), lambda: iter([table]), table.num_rows)
    if isinstance(source, (pa.Table, pa.RecordBatch)):
        table = pa.Table.from_batches([source]) if isinstance(source, pa.RecordBatch) else source
        return _checked(TableSource(table.schema, lambda: iter([table]), table.num_rows))
    if hasattr(source, "with_format"):
        return _checked(_dataset(source))
    for method in ("to_arrow_reader", "fetch_arrow_reader"):  # DuckDB, newer and older
        if hasattr(source, method):
            return _checked(_reader(getattr(source, method)(READER_ROWS)))
    if hasattr(source, "__arrow_c_stream__"):
        try:
            reader = pa.RecordBatchReader.from_stream(source)
        except (pa.ArrowException, ValueError, TypeError) as error:  # pandas: a column twice, or of several types
            raise DataError(
                f"the source must be a table whose columns have each a name and a type of their own, got one of type "
                f"{type(source).__name__} ({first_line(error)}); mend its columns, or give a file"
            ) from error
        return _checked(_reader(reader))
    raise DataError(
        f"the source must be a path, a list of paths or a table (Polars, pyarrow, datasets, DuckDB), got "
        f"{type(source).__module__}.{type(source).__qualname__}; pass a dict or list of rows as pl.DataFrame(rows)"
    )


def _checked(source: TableSource) -> TableSource:
    """The source, whose schema is sound, and whose batches are looked at as they come, once in all passes."""
    sound = 0  # rows

    def batches() -> Iterator[pa.RecordBatch | pa.Table]:
        nonlocal sound
        row = 0
        for batch in source.batches():
            end = row + batch.num_rows
            if end > sound or not batch.num_rows:
                check_sound(batch, f"{FRAME}, after row {row},")
                sound = max(sound, end)
            yield batch
            row = end

    return replace(source, schema=check_schema(source.schema, FRAME), batches=batches)


def _dataset(source: Any) -> TableSource:
    if isinstance(source, dict):
        splits = ", ".join(map(str, source))
        raise DataError(f"the source holds the splits {splits}; pass one of them, as dataset['{next(iter(source))}']")
    if not hasattr(source, "__len__"):
        raise DataError("the source is a dataset without a length (streamed); pass files, or a loaded datasets.Dataset")
    view, rows = source.with_format("arrow"), len(source)

    def slices() -> Iterator[pa.Table]:
        for start in range(0, rows, READER_ROWS):
            yield view[start : min(start + READER_ROWS, rows)]

    return TableSource(source.features.arrow_schema, slices, rows)


def _reader(reader: pa.RecordBatchReader) -> TableSource:
    """The first pass is a look at the first rows, which are kept for the second; there is no third."""
    kept: list[pa.RecordBatch] = []
    passes = iter(range(3))

    def batches() -> Iterator[pa.RecordBatch]:
        number = next(passes, 2)
        if number == 0:
            for batch in reader:
                kept.append(batch)
                yield batch
        elif number == 1:
            while kept:
                yield kept.pop(0)
            yield from reader
        else:
            raise DataError("the source is a reader, which can be read once, and it has been; pass a table or a file")

    return TableSource(reader.schema, batches)
