"""The packer against its slow twin."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt.data.batching.packing import Packer, dummy_batch, pack, pack_lengths
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.errors import ArtifactError, ConfigError, DataError
from pyprefopt.types import PackedBatch
from tests.data.segments import VALUES, frame, groups, pairs, store
from tests.reference.packing import Group, Response, pack_groups


def assert_equal(got: PackedBatch, wanted: PackedBatch) -> None:
    for field in fields(PackedBatch):
        ours, theirs = getattr(got, field.name), getattr(wanted, field.name)
        if theirs is None:
            assert ours is None, field.name
            continue
        assert ours.dtype == theirs.dtype, field.name
        np.testing.assert_array_equal(ours, theirs, err_msg=field.name)


def slow_costs(made: list[Group], layout: str, last_token: bool = False, keep_unweighted: bool = False) -> list[int]:
    """What stands in a batch; nothing for a group of which nothing is scored."""
    packed = [pack_groups([group], layout, last_token=last_token, keep_unweighted=keep_unweighted) for group in made]
    return [len(one.input_ids) if one.target_ids.size or last_token else 0 for one in packed]


def slow_bins(costs: list[int], max_tokens: int, max_groups: int, *, deal: bool = True) -> list[list[int]]:
    """Best-fit decreasing by trying every bin; among equal rooms the bin that was filled last.

    With `deal`, what costs nothing is dealt out afterwards.
    """
    bins: list[list[int]] = []
    filled: list[int] = []
    free = [i for i in range(len(costs)) if deal and costs[i] == 0]
    for time, item in enumerate(sorted(set(range(len(costs))) - set(free), key=lambda i: (-costs[i], i))):
        rooms = [max_tokens - sum(costs[i] for i in one) for one in bins]
        fits = [b for b in range(len(bins)) if rooms[b] >= costs[item] and len(bins[b]) < max_groups]
        if fits:
            best = min(fits, key=lambda b: (rooms[b], -filled[b]))
            bins[best].append(item)
            filled[best] = time
        else:
            bins.append([item])
            filled.append(time)
    for number, item in enumerate(free):
        if not bins:
            bins.append([])
        bins[number % len(bins)].append(item)
    return [sorted(one) for one in bins]


def twin(made: list[Group], lines: np.ndarray, layout: str, values: tuple[str, ...], **options: bool) -> PackedBatch:
    """The twin's batch with the store's line numbers, and every optional array that was asked for."""
    batch = pack_groups(made, layout, **options)
    arrays = {field.name: getattr(batch, field.name) for field in fields(PackedBatch)}
    empty = {name: np.zeros(0, np.float32) for name in values if arrays[name] is None}
    return PackedBatch(**arrays | empty | {"response_line": lines})


@st.composite
def cases(draw):
    selected, values = draw(st.booleans()), tuple(name for name in VALUES if draw(st.booleans()))
    made = draw(groups(selected=selected, values=values))
    layout = draw(st.sampled_from(["shared", "separate"]))
    room = draw(st.integers(0, 60))
    return made, layout, selected, values, room, draw(st.none() | st.integers(1, 4))


@settings(deadline=None)
@given(cases(), st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_agrees_with_the_twin(case, last_token, keep_unweighted, random):
    made, layout, selected, values, room, max_groups = case
    table = frame(made)
    ratios = {"chosen_ratio": 0.5, "rejected_ratio": 0.25} if selected else {}
    for response in (response for group in made for response in group.responses):
        response.ratio = ratios.get(f"{response.kind}_ratio", 1.0)
    segments = SegmentStore.from_frame(table)
    column = table["selected"] if selected else None
    reads = {"last_token": last_token, "keep_unweighted": keep_unweighted}
    packer = Packer(segments, layout=layout, selected=column, **reads, **ratios, **{n: table[n] for n in values})
    costs = slow_costs(made, layout, **reads)
    np.testing.assert_array_equal(packer.lengths(), costs)

    order = list(range(len(made)))
    random.shuffle(order)
    max_tokens = max([1, *costs]) + room
    got = packer.pack(np.array(order), max_tokens=max_tokens, max_groups=max_groups)
    bins = slow_bins([costs[i] for i in order], max_tokens, max_groups or len(made))
    assert len(got) == len(bins)
    for batch, one in zip(got, bins, strict=True):
        members = [order[i] for i in one]
        first = segments.group_offsets
        lines = np.concatenate([np.arange(first[g] + 1, first[g + 1]) for g in members])
        assert_equal(batch, twin([made[g] for g in members], lines, layout, values, **reads))


def test_by_hand_in_both_layouts():
    made = [
        Group(
            [10, 11],
            [
                Response([1, 2, 3], selected=[True, True, False], kind="chosen", ratio=0.5),
                Response([4], kind="rejected", selected=[True], ratio=0.5),
            ],
            row=5,
        )
    ]
    table = frame(made)
    shared, separate = (
        Packer(
            SegmentStore.from_frame(table),
            layout=name,
            selected=table["selected"],
            chosen_ratio=0.5,
            rejected_ratio=0.5,
        )
        for name in ("shared", "separate")
    )
    (batch,) = shared.pack(max_tokens=100)
    np.testing.assert_array_equal(batch.input_ids, [10, 11, 1])  # 2 is only a target, 3 and 4 are nobody's input
    np.testing.assert_array_equal(batch.position_ids, [0, 1, 2])
    np.testing.assert_array_equal(batch.segment_offsets, [0, 2, 3, 3])
    np.testing.assert_array_equal(batch.segment_parent, [-1, 0, 0])
    np.testing.assert_array_equal(batch.hidden_index, [1, 2, 1])
    np.testing.assert_array_equal(batch.target_ids, [1, 2, 4])
    assert repr(batch) == "PackedBatch(1 pairs, 2 responses, 3 tokens, 3 of them scored)"
    (batch,) = separate.pack(max_tokens=100)
    np.testing.assert_array_equal(batch.input_ids, [10, 11, 1, 10, 11])
    np.testing.assert_array_equal(batch.hidden_index, [1, 2, 4])
    np.testing.assert_array_equal(batch.response_row, [5, 5])
    assert (shared.lengths().item(), separate.lengths().item()) == (3, 5)


def weighted_pair(chosen: list[float], rejected: list[float], row: int = 0) -> Group:
    responses = [
        Response([20 + t for t in range(len(weights))], kind=kind, values={"user_weights": weights})
        for kind, weights in (("chosen", chosen), ("rejected", rejected))
    ]
    return Group([10, 11], responses, row)


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_what_has_no_weight_is_not_packed(layout):
    made = [weighted_pair([0, 0.5, 0, 0], [0, 0], 0), weighted_pair([0.0], [0, 0, 0], 1), weighted_pair([1], [2], 2)]
    table = frame(made)
    packer = Packer(SegmentStore.from_frame(table), layout=layout, user_weights=table["user_weights"])
    assert packer.lengths().tolist() == [3, 0, 2 if layout == "shared" else 4]
    (batch,) = packer.pack(max_tokens=7, max_groups=2)  # the second pair costs neither tokens nor a place
    assert batch.target_ids.tolist() == [21, 20, 20]
    assert batch.response_index.tolist() == [0, 4, 5]
    assert batch.token_position.tolist() == [1, 0, 0]
    assert batch.response_length.tolist() == batch.scored_length.tolist() == [4, 2, 1, 3, 1, 1]
    assert batch.pair_chosen.tolist() == [0, 2, 4]
    assert batch.input_ids.tolist() == [10, 11, 20, 10, 11] + ([] if layout == "shared" else [10, 11])
    (batch,) = packer.pack(np.array([1]), max_tokens=7)
    assert (batch.input_ids.tolist(), batch.segment_offsets.tolist(), batch.target_ids.size) == ([10], [0, 1], 0)
    kept = Packer(packer.store, layout=layout, user_weights=table["user_weights"], keep_unweighted=True)
    assert kept.pack(max_tokens=100)[0].target_ids.size == 12


def test_a_set_of_one_kind_has_no_pairs():
    made = pairs(4)
    (batch,) = Packer(store(made), only="chosen").pack(max_tokens=1000)
    np.testing.assert_array_equal(batch.response_line, [1, 4, 7, 10])
    assert batch.pair_chosen.size == batch.pair_rejected.size == 0
    np.testing.assert_array_equal(batch.response_group, [0, 1, 2, 3])
    with pytest.raises(DataError, match="row 0: there is a prompt but no response"):
        Packer(store(made), only="response")


def test_pack_takes_frames_and_stores_and_honours_selected():
    table = frame(pairs(5)).with_columns(selected=pl.col("mask"))
    ratios = {"chosen_ratio": 1, "rejected_ratio": 1}
    stored = SegmentStore.from_frame(table)
    from_frame, from_store = pack(table, max_tokens=50, **ratios), pack(stored, max_tokens=50, **ratios)
    assert len(from_frame) == len(from_store) > 1
    for ours, theirs in zip(from_frame, from_store, strict=True):
        assert_equal(ours, theirs)
    none = table.with_columns(selected=pl.col("mask").list.eval(pl.element() & False))
    assert sum(batch.target_ids.size for batch in pack(none.lazy(), max_tokens=50, **ratios)) == 0


def test_pack_asks_for_the_ratios_that_selected():
    table = frame(pairs(5)).with_columns(selected=pl.col("mask"))
    for ratios, missing in (({}, "chosen_ratio"), ({"chosen_ratio": 0.3}, "rejected_ratio")):
        with pytest.raises(ConfigError, match=f"^{missing} must be given with a column `selected`, got None; the one"):
            pack(table, max_tokens=50, **ratios)
    (batch,) = pack(table, max_tokens=500, chosen_ratio=0.3, rejected_ratio=0.5)
    assert sorted(set(batch.selection_ratio.tolist())) == [np.float32(0.3), 0.5]
    assert set(pack(table.drop("selected"), max_tokens=500)[0].selection_ratio.tolist()) == {1.0}


@pytest.mark.parametrize("name", [*VALUES, "selected"])
def test_a_column_of_the_segments_is_taken_as_if_it_were_given(name):
    """So that weights, rewards or a selection that stand beside the tokens are never left out in silence."""
    made = pairs(5)
    for i, response in enumerate(response for group in made for response in group.responses):
        response.values.update({name: [float(i + t) for t in range(len(response.ids))] for name in VALUES})
        response.selected = [t % 2 == 0 for t in range(len(response.ids))]
    table = frame(made)
    bare = table.drop(*VALUES, "selected")
    ratios = {"chosen_ratio": 0.5, "rejected_ratio": 0.5} if name == "selected" else {}
    by_column = Packer(bare.with_columns(table[name]), **ratios).pack(max_tokens=50)
    by_name = Packer(bare, **ratios, **{name: table[name]}).pack(max_tokens=50)
    without = Packer(bare).pack(max_tokens=50)
    for ours, theirs in zip(by_column, by_name, strict=True):
        assert_equal(ours, theirs)
    if name == "selected":
        assert sum(len(b.target_ids) for b in by_column) < sum(len(b.target_ids) for b in without)
    else:
        assert all(getattr(batch, name) is not None for batch in by_column)
        assert all(getattr(batch, name) is None for batch in without)


@given(st.lists(st.integers(0, 60), max_size=40), st.integers(60, 200), st.none() | st.integers(1, 4))
def test_lengths_are_packed_as_the_twin_packs_them(lengths, max_tokens, max_groups):
    bins = pack_lengths(np.array(lengths, np.int64), max_tokens, max_groups)
    assert [one.tolist() for one in bins] == slow_bins(lengths, max_tokens, max_groups or len(lengths), deal=False)
    assert sorted(bins.items) == list(range(len(lengths)))


@pytest.mark.parametrize(
    "column",
    [list, np.array, np.uint16, pl.Series, pa.array, lambda lengths: pa.chunked_array([lengths[:1], lengths[1:]])],
)
def test_lengths_come_in_any_column(column):
    bins = pack_lengths(column([4, 7, 3, 5]), 10)
    assert [one.tolist() for one in bins] == [[1, 2], [0, 3]]
    assert (len(bins), bins[-1].tolist(), [one.tolist() for one in bins[1:]]) == (2, [0, 3], [[0, 3]])
    assert len(pack_lengths([], 10)) == 0


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([4, 11], r"lengths\[1\] must be at most max_tokens = 10, got 11"),
        ([4, -1], r"lengths\[1\] must be >= 0, got -1"),
        (np.array([2**63], np.uint64), r"lengths\[0\] must be below 2\^63"),
        ([4.0], r"lengths must be integers in one dimension, got float64 \(1,\)"),
        ([[4]], r"lengths must be integers in one dimension, got int64 \(1, 1\)"),
        (pl.Series([4, None, None]), r"lengths\[1\] is null \(and 1 more\)"),
        (pl.Series([4, None]), r"lengths\[1\] is null; fill or drop it"),
    ],
)
def test_lengths_that_cannot_be_packed_are_named(lengths, message):
    with pytest.raises(DataError, match=message):
        pack_lengths(lengths, 10)


def test_the_bounds_of_a_bin_are_checked():
    for bounds, name in (
        ((1.5,), "max_tokens"),
        (("10",), "max_tokens"),
        ((None,), "max_tokens"),
        ((9, 1.5), "max_groups"),
    ):
        with pytest.raises(ConfigError, match=f"{name} must be a whole number, got"):
            pack_lengths([1], *bounds)
    for bounds in ((0,), (10, 0), (2**63,), (10, 2**63)):
        with pytest.raises(ConfigError, match="must be > 0 and below"):
            pack_lengths([1], *bounds)
    assert [one.tolist() for one in pack_lengths([1, 2], 2**62)] == [[0, 1]]
    with pytest.raises(DataError, match="max_tokens must be at most 67108864"):
        pack_lengths([2**40, 2**40], 2**62)


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_all_responses_of_a_prompt_share_a_micro_batch(layout):
    made = [Group([1] * 3, [Response([row] * (1 + (row + r) % 7), kind="response") for r in range(1 + row % 4)], row)
            for row in range(30)]  # fmt: skip
    batches = Packer(store(made), layout=layout).pack(max_tokens=64)
    assert len(batches) > 3
    found = [set(batch.response_row.tolist()) for batch in batches]
    assert sum(map(len, found)) == len(set().union(*found)) == 30


def test_a_group_larger_than_the_budget_is_named():
    packer = Packer(store(pairs(3)))
    message = (
        r"row 2: prompt and responses take \d+ tokens in one micro-batch, more than the budget of 12; "
        r"raise max_tokens, or lower the max_tokens of data.tokenize$"
    )
    with pytest.raises(DataError, match=message):
        packer.pack(np.array([2]), max_tokens=12)
    with pytest.raises(DataError, match="groups must be indices from 0 to 2, got 3"):
        packer.pack(np.array([3]), max_tokens=100)
    with pytest.raises(DataError, match="groups must be indices from 0 to 2, got -1"):
        packer.lengths(np.array([-1]))


def test_columns_that_do_not_fit_are_named():
    made = pairs(2)
    table = frame(made)
    rewards = table["mask"].list.eval(pl.element().cast(pl.Float32))
    with pytest.raises(DataError, match="row 0: token_rewards must have one value per token"):
        Packer(store(made), token_rewards=rewards.list.head(2))
    with pytest.raises(DataError, match=r"token_rewards must be 6 lists .* got 5"):
        Packer(store(made), token_rewards=rewards[:-1])
    with pytest.raises(DataError, match="selected must be lists of Boolean"):
        Packer(store(made), selected=rewards)
    with pytest.raises(DataError, match="row 0: the prompt has no token"):
        Packer(store([Group([], made[0].responses, 0)]))
    broken = table["mask"].list.eval(pl.element().cast(pl.Float32) / 0)
    with pytest.raises(DataError, match="row 0: ref_logps of token 0 in line 1 is inf; it must be a finite number"):
        Packer(store(made), ref_logps=broken).pack(max_tokens=100)
    with pytest.raises(ConfigError, match="layout must be 'shared' or 'separate', got 'both'"):
        Packer(store(made), layout="both")
    with pytest.raises(ConfigError, match=r"chosen_ratio must be 1 without `selected`, got 0\.3"):
        Packer(store(made), chosen_ratio=0.3)


def test_values_of_other_segments_are_refused(tmp_path):
    one, other = store(pairs(2)), store(pairs(3))
    values = ValueStore.write(tmp_path, one, np.zeros(one.response_offsets[-1], np.float32), key="k")
    assert Packer(one, token_rewards=values).pack(max_tokens=100)[0].token_rewards.sum() == 0
    with pytest.raises(ArtifactError, match="made for segments"):
        Packer(other, token_rewards=values)


def test_batches_survive_a_file(tmp_path):
    (batch,) = Packer(store(pairs(2))).pack(max_tokens=100)
    batch.save(tmp_path / "batch.safetensors")
    assert_equal(PackedBatch.load(tmp_path / "batch.safetensors"), batch)


def test_a_dummy_batch_has_the_shapes_and_dtypes_of_a_real_one():
    made = [Group([1], [Response([2, 3])])]
    real, dummy = pack_groups(made, last_token=True), dummy_batch(["ref_logps"], last_token=True)
    for field in fields(PackedBatch):
        array = getattr(real, field.name)
        if array is not None:
            assert getattr(dummy, field.name).dtype == array.dtype, field.name
    assert dummy.ref_logps.shape == (1,)
    assert dummy.token_mask.sum() == 0
    assert dummy.pair_chosen.size == 0
    assert dummy.response_group.tolist() == [0]


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_whole_responses(layout):
    """What stands behind the last scored token is an input too; the rest of a batch is as without."""

    def pair(*weights):
        kinds = ("chosen", "rejected")
        return [
            Response(ids=list(range(7, 7 + len(w))), kind=kind, values={"user_weights": list(w)})
            for kind, w in zip(kinds, weights, strict=True)
        ]

    made = [Group([5, 6], pair((1.0, 0.0, 0.0), (0.0,)), 0), Group([5], pair((0.0,), (0.0, 0.0)), 1)]
    table = frame(made)
    usual, whole = (
        Packer(store(made), layout=layout, user_weights=table["user_weights"], whole=whole) for whole in (False, True)
    )
    for packer in (usual, whole):
        assert packer.weightless(np.arange(2)).tolist() == [False, True]
    (cut,), (full,) = usual.pack(max_tokens=99), whole.pack(max_tokens=99)
    assert cut.input_ids.tolist() == [5, 6]
    parts = {"shared": [5, 6, 7, 8, 9, 7, 5, 7, 7, 8], "separate": [5, 6, 7, 8, 9, 5, 6, 7, 5, 7, 5, 7, 8]}
    assert full.input_ids.tolist() == parts[layout]
    assert full.last_index is None
    for name in ("target_ids", "response_index", "scored_length", "response_length", "pair_chosen", "hidden_index"):
        assert getattr(cut, name).tolist() == getattr(full, name).tolist()
