"""Parquet and Arrow files: their columns, and their rows as batches that are sound and of bounded size."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from pyprefopt.data.arrow import check_schema, check_sound
from pyprefopt.data.reading.files import PIECE_BYTES, DataFile, readable
from pyprefopt.data.reading.unfolding import MOST_BYTES, ROW_COST, Unfolding, unfolded_bytes

BATCH_ROWS, BATCH_BYTES = 1 << 16, 1 << 30  # most of a Parquet file's batch, whatever its footer says


def schema_of(file: DataFile) -> pa.Schema:
    """The columns of a Parquet or Arrow file."""
    with readable(file.name, file.suffix):
        if file.container == "parquet":
            with _parquet(file) as parquet:
                schema = parquet.schema_arrow
        else:
            with _arrow(file) as (schema, _):
                pass
        return check_schema(schema, file.name)


def rows_of(file: DataFile) -> int | None:
    """The rows of a file, where its footer has their number."""
    if file.container != "parquet":
        return None
    with readable(file.name, file.suffix), _parquet(file) as parquet:
        return int(parquet.metadata.num_rows)


def batches(file: DataFile, columns: Collection[str], batch_bytes: int) -> Iterator[pa.RecordBatch]:
    """Rows of a Parquet file (by row groups, large ones in slices of about `batch_bytes`) or an Arrow file.

    Each batch is sound: nothing in it lies about its lengths. DataError, too, for a file that unfolds to far more than
    its size.
    """
    unfolding, row = Unfolding(file.name, file.path.stat().st_size), 0
    with readable(file.name, file.suffix):
        plain = schema_of(file)
        plain = pa.schema([field for field in plain if field.name in set(columns)])
        parquet = file.container == "parquet"
        for batch in _parquet_batches(file, plain.names, batch_bytes) if parquet else _arrow_batches(file, plain.names):
            place = f"after row {row}"
            unfolding.add(batch.num_rows * ROW_COST, place)
            check_sound(batch, f"{file.name}, {place}")
            unfolded = unfolded_bytes(batch)
            unfolding.add(unfolded, place)
            yield from [batch] if batch.schema.types == plain.types else _unfold(batch, plain, unfolded // batch_bytes)
            row += batch.num_rows


def _unfold(batch: pa.RecordBatch, schema: pa.Schema, parts: int) -> Iterator[pa.RecordBatch]:
    """The rows of a batch in the types of the schema, where it was read with dictionaries; so many parts, and one."""
    step = max(1, batch.num_rows // (parts + 1))
    for start in range(0, batch.num_rows, step):
        yield batch.slice(start, step).cast(schema)


# -- Parquet


def _parquet(file: DataFile, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(file.path, buffer_size=PIECE_BYTES, pre_buffer=False, **options)


def _parquet_batches(file: DataFile, columns: Collection[str], batch_bytes: int) -> Iterator[pa.RecordBatch]:
    with _parquet(file) as parquet:
        metadata = parquet.metadata
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    read = [index for index, path in enumerate(paths) if not set(columns).isdisjoint(accumulate(path.split("."), _dotted))]
    rows, shared, unfolding = list[int](), set[str](), Unfolding(file.name, file.path.stat().st_size)
    with file.path.open("rb") as opened:
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            leaves = [_Leaf.of(opened, group.column(index)) for index in read]
            unfolding.add(sum(max(0, leaf.values) for leaf in leaves), f"row group {number}")
            shared |= {leaf.path for leaf in leaves if leaf.may_unfold}
            wanted = group.num_rows * batch_bytes // max(1, group.total_byte_size)
            rows.append(max(1, min(wanted, BATCH_ROWS, *(leaf.most_rows(group.num_rows) for leaf in leaves))))
    with _parquet(file, metadata=metadata, read_dictionary=sorted(shared)) as parquet:
        for number, most in enumerate(rows):
            yield from parquet.iter_batches(most, row_groups=[number], columns=list(columns))


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}"


@dataclass(frozen=True)
class _Leaf:
    """One column chunk of values that are no lists or structs."""

    path: str
    values: int  # also those that are null
    bytes: int  # of its pages, unpacked
    longest: int  # bytes that one value may have, though it stands in fewer

    @classmethod
    def of(cls, opened: BinaryIO, chunk: Any) -> _Leaf:
        longest = 0
        if chunk.physical_type == "BYTE_ARRAY" and chunk.has_dictionary_page:
            longest = _page_bytes(opened, chunk.dictionary_page_offset)
        if "DELTA_BYTE_ARRAY" in chunk.encodings:  # each value may repeat the one before
            longest = max(longest, chunk.total_uncompressed_size)
        return cls(chunk.path_in_schema, chunk.num_values, chunk.total_uncompressed_size, longest)

    @property
    def may_unfold(self) -> bool:
        """Whether so few bytes stand for so many values that they are read as a dictionary."""
        return self.values * self.longest > MOST_BYTES and self.bytes - self.longest < 16 * self.values

    def most_rows(self, rows: int) -> int:
        """Rows of a batch of at most BATCH_BYTES, whichever values they have."""
        if self.may_unfold or self.longest <= 0:
            return BATCH_ROWS
        return BATCH_BYTES * rows // (self.longest * max(1, self.values))


def _page_bytes(opened: BinaryIO, offset: int) -> int:
    """The unpacked size of the page at an offset, the second number of its header (Thrift's compact protocol)."""
    opened.seek(offset)
    numbers, header = [0, 0], iter(opened.read(16))
    for index in range(2):
        next(header, 0)  # which field it is, and its type
        for shift in range(0, 35, 7):
            byte = next(header, 0)
            numbers[index] |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
    return numbers[1] >> 1


# -- Arrow


_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@contextmanager
def _arrow(file: DataFile, columns: Sequence[int] | None = None) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """The schema and the batches (of these columns alone) of an Arrow file, in either of the two forms."""
    options = pa.ipc.IpcReadOptions(included_fields=None if columns is None else list(columns))
    with pa.memory_map(str(file.path)) as source:
        if source.read(6) == b"ARROW1":
            source.seek(0)
            reader = pa.ipc.open_file(source, options=options)
            yield reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            source.seek(max(0, source.size() - len(_STREAM_END)))
            if source.read(len(_STREAM_END)) != _STREAM_END:  # a stream cut between two batches reads as a shorter one
                raise pa.ArrowInvalid("the stream does not end with Arrow's end-of-stream mark")
            source.seek(0)
            stream = pa.ipc.open_stream(source, options=options)
            yield stream.schema, iter(stream)


def _arrow_batches(file: DataFile, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
    with _arrow(file) as (schema, _):
        names = schema.names
    with _arrow(file, [names.index(name) for name in columns]) as (_, found):
        for batch in found:
            yield batch.select(list(columns))
