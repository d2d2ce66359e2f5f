"""A block's rows as JSON texts, which format they have, and advice where they have none."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pyprefopt.data import _native
from pyprefopt.data.arrow import first_line
from pyprefopt.data.columns import frame_of
from pyprefopt.data.reading.catalog import NEEDED, TABLE, Format
from pyprefopt.data.renaming import written_as_option
from pyprefopt.errors import DataError, did_you_mean, option

LISTED = 100  # names that a message shows

HEAD_ROWS = 1000  # of a table, by which its format is known

LIKE_PROMPT = (
    "system_prompt", "system_message", "history", "input", "context", "question", "query", "conversation", "dialogue"
)  # fmt: skip
_LOOKED_BYTES = 1 << 20  # of JSON lines that are looked through

logger = logging.getLogger("pyprefopt")


def texts_of(rows: pa.Array | pa.Table, formats: Sequence[str]) -> Any:
    """JSON lines as they are, or a column of JSON texts with the fields that the formats take."""
    if not isinstance(rows, pa.Table):
        return pa.chunked_array([rows])
    own = {field for name in formats for field in TABLE[name].names}
    looked_at = {field for name in formats for field in TABLE[name].looked_at}
    names = [name for name in rows.column_names if name in looked_at]
    try:
        return _encode(rows, names)
    except (*_UNREADABLE, DataError):
        names = [name for name in names if name in own or _is_readable(rows, name)]
    try:
        return _encode(rows, names)
    except _UNREADABLE as error:
        types = ", ".join(f"{name} {rows.schema.field(name).type}" for name in names)
        raise DataError(
            f"the columns {types} cannot be read as text: {first_line(error)}; write texts as strings"
        ) from error


def lines_bytes(lines: Any) -> bytes:
    """JSON lines, an array of u8 of any library, as bytes."""
    return pa.array(lines).to_numpy().tobytes()  # type: ignore[no-any-return]


_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def _encode(table: pa.Table, names: Sequence[str]) -> pl.Series:
    """Each typed row as a JSON object."""
    frame = frame_of(table.select(names), "the rows")
    return frame.with_columns(map(_as_json, frame)).select(pl.struct(names).struct.json_encode()).to_series()


def _as_json(column: pl.Series) -> pl.Series:
    """The column in types that JSON has: categories and UTF-8 bytes are text, and so are numbers that are infinite."""
    infinite = _is_infinite(column)

    def plain(dtype: Any) -> Any:
        if isinstance(dtype, pl.List | pl.Array):
            return pl.List(plain(dtype.inner))
        if isinstance(dtype, pl.Struct):
            return pl.Struct({field.name: plain(field.dtype) for field in dtype.fields})
        if isinstance(dtype, pl.Categorical | pl.Enum) or dtype == pl.Binary or (infinite and dtype.is_float()):
            return pl.String()
        return pl.Float64() if dtype.is_decimal() else dtype

    dtype = plain(column.dtype)
    if infinite and column.dtype.is_float():
        column = column.fill_nan(None)
    if infinite and isinstance(column.dtype, pl.List) and column.dtype.inner.is_float():
        column = column.list.eval(pl.element().fill_nan(None))
    return column if dtype == column.dtype else column.cast(dtype)


def _is_infinite(column: pl.Series) -> bool:
    """Whether a number in the column is infinite, which JSON would lose."""
    if isinstance(column.dtype, pl.Array):
        column = column.cast(pl.List(column.dtype.inner))
    if isinstance(column.dtype, pl.List):
        return _has_floats(column.dtype) and _is_infinite(column.explode())
    if isinstance(column.dtype, pl.Struct):
        return _has_floats(column.dtype) and any(map(_is_infinite, column.struct.unnest()))
    return column.dtype.is_float() and bool(column.is_infinite().any())


def _has_floats(dtype: Any) -> bool:
    if isinstance(dtype, pl.List | pl.Array):
        return _has_floats(dtype.inner)
    if isinstance(dtype, pl.Struct):
        return any(_has_floats(field.dtype) for field in dtype.fields)
    return bool(dtype.is_float())


def _seen(rows: pa.Array | pa.Table, formats: Sequence[str]) -> tuple[str | None, list[str], bool]:
    """The kernel's answer; a column that cannot be read tells nothing, and matters where it is the format's own."""
    try:
        return _native.detect_format(texts_of(rows, formats), formats)
    except DataError:
        readable = [name for name in rows.column_names if _is_readable(rows, name)]
        seen = _native.detect_format(texts_of(rows.select(readable), formats), formats) if readable else None
        if seen is None or seen[0] is None:
            raise
        return seen


def _is_readable(table: pa.Table, name: str) -> bool:
    try:
        _encode(table, [name])
    except (*_UNREADABLE, DataError):
        return False
    return True


def detected(
    rows: pa.Array | pa.Table, formats: Sequence[str], columns: Sequence[str] | None = None
) -> tuple[str | None, list[str], str]:
    """The format that most rows fit, the rows' field names, and advice where none fits.

    columns: of typed rows, if these are not all of them.
    """
    names = list(columns or rows.column_names) if isinstance(rows, pa.Table) else []
    fields = {field for name in formats for field in TABLE[name].names}
    if names and not fields.intersection(names):
        return None, names, _nearest(names) + _missing_fields(rows, names, formats)
    found, seen, unmarked = _seen(rows.slice(0, HEAD_ROWS) if isinstance(rows, pa.Table) else rows, formats)
    names = names or seen
    advice = _nearest(names) + _missing_fields(rows, names, formats) if names else _not_utf8(rows) or _NO_OBJECTS
    advice = _UNMARKED if unmarked else advice
    return found, names, advice


def _not_utf8(rows: pa.Array | pa.Table) -> str:
    """Which byte of JSON lines is not UTF-8, or an empty text."""
    if isinstance(rows, pa.Table):
        return ""
    lines = lines_bytes(rows)
    try:
        lines.decode()
    except UnicodeDecodeError as error:
        line, at = lines.count(b"\n", 0, error.start) + 1, error.start - lines.rfind(b"\n", 0, error.start)
        return (
            f"; line {line}: the byte at column {at} (0x{lines[error.start]:02x}) is not UTF-8; convert the file to "
            "UTF-8, for example from Latin-1: iconv -f latin1 -t utf-8 OLD > NEW"
        )
    return ""


_UNMARKED = (
    "; chosen and rejected are whole texts without a prompt and without turns that could be told apart, so where the "
    "prompt ends is not known: give the column prompt, or whole chats [{role, content}, ...]"
)
_NO_OBJECTS = "; no row can be read: a file holds one object a line, or (.json) one array of objects"
_TEXTS = ("prompt", "chosen", "rejected", "response", "chat")  # roles of fields that hold texts or chats


def nearest(names: Sequence[str], formats: Sequence[str]) -> tuple[str, list[str]]:
    """The format that rows with these fields come nearest to, and what they lack for it."""
    found = {name: [bool(set(group).intersection(names)) for group in TABLE[name].needed] for name in reversed(formats)}
    near = min(found, key=lambda name: (found[name].count(False), -found[name].count(True)))
    needed = zip(TABLE[near].needed, found[near], strict=True)
    return near, [" or ".join(group) for group, there in needed if not there]


def _missing_fields(rows: pa.Array | pa.Table, names: Sequence[str], formats: Sequence[str]) -> str:
    """What is missing in the rows for the format that they come nearest to; empty where they have a field of none."""
    near, missing = nearest(names, formats)
    needed = TABLE[near].needed
    if len(missing) == len(needed):
        return ""
    shortfall = f"missing: {', '.join(missing)}" if missing else "they are there, but not as they must be"
    if not missing and isinstance(rows, pa.Table):
        known = {name for group in needed for name in group}
        types = ", ".join(f"{field.name} {field.type}" for field in rows.schema if field.name in known)
        shortfall = f"they are there, but of another type ({types})"
    return f"; the nearest format, {near}, needs {TABLE[near].show_needed()}; {shortfall}"


LABELS = ("label", "kto_tag")  # TRL's and LLaMA-Factory's name


def check_unlabelled(rows: pa.Array | pa.Table, file: str, format: str | None) -> None:  # noqa: A002
    """DataError where single responses are labelled wanted or not: as examples, the unwanted would be imitated too."""
    if label := _label(rows):
        raise DataError(
            f"{file}: a row has one response and '{label}' true or false (KTO): no pair, and as SFT examples the "
            "responses labelled false would be imitated too; give pairs (prompt, chosen, rejected), or keep the rows "
            f"labelled true without '{label}', or name the format {format} to learn every response"
        )


def _label(rows: pa.Array | pa.Table) -> str:
    """The boolean field that labels the response, or an empty text."""
    if isinstance(rows, pa.Table):
        return next((field.name for field in rows.schema if field.name in LABELS and field.type == pa.bool_()), "")
    there = _native.quoted_names(texts_of(rows, ()), list(LABELS))
    for line in lines_bytes(rows).split(b"\n") if there else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        for name in there if isinstance(row, dict) else ():
            if str(row.get(name)).lower() in ("true", "false"):  # CSV has no types
                return name
    return ""


def misread(rows: pa.Array | pa.Table, names: Sequence[str], container: str) -> str:
    """What may be wrong with the file as a whole where its fields are those of no format; else empty."""
    if NEEDED.intersection(names) or not names:
        return ""
    if container == "csv":
        found = next((mark for mark in ";|\t" if len(names) == 1 and mark in names[0]), None)
        if found:
            return f"; cells must be separated by commas (.csv) or tabs (.tsv): are these by {found!r}?"
        return _nearest(names) or "; is the header missing? The first line of a CSV file names the fields"
    nested = len(names) == 1 and not isinstance(rows, pa.Table) and _holds_rows(lines_bytes(rows), names[0])
    return f"; its rows are nested under '{names[0]}': write that list alone, one object a line" if nested else ""


def _holds_rows(lines: bytes, name: str) -> bool:
    """Whether the field of the first line is a list of objects."""
    try:
        row = json.loads(lines.split(b"\n", 1)[0])
    except ValueError:
        return False
    held = row.get(name) if isinstance(row, dict) else None
    return isinstance(held, list) and bool(held) and isinstance(held[0], dict)


def _nearest(names: Sequence[str]) -> str:
    """`; 'choosen': did you mean 'chosen'?` for unknown names near an expected one."""
    texts = {field.name for row in TABLE.values() for field in row.fields if field.role in _TEXTS}
    unknown = [name for name in names if name not in NEEDED]
    absent = sorted(texts.intersection(NEEDED).difference(names))
    found = [(name, did_you_mean(name, absent, cutoff=0.75)) for name in unknown[:LISTED]]
    return "".join(f"; '{name}': {near.removeprefix('; ')}" for name, near in found if near)


def warn_of_unread(rows: pa.Array | pa.Table, file: str, format: str, *, is_file: bool) -> None:  # noqa: A002
    """Warn of fields of a prompt, by their names, that the format does not read; of a file's once in a process."""
    names = [name for name in LIKE_PROMPT if name not in TABLE[format].looked_at]
    if found := tuple(_filled(rows, names)):
        (_tell if is_file else _tell.__wrapped__)(file, found, format)


