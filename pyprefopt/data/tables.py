"""Tables in memory, of any library, as Arrow: recognised by what they can do, so that none is imported here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

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


def as_tables(source: Any) -> TableSource:
    """A Polars frame, pyarrow table or reader, `datasets.Dataset`, DuckDB relation, or anything with an Arrow stream.

    Raises DataError for anything else, naming the remedy.
    """
    if isinstance(source, pl.LazyFrame):
        source = source.collect()
    if isinstance(source, pl.DataFrame):
        source = source.to_arrow()
    if isinstance(source, (pa.Table, pa.RecordBatch)):
        table = pa.Table.from_batches([source]) if isinstance(source, pa.RecordBatch) else source
        return TableSource(table.schema, lambda: iter([table]), table.num_rows)
    if hasattr(source, "with_format"):
        return _dataset(source)
    for method in ("to_arrow_reader", "fetch_arrow_reader"):  # DuckDB, newer and older
        if hasattr(source, method):
            return _reader(getattr(source, method)(READER_ROWS))
    if hasattr(source, "__arrow_c_stream__"):
        return _reader(pa.RecordBatchReader.from_stream(source))
    raise DataError(
        f"the source must be a path, a list of paths or a table (Polars, pyarrow, datasets, DuckDB), got "
        f"{type(source).__module__}.{type(source).__qualname__}; pass a dict or list of rows as pl.DataFrame(rows)"
    )


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
