"""Preference and instruction data from files and frames, whatever its format, into one schema.

Every row becomes one JSON text (a line of JSON lines as it stands, an element of a JSON array, a row of a typed frame
encoded by Polars), and one Rust kernel parses them all, in parallel, into chats or rejects.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, overload

import polars as pl

from pyprefopt.data import _native
from pyprefopt.data.rejects import REJECTS, raise_for, write_rejected
from pyprefopt.errors import ConfigError, DataError, did_you_mean

Source = str | Path | pl.DataFrame | pl.LazyFrame
OnError = Literal["raise", "skip"]

MESSAGE = pl.Struct({"role": pl.String, "content": pl.String, "extra": pl.String})
CHAT = pl.List(MESSAGE)
PREFERENCE_FORMATS = ("sharegpt", "hh", "ultrafeedback", "preference")  # in the order in which they are tried
INSTRUCTION_FORMATS = ("messages", "prompt_response", "instruction")

# Fields that the kernel reads; further columns of a typed frame never leave Polars.
_PREFERENCE_FIELDS = (
    *("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "chosen_complete", "rejected_complete"),
    *("tools", "template_kwargs", "conversations", "system"),
)
_INSTRUCTION_FIELDS = (
    *("messages", "conversations", "prompt", "response", "completion", "instruction", "input", "output"),
)
_OPTIONAL = (
    "score_chosen",
    "score_rejected",
    "tools",
    "template_kwargs",
)  # result columns only where the input has them
_FRAME = "<frame>"


@dataclass(frozen=True)
class ReadResult:
    """What a source holds: `rows_in == frame.height + rejects.height`."""

    frame: pl.DataFrame  # preferences, or instructions
    rejects: pl.DataFrame  # of schema REJECTS
    format: str
    file: str
    rows_in: int


@dataclass(frozen=True)
class _Rows:
    """The rows of a source: JSON texts, and for typed frames the columns that the kernel does not read."""

    texts: pl.Series  # str or binary
    lines: pl.Series | None = None  # u64, line in the file from 1
    carried: pl.DataFrame | None = None


@overload
def read_preferences(
    source: pl.LazyFrame, *, format: str = ..., on_error: OnError = ..., rejected_path: str | Path | None = ...
) -> pl.LazyFrame: ...
@overload
def read_preferences(
    source: str | Path | pl.DataFrame,
    *,
    format: str = ...,
    on_error: OnError = ...,
    rejected_path: str | Path | None = ...,
) -> pl.DataFrame: ...
def read_preferences(
    source: Source,
    *,
    format: str = "auto",  # noqa: A002
    on_error: OnError = "raise",
    rejected_path: str | Path | None = None,
) -> pl.DataFrame | pl.LazyFrame:
    """Preference pairs in the one schema of pyprefopt.

    Args:
        source: a file (.jsonl .json .csv .parquet .arrow .feather; text ones also .gz), or a Polars frame.
        format: preference, hh, sharegpt or ultrafeedback; auto: by schema.
        on_error: raise: read everything, then report all bad rows; skip: drop them.
        rejected_path: with skip, where the dropped rows are recorded as JSON lines.

    Returns:
        Columns `row` u64, `prompt`, `chosen`, `rejected` list<struct{role, content, extra}>, `chosen_complete`,
        `rejected_complete` bool, where given `score_chosen`, `score_rejected` f32, `tools`, `template_kwargs` str,
        and every other column of the input. `row` is the position in the input, also if the input has a `row`.
        A LazyFrame for a LazyFrame (its rows are read at once), a DataFrame otherwise.

    Raises:
        DataError: bad rows (on_error raise), a missing or unreadable file, an unknown schema.
    """
    _check_on_error(on_error)
    return _used(scan_preferences(source, format=format), source, on_error, rejected_path)


def scan_preferences(source: Source, *, format: str = "auto") -> ReadResult:  # noqa: A002
    """Like `read_preferences`, but bad rows are returned, not raised."""
    file, rows = _open(source, _PREFERENCE_FIELDS)
    found = _format(rows, format, PREFERENCE_FORMATS, file)
    used, rejects, others = _native.parse_preferences(rows.texts, found)
    frame = pl.DataFrame(used)
    absent = [name for name in _OPTIONAL if frame[name].null_count() == frame.height]
    frame = frame.drop(absent)
    if rows.carried is None:
        carried = _infer(others, file)
    else:
        taken = (*_PREFERENCE_FIELDS[:9], *(("conversations", "system") if found == "sharegpt" else ()))
        carried = rows.carried.drop(taken, strict=False)[frame["row"]]
    frame = pl.concat([frame, carried.drop("row", strict=False)], how="horizontal")
    return ReadResult(frame, _rejects(rejects, rows, file), found, file, len(rows.texts))


def read_instructions(
    source: Source,
    *,
    format: str = "auto",  # noqa: A002
    on_error: OnError = "raise",
    rejected_path: str | Path | None = None,
) -> pl.DataFrame | pl.LazyFrame:
    """Instruction data for SFT: columns `row` u64, `prompt`, `response` list<struct{role, content, extra}>.

    Rows have `messages` or `conversations` (ending with the assistant), `prompt` and `response` or `completion`, or
    `instruction` (with an optional `input`) and `output`. Arguments and errors as in `read_preferences`; `format` is
    messages, prompt_response or instruction.
    """
    _check_on_error(on_error)
    return _used(scan_instructions(source, format=format), source, on_error, rejected_path)


def scan_instructions(source: Source, *, format: str = "auto") -> ReadResult:  # noqa: A002
    """Like `read_instructions`, but bad rows are returned, not raised."""
    file, rows = _open(source, _INSTRUCTION_FIELDS)
    found = _format(rows, format, INSTRUCTION_FORMATS, file)
    used, rejects, _ = _native.parse_instructions(rows.texts, found)
    return ReadResult(pl.DataFrame(used), _rejects(rejects, rows, file), found, file, len(rows.texts))


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"on_error must be 'raise' or 'skip', got {on_error!r}")


def _used(
    result: ReadResult, source: Source, on_error: OnError, rejected_path: str | Path | None
) -> pl.DataFrame | pl.LazyFrame:
    if on_error == "raise":
        raise_for(result.rejects, result.rows_in)
    elif rejected_path is not None:
        write_rejected(rejected_path, result.rejects)
    return result.frame.lazy() if isinstance(source, pl.LazyFrame) else result.frame


def _open(source: Source, fields: Sequence[str]) -> tuple[str, _Rows]:
    """Name and rows of a source."""
    if isinstance(source, pl.LazyFrame):
        source = source.collect()
    if isinstance(source, pl.DataFrame):
        return _FRAME, _from_frame(source, fields, _FRAME)
    path = Path(source)
    if not path.is_file():
        near = did_you_mean(path.name, [entry.name for entry in path.parent.glob("*")])
        raise DataError(f"{path} must be a file; there is none{near}")
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    try:
        if suffix in (".jsonl", ".ndjson", ".json"):
            return str(path), _from_json(_bytes(path), suffix == ".json", str(path))
        return str(path), _from_frame(_read_table(path, suffix, fields), fields, str(path))
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as {suffix}: {error}") from error


def _bytes(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def _read_table(path: Path, suffix: str, fields: Sequence[str]) -> pl.DataFrame:
    if suffix == ".csv":
        data = _bytes(path)
        names = pl.read_csv(data, n_rows=0).columns
        text = {name: pl.String for name in names if name in fields and not name.startswith("score_")}
        # An empty cell is an empty text.
        return pl.read_csv(data, schema_overrides=text, infer_schema_length=None).with_columns(
            pl.col(list(text)).fill_null("")
        )
    if suffix == ".parquet":
        return pl.read_parquet(path)
    if suffix in (".arrow", ".feather", ".ipc"):
        with path.open("rb") as file:
            is_file = file.read(6) == b"ARROW1"
        return pl.read_ipc(path) if is_file else pl.read_ipc_stream(path)
    known = ".jsonl, .json, .csv (each also .gz), .parquet, .arrow or .feather"
    raise DataError(f"{path} must be {known}; got '{path.suffix}'")


def _from_json(data: bytes, may_be_array: bool, file: str) -> _Rows:
    array = may_be_array and data.lstrip()[:1] == b"["
    try:
        texts, lines = _native.split_json(data, array)
    except ValueError as error:
        raise DataError(f"{file}: {error}; mend the file") from error
    return _Rows(pl.Series(texts), None if array else pl.Series(lines))


def _from_frame(frame: pl.DataFrame, fields: Sequence[str], file: str) -> _Rows:
    present = [name for name in frame.columns if name in fields]
    if not present:
        raise DataError(f"{file}: no known schema; its columns are {_listed(frame.columns)}{_nearest(frame.columns)}")
    texts = frame.select(pl.struct(present).struct.json_encode()).to_series()
    return _Rows(texts, carried=frame)


def _format(rows: _Rows, wanted: str, known: Sequence[str], file: str) -> str:
    """The rows' format: the one that is wanted, if a row fits it, or the first that a row fits."""
    if wanted != "auto" and wanted not in known:
        raise ConfigError(
            f"format must be auto or one of {_listed(known)}, got {wanted!r}{did_you_mean(wanted, known)}"
        )
    if rows.texts.is_empty():
        raise DataError(f"{file} holds no rows")
    found, names = _native.detect_format(rows.texts, list(known) if wanted == "auto" else [wanted])
    if found is None:
        names = names if rows.carried is None else rows.carried.columns
        what = "no known schema" if wanted == "auto" else f"no row fits format '{wanted}'"
        raise DataError(f"{file}: {what}; its fields are {_listed(names)}{_nearest(names)}; see --format")
    return found


