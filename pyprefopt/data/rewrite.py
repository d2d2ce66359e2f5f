"""One table file streamed through a lazy step into another: bounded memory, and never a half-written file in place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from pyprefopt.errors import DataError, check

_FORMATS: dict[str, tuple[Callable[..., pl.LazyFrame], str, dict[str, Any]]] = {
    ".parquet": (pl.scan_parquet, "sink_parquet", {}),
    ".jsonl": (pl.scan_ndjson, "sink_ndjson", {"infer_schema_length": None}),
    ".csv": (pl.scan_csv, "sink_csv", {"infer_schema": False}),  # all columns stay the strings that they are
    ".arrow": (pl.scan_ipc, "sink_ipc", {}),
    ".feather": (pl.scan_ipc, "sink_ipc", {}),
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}  # of text files


def rewrite(path: Path, out: Path | None, step: Callable[[pl.LazyFrame], pl.LazyFrame], *, suffix: str) -> Path:
    """Stream `path` through `step` into `out`, or into `<stem>.<suffix><extension>` beside it; returns that path.

    .parquet, .jsonl, .csv, .arrow, .feather; .jsonl and .csv also with .gz or .zst (unpacked to a temporary file next
    to the output first). The result gets its name when it is whole. ConfigError for other files and for out = path,
    DataError where there is no file, or it cannot be read or written so.
    """
    if any(sign in path.name for sign in "*?[") or path.is_dir():
        raise DataError(f"{path}: a file is needed, not a folder or pattern; call this once for each file")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    stem, extension, _ = _split(path)
    target = path.with_name(f"{stem}.{suffix}{path.name.removeprefix(stem)}") if out is None else out
    _, target_extension, packing = _split(target)
    check(target.resolve() != path.resolve(), "out", str(out), "another file than the input")
    unpacked, written = (target.with_name(f".{target.name}.{os.getpid()}.{part}") for part in ("in", "out"))
    scan, _, options = _FORMATS[extension]
    try:
        source = _unpack(path, unpacked)
        if extension == ".jsonl":
            _check_surrogates(path, source)
        frame = step(scan(source, **options))
        sink = getattr(frame, _FORMATS[target_extension][1])
        if packing is None:
            sink(written)
        else:
            with pa.CompressedOutputStream(str(written), packing) as stream:
                sink(stream)
        written.replace(target)
    except pl.exceptions.PolarsError as error:
        remedy = "it may be damaged, or its rows too unlike for one table"
        raise DataError(f"{path} cannot be made {target}: {str(error).splitlines()[0]}; {remedy}") from error
    finally:
        for temporary in (unpacked, written):
            temporary.unlink(missing_ok=True)
    return target


def _split(file: Path) -> tuple[str, str, str | None]:
    """(stem, extension, compression) of a file's name. ConfigError where it is none that we read and write."""
    packing = _COMPRESSIONS.get(file.suffix)
    bare = file.with_suffix("") if packing else file
    known = bare.suffix in ((".jsonl", ".csv") if packing else _FORMATS)
    rule = f"one of {', '.join(_FORMATS)}, or .jsonl or .csv with .gz or .zst"
    check(known, "file", str(file), rule, "convert it, or pass a Polars frame")
    return bare.stem, bare.suffix, packing


def _check_surrogates(path: Path, lines: Path) -> None:
    """DataError for half a surrogate pair: Polars would read it as a NUL character."""
    with lines.open("rb") as file:
        for number, line in enumerate(file, 1):
            if b"\\ud" not in line and b"\\uD" not in line:
                continue
            with suppress(json.JSONDecodeError, UnicodeDecodeError):  # which Polars refuses
                row = json.loads(line)
                try:
                    json.dumps(row, ensure_ascii=False).encode()
                except UnicodeEncodeError:
                    raise DataError(
                        f"{path}, line {number}: half a surrogate pair (an escape \\ud800 to \\udfff) stands in it; "
                        "replace the escape by the whole character or by \\ufffd"
                    ) from None


def _unpack(path: Path, unpacked: Path) -> Path:
    packing = _COMPRESSIONS.get(path.suffix)
    if packing is None:
        return path
    source: AbstractContextManager[Any] = pa.CompressedInputStream(pa.OSFile(str(path)), packing)
    try:
        with source as stream, unpacked.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
    except OSError as error:
        raise DataError(f"{path}: broken {packing} file ({error})") from None
    return unpacked
