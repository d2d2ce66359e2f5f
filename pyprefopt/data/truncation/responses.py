"""Where the responses stand in the rows of each format, and how they are cut there: row by row, or as columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pyprefopt.data import _native
from pyprefopt.data.truncation.frames import Frame, count_texts, cut_texts, truncate_frame
from pyprefopt.data.truncation.rule import Truncation
from pyprefopt.data.truncation.spans import CsvRow, Row, Value
from pyprefopt.errors import DataError

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import Tokenizer

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_SIDES = ("chosen", "rejected")
_PAIRS = {"shp": ("human_ref_A", "human_ref_B")}  # of other formats: _SIDES
CANDIDATES = ("responses", "completions", "candidates")


@dataclass(frozen=True)
class Response:
    """A response in its row: what is cut is the text of all its parts."""

    book: str  # {book}_cut and {book}_complete say what became of it
    nested: bool  # one of a list of responses
    parts: Sequence[Value]
    lead: int = 0  # characters before it in its only part: the transcript's earlier turns

    @property
    def text(self) -> str:
        """The response as it is."""
        return "".join(part.value for part in self.parts)[self.lead :]

    def cut(self, length: int) -> None:
        """Keep `length` characters."""
        left = length + self.lead
        for part in self.parts:
            if left < len(part.value):
                part.replace(part.value[:left])
            left = max(0, left - len(part.value))


def responses(row: Row, format: str, columns: Sequence[str]) -> list[Response]:  # noqa: A002
    """The responses of a row; `columns` are the fields of formats without a place of their own for them.

    What is null or absent, and a turn that only calls tools, is none. DataError for a field that holds no text.
    """
    if format == "shp":
        names = ("human_ref_A", "human_ref_B") if _a_is_chosen(row) else ("human_ref_B", "human_ref_A")
        return [
            found for book, name in zip(("chosen", "rejected"), names, strict=True) for found in _field(row, name, book)
        ]
    if format == "alpaca" and row.get("chosen") is None:
        output = row.get("output")
        pair = [] if output is None else output.items() if isinstance(output.value, list) else [output]
        if len(pair) != 2:
            raise DataError("field 'output' must be a list of two, [chosen, rejected]")
        return [
            found for book, value in zip(("chosen", "rejected"), pair, strict=True)
            for found in _texts(value, "output", book, nested=False)
        ]  # fmt: skip
    if format == "hh":
        return [found for name in ("chosen", "rejected") for found in _transcript(row, name)]
    return [found for name in columns for found in _field(row, name, name, paired=bool(format))]


def _a_is_chosen(row: Row) -> bool:
    labels = row.get("labels")
    written = "" if labels is None else str(labels.value).strip().lower()
    if written not in ("1", "1.0", "true", "0", "0.0", "false"):
        raise DataError(f"field 'labels' must be 1 (A is preferred) or 0, got '{written[:80]}'")
    return written in ("1", "1.0", "true")


def _field(row: Row, name: str, book: str, *, paired: bool = True) -> list[Response]:
    value = row.get(name)
    if value is None:
        return []
    if isinstance(value.value, str) and value.value.startswith(_HUMAN):
        raise DataError(
            f"column '{name}' holds transcripts ({_HUMAN.strip()} …), whose beginning is the prompt; a file of format "
            "hh (chosen and rejected, no prompt) is cut in the last turn: leave columns out"
        )
    listed = isinstance(value.value, list)
    others = listed and any(not isinstance(item, dict) for item in value.value)
    if others and paired and name not in CANDIDATES:
        raise DataError(f"field '{name}' must be a text, or a list of messages {{role, content}}")
    if others or (listed and name in CANDIDATES):
        return [found for item in value.items() for found in _texts(item, name, book, nested=True)]
    return _texts(value, name, book, nested=False)


def _transcript(row: Row, name: str) -> list[Response]:
    """The last turn, where it is the assistant's."""
    value = row.get(name)
    if value is None or not isinstance(value.value, str):
        return []
    lead = response_start(value.value)
    return [] if lead is None else [Response(name, False, [value], lead)]


