"""One block of a source as segments; a tokenizer as what another process opens."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from pyprefopt.data.files.tables import to_table
from pyprefopt.data.reading.blocks import Block, block_rejects, parse_block
from pyprefopt.data.reading.formats import texts_of
from pyprefopt.data.tokenization.coverage import Coverage
from pyprefopt.data.tokenization.identical_pairs import without_identical
from pyprefopt.data.tokenization.notes import SpecialToken
from pyprefopt.data.tokenization.render import TOOL_USE
from pyprefopt.data.tokenization.tokenizer import PROVED_ROWS, Tokenizer, open_native


class TokenizedBlock(NamedTuple):
    """Segments of a block's good rows, and counts."""

    segments: pa.Table  # columns of `tokenize.SEGMENTS`; without offsets, those of OFFSETS are not there
    rejects: pl.DataFrame  # of schema REJECTS
    rows_in: int
    responses_cut: int  # to fit max_tokens
    tokenized_apart: int  # rows with a token across the boundary
    notes: dict[str, int]  # counts of what `notes` tells
    special: SpecialToken | None  # the first in a content
    coverage: Coverage


def tokenize_block(
    block: Block,
    format: str,  # noqa: A002
    tokenizer: Tokenizer,
    *,
    offsets: bool,
    **limits: Any,
) -> TokenizedBlock:
    """Parse and tokenize the rows of one block, in one go; `limits` as `tokenize` takes them."""
    tokenizer.prove_on_rows(lambda: parse_block(block.head(PROVED_ROWS), format).frame)
    segments, bad, responses_cut, apart, _, notes, found, counts = tokenizer.native.prepare(
        texts_of(block.rows, [format]),
        format,
        first_row=block.first_row,
        first_line=block.first_line,
        **limits,
        offsets=offsets,
    )
    table, rejects = block.numbered(to_table(segments)), block_rejects(bad, block)
    special = SpecialToken(block.position(found[0]), *found[1:]) if found else None
    return TokenizedBlock(table, rejects, block.rows_in, responses_cut, len(apart), notes, special, Coverage(*counts))


def drop_identical(segments: pa.Table, rejects: pl.DataFrame, file: str) -> tuple[pa.Table, pl.DataFrame]:
    """The segments without the pairs that a cut has made the same; the rejects with them."""
    segments, identical = without_identical(segments, file)
    return segments, pl.concat([rejects, identical]).sort("row")


@dataclass(frozen=True)
class TokenizerParts:
    """What another process needs to open the same tokenizer; hashable."""

    path: str
    json: bytes = field(repr=False)
    special_tokens: tuple[tuple[str, str], ...]
    chat_template: str = field(repr=False)
    other_templates: tuple[tuple[str, str], ...] = field(repr=False, default=())

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenizerParts:
        """The parts of an open tokenizer."""
        tokens = tuple(tokenizer.special_tokens.items())
        others = tuple(tokenizer.other_templates.items())
        return cls(str(tokenizer.path), tokenizer.json, tokens, tokenizer.chat_template, others)

    def open(self) -> Tokenizer:
        """The tokenizer, opened once a process."""
        return _open(self)


@lru_cache(maxsize=1)
def _open(parts: TokenizerParts) -> Tokenizer:
    path, tokens, others = Path(parts.path), dict(parts.special_tokens), dict(parts.other_templates)
    native = open_native(path, parts.json, tokens, parts.chat_template, others.get(TOOL_USE))
    return Tokenizer(path, parts.json, tokens, parts.chat_template, native, others)
