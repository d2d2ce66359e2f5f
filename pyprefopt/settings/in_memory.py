"""What `configure` is given in memory: rows and tokenizers become files in the run's folder, named by their content.

So the run's settings name files alone, and its config.yaml makes the same run again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pyprefopt import ranks
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.settings.values import type_error
from pyprefopt.storage.files import atomic_write, content_hash, remove_leftovers, sha256_file, sync_files
from pyprefopt.storage.folders import Folder

if TYPE_CHECKING:
    import pyarrow as pa

INPUTS = "inputs"  # folder of the run's
ROWS = ("data", "eval_data", "base.data")
BATCH_ROWS = 1 << 14  # of a row group, whatever chunks the table came in
_TABLES = ("__arrow_c_stream__", "__arrow_c_array__", "to_arrow_reader", "fetch_arrow_reader", "with_format")


def set_aside(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings with paths as texts and a text for each value in memory, and these values by dotted name.

    Raises:
        ConfigError: a model, or whatever else no file can be made of, in the place of a name.
    """
    named, held = {name: _plain(value) for name, value in settings.items()}, {}
    for name in (*ROWS, "tokenizer"):
        section, _, last = name.rpartition(".")
        place = named.get(section) if section else named
        if not isinstance(place, Mapping) or not (_is_rows if name in ROWS else _is_tokenizer)(place.get(last)):
            continue
        held[name] = place[last]
        told = {last: f"{name} in memory"}
        named = {**named, section: {**place, **told}} if section else {**named, **told}
    for name in ("method", "model", "data"):  # which decide the recipes, before anything looks at types
        if not isinstance(named.get(name), str | list | tuple | Mapping | None):
            raise type_error(name, str | None, named[name])
    return named, held


def write_aside(held: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write what was set aside into `folder`; dotted name -> path. What is there with this content is used again.

    Raises:
        ConfigError: it cannot be written as a file; names the setting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if ranks.world_size() == 1:  # else another rank may just be writing
        remove_leftovers(folder)
    return {name: str((_write_rows if name in ROWS else _write_tokenizer)(name, held[name], folder)) for name in held}


def _plain(value: Any) -> Any:
    """The value with every path in it as a text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()} if _is_section(value) else value
    is_paths = isinstance(value, list | tuple) and any(isinstance(inner, os.PathLike) for inner in value)
    return [_plain(inner) for inner in value] if is_paths else value


def _is_section(value: Mapping[Any, Any]) -> bool:
    """Whether these are settings by name, and no data set of several splits."""
    return not hasattr(value, "with_format")


def _is_rows(value: Any) -> bool:
    """Whether it is a table of any library, or a list of rows."""
    if isinstance(value, list | tuple):
        return any(isinstance(row, Mapping) for row in value)
    is_lazy = hasattr(value, "collect") and hasattr(value, "collect_schema")
    return is_lazy or any(hasattr(value, name) for name in _TABLES)


def _is_tokenizer(value: Any) -> bool:
    from pyprefopt.data.tokenization.tokenizer import Tokenizer
    from pyprefopt.data.tokenization.tokenizer_files import TransformersTokenizer

    return not isinstance(value, str | None) and isinstance(value, Tokenizer | TransformersTokenizer)


def _write_rows(name: str, rows: Any, folder: Path) -> Path:
    is_list = isinstance(rows, list | tuple)
    write, suffix = (_json_lines, ".jsonl") if is_list else (_parquet, ".parquet")
    written = folder / f".{name}.{os.getpid()}.tmp"
    try:
        atomic_write(written, partial(write, name, rows))
        target = folder / f"{name}-{sha256_file(written)[:16]}{suffix}"
        if not target.exists():
            written.replace(target)
    finally:
        written.unlink(missing_ok=True)
    return target


def _json_lines(name: str, rows: Sequence[Any], file: BinaryIO) -> None:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            kind = type(row).__name__
            raise ConfigError(f"{name} must be a list of rows as dicts, got {kind} in row {number}; mend the row")
        try:
            file.write(json.dumps(row, default=_listed, allow_nan=False).encode() + b"\n")
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{name}, row {number}: it cannot be written as JSON ({error}); mend the row, or give a frame"
            ) from None


def _listed(value: Any) -> Any:
    """A number or an array of NumPy as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"it holds one of type {type(value).__name__}")


def _parquet(name: str, rows: Any, file: BinaryIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pyprefopt.data.files.tables import as_tables, without_views

    try:
        tables = as_tables(rows)
        schema = without_views(tables.schema.empty_table()).schema.remove_metadata()
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in _even(tables.batches(), tables.schema):
                writer.write_table(without_views(table).replace_schema_metadata(None), row_group_size=BATCH_ROWS)
    except DataError as error:
        raise ConfigError(f"{name}: {error}") from None
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} must be a table whose rows can be written as Parquet, got one of type {type(rows).__name__} "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); cast its columns, or give a file"
        ) from None


def _even(batches: Iterator[Any], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows in tables of `BATCH_ROWS`, so that the same rows give the same bytes whatever chunks they came in."""
    import pyarrow as pa

    held: list[pa.Table] = []
    count = 0
    for batch in batches:
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch], schema)
        while count + table.num_rows >= BATCH_ROWS:
            taken = BATCH_ROWS - count
            yield pa.concat_tables([*held, table.slice(0, taken)]).combine_chunks()
            held, count, table = [], 0, table.slice(taken)
        held, count = [*held, table] if table.num_rows else held, count + table.num_rows
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _write_tokenizer(name: str, tokenizer: Any, folder: Path) -> Path:
    from pyprefopt.data.tokenization.tokenizer import Tokenizer
    from pyprefopt.data.tokenization.tokenizer_files import save_in_memory

    written = folder / f".{name}.{os.getpid()}.partial"
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()
    try:
        if isinstance(tokenizer, Tokenizer):
            tokenizer.save(written)
        else:
            save_in_memory(tokenizer, written)
        sync_files(written)
        target = folder / f"{name}-{content_hash(Folder(written).hashes())[:16]}"
        if not target.exists():
            with suppress(OSError):  # another rank has made it
                written.rename(target)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    if not target.is_dir():
        raise ConfigError(f"{name} cannot be written to {target}; choose an output_dir that you may write to")
    return target
