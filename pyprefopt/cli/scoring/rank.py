"""`pyprefopt rank IN --reward_model RM --out OUT`; what `deepspeed scripts/rank.py` runs on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyprefopt.cli.options import read_some, start_command
from pyprefopt.ranks import is_main
from pyprefopt.settings.command_line import loose_words, nested
from pyprefopt.stages.scoring.limits import UNTRAINED, WHOLE

if TYPE_CHECKING:
    from pyprefopt.settings.config import RunConfig

FIXED = {"method": "reward", **UNTRAINED}
NAMES = (
    "tokenizer", "eos_token", "chat_template", "trust_remote_code", "columns", "format", "on_error",
    "max_prompt_tokens", "prompt_overflow", "max_tokens", "score_reasoning", "output_dir", "overwrite", "cache",
    "dtype", "max_tokens_per_batch", "layout", "attention", "threads", "log_level", "progress_bar",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Scores of all responses of a file by a reward model: pyprefopt rank IN --reward_model RM --out OUT [settings]."""

    input: str = loose_words("IN")  # a file of pairs, of candidates, or of a response a row, in any known format
    # directory or hub name of a sequence classifier with one output: of --method reward, or of transformers'
    # AutoModelForSequenceClassification; with its own tokenizer and chat template
    reward_model: str = field(metadata={"metavar": "RM"})
    # the file to write, .jsonl, .json, .csv, .tsv, .parquet or .arrow: the rows of IN as they are, and behind them
    # score_chosen and score_rejected, or scores (candidates), or score
    out: str = field(metadata={"metavar": "OUT"})
    prefix: str = ""  # before the names of what is written, where IN has such columns: --prefix rm_


USAGE = f"""{Rank.__doc__} For example:
  pyprefopt rank pairs.jsonl --reward_model runs/reward/policy --out ranked.jsonl
  pyprefopt rank candidates.parquet --reward_model owner/name --dtype bfloat16 --out ranked.parquet

and, as for pyprefopt train (pyprefopt train --help explains each; defaults here are max_prompt_tokens
{WHOLE["max_prompt_tokens"]} and max_tokens {WHOLE["max_tokens"]}):
  {", ".join(NAMES)}"""


def run(argv: Sequence[str]) -> None:
    """Score by the options."""
    config, (out, prefix) = start_command(Rank, USAGE, argv, parse)

    from pyprefopt.pipeline.rank import rank

    facts = rank(config, out, prefix=prefix)
    if is_main():
        told = f"{out}: {', '.join(facts['columns'])}; {facts['scored']:,} of {facts['rows']:,} rows scored"
        if "accuracy" in facts:
            told += (
                f"; chosen scored higher in {facts['accuracy']:.2%} (ties {facts['ties']:,}), "
                f"mean margin {facts['mean_margin']:+.4f}"
            )
        print(told)


def parse(argv: Sequence[str]) -> tuple[RunConfig, tuple[str, str]]:
    """The run's settings; and where the rows go, with what their new columns' names begin with."""
    from pyprefopt.settings.resolve import configure

    given = read_some("rank", argv, Rank, names=NAMES, fixed=FIXED)
    own = {name: given.pop(name) for name in ("input", "reward_model", "out")}
    prefix = given.pop("prefix", "")
    named = {"data": own["input"], "model": own["reward_model"]}
    return configure(**nested({"output_dir": "runs/rank", **WHOLE, **given, **FIXED, **named})), (own["out"], prefix)
