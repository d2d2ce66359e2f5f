"""How much data holds when it is unfolded: a small file may stand for terabytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyprefopt.errors import DataError

MOST_BYTES = 256 << 20  # that any file may unfold to
MOST_TIMES = 200  # its size, that a larger file may unfold to; texts are packed to a tenth
ROW_COST = 128  # that a row counts for, whatever it holds


@dataclass
class Unfolding:
    """What a file has unfolded to so far; DataError where that is more than a data set's."""

    name: str
    size: int  # of the file, or of what was seen of a table, in bytes
    unfolded: int = 0

    def add(self, amount: int, place: str = "") -> None:
        """Count further bytes, which end at `place`."""
        self.unfolded += amount
        if self.unfolded > max(MOST_BYTES, MOST_TIMES * self.size):
            at = f", {place}," if place else ""
            raise DataError(
                f"{self.name}{at} must not unfold to more than {MOST_BYTES >> 20} MiB and {MOST_TIMES} times its "
                f"{self.size:,} bytes, as no texts do; drop what repeats in it, or write it without compression"
            )


def unfolded_bytes(batch: pa.RecordBatch | pa.Table) -> int:
    """Bytes of the columns when nothing in them is shared between rows any more; of sound data."""
    total = 0
    for column in batch.columns:
        if _folds(column.type):
            total += sum(map(_total, column.chunks if isinstance(column, pa.ChunkedArray) else [column]))
        else:
            total += column.nbytes
    return total


def largest_row(batch: pa.RecordBatch) -> tuple[int, int]:
    """Which row unfolds to most, and to how many bytes; of sound data that has a row."""
    sizes = sum(map(_sizes, batch.columns), np.zeros(batch.num_rows, np.int64))
    index = int(sizes.argmax())
    return index, int(sizes[index])


@lru_cache(maxsize=1024)
def _folds(kind: pa.DataType) -> bool:
    """Whether rows of this type may share their values: dictionaries and views."""
    types = pa.types
    shared = (types.is_dictionary, types.is_string_view, types.is_binary_view, types.is_list_view,
              types.is_large_list_view)  # fmt: skip
    return any(is_kind(kind) for is_kind in shared) or any(_folds(kind.field(i).type) for i in range(kind.num_fields))


def _total(array: Any) -> int:
    """Bytes of all elements."""
    types, kind = pa.types, array.type
    if isinstance(array, pa.ExtensionArray):
        return _total(array.storage)
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return int(_view_lengths(array).sum(dtype=np.int64)) + 16 * len(array)
    if types.is_struct(kind):
        return sum(_total(array.field(index)) for index in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        values, starts, ends = _lists(array)
        return _total(values.slice(starts[0], ends[-1] - starts[0])) + 8 * len(array) if len(array) else 0
    return int(_sizes(array).sum()) if _folds(kind) else array.nbytes


def _sizes(array: Any) -> NDArray[np.int64]:
    """Bytes of each element."""
    types, kind = pa.types, array.type
    if isinstance(array, pa.ExtensionArray):
        return _sizes(array.storage)
    if types.is_dictionary(kind):
        sizes: NDArray[np.int64] = np.append(_sizes(array.dictionary), 0)
        return sizes.take(np.asarray(pc.fill_null(array.indices.cast(pa.int64()), -1)))
    if types.is_struct(kind):
        fields = (array.field(index) for index in range(kind.num_fields))
        return sum(map(_sizes, fields), np.zeros(len(array), np.int64))
    if types.is_nested(kind) and not types.is_map(kind) and not types.is_union(kind):
        values, starts, ends = _lists(array)
        first, last = (int(starts.min()), int(ends.max())) if len(array) else (0, 0)
        part = values.slice(first, last - first)
        before: NDArray[np.int64] = np.append(0, np.cumsum(_sizes(part)))
        return before[ends - first] - before[starts - first] + 8
    return _plain_sizes(array)


def _plain_sizes(array: Any) -> NDArray[np.int64]:
    types, kind = pa.types, array.type
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return _view_lengths(array).astype(np.int64) + 16
    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    if any(is_kind(kind) for is_kind in texts):
        lengths = pc.fill_null(pc.binary_length(array).cast(pa.int64()), 0)
        return np.asarray(lengths, np.int64) + 8
    return np.full(len(array), max(1, array.nbytes // max(1, len(array))), np.int64)


def _view_lengths(array: Any) -> NDArray[np.int32]:
    views = np.frombuffer(array.buffers()[1] or b"", np.int32).reshape(-1, 4)
    return views[array.offset : array.offset + len(array), 0]


def _lists(array: Any) -> tuple[Any, NDArray[np.int64], NDArray[np.int64]]:
    """The elements of an array of lists, and where each list begins and ends in them."""
    types, kind = pa.types, array.type
    if types.is_fixed_size_list(kind):
        starts = (np.arange(len(array), dtype=np.int64) + array.offset) * kind.list_size
        return array.values, starts, starts + kind.list_size
    offsets = np.asarray(array.offsets, np.int64)
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        return array.values, offsets, offsets + np.asarray(array.sizes, np.int64)
    return array.values, offsets[:-1], offsets[1:]
