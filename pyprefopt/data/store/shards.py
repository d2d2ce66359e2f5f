"""Tables on disk: Arrow IPC shards of bounded size and a manifest, memory-mapped through PyArrow."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Generic, Self, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyprefopt.data.arrow import check_schema, check_sound, first_line
from pyprefopt.errors import ArtifactError, DataError, counted
from pyprefopt.storage import files
from pyprefopt.storage.folders import MANIFEST, Folder
from pyprefopt.storage.shape import Shape, misfit

SCHEMA_VERSION = 3
Shard = dict[str, Any]  # of the shape SHARD: a shard as the manifest names it
Columns = Mapping[str, tuple[pa.DataType, ...]]  # name -> its type, or those that it may have
SHARD: Shape = {"file": str, "bytes": int, "sha256": str, "lines": int}
SHARD_TOKENS = 1 << 24  # tokens of one shard at most, one group at least


class ShardedTable:
    """A table in shards with a manifest; what `SegmentStore` and `ValueStore` share."""

    kind: str  # which of the two, in the manifest
    written: ClassVar[Shape] = {"shards": [SHARD], "fingerprint": str, "lines": int}  # of its manifest, at least
    columns: ClassVar[Columns]  # that it must have, each of one of these types
    optional: ClassVar[Columns] = {}  # that it may have

    def __init__(
        self, table: pa.Table | Callable[[], pa.Table], manifest: dict[str, Any], shards: Sequence[Path] = ()
    ) -> None:
        self._table, self.manifest, self._paths = table, manifest, shards

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_lines:,} lines: {', '.join(self.table.column_names)})"

    @cached_property
    def table(self) -> pa.Table:
        """All lines; shards on disk are mapped into memory when they are first asked for."""
        return self._table() if callable(self._table) else self._table

    @property
    def num_lines(self) -> int:
        """Lines of the table: one a segment."""
        return int(self.table.num_rows)

    @classmethod
    def open(cls, directory: str | Path, *, verify: bool = False) -> Self:
        """Open the shards of a finished store by memory map.

        Args:
            directory: of a store that was written.
            verify: compare each shard's SHA-256 with the manifest's, which takes about a second a gigabyte.

        Returns:
            The store.

        Raises:
            ArtifactError: something is missing or cut, is a store of another kind, or (`verify`) is damaged.
        """
        directory = Path(directory)
        manifest = Folder(directory).manifest
        found = (manifest.get("kind"), manifest.get("schema_version"))
        if found != (cls.kind, SCHEMA_VERSION):
            raise ArtifactError(
                f"{directory}/{MANIFEST} has kind and schema version {found}, but this is read as "
                f"{(cls.kind, SCHEMA_VERSION)}; delete the folder and run its stage again"
            )
        if wrong := misfit(manifest, cls.written) or misnamed(manifest["shards"]):
            raise damaged(directory / MANIFEST, wrong)
        paths = [_present(directory, shard) for shard in manifest["shards"]]
        if verify:
            check_shards(directory, manifest["shards"])
        return cls(lambda: cls._mapped(directory, paths, manifest["shards"]), manifest, paths)

    def tables(self) -> Iterator[pa.Table]:
        """All lines, a shard at a time, each mapped into memory only while it is looked at."""
        if not self._paths:  # in memory
            yield self.table
            return
        for path, shard in zip(self._paths, self.manifest["shards"], strict=True):
            yield self._map(path, shard["lines"])

    @classmethod
    def _mapped(cls, directory: Path, paths: Sequence[Path], shards: Sequence[Shard]) -> pa.Table:
        """All lines, looked at: what reads them relies on it."""
        tables = [cls._map(path, shard["lines"]) for path, shard in zip(paths, shards, strict=True)]
        if not tables:
            raise ArtifactError(f"{directory} holds no rows: all were left out when it was made")
        for path, table in zip(paths, tables, strict=True):
            if table.schema != tables[0].schema:
                raise damaged(path, f"its columns are not those of {paths[0].name}")
        whole = pa.concat_tables(tables)
        try:
            cls(whole, {})._check_written()
        except DataError as error:
            raise damaged(directory, str(error)) from None
        return whole

    @classmethod
    def _map(cls, path: Path, lines: int) -> pa.Table:
        """The lines of a shard in memory; ArtifactError where they are not what the manifest says."""
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            check_sound(cls._check_columns(table), "the table")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise damaged(path, first_line(error)) from None
        if table.num_rows != lines:
            raise damaged(path, f"it has {counted(table.num_rows, 'line')}, and the manifest says {lines:,}")
        return table

    @classmethod
    def _check_columns(cls, table: pa.Table) -> pa.Table:
        """The table; DataError where a column is missing, or of another type."""
        check_schema(table.schema, "the table")
        for name, kinds in {**cls.columns, **cls.optional}.items():
            if name not in table.column_names:
                if name in cls.columns:
                    raise DataError(f"column '{name}' is missing")
            elif table.schema.field(name).type not in kinds:
                raise DataError(f"column '{name}' must be {kinds[0]}, got {table.schema.field(name).type}")
        return table

    def _check_written(self) -> None:
        """DataError where the lines are not what the kind of store holds."""
        raise NotImplementedError

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the content, the same in memory and on disk, whatever the chunks of the input."""
        known = self.manifest.get("fingerprint")
        if known is not None:
            return str(known)
        hashes = []
        for shard in self._shards():
            sink = _Sink()
            sink.put(shard)
            hashes.append(sink.hash.hexdigest())
        return _combine(hashes)

    def _line_tokens(self) -> NDArray[np.int64]:
        """Tokens of each line, which bound a shard."""
        raise NotImplementedError

    def _group_starts(self) -> NDArray[np.int64]:
        """First line of each group, where a shard may begin."""
        raise NotImplementedError

    def _write(self, directory: str | Path, **facts: Any) -> Self:
        """Write shards, then the manifest; the store at `directory` is removed before the first byte is written."""
        writer = ShardWriter(type(self), directory)
        writer.add(self.table)
        return writer.finish(**facts)

    def _shards(self) -> Iterator[pa.Table]:
        """Tables of whole groups and at most SHARD_TOKENS tokens (one group at least), in canonical form."""
        starts = self._group_starts()
        before = np.append(0, np.cumsum(self._line_tokens()))
        ends = np.append(starts[1:], self.num_lines)
        first = 0
        while first < len(starts):
            last = int(np.searchsorted(before[ends], before[starts[first]] + SHARD_TOKENS, side="right"))
            last = max(last, first + 1)
            part = self.table.slice(int(starts[first]), int(ends[last - 1] - starts[first]))
            yield pa.concat_tables([part, part.slice(0, 0)]).combine_chunks()  # a copy: the chunks leave no trace
            first = last


