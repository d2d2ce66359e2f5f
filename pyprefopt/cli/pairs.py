"""`pyprefopt pairs CANDIDATES --pick best_worst --out OUT`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pyprefopt.cli.options import read_options
from pyprefopt.errors import counted
from pyprefopt.log import show_log
from pyprefopt.settings.command_line import loose_words


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Preference pairs of candidates, picked by their scores.

    Pairs of equal scores or equal texts are left out, and counted by reason.
    """

    # files of candidates with scores: responses and scores (of pyprefopt rank, too), completions of UltraFeedback's raw
    # set, all_generated_responses and all_rm_scores, or one response a row with its score
    input: tuple[str, ...] = loose_words("CANDIDATES")
    out: str = field(metadata={"metavar": "OUT"})  # file to write: .jsonl, .parquet, or another kind that is read
    # the best against the worst, or against a random one below it; every two of other scores (all), or all that are
    # --margin apart (margin)
    pick: Literal["best_worst", "best_random", "all", "margin"] = "best_worst"
    margin: float | None = None  # least difference of a pair's scores; None: any but 0
    # of UltraFeedback's raw set: the ratings of helpfulness, honesty, instruction_following or truthfulness are the
    # scores; None: overall_score
    aspect: str | None = None
    columns: tuple[str, ...] = ()  # columns of other names, as responses=answers scores=rm_scores (ours=yours)
    seed: int = 0  # of --pick best_random
    on_error: Literal["raise", "skip"] = "raise"  # bad rows: report all and stop, or leave them out
    overwrite: bool = False  # replace the file that is written, where it is there


def run(argv: Sequence[str]) -> None:
    """Pick by the options, and print what was left out."""
    given = vars(read_options(Pairs, argv)).copy()
    show_log()

    from pyprefopt.data.reading.pairs import REASONS, pick_pairs, write_pairs

    out, overwrite = given.pop("out"), given.pop("overwrite")
    source, columns = list(given.pop("input")), given.pop("columns") or None
    picked = pick_pairs(source, columns=columns, **given)
    write_pairs(picked, out, overwrite=overwrite)
    print(f"{out}: {counted(picked.pairs.height, 'pair')}")
    for reason, count in picked.left_out.items():
        print(f"  left out, {reason}: {count:,} {REASONS[reason]}")