@lru_cache(maxsize=1024)
def _tell(file: str, names: tuple[str, ...], format: str) -> None:  # noqa: A002
    logger.warning(
        "%s: by the name a part of the prompt, but not read by format %s: %s; the prompt stands without it; write it "
        "into the prompt (what the system says into 'system'), or leave it out",
        file, format, ", ".join(names),
    )  # fmt: skip


def _filled(rows: pa.Array | pa.Table, names: Sequence[str]) -> Iterator[str]:
    """Those of the names under which a row has something."""
    if isinstance(rows, pa.Table):
        yield from (name for name in names if name in rows.column_names and _is_filled(rows[name]))
        return
    lines = lines_bytes(rows.slice(0, _LOOKED_BYTES))
    missing = set(_native.quoted_names(lines, list(names)))
    found: set[str] = set()
    for line in lines.split(b"\n") if missing else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        filled = {name for name in missing if isinstance(row, dict) and row.get(name)}
        found, missing = found | filled, missing - filled
        if not missing:
            break
    yield from (name for name in names if name in found)


def _is_filled(column: pa.ChunkedArray) -> bool:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return bool(pc.any(pc.greater(pc.binary_length(column), 0)).as_py())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return bool(pc.any(pc.greater(pc.list_value_length(column), 0)).as_py())
    return bool(column.null_count < len(column))


