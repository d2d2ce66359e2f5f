"""`pyprefopt pairs CANDIDATES --pick best_worst --out OUT`, and `pyprefopt pairs PROMPTS --model M --out OUT`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyprefopt.cli.options import on_all_ranks, read_options, read_some
from pyprefopt.errors import ConfigError, counted
from pyprefopt.log import show_log
from pyprefopt.ranks import is_main
from pyprefopt.settings.command_line import loose_words, nested
from pyprefopt.stages.scoring.limits import UNTRAINED

FIXED = {"method": "dpo", **UNTRAINED, "on_policy_rounds": 1}
NAMES = (
    "tokenizer", "eos_token", "chat_template", "trust_remote_code", "output_dir", "dtype", "max_tokens_per_batch",
    "layout", "attention", "threads", "log_level", "progress_bar",
)  # fmt: skip
DRAWN = ("samples", "temperature", "top_p", "max_new_tokens", "reward_model")  # options that need --model


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Preference pairs of candidates, picked by their scores; with --model, of what it generates to prompts.

    Pairs of equal scores or equal texts are left out, and counted by reason.
    """

    # files of candidates with scores: responses and scores (of pyprefopt rank, too), completions of UltraFeedback's raw
    # set, all_generated_responses and all_rm_scores, or one response a row with its score. With --model: of prompts
    input: tuple[str, ...] = loose_words("CANDIDATES | PROMPTS")
    out: str = field(metadata={"metavar": "OUT"})  # file to write: .jsonl, .parquet, or another kind that is read
    # the best against the worst, or against a random one below it; every two of other scores (all), or all that are
    # --margin apart (margin)
    pick: Literal["best_worst", "best_random", "all", "margin"] = "best_worst"
    margin: float | None = None  # least difference of a pair's scores; None: any but 0
    # of UltraFeedback's raw set: the ratings of helpfulness, honesty, instruction_following or truthfulness are the
    # scores; None: overall_score
    aspect: str | None = None
    columns: tuple[str, ...] = ()  # columns of other names, as responses=answers scores=rm_scores (ours=yours)
    seed: int = 0  # of --pick best_random, and of what --model generates
    on_error: Literal["raise", "skip"] = "raise"  # bad rows: report all and stop, or leave them out
    overwrite: bool = False  # replace the file that is written, where it is there
    model: str | None = field(default=None, metadata={"metavar": "M"})  # generates the candidates; checkpoint
    samples: int = 5  # of --model to each prompt
    temperature: float = 0.8  # of --model: logits are divided by it
    top_p: float = 0.95  # of --model: tokens are drawn from the most probable ones that together have so much
    max_new_tokens: int = 512  # of a sample of --model
    # ranks the samples of --model; directory or hub name with its own tokenizer; embedded:rule: the embedded set's rule
    reward_model: str | None = field(default=None, metadata={"metavar": "RM"})
    # file of row, sample and score for each sample of --model, or of CANDIDATES that pyprefopt generate wrote
    scores: str | None = field(default=None, metadata={"metavar": "FILE"})


USAGE = f"""{Pairs.__doc__}
For example:
  pyprefopt pairs candidates.jsonl --pick best_worst --out pairs.jsonl
  pyprefopt pairs prompts.jsonl --model runs/dpo/policy --samples 5 --reward_model RM --out pairs.parquet

and, with --model, as for pyprefopt train (pyprefopt train --help explains each):
  {", ".join(NAMES)}"""


def run(argv: Sequence[str]) -> None:
    """Pick by the options, and print what was left out."""
    if {"-h", "--help"} & set(argv):
        read_options(Pairs, ["--help"], about=USAGE)
    show_log()
    if any(word == "--model" or word.startswith("--model=") for word in argv):
        _generate(argv)
        return
    given = vars(read_options(Pairs, argv)).copy()
    defaults = Pairs.__dataclass_fields__
    for name in DRAWN:
        if given.pop(name) != defaults[name].default:
            remedy = ", or score them first: pyprefopt rank" if name == "reward_model" else ""
            raise ConfigError(f"{name} applies to what a model generates; add --model, or leave it out{remedy}")
    given.pop("model")
    _pick(given)


def _pick(given: dict[str, Any]) -> None:
    from pyprefopt.data.files.writing import check_new, known_file
    from pyprefopt.data.reading.pairs import REASONS, pick_pairs, write_pairs

    out, overwrite, scores = given.pop("out"), given.pop("overwrite"), given.pop("scores")
    source, columns = list(given.pop("input")), given.pop("columns") or None
    inputs = [*source, *([] if scores is None else [scores])]
    check_new(known_file(Path(out)), *map(Path, inputs), overwrite=overwrite)
    if scores is None:
        picked = pick_pairs(source, columns=columns, **given)
    else:
        from pyprefopt.pipeline.generation.judging import pick_scored_samples

        rule = {name: given[name] for name in ("pick", "margin", "seed")}
        picked = pick_scored_samples(source, scores, **rule)
    write_pairs(picked, out, overwrite=overwrite)
    print(f"{out}: {counted(picked.pairs.height, 'pair')}")
    for reason, count in picked.left_out.items():
        print(f"  left out, {reason}: {count:,} {REASONS[reason]}")


def _generate(argv: Sequence[str]) -> None:
    from pyprefopt.settings.resolve import configure

    with on_all_ranks():
        given = read_some("pairs", argv, Pairs, names=NAMES, fixed=FIXED)
        if "aspect" in given:
            raise ConfigError("aspect is of given candidates; leave it out with --model")
        out, scores, overwrite = given.pop("out"), given.pop("scores", None), given.pop("overwrite", False)
        own = {name: given.pop(name) for name in (*DRAWN, "pick", "margin") if name in given}
        source = given.pop("input")
        settings = {"output_dir": "runs/pairs", **given, **FIXED, "data": source, "on_policy": own}
        config = configure(**nested(settings))
    show_log(config.log_level)

    from pyprefopt.pipeline.generation.pairs import make_on_policy_pairs

    made = make_on_policy_pairs(config, out, scores=scores, overwrite=overwrite)
    if is_main():
        print(made)
