"""A block is some consecutive rows of a source; parsed, it is a table of chats and the rows that are bad."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pyprefopt.data import _native
from pyprefopt.data.arrow import check_types
from pyprefopt.data.files.tables import to_table, without_views
from pyprefopt.data.reading.catalog import format_of
from pyprefopt.data.reading.formats import texts_of
from pyprefopt.data.reading.rejects import REJECTS
from pyprefopt.errors import did_you_mean

HEAD_LINE_BYTES = 4096  # of a line, on average, where only some are looked at
NEAR_NAMES = 100  # of a block: different rows without a field for which a name like it is looked for


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one file (or frame)."""

    index: int
    file: str  # as in rejects
    first_row: int  # counted over all files
    rows: pa.Array | pa.Table  # JSON lines as u8, or typed rows
    rows_in: int
    first_line: int | None  # of the block in its file, from 1; None where rows are not lines
    numbers: pa.Array | None = None  # positions of the rows in the input, where they do not follow the first
    rejects: pl.DataFrame | None = None  # rows of the input that were bad before these rows were made of others

    def numbered(self, lines: pa.Table) -> pa.Table:
        """The lines, their rows being counted from the first, with the rows' positions in the input."""
        if self.numbers is None:
            return lines
        places = pc.subtract(lines["row"], pa.scalar(self.first_row, pa.uint64()))
        return lines.set_column(lines.column_names.index("row"), "row", self.numbers.take(places))

    def position(self, row: int) -> int:
        """The position in the input of a row that is counted from the first."""
        return row if self.numbers is None else self.numbers[row - self.first_row].as_py()

    def head(self, rows: int) -> Block:
        """The first rows (or lines) of it."""
        if isinstance(self.rows, pa.Table):
            end = rows
        else:
            ends = np.flatnonzero(self.rows.to_numpy()[: rows * HEAD_LINE_BYTES] == ord("\n"))[:rows]
            end = int(ends[-1]) + 1 if len(ends) else len(self.rows)
        return replace(self, rows=self.rows.slice(0, end), rows_in=min(rows, self.rows_in))


@dataclass(frozen=True)
class ParsedBlock:
    """A block's rows: `rows_in == table.num_rows + rejects.height`."""

    table: pa.Table
    rejects: pl.DataFrame  # of schema REJECTS
    rows_in: int
    format: str
    file: str
    carried: bytes | pa.Table | None = None  # with `carry`: the used rows' further fields (JSON lines or typed)

    @property
    def frame(self) -> pl.DataFrame:
        """The table as a Polars frame."""
        frame = pl.from_arrow(self.table)
        assert isinstance(frame, pl.DataFrame)  # noqa: S101  (a table gives no Series)
        return frame


def parse_block(block: Block, format: str, *, carry: bool = False) -> ParsedBlock:  # noqa: A002
    """Parse a block's rows into chats; bad rows become rejects.

    Args:
        block: of `Source.blocks`.
        format: the source's.
        carry: bring the further fields of the used rows, too.

    Returns:
        Table (columns as above), rejects and counts; `carried` with `carry` alone.

    Raises:
        ConfigError: an unknown format.
        DataError: columns of typed rows that cannot be read as text.

    Example:
        >>> first = parse_block(next(source.blocks()), source.format)
        >>> first.rows_in == first.table.num_rows + first.rejects.height
        True
    """
    taken = format_of(format).names
    texts = texts_of(block.rows, [format])
    used, bad, others = _native.parse_rows(
        texts, format, first_row=block.first_row, first_line=block.first_line, carry=carry
    )
    table = to_table(used)
    rejects = block_rejects(bad, block)
    further: bytes | pa.Table = others
    if carry and isinstance(block.rows, pa.Table):
        own = [name for name in block.rows.column_names if name not in taken]
        check_types(block.rows.select(own).schema, block.file)
        further = without_views(block.rows.select(own)).take(
            pc.subtract(table["row"], pa.scalar(block.first_row, pa.uint64()))
        )
    table = block.numbered(table)
    return ParsedBlock(table, rejects, block.rows_in, format, block.file, further if carry else None)


def block_rejects(rejects: Any, block: Block) -> pl.DataFrame:
    """The kernel's rejects with the file and the nearest known name (for missing fields)."""
    before = REJECTS.to_frame() if block.rejects is None else block.rejects
    if not rejects.num_rows:
        return before
    frame = pl.DataFrame(block.numbered(pl.DataFrame(rejects).to_arrow())).with_columns(file=pl.lit(block.file))
    missing = pl.col("reason") == "missing_field"
    named = frame.filter(missing)
    if named.height:
        pairs = named.select("field", "value").unique(maintain_order=True).head(NEAR_NAMES)
        near = pairs.with_columns(near=pl.struct("field", "value").map_elements(_renamed, return_dtype=pl.String))
        named = named.join(near, on=["field", "value"], how="left", maintain_order="left")
        named = named.with_columns(remedy=pl.col("remedy") + pl.col("near").fill_null("")).drop("near")
    found = pl.concat([frame.filter(~missing), named]).select(REJECTS.names()).cast(REJECTS)
    return pl.concat([before, found]).sort("row", maintain_order=True)


def _renamed(entry: dict[str, str]) -> str:
    return _near(entry["field"], entry["value"])


@lru_cache(maxsize=1024)
def _near(field: str, names: str) -> str:
    known = names.split(", ")
    return "" if field in known else did_you_mean(field, known)  # it is there, but null
