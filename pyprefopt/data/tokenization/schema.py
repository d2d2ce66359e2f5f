"""What a table of segments has, and the choices of a tokenization."""

from __future__ import annotations

from typing import Literal, get_args

import polars as pl

from pyprefopt.errors import check, check_number

PromptOverflow = Literal["error", "drop", "keep_start", "keep_end"]
Boundary = Literal["split", "error", "join"]

OFFSETS = ("starts", "ends", "turns")  # columns that only `offsets=True` keeps
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
        "cut": pl.UInt32(),  # tokens left out by a budget: of a prompt any, of a response those of its content
    }
)


def check_options(
    max_prompt_tokens: int | None,
    prompt_overflow: str,
    max_tokens: int | None,
    boundary: str,
    score_reasoning: bool,
) -> None:
    """Raise ConfigError where a budget or a choice breaks its rule."""
    check(isinstance(score_reasoning, bool), "score_reasoning", score_reasoning, "true or false")
    for name, limit in (("max_prompt_tokens", max_prompt_tokens), ("max_tokens", max_tokens)):
        if limit is not None:
            check_number(name, limit, whole=True)
        check(limit is None or limit > 0, name, limit, "at least 1", "or None for no limit")
    for name, value, kind in (("prompt_overflow", prompt_overflow, PromptOverflow), ("boundary", boundary, Boundary)):
        check(value in get_args(kind), name, value, " or ".join(map(repr, get_args(kind))))
    check(
        prompt_overflow == "error" or max_prompt_tokens is not None,
        "max_prompt_tokens",
        max_prompt_tokens,
        f"set where prompt_overflow is {prompt_overflow!r}",
    )
