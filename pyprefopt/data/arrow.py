"""Arrow data from outside, looked at before anything reads it: what lies in it can end the process of its reader."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pyprefopt.errors import DataError

MOST_COLUMNS = 10_000
MOST_LEVELS = 64  # of lists and structs in each other


def check_sound(data: Any, name: str) -> None:
    """DataError where offsets, lengths, indices, texts or dates of a table, batch or array cannot be what they are."""
    try:
        data.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name} is not sound Arrow data: {first_line(error)}; write it again") from None
    for column in data.columns if isinstance(data, pa.Table | pa.RecordBatch) else [data]:
        _check_dates(column, name)


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
    seen: dict[str, str] = {}
    for column in schema.names:
        other = seen.setdefault(_plain_name(column), column)
        if other != column and _plain_name(column):
            shown = f"'{other:.80}' and '{column:.80}'"
            raise DataError(f"{name}: columns {shown} differ in nothing but space; name each column once")
    return schema


def _plain_name(name: str) -> str:
    """A name without space and byte order marks around it."""
    return re.sub(r"^[\s\ufeff]+|[\s\ufeff]+$", "", name)


def check_types(schema: pa.Schema, name: str) -> None:
    """DataError where a column is of a type that Polars does not have."""
    for field in schema:
        if not _is_readable(field.type):
            raise DataError(
                f"{name}: column '{field.name:.80}' is of Arrow type {field.type!s:.80}, which cannot be read; cast it "
                "or leave it out"
            )


def _is_readable(kind: pa.DataType) -> bool:
    types = pa.types
    odd = (types.is_union, types.is_run_end_encoded, types.is_interval)
    if any(is_kind(kind) for is_kind in odd) or (types.is_decimal(kind) and not types.is_decimal128(kind)):
        return False
    if types.is_fixed_size_list(kind) and kind.list_size == 0:
        return False
    if types.is_dictionary(kind):
        return _is_readable(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _is_readable(kind.storage_type)
    return all(_is_readable(kind.field(index).type) for index in range(kind.num_fields))


def as_float32(numbers: Any, name: str) -> Any:
    """An array of numbers, or of lists of them, of any width as one of float32; others as they are.

    DataError for a finite number that float32 does not have.
    """
    kind = numbers.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    element = kind.value_type if is_list else kind
    if element == pa.float32() or not (
        pa.types.is_floating(element) or pa.types.is_integer(element) or pa.types.is_decimal(element)
    ):
        return numbers
    narrow = numbers.cast(pa.large_list(pa.float32()) if is_list else pa.float32(), safe=False)
    ours, theirs = (pc.list_flatten(narrow), pc.list_flatten(numbers)) if is_list else (narrow, numbers)
    if pc.any(pc.is_inf(ours)).as_py():
        lost = pc.and_(pc.is_inf(ours), pc.is_finite(theirs))
        if pc.any(lost).as_py():
            worst = theirs.filter(lost)[0].as_py()
            raise DataError(f"{name} must hold numbers of float32, up to 3.4e38, got {worst}; scale them")
    return narrow


_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
_MOST_DAYS = 95_000_000  # before and after 1970 that calendars reckon with: 260,000 years


def _check_dates(array: Any, name: str) -> None:
    """DataError for a date that no calendar has."""
    types, kind = pa.types, array.type
    if not _has_dates(kind):
        return
    if isinstance(array, pa.ChunkedArray):
        for chunk in array.chunks:
            _check_dates(chunk, name)
    elif isinstance(array, pa.ExtensionArray):
        _check_dates(array.storage, name)
    elif types.is_dictionary(kind):
        _check_dates(array.dictionary, name)
    elif types.is_struct(kind):
        for index in range(kind.num_fields):
            _check_dates(array.field(index), name)
    elif types.is_map(kind):
        _check_dates(array.keys, name)
        _check_dates(array.items, name)
    elif kind.num_fields:
        _check_dates(array.values, name)
    elif types.is_date(kind) or types.is_timestamp(kind):
        day = 1 if types.is_date32(kind) else _DAY["ms" if types.is_date64(kind) else kind.unit]
        found = pc.min_max(array.view(pa.int32() if types.is_date32(kind) else pa.int64())).as_py()
        worst = next((at for at in found.values() if at is not None and abs(at) > _MOST_DAYS * day), None)
        if worst is not None:
            raise DataError(f"{name} holds {worst} as a {kind}, which no calendar has; write it again")


@lru_cache(maxsize=1024)
def _has_dates(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _has_dates(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _has_dates(kind.storage_type)
    return (
        pa.types.is_date(kind)
        or pa.types.is_timestamp(kind)
        or any(_has_dates(kind.field(index).type) for index in range(kind.num_fields))
    )


def broken_name(error: UnicodeDecodeError, name: str) -> DataError:
    """The error for a field's name or metadata that is not UTF-8."""
    shown = error.object.decode(errors="backslashreplace")
    return DataError(f"{name}: the names and metadata of fields must be UTF-8, got '{shown:.80}'; rename it")


def _levels(field: pa.Field) -> Iterator[int]:
    """How deep each field inside of a field stands; names and metadata that are not UTF-8 raise UnicodeDecodeError."""
    pending = [(field, 0)]
    while pending:
        inner, level = pending.pop()
        kind, _ = inner.type, inner.name
        for text in (inner.metadata or {}).items():
            b"".join(text).decode()
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
