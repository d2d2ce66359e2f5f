"""What the tokenization decided about reasoning, ends of turn, special tokens and prompts, told once with counts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pyprefopt.errors import agreeing, counted, option

logger = logging.getLogger("pyprefopt")

_SCORED = "have reasoning, which is scored as answers are; {} leaves it unscored"
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
        "have reasoning that the chat template takes out of the last answer, or puts behind an empty one: it is "
        "tokenized as a model writes it",
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
    "scores_reversed": (
        "row",
        "have a chosen response whose score is below the rejected one's (first in row {first_reversed_row:,}): chosen "
        "is learned all the same; see which of the two is meant",
    ),
}


FIRST_REVERSED = "first_reversed_row"  # stands among the counts


class SpecialToken(NamedTuple):
    """The first special token that stands in a content."""

    row: int
    field: str
    token: str

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> SpecialToken | None:
        """The one that a manifest or a record holds."""
        found = manifest["special_token"]
        return None if found is None else cls(**{name: found[name] for name in cls._fields})

    @classmethod
    def first_of(cls, found: Iterable[SpecialToken | None]) -> SpecialToken | None:
        """That of the first row."""
        return min((one for one in found if one is not None), default=None)

    @property
    def described(self) -> str:
        """What it is to a model, and what may be done about it."""
        return (
            f"hold special tokens (first in row {self.row}, {self.field}: '{self.token}'): to a model they are no "
            "text, but end a turn or begin one, as with transformers; take them out of the data where that is not meant"
        )


def add_notes(notes: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums of counts by name, and the first of rows; counts of nothing are left out."""
    sums: Counter[str] = Counter()
    rows = []
    for counts in notes:
        sums.update(counts)
        rows += [counts[FIRST_REVERSED]] if FIRST_REVERSED in counts else []
    found = {name: count for name, count in sorted(sums.items()) if count and name != FIRST_REVERSED}
    return found | ({FIRST_REVERSED: min(rows)} if rows else {})


def describe_notes(notes: Mapping[str, int], special: SpecialToken | None, *, score_reasoning: bool) -> Iterator[str]:
    """A sentence each count that there is: what it counts, what was done, and what may be done about it."""
    if notes.get("reasoning"):
        said = _SCORED.format(option("score_reasoning", False)) if score_reasoning else _UNSCORED
        yield _said(notes["reasoning"], "response", said)
    for name, (what, said) in _WARNINGS.items():
        if notes.get(name):
            yield _said(notes[name], what, said.format(**notes))
    if special is not None:
        yield _said(notes["special_tokens"], "content", special.described)


def _said(count: int, what: str, said: str) -> str:
    """`2 rows have …`, `1 row has …`."""
    verb, _, rest = said.partition(" ")
    return f"{counted(count, what)} {verb if verb == 'ended' else agreeing(count, verb)} {rest}"


def log_notes(
    notes: Mapping[str, int], special: SpecialToken | None, *, score_reasoning: bool, source: str = ""
) -> None:
    """Warn of each count once; that there is reasoning which is scored is no more than worth knowing."""
    where = f"{source}: " if source else ""
    for line in describe_notes(notes, special, score_reasoning=score_reasoning):
        usual = line.endswith(_SCORED.removeprefix("have ").format(option("score_reasoning", False)))
        logger.log(logging.INFO if usual else logging.WARNING, "%s%s", where, line)
