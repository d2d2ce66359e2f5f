"""How much data holds when it is unfolded: a small file may stand for terabytes."""

from __future__ import annotations

from dataclasses import dataclass
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
    size: int  # of the file, in bytes
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
        if folds(column.type):
            chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
            total += sum(int(_sizes(chunk).sum()) for chunk in chunks)
        else:
            total += column.nbytes
    return total


def folds(kind: pa.DataType) -> bool:
    """Whether rows of this type may share their values: dictionaries and views."""
    types = pa.types
    shared = (types.is_dictionary, types.is_string_view, types.is_binary_view, types.is_list_view,
              types.is_large_list_view)  # fmt: skip
    return any(is_kind(kind) for is_kind in shared) or any(folds(kind.field(i).type) for i in range(kind.num_fields))


def _sizes(array: Any) -> NDArray[np.int64]:
    """Bytes of each element."""
    types, kind = pa.types, array.type
    if isinstance(array, pa.ExtensionArray):
        return _sizes(array.storage)
    if types.is_dictionary(kind):
        sizes: NDArray[np.int64] = np.append(_sizes(array.dictionary), 0)
        return sizes.take(np.asarray(pc.fill_null(array.indices.cast(pa.int64()), -1)))
    if types.is_struct(kind):
        return sum(map(_sizes, array.flatten()), np.zeros(len(array), np.int64))
    return _list_sizes(array) if types.is_nested(kind) else _text_sizes(array)


def _list_sizes(array: Any) -> NDArray[np.int64]:
    types, kind = pa.types, array.type
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        starts = np.asarray(array.offsets, np.int64)
        ends = starts + np.asarray(array.sizes, np.int64)
    elif types.is_fixed_size_list(kind):
        starts = (np.arange(len(array)) + array.offset) * kind.list_size
        ends = starts + kind.list_size
    elif types.is_list(kind) or types.is_large_list(kind):
        offsets = np.asarray(array.offsets, np.int64)
        starts, ends = offsets[:-1], offsets[1:]
    else:
        return _text_sizes(array)
    before: NDArray[np.int64] = np.append(0, np.cumsum(_sizes(array.values)))
    return before[ends] - before[starts] + 8


def _text_sizes(array: Any) -> NDArray[np.int64]:
    types, kind = pa.types, array.type
    if types.is_string_view(kind) or types.is_binary_view(kind):
        views = np.frombuffer(array.buffers()[1] or b"", np.int32).reshape(-1, 4)
        return views[array.offset : array.offset + len(array), 0].astype(np.int64) + 16
    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    if any(is_kind(kind) for is_kind in texts):
        lengths = pc.fill_null(pc.binary_length(array).cast(pa.int64()), 0)
        return np.asarray(lengths, np.int64) + 8
    return np.full(len(array), max(1, array.nbytes // max(1, len(array))), np.int64)
