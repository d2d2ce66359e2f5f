"""Segments and per-token values on disk: Arrow IPC shards, memory-mapped through PyArrow. Polars is not imported."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyprefopt.data.arrow import as_float32, check_sound, first_line
from pyprefopt.data.store.shards import Columns, ShardedTable
from pyprefopt.errors import ArtifactError, DataError, did_you_mean

_REQUIRED = {
    "row": pa.uint64(),
    "segment": pa.uint16(),
    "kind": pa.large_string(),
    "ids": pa.large_list(pa.uint32()),
    "mask": pa.large_list(pa.bool_()),
}
_OPTIONAL = {
    "starts": pa.large_list(pa.uint32()),
    "ends": pa.large_list(pa.uint32()),
    "turns": pa.large_list(pa.uint16()),
    "score": pa.float32(),
    "cut": pa.uint32(),
}
USER_WEIGHTS = "user_weights"  # a further column of segments that came with weights: list<f32>, null for prompts
KINDS = ("prompt", "chosen", "rejected", "response")


class SegmentStore(ShardedTable):
    """A SegmentStore is the table of segments, in memory or on disk: one line a segment, grouped by row.

    A group is a prompt with its responses. On disk it is Arrow IPC shards and a manifest, and `open` maps it into
    memory.

    Example:
        >>> store = SegmentStore.write(segments, "segments")
        >>> store = SegmentStore.open("segments")
        >>> store.num_rows, store.num_lines, store.lengths.sum()
    """

    kind = "segments"
    columns: ClassVar[Columns] = {name: (kind,) for name, kind in _REQUIRED.items()}
    optional: ClassVar[Columns] = {name: (kind,) for name, kind in _OPTIONAL.items()}

    @classmethod
    def from_frame(cls, frame: Any) -> Self:
        """Take a segments frame into memory; columns are not copied.

        Args:
            frame: Polars, eager or lazy, or a PyArrow table; of schema `SEGMENTS`.

        Returns:
            A store that is not on disk.

        Raises:
            DataError: a column is missing or of another type, or the lines are not whole groups.
        """
        if hasattr(frame, "collect"):
            frame = frame.collect()
        table = frame.to_arrow() if hasattr(frame, "to_arrow") else frame
        check_sound(table, "the segments frame")
        store = cls(typed(table), {})
        store._check()
        return store

    @classmethod
    def write(cls, frame: Any, directory: str | Path, **facts: Any) -> Self:
        """Write a segments frame and open it. The same lines give the same bytes; the manifest is written last.

        Args:
            frame: as in `from_frame`.
            directory: a folder; a store that is there is replaced.
            **facts: JSON values, such as the hashes of the input and the tokenizer, that the manifest keeps.

        Returns:
            The store, mapped into memory.

        Raises:
            DataError: as in `from_frame`.
        """
        store = cls.from_frame(frame)
        return store._write(directory, **facts, groups=store.num_rows, tokens=int(store.lengths.sum()))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each line, [lines] i64."""
        return _flat(pc.list_value_length(self.table["ids"]), np.int64)

    @cached_property
    def largest_id(self) -> int:
        """The largest token id, which a tokenizer must know."""
        return max((pc.max(chunk.flatten()).as_py() or 0 for chunk in self.table["ids"].chunks), default=0)

    @cached_property
    def group_offsets(self) -> NDArray[np.int64]:
        """First line of each group, and the number of lines: [groups + 1] i64."""
        starts = np.flatnonzero(self.segments == 0)
        return np.append(starts, self.num_lines).astype(np.int64)

    @cached_property
    def segments(self) -> NDArray[np.uint16]:
        """Number of the segment within its group, [lines] u16; 0 is the prompt."""
        return _flat(self.table["segment"], np.uint16)

    @cached_property
    def rows(self) -> NDArray[np.uint64]:
        """Input row of each group, [groups] u64."""
        return _flat(self.table["row"], np.uint64)[self.group_offsets[:-1]]

    @property
    def num_rows(self) -> int:
        """Groups (input rows)."""
        return len(self.group_offsets) - 1

    @cached_property
    def longest_rows(self) -> NDArray[np.int64]:
        """Tokens of each prompt with its longest response, [groups] i64."""
        starts = self.group_offsets[:-1]
        responses = np.where(self.segments == 0, 0, self.lengths)
        return np.asarray(self.lengths[starts] + np.maximum.reduceat(responses, starts), dtype=np.int64)

    @cached_property
    def kinds(self) -> NDArray[np.uint8]:
        """Index into KINDS of each line, [lines] u8; 255 for an unknown one."""
        codes = pc.index_in(self.table["kind"], value_set=pa.array(KINDS, pa.large_string()))
        return np.asarray(pc.fill_null(codes, 255).to_numpy(), dtype=np.uint8)

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """The data's own score of each line, [lines] f32; NaN where there is none."""
        if "score" not in self.table.column_names:
            return np.full(self.num_lines, np.nan, np.float32)
        return np.asarray(pc.fill_null(self.table["score"], float("nan")).to_numpy(), dtype=np.float32)

    @cached_property
    def response_offsets(self) -> NDArray[np.int64]:
        """Where each line's values begin in a flat array over all response tokens: [lines + 1] i64; prompts have 0."""
        counts = np.where(self.segments == 0, 0, self.lengths)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @cached_property
    def response_mask(self) -> NDArray[np.bool_]:
        """`mask` of all response tokens, in the flat order of `response_offsets`."""
        responses = self.table["mask"].filter(pa.array(self.segments != 0))
        return np.asarray(pc.list_flatten(responses).to_numpy(zero_copy_only=False), dtype=np.bool_)

    def _line_tokens(self) -> NDArray[np.int64]:
        return self.lengths

    def _group_starts(self) -> NDArray[np.int64]:
        return self.group_offsets[:-1]

    def _check_written(self) -> None:
        """Lines must be whole groups, and every list as long as its ids."""
        self._check()
        row = self.table["row"].to_numpy()
        for name, kind in (_REQUIRED | _OPTIONAL).items():
            if name in self.table.column_names and pa.types.is_large_list(kind):
                lengths = _flat(pc.fill_null(pc.list_value_length(self.table[name]), -1), np.int64)
                _refuse(lengths != self.lengths, row, f"{name} must have one value per token")
        for name in ("ids", "mask"):
            if any(chunk.values.null_count for chunk in self.table[name].chunks):
                raise DataError(f"column '{name}' must have no null inside of its lists")

    def _check(self) -> None:
        """Lines must be whole groups in ascending order of rows: a prompt, then responses."""
        if not self.num_lines:
            raise DataError("the segments frame has no line; every row was rejected, or the input is empty")
        _no_nulls(self.table, _REQUIRED)
        row, segment, kinds = self.table["row"].to_numpy(), self.segments.astype(np.int64), self.kinds
        follows = (row[1:] == row[:-1]) & (segment[1:] == segment[:-1] + 1)
        begins = (row[1:] > row[:-1]) & (segment[1:] == 0)
        _refuse(
            np.append(segment[0] != 0, ~(follows | begins)),
            row,
            "segments must be 0, 1, ... within a row, rows ascending",
        )
        _refuse(kinds == 255, row, f"kind must be one of {', '.join(KINDS)}")
        _refuse((kinds == 0) != (segment == 0), row, "segment 0, and no other, must be of kind 'prompt'")
        starts = self.group_offsets[:-1]
        chosen, rejected = (np.add.reduceat(kinds == code, starts, dtype=np.int64) for code in (1, 2))
        _refuse((chosen != rejected) | (chosen > 1), self.rows, "one chosen and one rejected response make a pair")