# What people call the columns of pairs, of responses and of scores, by our name.
OTHER_NAMES = {
    "prompt": "question query instruction input context user ask problem request source conversation history",
    "chosen": "good better best preferred accepted accept winner win winning positive pos up w right correct selected",
    "rejected": "bad worse worst dispreferred reject refused loser lose losing negative neg down l wrong incorrect",
    "response": "answer output completion reply target assistant text y label",
    "responses": "answers outputs completions replies candidates generations",
    "score": "rating reward rank grade",
}


class Suggestion(NamedTuple):
    """What to say about columns of other names."""

    text: str  # what is needed, and the setting `columns`
    whole: bool  # whether every missing column has one that may be meant
    named: bool  # whether all of these have names that say what they are


def suggest_columns(rows: pa.Array | pa.Table, names: Sequence[str], wanted: Format) -> Suggestion:
    """What of the format is missing, and the setting `columns` as it would be written with the columns that are there.

    Columns are taken by their names where these say what they are, and in their order where not.
    """
    missing = [group[0] for group in wanted.needed if not set(group).intersection(names)]
    free = [name for name in _text_columns(rows, names) if name not in NEEDED]
    found: dict[str, str] = {}
    for ours in missing:
        words = {ours, *OTHER_NAMES.get(ours, "").split()}
        alike = [name for name in free if words.intersection(_words(name))]
        if alike:
            found[ours] = alike[0]
            free.remove(alike[0])
    if not missing or not names:
        return Suggestion("", whole=False, named=False)
    named = len(found) == len(missing)
    for ours in missing:
        if ours not in found and ours != "score" and free:
            found[ours] = free.pop(0)
    whole = len(found) == len(missing)
    how = written_as_option({ours: found[ours] for ours in missing}) if whole else f"{option('columns')} ours=yours"
    text = f"; needed are {wanted.show_needed()}; where they have other names, say which: {how}"
    return Suggestion(text, whole, named)


