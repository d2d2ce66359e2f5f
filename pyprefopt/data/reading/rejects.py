"""Bad rows: one line each, with file, row, field, value, reason, rule and remedy. Reported together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import polars as pl

from pyprefopt.errors import ArtifactError, DataError, agreeing, check, counted, option
from pyprefopt.storage.files import atomic_write, explain_writing

REJECTS = pl.Schema(
    {
        "file": pl.String,  # where the row came from; <frame> for a Polars frame
        "row": pl.UInt64,  # position in the input, from 0
        "field": pl.String,  # where in the row, as chosen[1].content; empty: the row itself
        "value": pl.String,  # what stands there, at most 80 characters
        "reason": pl.String,  # slug, for counting
        "rule": pl.String,
        "remedy": pl.String,
    }
)
EXAMPLES = 3  # shown for each reason

TOO_SHORT = "response_too_short"
DROPPED = {  # the reasons of rows that a setting leaves out: they are counted, and not bad -> what they are
    "prompt_dropped": "whose prompts are longer than max_prompt_tokens (prompt_overflow drop)",
    TOO_SHORT: "which have a response of fewer tokens than min_response_tokens",
}

OnError = Literal["raise", "skip"]

logger = logging.getLogger("pyprefopt")


def no_rejects() -> pl.DataFrame:
    """An empty rejects frame."""
    return REJECTS.to_frame()


def count_rejects(rejects: pl.DataFrame) -> dict[str, int]:
    """Rows dropped by reason, most frequent first."""
    counts = rejects.group_by("reason").len().sort(["len", "reason"], descending=[True, False])
    return {reason: int(count) for reason, count in zip(counts["reason"], counts["len"], strict=True)}


def check_on_error(on_error: str, rejected_path: str | Path | None = None) -> None:
    """ConfigError for an unknown choice, and for a record of rows that are not left out."""
    check(on_error in ("raise", "skip"), "on_error", on_error, "'raise' or 'skip'")
    unused = rejected_path is not None and on_error == "raise"
    check(not unused, "rejected_path", str(rejected_path), "left out with on_error 'raise'", "pass on_error='skip'")


def report_rejects(rejects: pl.DataFrame, rows_in: int, on_error: OnError, rejected_path: str | Path | None) -> None:
    """Raise for bad rows, or warn how many are left out and why, and record them where a path is given."""
    if on_error == "raise":
        raise_for(rejects, rows_in)
        log_dropped(count_rejects(rejects), rows_in)
        return
    if rejected_path is not None:
        write_rejected(rejected_path, rejects)
    if not rejects.is_empty():
        counts = ", ".join(f"{reason}: {count:,}" for reason, count in count_rejects(rejects).items())
        are = agreeing(rejects.height, "are")
        where = f"recorded in {rejected_path}" if rejected_path else "rejected_path=… records them"
        logger.warning(
            "%s of %s %s left out (%s); %s", f"{rejects.height:,}", counted(rows_in, "row"), are, counts, where
        )


def bad_and_dropped(rejects: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The rows that are bad, and how many a setting leaves out that are not."""
    bad = rejects.filter(~pl.col("reason").is_in(list(DROPPED)))
    return bad, rejects.height - bad.height


def log_dropped(counts: Mapping[str, int], rows_in: int, where: str = "") -> None:
    """Warn how many rows settings leave out, if any, and `where` they are recorded."""
    for reason, what in DROPPED.items():
        if count := counts.get(reason, 0):
            logger.warning("%s of %s are left out, %s%s", f"{count:,}", counted(rows_in, "row"), what, where)


def raise_for(rejects: pl.DataFrame, rows_in: int, *, command: str | None = None, recorded: str | None = None) -> None:
    """Raise a DataError that counts the bad rows by reason and shows the first of each; nothing if there are none.

    Rows that a setting leaves out are not bad.

    Args:
        rejects: frame of schema REJECTS.
        rows_in: rows of the input, good and bad.
        command: the command that was given; it is shown with `--on_error skip` added.
        recorded: where the rows that are left out are then recorded; None: nowhere.
    """
    rejects, _ = bad_and_dropped(rejects)
    if rejects.is_empty():
        return
    lines = [f"{rejects.height:,} of {counted(rows_in, 'row')} cannot be used"]
    for reason, count in count_rejects(rejects).items():
        lines.append(f"  {reason}: {count:,}")
        first = rejects.filter(pl.col("reason") == reason).sort("row").head(EXAMPLES)
        lines.extend(_examples(first))
        if count > EXAMPLES:
            lines.append(f"    and {count - EXAMPLES:,} more")
    lines.append("Mend the rows, or drop them" + (f" (each is then recorded in {recorded}):" if recorded else ":"))
    lines.append(f"  {command} --on_error skip" if command else f"  {option('on_error', 'skip')}")
    raise DataError("\n".join(lines))


def first_bad_row(rejects: pl.DataFrame) -> str:
    """`row 3, chosen: "" - rule; remedy` of the first of the rejects; empty where there are none."""
    first = rejects.sort("row").head(1).with_columns(file=pl.lit(""))
    return "".join(_examples(first)).strip()


def _examples(rejects: pl.DataFrame) -> pl.Series:
    """`    FILE, row 3, chosen: "" - rule; remedy`, a line each."""
    file = pl.when(pl.col("file") != "").then(pl.col("file") + ", ").otherwise(pl.lit(""))  # a frame has no file
    where = pl.format("    {}row {}", file, "row") + pl.when(pl.col("field") != "").then(
        pl.format(", {}", "field")
    ).otherwise(pl.lit(""))
    shown = pl.struct("value").struct.json_encode().str.strip_prefix('{"value":').str.strip_suffix("}")
    return rejects.select(pl.format("{}: {} - {}; {}", where, shown, "rule", "remedy")).to_series()


def write_rejected(path: str | Path, rejects: pl.DataFrame) -> None:
    """Write the rejects as JSON lines; the file appears whole or not at all."""
    try:
        atomic_write(path, rejects.write_ndjson)
    except OSError as error:
        raise ArtifactError(explain_writing(error, path)) from error
