"""One file or table of a source as blocks of rows: none is larger than its bounds, and the input alone decides them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyprefopt.data import _native
from pyprefopt.data.files.data_file import DataFile, Meter, pieces
from pyprefopt.data.files.tables import FRAME, TableSource
from pyprefopt.data.files.typed_files import batches, rows_of, schema_of
from pyprefopt.data.files.unfolding import ROW_COST, Unfolding, unfolded_bytes
from pyprefopt.data.renaming import Pairs, renamed, renamed_rows
from pyprefopt.errors import DataError

BLOCK_BYTES = 16 << 20  # of input text; a block ends with the row that fills it
BLOCK_ROWS = 1 << 15
HEAD_BYTES = 1 << 20  # of a text file, by which its format is known
UNIT_ROWS = 256  # of typed rows, measured together
ROW_BYTES = 64 << 20  # a longer row of a text file is an error

Piece = tuple[pa.Array | pa.Table, int, int | None]  # rows, their number, first line
_Read = Callable[[Sequence[str] | None, int], Iterator[Piece]]


@dataclass(frozen=True)
class Part:
    """A Part is one file or frame of a source."""

    name: str
    read: _Read
    columns: list[str] | None = None  # of typed rows
    meter: Meter = field(default_factory=Meter)
    file: DataFile | None = None
    rows: int | None = None  # where known without reading
    kept: NDArray[np.bool_] | None = None  # which rows a mixture takes; None: all

    def blocks(self, columns: Sequence[str] | None = None, size: int | None = None) -> Iterator[Piece]:
        """Its rows in blocks of `size` bytes (BLOCK_BYTES), with these columns of typed rows, or all."""
        return self.read(columns, BLOCK_BYTES if size is None else size)

    def small_blocks(self, columns: Sequence[str] | None = None) -> Iterator[Piece]:
        """The same in blocks of HEAD_BYTES, of which the first shows what the rows are."""
        return self.read(columns, HEAD_BYTES)

    def head(self, rows: int) -> Part:
        """The same part with so many of its first rows, or a few more, in small blocks."""
        return replace(self, read=partial(_first_blocks, self, rows))


def file_part(file: DataFile) -> Part:
    """A file as a part of a source."""
    meter = Meter(file.path.stat().st_size)
    if file.container in ("json", "csv"):
        return Part(file.name, lambda _, size: _text_blocks(file, meter, size), meter=meter, file=file)
    schema = schema_of(file)
    sound: dict[int, set[str]] = {}

    def blocks(columns: Sequence[str] | None, size: int) -> Iterator[tuple[pa.Table, int, None]]:
        wanted = [name for name in schema.names if columns is None or name in columns]
        return _table_blocks(_metered(batches(file, wanted, size, sound), meter, rows_of(file)), size)

    return Part(file.name, blocks, list(schema.names), meter, file, rows_of(file))


def table_part(source: TableSource, name: str = FRAME) -> Part:
    """A table as a part of a source, under its name."""

    def blocks(columns: Sequence[str] | None, size: int) -> Iterator[tuple[pa.Table, int, None]]:
        wanted = [name for name in source.schema.names if columns is None or name in columns]
        return _table_blocks((batch.select(wanted) for batch in _bounded(source, name)), size)

    return Part(name, blocks, list(source.schema.names), rows=source.rows)


def _bounded(source: TableSource, name: str) -> Iterator[pa.RecordBatch | pa.Table]:
    """The batches of a table; DataError where its rows share so much that it stands for a far larger one."""
    unfolding, rows = Unfolding(name, 0), 0
    for batch in source.batches():
        rows += batch.num_rows
        unfolding.size += batch.nbytes
        unfolding.add(unfolded_bytes(batch), f"with row {rows - 1}")
        yield batch


def lines_of(rows: pa.Array) -> Iterator[bytes]:
    """The rows of a block of a text file, each as JSON."""
    return (line for line in rows.to_numpy().tobytes().split(b"\n") if line.strip())


def renamed_part(part: Part, pairs: Pairs) -> Part:
    """The part with its columns under the new names."""
    names = None if part.columns is None else renamed(part.columns, pairs)

    def blocks(columns: Sequence[str] | None, size: int) -> Iterator[Piece]:
        theirs = columns
        if columns is not None and part.columns is not None and names is not None:
            theirs = [old for old, new in zip(part.columns, names, strict=True) if new in columns]
        for rows, count, line in part.blocks(theirs, size):
            yield renamed_rows(rows, pairs), count, line

    return replace(part, read=blocks, columns=names)


def _first_blocks(part: Part, rows: int, columns: Sequence[str] | None, size: int) -> Iterator[Piece]:
    """Small blocks until there are so many rows."""
    seen = 0
    for piece, count, line in part.blocks(columns, min(size, HEAD_BYTES)):
        yield piece, count, line
        seen += count
        if seen >= rows:
            return


def _metered(batches: Iterable[pa.RecordBatch], meter: Meter, rows: int | None) -> Iterator[pa.RecordBatch]:
    """The batches; `meter` follows by the share of `rows`, or of the bytes where rows are not known."""
    seen = 0
    for batch in batches:
        seen += batch.nbytes if rows is None else batch.num_rows
        meter.read = min(meter.total, seen if rows is None else meter.total * seen // max(1, rows))
        yield batch


def _text_blocks(file: DataFile, meter: Meter, block_bytes: int) -> Iterator[tuple[pa.Array, int, int | None]]:
    stream = pieces(file, meter)
    head = next(stream, b"")
    layout = file.layout(head)
    splitter = _native.TextBlocks(
        layout,
        delimiter=ord(file.delimiter),
        block_bytes=block_bytes,
        block_rows=BLOCK_ROWS,
        row_bytes=ROW_BYTES,
    )
    cut = chain(map(splitter.push, chain([head], stream)), iter([None]))
    unfolding = Unfolding(file.name, file.path.stat().st_size)
    while True:
        try:
            full = next(cut, [])
            last = full is None
            for data, rows, line in splitter.finish() if full is None else full:
                unfolding.add(rows * ROW_COST, f"line {line}" if layout == "lines" else "")
                yield pa.array(data), rows, line if layout == "lines" else None
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{file.name}: {error}; mend the file") from error
        if last:
            return


def _table_blocks(batches: Iterable[pa.RecordBatch | pa.Table], size: int) -> Iterator[tuple[pa.Table, int, None]]:
    """Rows joined until a block is full; large rows in smaller steps."""
    pending: list[pa.Table] = []
    pending_bytes = pending_rows = 0
    for unit in _units(batches):
        step = max(1, min(BLOCK_ROWS, unit.num_rows * size // max(1, unfolded_bytes(unit))))
        for start in range(0, unit.num_rows, step):
            piece = unit.slice(start, step)
            pending.append(piece)
            pending_bytes, pending_rows = pending_bytes + unfolded_bytes(piece), pending_rows + piece.num_rows
            if pending_bytes >= size or pending_rows >= BLOCK_ROWS:
                yield pa.concat_tables(pending), pending_rows, None
                pending, pending_bytes, pending_rows = [], 0, 0
    if pending:
        yield pa.concat_tables(pending), pending_rows, None


def _units(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of UNIT_ROWS, wherever the batches end: a library may cut them as it likes."""
    pending: list[pa.Table] = []
    missing = UNIT_ROWS
    for batch in batches:
        table, start = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch, 0
        while start < table.num_rows:
            pending.append(table.slice(start, missing))
            start, missing = start + pending[-1].num_rows, missing - pending[-1].num_rows
            if missing == 0:
                yield pa.concat_tables(pending).combine_chunks()
                pending, missing = [], UNIT_ROWS
    if pending:
        yield pa.concat_tables(pending).combine_chunks()
