"""`pyprefopt evaluate NAME …`: what models say of given responses; what `deepspeed scripts/evaluate.py` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyprefopt.cli.options import on_all_ranks, read_options, read_part
from pyprefopt.errors import ConfigError, did_you_mean
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
class _Models:
    data: tuple[str, ...] = loose_words("PAIRS")  # in any known format: file, folder, glob or prepared folder
    policy: str  # checkpoint, hub name or config.json; its tokenizer counts the tokens
    out: str = field(metadata={"metavar": "DIR"})  # folder of the results; not that of a run


@dataclass(frozen=True, kw_only=True)
class Accuracy(_Models):
    """How often the beginning of both responses ranks a pair as the data does, by ratio and by length."""

    ref: str | None = None  # what the policy is compared with; left out for signal logprob
    ratios: tuple[float, ...] = RATIOS  # shares of each response's tokens
    lengths: tuple[int, ...] = LENGTHS  # tokens of each response
    signal: str = "logratio"  # of a token: logratio is log π - log π_ref, logprob is log π
    ratio_base: str = "own"  # ratio of each response's length, or (shared_min) of the pair's shorter one
    rounding: str = "ceil"  # of ratio times length: ceil or floor
    normalize: str = "sum"  # of a response's tokens: sum or mean
    within: float = WITHIN  # accuracy that may be missing where a prefix is enough
    by: str | None = None  # column of the data; the same table for each of its values
    plots: bool = True  # figures as PNG and SVG, which need matplotlib (pip install 'pyprefopt[analysis]')


@dataclass(frozen=True, kw_only=True)
class Kl(_Models):
    """KL(policy || ref) and KL(ref || policy) over the vocabulary, by position in the responses."""

    ref: str  # what the policy is compared with; of the same tokenizer
    plots: bool = True  # figures as PNG and SVG, which need matplotlib (pip install 'pyprefopt[analysis]')


def run(argv: Sequence[str]) -> None:
    """Run the evaluation that the first word names; without one, list them."""
    words = [word for word in argv if not word.startswith("--local_rank")]
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
    name, rest = words[0], words[1:]
    show_log()
    with on_all_ranks():
        if name not in KINDS:
            raise ConfigError(f"unknown evaluation '{name}'{did_you_mean(name, KINDS)}; there are {', '.join(KINDS)}")
    cls, evaluate, example = KINDS[name]
    if {"-h", "--help"} & set(rest):  # without what loads the settings of a run
        read_options(cls, ["--help"], about=_usage(cls, example))
    found = evaluate(rest)
    if is_main():
        print(found)


def _accuracy(words: Sequence[str]) -> Any:
    from pyprefopt.pipeline.evaluate import evaluate_accuracy

    given = _read("evaluate accuracy", words, Accuracy)
    with on_all_ranks():
        cuts = Cuts(**{name: given.pop(name) for name in Cuts.__dataclass_fields__ if name in given})
    return evaluate_accuracy(**given, cuts=cuts)


def _kl(words: Sequence[str]) -> Any:
    from pyprefopt.pipeline.evaluate import evaluate_kl

    return evaluate_kl(**_read("evaluate kl", words, Kl))


def _read(command: str, words: Sequence[str], cls: type) -> dict[str, Any]:
    from pyprefopt.pipeline.evaluate import FIXED

    with on_all_ranks():
        given = nested(read_part(command, words, cls, names=NAMES, fixed=FIXED))
    show_log(given.get("log_level", "info"))
    return given


def _usage(cls: type, example: str) -> str:
    return f"""{cls.__doc__} For example:
  {example}

and, as for pyprefopt train (pyprefopt train --help explains each):
  {", ".join(NAMES)}"""


def _overview() -> str:
    width = max(map(len, KINDS))
    lines = [f"  {name:{width}}  {cls.__doc__}" for name, (cls, _, _) in KINDS.items()]
    return "\n".join(
        [
            "usage: pyprefopt evaluate NAME …        (under DeepSpeed: deepspeed scripts/evaluate.py NAME …)",
            "",
            *lines,
            "",
            "pyprefopt evaluate NAME --help lists the options of one.",
        ]
    )


KINDS: dict[str, tuple[type, Callable[[Sequence[str]], Any], str]] = {
    "accuracy": (
        Accuracy,
        _accuracy,
        "pyprefopt evaluate accuracy pairs.jsonl --policy runs/dpo/policy --ref MODEL --out accuracy",
    ),
    "kl": (Kl, _kl, "pyprefopt evaluate kl pairs.jsonl --policy runs/dpo/policy --ref MODEL --out kl"),
}
