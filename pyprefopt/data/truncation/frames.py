"""How texts and token segments are cut: Polars expressions over the kernels, lazy until the edge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl

from pyprefopt.data import _native
from pyprefopt.data.columns import check_flag_counts, check_flags, to_series
from pyprefopt.data.truncation.rule import Truncation, Unit, check_unit
from pyprefopt.errors import ConfigError, DataError, check, did_you_mean, option

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import GivenTokenizer

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)
_PER_TOKEN = ("ids", "mask", "starts", "ends", "turns", "scores", "values", "selected", "user_weights")  # cut with ids
_TRANSCRIPT = r"\A\n\n(Human|Assistant):"  # how HH-RLHF's begin
_BEGUN = r"(?s)\A(\n\n)?Human:.*\n\nAssistant:\z"  # a prompt to whose last mark a space before the response belongs
_SCORED = ("scores", "values", "selected")  # what an appended token would have no value of


def truncate_frame(
    frame: Frame, *, rule: Truncation, tokenizer: GivenTokenizer | None, columns: Sequence[str] | None
) -> Frame:
    """Cut the responses of a frame of texts or of segments, see `pyprefopt.data.truncate`."""
    schema = frame.collect_schema()
    if "ids" in schema and "mask" in schema:
        check_unit(rule)
        remedy = "its per-token columns are cut together; for one column: data.truncate_column"
        check(columns is None, "columns", columns, "left out for a frame of token ids", remedy)
        return truncate_segments(frame, schema, rule, tokenizer)
    check_text_rule(rule, tokenizer)
    if columns is None:
        candidates = "responses" in schema and "chosen" not in schema
        columns = ("responses",) if candidates else ("chosen", "rejected")
    columns = (columns,) if isinstance(columns, str) else columns
    check(isinstance(columns, Sequence), "columns", columns, "the names of the columns to cut")
    check(len(columns) > 0, "columns", columns, "the names of the columns to cut, or left out")
    looked_at = {"prompt"}.union(columns)
    encoded = [n for n, dtype in schema.items() if n in looked_at and isinstance(dtype, pl.Categorical | pl.Enum)]
    if encoded:  # texts, each kept once
        frame = frame.with_columns(pl.col(encoded).cast(pl.String))
        schema = frame.collect_schema()
    for name in columns:
        if name not in schema:
            remedy = f"pass {option('columns', '…')}, the columns to cut; there are {', '.join(schema)}"
            raise DataError(f"truncate: there is no column '{name}'{did_you_mean(name, schema)}; {remedy}")
        if not is_text(schema[name]):
            raise DataError(
                f"truncate: column '{name}' must hold strings or lists of {{role, content}}, got {schema[name]}"
            )
    return truncate_texts(frame, schema, columns, rule, counter(tokenizer) if rule.unit == "tokens" else None)


def check_used(tokenizer: object, rule: Truncation) -> None:
    """ConfigError for a tokenizer that counts nothing."""
    unused = rule.unit != "tokens" and tokenizer is not None
    remedy = "leave it out, or count tokens: unit='tokens'"
    path = getattr(tokenizer, "path", tokenizer)
    name = str(path) if isinstance(path, str | Path) else f"one of type {type(tokenizer).__qualname__}"
    check(not unused, "tokenizer", name, f"left out with unit {rule.unit!r}", remedy)


def check_text_rule(rule: Truncation, tokenizer: object) -> None:
    """ConfigError for settings that text cannot honour."""
    check_used(tokenizer, rule)
    rule_text = "'none' or 'template' for text"
    check(rule.cut_end != "eos", "cut_end", "eos", rule_text, "tokenize first and truncate the segments")


def truncate_texts(
    frame: Frame, schema: pl.Schema, columns: Sequence[str], rule: Truncation, tokenizer: _native.Tokenizer | None
) -> Frame:
    """One pass a column; with `shared_min` one more before, which counts."""
    shared: list[str] = []
    if rule.ratio_base == "shared_min":
        count = partial(count_texts, unit=rule.unit, tokenizer=tokenizer)
        counts = [
            pl.col(name).map_batches(count, return_dtype=pl.UInt32, is_elementwise=True).alias(f"_count_{name}")
            for name in columns
        ]
        frame = frame.with_columns(counts)
        frame = frame.with_columns(pl.min_horizontal(f"_count_{name}" for name in columns).alias("_base"))
        shared = ["_base"]
    cut = partial(_cut_responses, rule=rule, tokenizer=tokenizer)
    if schema.get("prompt") == pl.String:
        frame = frame.with_columns(pl.col("prompt").map_batches(_unmarked, return_dtype=pl.String, is_elementwise=True))
    pieces = [
        pl.map_batches([name, *shared], cut, return_dtype=_piece(schema[name]), is_elementwise=True).alias(f"_{name}")
        for name in columns
    ]
    results = [result for name in columns for result in _results(name, schema, rule)]
    helpers = [f"_{name}" for name in columns] + [f"_count_{name}" for name in columns if shared] + shared
    return frame.with_columns(pieces).with_columns(results).drop(helpers)


def _results(name: str, schema: pl.Schema, rule: Truncation) -> list[pl.Expr]:
    """The column, `{name}_cut` and `{name}_complete` of a cut column."""
    piece, flag, count = pl.col(f"_{name}").struct, f"{name}_complete", f"{name}_cut"
    cut, nested = piece.field("cut"), _is_nested(schema[name])
    whole = pl.lit(value=True) if rule.cut_end == "template" else cut == 0
    if nested:
        whole = cut.list.eval(pl.lit(value=True) if rule.cut_end == "template" else pl.element() == 0)
    if flag in schema:
        before = pl.col(flag)
        if nested:
            check_flags(flag, schema[flag])
            both = partial(_both_lists, flag=flag, name=name)
            whole = pl.map_batches([before, whole], both, return_dtype=pl.List(pl.Boolean), is_elementwise=True)
        else:
            known = before if schema[flag] == pl.Boolean else before.cast(pl.String).str.to_lowercase() != "false"
            whole = known & whole
    if count in schema:
        cut = pl.col(count).cast(_piece(schema[name]).fields[1].dtype) + cut
    return [piece.field("text").alias(name), cut.alias(count), whole.alias(flag)]


def _both_lists(columns: Sequence[pl.Series], flag: str, name: str) -> pl.Series:
    """Whether a response was whole before and is now; null, of a row or of a response, was whole."""
    before, now = columns[0].cast(pl.List(pl.Boolean)).alias(flag), columns[1]
    check_flag_counts(before, now.alias(name))
    known = before.list.eval(pl.element().fill_null(value=True))
    frame = pl.DataFrame({"before": known, "now": now})
    both = pl.concat_list(pl.col("before").cast(pl.List(pl.UInt8)) * pl.col("now").cast(pl.List(pl.UInt8)))
    return frame.select(pl.coalesce(both.cast(pl.List(pl.Boolean)), "now").alias(flag)).to_series()


def _piece(dtype: pl.DataType) -> pl.Struct:
    return pl.Struct({"text": dtype, "cut": pl.List(pl.UInt32) if _is_nested(dtype) else pl.UInt32})


def cut_texts(columns: Sequence[pl.Series], rule: Truncation, tokenizer: _native.Tokenizer | None) -> pl.Series:
    """struct{text, cut} of a text column, and the length that a ratio is of (null: the text's own)."""
    texts = columns[0]
    base = None if len(columns) == 1 else np.ascontiguousarray(columns[1].cast(pl.Int64).fill_null(-1).to_numpy())
    kept, cut = _native.truncate_text(_to_arrow(texts), unit=rule.unit, tokenizer=tokenizer, base=base, **rule.cut)
    dtype = _piece(texts.dtype)
    pieces = [to_series("text", kept, texts.dtype), _no_nulls(to_series("cut", cut, dtype.fields[1].dtype))]
    return pl.DataFrame(pieces).to_struct(texts.name)


def _cut_responses(columns: Sequence[pl.Series], rule: Truncation, tokenizer: _native.Tokenizer | None) -> pl.Series:
    """`cut_texts`, which refuses transcripts: their beginning is the prompt."""
    if columns[0].dtype == pl.String and columns[0].str.contains(_TRANSCRIPT).any():
        raise _transcripts(columns[0].name)
    return cut_texts(columns, rule, tokenizer)


def _unmarked(prompts: pl.Series) -> pl.Series:
    """The prompts; refused where they end with a mark, to which a space before the response belongs."""
    if prompts.str.contains(_BEGUN).any():
        raise _transcripts(prompts.name)
    return prompts


def _transcripts(name: str) -> DataError:
    return DataError(
        f"truncate: column '{name}' holds transcripts (Human: …), whose beginning is the prompt and whose spaces "
        "belong to their marks; cut the frame that data.read_preferences makes of them"
    )


def has_transcripts(frame: pl.LazyFrame, schema: pl.Schema) -> bool:
    """Whether the prompt or a response of a pair is a transcript."""
    texts = [name for name in ("prompt", "chosen", "rejected") if schema.get(name) == pl.String]
    marked = [pl.col(name).str.contains(_BEGUN if name == "prompt" else _TRANSCRIPT).any() for name in texts]
    return bool(texts) and any(frame.select(marked).collect().row(0))


def _to_arrow(texts: pl.Series) -> pl.Series:
    """Fields that are null throughout have no layout that the extension reads; they cross as strings."""

    def readable(dtype: Any) -> Any:
        if isinstance(dtype, pl.List):
            return pl.List(readable(dtype.inner))
        if isinstance(dtype, pl.Struct):
            return pl.Struct({field.name: readable(field.dtype) for field in dtype.fields})
        return pl.String() if dtype == pl.Null else dtype

    wanted = readable(texts.dtype)
    return texts if wanted == texts.dtype else texts.cast(wanted)


def _no_nulls(cut: pl.Series) -> pl.Series:
    """0 for what is no response."""
    return cut.list.eval(pl.element().fill_null(0)) if isinstance(cut.dtype, pl.List) else cut.fill_null(0)


def count_texts(texts: pl.Series, unit: Unit, tokenizer: _native.Tokenizer | None) -> pl.Series:
    """Units of each text, or of the shortest of each line's texts; null where there is none."""
    counts = pl.Series(_native.count_units(_to_arrow(texts), unit=unit, tokenizer=tokenizer))
    return (counts.list.min() if isinstance(counts.dtype, pl.List) else counts).cast(pl.UInt32).alias(texts.name)


def truncate_segments(frame: Frame, schema: pl.Schema, rule: Truncation, tokenizer: GivenTokenizer | None) -> Frame:
    """Per-token lists cut where the content ends, and `cut`, the number of content tokens that went."""
    parts = pl.struct(name for name in ("mask", "starts") if name in schema)
    inputs: list[pl.Expr] = [parts]
    if rule.ratio_base == "shared_min" or rule.cut_end == "template":
        measured = parts.map_batches(_content, return_dtype=_CONTENT, is_elementwise=True)
        frame = frame.with_columns(measured.alias("_content"))
    if rule.ratio_base == "shared_min":
        frame = frame.with_columns(_shortest(schema).alias("_base"))
        inputs.append(pl.col("_base"))
    cut = pl.map_batches(inputs, partial(positions, rule=rule), return_dtype=_POSITIONS, is_elementwise=True)
    lists = [name for name in _PER_TOKEN if isinstance(schema.get(name), pl.List)]
    end = partial(_ended, schema=schema, eos=_eos(rule, tokenizer, lists), rule=rule)
    count = pl.col("_cut").struct.field("cut")
    if "cut" in schema:
        count = pl.col("cut").cast(pl.UInt32) + count
    frame = frame.with_columns(cut.alias("_cut")).with_columns(*(end(name) for name in lists), count.alias("cut"))
    return frame.drop("_cut", "_content", "_base", strict=False)


_CONTENT = pl.Struct({"content": pl.UInt32, "after": pl.UInt32})
_POSITIONS = pl.Struct({"kept": pl.UInt32, "cut": pl.UInt32})


def _shortest(schema: pl.Schema) -> pl.Expr:
    """Content tokens of the row's shortest response."""
    for name in ("row", "segment"):
        if name not in schema:
            raise DataError(f"truncate: ratio_base 'shared_min' needs the column '{name}'{did_you_mean(name, schema)}")
    response = pl.when(pl.col("segment") > 0).then(pl.col("_content").struct.field("content"))
    return response.min().over("row")


def _ended(name: str, schema: pl.Schema, eos: int | None, rule: Truncation) -> pl.Expr:
    """A per-token column after the cut, with what `cut_end` puts there."""
    column, cut = pl.col(name), pl.col("_cut").struct
    head, was_cut = column.list.head(cut.field("kept")), cut.field("cut") > 0
    if rule.cut_end == "none":
        return head
    if rule.cut_end == "template":
        after = pl.when(was_cut).then(pl.col("_content").struct.field("after")).otherwise(0)
        return pl.concat_list(head, column.list.tail(after))
    dtype = schema[name].inner  # type: ignore[attr-defined]
    last = {"ids": pl.lit(eos, dtype), "mask": pl.lit(value=True), "turns": column.list.get(cut.field("kept") - 1)}
    last["user_weights"] = pl.lit(1.0, pl.Float32)  # the weight of what is no content
    return pl.when(was_cut).then(pl.concat_list(head, last.get(name, pl.lit(None, dtype)))).otherwise(column)


def _eos(rule: Truncation, tokenizer: GivenTokenizer | None, lists: Sequence[str]) -> int | None:
    if rule.cut_end != "eos":
        return None
    from pyprefopt.data.tokenization.tokenizer import as_tokenizer

    if tokenizer is None:
        raise ConfigError("truncate: cut_end 'eos' needs a tokenizer, whose EOS token is written; give tokenizer")
    scored = [name for name in lists if name in _SCORED]
    check(not scored, "cut_end", "eos", f"'none' or 'template' beside {scored}", "or truncate before scoring")
    return as_tokenizer(tokenizer).eos_token_id


def _content(segments: pl.Series) -> pl.Series:
    try:
        counts = _native.count_content(segments)
    except (TypeError, ValueError) as error:
        raise DataError(f"truncate: {error}") from None
    return _pair(segments.name, counts, _CONTENT)


def positions(columns: Sequence[pl.Series], rule: Truncation) -> pl.Series:
    """struct{kept, cut} of struct{mask, starts}, and the length that a ratio is of (null: the segment's own)."""
    base = None if len(columns) == 1 else np.ascontiguousarray(columns[1].cast(pl.Int64).fill_null(-1).to_numpy())
    try:
        kept = _native.truncate_positions(columns[0], base=base, **rule.cut)
    except (TypeError, ValueError) as error:
        raise DataError(f"truncate: {error}") from None
    return _pair(columns[0].name, kept, _POSITIONS)


def _pair(name: str, columns: tuple[Any, Any], dtype: pl.Struct) -> pl.Series:
    series = [to_series(f.name, column, f.dtype) for f, column in zip(dtype.fields, columns, strict=True)]
    return pl.DataFrame(series).to_struct(name)


def is_text(dtype: pl.DataType) -> bool:
    """Strings, chats, or lists of either."""
    if isinstance(dtype, pl.List) and not isinstance(dtype.inner, pl.Struct):
        return _is_one_text(dtype.inner)  # type: ignore[arg-type]
    return _is_one_text(dtype)


def _is_one_text(dtype: pl.DataType) -> bool:
    message = dtype.inner if isinstance(dtype, pl.List) else None
    chat = isinstance(message, pl.Struct) and any(f.name == "content" and f.dtype == pl.String for f in message.fields)
    return dtype == pl.String or chat


def _is_nested(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.List) and not isinstance(dtype.inner, pl.Struct)


NO_TOKENIZER = "truncate: unit 'tokens' needs a tokenizer; give one, or choose unit characters, words or sentences"


def counter(tokenizer: GivenTokenizer | None) -> _native.Tokenizer:
    """The handle that counts tokens; it needs no template."""
    from pyprefopt.data.tokenization.tokenizer import Tokenizer, open_native
    from pyprefopt.data.tokenization.tokenizer_files import files_of, read_tokenizer

    if tokenizer is None:
        raise ConfigError(NO_TOKENIZER)
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.native
    with files_of(tokenizer) as source:
        file = source / "tokenizer.json" if source.is_dir() else source
        if not file.is_file():
            raise ConfigError(f"tokenizer '{tokenizer}': there is no tokenizer.json")
        return open_native(file, read_tokenizer(source) if source.is_dir() else file.read_bytes())