class ValueStore(ShardedTable):
    """A ValueStore is a list of values a response, aligned with a SegmentStore's lines.

    Values are f32 (log-probs, rewards, weights) or bool (selections), one a token.

    Example:
        >>> rewards = np.zeros(store.response_offsets[-1], np.float32)  # all response tokens, one after another
        >>> ValueStore.write("rewards", store, rewards, key="zeros")
        >>> ValueStore.open("rewards").check(store).values
    """

    kind = "values"
    written = ShardedTable.written | {"key": str, "segments": str}
    columns: ClassVar[Columns] = {
        "row": (pa.uint64(),),
        "segment": (pa.uint16(),),
        "values": (pa.large_list(pa.float32()), pa.large_list(pa.bool_())),
    }

    @classmethod
    def write(cls, directory: str | Path, segments: SegmentStore, values: Any, *, key: str) -> Self:
        """Write values and open them. Prompts get null.

        Args:
            directory: a folder; a store that is there is replaced.
            segments: the segments that they belong to.
            values: f32 (other numbers become that) or bool: flat over all response tokens (NumPy, order of
                `segments.response_offsets`), or lists aligned with the lines (PyArrow or Polars).
            key: names what the values are made of.

        Returns:
            The store, mapped into memory.

        Raises:
            DataError: the values are not one per token of each response, or of another type.
        """
        lists = value_lists(segments, values, f"values of {directory}")
        table = pa.table({"row": segments.table["row"], "segment": segments.table["segment"], "values": lists})
        return cls(table, {})._write(directory, key=key, segments=segments.fingerprint)

    @property
    def values(self) -> pa.ChunkedArray:
        """large_list<float> or large_list<bool>, one list a line."""
        return self.table["values"]

    @property
    def key(self) -> str:
        """What the values are made of, as the writer named it."""
        return str(self.manifest["key"])

    def check(self, segments: SegmentStore, *, key: str | None = None) -> Self:
        """Check that the values were made for these segments.

        Args:
            segments: the segments that they are to be used with.
            key: what they must be made of; None: of anything.

        Returns:
            Itself.

        Raises:
            ArtifactError: they were made for other segments, or of something else.
        """
        for what, found, wanted in [
            ("segments", self.manifest["segments"], segments.fingerprint),
            ("key", self.key, self.key if key is None else key),
        ]:
            if found != wanted:
                raise ArtifactError(
                    f"per-token values were made for {what} {found}, not {wanted}; run their stage again"
                )
        if self.num_lines != segments.num_lines:
            raise ArtifactError(
                f"per-token values are of {self.num_lines:,} lines, and the segments have {segments.num_lines:,}; run "
                "their stage again"
            )
        return self

    def _check_written(self) -> None:
        """Lines must be numbered; whose values they are is known by the segments that they are used with."""
        _no_nulls(self.table, ("row", "segment"))

    def _line_tokens(self) -> NDArray[np.int64]:
        return np.asarray(pc.fill_null(pc.list_value_length(self.values), 0).to_numpy(), dtype=np.int64)

    def _group_starts(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.table["segment"].to_numpy() == 0)


