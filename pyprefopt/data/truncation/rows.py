"""Text files (JSON lines, a JSON array, CSV) cut row by row: bounded memory, and what is not cut stays as it was."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyprefopt.data import _native
from pyprefopt.data.reading.files import DataFile, Meter, pieces
from pyprefopt.data.reading.formats import lines_bytes
from pyprefopt.data.reading.sources import BLOCK_BYTES, BLOCK_ROWS, ROW_BYTES
from pyprefopt.data.truncation.frames import check_text_rule, counter
from pyprefopt.data.truncation.responses import CANDIDATES, Held, cut_rows
from pyprefopt.data.truncation.rule import Truncation
from pyprefopt.data.truncation.spans import CsvRow, JsonRow, Row
from pyprefopt.errors import DataError, option

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import Tokenizer

_CHUNK_BYTES = 4 << 20  # of text that is cut together
_CHUNK_ROWS = 4096
_SIDES = ("chosen", "rejected")
_BOM = "\ufeff"

Layout = Literal["lines", "array", "csv"]


@dataclass(frozen=True)
class TextFile:
    """How the result is written; `final`: it is the target itself, not what the target is converted from."""

    layout: Layout
    delimiter: str
    compression: str | None
    final: bool


def text_file(source: DataFile, target: DataFile) -> TextFile:
    """The form in which the rows of a text file are written for `target`."""
    final = source.container == target.container
    form = target if final else source
    delimiter = "\t" if form.suffix == ".tsv" else ","
    layout: Layout = "csv" if source.container == "csv" else "lines"
    if layout == "lines" and final and target.suffix == ".json":
        layout = "array" if source.suffix != ".json" or _is_array(source) else "lines"
    return TextFile(layout, delimiter, target.compression if final else None, final)


def cut_text(
    source: DataFile,
    form: TextFile,
    out: Any,
    *,
    format: str,  # noqa: A002
    rule: Truncation,
    tokenizer: Tokenizer | str | Path | None,
    columns: Sequence[str] | None,
    unknown: DataError | None,
) -> int:
    """Write the rows of a text file to the stream `out`, their responses cut; how many pairs became the same by it.

    format: of the rows; empty: the fields `columns` are cut, or chosen and rejected. unknown: why no format was found.
    """
    check_text_rule(rule, tokenizer)
    names = tuple(columns or (CANDIDATES if format == "candidates" else _SIDES))
    native = counter(tokenizer) if rule.unit == "tokens" else None
    seen: set[str] = set()
    writer = (_Csv if source.container == "csv" else _Json)(source, form, names, out)
    held: list[Held] = []
    size = count = same = 0
    for where, row, length in writer:
        held.append(Held(f"{source.name}, {where}", row, format, names))
        seen.update(response.book for response in held[-1].responses)
        count, size = count + 1, size + length
        if len(held) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
            same += _flush(held, rule, native, writer)
            held, size = [], 0
    same += _flush(held, rule, native, writer)
    writer.end()
    if not count:
        raise DataError(f"{source.name} holds no rows")
    _check_seen(source, names, columns, seen, unknown)
    return same


def _flush(held: Sequence[Held], rule: Truncation, native: _native.Tokenizer | None, writer: _Json | _Csv) -> int:
    same = cut_rows(held, rule, native)
    for row in held:
        writer.write(row.row)
    return same


def _check_seen(
    source: DataFile,
    names: Sequence[str],
    columns: Sequence[str] | None,
    seen: set[str],
    unknown: DataError | None,
) -> None:
    """DataError where a field that was to be cut is in no row."""
    missing = [name for name in names if name not in seen]
    if not missing or (names == CANDIDATES and seen):
        return
    if columns is None and unknown is not None:
        raise DataError(
            f"{unknown}; truncate cuts pairs and candidates, or the fields that are named: {option('columns')} …"
        )
    raise DataError(
        f"{source.name}: no row has a text in the field '{missing[0]}'; name those to cut: {option('columns')} …"
    )


def decoded(line: bytes, where: str) -> str:
    """The line as text. DataError naming the byte where it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start} of the line (0x{line[error.start]:02x}) is not UTF-8; convert the file to "
            "UTF-8, for example from Latin-1: iconv -f latin1 -t utf-8 OLD > NEW"
        ) from None


def _lines(source: DataFile) -> Iterator[bytes]:
    """The lines of a text file, with their ends."""
    held: list[bytes] = []
    size = number = 0
    for piece in pieces(source, Meter()):
        start = 0
        while end := piece.find(b"\n", start) + 1:
            yield b"".join([*held, piece[start:end]])
            held, size, start, number = [], 0, end, number + 1
        held.append(piece[start:])
        size += len(held[-1])
        if size > ROW_BYTES:
            raise DataError(f"{source.name}, line {number + 1}: a row must have at most {ROW_BYTES} bytes")
    if size:
        yield b"".join(held)


