"""Truncation: keep the beginning of responses, where much of the preference lies. Works alone; loads no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import polars as pl

from pyprefopt.data import _native
from pyprefopt.data.columns import to_series
from pyprefopt.errors import ConfigError, DataError, check, did_you_mean

if TYPE_CHECKING:
    from pyprefopt.data.tokenizer import Tokenizer

Source = TypeVar("Source", pl.DataFrame, pl.LazyFrame, str, Path)
Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)
Unit = Literal["tokens", "characters"]
Rounding = Literal["ceil", "floor"]

_PER_TOKEN = ("ids", "mask", "starts", "ends", "turns", "scores", "values", "selected")  # cut with the ids
_FILES: dict[str, tuple[Callable[..., pl.LazyFrame], str, dict[str, Any]]] = {
    ".parquet": (pl.scan_parquet, "sink_parquet", {}),
    ".jsonl": (pl.scan_ndjson, "sink_ndjson", {"infer_schema_length": None}),
    ".csv": (pl.scan_csv, "sink_csv", {"infer_schema": False}),  # all columns stay the strings that they are
    ".arrow": (pl.scan_ipc, "sink_ipc", {}),
    ".feather": (pl.scan_ipc, "sink_ipc", {}),
}


def truncate(
    frame_or_path: Source,
    *,
    ratio: float | None = None,
    tokens: int | None = None,
    unit: Unit = "tokens",
    rounding: Rounding = "ceil",
    tokenizer: Tokenizer | str | Path | None = None,
    columns: Sequence[str] = ("chosen", "rejected"),
    out: str | Path | None = None,
) -> Source:
    """Cut responses to the first `ratio` of their units, or to the first `tokens` units; the same kind comes back.

    Text: `columns` are strings or list<message> (the last message's content is cut); `{column}_complete` becomes False
    where something was cut, so that no end of turn is written. With unit "tokens" the tokenizer (or the path of its
    tokenizer.json) counts. The cut is the end of the last token kept; a character that is spread over several tokens,
    not all kept, is dropped, or kept whole if it is the first.
    Segments (a frame with `ids` and `mask`): the per-token columns are cut. Only content tokens are counted; the
    template's end of turn goes where something was cut. Prompts stay. `columns` and `tokenizer` are not used.
    Path (.parquet, .jsonl, .csv, .arrow, .feather): written to `out`, or beside it as `<stem>.truncated<suffix>`; the
    written path comes back.

    ratio: in (0, 1]; a share that is no whole number is rounded by `rounding`. At least one unit is kept.
    Raises ConfigError for contradicting settings, DataError for a missing column.
    """
    check((ratio is None) != (tokens is None), "truncate", (ratio, tokens), "given exactly one of ratio and tokens")
    check(ratio is None or 0 < ratio <= 1, "ratio", ratio, "in (0, 1]")
    check(tokens is None or tokens >= 1, "tokens", tokens, "at least 1")
    check(unit in ("tokens", "characters"), "unit", unit, "'tokens' or 'characters'")
    check(rounding in ("ceil", "floor"), "rounding", rounding, "'ceil' or 'floor'")
    cut = {"ratio": ratio, "tokens": tokens, "rounding": rounding}
    step = partial(_truncate, cut=cut, unit=unit, tokenizer=tokenizer, columns=columns)
    if isinstance(frame_or_path, pl.DataFrame | pl.LazyFrame):
        check(out is None, "out", out, "left out for a frame", "write the result yourself")
        return step(frame_or_path)
    return type(frame_or_path)(_truncate_file(Path(frame_or_path), out, step))


def _truncate_file(path: Path, out: str | Path | None, step: Callable[[pl.LazyFrame], pl.LazyFrame]) -> Path:
    """Stream the file through `step` into a temporary file, then rename it to its place."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    target = path.with_name(f"{path.stem}.truncated{path.suffix}") if out is None else Path(out)
    for file in (path, target):
        known = ", ".join(_FILES)
        check(file.suffix in _FILES, "file", str(file), f"one of {known}", "convert it, or pass a Polars frame")
    check(target.resolve() != path.resolve(), "out", str(out), "another file than the input")
    scan, _, options = _FILES[path.suffix]
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        getattr(step(scan(path, **options)), _FILES[target.suffix][1])(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _truncate(
    frame: Frame,
    *,
    cut: dict[str, Any],
    unit: Unit,
    tokenizer: Tokenizer | str | Path | None,
    columns: Sequence[str],
) -> Frame:
    schema = frame.collect_schema()
    if "ids" in schema and "mask" in schema:
        check(unit == "tokens", "unit", unit, "'tokens' for a frame of token ids")
        return _truncate_segments(frame, schema, cut)
    for name in columns:
        if name not in schema:
            raise DataError(f"truncate: the frame has no column '{name}'{did_you_mean(name, schema)}; pass columns=(…)")
        _check_text(name, schema[name])
    counter = None if unit == "characters" else _counter(tokenizer)
    return _truncate_texts(frame, schema, columns, partial(_cut_text, cut=cut, tokenizer=counter))


def _truncate_segments(frame: Frame, schema: pl.Schema, cut: dict[str, Any]) -> Frame:
    parts = [name for name in ("mask", "starts") if name in schema]
    kept = pl.struct(parts).map_batches(partial(_positions, cut=cut), return_dtype=pl.UInt32, is_elementwise=True)
    lists = [pl.col(name).list.head(pl.col("_kept")) for name in _PER_TOKEN if isinstance(schema.get(name), pl.List)]
    return frame.with_columns(kept.alias("_kept")).with_columns(lists).drop("_kept")


def _positions(segments: pl.Series, cut: dict[str, Any]) -> pl.Series:
    try:
        return to_series(segments.name, _native.truncate_positions(segments, **cut), pl.UInt32)
    except (TypeError, ValueError) as error:
        raise DataError(f"truncate: {error}") from None


def _truncate_texts(
    frame: Frame, schema: pl.Schema, columns: Sequence[str], kernel: Callable[[pl.Series], pl.Series]
) -> Frame:
    """Cut each column, then compare its length with the one before."""
    lengths = [_length(name, schema[name]).alias(f"_{name}_bytes") for name in columns]
    cuts = [pl.col(name).map_batches(kernel, return_dtype=schema[name], is_elementwise=True) for name in columns]
    flags = []
    for name in columns:
        whole = (_length(name, schema[name]) == pl.col(f"_{name}_bytes")).fill_null(value=True)
        flags.append((_complete(name, schema) & whole).alias(f"{name}_complete"))
    return frame.with_columns(lengths).with_columns(cuts).with_columns(flags).drop(f"_{name}_bytes" for name in columns)


def _length(name: str, dtype: pl.DataType) -> pl.Expr:
    text = pl.col(name) if dtype == pl.String else pl.col(name).list.last().struct.field("content")
    return text.str.len_bytes()


def _complete(name: str, schema: pl.Schema) -> pl.Expr:
    flag = f"{name}_complete"
    if flag not in schema:
        return pl.lit(value=True)
    return pl.col(flag) if schema[flag] == pl.Boolean else pl.col(flag).cast(pl.String).str.to_lowercase() != "false"


def _cut_text(texts: pl.Series, cut: dict[str, Any], tokenizer: _native.Tokenizer | None) -> pl.Series:
    return to_series(texts.name, _native.truncate_text(texts, tokenizer=tokenizer, **cut), texts.dtype)


def _check_text(name: str, dtype: pl.DataType) -> None:
    if dtype == pl.String:
        return
    message = dtype.inner if isinstance(dtype, pl.List) else None
    if not isinstance(message, pl.Struct) or dict(message).get("content") != pl.String:
        raise DataError(f"truncate: column '{name}' must hold strings or lists of {{role, content}}, got {dtype}")


def _counter(tokenizer: Tokenizer | str | Path | None) -> _native.Tokenizer:
    """The handle that counts tokens; it needs no template."""
    from pyprefopt.data.hub import resolve
    from pyprefopt.data.tokenizer import open_native

    if tokenizer is None:
        raise ConfigError("truncate: unit='tokens' needs tokenizer=…, or use unit='characters'")
    if not isinstance(tokenizer, str | Path):
        return tokenizer.native
    source = resolve(tokenizer)
    file = source / "tokenizer.json" if source.is_dir() else source
    if not file.is_file():
        raise ConfigError(f"tokenizer '{tokenizer}': there is no tokenizer.json")
    return open_native(file, file.read_bytes())
