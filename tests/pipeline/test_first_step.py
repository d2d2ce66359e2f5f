"""Before it trains, a policy's log-probs must be the stored reference's; all ranks find the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pyprefopt import ranks
from pyprefopt.errors import ArtifactError
from pyprefopt.stages.training import check_reference
from tests.training.ranks import run_ranks
from tests.training.toy import ToyLoader, ToyModel, make_groups, with_ref_logps


def check(off: list[float], scored: int | None = None) -> None:
    """As rank `r` does at its first step, where the store is `off[r]` nats away; only rank `scored` may have tokens."""
    model, rank = ToyModel(), ranks.rank()
    batches = ToyLoader(with_ref_logps(make_groups(8), model), batch=8, per_batch=4, rank=rank, world=len(off)).step(0)
    for batch in batches:
        assert batch.ref_logps is not None
        batch.ref_logps.add_(off[rank])
    if scored not in (None, rank):
        batches = [SimpleNamespace(target_ids=batches[0].target_ids[:0])]
    job = SimpleNamespace(
        model=model, stage="policy", train=SimpleNamespace(step=lambda _: batches), run=SimpleNamespace(dtype="float32")
    )
    check_reference(job, Path("stored"))  # type: ignore[arg-type]


def refused(off: list[float], scored: int | None = None) -> None:
    with pytest.raises(ArtifactError, match=r"differ by 0\.2[56] nats a token; delete stored and run again"):
        check(off, scored)


def test_the_stored_reference_is_the_policy_that_starts() -> None:
    check([0.0])
    check([5e-5])  # rounding
    refused([0.25])
    assert run_ranks(2, check, [0.0, 0.0]) == [0, 0]


def test_every_rank_refuses_what_one_finds() -> None:
    assert run_ranks(2, refused, [0.0, 0.5]) == [0, 0]
    assert run_ranks(2, refused, [0.0, 0.25], scored=1) == [0, 0]
