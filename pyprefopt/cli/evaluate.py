"""`pyprefopt evaluate NAME …`: numbers of models on given responses; each is a file of `evaluations`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from pyprefopt.errors import ConfigError, did_you_mean

EVALUATIONS = {  # name -> what it does; each is a module of `pyprefopt.cli.evaluations` with `run(argv)`
    "accuracy": "how often the beginning of both responses ranks a pair as the data does, by ratio and by length",
    "kl": "KL(policy || ref) and KL(ref || policy) over the vocabulary, by position in the responses",
    "rewardbench": "RewardBench 1 and 2, by a reward model or by a policy and its reference",
}


def run(argv: Sequence[str]) -> None:
    """Run the evaluation that the first word names; without one, list them."""
    words = [word for word in argv if not word.startswith("--local_rank")]
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
    name = words[0]
    if name not in EVALUATIONS:
        near = did_you_mean(name, EVALUATIONS)
        raise ConfigError(f"unknown evaluation '{name}'{near}; there are {', '.join(EVALUATIONS)}")
    import_module(f"pyprefopt.cli.evaluations.{name}").run(words[1:])


def _overview() -> str:
    width = max(map(len, EVALUATIONS))
    lines = [f"  {name:{width}}  {text}" for name, text in EVALUATIONS.items()]
    usage = "usage: pyprefopt evaluate NAME …        (under DeepSpeed: deepspeed scripts/evaluate.py NAME …)"
    return "\n".join([usage, "", *lines, "", "pyprefopt evaluate NAME --help lists the options of one."])
