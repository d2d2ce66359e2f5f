"""JSON texts and CSV cells edited in place: what is not replaced stays as it was written, byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Edit = tuple[int, int, str]  # from, to, what stands there now

_skip_space = re.compile(r"[ \t\n\r]*").match


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


@dataclass(frozen=True)
class Number:
    """A number as it is written, of any size."""

    written: str

    def __str__(self) -> str:
        return self.written


_decode = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=_no_constant).raw_decode


@dataclass(frozen=True)
class Value:
    """A JSON value where it stands in a text (numbers as `Number`), or a plain text (the cell of a CSV file)."""

    text: str
    start: int
    end: int
    value: Any
    edits: list[Edit]  # of the text
    plain: bool = False

    def members(self) -> dict[str, Value]:
        """The values of an object by name; of a repeated name the last."""
        found = {}
        at = _after(self.text, self.start + 1)
        while self.text[at] != "}":
            name, at = _decode(self.text, at)
            child = self._child(_after(self.text, _sign(self.text, at, ":")))
            found[name] = child
            at = _next(self.text, child.end)
        return found

    def items(self) -> list[Value]:
        """The values of a list."""
        found = []
        at = _after(self.text, self.start + 1)
        while self.text[at] != "]":
            found.append(self._child(at))
            at = _next(self.text, found[-1].end)
        return found

    def replace(self, text: str) -> None:
        """Put a text in the value's place; in ASCII where it was."""
        ascii_only = self.text[self.start : self.end].isascii()
        self.edits.append((self.start, self.end, text if self.plain else json.dumps(text, ensure_ascii=ascii_only)))

    def _child(self, start: int) -> Value:
        value, end = _decode(self.text, start)
        return Value(self.text, start, end, value, self.edits)


def _after(text: str, at: int) -> int:
    """Where the next token begins."""
    if text[at : at + 1] > " ":
        return at
    found = _skip_space(text, at)
    return at if found is None else found.end()


def _sign(text: str, at: int, sign: str) -> int:
    """Behind the sign that must stand here."""
    at = _after(text, at)
    if text[at : at + 1] != sign:
        raise json.JSONDecodeError(f"Expecting {sign!r}", text, at)
    return at + 1


def _next(text: str, at: int) -> int:
    """At the next element, or at the bracket that closes."""
    at = _after(text, at)
    return _after(text, at + 1) if text[at : at + 1] == "," else at


def applied(text: str, edits: Iterable[Edit]) -> str:
    """The text with the edits, which must not overlap."""
    pieces, at = [], 0
    for start, end, new in sorted(edits):
        pieces += [text[at:start], new]
        at = end
    return "".join([*pieces, text[at:]])


class JsonRow:
    """A JSON object on one line."""

    def __init__(self, text: str) -> None:
        """ValueError or RecursionError where it is none."""
        self.text = text
        self.edits: list[Edit] = []
        start = _after(text, 1 if text.startswith("\ufeff") else 0)
        value, self.end = _decode(text, start)
        if not isinstance(value, dict):
            raise ValueError("a row must be an object {…}")
        if _after(text, self.end) != len(text):
            raise json.JSONDecodeError("Extra data", text, self.end)
        self.whole = Value(text, start, self.end, value, self.edits)
        self.fields = self.whole.members()
        self.added: dict[str, Any] = {}

    def get(self, name: str) -> Value | None:
        """The field's value; None where it is absent or null."""
        found = self.fields.get(name)
        return None if found is None or found.value is None else found

    def put(self, name: str, value: Any) -> None:
        """Set a field; a new one comes last."""
        if name in self.fields:
            old = self.fields[name]
            self.edits.append((old.start, old.end, json.dumps(value)))
        else:
            self.added[name] = value

    def line(self) -> str:
        """The row as it is now."""
        new = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in self.added.items())
        if new and self.fields:
            new = f", {new}"
        return applied(self.text, [*self.edits, (self.end - 1, self.end - 1, new)])


_LISTS = ("responses", "completions", "candidates", "output")  # whose cells may be JSON lists of texts


@dataclass
class CsvRow:
    """A CSV row; `places` are the columns by name."""

    cells: list[str]
    places: Mapping[str, int]
    edits: dict[int, list[Edit]] = field(default_factory=dict)

    def get(self, name: str) -> Value | None:
        """The cell: a chat or list where it holds one as JSON, else a text."""
        place = self.places.get(name)
        if place is None or place >= len(self.cells):
            return None
        cell, edits = self.cells[place], self.edits.setdefault(place, [])
        if cell[:1] in ("[", "{"):
            try:
                value, end = _decode(cell)
            except (ValueError, RecursionError):
                value, end = None, 0
            if value is not None and end == len(cell.rstrip()) and (name in _LISTS or _is_chat(value)):
                return Value(cell, 0, end, value, edits)
        return Value(cell, 0, len(cell), cell, edits, plain=True)

    def put(self, name: str, value: Any) -> None:
        """Set a cell; a new column's is appended."""
        place, text = self.places[name], json.dumps(value)
        self.cells.extend([""] * (place + 1 - len(self.cells)))
        self.cells[place] = text

    def line(self) -> Sequence[str]:
        """The row's cells as they are now."""
        return [applied(cell, self.edits.get(place, ())) for place, cell in enumerate(self.cells)]


def _is_chat(value: Any) -> bool:
    messages = value if isinstance(value, list) else [value]
    return bool(messages) and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in messages)


Row = JsonRow | CsvRow
