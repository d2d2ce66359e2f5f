"""What a source holds, found from its files' names and its first block, for people to read."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa

from pyprefopt.data import _native
from pyprefopt.data.reading.formats import detected, texts_of, weight_fields

SHOWN_CHARS = 60
_MEANING = {  # field -> what it is taken as
    **dict.fromkeys(("prompt", "conversations", "history", "instruction"), "prompt"),
    **dict.fromkeys(("chosen", "human_ref_A"), "chosen response"),
    **dict.fromkeys(("rejected", "human_ref_B"), "rejected response"),
    **dict.fromkeys(("responses", "completions", "candidates"), "responses"),
    **dict.fromkeys(("scores", "ratings", "score", "rating"), "scores"),
    **dict.fromkeys(("score_chosen", "chosen_score", "chosen-rating", "score_A"), "score of the chosen response"),
    **dict.fromkeys(
        ("score_rejected", "rejected_score", "rejected-rating", "score_B"), "score of the rejected response"
    ),
    **dict.fromkeys(("response", "completion", "output"), "response"),
    **dict.fromkeys(("template_kwargs", "chat_template_kwargs"), "variables of the chat template"),
    **dict.fromkeys(("chosen_complete", "rejected_complete"), "whether the response ends"),
    "messages": "prompt and response",
    "input": "prompt, after the instruction",
    "labels": "1: A is chosen, 0: B",
    "system": "system message",
    "tools": "tools",
    "row": "left out (rows are counted anew)",
}
_RANKED = (
    "every row is taken as an SFT example, whatever its score; data.read_candidates and --method rrhf take such rows "
    "as candidates (format candidate_rows), one set of each prompt"
)
_WEIGHTS = {  # beside the fields of the format
    "chosen_weights": "weights of the chosen response's tokens",
    "rejected_weights": "weights of the rejected response's tokens",
    "responses_weights": "weights of the responses' tokens",
    "response_weights": "weights of the response's tokens",
}
_OTHERWISE = {  # where a format takes a field for something else
    ("hh", "chosen"): "prompt and chosen response",
    ("hh", "rejected"): "prompt and rejected response",
    ("ultrafeedback", "chosen"): "prompt and chosen response",
    ("ultrafeedback", "rejected"): "prompt and rejected response",
    ("ultrafeedback", "prompt"): "left out (the chats hold it)",
    ("shp", "human_ref_A"): "chosen or rejected response",
    ("shp", "human_ref_B"): "chosen or rejected response",
    ("shp", "score_A"): "score of A",
    ("shp", "score_B"): "score of B",
    ("alpaca", "output"): "chosen and rejected response",
    ("alpaca", "history"): "prompt, earlier turns",
    ("instruction", "history"): "prompt, earlier turns",
    ("messages", "conversations"): "prompt and response",
}


def describe_rows(
    rows: pa.Array | pa.Table,
    frame: pl.DataFrame,
    format: str,  # noqa: A002
    kind: str,
) -> dict[str, Any]:
    """What the rows of a first block hold: `rows` as they came, `frame` those of them that can be used.

    Returns:
        with_system, with_tools, multi_turn (rows that have them), fields (name -> what it is taken as), carried (fields
        kept as they are), hint (None, or how else the rows may be read), and first_row: the roles and the beginning of
        each message of the first row that can be used.
    """
    names = _fields(rows, format, kind)
    return {
        "with_system": _count(frame, pl.col("prompt").list.eval(_role() == "system").list.any()),
        "with_tools": _count(frame, pl.col("tools").is_not_null()),
        "multi_turn": _count(frame, pl.col("prompt").list.eval(_role() == "assistant").list.any()),
        "fields": {name: meaning for name, meaning in names.items() if meaning is not None},
        "carried": [name for name, meaning in names.items() if meaning is None],
        "hint": _RANKED if format == "prompt_response" and _is_ranked(rows) else None,
        "first_row": _first_row(frame),
    }


def _is_ranked(rows: pa.Array | pa.Table) -> bool:
    """Whether rows that are read as instructions could be candidates, one a row."""
    return detected(rows, ["candidate_rows"])[0] is not None


def _fields(rows: pa.Array | pa.Table, format: str, kind: str) -> dict[str, str | None]:  # noqa: A002
    names = (
        rows.column_names
        if isinstance(rows, pa.Table)
        else _native.detect_format(texts_of(rows, [format]), [format])[1]
    )
    taken = _native.format_fields(format)
    meant = {name: _OTHERWISE.get((format, name), _MEANING[name]) for name in names if name in taken}
    weights = {name: _WEIGHTS[name] for name in weight_fields(kind)}
    return {name: meant.get(name, weights.get(name)) for name in names}


def _role() -> pl.Expr:
    return pl.element().struct.field("role")


def _count(frame: pl.DataFrame, condition: pl.Expr) -> int:
    return int(frame.select(condition.sum()).item())


def _first_row(frame: pl.DataFrame) -> dict[str, list[str]]:
    """`user: How do I …` for each message; of several responses each."""
    shown: dict[str, list[str]] = {}
    for name in ("prompt", "chosen", "rejected", "response", "responses"):
        if name not in frame.columns or frame.is_empty():
            continue
        messages = frame[name].head(1).explode()
        messages = messages.explode() if name == "responses" else messages
        roles, contents = messages.struct.field("role"), messages.struct.field("content")
        shown[name] = [_line(role, content) for role, content in zip(roles, contents, strict=True)]
    return shown


def _line(role: str, content: str) -> str:
    words = " ".join(content[: 4 * SHOWN_CHARS].split())
    return f"{role}: {words[:SHOWN_CHARS]}{'…' if len(words) > SHOWN_CHARS else ''}"