def value_lists(segments: SegmentStore, values: Any, name: str) -> pa.ChunkedArray:
    """`values` (flat NumPy, ValueStore, PyArrow or Polars lists) as large lists aligned with the lines."""
    prompts = segments.segments == 0
    if isinstance(values, ValueStore):
        return values.check(segments).values
    if not isinstance(values, pa.Array | pa.ChunkedArray) and not hasattr(values, "__arrow_c_stream__"):
        values = _array(values, name)
    if isinstance(values, np.ndarray):
        total = int(segments.response_offsets[-1])
        if values.shape != (total,) or values.dtype.kind not in "fiub" or values.dtype.itemsize > 8:
            raise DataError(
                f"{name} must be numbers or bool [{total}] (response tokens), got {values.dtype} {values.shape}"
            )
        offsets, flat = pa.array(segments.response_offsets), as_float32(pa.array(values), name)
        return pa.chunked_array([pa.LargeListArray.from_arrays(offsets, flat, mask=pa.array(prompts))])
    lists = pa.chunked_array(values) if hasattr(values, "__arrow_c_stream__") else pa.chunked_array([values])
    check_sound(lists, name)
    if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)):
        raise DataError(f"{name} must be a column of lists, got {lists.type}")
    lists = as_float32(lists, name)
    element = lists.type.value_type
    if element not in (pa.float32(), pa.bool_()) or len(lists) != segments.num_lines:
        raise DataError(
            f"{name} must be {segments.num_lines} lists of numbers or bool, got {len(lists)} of {element}; cast or "
            "align the column"
        )
    lists = lists.cast(pa.large_list(element))
    if lists.filter(pa.array(prompts)).null_count != prompts.sum():
        lists = pc.if_else(pa.array(prompts), pa.scalar(None, lists.type), lists)
    wrong = np.asarray(pc.fill_null(pc.list_value_length(lists), -1).to_numpy()) != np.where(
        prompts, -1, segments.lengths
    )
    _refuse(wrong, segments.table["row"].to_numpy(), f"{name} must have one value per token of a response")
    return lists


