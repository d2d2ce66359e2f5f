"""Preference and instruction data from files and frames, whatever its format, into one schema.

Every row becomes one JSON text (a line of JSON lines as it stands, an element of a JSON array, a row of a typed frame
encoded by Polars), and one Rust kernel parses them all, in parallel, into chats or rejects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import polars as pl
import pyarrow as pa

from pyprefopt.data.rejects import raise_for, write_rejected
from pyprefopt.data.sources import ParsedBlock, open_source, parse_block
from pyprefopt.errors import ConfigError, DataError

Source = str | Path | pl.DataFrame | pl.LazyFrame
OnError = Literal["raise", "skip"]

MESSAGE = pl.Struct({"role": pl.String, "content": pl.String, "extra": pl.String})
CHAT = pl.List(MESSAGE)
_OPTIONAL = (
    "score_chosen",
    "score_rejected",
    "tools",
    "template_kwargs",
)  # result columns only where the input has them


@dataclass(frozen=True)
class ReadResult:
    """What a source holds: `rows_in == frame.height + rejects.height`."""

    frame: pl.DataFrame  # preferences, or instructions
    rejects: pl.DataFrame  # of schema REJECTS
    format: str
    file: str
    rows_in: int


@overload
def read_preferences(
    source: pl.LazyFrame, *, format: str = ..., on_error: OnError = ..., rejected_path: str | Path | None = ...
) -> pl.LazyFrame: ...
@overload
def read_preferences(
    source: str | Path | pl.DataFrame,
    *,
    format: str = ...,
    on_error: OnError = ...,
    rejected_path: str | Path | None = ...,
) -> pl.DataFrame: ...
def read_preferences(
    source: Source,
    *,
    format: str = "auto",  # noqa: A002
    on_error: OnError = "raise",
    rejected_path: str | Path | None = None,
) -> pl.DataFrame | pl.LazyFrame:
    """Preference pairs in the one schema of pyprefopt.

    Args:
        source: a file (.jsonl .json .csv .parquet .arrow .feather; text ones also .gz), or a Polars frame.
        format: preference, hh, sharegpt or ultrafeedback; auto: by schema.
        on_error: raise: read everything, then report all bad rows; skip: drop them.
        rejected_path: with skip, where the dropped rows are recorded as JSON lines.

    Returns:
        Columns `row` u64, `prompt`, `chosen`, `rejected` list<struct{role, content, extra}>, `chosen_complete`,
        `rejected_complete` bool, where given `score_chosen`, `score_rejected` f32, `tools`, `template_kwargs` str,
        and every other column of the input. `row` is the position in the input, also if the input has a `row`.
        A LazyFrame for a LazyFrame (its rows are read at once), a DataFrame otherwise.

    Raises:
        DataError: bad rows (on_error raise), a missing or unreadable file, an unknown schema.
    """
    _check_on_error(on_error)
    return _used(scan_preferences(source, format=format), source, on_error, rejected_path)


def scan_preferences(source: Source, *, format: str = "auto") -> ReadResult:  # noqa: A002
    """Like `read_preferences`, but bad rows are returned, not raised."""
    return _scan(source, format, "preferences")


def read_instructions(
    source: Source,
    *,
    format: str = "auto",  # noqa: A002
    on_error: OnError = "raise",
    rejected_path: str | Path | None = None,
) -> pl.DataFrame | pl.LazyFrame:
    """Instruction data for SFT: columns `row` u64, `prompt`, `response` list<struct{role, content, extra}>.

    Rows have `messages` or `conversations` (ending with the assistant), `prompt` and `response` or `completion`, or
    `instruction` (with an optional `input`) and `output`. Arguments and errors as in `read_preferences`; `format` is
    messages, prompt_response or instruction.
    """
    _check_on_error(on_error)
    return _used(scan_instructions(source, format=format), source, on_error, rejected_path)


def scan_instructions(source: Source, *, format: str = "auto") -> ReadResult:  # noqa: A002
    """Like `read_instructions`, but bad rows are returned, not raised."""
    result = _scan(source, format, "instructions")
    columns = [
        name for name in ("row", "prompt", "response", "tools", "template_kwargs") if name in result.frame.columns
    ]
    return replace(result, frame=result.frame.select(columns))


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"on_error must be 'raise' or 'skip', got {on_error!r}")


def _used(
    result: ReadResult, source: Source, on_error: OnError, rejected_path: str | Path | None
) -> pl.DataFrame | pl.LazyFrame:
    if on_error == "raise":
        raise_for(result.rejects, result.rows_in)
    elif rejected_path is not None:
        write_rejected(rejected_path, result.rejects)
    return result.frame.lazy() if isinstance(source, pl.LazyFrame) else result.frame


def _scan(source: Any, format: str, kind: str) -> ReadResult:  # noqa: A002
    opened = open_source(source, format=format, kind=kind)
    parsed = [parse_block(block, opened.format, carry=True) for block in opened.blocks(carry=True)]
    frame = pl.DataFrame(pa.concat_tables([block.table for block in parsed]))
    frame = frame.drop([name for name in _OPTIONAL if name in frame.columns and frame[name].null_count() == len(frame)])
    file = opened.files[0] if len(opened.files) == 1 else str(source)
    carried = _carried(parsed, file)
    return ReadResult(
        pl.concat([frame, carried.drop("row", strict=False)], how="horizontal"),
        pl.concat([block.rejects for block in parsed]),
        opened.format,
        file,
        sum(block.rows_in for block in parsed),
    )


def _carried(blocks: list[ParsedBlock], file: str) -> pl.DataFrame:
    """The further columns of all blocks, of one type each."""
    if isinstance(blocks[0].carried, pa.Table):
        return pl.DataFrame(pa.concat_tables([block.carried for block in blocks], promote_options="default"))
    if not any(block.carried for block in blocks):
        return pl.DataFrame()
    return _infer(b"".join(block.carried or b"{}\n" * block.table.num_rows for block in blocks), file)


def _infer(lines: bytes, file: str) -> pl.DataFrame:
    """Types of the further JSON fields, inferred over all rows."""
    try:
        return pl.read_ndjson(lines, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        rule = "each field beside the prompt and the responses must have one type over all rows"
        raise DataError(f"{file}: {rule}: {error}; give it one type, or remove it") from error
