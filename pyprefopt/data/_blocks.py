"""Sources as blocks of rows."""

from __future__ import annotations

import glob
import gzip
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from pyprefopt.data import _native, read
from pyprefopt.data.read import ReadResult
from pyprefopt.errors import DataError

BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class Block:
    """Rows of one file."""

    index: int
    file: str
    first_row: int
    rows: Any  # pa.Table, or bytes of JSON lines


class Source:
    """What open_source gives."""

    def __init__(self, source: Any, format: str) -> None:  # noqa: A002
        self.frame = source if isinstance(source, pl.DataFrame) else None
        if isinstance(source, pl.LazyFrame):
            self.frame = source.collect()
        self.files: list[str] = []
        if self.frame is None:
            paths = source if isinstance(source, list | tuple) else [source]
            for path in map(str, paths):
                found = sorted(glob.glob(path)) if "*" in path else [path]
                self.files += [str(f) for p in found for f in (sorted(Path(p).iterdir()) if Path(p).is_dir() else [p])]
            for file in self.files:
                if not Path(file).is_file():
                    raise DataError(f"{file} must be a file; there is none")
        self.kind = "preferences"
        self._wanted = format
        self.format = format

    def describe(self) -> dict[str, Any]:
        return {"format": self.format, "files": self.files}

    def blocks(self) -> Iterator[Block]:
        index = first = 0
        if self.frame is not None:
            for part in self.frame.iter_slices(BLOCK_ROWS):
                yield Block(index, "<frame>", first, part.to_arrow())
                index, first = index + 1, first + part.height
            return
        for file in self.files:
            if ".jsonl" not in file:
                part = pl.read_parquet(file)
                yield Block(index, file, first, part.to_arrow())
                index, first = index + 1, first + part.height
                continue
            with gzip.open(file) if file.endswith(".gz") else open(file, "rb") as stream:
                while lines := stream.readlines(BLOCK_BYTES):
                    yield Block(index, file, first, b"".join(lines))
                    index, first = index + 1, first + len(lines)


def open_source(source: Any, *, format: str = "auto") -> Source:  # noqa: A002
    """Open."""
    return Source(source, format)


def parse_block(block: Block, format: str) -> ReadResult:  # noqa: A002
    """Parse."""
    if isinstance(block.rows, bytes):
        rows = read._from_json(block.rows, False, block.file)
        found = read._format(rows, format, read.PREFERENCE_FORMATS, block.file)
        used, rejects, _ = _native.parse_preferences(rows.texts, found)
        result = ReadResult(
            pl.DataFrame(used), read._rejects(rejects, rows, block.file), found, block.file, len(rows.texts)
        )
    else:
        result = read.scan_preferences(pl.DataFrame(block.rows), format=format)
    shift = pl.col("row") + pl.lit(block.first_row, pl.UInt64)
    return replace(
        result,
        frame=result.frame.with_columns(shift),
        rejects=result.rejects.with_columns(shift, file=pl.lit(block.file)),
    )
