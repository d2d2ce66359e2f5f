"""What the tokenization decided about reasoning, ends of turn and generation prompts, told once with counts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from pyprefopt.errors import counted, option

logger = logging.getLogger("pyprefopt")

_SCORED = "have reasoning, which is scored as their answers are; {} leaves it unscored"
_UNSCORED = "have reasoning, which is not scored (score_reasoning false)"
_WARNINGS = {  # note -> what is counted, and what is said of it
    "prompts_cut": (
        "row",
        "have a prompt that ends before its generation prompt does: the chat template writes another beginning of the "
        "answer there than in the whole chat",
    ),
    "reasoning_dropped": (
        "response",
        "have reasoning that the chat template leaves out: it is not trained on; write it into the content, "
        "in <think> and </think>, or pass a chat_template that writes it",
    ),
    "reasoning_restored": (
        "response",
        "have reasoning that the chat template takes out of the last answer, or puts behind an empty one: they are "
        "tokenized with it as a model writes it",
    ),
    "ends_removed": (
        "response",
        "ended with the end of turn that the chat template writes anyway: it is taken off, so that one end is scored",
    ),
    "without_end": (
        "response",
        "have no end of turn, as the chat template writes none: the policy does not learn to stop; pass a "
        "chat_template that ends a turn",
    ),
}


def add_notes(notes: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums of counts by name; those of nothing are left out."""
    sums: Counter[str] = Counter()
    for counts in notes:
        sums.update(counts)
    return {name: count for name, count in sorted(sums.items()) if count}


def describe_notes(notes: Mapping[str, int], *, score_reasoning: bool) -> Iterator[str]:
    """A sentence each count that there is: what it counts, what was done, and what may be done about it."""
    if notes.get("reasoning"):
        said = _SCORED.format(option("score_reasoning", False)) if score_reasoning else _UNSCORED
        yield f"{counted(notes['reasoning'], 'response')} {said}"
    for name, (what, said) in _WARNINGS.items():
        if notes.get(name):
            yield f"{counted(notes[name], what)} {said}"


def log_notes(notes: Mapping[str, int], *, score_reasoning: bool, source: str = "") -> None:
    """Warn of each count once; that there is reasoning which is scored is no more than worth knowing."""
    where = f"{source}: " if source else ""
    for line in describe_notes(notes, score_reasoning=score_reasoning):
        usual = line.endswith(_SCORED.format(option("score_reasoning", False)))
        logger.log(logging.INFO if usual else logging.WARNING, "%s%s", where, line)