_EXPECTED = ("prompt", "chosen", "rejected", "conversations", "messages", "response", "completion", "instruction")


def _nearest(names: Sequence[str]) -> str:
    """`; 'choosen': did you mean 'chosen'?` for unknown names near an expected one."""
    unknown = [name for name in names if name not in _EXPECTED]
    return "".join(f"; '{name}'{near[1:]}" for name in unknown if (near := did_you_mean(name, _EXPECTED)))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _infer(lines: bytes, file: str) -> pl.DataFrame:
    """Types of the further JSON fields, inferred over all rows."""
    if not lines:
        return pl.DataFrame()
    try:
        return pl.read_ndjson(lines, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        rule = "each field beside the prompt and the responses must have one type over all rows"
        raise DataError(f"{file}: {rule}: {error}; give it one type, or remove it") from error


def _rejects(rejects: Any, rows: _Rows, file: str) -> pl.DataFrame:
    """The kernel's rejects with file, line (for broken JSON) and the nearest known name (for missing fields)."""
    frame = pl.DataFrame(rejects).with_columns(file=pl.lit(file))
    if rows.lines is not None:
        line = pl.format("line {}: {}", rows.lines.gather(frame["row"]), "rule")
        frame = frame.with_columns(rule=pl.when(pl.col("reason") == "broken_json").then(line).otherwise("rule"))
    near = pl.struct("field", "value").map_elements(_renamed, return_dtype=pl.String)
    missing = pl.col("reason") == "missing_field"
    named = frame.filter(missing).with_columns(remedy=pl.col("remedy") + near)
    return pl.concat([frame.filter(~missing), named]).sort("row").select(REJECTS.names())


def _renamed(entry: dict[str, str]) -> str:
    return _near(entry["field"], entry["value"])


@lru_cache(maxsize=1024)
def _near(field: str, names: str) -> str:
    return did_you_mean(field, names.split(", "))
