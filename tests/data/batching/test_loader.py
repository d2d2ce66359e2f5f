"""The steps are the same for any number of ranks, and every row is used once an epoch."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from itertools import islice

import numpy as np
import pytest
import torch

from pyprefopt.data.batching import loader as loader_module
from pyprefopt.data.batching.loader import StepLoader, permutation
from pyprefopt.data.batching.packing import Packer
from pyprefopt.errors import ArtifactError, ConfigError
from pyprefopt.losses import DPO, SFT, SePO
from pyprefopt.losses.method import weighted_sums
from pyprefopt.types import PackedBatch, Sums
from tests.data.segments import pairs, store

COUNT, BATCH = 22, 8
GOLDEN = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]  # permutation(10, seed=0, epoch=0)
PACKER = Packer(store(pairs(COUNT)))


def make(**settings) -> StepLoader:
    defaults = {"global_batch_size": BATCH, "max_tokens": 40, "seed": 3}
    return StepLoader(settings.pop("packer", PACKER), **defaults | settings)


def key(batch: PackedBatch) -> tuple:
    return tuple(batch.response_line.tolist())


def is_dummy(batch: PackedBatch) -> bool:
    return batch.response_line.tolist() == [-1]


def test_the_order_never_changes():
    assert permutation(10, seed=0, epoch=0).tolist() == GOLDEN
    for count in (1, 7, 100):
        assert sorted(permutation(count, seed=5, epoch=2)) == list(range(count))
    orders = {tuple(permutation(20, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_the_bins_of_one_rank(world_size):
    for k in range(make().steps_per_epoch + 1):
        whole = Counter(key(batch) for batch in make().step(k))
        shares = [make(rank=rank, world_size=world_size).step(k) for rank in range(world_size)]
        assert len({len(share) for share in shares}) == 1
        batches = [batch for share in shares for batch in share]
        assert Counter(key(batch) for batch in batches if not is_dummy(batch)) == whole
        assert sum(map(is_dummy, batches)) < world_size


def test_an_epoch_uses_every_row_once_and_keeps_the_partial_batch():
    loader = make()
    assert loader.steps_per_epoch == 3
    assert [len(loader.groups(k)) for k in range(3)] == [8, 8, 6]
    for epoch in range(2):
        steps = range(3 * epoch, 3 * epoch + 3)
        rows = np.concatenate([loader.window(k) for k in steps])
        assert sorted(rows) == list(range(COUNT))
        lines = [line for k in steps for batch in loader.step(k) for line in batch.response_line.tolist()]
        assert sorted(lines) == [line for line in range(3 * COUNT) if line % 3]
    assert loader.window(0).tolist() != loader.window(3).tolist()
    for k in range(3):  # a step's batches hold the step's window and nothing else
        assert {row for batch in loader.step(k) for row in batch.response_row.tolist()} == set(loader.window(k))


def test_a_step_does_not_depend_on_the_steps_before():
    loader = make()
    later = [key(batch) for batch in loader.step(4)]
    loader.step(0)
    assert [key(batch) for batch in loader.step(4)] == later == [key(batch) for batch in make().step(4)]
    assert make(seed=4).window(0).tolist() != loader.window(0).tolist()
    assert make(shuffle=False).window(1).tolist() == list(range(8, 16))


def test_micro_batches_keep_their_bounds_and_are_tensors():
    for batch in make(max_groups=2).step(0):
        assert batch.input_ids.shape[0] <= 40
        assert batch.pair_chosen.shape[0] <= 2
        assert all(isinstance(getattr(batch, f.name), torch.Tensor | None) for f in fields(batch))


def test_a_subset_is_all_that_is_used():
    subset = np.array([20, 3, 4, 11])
    loader = make(groups=subset, global_batch_size=3)
    assert loader.steps_per_epoch == 2
    assert sorted(np.concatenate([loader.groups(0), loader.groups(1)])) == sorted(subset)
    assert {row for batch in loader.scan() for row in batch.response_row.tolist()} == set(subset)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_scan_gives_all_groups_once_packed_as_a_whole(world_size, monkeypatch):
    monkeypatch.setattr(loader_module, "SCAN_BINS", 2)
    whole = [key(batch) for batch in PACKER.pack(max_tokens=40)]
    assert len(whole) % 6, "else this test shows nothing about padding"
    for pad in (False, True):
        shares = [list(make(rank=rank, world_size=world_size).scan(pad=pad)) for rank in range(world_size)]
        merged = [None] * len(whole)
        for rank, share in enumerate(shares):
            for i, batch in enumerate(one for one in share if not is_dummy(one)):
                merged[rank + i * world_size] = key(batch)
        assert merged == whole
        if pad:
            assert len({len(share) for share in shares}) == 1
        else:
            assert not any(map(is_dummy, (batch for share in shares for batch in share)))


def steps(loader: StepLoader, count: int) -> list[list[tuple]]:
    return [[key(batch) for batch in batches] for batches in islice(loader, count)]


@pytest.mark.parametrize("done", [0, 1, 2, 3, 7])
def test_a_restored_loader_goes_on_where_the_first_was(done):
    whole = steps(make(num_epochs=4), 10)
    first = make(num_epochs=4)
    assert steps(first, done) == whole[:done]
    first.next_step = done  # the last step was taken, its successor not yet asked for
    state = json.loads(json.dumps(first.state_dict()))
    second = make(num_epochs=4, rank=0, world_size=1)
    second.load_state_dict(state)
    assert steps(second, 10 - done) == whole[done:]


def test_a_loop_ends_with_its_epochs():
    loader = make()
    assert len(loader) == loader.steps_per_epoch == 3
    assert [[key(batch) for batch in batches] for batches in loader] == steps(make(num_epochs=2), 3)
    two = make(num_epochs=2)
    assert len(two) == len(list(two)) == 6
    two.load_state_dict(make().state_dict() | {"step": 5})  # the state of a loader of fewer epochs
    assert len(list(two)) == 1


def test_the_next_loop_goes_on_with_the_next_epoch():
    loader, whole = make(), make(num_epochs=3)
    seen = [[key(batch) for batch in batches] for _ in range(3) for batches in loader]
    assert seen == [[key(batch) for batch in batches] for batches in whole]
    assert len({str(seen[3 * epoch : 3 * epoch + 3]) for epoch in range(3)}) == 3


def test_an_interrupted_step_comes_again():
    loader = make()
    step = iter(loader)
    next(step), next(step)
    assert loader.state_dict()["step"] == 1  # the second one may not be finished


def test_a_state_serves_other_ranks_and_budgets():
    state = make().state_dict() | {"step": 2}
    other = make(rank=1, world_size=2, max_tokens=60, max_groups=3)
    other.load_state_dict(state)
    assert steps(other, 1) == [[key(batch) for batch in other.step(2)]]


def test_a_state_has_one_size():
    small, large = make(groups=[0]), make(packer=Packer(store(pairs(500))))
    large.next_step = 10**9
    sizes = [len(json.dumps(loader.state_dict())) for loader in (small, large)]
    assert max(sizes) < 400
    large.load_state_dict(large.state_dict())
    assert large.next_step == 10**9


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"shuffle": False}, "shuffle was True and is False"),
        ({"global_batch_size": 4}, "global_batch_size was 8 and is 4"),
        ({"groups": range(21)}, "groups was '"),
        ({"packer": Packer(store(pairs(COUNT, prompt=2)))}, "store was '"),
    ],
)
def test_a_state_of_other_settings_is_refused_by_name(settings, name):
    with pytest.raises(ArtifactError, match=name):
        make(**settings).load_state_dict(make().state_dict())


def test_a_broken_state_is_refused():
    state = make().state_dict()
    with pytest.raises(ArtifactError, match=r"but \['step'\] are missing and \['stepp'\] are unknown"):
        make().load_state_dict({name.replace("step", "stepp"): value for name, value in state.items()})
    with pytest.raises(ArtifactError, match="version was 0 and is 1"):
        make().load_state_dict(state | {"version": 0})
    for step in (-1, 1.5, True, None):
        with pytest.raises(ConfigError, match="step must be an integer >= 0"):
            make().load_state_dict(state | {"step": step})


@pytest.mark.parametrize("method", [DPO(), SePO(), SFT()])
def test_a_dummy_batch_gives_every_method_a_loss_of_zero(method):
    values = np.ones(PACKER.store.response_offsets[-1], np.float32)
    batch = make(packer=Packer(PACKER.store, ref_logps=values)).dummy_batch().to("cpu")
    logps = torch.full((1,), -2.0, requires_grad=True)
    weights = method.token_weights(batch, logps.detach())
    sums = Sums(weighted_sums(weights, logps, batch), ref=weighted_sums(weights, batch.ref_logps, batch))
    loss = method.loss(sums, batch).sum()
    loss.backward()
    assert loss.item() == 0
    assert logps.grad.tolist() == [0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": np.array([0, 22])}, "groups must be indices from 0 to 21"),
        ({"groups": np.array([1, 1])}, "groups must be different indices"),
        ({"groups": np.array([], np.int64)}, "groups must be at least one"),
        ({"num_epochs": 0}, "num_epochs must be > 0"),
        ({"num_epochs": 1.5}, "num_epochs must be a whole number, got 1.5"),
        ({"packer": PACKER.store}, r"packer must be a Packer, got 'SegmentStore'; write Packer\(segments\)"),
        ({"global_batch_size": 0}, "global_batch_size must be > 0"),
        ({"rank": 2, "world_size": 2}, "rank must be in"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": "1"}, "seed must be a whole number, got .1."),
        ({"global_batch_size": 1.5}, "global_batch_size must be a whole number, got 1.5"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        make(**settings)
    with pytest.raises(ConfigError, match="step must be >= 0"):
        make().step(-1)
