"""Parquet and Arrow files: their columns, and their rows as batches that are sound and of bounded size."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pyprefopt.data import _native
from pyprefopt.data.arrow import broken_name, check_schema, check_sound
from pyprefopt.data.files.data_file import PIECE_BYTES, DataFile, readable
from pyprefopt.data.files.unfolding import MOST_BYTES, ROW_COST, Unfolding, largest_row, unfolded_bytes
from pyprefopt.errors import DataError

BATCH_ROWS, BATCH_BYTES = 1 << 16, 1 << 30  # most of a Parquet file's batch, whatever its footer says
_REFERRING = (2, 7, 8)  # encodings of Parquet: PLAIN_DICTIONARY, DELTA_BYTE_ARRAY, RLE_DICTIONARY
_LOOKED_AT, _MOST_PAGES = 16 << 20, 100_000  # bytes of a dictionary, and pages of a column, that are looked at
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}  # of Parquet; 0: not packed
_DICTIONARY_PAGE = 2


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


def batches(
    file: DataFile, columns: Collection[str], batch_bytes: int, sound: dict[int, set[str]] | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows of a Parquet file (by row groups, large ones in slices of about `batch_bytes`) or an Arrow file.

    Each batch is sound: nothing in it lies about its lengths. `sound` has the columns of an Arrow file's batches that
    an earlier pass has looked at. DataError, too, for a file that unfolds to far more than its size.
    """
    unfolding, row = Unfolding(file.name, file.path.stat().st_size), 0
    with readable(file.name, file.suffix):
        plain = schema_of(file)
        plain = pa.schema([field for field in plain if field.name in set(columns)])
        parquet = file.container == "parquet"
        found = _parquet_batches(file, plain.names, batch_bytes) if parquet else _arrow_batches(file, plain.names)
        for number, batch in enumerate(found):
            place = f"after row {row}"
            unfolding.add(batch.num_rows * ROW_COST, place)
            known: set[str] = set() if parquet or sound is None else sound.setdefault(number, set())
            check_sound(batch.select([name for name in plain.names if name not in known]), f"{file.name}, {place},")
            known.update(plain.names)
            unfolded = unfolded_bytes(batch)
            unfolding.add(unfolded, place)
            if unfolded > BATCH_BYTES:
                _check_rows(batch, row, file.name)
            yield from [batch] if batch.schema.types == plain.types else _unfold(batch, plain, batch_bytes)
            row += batch.num_rows


def _check_rows(batch: pa.RecordBatch, first: int, name: str) -> None:
    """DataError for a row that is too large to be unfolded, whatever the file's size."""
    row, unfolded = largest_row(batch)
    if unfolded > BATCH_BYTES:
        raise DataError(
            f"{name}, row {first + row}, must not unfold to more than {BATCH_BYTES >> 20} MiB, got "
            f"{unfolded >> 20:,} MiB; drop what repeats in it, or leave the row out"
        )


def _unfold(batch: pa.RecordBatch, schema: pa.Schema, most: int) -> Iterator[pa.RecordBatch]:
    """The rows of a batch in the types of the schema, where it was read with dictionaries; `most` bytes, or one row."""
    waiting = [batch]
    while waiting:
        part = waiting.pop()
        if part.num_rows > 1 and unfolded_bytes(part) > most:
            half = part.num_rows // 2
            waiting += [part.slice(half), part.slice(0, half)]
        else:
            yield part.cast(schema)


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
    in_a_row: int  # bytes that those of one row may have, where they stand in a list of them

    @classmethod
    def of(cls, opened: BinaryIO, chunk: dict[str, Any]) -> _Leaf:
        longest = max(0, chunk["width"])
        if chunk["is_text"] and chunk["values"] > 0:  # without values it may have no page
            longest = _dictionary_bytes(opened, chunk["first_page"])
        if chunk["is_delta"]:  # each value may repeat the one before
            longest = max(longest, chunk["bytes"])
        leaf = cls(chunk["path"], chunk["is_text"], chunk["values"], chunk["bytes"], longest, 0)
        if not chunk["in_lists"] or leaf.values * longest <= MOST_BYTES or leaf.may_unfold:
            return leaf
        return replace(leaf, in_a_row=_referring(opened, chunk) * _longest_entry(opened, chunk, longest))

    @property
    def may_unfold(self) -> bool:
        """Whether so few bytes stand for so many values that they are read as a dictionary."""
        few = self.bytes - self.longest < 16 * self.values or self.in_a_row > MOST_BYTES
        return self.is_text and self.values * self.longest > MOST_BYTES and few

    def most_rows(self, rows: int) -> int:
        """Rows of a batch of at most BATCH_BYTES, whichever values they have."""
        if self.may_unfold or self.longest <= 0:
            return BATCH_ROWS
        return BATCH_BYTES * rows // (self.longest * max(1, self.values))


