"""Random segments for the tests of this room, as the twin's groups and as frames."""

from __future__ import annotations

import polars as pl
from hypothesis import strategies as st

from pyprefopt.data.store.segments import SegmentStore
from tests.reference.packing import Group, Response

VALUES = ("token_rewards", "ref_logps", "user_weights")
FLOATS = st.floats(-100, 100, width=32)


@st.composite
def responses(draw, kind, *, selected, values):
    length = draw(st.integers(1, 7))

    def floats(name):
        zeros = st.just(0.0) if name == "user_weights" else st.nothing()  # tokens, responses, groups without a weight
        return draw(st.lists(zeros | FLOATS, min_size=length, max_size=length))

    def bools():
        return draw(st.lists(st.booleans(), min_size=length, max_size=length))

    return Response(
        ids=draw(st.lists(st.integers(0, 2**32 - 1), min_size=length, max_size=length)),
        mask=bools() if draw(st.booleans()) else [True] * length,
        selected=bools() if selected else None,
        kind=kind,
        score=draw(st.just(float("nan")) | FLOATS),
        values={name: floats(name) for name in values},
    )


@st.composite
def groups(draw, *, selected=False, values=(), max_size=8):
    """Pairs and candidate sets with rows that ascend, but not by one."""
    made, row = [], -1
    for _ in range(draw(st.integers(1, max_size))):
        row += draw(st.integers(1, 3))
        kinds = ["chosen", "rejected"] if draw(st.booleans()) else ["response"] * draw(st.integers(1, 4))
        prompt = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=6))
        made.append(Group(prompt, [draw(responses(k, selected=selected, values=values)) for k in kinds], row))
    return made


def frame(made: list[Group]) -> pl.DataFrame:
    """The segments frame of the groups, with `selected` and values where they have them (null for prompts)."""
    lines = []
    for group in made:
        lines.append((group.row, 0, "prompt", group.prompt, [False] * len(group.prompt), None, None, {}))
        for number, r in enumerate(group.responses, start=1):
            score = None if r.score != r.score else r.score
            lines.append((group.row, number, r.kind, r.ids, r.mask or [True] * len(r.ids), score, r.selected, r.values))
    row, segment, kind, ids, mask, score, selected, values = zip(*lines, strict=True)
    names = {name for line in values for name in line}
    return pl.DataFrame(
        {
            "row": pl.Series(row, dtype=pl.UInt64),
            "segment": pl.Series(segment, dtype=pl.UInt16),
            "kind": list(kind),
            "ids": pl.Series(ids, dtype=pl.List(pl.UInt32)),
            "mask": pl.Series(mask, dtype=pl.List(pl.Boolean)),
            "score": pl.Series(score, dtype=pl.Float32),
        }
        | ({"selected": pl.Series(selected, dtype=pl.List(pl.Boolean))} if any(selected) else {})
        | {name: pl.Series([v.get(name) for v in values], dtype=pl.List(pl.Float32)) for name in sorted(names)}
    )


def pairs(count: int, *, prompt: int = 3, length: int = 4) -> list[Group]:
    """Plain pairs of lengths that vary by row, with ids that name the row."""
    made = []
    for row in range(count):
        chosen = Response(ids=[row] * (length + row % 5), kind="chosen")
        rejected = Response(ids=[row] * (length + row % 3), kind="rejected")
        made.append(Group([row] * (prompt + row % 4), [chosen, rejected], row))
    return made


def store(made: list[Group]) -> SegmentStore:
    return SegmentStore.from_frame(frame(made))
