"""`pyprefopt score IN --rewards NAME --out OUT`; what `deepspeed scripts/score.py` runs on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyprefopt.cli.options import read_some, start_command
from pyprefopt.ranks import is_main
from pyprefopt.settings.command_line import loose_words, nested

if TYPE_CHECKING:
    from pyprefopt.settings.config import RunConfig

METHOD = "tgdpo"  # one that takes token rewards of any provider as they are; no policy is trained
SECTIONS = ("rewards", "base", "oracle")
NAMES = (
    "model", "tokenizer", "eos_token", "chat_template", "trust_remote_code", "policy_init", "columns", "format",
    "on_error", "max_prompt_tokens", "prompt_overflow", "max_tokens", "min_response_tokens", "score_reasoning",
    "output_dir", "overwrite",
    "cache", "seed", "dtype", "zero_stage", "max_tokens_per_batch", "layout", "attention", "threads", "log_level",
    "progress_bar",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Score:
    """Token rewards of all responses of a set: pyprefopt score IN --rewards NAME --out OUT [settings]."""

    input: tuple[str, ...] = loose_words("IN")  # data in any known format: file, folder, glob or prepared folder
    # a .parquet file (a line a response: row, segment, kind, ids, mask, starts, ends, rewards), or for a
    # prepared folder also a folder of values (row, segment, values)
    out: str = field(metadata={"metavar": "OUT"})


USAGE = f"""{Score.__doc__} For example:
  pyprefopt score pairs.jsonl --rewards random --model DIR --out rewards.parquet

  --rewards NAME   dpo (default), simpo, contrastive, strong_weak, column or random; --rewards.beta and so on
  --model M        where base and oracle are trained from; the model that contrastive prompts are put to
  --base, --oracle ready checkpoints instead; --base.learning_rate, --oracle.loss.beta and so on where they are trained

and, as for pyprefopt train (pyprefopt train --help explains each):
  {", ".join(NAMES)}"""


def run(argv: Sequence[str]) -> None:
    """Score by the options."""
    config, out = start_command(Score, USAGE, argv, parse)

    from pyprefopt.pipeline.score import score

    facts = score(config, out)
    if is_main():
        sides = ("chosen", "rejected")
        shown = (f"{side} {facts[side]['mean_reward']:+.4g} (sd {facts[side]['std_reward']:.4g})" for side in sides)
        print(f"{out}: rewards {config.rewards.name}; mean of a token: {', '.join(shown)}")


def parse(argv: Sequence[str]) -> tuple[RunConfig, str]:
    """The run's settings and where the rewards go."""
    from pyprefopt.settings.resolve import configure

    fixed = {"method": METHOD, "eval_ratio": 0.0}
    given = read_some("score", argv, Score, names=NAMES, sections=SECTIONS, fixed=fixed)
    source, out = given.pop("input"), given.pop("out")
    return configure(**nested({"output_dir": "runs/score"} | given | fixed | {"data": source})), out
