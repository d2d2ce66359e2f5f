"""One block of a source becomes one shard: parsed, tokenized, cut, and laid out as the bytes that the folder keeps.

A pure function of the block, the settings and the tokenizer, so that every engine gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pyprefopt.data.tokenization.block import TokenizedBlock, drop_identical, tokenize_block
from pyprefopt.data.tokenization.coverage import Coverage
from pyprefopt.data.tokenization.notes import SpecialToken
from pyprefopt.data.tokenization.schema import OFFSETS, SEGMENTS, check_options
from pyprefopt.data.tokenization.short_responses import without_short
from pyprefopt.data.truncation.rule import Truncation
from pyprefopt.errors import DataError, check, check_number

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.data.reading.blocks import Block
    from pyprefopt.data.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """The settings of a preparation. With the input and the tokenizer they decide every byte of the folder."""

    format: str  # of the rows
    columns: tuple[str, ...] = ()  # ours=theirs: a name that the format has, and the column that is meant
    aspect: str | None = None  # of UltraFeedback's raw set: whose ratings are the scores
    mixture: tuple[str, ...] = ()  # the shares of rows that were drawn, and the seed; (): all rows
    max_prompt_tokens: int | None = 1024  # longer prompts: see prompt_overflow; tokens; None: no limit
    prompt_overflow: str = "error"  # of longer prompts: error (a bad row), drop, keep_start or keep_end
    max_tokens: int | None = 2048  # prompt plus response; longer responses are cut; tokens; None: no limit
    min_response_tokens: int = 1  # rows with a response of fewer tokens are left out and counted
    boundary: str = "split"  # a token across the boundary of prompt and response: split, error (a bad row) or join
    score_reasoning: bool = True  # the assistant's reasoning is scored as its answer is
    truncation: Truncation = field(default_factory=Truncation)  # what is kept of each response
    offsets: bool = True  # keep starts, ends and turns of every token: 10 of 14 bytes a token
    user_weights: tuple[str, ...] = ()  # columns of the input with weights of tokens, and the counts of cut texts

    @property
    def written(self) -> dict[str, Any]:
        """The settings as a manifest has them: an aspect, and settings of the truncation, where they are given."""
        written = asdict(self) | {"truncation": self.truncation.given}
        if self.aspect is None:
            del written["aspect"]
        return written

    @property
    def limits(self) -> dict[str, Any]:
        """What the tokenization takes."""
        names = ("max_prompt_tokens", "prompt_overflow", "max_tokens", "boundary", "score_reasoning")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class PreparedBlock:
    """A shard in memory, with its counts."""

    index: int  # of the block and of the shard
    file: str  # where its rows came from
    first_row: int  # position of its first row in the whole input
    format: str  # of its rows
    rows_in: int
    rows: int  # that are in the shard; rows_in == rows + rejected
    lines: int  # prompts and responses
    tokens: int
    longest_prompt: int  # tokens
    longest_row: int  # tokens of a prompt with its longest response
    responses_cut: int  # to fit max_tokens
    tokenized_apart: int  # rows with a token across the boundary
    notes: Mapping[str, int]  # what was decided about rows and responses -> how many
    special: SpecialToken | None  # the first in a content
    coverage: Coverage  # of the responses by their tokens
    rejected: Mapping[str, int]  # reason -> rows
    rejects: bytes = field(repr=False)  # JSON lines, one a rejected row
    shard: pa.Table | bytes = field(repr=False)  # the segments, or `to_ipc` of them

    def record(self) -> dict[str, Any]:
        """The counts without the content."""
        names = ("rejects", "shard", "coverage", "special")
        counts = {name: value for name, value in vars(self).items() if name not in names}
        counts |= self.coverage._asdict()
        counts["special_token"] = self.special and self.special._asdict()
        mappings = {"notes": dict(self.notes), "rejected": dict(self.rejected)}
        return counts | mappings | {"rejects_sha256": hashlib.sha256(self.rejects).hexdigest()}


def prepare_block(block: Block, config: PrepareConfig, tokenizer: Tokenizer) -> PreparedBlock:
    """Parse, tokenize and cut the rows of one block; lay out its shard."""
    from pyprefopt.data.reading.rejects import count_rejects

    offsets = config.offsets or config.truncation.active or bool(config.user_weights)
    limits = {"offsets": offsets, **config.limits}
    if config.truncation.of_texts:
        made = _cut_and_tokenized(block, config, tokenizer, **limits)
    else:
        made = _weighted(block, config, tokenize_block(block, config.format, tokenizer, **limits))
    uncut = made.segments
    if config.truncation.of_texts and config.min_response_tokens > 1:
        uncut = tokenize_block(block, config.format, tokenizer, **limits).segments
    whole, short = without_short(uncut, config.min_response_tokens, block.file, made.segments)
    segments, rejects = _cut(whole, config, tokenizer), made.rejects
    if short.height:
        rejects = rejects.vstack(short).sort("row")
    if config.truncation.active and not config.truncation.of_texts:
        segments, rejects = drop_identical(segments, rejects, block.file)
    table = _columns(segments, config)
    return PreparedBlock(
        index=block.index,
        file=block.file,
        first_row=block.first_row,
        format=config.format,
        rows_in=block.rows_in,
        rows=block.rows_in - rejects.height,
        lines=table.num_rows,
        **_lengths(table),
        responses_cut=made.responses_cut,
        tokenized_apart=made.tokenized_apart,
        notes=made.notes,
        special=made.special,
        coverage=made.coverage,
        rejected=count_rejects(rejects),
        rejects=b"" if rejects.is_empty() else rejects.write_ndjson().encode(),
        shard=table,
    )


def _weighted(block: Block, config: PrepareConfig, made: TokenizedBlock) -> TokenizedBlock:
    """The segments with the column `user_weights`, where the input has weights."""
    from pyprefopt.data.reading.blocks import parse_block
    from pyprefopt.data.reading.catalog import kind_of, weight_fields
    from pyprefopt.data.reading.extra_columns import carried_columns, check_unseen

    if not config.user_weights:
        check_unseen(block, weight_fields(kind_of(config.format)))
        return made
    parsed = parse_block(block, config.format, carry=True)
    return _with_weights(block, made, parsed.frame.hstack(carried_columns(parsed, config.user_weights)))


def _with_weights(block: Block, made: TokenizedBlock, rows: pl.DataFrame, *, by_texts: bool = False) -> TokenizedBlock:
    """The segments with the weights of the rows that they were made of, whose texts may have been cut."""
    import polars as pl

    from pyprefopt.data.tokenization.token_columns import attach_weights

    try:
        segments, bad = attach_weights(pl.DataFrame(made.segments), rows, by_texts=by_texts)
    except DataError as error:
        raise DataError(f"{block.file}: {error}") from None
    rejects = pl.concat([made.rejects, bad.with_columns(file=pl.lit(block.file))]).sort("row")
    return made._replace(segments=segments.to_arrow(), rejects=rejects)


def _cut_and_tokenized(block: Block, config: PrepareConfig, tokenizer: Tokenizer, **limits: Any) -> TokenizedBlock:
    """Segments of the rows' texts, cut first."""
    from pyprefopt.data.preparation.cut_texts import count_cuts, tokenize_cut
    from pyprefopt.data.reading.catalog import kind_of, weight_fields
    from pyprefopt.data.reading.extra_columns import check_unseen

    if not config.user_weights:
        check_unseen(block, weight_fields(kind_of(config.format)))
    carried = config.user_weights
    made, rows = tokenize_cut(block, config.format, tokenizer, config.truncation, carried=carried, **limits)
    made = made._replace(segments=count_cuts(made.segments, rows))
    return _with_weights(block, made, rows, by_texts=True) if carried else made


