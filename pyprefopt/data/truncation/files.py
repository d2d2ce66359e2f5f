"""One data file's responses cut into another file: streamed, and never a half-written file in place.

Text files are cut row by row in the extension, and everything but the cut texts stays as it was; Parquet and Arrow
files are cut as columns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyprefopt.data import _native
from pyprefopt.data.files.data_file import DataFile, Meter, pieces
from pyprefopt.data.files.parts import ROW_BYTES
from pyprefopt.data.files.unfolding import ROW_COST, Unfolding
from pyprefopt.data.files.writing import (
    check_new,
    convert,
    known_file,
    new_file,
    one_file,
    open_writer,
    scan_text,
    scan_typed,
)
from pyprefopt.data.reading.sources import open_source
from pyprefopt.data.truncation.frames import check_text_rule, counter
from pyprefopt.data.truncation.rule import Truncation
from pyprefopt.data.truncation.tables import truncate_table
from pyprefopt.errors import DataError, check, counted, option

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import GivenTokenizer

logger = logging.getLogger("pyprefopt")


def rewrite(
    path: Path,
    out: Path | None,
    *,
    rule: Truncation,
    tokenizer: GivenTokenizer | None,
    columns: Sequence[str] | None,
    format: str = "auto",  # noqa: A002
    overwrite: bool = False,
) -> Path:
    """Cut the responses of `path` into `out`, or into `<stem>.truncated<suffix>` beside it; returns that path.

    Any file that reading takes, in any format of pairs or candidates. The result gets its name when it is whole.
    ConfigError for other files, for out = path, and for a file that is there unless `overwrite`; DataError where there
    is no input, or a row cannot be cut; ArtifactError where the disk takes no more.
    """
    source = one_file(path)
    endings = "".join(path.suffixes[-2:] if source.compression else path.suffixes[-1:])
    target = known_file(path.with_name(f"{path.name.removesuffix(endings)}.truncated{endings}") if out is None else out)
    columns = (columns,) if isinstance(columns, str) else columns
    format, unknown = _format(source, columns, format)  # noqa: A001
    check_new(target, path, overwrite=overwrite)
    same = list[int]()
    cutter = partial(_cutter, format=format, columns=columns, rule=rule, tokenizer=tokenizer)
    with new_file(target) as parts:
        if source.container in ("json", "csv"):
            check_text_rule(rule, tokenizer)
            form = target if target.container == source.container else source  # else converted from the source's form
            with open_writer(parts[0], target.compression if form is target else None) as stream:
                cut = _cut_text(source, form, stream, cutter)
            _check_missing(source, cut.missing, unknown)
            same.append(cut.same)
            done = parts[0] if form is target else convert(path, partial(scan_text, parts[0], form), target, parts)
        else:
            how: dict[str, Any] = {"format": format, "rule": rule, "tokenizer": tokenizer, "columns": columns}
            rows = scan_typed(source)
            done = convert(path, lambda: truncate_table(rows, cutter=cutter, same=same, **how), target, parts)
        done.replace(target.path)
    if any(same):
        logger.warning(
            "%s: the cut left chosen and rejected the same in %s, which reading takes as bad rows (identical_pair); "
            "cut less, or leave them out with %s",
            target.path,
            counted(sum(same), "pair"),
            option("on_error", "skip"),
        )
    return target.path


def _format(source: DataFile, columns: Sequence[str] | None, format: str) -> tuple[str, DataError | None]:  # noqa: A002
    """The format of pairs or candidates of the rows, or why there is none; not asked where columns are named."""
    if columns is not None:
        check(isinstance(columns, Sequence), "columns", columns, "the names of the columns to cut")
        check(len(columns) > 0, "columns", columns, "the names of the columns to cut, or left out")
        check(format == "auto", "format", format, "left out where columns are named", "leave out one of the two")
        return "", None
    try:
        return open_source([source.path], format=format, kind=("preferences", "candidates")).format, None
    except DataError as error:
        if format != "auto":
            raise
        return "", error


def _cutter(
    layout: str = "lines",
    written: str = "lines",
    *,
    format: str,  # noqa: A002
    columns: Sequence[str] | None,
    rule: Truncation,
    tokenizer: GivenTokenizer | None,
    delimiter: str = ",",
    written_delimiter: str = ",",
) -> _native.FileCutter:
    return _native.FileCutter(
        layout,
        written,
        delimiter=ord(delimiter),
        written_delimiter=ord(written_delimiter),
        row_bytes=ROW_BYTES,
        format=format or None,
        columns=None if columns is None else list(dict.fromkeys(columns)),
        unit=rule.unit,
        tokenizer=counter(tokenizer) if rule.unit == "tokens" else None,
        of_shortest=rule.ratio_base == "shared_min",
        ended=rule.cut_end == "template",
        **rule.cut,
    )


def _cut_text(
    source: DataFile, form: DataFile, out: Any, make: Callable[..., _native.FileCutter]
) -> _native.FileCutter:
    """Write the rows of a text file to the stream `out` as `form` holds them, their responses cut."""
    stream = pieces(source, Meter())
    head = next(stream, b"")
    layout = source.layout(head)
    array = form is not source and form.suffix == ".json" and (source.suffix != ".json" or layout == "array")
    written = "csv" if layout == "csv" else "array" if array else "lines"
    unfolding = Unfolding(source.name, source.path.stat().st_size)
    cutter = make(layout, written, delimiter=source.delimiter, written_delimiter=form.delimiter)
    try:
        for piece in chain([head], stream):
            before = cutter.rows
            out.write(cutter.push(piece))
            unfolding.add((cutter.rows - before) * ROW_COST, f"row {cutter.rows}")
        out.write(cutter.finish())
    except ValueError as error:
        raise error if isinstance(error, DataError) else DataError(f"{source.name}{error}") from None
    if not cutter.rows:
        raise DataError(f"{source.name} holds no rows")
    return cutter


def _check_missing(source: DataFile, missing: str | None, unknown: DataError | None) -> None:
    """DataError where a field that was to be cut is in no row; `unknown`: why the rows' format is not known."""
    if missing is not None and unknown is not None:
        raise DataError(
            f"{unknown}; truncate cuts pairs and candidates, or the fields that are named: {option('columns')} …"
        )
    if missing is not None:
        raise DataError(
            f"{source.name}: no row has a text in the field '{missing}'; name those to cut: {option('columns')} …"
        )
