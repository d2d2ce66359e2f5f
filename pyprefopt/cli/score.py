"""`pyprefopt score IN --rewards NAME --out OUT`; what `deepspeed scripts/score.py` runs on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyprefopt.cli.ranks import alike, show_log
from pyprefopt.errors import ConfigError, did_you_mean
from pyprefopt.ranks import is_main

if TYPE_CHECKING:
    from pyprefopt.settings.config import RunConfig

METHOD = "tgdpo"  # one that takes token rewards of any provider as they are; no policy is trained
NAMES = (
    "model", "tokenizer", "eos_token", "chat_template", "trust_remote_code", "policy_init", "format", "on_error",
    "max_prompt_tokens", "prompt_overflow", "max_tokens", "output_dir", "overwrite", "cache", "seed", "dtype",
    "zero_stage", "max_tokens_per_batch", "layout", "attention", "threads",
)  # fmt: skip
FLAGS = ("trust_remote_code", "overwrite")  # those of them that may stand without a value
SECTIONS = ("rewards", "base", "oracle")
USAGE = f"""usage: pyprefopt score IN --rewards NAME --out OUT [settings]

Token rewards of all responses of a set. For example:
  pyprefopt score pairs.jsonl --rewards random --model DIR --out rewards.parquet

  IN               preference data in any known format (file, folder or glob), or a folder made by pyprefopt prepare
  --out OUT        a .parquet file (a line a response: row, segment, kind, ids, mask, starts, ends, rewards), or for a
                   prepared folder also a folder of values (row, segment, values)
  --rewards NAME   dpo (default), simpo, contrastive, strong_weak, column or random; --rewards.beta and so on
  --model M        where base and oracle are trained from; the model that contrastive prompts are put to
  --base, --oracle ready checkpoints instead; --base.learning_rate, --oracle.loss.beta and so on where they are trained

and, as for pyprefopt train (pyprefopt train --help explains each):
  {", ".join(NAMES)}"""


def run(argv: Sequence[str]) -> None:
    """Score as the options say."""
    if {"-h", "--help"} & set(argv):
        print(USAGE)
        return
    with alike():
        config, out = _parse(argv)
    show_log()

    from pyprefopt.pipeline.score import score

    facts = score(config, out)
    if is_main():
        sides = ("chosen", "rejected")
        shown = (f"{side} {facts[side]['mean_reward']:+.4g} (sd {facts[side]['std_reward']:.4g})" for side in sides)
        print(f"{out}: rewards {config.rewards.name}; mean of a token: {', '.join(shown)}")


def _parse(argv: Sequence[str]) -> tuple[RunConfig, str]:
    """The run's settings and where the rewards go."""
    from pyprefopt.settings.command_line import split
    from pyprefopt.settings.resolve import parse_args

    sources, words = _split_sources(argv)
    given = split(words)
    out = given.pop("out", [])
    for name in given:
        if name not in NAMES and name.partition(".")[0] not in SECTIONS:
            known = (*SECTIONS, "out", *NAMES)
            raise ConfigError(
                f"{name} is no setting of score{did_you_mean(name, known)}; it takes {', '.join(NAMES)}, and those of "
                f"{', '.join(SECTIONS)}"
            )
    if len(sources) > 1:
        raise ConfigError(f"IN must be one file, folder or glob in quotes, got {' and '.join(sources)}; leave out one")
    if not sources or len(out) != 1:
        raise ConfigError("IN and --out OUT must be given; write pyprefopt score IN --rewards NAME --out OUT")
    fixed = {"method": [METHOD], "data": sources, "eval_ratio": ["0"]} | {"output_dir": ["runs/score"]}
    return parse_args([word for name, values in (fixed | given).items() for word in (f"--{name}", *values)]), out[0]


def _split_sources(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are no option's value, wherever they stand, and the others. An option takes one word."""
    sources: list[str] = []
    words: list[str] = []
    option = None  # the one before, if it still lacks its value
    for word in argv:
        if word.startswith("--"):
            option = None if "=" in word else word[2:].replace("-", "_")
            words.append(word)
        elif option is None or (option in FLAGS and word.lower() not in ("true", "false")):
            sources.append(word)
            option = None
        else:
            words.append(word)
            option = None
    return sources, words