def check_config(config: PrepareConfig, tokenizer: Tokenizer) -> None:
    """ConfigError where a setting breaks a rule of `tokenize` or `truncate`, before anything is read."""
    check_options(**config.limits)
    check_number("min_response_tokens", config.min_response_tokens, whole=True)
    check(config.min_response_tokens > 0, "min_response_tokens", config.min_response_tokens, "> 0", "1 leaves out none")
    _cut(SEGMENTS.to_frame().to_arrow(), config, tokenizer)


def _cut(segments: pa.Table, config: PrepareConfig, tokenizer: Tokenizer) -> pa.Table:
    if not config.truncation.active:
        return segments
    from pyprefopt.data.truncation.dispatch import truncate_by
    from pyprefopt.data.truncation.frames import check_text_rule

    if config.truncation.of_texts:  # they were cut before
        check_text_rule(config.truncation, None)
        return segments
    return truncate_by(segments, config.truncation, tokenizer=tokenizer)


def _columns(segments: pa.Table, config: PrepareConfig) -> pa.Table:
    """The table in the store's types; a record batch a chunk of rows, as the tokenization made it."""
    from pyprefopt.data.store.segments import typed

    table = typed(segments)
    if not config.offsets:
        table = table.drop_columns([name for name in OFFSETS if name in table.column_names])
    return table


def _lengths(table: pa.Table) -> dict[str, int]:
    from pyprefopt.data.store.segments import SegmentStore

    if not table.num_rows:
        return {"tokens": 0, "longest_prompt": 0, "longest_row": 0}
    store = SegmentStore(table, {})
    prompts = store.lengths[store.segments == 0]
    return {
        "tokens": int(store.lengths.sum()),
        "longest_prompt": int(prompts.max()),
        "longest_row": int(store.longest_rows.max()),
    }