Store = TypeVar("Store", bound=ShardedTable)


class ShardWriter(Generic[Store]):
    """Writes tables of whole groups as one store, as they come: the shards are those of all of them in one piece.

    One shard is in memory at a time. The store at `directory` is removed before the first byte is written.
    """

    def __init__(self, kind: type[Store], directory: str | Path) -> None:
        self.kind, self.directory = kind, Path(directory)
        Folder(self.directory).reopen()
        self._shards: list[Shard] = []
        self._pending: list[pa.Table] = []
        self._pending_tokens = 0
        self.tokens = self.groups = 0

    def add(self, table: pa.Table) -> None:
        """Take further lines."""
        part = self.kind(table, {})
        tokens = int(part._line_tokens().sum())
        self.tokens, self.groups = self.tokens + tokens, self.groups + len(part._group_starts())
        self._pending.append(table)
        self._pending_tokens += tokens
        if self._pending_tokens > SHARD_TOKENS:
            full = self._full()
            rest = next(full)
            for shard in full:
                self._put(rest)
                rest = shard
            self._pending, self._pending_tokens = [rest], int(self.kind(rest, {})._line_tokens().sum())

    def finish(self, **facts: Any) -> Store:
        """Write what is left, then the manifest with these facts, and open the store."""
        for shard in self._full():
            self._put(shard)
        finish_store(self.directory, self.kind.kind, self._shards, facts)
        return self.kind.open(self.directory)

    def _full(self) -> Iterator[pa.Table]:
        return self.kind(pa.concat_tables(self._pending), {})._shards() if self._pending else iter(())

    def _put(self, shard: pa.Table) -> None:
        name = shard_name(self.kind.kind, len(self._shards))
        self._shards.append(write_shard(self.directory, name, shard, lines=shard.num_rows))


