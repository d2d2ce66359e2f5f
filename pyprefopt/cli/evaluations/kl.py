"""`pyprefopt evaluate kl PAIRS --policy P --ref R --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyprefopt.cli.evaluations.accuracy import Compared, read_compared
from pyprefopt.ranks import is_main


@dataclass(frozen=True, kw_only=True)
class Kl(Compared):
    """KL(policy || ref) and KL(ref || policy) over the vocabulary, by position in the responses."""

    ref: str  # what the policy is compared with; of the same tokenizer
    plots: bool = True  # figures as PNG and SVG, which need matplotlib (pip install 'pyprefopt[analysis]')


EXAMPLE = "pyprefopt evaluate kl pairs.jsonl --policy runs/dpo/policy --ref MODEL --out kl"


def run(argv: Sequence[str]) -> None:
    """Measure by the options, and print the means."""
    given = read_compared("kl", Kl, EXAMPLE, argv)

    from pyprefopt.pipeline.evaluations.compare import evaluate_kl

    found = evaluate_kl(**given)
    if is_main():
        print(found)
