"""From chats to token segments: rendered once, tokenized once, split by byte offsets, all in Rust."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import polars as pl
import pyarrow as pa

from pyprefopt.data.columns import check_flag_counts, check_flags
from pyprefopt.data.files.tables import to_table
from pyprefopt.data.parallel import in_threads
from pyprefopt.data.reading.blocks import Block
from pyprefopt.data.reading.frames import CHAT
from pyprefopt.data.reading.rejects import OnError, check_on_error, report_rejects
from pyprefopt.data.reading.sources import open_source
from pyprefopt.data.tokenization.block import tokenize_block
from pyprefopt.data.tokenization.coverage import Coverage
from pyprefopt.data.tokenization.notes import SpecialToken, add_notes, log_notes
from pyprefopt.data.tokenization.schema import OFFSETS, SEGMENTS, Boundary, PromptOverflow, check_options
from pyprefopt.data.tokenization.tokenizer import PROVED_ROWS, GivenTokenizer, Tokenizer, as_tokenizer, load_tokenizer
from pyprefopt.errors import DataError, check, did_you_mean

__all__ = ["SEGMENTS", "TokenizeResult", "Tokenizer", "load_tokenizer", "tokenize", "tokenize_rows"]

Report = Callable[[pl.DataFrame, int], None]  # raises for bad rows of so many, or logs and records them

_REJECTS = ("file", "row", "field", "value", "reason", "rule", "remedy")

logger = logging.getLogger("pyprefopt")


class TokenizeResult(NamedTuple):
    """Segments, and counts: every row is in `segments` or in `rejects`."""

    segments: pl.DataFrame
    rejects: pl.DataFrame  # the schema of `rejects.REJECTS`; `file` is left empty
    responses_cut: int  # responses cut at the end to fit max_tokens
    tokenized_apart: int  # rows in which a token lay across the boundary of prompt and response
    rows_apart: pl.Series  # u64: those rows
    without_bos: int  # rows that begin without the tokenizer's BOS token, because the template does not write it
    notes: dict[str, int]  # counts of what `tokenize` tells of reasoning, ends of turn, special tokens and prompts
    special: SpecialToken | None  # the first in a content
    coverage: Coverage  # of the responses by their tokens


@overload
def tokenize(
    source: pl.LazyFrame,
    tokenizer: GivenTokenizer,
    *,
    format: str = ...,
    max_prompt_tokens: int | None = ...,
    prompt_overflow: PromptOverflow = ...,
    max_tokens: int | None = ...,
    boundary: Boundary = ...,
    score_reasoning: bool = ...,
    offsets: bool = ...,
    on_error: OnError = ...,
    rejected_path: str | Path | None = ...,
) -> pl.LazyFrame: ...
@overload
def tokenize(
    source: Any,
    tokenizer: GivenTokenizer,
    *,
    format: str = ...,
    max_prompt_tokens: int | None = ...,
    prompt_overflow: PromptOverflow = ...,
    max_tokens: int | None = ...,
    boundary: Boundary = ...,
    score_reasoning: bool = ...,
    offsets: bool = ...,
    on_error: OnError = ...,
    rejected_path: str | Path | None = ...,
) -> pl.DataFrame: ...
def tokenize(
    source: Any,
    tokenizer: GivenTokenizer,
    *,
    format: str = "auto",  # noqa: A002
    max_prompt_tokens: int | None = None,
    prompt_overflow: PromptOverflow = "error",
    max_tokens: int | None = None,
    boundary: Boundary = "split",
    score_reasoning: bool = True,
    offsets: bool = True,
    on_error: OnError = "raise",
    rejected_path: str | Path | None = None,
) -> pl.DataFrame | pl.LazyFrame:
    """Tokenize preferences, instructions or candidates into segments: one line a prompt or response.

    A LazyFrame stays lazy and runs in the streaming engine too; one that is not of `read_*` is read as a whole then.

    Args:
        source: a Polars frame as `read_preferences` (prompt, chosen, rejected), `read_instructions` (prompt, response)
            or `read_candidates` (prompt, responses, scores) makes it, eager or lazy; or whatever `open_source` takes
            (files, a folder, other tables): its rows become tokens without a frame in between, which is fastest. A
            frame is one of `read_*` where `prompt` is list<{role, content, extra}>.
        tokenizer: of `load_tokenizer`, or what it takes: a folder, a tokenizer.json, a hub name, or a tokenizer of
            transformers, in memory.
        format: of what `open_source` takes; auto: by schema.
        max_prompt_tokens: a longer prompt is treated by `prompt_overflow`; None: no limit.
        prompt_overflow: a longer prompt is a bad row (`error`), or its row is left out and counted, whatever `on_error`
            says (`drop`), or it keeps its last tokens (`keep_end`) or its first tokens (`keep_start`),
            `max_prompt_tokens` in all. Always kept are a BOS token at the prompt's start and the
            tokens of the generation prompt at its end (as `<|im_start|>assistant`), so what is left out is one window:
            right behind the BOS token, or right before the generation prompt. It may begin or end inside a message.
            Where BOS and generation prompt leave no room the row is bad.
        max_tokens: responses are cut at the end so that prompt and response have at most so many; no EOS is put there.
            A pair of which both then have the same ids is a bad row. None: no limit.
        boundary: where a token would lie across the boundary of prompt and response, they are tokenized apart, as
            generation sees them (`split`), or the row is bad (`error`), or the token is the response's first (`join`).
            Tokenizers that are not byte-level cannot split: there the row is bad too. With `join` responses also go on
            to the last character that the template writes, unmasked behind the turn's end: as a reader of finished
            chats has them, such as a reward model.
        score_reasoning: the assistant's reasoning is scored as the answer behind it is (`mask`); False: it is read, and
            not scored. Reasoning is a message's `reasoning_content` (`thinking`, `reasoning`), or stands before the
            answer in the content between marks such as `<think>` and `</think>`.
        offsets: keep the columns `starts`, `ends` and `turns`, which cuts by text and `transfer_values` need.
        on_error: raise: read everything, then report all bad rows; skip: leave them out, with one warning that counts
            them by reason. In a LazyFrame of `read_*` each batch warns on its own.
        rejected_path: with skip, where the rows that are left out are recorded as JSON lines (`tokenize_rows` of a
            frame returns them); refused for a LazyFrame of `read_*`.

    Returns:
        A frame of schema `SEGMENTS`: `row` u64, `segment` u16 (0 the prompt, 1… the responses), `kind` (prompt, chosen,
        rejected, response), `ids` list<u32>, `mask` list<bool> (written by the assistant), `starts`, `ends` list<u32>
        (bytes in the last message's content), `turns` list<u16>, `score` f32, `cut` u32 (tokens left out). Candidates
        have kind `response`. A LazyFrame for a LazyFrame.

    Raises:
        ConfigError: a setting breaks its rule.
        DataError: bad rows (on_error raise), an unreadable source, or an unknown schema.

    Example:
        >>> tokenizer = load_tokenizer("embedded:toy")
        >>> segments = tokenize("embedded:toy", tokenizer, max_tokens=64)
        >>> segments["kind"].head(3).to_list()
        ['prompt', 'chosen', 'rejected']
    """
    check_on_error(on_error, rejected_path)
    options: dict[str, Any] = {
        "max_prompt_tokens": max_prompt_tokens,
        "prompt_overflow": prompt_overflow,
        "max_tokens": max_tokens,
        "boundary": boundary,
        "score_reasoning": score_reasoning,
    }
    check_options(**options)
    tokenizer = as_tokenizer(tokenizer)
    options["offsets"] = offsets
    report = partial(report_rejects, on_error=on_error, rejected_path=rejected_path)
    if not isinstance(source, pl.DataFrame | pl.LazyFrame):
        return _tokenize_source(source, tokenizer, format, report, options)
    if not _is_read(source.collect_schema()):
        read = partial(_tokenize_source, tokenizer=tokenizer, format=format, report=report, options=options)
        return source.map_batches(read, schema=_schema(offsets)) if isinstance(source, pl.LazyFrame) else read(source)
    check(format == "auto", "format", format, "auto for a frame of read_*, whose columns say what it is")
    step = partial(_segments, tokenizer=tokenizer, report=report, options=options)
    if isinstance(source, pl.LazyFrame):
        rule = "left out for a LazyFrame, which comes in batches"
        check(rejected_path is None, "rejected_path", str(rejected_path), rule, "collect it first")
        return source.map_batches(step, schema=_schema(offsets), streamable=True)
    return step(source)


def _is_read(schema: pl.Schema) -> bool:
    """Whether the columns are those of `read_*`, and not rows as they came."""
    return schema.get("prompt") == CHAT


def _schema(offsets: bool) -> pl.Schema:
    return pl.Schema({name: kind for name, kind in SEGMENTS.items() if offsets or name not in OFFSETS})


def _tokenize_source(
    source: Any,
    tokenizer: Tokenizer,
    format: str,  # noqa: A002
    report: Report,
    options: dict[str, Any],
) -> pl.DataFrame:
    opened = open_source(source, format=format)

    def work(block: Block) -> tuple[pl.DataFrame, pl.DataFrame, int, dict[str, int], SpecialToken | None, Coverage]:
        made = tokenize_block(block, opened.format, tokenizer, **options)
        frame = _frame(made.segments, options["offsets"])
        return frame, made.rejects, made.rows_in, made.notes, made.special, made.coverage

    frames, rejects, rows_in, notes, specials, counts = zip(*in_threads(opened.blocks(), work), strict=True)
    Coverage.total(counts).check(str(source) if isinstance(source, str | Path) else "the rows", tokenizer.path)
    report(pl.concat(rejects), sum(rows_in))
    log_notes(add_notes(notes), SpecialToken.first_of(specials), score_reasoning=options["score_reasoning"])
    whole: pl.DataFrame = pl.concat(frames, rechunk=False)
    return whole


def _frame(segments: pa.Table, offsets: bool) -> pl.DataFrame:
    """The table in Polars' types; its columns are not copied."""
    frame, schema = pl.from_arrow(segments, rechunk=False), _schema(offsets)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101  (a table gives no Series)
    return frame if frame.schema == schema else frame.cast(schema)


def _segments(frame: pl.DataFrame, *, tokenizer: Tokenizer, report: Report, options: dict[str, Any]) -> pl.DataFrame:
    result = tokenize_rows(frame, tokenizer, **options)
    result.coverage.check("the rows", tokenizer.path)
    report(result.rejects, frame.height)
    log_notes(result.notes, result.special, score_reasoning=options["score_reasoning"])
    return result.segments


def tokenize_rows(
    frame: pl.DataFrame,
    tokenizer: GivenTokenizer,
    *,
    max_prompt_tokens: int | None = None,
    prompt_overflow: PromptOverflow = "error",
    max_tokens: int | None = None,
    boundary: Boundary = "split",
    score_reasoning: bool = True,
    offsets: bool = True,
    refuse_identical: bool = True,
) -> TokenizeResult:
    """Tokenize a frame as `tokenize` does; bad rows leave no line in the segments and come back as rejects.

    Args:
        frame: as `read_preferences`, `read_instructions` or `read_candidates` makes it.
        tokenizer: as in `tokenize`.
        max_prompt_tokens: as in `tokenize`.
        prompt_overflow: as in `tokenize`.
        max_tokens: as in `tokenize`.
        boundary: as in `tokenize`.
        score_reasoning: as in `tokenize`.
        offsets: as in `tokenize`.
        refuse_identical: a pair, or candidates of different scores, that become the same tokens are a bad row; False:
            they are kept, for a model that reads them and does not learn from them.

    Returns:
        Segments as `tokenize` gives them, rejects (one line a row), and counts.

    Raises:
        ConfigError: a setting breaks its rule.
        DataError: the frame is no preferences, instructions or candidates frame.

    Example:
        >>> result = tokenize_rows(pairs, load_tokenizer("embedded:toy"), max_tokens=64)
        >>> result.segments, result.rejects, result.responses_cut
    """
    check_options(max_prompt_tokens, prompt_overflow, max_tokens, boundary, score_reasoning)
    tokenizer = as_tokenizer(tokenizer)
    columns = _needed(frame)
    tokenizer.prove_on_rows(lambda: columns.head(PROVED_ROWS))
    try:
        segments, rejects, cut, rows_apart, without_bos, notes, found, counts = tokenizer.native.tokenize(
            columns,
            max_prompt_tokens=max_prompt_tokens,
            prompt_overflow=prompt_overflow,
            max_tokens=max_tokens,
            boundary=boundary,
            score_reasoning=score_reasoning,
            offsets=offsets,
            refuse_identical=refuse_identical,
        )
    except TypeError as error:  # a column of another type
        raise DataError(f"tokenize: {error}; read_preferences and read_instructions make such frames") from None
    bad_rows = pl.DataFrame(rejects).with_columns(file=pl.lit("")).select(_REJECTS)
    apart = pl.Series("row", rows_apart, dtype=pl.UInt64)
    if len(apart):
        logger.info("in %d rows (first: %d) prompt and response are tokenized apart", len(apart), apart[0])
    made = _frame(to_table(segments), offsets)
    told, special = add_notes([notes]), SpecialToken(*found) if found else None
    return TokenizeResult(made, bad_rows, cut, len(apart), apart, without_bos, told, special, Coverage(*counts))


def _needed(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns that Rust reads, in its types."""
    names = frame.columns
    responses = _response_columns(names)
    for name in ("row", "prompt", *responses):
        if name not in names:
            raise DataError(
                f"the frame has no column '{name}'{did_you_mean(name, names)}; read_preferences and read_instructions "
                "make such frames"
            )
    chats = [pl.col(name) for name in ("prompt", *responses)]
    boolean = pl.List(pl.Boolean) if responses == ["responses"] else pl.Boolean()
    if responses == ["responses"] and "responses_complete" in names:
        check_flags("responses_complete", frame.schema["responses_complete"])
        flags_given = frame["responses_complete"].cast(boolean)
        check_flag_counts(flags_given, frame["responses"], frame["row"])
    flags = [pl.col(name).cast(boolean) for name in (f"{side}_complete" for side in responses) if name in names]
    scores = [pl.col(name).cast(pl.Float32) for name in (f"score_{side}" for side in responses) if name in names]
    texts = [pl.col(name).cast(pl.String) for name in ("tools", "template_kwargs") if name in names]
    if responses == ["responses"] and "scores" in names:
        _check_scores(frame)
        scores.append(pl.col("scores").cast(pl.List(pl.Float32)))
    return frame.select(pl.col("row").cast(pl.UInt64), *chats, *flags, *scores, *texts)


def _response_columns(names: list[str]) -> list[str]:
    if "chosen" in names or "rejected" in names:
        return ["chosen", "rejected"]
    return ["responses"] if "responses" in names else ["response"]


def _check_scores(frame: pl.DataFrame) -> None:
    """Each row has as many scores as responses, or null for none."""
    wrong = frame.filter(pl.col("scores").list.len() != pl.col("responses").list.len()).select("row").head(1)
    if wrong.height:
        raise DataError(
            f"scores must have one value for each of responses, not so in row {wrong.item()}; null stands for no scores"
        )
