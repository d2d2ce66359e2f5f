"""`pyprefopt study decoding PROMPTS --policy P --ref R --reward_model RM`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pyprefopt.cli.generation.generate import FIXED
from pyprefopt.cli.generation.generate import NAMES as GENERATE
from pyprefopt.cli.options import read_some, start_command
from pyprefopt.evaluation.decoding import LENGTHS, MIXING, THRESHOLDS
from pyprefopt.ranks import is_main
from pyprefopt.settings.command_line import loose_words, nested

NAMES = tuple(name for name in GENERATE if name != "overwrite")  # a study replaces its own table
DRAWN = ("temperature", "top_p", "max_new_tokens")
POINTS = ("a", "t", "b", "below")


@dataclass(frozen=True, kw_only=True)
class StudyDecoding:
    """Reward against divergence from the reference, for the decoders of two models (shallow signals, Fig. 4)."""

    data: tuple[str, ...] = loose_words("PROMPTS")  # a file of prompts, or of pairs or candidates, whose prompts count
    policy: str = field(metadata={"metavar": "P"})  # checkpoint, or a LoRA adapter that is put on --ref
    ref: str = field(metadata={"metavar": "R"})  # the policy's reference, of the same vocabulary
    # gives the rewards; directory or hub name with its own tokenizer; embedded:rule: the embedded set's rule
    reward_model: str = field(metadata={"metavar": "RM"})
    a: tuple[float, ...] = MIXING  # of mixing: the curve that the others are compared with
    t: tuple[int, ...] = LENGTHS  # of length control: tokens of the policy
    b: tuple[float, ...] = THRESHOLDS  # of the KL threshold, nats
    below: Literal["ref", "mixing"] = "ref"  # what leads where the divergence is not above b
    temperature: float = 1.0  # the logits that are drawn from are divided by it
    top_p: float = 1.0  # tokens are drawn from the most probable ones that together have so much
    samples: int = 1  # of each prompt and point
    max_new_tokens: int = 512  # of a sample
    kl: Literal["exact", "monte_carlo"] = "exact"  # of the threshold's step: over the vocabulary, or of tokens drawn
    kl_samples: int = 1000  # tokens of such an estimate
    plots: bool = True  # the figure as PNG and SVG, which need matplotlib (pip install 'pyprefopt[analysis]')


USAGE = f"""{StudyDecoding.__doc__} For example:
  pyprefopt study decoding prompts.jsonl --policy runs/dpo/policy --ref R --reward_model RM

and, as for pyprefopt train (pyprefopt train --help explains each):
  {", ".join(NAMES)}"""


def run(argv: Sequence[str]) -> None:
    """Run the study, and print its table."""
    config, given = start_command(StudyDecoding, USAGE, argv, parse)

    from pyprefopt.generation.sampler import Sampling
    from pyprefopt.studies.decoding import Decoders, run_decoding

    points = Decoders(**{name: given.pop(name) for name in POINTS if name in given})
    names = (*DRAWN, "kl", "kl_samples")
    sampling = Sampling(seed=config.seed, **{name: given.pop(name) for name in names if name in given})
    result = run_decoding(config, decoders=points, sampling=sampling, **given)
    if is_main():
        print(f"{result}\nstudy decoding: {result.output_dir}")


def parse(argv: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The run's settings, and the other options that were given."""
    from pyprefopt.settings.resolve import configure

    given = read_some("study decoding", argv, StudyDecoding, names=NAMES, fixed=FIXED)
    own = {name: given.pop(name) for name in StudyDecoding.__dataclass_fields__ if name in given}
    source, policy = own.pop("data"), own.pop("policy")
    settings = {"output_dir": "runs/study-decoding", **given, **FIXED, "data": source, "model": policy}
    return configure(**nested(settings)), own