def response_start(transcript: str) -> int | None:
    """Where the last answer of a transcript begins; one space after the colon belongs to the marker."""
    at = transcript.rfind(_ASSISTANT)
    if at < 0 or transcript.rfind(_HUMAN) > at:
        return None
    at += len(_ASSISTANT)
    return at + (transcript[at : at + 1] == " ")


def _texts(value: Value, name: str, book: str, *, nested: bool) -> list[Response]:
    """The text, or that of the last message, as a response."""
    if isinstance(value.value, list) and value.value:
        value = value.items()[-1]
    if isinstance(value.value, dict):
        return _message(value, name, book, nested)
    if isinstance(value.value, str):
        return [Response(book, nested, [value])]
    if value.value in (None, []):
        return [Response(book, nested, [])] if nested else []
    raise DataError(f"field '{name}' must hold text or messages, got {value.text[value.start : value.end][:80]}")


def _message(value: Value, name: str, book: str, nested: bool) -> list[Response]:
    fields = value.members()
    for key in ("response", "completion", "text"):  # a candidate with its score
        if key in fields and "role" not in fields and "from" not in fields:
            return _texts(fields[key], name, book, nested=nested)
    role, key = ("from", "value") if "from" in fields else ("role", "content")
    content = fields.get(key)
    if role not in fields or not (content or "tool_calls" in fields):
        raise DataError(f"field '{name}' must hold messages {{role, content}} or {{from, value}}, got {sorted(fields)}")
    if content is None or content.value is None or fields[role].value == "function_call":
        return [Response(book, nested, [])]  # it only calls tools
    if isinstance(content.value, str):
        return [Response(book, nested, [content])]
    parts = content.items() if isinstance(content.value, list) else []
    texts = [part.members().get("text") for part in parts if isinstance(part.value, dict)]
    held = [text for text in texts if text is not None and isinstance(text.value, str)]
    if not parts or len(held) < len(parts):
        raise DataError(f"field '{name}' must hold text, or parts that are all {{type: text, text}}")
    return [Response(book, nested, held)]


class Held:
    """A row with its responses. DataError, which begins with `where`, for a row that cannot be cut."""

    def __init__(self, where: str, row: Row, format: str, columns: Sequence[str]) -> None:  # noqa: A002
        self.where, self.row, self.format = where, row, format
        try:
            self.responses = responses(row, format, columns)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: {error}; mend the row, or leave it out") from None
        for response in self.responses:
            try:
                response.text.encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"{where}, field '{response.book}': half a surrogate pair (an escape \\ud800 to \\udfff) stands in "
                    "it; replace the escape by the whole character or by \\ufffd"
                ) from None

    def is_same(self) -> bool:
        """Whether both sides of a pair, with all that stands before the last message, are the same now."""
        if self.format in ("", "candidates"):
            return False
        line = self.row.line()
        if isinstance(self.row, CsvRow):
            now: dict[str, Any] = {name: line[place] for name, place in self.row.places.items()}
        else:
            now = json.loads(str(line).removeprefix("\ufeff"))
        if self.format == "alpaca" and self.row.get("chosen") is None:
            pair = now["output"]
            first, second = json.loads(pair) if isinstance(pair, str) else pair
        else:
            first, second = (now[name] for name in _PAIRS.get(self.format, _SIDES))
        return bool(first == second)

    def settle(self, gone: Sequence[int], *, ended: bool) -> None:
        """Write the books: the units that each response lost, and whether it is complete."""
        for book in dict.fromkeys(response.book for response in self.responses):
            entry = [(r.nested, cut) for r, cut in zip(self.responses, gone, strict=True) if r.book == book]
            try:
                _write_books(self.row, book, entry, ended=ended)
            except DataError as error:
                raise DataError(f"{self.where}: {error}") from None


