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
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyprefopt.data import embedded
from pyprefopt.data.files.data_file import Meter, find_files
from pyprefopt.data.files.parts import Part, file_part, renamed_part, table_part
from pyprefopt.data.files.tables import as_tables, without_views
from pyprefopt.data.mixture import draw, kept_rows, largest_sizes, split_weights
from pyprefopt.data.reading.aspects import aspect_part, without_scores
from pyprefopt.data.reading.blocks import Block, parse_block
from pyprefopt.data.reading.catalog import FORMATS, TABLE, kind_of, mapping_of
from pyprefopt.data.reading.detection import KINDS, check_columns, detect_format, show_bad_row
from pyprefopt.data.reading.formats import LIKE_PROMPT, detected, listed, warn_of_unread
from pyprefopt.data.renaming import pairs_of
from pyprefopt.errors import ConfigError, DataError, counted, did_you_mean
from pyprefopt.storage.files import content_hash

HEAD_FILES = 16  # that are looked at where the head of a source is enough

logger = logging.getLogger("pyprefopt")


class Source:
    """A Source holds rows of one format, in files or in memory; `open_source` makes it."""

    def __init__(
        self,
        parts: Sequence[Part],
        format: str,  # noqa: A002
        kinds: Sequence[str],
        ignored: Sequence[str] = (),
        columns: Mapping[str, str] = MappingProxyType({}),  # our names of columns -> theirs
    ) -> None:
        pairs = pairs_of(columns)
        if pairs:
            check_columns(parts, columns)
            parts = [renamed_part(part, pairs) for part in parts]
        self.parts, self.columns = parts, columns
        self.data_files = [part.file for part in parts if part.file is not None]
        self.files = [part.name for part in parts]
        containers = {file.container for file in self.data_files} or {"table"}
        self.container = containers.pop() if len(containers) == 1 else "several"
        self.ignored = list(ignored)  # files of a folder that hold no data
        self.format, self.first_block = detect_format(parts[0], format, kinds)
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
            for rows, count, line in part.blocks(fields):
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
        few.parts = [part.head(rows) for part in self.parts[:HEAD_FILES]]
        return few

    def estimate_rows(self) -> int:
        """How many rows there are: as typed files say, or as the bytes of the first rows of a text file let expect."""
        total = 0.0
        for part in self.parts:
            rows = part.rows if part.kept is None else int(part.kept.sum())
            if rows is not None:
                total += rows
                continue
            found = list(islice(part.small_blocks(), 3))
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

    def _warn_of_unread(self, part: Part, rows: pa.Array | pa.Table) -> None:
        if part.columns is not None:
            like = [name for name in LIKE_PROMPT if name in part.columns]
            if not like:
                return
            rows = self.first_block.rows if part is self.parts[0] else next(part.small_blocks(like))[0]
        warn_of_unread(rows, part.name, self.format, is_file=part.file is not None)

    def _check(self, block: Block) -> None:
        found, names, _ = detected(block.rows, [self.format])
        if found is None:
            raise DataError(
                f"{block.file}: no row of its first block fits format '{self.format}', which {self.files[0]} has; its "
                f"fields are {listed(names)}; read the two apart{show_bad_row(block, names, [self.format])}"
            )


def open_source(
    source: Any,
    *,
    format: str = "auto",  # noqa: A002
    kind: str | Sequence[str] | None = None,
    columns: Mapping[str, str] | Sequence[str] | None = None,
    seed: int = 0,
    aspect: str | None = None,
    change: Callable[[Part], Part] | None = None,
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
        aspect: of UltraFeedback's raw set: helpfulness, honesty, instruction_following or truthfulness, whose rating
            becomes the score of each response (`N/A`: none); None: scores as they stand there.
        change: what is read in the place of each file or table.

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
    kinds = [kind] if isinstance(kind, str) else list(kind or KINDS)
    for name in kinds:
        if name not in FORMATS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {name!r}{did_you_mean(name, KINDS)}")
    mapping = mapping_of(columns)

    def opened(parts: Sequence[Part], ignored: Sequence[str] = ()) -> Source:
        parts = parts if aspect is None else [aspect_part(part, aspect) for part in parts]
        if "scores" in mapping and aspect is None:  # those are meant, and none that stand in the responses
            names = [mapping.get(name, name) for name in ("responses", "completions", "candidates")]
            parts = [without_scores(part, names) for part in parts]
        parts = parts if change is None else [change(part) for part in parts]
        return Source(parts, format, kinds, ignored, mapping)

    if isinstance(source, (list, tuple)) and len(source) == 1:
        (source,) = source
    if isinstance(source, str) and source in embedded.ROWS:
        rows = embedded.frame_of(source, kinds[0] if format == "auto" else kind_of(format))
        mapping = {}
        return opened([table_part(as_tables(rows), source)])
    if isinstance(source, (str, Path)) or (isinstance(source, (list, tuple)) and not hasattr(source, "schema")):
        source, weights = split_weights(source)
        if weights is not None:
            return opened(_mixture(source, weights, seed))
        files, ignored = find_files(source)
        return opened([file_part(file) for file in files], ignored)
    return opened([table_part(as_tables(source))])


def _mixture(entries: Sequence[Any], weights: Sequence[float], seed: int) -> list[Part]:
    """The files of all entries, each with the rows that are drawn of it."""
    sets = [[file_part(file) for file in find_files(entry)[0]] for entry in entries]
    names = [part.name for parts in sets for part in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{twice} is named twice; name each file once")
    counts = [[_count_rows(part) for part in parts] for parts in sets]
    totals = [sum(rows) for rows in counts]
    mixed: list[Part] = []
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


def _count_rows(part: Part) -> int:
    """How many rows a file holds; one that does not say so is read."""
    if part.rows is not None:
        return part.rows
    return sum(count for _, count, _ in part.blocks((part.columns or [])[:1] or None))


def _drawn(block: Block, kept: NDArray[np.bool_], before: int) -> Block:
    """The rows of a block that a mixture takes, with their positions, of which `before` are counted in front of it."""
    numbers = pa.array(before + np.flatnonzero(kept), pa.uint64())
    rows = without_views(block.rows) if isinstance(block.rows, pa.Table) else block.rows
    return replace(block, rows=kept_rows(rows, kept), rows_in=len(numbers), numbers=numbers)


def log_mixture(source: Source) -> None:
    """Say how many rows a mixture takes of each file."""
    drawn = [(part.name, part.kept) for part in source.parts if part.kept is not None]
    if drawn:
        shown = ", ".join(f"{kept.sum():,} of {counted(kept.size, 'row')} of {name}" for name, kept in drawn)
        logger.info("mixture: %s", shown)
