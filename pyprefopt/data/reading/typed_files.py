"""Parquet and Arrow files: their columns, and their rows as batches that are sound and of bounded size."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pyprefopt.data import _native
from pyprefopt.data.arrow import broken_name, check_schema, check_sound
from pyprefopt.data.reading.files import PIECE_BYTES, DataFile, readable
from pyprefopt.data.reading.unfolding import MOST_BYTES, ROW_COST, Unfolding, unfolded_bytes
from pyprefopt.errors import DataError

BATCH_ROWS, BATCH_BYTES = 1 << 16, 1 << 30  # most of a Parquet file's batch, whatever its footer says
PAGE_HEAD_BYTES = 64  # in which a page says its kind and its size


def schema_of(file: DataFile) -> pa.Schema:
    """The columns of a Parquet or Arrow file."""
    with readable(file.name, file.suffix):
        if file.container == "parquet":
            try:
                with _parquet(file) as parquet:
                    schema = parquet.schema_arrow
            except UnicodeDecodeError as error:
                raise broken_name(error, file.name) from None
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
            check_sound(batch, f"{file.name}, {place},")
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
    """The rows of these columns. What the footer says is read by us: pyarrow ends the process where it contradicts."""
    rows, shared, unfolding = list[int](), set[str](), Unfolding(file.name, file.path.stat().st_size)
    with file.path.open("rb") as opened:
        for number, group in enumerate(_native.read_footer(_footer(opened), set(columns))):
            leaves = [_Leaf.of(opened, chunk) for chunk in group["chunks"]]
            unfolding.add(sum(max(0, leaf.values, leaf.bytes) for leaf in leaves), f"row group {number}")
            shared |= {leaf.path for leaf in leaves if leaf.may_unfold}
            wanted = group["rows"] * batch_bytes // max(1, group["bytes"])
            rows.append(max(1, min(wanted, BATCH_ROWS, *(leaf.most_rows(group["rows"]) for leaf in leaves))))
    with _parquet(file, read_dictionary=sorted(shared)) as parquet:
        for number, most in enumerate(rows):
            yield from parquet.iter_batches(most, row_groups=[number], columns=list(columns))


def _footer(opened: BinaryIO) -> bytes:
    """The bytes of a Parquet file's footer, behind which stand its length and PAR1."""
    end = opened.seek(-8, io.SEEK_END)
    length = int.from_bytes(opened.read(4), "little")
    opened.seek(max(0, end - length))
    return opened.read(length)


@dataclass(frozen=True)
class _Leaf:
    """One column chunk of values that are no lists or structs."""

    path: str
    is_text: bool
    values: int  # also those that are null
    bytes: int  # of its pages, unpacked
    longest: int  # bytes that one value may have, though it stands in fewer

    @classmethod
    def of(cls, opened: BinaryIO, chunk: dict[str, Any]) -> _Leaf:
        longest = max(0, chunk["width"])
        if chunk["is_text"] and chunk["values"] > 0:  # without values it may have no page
            opened.seek(max(0, chunk["first_page"]))
            longest = _native.dictionary_size(opened.read(PAGE_HEAD_BYTES)) or 0
        if chunk["is_delta"]:  # each value may repeat the one before
            longest = max(longest, chunk["bytes"])
        return cls(chunk["path"], chunk["is_text"], chunk["values"], chunk["bytes"], longest)

    @property
    def may_unfold(self) -> bool:
        """Whether so few bytes stand for so many values that they are read as a dictionary."""
        few = self.bytes - self.longest < 16 * self.values
        return self.is_text and few and self.values * self.longest > MOST_BYTES

    def most_rows(self, rows: int) -> int:
        """Rows of a batch of at most BATCH_BYTES, whichever values they have."""
        if self.may_unfold or self.longest <= 0:
            return BATCH_ROWS
        return BATCH_BYTES * rows // (self.longest * max(1, self.values))


# -- Arrow


_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


_Read = tuple[pa.Schema, Iterator[pa.RecordBatch]]


@contextmanager
def _arrow(file: DataFile, columns: Sequence[int] | None = None) -> Iterator[_Read]:
    """The schema and the batches (of these columns alone) of an Arrow file, in either of the two forms."""
    with file.path.open("rb") as opened:
        if opened.read(4) == b"FEA1":
            raise DataError(f"{file.name} is of Feather's first version; write it again in the second, which is Arrow")
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


def _check_packed(file: DataFile) -> None:
    """DataError where the buffers of a file are to unpack to far more than its size, before they do."""
    unfolding = Unfolding(file.name, file.path.stat().st_size)
    with pa.memory_map(str(file.path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        messages = _messages(source) if is_file else iter(pa.ipc.MessageReader.open_stream(source))
        for number, message in enumerate(messages):
            if message.type in ("record batch", "dictionary"):
                unfolding.add(_unpacked_bytes(message), f"message {number}")


def _messages(source: pa.NativeFile) -> Iterator[pa.ipc.Message]:
    """The messages that the footer of a file names."""
    end = source.size() - 10  # behind the footer stand its size and ARROW1
    source.seek(end)
    size = int.from_bytes(source.read(4), "little")
    source.seek(end - size)
    footer = _Table.root(source.read(size))
    for field in (2, 3):  # dictionaries, batches
        for offset in footer.numbers(field, 3)[:, 0] if footer.place(field) else ():
            source.seek(int(offset))
            yield pa.ipc.read_message(source)


def _unpacked_bytes(message: pa.ipc.Message) -> int:
    """What the buffers of a message unpack to: each begins with it. 0 where they are not packed."""
    table = _Table.root(message.metadata.to_pybytes()).inner(2)  # the header
    batch = table.inner(1) if message.type == "dictionary" else table
    if not batch.place(3):  # not compressed
        return 0
    body = np.frombuffer(message.body, np.uint8)
    buffers = batch.numbers(2, 2)
    starts = buffers[buffers[:, 1] >= 8, 0]
    return sum(max(0, int(body[start : start + 8].view("<i8")[0])) for start in starts if 0 <= start <= len(body) - 8)


@dataclass(frozen=True)
class _Table:
    """A table of Arrow's metadata (FlatBuffers), which its reader has verified."""

    content: bytes
    at: int

    @classmethod
    def root(cls, content: bytes) -> _Table:
        return cls(content, int.from_bytes(content[:4], "little"))

    def place(self, field: int) -> int:
        """Where the field stands; 0 where it is left out."""
        fields = self.at - int.from_bytes(self.content[self.at : self.at + 4], "little", signed=True)
        entry = fields + 4 + 2 * field
        size = int.from_bytes(self.content[fields : fields + 2], "little")
        offset = int.from_bytes(self.content[entry : entry + 2], "little") if 4 + 2 * field < size else 0
        return self.at + offset if offset else 0

    def target(self, field: int) -> int:
        place = self.place(field)
        return place + int.from_bytes(self.content[place : place + 4], "little")

    def inner(self, field: int) -> _Table:
        return _Table(self.content, self.target(field))

    def numbers(self, field: int, width: int) -> NDArray[np.int64]:
        """A vector of structs, each of so many numbers."""
        start = self.target(field)
        count = int.from_bytes(self.content[start : start + 4], "little")
        return np.frombuffer(self.content, "<i8", width * count, start + 4).reshape(-1, width)


def _arrow_batches(file: DataFile, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
    _check_packed(file)
    with _arrow(file) as (schema, _):
        names = schema.names
    with _arrow(file, [names.index(name) for name in columns]) as (_, found):
        for batch in found:
            yield batch.select(list(columns))
