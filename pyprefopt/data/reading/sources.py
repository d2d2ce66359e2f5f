"""Sources as streams of blocks: whatever holds the rows, a few blocks are in memory at a time.

    source = open_source("pairs/*.jsonl.zst")          # format, kind and files are known now
    for block in source.blocks():                      # in order; a Block travels to other processes (pickle)
        parsed = parse_block(block, source.format)     # ParsedBlock: table (Arrow), rejects (Polars), rows_in

`ParsedBlock.table` is a pyarrow.Table of several record batches with the columns `row` u64 (global), then for
preferences `prompt`, `chosen`, `rejected` list<struct{role, content, extra}>, `chosen_complete`, `rejected_complete`
bool, `score_chosen`, `score_rejected` f32, `tools`, `template_kwargs` str; for candidates `prompt`, `responses`
list<list<message>>, `scores` list<f32>, `tools`, `template_kwargs`; for instructions `prompt`, `response`. All of these
columns are always there (null where the input has none). `ParsedBlock.frame` is the same as a Polars frame.
Blocks depend on the input alone: not on threads, nor on how a file was read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyprefopt.data import _native, embedded
from pyprefopt.data.arrow import check_types
from pyprefopt.data.mixture import draw, kept_rows, largest_sizes, split_weights
from pyprefopt.data.reading.catalog import FORMATS, TABLE, format_of, kind_of, mapping_of, unknown_format
from pyprefopt.data.reading.files import DataFile, Meter, find_files, pieces
from pyprefopt.data.reading.formats import (
    LABELS,
    LIKE_PROMPT,
    check_unlabelled,
    detected,
    listed,
    misread,
    nearest,
    suggest_columns,
    texts_of,
    warn_of_unread,
)
from pyprefopt.data.reading.rejects import REJECTS, first_bad_row
from pyprefopt.data.reading.tables import FRAME, TableSource, as_tables, to_table, without_views
from pyprefopt.data.reading.typed_files import batches, rows_of, schema_of
from pyprefopt.data.reading.unfolding import ROW_COST, Unfolding, unfolded_bytes
from pyprefopt.data.renaming import Pairs, pairs_of, renamed, renamed_rows
from pyprefopt.errors import ConfigError, DataError, counted, did_you_mean, option
from pyprefopt.storage.files import content_hash

BLOCK_BYTES = 16 << 20  # of input text; a block ends with the row that fills it
BLOCK_ROWS = 1 << 15
HEAD_BYTES = 1 << 20  # of a text file, by which its format is known
HEAD_FILES = 16  # that are looked at where the head of a source is enough
HEAD_LINE_BYTES = 4096  # of a line, on average, where only some are looked at
UNIT_ROWS = 256  # of typed rows, measured together
ROW_BYTES = 64 << 20  # a longer row of a text file is an error
NEAR_NAMES = 100  # of a block: different rows without a field for which a name like it is looked for

logger = logging.getLogger("pyprefopt")

_PLAIN = {"preferences": "preference", "candidates": "candidates", "instructions": "prompt_response"}  # of each kind
_KINDS = tuple(_PLAIN)
_READERS = {  # of each kind
    "preferences": "data.read_preferences reads them",
    "candidates": "data.read_candidates reads them, --method rrhf trains on them",
    "ranked": "data.read_candidates reads them, --method rrhf trains on them",
    "instructions": "data.read_instructions reads them, training takes them as --base.data",
}


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


class Source:
    """A Source holds rows of one format, in files or in memory; `open_source` makes it."""

    def __init__(
        self,
        parts: Sequence[_Part],
        format: str,  # noqa: A002
        kinds: Sequence[str],
        ignored: Sequence[str] = (),
        columns: Mapping[str, str] = MappingProxyType({}),  # our names of columns -> theirs
    ) -> None:
        pairs = pairs_of(columns)
        if pairs:
            _check_columns(parts, columns)
            parts = [_renamed_part(part, pairs) for part in parts]
        self.parts, self.columns = parts, columns
        self.data_files = [part.file for part in parts if part.file is not None]
        self.files = [part.name for part in parts]
        containers = {file.container for file in self.data_files} or {"table"}
        self.container = containers.pop() if len(containers) == 1 else "several"
        self.ignored = list(ignored)  # files of a folder that hold no data
        self.format, self.first_block = _detect(parts[0], format, kinds)
        self.kind = kind_of(self.format)

    def describe(self) -> dict[str, Any]:
        """What `prepare --describe` prints.

        Returns:
            format, kind, files (name, bytes, compression), ignored (a folder's files without data), rows (None where
            only reading would tell), first_block (rows, rejected, system_messages, tools, multi_turn: rows that have
            them), and fields, carried, hint, first_row as `describe_rows` gives them.
        """
        from pyprefopt.data.reading.describe import describe_rows

        block = self.first_block
        self._warn_of_unread(self.parts[0], block.rows)
        parsed = parse_block(block, self.format)
        found = describe_rows(block.rows, parsed.frame, self.format, self.parts[0].columns)
        rows = [part.rows for part in self.parts]
        return {
            "format": self.format,
            "kind": self.kind,
            "files": [
                {"name": file.name, "bytes": file.path.stat().st_size, "compression": file.compression}
                for file in self.data_files
            ],
            "ignored": self.ignored,
            "rows": sum(count for count in rows if count is not None) if None not in rows else None,
            "first_block": {
                "rows": block.rows_in,
                "rejected": parsed.rejects.height,
                "system_messages": found.pop("with_system"),
                "tools": found.pop("with_tools"),
                "multi_turn": found.pop("multi_turn"),
            },
            **found,
        }

    @property
    def mixture(self) -> tuple[str, ...]:
        """Which rows are drawn of each file: how many, and a hash of their places; () where all are taken."""
        drawn = (part.kept for part in self.parts if part.kept is not None)
        return tuple(f"{k.sum()} of {k.size} {content_hash(k.tobytes().hex())[:16]}" for k in drawn)

    @property
    def fields(self) -> list[str]:
        """The names of its rows' fields; of text files those of the first rows."""
        names = dict.fromkeys(name for part in self.parts for name in part.columns or ())
        return list(names) or detected(self.first_block.rows, [self.format])[1]

    def named(self, names: Sequence[str]) -> list[str]:
        """Those of the names that are fields of its rows; of text files by the first rows."""
        known = set(self.fields)
        return [name for name in names if name in known]

    def blocks(self, *, carry: bool = False, extra: Sequence[str] = ()) -> Iterator[Block]:
        """All rows, in order (a reader's only once).

        With `carry`, typed rows bring the columns that the format does not take, too; with `extra` those named.
        """
        index = first_row = before = 0  # blocks, rows that are taken, rows that are there
        fields = None if carry else [*TABLE[self.format].looked_at, *extra]
        for part in self.parts:
            seen = 0
            for rows, count, line in part.blocks(fields, BLOCK_BYTES):
                block = Block(index, part.name, first_row, rows, count, line)
                if not seen and part is not self.parts[0]:
                    self._check(block)
                if not seen:
                    self._warn_of_unread(part, rows)
                if part.kept is not None:
                    block = _drawn(block, part.kept[seen : seen + count], before + seen)
                seen += count
                if block.rows_in:
                    yield block
                    index, first_row = index + 1, first_row + block.rows_in
            if not seen:
                raise DataError(f"{part.name} holds no rows; fill it, or leave it out")
            before += seen

    def head(self, rows: int) -> Source:
        """The same source with so many of its first rows, or a few more, of each of its first files."""
        few = copy(self)
        few.parts = [
            replace(part, blocks=partial(_first_blocks, part.blocks, rows)) for part in self.parts[:HEAD_FILES]
        ]
        return few

    def estimate_rows(self) -> int:
        """How many rows there are: as typed files say, or as the bytes of the first rows of a text file let expect."""
        total = 0.0
        for part in self.parts:
            rows = part.rows if part.kept is None else int(part.kept.sum())
            if rows is not None:
                total += rows
                continue
            found = list(islice(part.blocks(None, HEAD_BYTES), 3))
            rows = sum(count for _, count, _ in found)
            read = sum(piece.nbytes for piece, _, _ in found)
            packed = part.file is not None and part.file.compression is not None
            read = part.meter.read if packed else read
            total += rows if len(found) < 3 else rows * max(1.0, part.meter.total / max(1, read))
        return round(total)

    @property
    def meter(self) -> Meter:
        """Bytes on disk, all and read so far; of tables 0."""
        meters = [part.meter for part in self.parts]
        return Meter(sum(meter.total for meter in meters), sum(meter.read for meter in meters))

    def _warn_of_unread(self, part: _Part, rows: pa.Array | pa.Table) -> None:
        if part.columns is not None:
            like = [name for name in LIKE_PROMPT if name in part.columns]
            if not like:
                return
            rows = self.first_block.rows if part is self.parts[0] else next(part.blocks(like, HEAD_BYTES))[0]
        warn_of_unread(rows, part.name, self.format, is_file=part.file is not None)

    def _check(self, block: Block) -> None:
        found, names, _ = detected(block.rows, [self.format])
        if found is None:
            raise DataError(
                f"{block.file}: no row of its first block fits format '{self.format}', which {self.files[0]} has; its "
                f"fields are {listed(names)}; read the two apart{_bad_row(block, names, [self.format])}"
            )