def cut_rows(rows: Sequence[Held], rule: Truncation, tokenizer: _native.Tokenizer | None) -> int:
    """Cut the responses of each row where they stand, and keep its books; how many pairs became the same by it."""
    flat = [(line, response) for line, row in enumerate(rows) for response in row.responses]
    texts = pl.Series("text", [response.text for _, response in flat], dtype=pl.String)
    columns = [texts]
    if rule.ratio_base == "shared_min":
        counted = pl.DataFrame(
            {
                "line": pl.Series([line for line, _ in flat], dtype=pl.UInt32),
                "count": count_texts(texts, rule.unit, tokenizer),
                "there": pl.Series([bool(response.parts) for _, response in flat], dtype=pl.Boolean),
            }
        )
        columns.append(counted.select(pl.when("there").then("count").min().over("line")).to_series())
    cut = cut_texts(columns, rule, tokenizer).struct
    gone, kept = [int(lost) for lost in cut.field("cut")], [*cut.field("text")]
    for (_, response), text, lost in zip(flat, kept, gone, strict=True):
        if lost:
            response.cut(len(text))
    at = same = 0
    for row in rows:
        part = slice(at, at + len(row.responses))
        row.settle(gone[part], ended=rule.cut_end == "template")
        alike = len(row.responses) == 2 and any(gone[part]) and kept[part][0] == kept[part][1]
        same += alike and row.is_same()
        at = part.stop
    return same


def _write_books(row: Row, name: str, entry: list[tuple[bool, int]], *, ended: bool) -> None:
    """`{name}_cut` is added to what is there; `{name}_complete` stays false."""
    nested, gone = entry[0][0], [cut for _, cut in entry]
    before, flags = _earlier(row, f"{name}_cut", len(gone)), _earlier(row, f"{name}_complete", len(gone))
    try:
        cuts = [cut + int(str(old or 0)) for cut, old in zip(gone, before, strict=True)]
    except ValueError:
        raise DataError(f"field '{name}_cut' must be what an earlier cut wrote, got {before}; rename it") from None
    whole = [str(old).lower() != "false" and (ended or not cut) for cut, old in zip(gone, flags, strict=True)]
    row.put(f"{name}_cut", cuts if nested else cuts[0])
    row.put(f"{name}_complete", whole if nested else whole[0])


def _earlier(row: Row, name: str, count: int) -> list[Any]:
    """What an earlier cut wrote of each response; None where there is nothing."""
    value = row.get(name)
    if value is None or value.value == "":
        return [None] * count
    held = value.value
    if value.plain and held.startswith("["):  # the cell of a CSV file
        held = held.strip("[] ").split(", ")
    listed = held if isinstance(held, list) else [held]
    if len(listed) != count:
        raise DataError(f"field '{name}' must have {count} entries, as many as responses, got {held}")
    return listed


def truncate_typed(
    frame: Frame,
    *,
    format: str,  # noqa: A002
    rule: Truncation,
    tokenizer: Tokenizer | str | Path | None,
    columns: Sequence[str] | None,
) -> Frame:
    """`truncate_frame` of typed rows of any format of pairs or candidates."""
    schema = frame.collect_schema()
    if columns is None and format == "candidates":
        columns = [next(name for name in CANDIDATES if name in schema)]
    sides = {} if columns is not None or "ids" in schema else _sides(schema, format)
    if not sides:
        return truncate_frame(frame, rule=rule, tokenizer=tokenizer, columns=columns)
    kept = [f"_{name}_whole" for name in sides]
    frame = frame.with_columns(pl.col(name).alias(f"_{name}_whole") for name in sides if name in schema)
    frame = frame.with_columns(there.alias(name) for name, (there, _) in sides.items())
    frame = truncate_frame(frame, rule=rule, tokenizer=tokenizer, columns=tuple(sides))
    back = _restored(format, {name: back for name, (_, back) in sides.items()})
    gone = [name for name in sides if name not in schema]
    return frame.with_columns(back).drop(*kept, *gone, strict=False)


