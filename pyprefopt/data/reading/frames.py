"""Whole sources as Polars frames: preferences, candidates and instructions, whatever their format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, overload

import polars as pl
import pyarrow as pa

from pyprefopt.data.columns import frame_of
from pyprefopt.data.reading.blocks import ParsedBlock, parse_block
from pyprefopt.data.reading.catalog import weight_fields
from pyprefopt.data.reading.extra_columns import (
    carried_columns,
    check_unseen,
    frame_of_lines,
    named_in_any_row,
)
from pyprefopt.data.reading.rejects import OnError, check_on_error, report_rejects
from pyprefopt.data.reading.sources import Source, open_source
from pyprefopt.errors import DataError

MESSAGE = pl.Struct({"role": pl.String, "content": pl.String, "extra": pl.String})
CHAT = pl.List(MESSAGE)
_PLACE = ""  # a column that only counts rows
Columns = Mapping[str, str] | Sequence[str] | None
_OPTIONAL = (
    "score_chosen",
    "score_rejected",
    "responses_complete",
    "tools",
    "template_kwargs",
)  # only where the input has them


@dataclass(frozen=True)
class ReadResult:
    """What a source holds: `rows_in == frame.height + rejects.height` (responses, where rows were grouped)."""

    frame: pl.DataFrame  # preferences, candidates or instructions
    rejects: pl.DataFrame  # of schema REJECTS
    format: str
    file: str
    rows_in: int


@overload
def read_preferences(
    source: pl.LazyFrame,
    *,
    format: str = ...,
    columns: Columns = ...,
    on_error: OnError = ...,
    rejected_path: str | Path | None = ...,
) -> pl.LazyFrame: ...
@overload
def read_preferences(
    source: Any,
    *,
    format: str = ...,
    columns: Columns = ...,
    on_error: OnError = ...,
    rejected_path: str | Path | None = ...,
) -> pl.DataFrame: ...
def read_preferences(
    source: Any,
    *,
    format: str = "auto",  # noqa: A002
    columns: Columns = None,
    on_error: OnError = "raise",
    rejected_path: str | Path | None = None,
) -> pl.DataFrame | pl.LazyFrame:
    """Read preference pairs into the one schema of pyprefopt.

    Args:
        source: a file, glob, folder, list of files, or table; see `open_source`.
        format: one of pairs (see docs/data.md); auto: by schema.
        columns: our name -> the column that is meant, as {"prompt": "question"}; None: the names are a format's.
        on_error: raise: read everything, then report all bad rows; skip: drop them, with one warning that counts them.
        rejected_path: with skip, where the dropped rows are recorded as JSON lines.

    Returns:
        Columns `row` u64, `prompt`, `chosen`, `rejected` list<struct{role, content, extra}>, `chosen_complete`,
        `rejected_complete` bool, where given `score_chosen`, `score_rejected` f32, `tools`, `template_kwargs` str,
        and every other column of the input (as `source_NAME` where it is named like one of these). `row` is the
        position in the input, also if the input has a `row`.
        A LazyFrame for a LazyFrame (its rows are read at once), a DataFrame otherwise.

    Raises:
        ConfigError: an unknown format or on_error, or a rejected_path without skip.
        DataError: bad rows (on_error raise), a missing or unreadable file, an unknown schema.

    Example:
        >>> pairs = read_preferences(pl.DataFrame({"prompt": ["Hi"], "chosen": ["Hello!"], "rejected": ["No."]}))
        >>> pairs["chosen"][0].to_list()
        [{'role': 'assistant', 'content': 'Hello!', 'extra': None}]
    """
    check_on_error(on_error, rejected_path)
    return _used(scan_preferences(source, format=format, columns=columns), source, on_error, rejected_path)


def scan_preferences(source: Any, *, format: str = "auto", columns: Columns = None) -> ReadResult:  # noqa: A002
    """Like `read_preferences`, but bad rows are returned, not raised."""
    return _scan(source, open_source(source, format=format, kind="preferences", columns=columns))


def read_candidates(
    source: Any,
    *,
    format: str = "auto",  # noqa: A002
    columns: Columns = None,
    aspect: str | None = None,
    on_error: OnError = "raise",
    rejected_path: str | Path | None = None,
) -> pl.DataFrame | pl.LazyFrame:
    """Read several responses a prompt, with their scores.

    Rows have `prompt` (or `instruction`) and `responses`, `completions` or `candidates`: lists of texts, messages,
    chats, or objects {response, overall_score}; with `scores` or `ratings` beside them. Or one response a row:
    `prompt`, `response`, `score`; rows of the same prompt are then one set, at the place of the first of them, and
    their other columns become lists, `response_weights` under the name `responses_weights`.

    Args:
        source: as in `read_preferences`.
        format: one of candidates or of single responses with scores (see docs/data.md); auto: by schema.
        columns: as in `read_preferences`.
        aspect: of UltraFeedback's raw set: the aspect whose ratings are the scores; see `open_source`.
        on_error: as in `read_preferences`.
        rejected_path: as in `read_preferences`.

    Returns:
        Columns `row` u64, `prompt` list<message>, `responses` list<list<message>>, `scores` list<f32> (null where the
        row has none), where given `responses_complete` list<bool> (false: cut, without an end of turn), `tools`,
        `template_kwargs`, and every other column of the input; eager or lazy as in `read_preferences`.

    Raises:
        ConfigError, DataError: as in `read_preferences`.

    Example:
        >>> rows = pl.DataFrame({"prompt": ["Hi", "Hi"], "response": ["Hello!", "No."], "score": [1.0, 0.0]})
        >>> read_candidates(rows)["scores"].to_list()
        [[1.0, 0.0]]
    """
    check_on_error(on_error, rejected_path)
    scanned = scan_candidates(source, format=format, columns=columns, aspect=aspect)
    return _used(scanned, source, on_error, rejected_path)


def scan_candidates(
    source: Any,
    *,
    format: str = "auto",  # noqa: A002
    columns: Columns = None,
    aspect: str | None = None,
) -> ReadResult:
    """Like `read_candidates`, but bad rows are returned, not raised."""
    opened = open_source(source, format=format, kind=("candidates", "ranked"), columns=columns, aspect=aspect)
    result = _scan(source, opened)
    return result if opened.kind == "candidates" else replace(result, frame=_grouped(result.frame))


def read_instructions(
    source: Any,
    *,
    format: str = "auto",  # noqa: A002
    columns: Columns = None,
    on_error: OnError = "raise",
    rejected_path: str | Path | None = None,
) -> pl.DataFrame | pl.LazyFrame:
    """Read instruction data for SFT.

    Rows have `messages` or `conversations` (ending with the assistant), `prompt` and `response` or `completion`, or
    `instruction` (with an optional `input` and `history`) and `output`; each with optional `system`, `tools` and
    `template_kwargs`.

    Args:
        source: as in `read_preferences`.
        format: one of instructions (see docs/data.md); auto: by schema.
        columns: as in `read_preferences`.
        on_error: as in `read_preferences`.
        rejected_path: as in `read_preferences`.

    Returns:
        Columns `row` u64, `prompt`, `response` list<struct{role, content, extra}>, and where the input has them
        `tools`, `template_kwargs`, and `response_weights` (weights of tokens, see
        `pyprefopt.data.tokenization.token_columns`); eager or lazy as in `read_preferences`.

    Raises:
        ConfigError, DataError: as in `read_preferences`.

    Example:
        >>> read_instructions(pl.DataFrame({"prompt": ["Hi"], "response": ["Hello!"]}))["response"][0].to_list()
        [{'role': 'assistant', 'content': 'Hello!', 'extra': None}]
    """
    check_on_error(on_error, rejected_path)
    return _used(scan_instructions(source, format=format, columns=columns), source, on_error, rejected_path)


def scan_instructions(source: Any, *, format: str = "auto", columns: Columns = None) -> ReadResult:  # noqa: A002
    """Like `read_instructions`, but bad rows are returned, not raised."""
    return _scan(source, open_source(source, format=format, kind="instructions", columns=columns), carry=False)


def _used(
    result: ReadResult, source: Any, on_error: OnError, rejected_path: str | Path | None
) -> pl.DataFrame | pl.LazyFrame:
    report_rejects(result.rejects, result.rows_in, on_error, rejected_path)
    return result.frame.lazy() if isinstance(source, pl.LazyFrame) else result.frame


def scan_source(source: Source, columns: Sequence[str] = ()) -> ReadResult:
    """All rows of an open source, with their further columns of these names; bad rows are returned, not raised."""
    names = named_in_any_row(source, columns)
    parsed = [parse_block(block, source.format, carry=bool(names)) for block in source.blocks(extra=names)]
    return _joined_rows(source.files, source, parsed, names)


def scan_sets(source: Source) -> ReadResult:
    """The candidate sets of an open source of one response a row, with their weights."""
    result = scan_source(source, weight_fields(source.kind))
    return replace(result, frame=_grouped(result.frame))


def _scan(source: Any, opened: Source, *, carry: bool = True) -> ReadResult:
    if carry:
        parsed = [parse_block(block, opened.format, carry=True) for block in opened.blocks(carry=True)]
        result = _joined_rows(source, opened, parsed)
        read, csv = weight_fields(opened.kind), opened.container == "csv"
        carried = _carried(parsed, result.file, read=read, csv=csv).drop("row", strict=False)
        return replace(result, frame=pl.concat([result.frame, _renamed(carried, result.frame)], how="horizontal"))
    fields = weight_fields(opened.kind)
    extra = opened.named(fields)
    parsed = []
    for block in opened.blocks(extra=extra):
        if not extra:
            check_unseen(block, fields)
        parsed.append(parse_block(block, opened.format, carry=bool(extra)))
    return _joined_rows(source, opened, parsed, extra)


def _joined_rows(source: Any, opened: Source, blocks: Sequence[ParsedBlock], columns: Sequence[str] = ()) -> ReadResult:
    """The rows of all blocks, with further columns of these names."""
    frame = pl.DataFrame(pa.concat_tables([block.table for block in blocks]))
    frame = frame.drop([name for name in _OPTIONAL if name in frame.columns and frame[name].null_count() == len(frame)])
    if columns:
        further = pl.concat([carried_columns(block, columns) for block in blocks], how="vertical_relaxed")
        frame = pl.concat([frame, further], how="horizontal")
    file = opened.files[0] if len(opened.files) == 1 else str(source)
    rejects = pl.concat([block.rejects for block in blocks])
    return ReadResult(frame, rejects, opened.format, file, sum(block.rows_in for block in blocks))


def _renamed(carried: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """The carried columns; those named like one of the frame's own, or like a response, as `source_NAME`."""
    taken = {*frame.columns, *(("chosen", "rejected") if "responses" in frame.columns else ())}
    names: dict[str, str] = {}
    for name in carried.columns:
        new = name
        while new in taken or (new != name and new in carried.columns):
            new = f"source_{new}"
        names[name] = new
    return carried.rename(names)