class _Json:
    """JSON lines or an array, read and written."""

    def __init__(self, source: DataFile, form: TextFile, _: Sequence[str], out: Any) -> None:
        self.source, self.out, self.array = source, out, form.layout == "array"
        self.between = "[\n" if self.array else ""

    def __iter__(self) -> Iterator[tuple[str, Row, int]]:
        """Where each row stands, the row, and its bytes; empty lines are left out."""
        if self.source.suffix == ".json" and _is_array(self.source):
            stored = ((f"row {number}", line) for number, line in enumerate(_elements(self.source)))
        else:
            stored = ((f"line {number}", line) for number, line in enumerate(_lines(self.source), 1))
        for where, line in stored:
            text = decoded(line, f"{self.source.name}, {where}")
            if not text.strip(f"{_BOM} \t\r\n"):
                continue
            try:
                yield where, JsonRow(text), len(line)
            except RecursionError:
                rule = "a row is nested too deep; flatten the value, or write it as text"
                raise DataError(f"{self.source.name}, {where}: {rule}") from None
            except ValueError as error:
                raise DataError(f"{self.source.name}, {where}: broken JSON: {error}; mend the line") from None

    def write(self, row: Row) -> None:
        """Append the row."""
        assert isinstance(row, JsonRow)  # noqa: S101  (what it gave)
        line = row.line()
        if self.array:
            line = self.between + line.strip()
            self.between = ",\n"
        elif not line.endswith("\n"):
            line += "\n"
        self.out.write(line.encode())

    def end(self) -> None:
        """Close the array."""
        if self.array:
            self.out.write(b"\n]\n")


def _is_array(source: DataFile) -> bool:
    head = next(pieces(source, Meter()), b"")
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _elements(source: DataFile) -> Iterator[bytes]:
    """The elements of a JSON array, one a line."""
    splitter = _native.TextBlocks("array", block_bytes=BLOCK_BYTES, block_rows=BLOCK_ROWS, row_bytes=ROW_BYTES)
    try:
        for piece in chain(pieces(source, Meter()), [None]):
            for data, _, _ in splitter.finish() if piece is None else splitter.push(piece):
                yield from lines_bytes(data).split(b"\n")[:-1]
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{source.name}: {error}; mend the file") from error


class _Csv:
    """CSV or TSV, read and written; the books are new columns at the end, unless they are there."""

    def __init__(self, source: DataFile, form: TextFile, names: Sequence[str], out: Any) -> None:
        self.source, self.names = source, names
        self.text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
        self.writer = csv.writer(self.text, delimiter=form.delimiter, lineterminator="\n")
        self.width = 0

    def __iter__(self) -> Iterator[tuple[str, Row, int]]:
        """Where each row stands, the row, and its characters."""
        csv.field_size_limit(ROW_BYTES)
        lines = (
            decoded(line, f"{self.source.name}, line {number}").removeprefix(_BOM if number == 1 else "")
            for number, line in enumerate(_lines(self.source), 1)
        )
        reader = csv.reader(lines, delimiter="\t" if self.source.suffix == ".tsv" else ",", strict=True)
        try:
            header = next(filter(None, reader), None)
            if header is None:
                return
            places = self._header(header)
            for cells in filter(None, reader):
                where = f"line {reader.line_num}"
                if len(cells) != len(header):
                    raise DataError(
                        f"{self.source.name}, {where}: a record must have {len(header)} cells as the header, got "
                        f"{len(cells)}; quote cells that hold the separator or a line break"
                    )
                yield where, CsvRow(cells + [""] * (self.width - len(cells)), places), sum(map(len, cells))
        except csv.Error as error:
            raise DataError(f"{self.source.name}, line {reader.line_num}: {error}; mend the file") from None

    def _header(self, header: list[str]) -> dict[str, int]:
        books = [name for name in self.names if name in header or self.names == _SIDES]
        new = [f"{name}_{book}" for name in books for book in ("cut", "complete") if f"{name}_{book}" not in header]
        self.writer.writerow(header + new)
        self.width = len(header) + len(new)
        return {name: place for place, name in enumerate(header + new)}

    def write(self, row: Row) -> None:
        """Append the row."""
        self.writer.writerow(row.line())

    def end(self) -> None:
        """Write what is left; the stream stays open."""
        self.text.flush()
        self.text.detach()
