"""UltraFeedback's raw set by aspect: the rating of one aspect as the score of each response."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pyprefopt.data.files.parts import Part, Piece
from pyprefopt.data.files.tables import without_views
from pyprefopt.errors import ConfigError, DataError, did_you_mean, option

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
COMPLETIONS = "completions"
_NONE = "N/A"  # in the place of a rating, where the raters gave none


def aspect_part(part: Part, aspect: str) -> Part:
    """The part with the ratings of an aspect as the scores of its completions.

    Raises:
        ConfigError: there is no such aspect. DataError, where the rows are read: they have no annotations, or a rating
        that is no number.
    """
    if aspect not in ASPECTS:
        raise ConfigError(f"aspect must be one of {', '.join(ASPECTS)}, got {aspect!r}{did_you_mean(aspect, ASPECTS)}")
    if part.columns is not None and COMPLETIONS not in part.columns:
        raise _without(part.name, part.columns)

    def blocks(columns: Sequence[str] | None, size: int) -> Iterator[Piece]:
        first = 0
        for rows, count, line in part.blocks(columns, size):
            rewrite = _rated_table if isinstance(rows, pa.Table) else _rated_lines
            yield rewrite(rows, aspect, part.name, first), count, line
            first += count

    return replace(part, read=blocks)


def _without(name: str, fields: Sequence[str]) -> DataError:
    return DataError(
        f"{name}: {option('aspect')} needs rows of completions[].annotations, as UltraFeedback's raw set has; the "
        f"fields are {', '.join(fields)}; leave it out"
    )


def _rated_lines(rows: pa.Array, aspect: str, name: str, first: int) -> pa.Array:
    written, number = [], first
    for line in rows.to_numpy().tobytes().split(b"\n"):
        if not line.strip():
            written.append(line)  # a line of its own, so that numbers of lines stay
            continue
        written.append(_rated_line(line, aspect, f"{name}, row {number}"))
        number += 1
    made = b"\n".join(written)
    return pa.Array.from_buffers(pa.uint8(), len(made), [None, pa.py_buffer(made)])


def _rated_line(line: bytes, aspect: str, place: str) -> bytes:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # reading says what is wrong with it
        return line
    if not isinstance(row, dict) or not isinstance(row.get(COMPLETIONS), list):
        raise _without(place, list(row) if isinstance(row, dict) else [])
    row[COMPLETIONS] = _rated(row[COMPLETIONS], aspect, place)
    return json.dumps(row, ensure_ascii=False).encode()


def _rated_table(rows: pa.Table, aspect: str, name: str, first: int) -> pa.Table:
    if COMPLETIONS not in rows.column_names:  # not asked for
        return rows
    lists = without_views(rows.select([COMPLETIONS]))[COMPLETIONS].to_pylist()
    rated = [
        None if completions is None else _rated(completions, aspect, f"{name}, row {first + number}")
        for number, completions in enumerate(lists)
    ]
    kind = pa.list_(pa.struct({"response": pa.string(), "score": pa.string()}))
    return rows.set_column(rows.column_names.index(COMPLETIONS), COMPLETIONS, pa.array(rated, kind))


def _rated(completions: Sequence[Any], aspect: str, place: str) -> list[dict[str, Any]]:
    """The responses, each with the rating of the aspect; None where it has none."""
    rated = []
    for index, completion in enumerate(completions):
        where = f"{place}, {COMPLETIONS}[{index}]"
        if not isinstance(completion, dict) or not isinstance(completion.get("annotations"), dict):
            raise _without(where, list(completion) if isinstance(completion, dict) else [])
        given = completion["annotations"].get(aspect)
        if given is not None and not isinstance(given, dict):
            raise DataError(
                f"{where}.annotations.{aspect} must be an object with Rating, got {str(given)[:80]!r}; mend the row"
            )
        rating = (given or {}).get("Rating")
        none = rating is None or str(rating).strip() == _NONE
        rated.append({"response": completion.get("response"), "score": None if none else str(rating)})
    return rated


def without_scores(part: Part, names: Sequence[str]) -> Part:
    """The part with responses that are objects without the scores beside them, where the row's own are meant.

    `names` are the fields that the responses may stand in.
    """

    def bare(entry: Any) -> Any:
        return {"response": entry.get("response")} if isinstance(entry, dict) and "response" in entry else entry

    def of_line(line: bytes) -> bytes:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # reading says what is wrong with it
            return line
        for name in names if isinstance(row, dict) else ():
            if isinstance(row.get(name), list):
                row[name] = [bare(entry) for entry in row[name]]
        return json.dumps(row, ensure_ascii=False).encode()

    def of_table(rows: pa.Table) -> pa.Table:
        for name in names:
            kind: Any = rows.schema.field(name).type if name in rows.column_names else pa.null()
            is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
            if is_list and pa.types.is_struct(kind.value_type) and kind.value_type.get_field_index("response") >= 0:
                lists = without_views(rows.select([name]))[name].to_pylist()
                texts = [None if entries is None else [bare(entry) for entry in entries] for entries in lists]
                only = pa.list_(pa.struct({"response": pa.string()}))
                rows = rows.set_column(rows.column_names.index(name), name, pa.array(texts, only))
        return rows

    def blocks(columns: Sequence[str] | None, size: int) -> Iterator[Piece]:
        for rows, count, line in part.blocks(columns, size):
            yield (of_table(rows) if isinstance(rows, pa.Table) else _by_line(rows, of_line)), count, line

    return replace(part, read=blocks)


def _by_line(rows: pa.Array, change: Callable[[bytes], bytes]) -> pa.Array:
    made = b"\n".join(change(line) if line.strip() else line for line in rows.to_numpy().tobytes().split(b"\n"))
    return pa.Array.from_buffers(pa.uint8(), len(made), [None, pa.py_buffer(made)])