def _bad_row(block: Block, names: Sequence[str], formats: Sequence[str]) -> str:
    """What is wrong with the first bad row, if the rows have all fields of a format, or none is an object."""
    near, missing = nearest(names, formats)
    first = "" if names and missing else first_bad_row(parse_block(block, near).rejects)
    return f"; {first}" if first else ""


def _first_blocks(blocks: _Blocks, rows: int, columns: Sequence[str] | None, size: int) -> Iterator[_Piece]:
    """Small blocks until there are so many rows."""
    seen = 0
    for piece, count, line in blocks(columns, min(size, HEAD_BYTES)):
        yield piece, count, line
        seen += count
        if seen >= rows:
            return


_Piece = tuple[pa.Array | pa.Table, int, int | None]  # rows, their number, first line
_Blocks = Callable[[Sequence[str] | None, int], Iterator[_Piece]]


@dataclass(frozen=True)
class _Part:
    """One file or frame: `blocks(columns, bytes)`, with columns None for all of them."""

    name: str
    blocks: _Blocks
    columns: list[str] | None = None  # of typed rows
    meter: Meter = field(default_factory=Meter)
    file: DataFile | None = None
    rows: int | None = None  # where known without reading
    kept: NDArray[np.bool_] | None = None  # which rows a mixture takes; None: all


