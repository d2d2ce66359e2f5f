"""A data file made of another: beside its place until it is whole, in any kind that reading takes."""

from __future__ import annotations

import glob
import lzma
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from pyprefopt.data.columns import frame_of
from pyprefopt.data.files.data_file import KNOWN, DataFile, data_file, find_files, reachable
from pyprefopt.data.files.parts import BLOCK_BYTES
from pyprefopt.data.files.typed_files import batches, schema_of
from pyprefopt.errors import ArtifactError, DataError, check, option
from pyprefopt.storage.files import explain_writing, system_number


def one_file(path: Path) -> DataFile:
    """The file at the path; DataError for a folder, a pattern, or what cannot be read."""
    with reachable(path):
        if path.is_dir() or (not path.exists() and any(sign in path.name for sign in "*?[")):
            raise DataError(f"{path}: a file is needed, not a folder or pattern; call this once for each file")
        if not path.is_file():
            find_files(path)  # says what is there instead
        path.open("rb").close()
    return known_file(path)


def known_file(path: Path) -> DataFile:
    """The file by its name; ConfigError where it is of no known kind."""
    try:
        return data_file(path)
    except DataError:
        check(False, "file", str(path), KNOWN, "convert it, or pass a Polars frame")
        raise


def check_new(target: DataFile, *sources: Path, overwrite: bool) -> None:
    """ConfigError where the target is one of the sources, or is there and not to be replaced."""
    same = target.path.resolve() in {source.expanduser().resolve() for source in sources}
    check(not same, "out", str(target.path), "another file than the input")
    taken = target.path.exists() and not overwrite
    remedy = f"choose another {option('out')}, or replace it: {option('overwrite', True)}"
    check(not taken, "out", str(target.path), "a new file", remedy)


@contextmanager
def new_file(target: DataFile) -> Iterator[list[Path]]:
    """Places beside the target in which it is made; what is whole then takes its name. They are removed at the end."""
    parts = _temporaries(target.path)
    try:
        yield parts
    except OSError as error:  # reading's own are DataErrors by now
        raise ArtifactError(explain_writing(error, target.path)) from error
    finally:
        for temporary in parts:
            temporary.unlink(missing_ok=True)


def write_rows(name: str, rows: Iterator[bytes], target: DataFile, parts: Sequence[Path]) -> Path:
    """Write rows, each an object of JSON, as the target holds them; `name` is what messages call them."""
    is_json = target.container == "json"
    before, between, behind = (b"[\n", b",\n", b"\n]\n") if target.suffix == ".json" else (b"", b"\n", b"\n")
    with open_writer(parts[0], target.compression if is_json else None) as stream:
        first = next(rows, None)
        stream.write(before + (b"" if first is None else first))
        for row in rows:
            stream.write(between + row)
        stream.write(behind)
    lines = DataFile(parts[0], "json", None)
    return parts[0] if is_json else convert(name, partial(scan_text, parts[0], lines), target, parts)


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


def scan_text(path: Path, form: DataFile) -> pl.LazyFrame:
    """The rows of a CSV file or of JSON lines at `path`, which are written as in `form`."""
    if form.container == "csv":
        return pl.scan_csv(path, infer_schema=False, separator=form.delimiter)  # all columns stay the strings they are
    return pl.scan_ndjson(path, infer_schema_length=None)


def scan_typed(source: DataFile) -> pl.LazyFrame:
    """The rows of a Parquet or Arrow file, each batch looked at before Polars sees it."""
    schema = schema_of(source)

    def frames(columns: list[str] | None, *_: object) -> Iterator[pl.DataFrame]:
        for batch in batches(source, columns or schema.names, BLOCK_BYTES):
            yield frame_of(batch, source.name)

    row = pa.Table.from_arrays([pa.nulls(1, field.type) for field in schema], names=schema.names)
    return register_io_source(frames, schema=frame_of(row.cast(schema), source.name).schema)


def convert(path: str | Path, scan: Callable[[], pl.LazyFrame], target: DataFile, parts: Sequence[Path]) -> Path:
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
        with made.open("rb") as file, open_writer(packed, target.compression) as stream:
            shutil.copyfileobj(file, stream, 1 << 20)
        return packed
    return made


@contextmanager
def open_writer(path: Path, compression: str | None) -> Iterator[Any]:
    """A stream of bytes into the file, compressed where that is named."""
    if compression is None:
        stream: Any = path.open("wb")
    elif compression == "xz":
        stream = lzma.open(path, "wb")  # noqa: SIM115  (closed below)
    else:
        stream = pa.CompressedOutputStream(str(path), compression)
    with stream:
        yield stream