def _words(name: str) -> set[str]:
    """The parts of a name, in small letters: `goodAnswer`, `response_w`."""
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+", name)}


def _text_columns(rows: pa.Array | pa.Table, names: Sequence[str]) -> list[str]:
    """The columns that can hold texts or chats, but for numbers of rows and the like."""
    kept = [name for name in names if not {"id", "idx", "index", "uuid", "url", "date", "lang"} & _words(name)]
    if isinstance(rows, pa.Table):
        typed = {field.name: field.type for field in rows.schema}
        return [name for name in kept if name not in typed or _holds_texts(typed[name])]
    for line in lines_bytes(rows).split(b"\n")[:HEAD_ROWS]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            return [name for name in kept if isinstance(row.get(name), str | list | dict)]
    return kept


def _holds_texts(kind: pa.DataType) -> bool:
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(is_text or pa.types.is_nested(kind) or pa.types.is_dictionary(kind))


def listed(names: Sequence[str]) -> str:
    """`a, b`, or `none`; of many or long names the beginnings."""
    shown = [name if len(name) <= 80 else f"{name[:80]}…" for name in names[:LISTED]]
    more = [f"and {len(names) - LISTED:,} more"] if len(names) > LISTED else []
    return ", ".join([*shown, *more]) if names else "none"
