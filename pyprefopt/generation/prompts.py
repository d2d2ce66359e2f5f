"""Prompts to generate from: of a file of prompts, or those of pairs, candidates and examples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from pyprefopt.data.files.parts import Part, Piece
from pyprefopt.data.reading.frames import scan_source
from pyprefopt.data.reading.rejects import OnError, report_rejects
from pyprefopt.data.reading.sources import open_source
from pyprefopt.errors import DataError

if TYPE_CHECKING:
    from pyprefopt.data.reading.sources import Source

_ANSWER = "."  # in the place of the response that a prompt does not have, so that rows are read as examples are


def read_prompts(
    source: Any,
    *,
    columns: Mapping[str, str] | Sequence[str] | None = None,
    on_error: OnError = "raise",
    rejected_path: str | Path | None = None,
) -> pl.DataFrame:
    """Read prompts.

    Args:
        source: what `open_source` takes. Rows of pairs, candidates or examples give their prompts; other rows must have
            `prompt` (a text, or messages), or `messages` that end with the user.
        columns: as in `open_source`.
        on_error: as in `read_preferences`.
        rejected_path: as in `read_preferences`.

    Returns:
        Columns `row` u64, `prompt` list<struct{role, content, extra}>, and where given `tools`, `template_kwargs`.

    Raises:
        DataError: bad rows (on_error raise), or rows that hold no prompts.

    Example:
        >>> read_prompts(pl.DataFrame({"prompt": ["Hi"]}))["prompt"][0].to_list()
        [{'role': 'user', 'content': 'Hi', 'extra': None}]
    """
    opened = _open(source, columns)
    found = scan_source(opened)
    report_rejects(found.rejects, found.rows_in, on_error, rejected_path)
    names = [name for name in ("row", "prompt", "tools", "template_kwargs") if name in found.frame.columns]
    return found.frame.select(names)


def _open(source: Any, columns: Mapping[str, str] | Sequence[str] | None) -> Source:
    try:
        opened = open_source(source, columns=columns)
    except DataError as no_format:
        try:
            return open_source(source, columns=columns, format="prompt_response", change=_answered)
        except DataError:
            raise no_format from None
    if opened.format == "messages":  # examples end with the assistant, prompts with the user
        return open_source(source, columns=columns, change=_answered)
    return opened


def _answered(part: Part) -> Part:
    """The part with an answer behind every prompt that has none."""

    def blocks(columns: Sequence[str] | None, size: int) -> Iterator[Piece]:  # noqa: ARG001  (all are looked at)
        for rows, count, line in part.blocks(None, size):
            yield (_answered_table(rows) if isinstance(rows, pa.Table) else _answered_lines(rows)), count, line

    return replace(part, read=blocks, columns=None)


def _answered_lines(rows: pa.Array) -> pa.Array:
    made = b"\n".join(_answered_line(line) for line in rows.to_numpy().tobytes().split(b"\n"))
    return pa.Array.from_buffers(pa.uint8(), len(made), [None, pa.py_buffer(made)])


def _answered_line(line: bytes) -> bytes:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # reading says what is wrong with it
        return line
    return json.dumps(_answered_row(row), ensure_ascii=False).encode() if isinstance(row, dict) else line


def _answered_row(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("messages", "conversations"):
        if isinstance(row.get(name), list) and "prompt" not in row:
            last = row[name][-1] if row[name] else None
            said = last.get("role", last.get("from")) if isinstance(last, dict) else None
            if said in ("assistant", "gpt", "model"):
                return row
            return {
                **{key: value for key, value in row.items() if key != name},
                "prompt": row[name],
                "response": _ANSWER,
            }
    return {**row, "response": _ANSWER}


def _answered_table(rows: pa.Table) -> pa.Array:
    """The same of typed rows, as JSON lines."""
    lines = [json.dumps(_answered_row(row), ensure_ascii=False, default=str) for row in rows.to_pylist()]
    made = "".join(f"{line}\n" for line in lines).encode()
    return pa.Array.from_buffers(pa.uint8(), len(made), [None, pa.py_buffer(made)])
