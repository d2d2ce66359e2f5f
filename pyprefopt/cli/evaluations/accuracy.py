"""`pyprefopt evaluate accuracy PAIRS --policy P --ref R --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pyprefopt.cli.options import on_all_ranks, read_options, read_some
from pyprefopt.evaluation.accuracy import LENGTHS, RATIOS, WITHIN, Cuts
from pyprefopt.log import show_log
from pyprefopt.ranks import is_main
from pyprefopt.settings.command_line import loose_words, nested

NAMES = (
    "tokenizer", "eos_token", "chat_template", "trust_remote_code", "columns", "format", "on_error",
    "max_prompt_tokens", "prompt_overflow", "max_tokens", "score_reasoning", "cache", "dtype", "max_tokens_per_batch",
    "layout", "attention", "threads", "seed", "log_level", "progress_bar",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What both evaluations of a policy beside its reference are given."""

    data: tuple[str, ...] = loose_words("PAIRS")  # in any known format: file, folder, glob or prepared folder
    policy: str = field(metadata={"metavar": "P"})  # checkpoint or config.json; its tokenizer counts the tokens
    out: str = field(metadata={"metavar": "DIR"})  # folder of the results; not that of a run


@dataclass(frozen=True, kw_only=True)
class Accuracy(Compared):
    """How often the beginning of both responses ranks a pair as the data does, by ratio and by length."""

    ref: str | None = None  # what the policy is compared with; left out for signal logprob
    ratios: tuple[float, ...] = RATIOS  # shares of each response's tokens
    lengths: tuple[int, ...] = LENGTHS  # tokens of each response
    signal: Literal["logratio", "logprob"] = "logratio"  # of a token: logratio is log π - log π_ref, logprob is log π
    ratio_base: Literal["own", "shared_min"] = "own"  # ratio of each response's length, or of the pair's shorter one
    rounding: Literal["ceil", "floor"] = "ceil"  # of ratio times length
    normalize: Literal["sum", "mean"] = "sum"  # of a response's tokens
    within: float = WITHIN  # accuracy that may be missing where a prefix is enough
    by: str | None = None  # column of the data; the same table for each of its values
    plots: bool = True  # figures as PNG and SVG, which need matplotlib (pip install 'pyprefopt[analysis]')


EXAMPLE = "pyprefopt evaluate accuracy pairs.jsonl --policy runs/dpo/policy --ref MODEL --out accuracy"


def run(argv: Sequence[str]) -> None:
    """Measure by the options, and print the table."""
    given = read_compared("accuracy", Accuracy, EXAMPLE, argv)
    with on_all_ranks():
        cuts = Cuts(**{name: given.pop(name) for name in Cuts.__dataclass_fields__ if name in given})

    from pyprefopt.pipeline.evaluations.accuracy import evaluate_accuracy

    found = evaluate_accuracy(**given, cuts=cuts)
    if is_main():
        print(found)


def read_compared(name: str, own: type, example: str, argv: Sequence[str]) -> dict[str, Any]:
    """What the words give of the options in `own` and of the settings in NAMES; --help prints and ends."""
    if {"-h", "--help"} & set(argv):  # without what loads the settings of a run
        about = f"{own.__doc__} For example:\n  {example}"
        names = f"as for pyprefopt train (pyprefopt train --help explains each):\n  {', '.join(NAMES)}"
        read_options(own, ["--help"], about=f"{about}\n\nand, {names}")
    show_log()

    from pyprefopt.pipeline.evaluations.opening import FIXED

    with on_all_ranks():
        given = nested(read_some(f"evaluate {name}", argv, own, names=NAMES, fixed=FIXED))
    show_log(given.get("log_level", "info"))
    return given
