"""Truncation: keep the beginning of responses, where much of the preference lies. Works alone; loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl

from pyprefopt.data import _native
from pyprefopt.data.columns import Column, apply, as_frame
from pyprefopt.data.truncation.frames import (
    NO_TOKENIZER,
    check_used,
    counter,
    cut_texts,
    is_text,
    positions,
    truncate_frame,
)
from pyprefopt.data.truncation.rule import CutEnd, RatioBase, Rounding, Truncation, Unit, make_cut
from pyprefopt.errors import ConfigError, DataError, check

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import Tokenizer

Source = TypeVar("Source", pl.DataFrame, pl.LazyFrame, str, Path)  # or an Arrow table, which gives a PyArrow table


def truncate(
    what: Source,
    *,
    ratio: float | None = None,
    length: int | None = None,
    tokens: int | None = None,
    unit: Unit = "tokens",
    rounding: Rounding | None = None,
    ratio_base: RatioBase | None = None,
    cut_end: CutEnd = "none",
    tokenizer: Tokenizer | str | Path | None = None,
    columns: Sequence[str] | None = None,
    out: str | Path | None = None,
    format: str = "auto",  # noqa: A002
    overwrite: bool = False,
) -> Source:
    """Cut responses to the first `ratio` of their units, or to the first `length` units; the same kind comes back.

    unit: `tokens` (`tokens=128` is short for `length=128`), `characters` (code points), `words` or `sentences` (UAX
    #29: a word holds a letter or digit, each Chinese character is one; a sentence more than white space). A text is cut
    after its last unit kept, so what remains is a prefix of it, byte for byte. At least one unit is kept.
    ratio: in (0, 1], of the response's own units (`ratio_base="own"`, the default) or of those of the row's shortest
    response (`shared_min`, so that no response of a row keeps more than another may); rounded by `rounding`, `ceil`
    (the default) or `floor`. Both are refused without a ratio.

    Text (DataFrame, LazyFrame; an Arrow table, DuckDB relation or `datasets` set gives a PyArrow table): `columns` are
    strings or list<message> (the last message's content is cut), or lists of either (candidates); default: `chosen` and
    `rejected`, or `responses`. With unit "tokens" the tokenizer (or the path of its tokenizer.json) counts; a character
    that is spread over several tokens, not all kept, is dropped, or kept whole if it is the first. `{column}_cut` says
    how many units went (added to what is there), and `{column}_complete` becomes False where something was cut, so that
    no end of turn is written: with `cut_end="template"` it stays as it was, and the template ends the turn.
    Segments (a frame with `ids` and `mask`): the per-token columns are cut, counting content tokens; prompts stay, and
    `cut` says how many went (added). What follows the last token kept: nothing (`none`), the template's tokens that
    ended the response (`template`), or the tokenizer's EOS (`eos`, in `mask`). `columns` is refused.
    Path (every file that reading takes: .jsonl .json .csv .tsv, also .gz .zst .bz2 .xz; .parquet .arrow .feather), of
    pairs or candidates in the format that the fields of the first rows show, or that `format` says: written to `out`,
    or beside it as `<stem>.truncated<suffix>`; the written path comes back. A file that is there is replaced with
    `overwrite` alone. In JSON files every other field stays as it is written, in CSV files every other cell. The books
    of pairs are always those of `chosen` and `rejected`. No row is left out; a warning counts the pairs whose responses
    the cut has made the same, which reading refuses.

    Raises ConfigError for contradicting settings, DataError for a missing column.
    """
    rule = make_cut(
        ratio=ratio, length=length, tokens=tokens, unit=unit, rounding=rounding, ratio_base=ratio_base, cut_end=cut_end
    )
    if isinstance(what, str | Path):
        from pyprefopt.data.truncation.files import rewrite

        target = None if out is None else Path(out)
        options: dict[str, Any] = {"tokenizer": tokenizer, "columns": columns, "format": format, "overwrite": overwrite}
        return type(what)(rewrite(Path(what), target, rule=rule, **options))
    check(format == "auto", "format", format, "left out for a frame", "it has columns: name those to cut, columns=(…)")
    check(out is None, "out", out, "left out for a frame", "write the result yourself")
    check(not overwrite, "overwrite", overwrite, "left out for a frame", "no file is written")
    shorter: Source = truncate_by(what, rule, tokenizer=tokenizer, columns=columns)
    return shorter


def truncate_by(
    what: Any,
    rule: Truncation,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    columns: Sequence[str] | None = None,
) -> Any:
    """`truncate` of a frame or table by a rule that is checked; the same frame where nothing is cut."""
    if not rule.active:
        return what
    step: Callable[[Any], Any] = partial(truncate_frame, rule=rule, tokenizer=tokenizer, columns=columns)
    if isinstance(what, pl.DataFrame | pl.LazyFrame):
        return step(what)
    table = what.with_format("arrow")[:] if hasattr(what, "with_format") else what  # a `datasets` set
    if not hasattr(table, "__arrow_c_stream__"):
        raise DataError(f"truncate takes a Polars frame, an Arrow table or a path, got {type(what).__name__}")
    return step(as_frame(table)).to_arrow()


def truncate_column(
    column: Column,
    *,
    ratio: float | None = None,
    length: int | None = None,
    tokens: int | None = None,
    unit: Unit = "tokens",
    rounding: Rounding | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    mask: Column | None = None,
) -> Column:
    """`truncate` for one column of any kind (see `data.top_k_mask`): texts, chats, candidates, or per-token lists.

    Lists of anything but texts and messages are cut as tokens; `mask` (list<bool>) says which of them are content, so
    that only they are counted and what follows the last one kept goes; without it, all are.
    """
    if tokens is not None:
        check(length is None and unit == "tokens", "tokens", tokens, "given without length, for unit 'tokens'")
    rule = make_cut(ratio=ratio, length=length, tokens=tokens, unit=unit, rounding=rounding)
    check_used(tokenizer, rule)
    opened = None if tokenizer is None else counter(tokenizer)
    return apply(partial(_cut_column, rule=rule, tokenizer=opened), [column, mask], None)


def _cut_column(
    column: pl.Series, mask: pl.Series | None, rule: Truncation, tokenizer: _native.Tokenizer | None
) -> pl.Series:
    if is_text(column.dtype):
        check(mask is None, "mask", "a column", "left out for text")
        if rule.unit == "tokens" and tokenizer is None:
            raise ConfigError(NO_TOKENIZER)
        return cut_texts([column], rule, tokenizer).struct.field("text")
    if not isinstance(column.dtype, pl.List):
        raise DataError(f"truncate: column '{column.name}' must hold lists or texts, got {column.dtype}")
    check(rule.unit == "tokens", "unit", rule.unit, "'tokens' for lists", "characters, words, sentences are of text")
    check(tokenizer is None, "tokenizer", "one", "left out for lists", "their entries are the tokens")
    if mask is None:
        lengths = column.list.len().fill_null(0).to_numpy()
        kept = pl.Series("kept", _native.kept_units(lengths, **rule.cut))
    else:
        kept = positions([mask.alias("mask").to_frame().to_struct("")], rule).struct.field("kept")
    return (
        pl.DataFrame([column.alias("lists"), kept.alias("kept")])
        .select(pl.col("lists").list.head(pl.col("kept")))
        .to_series()
    )
