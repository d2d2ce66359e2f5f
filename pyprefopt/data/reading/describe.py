"""What a source holds, found from its files' names and its first block, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from pyprefopt.data import _native
from pyprefopt.data.reading.catalog import TABLE
from pyprefopt.data.reading.formats import detected, texts_of

SHOWN_CHARS = 60
_RANKED = (
    "every row is taken as an SFT example, whatever its score; data.read_candidates and --method rrhf take such rows "
    "as candidates (format candidate_rows), one set of each prompt"
)


def describe_rows(
    rows: pa.Array | pa.Table,
    frame: pl.DataFrame,
    format: str,  # noqa: A002
    columns: Sequence[str] | None,
) -> dict[str, Any]:
    """What the rows of a first block hold: `rows` as they came, `frame` those of them that can be used.

    columns: all those of typed rows.

    Returns:
        with_system, with_tools, multi_turn (rows that have them), fields (name -> what it is taken as), carried (fields
        kept as they are), hint (None, or how else the rows may be read), and first_row: the roles and the beginning of
        each message of the first row that can be used.
    """
    names = _fields(rows, format, columns)
    return {
        "with_system": _count(frame, pl.col("prompt").list.eval(_role() == "system").list.any()),
        "with_tools": _count(frame, pl.col("tools").is_not_null()),
        "multi_turn": _count(frame, pl.col("prompt").list.eval(_role() == "assistant").list.any()),
        "fields": {name: meaning for name, meaning in names.items() if meaning is not None},
        "carried": [name for name, meaning in names.items() if meaning is None],
        "hint": _RANKED if format == "prompt_response" and _is_ranked(rows) else None,
        "first_row": _first_row(frame),
    }


def _is_ranked(rows: pa.Array | pa.Table) -> bool:
    """Whether rows that are read as instructions could be candidates, one a row."""
    return detected(rows, ["candidate_rows"])[0] is not None


def _fields(rows: pa.Array | pa.Table, format: str, columns: Sequence[str] | None) -> dict[str, str | None]:  # noqa: A002
    names = columns or _native.detect_format(texts_of(rows, [format]), [format])[1]
    meant = {field.name: field.meaning for field in TABLE[format].fields} | TABLE[format].weights
    return {name: meant.get(name) for name in names}


def _role() -> pl.Expr:
    return pl.element().struct.field("role")


def _count(frame: pl.DataFrame, condition: pl.Expr) -> int:
    return int(frame.select(condition.sum()).item())


def _first_row(frame: pl.DataFrame) -> dict[str, list[str]]:
    """`user: How do I …` for each message; of several responses each."""
    shown: dict[str, list[str]] = {}
    for name in ("prompt", "chosen", "rejected", "response", "responses"):
        if name not in frame.columns or frame.is_empty():
            continue
        messages = frame[name].head(1).explode()
        messages = messages.explode() if name == "responses" else messages
        roles, contents = messages.struct.field("role"), messages.struct.field("content")
        shown[name] = [_line(role, content) for role, content in zip(roles, contents, strict=True)]
    return shown


def _line(role: str, content: str) -> str:
    words = " ".join(content[: 4 * SHOWN_CHARS].split())
    return f"{role}: {words[:SHOWN_CHARS]}{'…' if len(words) > SHOWN_CHARS else ''}"