def count_same(frame: pl.LazyFrame, format: str, tally: list[int]) -> pl.LazyFrame:  # noqa: A002
    """The frame of `truncate_typed`; where it is computed, the pairs that are the same by the cut go to `tally`."""
    schema = frame.collect_schema()
    if format in ("", "candidates") or "ids" in schema:
        return frame
    names = _PAIRS.get(format, _SIDES)
    pair = [pl.col(name) for name in names]
    if names[0] not in schema:  # Alpaca's output
        pair = [pl.col("output").list.get(side, null_on_oob=True) for side in range(2)]

    def look(columns: Sequence[pl.Series]) -> pl.Series:
        tally.append(int(columns[1].sum()))
        return columns[0]

    was_cut = (pl.col("chosen_cut") > 0) | (pl.col("rejected_cut") > 0)
    seen = pl.map_batches(["chosen_cut", "_same"], look, return_dtype=schema["chosen_cut"], is_elementwise=True)
    return frame.with_columns(_same=(pair[0] == pair[1]) & was_cut).with_columns(seen.alias("chosen_cut")).drop("_same")


def _sides(schema: pl.Schema, format: str) -> dict[str, tuple[pl.Expr, pl.Expr]]:  # noqa: A002
    """Of chosen and rejected: the text or chat, and what is written back; empty where the columns are so already."""
    names = ("chosen", "rejected")
    if format == "shp":
        best = pl.col("labels").cast(pl.Float64) == 1
        texts = (pl.col("human_ref_A"), pl.col("human_ref_B"))
        there = (pl.when(best).then(texts[0]).otherwise(texts[1]), pl.when(best).then(texts[1]).otherwise(texts[0]))
        return dict(zip(names, zip(there, map(pl.col, names), strict=True), strict=True))
    if format == "alpaca" and "chosen" not in schema:
        return {
            name: (pl.col("output").list.get(side, null_on_oob=True), pl.col(name)) for side, name in enumerate(names)
        }
    if format == "hh":
        return {name: _last_turn(name) for name in names}
    if format == "sharegpt":
        return {name: _messages(name, schema[name]) for name in names}
    return {}


def _restored(format: str, back: dict[str, pl.Expr]) -> list[pl.Expr]:  # noqa: A002
    chosen, rejected = back.values()
    if format == "shp":
        best = pl.col("labels").cast(pl.Float64) == 1
        first, second = pl.when(best).then(chosen).otherwise(rejected), pl.when(best).then(rejected).otherwise(chosen)
        return [first.alias("human_ref_A"), second.alias("human_ref_B")]
    if format == "alpaca":
        output = pl.concat_list(chosen, rejected)
        return [pl.when(pl.col("output").list.len() == 2).then(output).otherwise("output").alias("output")]
    return [expression.alias(name) for name, expression in back.items()]


def _last_turn(name: str) -> tuple[pl.Expr, pl.Expr]:
    """The last answer of a transcript; null, and left as it is, where its last turn is not the assistant's."""
    whole = pl.col(f"_{name}_whole")
    start = rf"(?s)^(.*{_ASSISTANT} ?)(.*)$"
    text = pl.col(name).str.extract(start, 2)
    there = pl.when(~text.str.contains(_HUMAN, literal=True)).then(text)
    return there, pl.coalesce(whole.str.extract(start, 1) + pl.col(name), whole)


def _messages(name: str, dtype: pl.DataType) -> tuple[pl.Expr, pl.Expr]:
    """A message {from, value}, or a list of them, as {role, content}."""
    single = isinstance(dtype, pl.Struct)
    message: Any = dtype if single else dtype.inner  # type: ignore[attr-defined]
    before = [field.name for field in message.fields]
    after = [{"from": "role", "value": "content"}.get(field, field) for field in before]
    chat = pl.concat_list(pl.col(name)) if single else pl.col(name)
    there = chat.list.eval(pl.element().struct.rename_fields(after))
    back = pl.col(name).list.eval(pl.element().struct.rename_fields(before))
    return there, back.list.get(0) if single else back