def shard_name(kind: str, index: int) -> str:
    """`segments-00000.arrow`."""
    return f"{kind}-{index:05d}.arrow"


class _Sink:
    """A file (or none) that hashes and counts what is written to it: the shard is in memory once."""

    closed = False

    def __init__(self, file: BinaryIO | None = None) -> None:
        self.file, self.hash, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> None:
        self.hash.update(data)
        self.size += len(data)
        if self.file is not None:
            self.file.write(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """Nothing is held back here."""

    def put(self, content: pa.Table | bytes) -> None:
        """Write the table as an Arrow IPC file (the same batches give the same bytes; metadata is left out)."""
        if isinstance(content, bytes):
            self.write(content)
            return
        table = content.replace_schema_metadata(None)
        with pa.ipc.new_file(pa.PythonFile(self, "w"), table.schema) as writer:
            writer.write_table(table)


def to_ipc(table: pa.Table) -> bytes:
    """The table as the bytes of its shard."""
    file = BytesIO()
    _Sink(file).put(table)
    return file.getvalue()


def write_shard(directory: Path, name: str, content: pa.Table | bytes, *, lines: int) -> Shard:
    """Write a table, or its `to_ipc`, so that it is there whole or not at all; its record for the manifest."""
    sinks = []

    def write(file: BinaryIO) -> None:
        sinks.append(_Sink(file))
        sinks[-1].put(content)

    files.atomic_write(directory / name, write)
    return {"file": name, "bytes": sinks[-1].size, "sha256": sinks[-1].hash.hexdigest(), "lines": lines}


def finish_store(directory: Path, kind: str, shards: list[Shard], facts: Mapping[str, Any]) -> None:
    """Write the manifest by which a store is opened, with these facts; shards that it does not name go."""
    names = {shard["file"] for shard in shards}
    for stale in directory.glob(f"{kind}-*.arrow"):
        if stale.name not in names:
            stale.unlink()
    Folder(directory).finish({
        **facts, "kind": kind, "schema_version": SCHEMA_VERSION, "shards": shards,
        "fingerprint": _combine([shard["sha256"] for shard in shards]),
        "lines": sum(shard["lines"] for shard in shards),
    })  # fmt: skip


def misnamed(shards: Sequence[Shard]) -> str:
    """What is wrong with the names of shards; empty where each is one, and no other's."""
    names = [shard["file"] for shard in shards]
    outside = [name for name in names if not re.fullmatch(r"[a-z]{1,20}-\d{5,20}\.arrow", name)]
    if outside:
        return f"shard '{outside[0]:.80}' is no shard's name"
    return "" if len(set(names)) == len(names) else "a shard is named twice"


def damaged(path: Path, what: str) -> ArtifactError:
    """The error for a part of a store that is not what was written."""
    folder = path if path.is_dir() else path.parent
    return ArtifactError(f"{path} is damaged: {what}; delete {folder} and make it again")


def _present(directory: Path, shard: Shard) -> Path:
    path: Path = directory / shard["file"]
    if not path.is_file() or path.stat().st_size != shard["bytes"]:
        raise ArtifactError(
            f"{path} is missing or not {shard['bytes']} bytes long; delete {directory} and make it again"
        )
    return path


def check_shards(directory: Path, shards: Sequence[Shard], remedy: str | None = None) -> None:
    """ArtifactError naming the first shard that is not what was written, bit by bit."""
    altered = Folder(directory).altered({shard["file"]: shard["sha256"] for shard in shards})
    if altered is not None:
        raise ArtifactError(
            f"{directory / altered} is missing or damaged: its sha256 is not the manifest's; "
            + (remedy or f"delete {directory} and make it again")
        )


def _combine(hashes: list[str]) -> str:
    return hashlib.sha256("\n".join([f"schema {SCHEMA_VERSION}", *hashes]).encode()).hexdigest()