def _array(values: Any, name: str) -> Any:
    """NumPy of what can be that (a tensor), Arrow lists of Python's. DataError for anything else."""
    try:
        return np.asarray(values) if hasattr(values, "__array__") else pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name} must be an array of one number a response token, or a column of lists, got one of type "
            f"{type(values).__name__} ({first_line(error)})"
        ) from None


def scatter_values(
    segments: SegmentStore,
    response_lines: NDArray[np.int64],
    lengths: NDArray[Any],
    values: NDArray[Any],
    *,
    partial: bool = False,
) -> NDArray[Any]:
    """Bring values of scored tokens back into the flat order of `ValueStore.write`.

    response_lines [R] and lengths [R] are `response_line` and `scored_length` of packed batches without selection, one
    after the other; values [M] (float32 or bool) follows their order. Positions outside `mask` are 0 (False). Lines of
    -1 (zero-loss batches) are passed over. Unless `partial`, every response must be there, and none may be twice.
    """
    lines, counts = np.asarray(response_lines, np.int64), np.asarray(lengths).astype(np.int64)
    if counts.sum() != len(values) or len(lines) != len(counts):
        raise DataError(f"lengths of {len(lines)} responses sum to {counts.sum()}, but there are {len(values)} values")
    offsets, mask = segments.response_offsets, segments.response_mask
    masked = np.diff(np.concatenate([[0], np.cumsum(mask)])[offsets])  # [lines] tokens in the mask
    starts = np.cumsum(counts) - counts
    order = np.argsort(lines, kind="stable")
    order = order[lines[order] >= 0]
    lines, counts, starts = lines[order], counts[order], starts[order]
    row = segments.table["row"].to_numpy()
    _refuse(np.append(lines[1:] == lines[:-1], False), row[lines], "values of a response must come once")
    _refuse(counts != masked[lines], row[lines], "values must be those of all tokens in the mask, without selection")
    covered = np.zeros(segments.num_lines, np.bool_)
    covered[lines] = True
    if not partial:
        _refuse(~covered & (segments.segments != 0), row, "values of a response are missing")
    flat = np.zeros(len(mask), values.dtype)
    gather = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    flat[np.repeat(covered, np.diff(offsets)) & mask] = values[gather]
    return flat


def _flat(column: pa.ChunkedArray, dtype: Any) -> NDArray[Any]:
    """A column of numbers without nulls as one array (`to_numpy` would import pandas: a second of every start)."""
    return np.concatenate([np.empty(0, dtype), *(np.from_dlpack(chunk) for chunk in column.chunks)], dtype=dtype)


def typed(table: pa.Table) -> pa.Table:
    """The table with its known columns first, in the widths of the store."""
    names = set(table.column_names)
    for name, dtype in _REQUIRED.items():
        if name not in names:
            raise DataError(f"the segments frame has no column '{name}' ({dtype}){did_you_mean(name, names)}")
    known = [name for name in _REQUIRED | _OPTIONAL if name in names]
    extra = [name for name in table.column_names if name not in known]
    columns = {}
    for name in known:
        wanted = (_REQUIRED | _OPTIONAL)[name]
        try:
            columns[name] = table[name] if table[name].type == wanted else table[name].cast(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"column '{name}' must be {wanted}, got {table[name].type}: {error}") from None
    columns |= {name: table[name] for name in extra}
    return pa.Table.from_arrays(list(columns.values()), names=list(columns))  # pa.table would import pandas


def _no_nulls(table: pa.Table, names: Iterable[str]) -> None:
    """DataError where one of the columns has a null line."""
    for name in names:
        if table[name].null_count:
            raise DataError(f"column '{name}' of the segments frame has {table[name].null_count} nulls; drop them")


def _refuse(bad: NDArray[np.bool_], rows: NDArray[Any], rule: str) -> None:
    """DataError naming the first bad row, if there is one."""
    if bad.any():
        raise DataError(
            f"row {rows[int(np.argmax(bad))]}: {rule}" + (f" (and {bad.sum() - 1} more)" if bad.sum() > 1 else "")
        )