def _carried(blocks: Sequence[ParsedBlock], file: str, *, read: Sequence[str], csv: bool) -> pl.DataFrame:
    """The further columns of all blocks; those of `read` are of one type. Null where the rows of a file have none."""
    runs = [list(run) for _, run in groupby(blocks, lambda block: isinstance(block.carried, pa.Table))]
    if len(runs) > 1:  # files of several kinds
        places = (pl.DataFrame({_PLACE: range(sum(block.table.num_rows for block in run))}) for run in runs)
        frames = (_carried(run, file, read=read, csv=False).drop("row", strict=False) for run in runs)
        both = [pl.concat(pair, how="horizontal") for pair in zip(places, frames, strict=True)]
        return pl.concat(both, how="diagonal_relaxed").drop(_PLACE)
    tables = [(block.carried, block.table) for block in blocks if isinstance(block.carried, pa.Table)]
    if tables:  # a table without columns has no rows either
        return _joined([own if own.num_columns else rows.select(["row"]) for own, rows in tables], file)
    frame = frame_of_lines(blocks, file, read)
    return frame.with_columns(_typed(column) for column in frame) if csv else frame


def _joined(tables: Sequence[pa.Table], file: str) -> pl.DataFrame:
    try:
        whole = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise DataError(f"{file}: a column must have one type in all files: {error}; cast it, or drop it") from error
    return frame_of(whole, file)