def _dictionary_bytes(opened: BinaryIO, offset: int) -> int:
    """The unpacked size of the dictionary at an offset; 0 where none is there."""
    header, _ = _page(opened, offset)
    return max(0, _number(header, 2)) if _number(header, 1) == _DICTIONARY_PAGE else 0


def _referring(opened: BinaryIO, chunk: dict[str, Any]) -> int:
    """Values that stand in pages of references, or that repeat the one before; all, where the pages are not plain."""
    offset, count, whole = chunk["first_page"], 0, int(chunk["values"])
    end = offset + chunk["packed"]
    for _ in range(_MOST_PAGES):
        if offset >= end:
            return min(count, whole)
        header, begins = _page(opened, offset)
        if _number(header, 3) < 0:
            return whole
        for field, encoding in ((5, 2), (8, 4)):  # data pages of both versions
            page = header.get(field)
            if isinstance(page, dict) and _number(page, encoding) in _REFERRING:
                count += max(0, _number(page, 1))
        offset = begins + _number(header, 3)
    return whole


def _longest_entry(opened: BinaryIO, chunk: dict[str, Any], most: int) -> int:
    """Bytes of the longest text in the dictionary; `most` where it cannot be looked at."""
    if chunk["is_delta"] or most > _LOOKED_AT:
        return most
    header, begins = _page(opened, chunk["first_page"])
    opened.seek(begins)
    content = opened.read(max(0, _number(header, 3)))
    try:
        if chunk["codec"] != 0:
            content = pa.Codec(_CODECS[chunk["codec"]]).decompress(content, most, asbytes=True)
    except (pa.ArrowException, KeyError, ValueError, OSError):
        return most
    at, longest = 0, 0
    while at + 4 <= len(content):
        length = int.from_bytes(content[at : at + 4], "little")
        at, longest = at + 4 + length, max(longest, length)
    return min(longest, most)


def _page(opened: BinaryIO, offset: int) -> tuple[dict[int, Any], int]:
    """A page's header (Thrift's compact protocol) by the numbers of its fields, and where its content begins.

    No field, where it is none.
    """
    opened.seek(max(0, offset))
    content = opened.read(1 << 16)
    try:
        header, size = _fields(content, 0)
    except (IndexError, ValueError):
        return {}, offset
    return header, offset + size


def _number(fields: dict[int, Any], field: int) -> int:
    """A whole number of a page's header; -1 where there is none."""
    value = fields.get(field)
    return value if isinstance(value, int) else -1


def _fields(content: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    found: dict[int, Any] = {}
    field = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = content[at], at + 1
            value, shift = value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80 or shift > 63:
                return value

    def signed() -> int:
        value = number()
        return value >> 1 ^ -(value & 1)

    while True:
        byte, at = content[at], at + 1
        kind = byte & 15
        if byte == 0:
            return found, at
        field = field + (byte >> 4) if byte >> 4 else signed()
        if kind in (4, 5, 6):  # whole numbers
            found[field] = signed()
        elif kind == 8:  # bytes
            at += number()
        elif kind == 12 and depth < 3:
            found[field], at = _fields(content, at, depth + 1)
        elif kind not in (1, 2):  # true and false have no content
            raise ValueError(f"a page's header has no field of kind {kind}")


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