def open_source(
    source: Any,
    *,
    format: str = "auto",  # noqa: A002
    kind: str | Sequence[str] | None = None,
    columns: Mapping[str, str] | Sequence[str] | None = None,
    seed: int = 0,
) -> Source:
    """Open what holds preferences, candidates or instructions, as a stream.

    Args:
        source: a file (.jsonl .json .csv .tsv, each also .gz .zst .bz2 .xz; .parquet .arrow .feather), a glob, a
            folder, a list of these, or a table: Polars DataFrame or LazyFrame, pyarrow.Table or RecordBatchReader,
            datasets.Dataset, DuckDB relation. `embedded:toy` and `embedded:toy/test` are the embedded set. All entries
            of a list may have a weight, as `["a.jsonl:0.7", "b.parquet:0.3"]`: so large a share of the rows is drawn
            from each, none twice, and as many in all as every file allows.
        format: one of `FORMATS`; auto: by the fields of the first rows.
        kind: preferences, candidates or instructions (or several), if only these will do.
        columns: a name that a format has -> the column of the data that is meant, or texts `ours=theirs`; None: the
            names are a format's.
        seed: which rows of a mixture are drawn.

    Returns:
        The source, whose format, kind and files are known, and whose `blocks` are read when they are asked for.

    Raises:
        DataError: no file, an unreadable one, no rows, an unknown schema.
        ConfigError: an unknown format or kind.

    Example:
        >>> source = open_source("embedded:toy")
        >>> source.format, source.kind
        ('preference', 'preferences')
        >>> frames = [parse_block(block, source.format).frame for block in source.blocks()]
    """
    kinds = [kind] if isinstance(kind, str) else list(kind or _KINDS)
    for name in kinds:
        if name not in FORMATS:
            raise ConfigError(f"kind must be one of {', '.join(_KINDS)}, got {name!r}{did_you_mean(name, _KINDS)}")
    mapping = mapping_of(columns)
    if isinstance(source, (list, tuple)) and len(source) == 1:
        (source,) = source
    if isinstance(source, str) and source in embedded.ROWS:
        rows = embedded.frame_of(source, kinds[0] if format == "auto" else kind_of(format))
        return Source([table_part(as_tables(rows), source)], format, kinds)
    if isinstance(source, (str, Path)) or (isinstance(source, (list, tuple)) and not hasattr(source, "schema")):
        source, weights = split_weights(source)
        if weights is not None:
            return Source(_mixture(source, weights, seed), format, kinds, columns=mapping)
        files, ignored = find_files(source)
        return Source([_file_part(file) for file in files], format, kinds, ignored, mapping)
    return Source([table_part(as_tables(source))], format, kinds, columns=mapping)