def _typed(column: pl.Series) -> pl.Series:
    """A column of a CSV file as the type that all its cells have: integers, numbers, booleans, else text."""
    if column.dtype != pl.String:
        return column
    given = column.drop_nulls()
    if given.is_in(["true", "false"]).all():
        return column == "true"
    whole = given.cast(pl.Int64, strict=False)
    if whole.cast(pl.String).eq_missing(given).all():
        return column.cast(pl.Int64)
    leading_zero = given.str.contains(r"^[+-]?0\d")
    if not leading_zero.any() and given.cast(pl.Float64, strict=False).is_not_null().all():
        return column.cast(pl.Float64)
    return column


def _grouped(frame: pl.DataFrame) -> pl.DataFrame:
    """One response a row into one candidate set a prompt."""
    key = [name for name in ("prompt", "tools", "template_kwargs") if name in frame.columns]
    own = [name for name in frame.columns if name not in (*key, "row", "response", "score")]
    sets = frame.group_by(key, maintain_order=True).agg(
        pl.first("row"), pl.col("response").alias("responses"), pl.col("score").alias("scores"), *own
    )
    named = {"response_weights": "responses_weights"}
    return sets.select("row", "prompt", "responses", "scores", *key[1:], *own).rename(named, strict=False)


def plain_messages(chat: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages {role, content, extra} of a frame as they were read, and as chat templates take them.

    Example:
        >>> plain_messages([{"role": "user", "content": "Hi", "extra": '{"name": "Ann"}'}])
        [{'role': 'user', 'content': 'Hi', 'name': 'Ann'}]
    """
    return [{"role": m["role"], "content": m["content"], **json.loads(m.get("extra") or "{}")} for m in chat]


def template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `apply_chat_template` takes besides the messages of a frame's row: its tools and template_kwargs."""
    tools, more = row.get("tools"), row.get("template_kwargs")
    return ({"tools": json.loads(tools)} if tools else {}) | (json.loads(more) if more else {})
