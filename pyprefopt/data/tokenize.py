"""From chats to token segments: rendered once, tokenized once, split by byte offsets, all in Rust."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, TypeVar

import polars as pl

from pyprefopt.data.tokenizer import Tokenizer, load_tokenizer
from pyprefopt.errors import DataError, check, did_you_mean

__all__ = ["SEGMENTS", "TokenizeResult", "Tokenizer", "load_tokenizer", "tokenize", "tokenize_rows"]

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)
OnError = Literal["raise", "skip"]

SEGMENTS = pl.Schema(
    {
        "row": pl.UInt64(),
        "segment": pl.UInt16(),  # 0 the prompt, 1… the responses
        "kind": pl.String(),  # prompt, chosen, rejected, response
        "ids": pl.List(pl.UInt32),
        "mask": pl.List(pl.Boolean),  # written by the assistant
        "starts": pl.List(pl.UInt32),  # bytes in the last message's content; null for the template's tokens
        "ends": pl.List(pl.UInt32),
        "turns": pl.List(pl.UInt16),  # message of the chat
        "score": pl.Float32(),
    }
)
_REJECTS = ("file", "row", "field", "value", "reason", "rule", "remedy")


class TokenizeResult(NamedTuple):
    """Segments, and the books: every row is in `segments` or in `rejects`."""

    segments: pl.DataFrame
    rejects: pl.DataFrame  # the schema of `rejects.REJECTS`; `file` is left empty
    responses_cut: int  # responses cut at the end to fit max_tokens
    tokenized_apart: int  # rows in which a token lay across the boundary of prompt and response


def tokenize(
    frame: Frame,
    tokenizer: Tokenizer,
    *,
    max_prompt_tokens: int | None = None,
    max_tokens: int | None = None,
    on_error: OnError = "raise",
) -> Frame:
    """Segments of a preferences frame (prompt, chosen, rejected) or an instructions frame (prompt, response).

    One line a segment, see `SEGMENTS`. Rows with a longer prompt than `max_prompt_tokens` are bad rows; responses are
    cut at the end so that prompt and response have at most `max_tokens`. A LazyFrame stays lazy and runs in the
    streaming engine too.
    Raises DataError for bad rows, or leaves them out with `on_error="skip"` (`tokenize_rows` returns them).
    """
    check(on_error in ("raise", "skip"), "on_error", on_error, "'raise' or 'skip'")
    step = partial(
        _segments,
        tokenizer=tokenizer,
        max_prompt_tokens=max_prompt_tokens,
        max_tokens=max_tokens,
        on_error=on_error,
    )
    if isinstance(frame, pl.LazyFrame):
        return frame.map_batches(step, schema=SEGMENTS, streamable=True)
    return step(frame)


def _segments(
    frame: pl.DataFrame,
    *,
    tokenizer: Tokenizer,
    max_prompt_tokens: int | None,
    max_tokens: int | None,
    on_error: OnError,
) -> pl.DataFrame:
    result = tokenize_rows(frame, tokenizer, max_prompt_tokens=max_prompt_tokens, max_tokens=max_tokens)
    if on_error == "raise" and not result.rejects.is_empty():
        from pyprefopt.data.rejects import raise_for

        raise_for(result.rejects, frame.height)
    return result.segments


def tokenize_rows(
    frame: pl.DataFrame,
    tokenizer: Tokenizer,
    *,
    max_prompt_tokens: int | None = None,
    max_tokens: int | None = None,
) -> TokenizeResult:
    """As `tokenize`; bad rows leave no line in the segments and come back as rejects, one line a row.

    Raises DataError where the frame is no preferences or instructions frame.
    """
    for name, limit in (("max_prompt_tokens", max_prompt_tokens), ("max_tokens", max_tokens)):
        check(limit is None or limit > 0, name, limit, "at least 1", "or None for no limit")
    columns = _needed(frame)
    try:
        segments, rejects, cut, apart = tokenizer.native.tokenize(
            columns, max_prompt_tokens=max_prompt_tokens, max_tokens=max_tokens
        )
    except TypeError as error:  # a column of another type
        raise DataError(f"tokenize: {error}; read_preferences and read_instructions make such frames") from None
    books = pl.DataFrame(rejects).with_columns(file=pl.lit("")).select(_REJECTS)
    return TokenizeResult(pl.DataFrame(segments).cast(SEGMENTS), books, cut, apart)


def _needed(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns that Rust reads, in its types."""
    names = frame.columns
    responses = ["chosen", "rejected"] if "chosen" in names or "rejected" in names else ["response"]
    for name in ("row", "prompt", *responses):
        if name not in names:
            raise DataError(
                f"the frame has no column '{name}'{did_you_mean(name, names)}; read_preferences and read_instructions "
                "make such frames"
            )
    chats = [pl.col(name) for name in ("prompt", *responses)]
    flags = [pl.col(name).cast(pl.Boolean) for name in (f"{side}_complete" for side in responses) if name in names]
    scores = [pl.col(name).cast(pl.Float32) for name in (f"score_{side}" for side in responses) if name in names]
    texts = [pl.col(name).cast(pl.String) for name in ("tools", "template_kwargs") if name in names]
    return frame.select(pl.col("row").cast(pl.UInt64), *chats, *flags, *scores, *texts)