def _mixture(entries: Sequence[Any], weights: Sequence[float], seed: int) -> list[_Part]:
    """The files of all entries, each with the rows that are drawn of it."""
    sets = [[_file_part(file) for file in find_files(entry)[0]] for entry in entries]
    names = [part.name for parts in sets for part in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{twice} is named twice; name each file once")
    counts = [[_count_rows(part) for part in parts] for parts in sets]
    totals = [sum(rows) for rows in counts]
    mixed: list[_Part] = []
    for number, size in enumerate(largest_sizes(totals, weights)):
        kept, start = draw(totals[number], size, seed=seed, number=number), 0
        for part, count in zip(sets[number], counts[number], strict=True):
            own = kept[start : start + count]
            mixed.append(replace(part, rows=int(own.sum()), kept=own))
            start += count
    if not any(part.kept.any() for part in mixed if part.kept is not None):
        shown = " and ".join(f"{total:,} of {entry}" for total, entry in zip(totals, entries, strict=True))
        raise DataError(f"no row is left for a mixture of these weights, with {shown}; make the weights less unlike")
    return mixed


def _count_rows(part: _Part) -> int:
    """How many rows a file holds; one that does not say so is read."""
    if part.rows is not None:
        return part.rows
    return sum(count for _, count, _ in part.blocks((part.columns or [])[:1] or None, BLOCK_BYTES))


def _drawn(block: Block, kept: NDArray[np.bool_], before: int) -> Block:
    """The rows of a block that a mixture takes, with their positions, of which `before` are counted in front of it."""
    numbers = pa.array(before + np.flatnonzero(kept), pa.uint64())
    rows = without_views(block.rows) if isinstance(block.rows, pa.Table) else block.rows
    return replace(block, rows=kept_rows(rows, kept), rows_in=len(numbers), numbers=numbers)


def _renamed_part(part: _Part, pairs: Pairs) -> _Part:
    """The part with its columns under the new names."""
    names = None if part.columns is None else renamed(part.columns, pairs)

    def blocks(columns: Sequence[str] | None, size: int) -> Iterator[_Piece]:
        theirs = columns
        if columns is not None and part.columns is not None and names is not None:
            theirs = [old for old, new in zip(part.columns, names, strict=True) if new in columns]
        for rows, count, line in part.blocks(theirs, size):
            yield renamed_rows(rows, pairs), count, line

    return replace(part, blocks=blocks, columns=names)


def columns_of(source: Any) -> set[str]:
    """The columns of all files that a list, a glob or a name means; of text files by their first rows."""
    files, _ = find_files(split_weights(source)[0])
    return {name for file in files for name in _columns_of(_file_part(file))}


def _columns_of(part: _Part) -> list[str]:
    if part.columns is not None:
        return part.columns
    first = next(part.blocks(None, HEAD_BYTES), None)
    return [] if first is None else detected(first[0], [*TABLE])[1]


def _check_columns(parts: Sequence[_Part], mapping: Mapping[str, str]) -> None:
    """DataError for a column that no file has."""
    missing, seen = set(mapping.values()), list[str]()
    for part in parts:
        seen += _columns_of(part)
        missing -= set(seen)
        if not missing:
            return
    fields = list(dict.fromkeys(seen))
    ours, theirs = next((ours, theirs) for ours, theirs in mapping.items() if theirs in missing)
    more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
    near = did_you_mean(theirs, fields)
    raise DataError(
        f"{parts[0].name}{more}: there is no column '{theirs}' for {ours}{near}; the columns are {listed(fields)}; "
        f"mend {option('columns')}"
    )


def log_mixture(source: Source) -> None:
    """Say how many rows a mixture takes of each file."""
    drawn = [(part.name, part.kept) for part in source.parts if part.kept is not None]
    if drawn:
        shown = ", ".join(f"{kept.sum():,} of {counted(kept.size, 'row')} of {name}" for name, kept in drawn)
        logger.info("mixture: %s", shown)


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


def _file_part(file: DataFile) -> _Part:
    meter = Meter(file.path.stat().st_size)
    if file.container in ("json", "csv"):
        return _Part(file.name, lambda _, size: _text_blocks(file, meter, size), meter=meter, file=file)
    schema = schema_of(file)
    sound: dict[int, set[str]] = {}

    def blocks(columns: Sequence[str] | None, size: int) -> Iterator[tuple[pa.Table, int, None]]:
        wanted = [name for name in schema.names if columns is None or name in columns]
        return _table_blocks(_metered(batches(file, wanted, size, sound), meter, rows_of(file)), size)

    return _Part(file.name, blocks, list(schema.names), meter, file, rows_of(file))


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


def table_part(source: TableSource, name: str = FRAME) -> _Part:
    """A table as a part of a source, under its name."""

    def blocks(columns: Sequence[str] | None, size: int) -> Iterator[tuple[pa.Table, int, None]]:
        wanted = [name for name in source.schema.names if columns is None or name in columns]
        return _table_blocks((batch.select(wanted) for batch in source.batches()), size)

    return _Part(name, blocks, list(source.schema.names), rows=source.rows)


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


def _telling_columns(part: _Part) -> list[str] | None:
    """Of typed rows the columns by which a format is known; all where there are none."""
    known = {*LABELS, *LIKE_PROMPT, *(name for row in TABLE.values() for name in (*row.names, *row.weights))}
    return [name for name in part.columns or () if name in known] or None


def _detect(part: _Part, wanted: str, kinds: Sequence[str]) -> tuple[str, Block]:
    """The rows' format: the one that is wanted, if a row fits it, or the one that most fit; and the first block."""
    known = [name for kind in kinds for name in FORMATS[kind]]
    if wanted != "auto" and wanted not in known:
        raise unknown_format(wanted, known)
    tried = known if wanted == "auto" else [wanted]
    first = next(part.blocks(_telling_columns(part), HEAD_BYTES), None)
    if first is None:
        raise DataError(f"{part.name} holds no rows")
    block = Block(0, part.name, 0, *first)
    found, names, advice = detected(block.rows, tried, part.columns)
    if wanted == "auto":
        others = [name for names in FORMATS.values() for name in names if name not in known]
        other = None if found else detected(block.rows, others, part.columns)[0]
        if (single := found or other) in FORMATS["instructions"]:
            check_unlabelled(block.rows, part.name, single)
        if other is not None:
            needed = TABLE[_PLAIN[kinds[0]]].show_needed()
            raise DataError(
                f"{part.name}: rows must be {kinds[0]} ({needed}), but are of format {other}; their "
                f"fields are {listed(names)}; {_READERS[kind_of(other)]}"
            )
    if found is None and not names and advice.startswith("; line "):
        raise DataError(part.name + advice.replace("; ", ", ", 1))
    if found is None:
        what = "no known schema" if wanted == "auto" else f"no row fits format '{wanted}'"
        columns = suggest_columns(block.rows, names, TABLE[_PLAIN[kinds[0]] if wanted == "auto" else wanted])
        wrong = "" if columns.named else misread(block.rows, names, part.file.container if part.file else "table")
        bad = _bad_row(block, names, tried)
        advice = wrong or advice + (bad or (columns.text if columns.whole or not advice else ""))
        fitting = "" if wanted == "auto" else detected(block.rows, known, part.columns)[0] or ""
        remedy = f"they are of format {fitting}: leave format out" if fitting else f"see {option('format', '…')}"
        raise DataError(f"{part.name}: {what}; its fields are {listed(names)}{advice}; {remedy}")
    return found, block
