"""Candidates as a stream of sets, also where each row holds one response."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from pyprefopt.data.files.parts import table_part
from pyprefopt.data.files.tables import as_tables
from pyprefopt.data.reading.blocks import Block
from pyprefopt.data.reading.frames import scan_sets
from pyprefopt.data.reading.rejects import raise_for
from pyprefopt.data.reading.sources import Source, open_source
from pyprefopt.errors import ConfigError


class CandidateSets(Source):
    """Rows of one response each, by prompt. They are read whole, since those of a prompt may stand anywhere."""

    def __init__(self, source: Source, sets: pl.DataFrame, rejects: pl.DataFrame) -> None:
        self.parts = [table_part(as_tables(sets.drop("row")), source.files[0])]
        self.data_files, self.files, self.ignored = source.data_files, source.files, source.ignored
        self.container, self.format, self.kind = source.container, "candidates", "candidates"
        self.columns = source.columns
        self.numbers, self.rejects = sets["row"].to_arrow(), rejects

    def blocks(self, **options: Any) -> Iterator[Block]:
        """The sets; a set has the position of its first row, and the first block brings the bad rows."""
        for block in super().blocks(**options):
            numbers = self.numbers.slice(block.first_row, block.rows_in)
            rejects = self.rejects if block.index == 0 and self.rejects.height else None
            bad = 0 if rejects is None else rejects.height
            yield replace(block, numbers=numbers, rejects=rejects, rows_in=block.rows_in + bad)


def open_candidates(
    source: Any,
    *,
    format: str = "auto",  # noqa: A002
    columns: Mapping[str, str] | Sequence[str] | None = None,
    aspect: str | None = None,
    seed: int = 0,
    first: int | None = None,
) -> Source:
    """`open_source` for candidates, of either format; `first`: its head alone."""
    kinds = ("candidates", "ranked")
    opened = open_source(source, format=format, kind=kinds, columns=columns, aspect=aspect, seed=seed)
    opened = opened if first is None else opened.head(first)
    if opened.kind == "candidates":
        return opened
    if any(part.kept is not None for part in opened.parts):
        raise ConfigError(
            "a mixture draws rows, which of one response each takes sets apart; write a set of candidates a row, or "
            "leave the weights out"
        )
    read = scan_sets(opened)
    if read.frame.is_empty():
        raise_for(read.rejects, read.rows_in)
    return CandidateSets(opened, read.frame, read.rejects)
