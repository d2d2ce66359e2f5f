"""`pyprefopt evaluate kl PAIRS --policy P --ref R --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pyprefopt.cli.evaluations.accuracy import Compared, read_compared
from pyprefopt.cli.options import on_all_ranks
from pyprefopt.errors import ConfigError
from pyprefopt.ranks import is_main


@dataclass(frozen=True, kw_only=True)
class Kl(Compared):
    """KL(policy || ref) and KL(ref || policy) over the vocabulary, by position in the responses."""

    ref: str  # what the policy is compared with; of the same tokenizer
    # whose responses: those of the pairs, or what policy or ref generates to the prompts (PAIRS may be a file of
    # prompts then)
    along: Literal["data", "policy", "ref"] = "data"
    samples: int = 1  # of each prompt, generated
    temperature: float = 1.0  # of generated ones
    top_p: float = 1.0  # of generated ones
    max_new_tokens: int = 512  # of a generated one
    plots: bool = True  # figures as PNG and SVG, which need matplotlib (pip install 'pyprefopt[analysis]')


EXAMPLE = (
    "pyprefopt evaluate kl pairs.jsonl --policy runs/dpo/policy --ref MODEL --out kl\n  "
    "pyprefopt evaluate kl prompts.jsonl --policy P --ref R --along policy --out kl"
)
DRAWN = ("temperature", "top_p", "max_new_tokens")


def run(argv: Sequence[str]) -> None:
    """Measure by the options, and print the means."""
    given = read_compared("kl", Kl, EXAMPLE, argv)
    with on_all_ranks():
        named = [name for name in ("samples", *DRAWN) if name in given]
        if named and given.get("along", "data") == "data":
            raise ConfigError(f"{named[0]} applies to generated responses; add --along policy or ref, or leave it out")

        from pyprefopt.generation.sampler import Sampling

        drawn = {name: given.pop(name) for name in DRAWN if name in given}
        if drawn:
            given["sampling"] = Sampling(**drawn)

    from pyprefopt.pipeline.evaluations.kl import evaluate_kl

    found = evaluate_kl(**given)
    if is_main():
        print(found)
