"""`pyprefopt evaluate rewardbench FILE … (--reward_model RM | --policy P --ref R) --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyprefopt.cli.options import read_some, start_command
from pyprefopt.cli.scoring.rank import FIXED, NAMES
from pyprefopt.errors import ConfigError
from pyprefopt.ranks import is_main
from pyprefopt.settings.command_line import loose_words, nested
from pyprefopt.stages.scoring.limits import WHOLE

if TYPE_CHECKING:
    import polars as pl

    from pyprefopt.settings.config import RunConfig

SETTINGS = tuple(name for name in NAMES if name not in ("columns", "format", "on_error", "overwrite"))


@dataclass(frozen=True, kw_only=True)
class RewardBench:
    """RewardBench by a reward model or a policy: pyprefopt evaluate rewardbench FILE … --reward_model RM --out DIR."""

    input: tuple[str, ...] = loose_words("FILE")  # published files of RewardBench 1 or 2; which, their columns tell
    # directory or hub name of a sequence classifier with one output, with its own tokenizer and chat template
    reward_model: str | None = field(default=None, metadata={"metavar": "RM"})
    # a language model in the place of a reward model: the reward is the sum of log pi_policy - log pi_ref
    policy: str | None = field(default=None, metadata={"metavar": "P"})
    ref: str | None = field(default=None, metadata={"metavar": "R"})  # the policy's reference
    # folder for rewardbench.csv (the numbers), rewardbench.jsonl (the scores), and, where output_dir is not given, the
    # stages
    out: str = field(metadata={"metavar": "DIR"})


USAGE = f"""{RewardBench.__doc__} For example:
  pyprefopt evaluate rewardbench filtered.parquet --reward_model runs/reward/policy --out runs/rewardbench
  pyprefopt evaluate rewardbench filtered.parquet --policy runs/dpo/policy --ref models/base --out runs/rewardbench

and, as for pyprefopt train (pyprefopt train --help explains each; defaults here are max_prompt_tokens
{WHOLE["max_prompt_tokens"]} and max_tokens {WHOLE["max_tokens"]}):
  {", ".join(SETTINGS)}"""


def run(argv: Sequence[str]) -> None:
    """Evaluate by the options, and print the numbers."""
    config, own = start_command(RewardBench, USAGE, argv, parse)

    from pyprefopt.pipeline.evaluations.rewardbench import evaluate_rewardbench

    numbers = evaluate_rewardbench(config, **own)
    if is_main():
        print(_format(numbers))


def parse(argv: Sequence[str]) -> tuple[RunConfig, dict[str, Any]]:
    """The run's settings, and what `evaluate_rewardbench` takes besides."""
    from pyprefopt.settings.resolve import configure

    given = read_some("evaluate rewardbench", argv, RewardBench, names=SETTINGS, fixed=FIXED)
    models = {name: given.pop(name, None) for name in ("reward_model", "policy", "ref")}
    files, out = given.pop("input"), given.pop("out")
    model = models["reward_model"] or models["policy"]
    if model is None:
        raise ConfigError("reward_model must be given, or policy and ref; pass --reward_model RM")
    fixed = {**FIXED, "on_error": "skip", "data": files, "model": model}  # a row without scores is refused at the end
    settings = {"output_dir": out, **WHOLE, **given, **fixed}
    return configure(**nested(settings)), {"files": files, "out": out, **models}


def _format(numbers: pl.DataFrame) -> str:
    """The numbers as a table, in percent."""
    from pyprefopt.pipeline.summary import align

    rows: list[tuple[str, ...]] = [("in percent", "rows", "score", "95 % interval", "longest", "shortest", "ties")]
    for line in numbers.iter_rows(named=True):
        shares = [f"{100 * line[name]:.2f}" for name in ("score", "longest", "shortest")]
        shares.insert(1, "" if line["low"] is None else f"{100 * line['low']:.2f} to {100 * line['high']:.2f}")
        title = line["name"] if line["kind"] == "subset" else f"{line['kind']} {line['name']}"
        rows.append((title, f"{line['rows']:,}", *shares, f"{line['ties']:,}"))
    return align(rows)
