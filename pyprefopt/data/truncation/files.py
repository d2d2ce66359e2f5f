"""One data file's responses cut into another file: streamed, and never a half-written file in place.

Text files are cut row by row in the extension, and everything but the cut texts stays as it was; Parquet and Arrow
files are cut as columns.
"""

from __future__ import annotations

import glob
import logging
import lzma
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from pyprefopt.data import _native
from pyprefopt.data.columns import frame_of
from pyprefopt.data.files.data_file import KNOWN, DataFile, Meter, data_file, find_files, pieces, reachable
from pyprefopt.data.files.parts import BLOCK_BYTES, ROW_BYTES
from pyprefopt.data.files.typed_files import batches, schema_of
from pyprefopt.data.files.unfolding import ROW_COST, Unfolding
from pyprefopt.data.reading.sources import open_source
from pyprefopt.data.truncation.frames import check_text_rule, counter
from pyprefopt.data.truncation.rule import Truncation
from pyprefopt.data.truncation.tables import truncate_table
from pyprefopt.errors import ArtifactError, DataError, check, counted, option
from pyprefopt.storage.files import explain_writing, system_number

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
    source = _source(path)
    endings = "".join(path.suffixes[-2:] if source.compression else path.suffixes[-1:])
    target = _known(path.with_name(f"{path.name.removesuffix(endings)}.truncated{endings}") if out is None else out)
    check(target.path.resolve() != path.resolve(), "out", str(out), "another file than the input")
    columns = (columns,) if isinstance(columns, str) else columns
    format, unknown = _format(source, columns, format)  # noqa: A001
    taken = target.path.exists() and not overwrite
    remedy = f"choose another {option('out')}, or replace it: {option('overwrite', True)}"
    check(not taken, "out", str(target.path), "a new file", remedy)
    parts, same = _temporaries(target.path), list[int]()
    cutter = partial(_cutter, format=format, columns=columns, rule=rule, tokenizer=tokenizer)
    try:
        if source.container in ("json", "csv"):
            check_text_rule(rule, tokenizer)
            form = target if target.container == source.container else source  # else converted from the source's form
            with _writer(parts[0], target.compression if form is target else None) as stream:
                cut = _cut_text(source, form, stream, cutter)
            _check_missing(source, cut.missing, unknown)
            same.append(cut.same)
            done = parts[0] if form is target else _convert(path, partial(_scan, parts[0], form), target, parts)
        else:
            how: dict[str, Any] = {"format": format, "rule": rule, "tokenizer": tokenizer, "columns": columns}
            rows = _scan_typed(source)
            done = _convert(path, lambda: truncate_table(rows, cutter=cutter, same=same, **how), target, parts)
        done.replace(target.path)
    except OSError as error:  # reading's own are DataErrors by now
        raise ArtifactError(explain_writing(error, target.path)) from error
    finally:
        for temporary in parts:
            temporary.unlink(missing_ok=True)
    if any(same):
        logger.warning(
            "%s: the cut left chosen and rejected the same in %s, which reading takes as bad rows (identical_pair); "
            "cut less, or leave them out with %s",
            target.path,
            counted(sum(same), "pair"),
            option("on_error", "skip"),
        )
    return target.path


def _temporaries(target: Path) -> list[Path]:
    """Where the result is made: beside the target, whose folder is made, and cleared of what killed runs left."""
    folder, parts = target.parent, ("cut", "made", "packed")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in parts:
            for left in folder.glob(f".{glob.escape(target.name)}.*.{part}"):
                pid = left.suffixes[-2][1:]
                if pid.isdigit() and not _is_alive(int(pid)):
                    left.unlink(missing_ok=True)
    except OSError as error:
        why = f"a file in a folder that can be written ({error.strerror}: {error.filename})"
        check(False, "out", str(target), why, f"choose another {option('out')}")
    return [folder / f".{target.name}.{os.getpid()}.{part}" for part in parts]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _source(path: Path) -> DataFile:
    with reachable(path):
        if path.is_dir() or (not path.exists() and any(sign in path.name for sign in "*?[")):
            raise DataError(f"{path}: a file is needed, not a folder or pattern; call this once for each file")
        if not path.is_file():
            find_files(path)  # says what is there instead
        path.open("rb").close()
    return _known(path)


def _known(path: Path) -> DataFile:
    try:
        return data_file(path)
    except DataError:
        check(False, "file", str(path), KNOWN, "convert it, or pass a Polars frame")
        raise


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


def _scan(path: Path, form: DataFile) -> pl.LazyFrame:
    if form.container == "csv":
        return pl.scan_csv(path, infer_schema=False, separator=form.delimiter)  # all columns stay the strings they are
    return pl.scan_ndjson(path, infer_schema_length=None)


def _scan_typed(source: DataFile) -> pl.LazyFrame:
    """The rows of a Parquet or Arrow file, each batch looked at before Polars sees it."""
    schema = schema_of(source)

    def frames(columns: list[str] | None, *_: object) -> Iterator[pl.DataFrame]:
        for batch in batches(source, columns or schema.names, BLOCK_BYTES):
            yield frame_of(batch, source.name)

    row = pa.Table.from_arrays([pa.nulls(1, field.type) for field in schema], names=schema.names)
    return register_io_source(frames, schema=frame_of(row.cast(schema), source.name).schema)


def _convert(path: Path, scan: Callable[[], pl.LazyFrame], target: DataFile, parts: Sequence[Path]) -> Path:
    """The frame that `scan` gives as a file of the target's kind."""
    made, packed = parts[1:]
    array = target.suffix == ".json"
    check(not array, "out", str(target.path), "no .json file here", "write .jsonl, which every reader takes")
    frame = None
    try:
        frame = scan()
        if target.container == "parquet":
            frame.sink_parquet(made)
        elif target.container == "arrow":
            frame.sink_ipc(made)
        elif target.container == "csv":
            frame.sink_csv(made, separator=target.delimiter)
        else:
            frame.sink_ndjson(made)
    except pl.exceptions.PolarsError as error:
        if system_number(error):
            raise ArtifactError(explain_writing(error, target.path)) from error
        dtypes = frame.collect_schema().dtypes() if frame is not None and target.container == "csv" else []
        nested = any(dtype.is_nested() for dtype in dtypes)
        remedy = "it may be damaged, or its rows too unlike for one table"
        remedy = "write .jsonl, .parquet or .arrow, which hold messages and lists" if nested else remedy
        raise DataError(f"{path} cannot be made {target.path}: {str(error).splitlines()[0]}; {remedy}") from error
    if target.suffix == ".arrows":
        with pa.memory_map(str(made)) as file:
            reader = pa.ipc.open_file(file)
            with pa.ipc.new_stream(str(packed), reader.schema) as writer:
                for index in range(reader.num_record_batches):
                    writer.write_batch(reader.get_batch(index))
        return packed
    if target.compression:
        with made.open("rb") as file, _writer(packed, target.compression) as stream:
            shutil.copyfileobj(file, stream, 1 << 20)
        return packed
    return made


@contextmanager
def _writer(path: Path, compression: str | None) -> Iterator[Any]:
    if compression is None:
        stream: Any = path.open("wb")
    elif compression == "xz":
        stream = lzma.open(path, "wb")  # noqa: SIM115  (closed below)
    else:
        stream = pa.CompressedOutputStream(str(path), compression)
    with stream:
        yield stream
