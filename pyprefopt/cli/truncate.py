"""`pyprefopt truncate IN --ratio 0.5 --out OUT`."""

from __future__ import annotations

from collections.abc import Sequence

from pyprefopt.cli.arguments import Parser, flag
from pyprefopt.data.reading.catalog import names_of


def parser() -> Parser:
    """The options."""
    made = Parser("truncate", "Keep the first part of every response of a file; the rest of each row stays as it is.")
    made.add_argument(
        "input",
        metavar="IN",
        help="a .jsonl, .json, .csv, .tsv (each also .gz, .zst, .bz2 or .xz), .parquet, .arrow or .feather file of "
        "pairs (prompt/chosen/rejected, UltraFeedback, HH-RLHF, SHP, ShareGPT, Alpaca) or candidates; of any rows with "
        "--columns; Parquet and Arrow also of segments",
    )
    made.option("out", "file to write, of any of these kinds; None: IN.truncated.*", metavar="OUT")
    made.option("ratio", "share of each response that is kept; (0, 1]", type=float)
    made.option("length", "units of each response that are kept", type=int)
    made.option("tokens", "short for --length in tokens", type=int)
    made.option("unit", "what is counted", choices=("tokens", "characters", "words", "sentences"), default="tokens")
    made.option("rounding", "how a share becomes a number of units; None: ceil", choices=("ceil", "floor"))
    made.option(
        "ratio_base", "what a ratio is of: the response, or the row's shortest; None: own",
        choices=("own", "shared_min"),
    )  # fmt: skip
    made.option("cut_end", "template: a cut response still ends its turn", choices=("none", "template"), default="none")
    formats = ", ".join(names_of("preferences", "candidates"))
    made.option("format", f"of the rows: {formats}; auto: by schema", default="auto", metavar="FORMAT")
    made.option("tokenizer", "directory, hub name or tokenizer.json, where tokens are counted")
    made.option("columns", "text or message columns to cut; None: the responses of the row's format", nargs="+")
    made.option("overwrite", "replace the file that is written, where it is there", **flag())
    return made


def run(argv: Sequence[str]) -> None:
    """Cut as the options say, and print where the result is."""
    given = parser().read(argv)

    from pyprefopt.data.truncation.dispatch import truncate

    print(truncate(given.pop("input"), **given))
