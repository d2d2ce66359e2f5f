"""Arrow data from outside, looked at before anything reads it: what lies in it can end the process of its reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pyprefopt.errors import DataError

MOST_COLUMNS = 10_000
MOST_LEVELS = 64  # of lists and structs in each other


def check_sound(data: Any, name: str) -> None:
    """DataError where offsets, lengths, indices or texts of a table, batch or array are not what Arrow asks for."""
    try:
        data.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name} is not sound Arrow data: {first_line(error)}; write it again") from None


def check_schema(schema: pa.Schema, name: str) -> pa.Schema:
    """The schema; DataError where its columns cannot be told apart, or are too many or too deep."""
    if len(schema) > MOST_COLUMNS:
        raise DataError(f"{name} must have at most {MOST_COLUMNS:,} columns, got {len(schema):,}; keep those you need")
    try:
        deep = [field.name for field in schema if any(level > MOST_LEVELS for level in _levels(field))]
    except UnicodeDecodeError as error:
        raise broken_name(error, name) from None
    if deep:
        rule = f"must not be nested deeper than {MOST_LEVELS} levels; flatten it, or write it as text"
        raise DataError(f"{name}: column '{deep[0]:.80}' {rule}")
    twice = [column for column, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise DataError(f"{name}: column '{twice[0]:.80}' is there more than once; name each column once")
    return schema


def broken_name(error: UnicodeDecodeError, name: str) -> DataError:
    """The error for a field's name that is not UTF-8."""
    shown = error.object.decode(errors="backslashreplace")
    return DataError(f"{name}: the names of fields must be UTF-8, got '{shown:.80}'; rename it")


def _levels(field: pa.Field) -> Iterator[int]:
    """How deep each of the fields inside of a field stands; a name that is not UTF-8 raises UnicodeDecodeError."""
    pending = [(field, 0)]
    while pending:
        inner, level = pending.pop()
        kind, _ = inner.type, inner.name
        yield level
        if level > MOST_LEVELS:
            return
        if pa.types.is_dictionary(kind):
            pending.append((pa.field("", kind.value_type), level + 1))
        pending.extend((kind.field(index), level + 1) for index in range(kind.num_fields))


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
