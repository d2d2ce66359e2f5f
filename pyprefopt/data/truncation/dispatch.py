"""Truncation: keep the beginning of responses, where much of the preference lies. Works alone; loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    from pyprefopt.data.tokenization.tokenizer import GivenTokenizer

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
    tokenizer: GivenTokenizer | None = None,
    columns: Mapping[str, str] | Sequence[str] | None = None,
    out: str | Path | None = None,
    format: str = "auto",  # noqa: A002
    overwrite: bool = False,
) -> Source:
    """Cut responses to their first units; the same kind comes back.

    Much of the preference lies in the beginning of responses (shallow preference signals). A text is cut
    after its last unit kept, so what remains is a prefix of it, byte for byte. At least one unit is kept.

    Text. With unit `tokens` a character that is spread over several tokens, not all kept, is dropped, or kept whole if
    it is the first. The column `{column}_cut` counts the units that were cut off (added to what is there), and
    `{column}_complete` becomes False where something was cut, so that no end of turn is written: with
    `cut_end="template"` it stays as it was, and the template ends the turn. Of list<message> the last message's content
    is cut; of candidates, each response.

    Segments (a frame with `ids` and `mask`). The per-token columns are cut, counting content tokens; prompts stay, and
    the column `cut` counts the tokens that were cut off (added).

    Files. Pairs or candidates are written to `out`; a file that is there is replaced with `overwrite` alone. In JSON
    files every other field stays as it is written, in CSV files every other cell. The counts of pairs are always those
    of `chosen` and `rejected`. No row is left out; a warning counts the pairs whose responses the cut has made the
    same, which reading refuses.

    Args:
        what: a DataFrame or LazyFrame of texts or of segments; an Arrow table, DuckDB relation or `datasets` set, which
            gives a PyArrow table; or a path (.jsonl .json .csv .tsv, also .gz .zst .bz2 .xz; .parquet .arrow .feather).
        ratio: share of the units that is kept, in (0, 1]; exactly one of `ratio`, `length` and `tokens` is given.
        length: units that are kept.
        tokens: `tokens=128` is short for `length=128` with unit tokens.
        unit: `tokens`, `characters` (code points), `words` or `sentences` (UAX #29: a word holds a letter or digit,
            each Chinese character is one; a sentence more than white space).
        rounding: of ratio times the number of units: `ceil` (the default) or `floor`; refused without a ratio.
        ratio_base: `own` (the default), of the response's own units; `shared_min`, of those of the row's shortest
            response, so that no response of a row keeps more than another may; refused without a ratio.
        cut_end: what follows the last token kept of a segment: nothing (`none`), the template's tokens that ended the
            response (`template`), or the tokenizer's EOS (`eos`, in `mask`).
        tokenizer: counts the tokens of text; or the path of its tokenizer.json.
        columns: text columns, of strings or list<message>, or lists of either (candidates); None: `chosen` and
            `rejected`, or `responses`. Of `ours=theirs`, as reading takes them, the responses are cut. Refused for
            segments.
        out: of a path: where the result is written; None: beside it as `<stem>.truncated<suffix>`.
        format: of a path: the rows' format; auto: the one that the fields of the first rows show.
        overwrite: of a path: replace a file that is there.

    Returns:
        What was given, cut; of a path, the written path.

    Raises:
        ConfigError: settings that contradict each other or break their rule, or a file at `out` without `overwrite`.
        DataError: a missing column, one of another type, or a file that is missing or cannot be read.

    Example:
        >>> pairs = pl.DataFrame({"chosen": ["a b c d"], "rejected": ["a b"]})
        >>> truncate(pairs, ratio=0.5, unit="words")["chosen", "rejected", "chosen_cut"].row(0)
        ('a b', 'a', 2)
    """
    rule = make_cut(
        ratio=ratio, length=length, tokens=tokens, unit=unit, rounding=rounding, ratio_base=ratio_base, cut_end=cut_end
    )
    columns = _to_cut(columns)
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


def _to_cut(columns: Mapping[str, str] | Sequence[str] | None) -> Sequence[str] | None:
    """The columns that are cut: those that are named, or the responses of a mapping `ours=theirs`.

    Raises:
        ConfigError: a mapping without a response.
    """
    pairs = [columns] if isinstance(columns, str) else columns
    is_mapping = isinstance(pairs, Mapping) or (isinstance(pairs, Sequence) and any("=" in str(name) for name in pairs))
    if pairs is None or not is_mapping:
        return columns  # type: ignore[return-value]
    from pyprefopt.data.reading.catalog import TABLE, mapping_of

    roles = ("chosen", "rejected", "pair", "responses", "response")
    responses = {field.name for row in TABLE.values() for field in row.fields if field.role in roles}
    mapping = mapping_of(pairs)
    found = [theirs for ours, theirs in mapping.items() if ours in responses]
    check(bool(found), "columns", mapping, "with a response", "as chosen=good rejected=bad: that is what is cut")
    return found


def truncate_by(
    what: Any,
    rule: Truncation,
    *,
    tokenizer: GivenTokenizer | None = None,
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
    tokenizer: GivenTokenizer | None = None,
    mask: Column | None = None,
) -> Column:
    """Cut one column as `truncate` does: texts, chats, candidates, or per-token lists.

    Lists of anything but texts and messages are cut as tokens.

    Args:
        column: of any kind, see `top_k_mask`.
        ratio: as in `truncate`.
        length: as in `truncate`.
        tokens: as in `truncate`.
        unit: as in `truncate`; `tokens` for lists.
        rounding: as in `truncate`.
        tokenizer: counts the tokens of text; left out for lists.
        mask: list<bool>, which tokens of the lists are content: only they are counted, and what follows the last one
            kept is cut off; None: all are. Left out for text.

    Returns:
        The column, cut, of the same kind and type.

    Raises:
        ConfigError: settings that contradict each other or break their rule.
        DataError: the column holds neither texts nor lists.

    Example:
        >>> truncate_column(pl.Series(["one two three four"]), ratio=0.5, unit="words").to_list()
        ['one two']
        >>> truncate_column(pl.Series([[5, 6, 7, 8]]), length=3).to_list()
        [[5, 6, 7]]
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
