"""`pyprefopt truncate IN --ratio 0.5 --out OUT`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pyprefopt.cli.options import read_options
from pyprefopt.data.reading.catalog import names_of
from pyprefopt.data.truncation.rule import RatioBase, Rounding, Unit
from pyprefopt.log import show_log
from pyprefopt.settings.command_line import loose_words

FORMATS = ", ".join(names_of("preferences", "candidates"))


@dataclass(frozen=True, kw_only=True)
class Truncate:
    """Keep the first part of every response of a file; the rest of each row stays as it is."""

    # a .jsonl, .json, .csv, .tsv (each also .gz, .zst, .bz2 or .xz), .parquet, .arrow or .feather file of pairs
    # (prompt/chosen/rejected, UltraFeedback, HH-RLHF, SHP, ShareGPT, Alpaca) or candidates; of any rows with --columns;
    # Parquet and Arrow also of segments
    input: str = loose_words("IN")
    out: str | None = None  # file to write, of any of these kinds; None: IN.truncated.*
    ratio: float | None = None  # share of each response that is kept; (0, 1]
    length: int | None = None  # units of each response that are kept
    tokens: int | None = None  # short for --length in tokens
    unit: Unit = "tokens"  # what is counted
    rounding: Rounding | None = None  # how a share becomes a number of units; None: ceil
    ratio_base: RatioBase | None = None  # of the response, or the row's shortest; None: own
    cut_end: Literal["none", "template"] = "none"  # template: a cut response still ends its turn
    format: str = field(default="auto", metadata={"help": f"of the rows: {FORMATS}; auto: by schema"})
    tokenizer: str | None = None  # directory, hub name or tokenizer.json, where tokens are counted
    # text or message columns to cut, by name or as chosen=good rejected=bad; None: the responses of the row's format
    columns: tuple[str, ...] | None = None
    overwrite: bool = False  # replace the file that is written, where it is there


def run(argv: Sequence[str]) -> None:
    """Cut by the options, and print where the result is."""
    given = vars(read_options(Truncate, argv)).copy()
    show_log()

    from pyprefopt.data.truncation.dispatch import truncate

    print(truncate(given.pop("input"), **given))
