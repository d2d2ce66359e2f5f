"""The benchmark of generation on models of no size: every side runs, and a difference would end it."""

from __future__ import annotations

from benchmarks.generate import Size, measure


def test_every_side_generates_so_many_tokens() -> None:
    found = dict(measure(Size("none", 64, 1, 96, 3, 4), rounds=1, device="cpu"))
    assert len(found) == 7
    assert all(speed > 0 for speed in found.values())
    assert [name for name in found if name.startswith("`model.generate`")]
