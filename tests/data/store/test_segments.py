"""Stores on disk: the same bytes for the same lines, finished or not there, no Polars on the reading side."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.store import shards
from pyprefopt.data.store.segments import SegmentStore, ValueStore, scatter_values
from pyprefopt.errors import ArtifactError, DataError
from pyprefopt.storage import files
from pyprefopt.storage.folders import Folder
from tests.data.prepared import flip_a_bit
from tests.data.segments import frame, pairs
from tests.reference.packing import Group, Response


@pytest.fixture
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_TOKENS", 40)
        yield


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_the_same_lines_give_the_same_bytes_whatever_the_chunks(tmp_path, small_shards):
    table = frame(pairs(6))
    chunked = pl.concat([table[:7], table[7:]], rechunk=False)
    narrow = table.to_arrow().cast(
        pa.schema(
            [
                f.with_type(pa.list_(f.type.value_type)) if pa.types.is_large_list(f.type) else f
                for f in table.to_arrow().schema
            ]
        )
    )
    sliced = pl.concat([table[-1:], table])[1:]
    for name, one in {
        "eager": table,
        "lazy": table.lazy(),
        "chunked": chunked,
        "narrow": narrow,
        "sliced": sliced,
    }.items():
        written = SegmentStore.write(one, tmp_path / name, source="x")
        assert contents(tmp_path / name) == contents(tmp_path / "eager")
        assert written.fingerprint == SegmentStore.open(tmp_path / "eager").fingerprint
    assert len(list((tmp_path / "eager").glob("*.arrow"))) > 2
    assert json.loads((tmp_path / "eager/manifest.json").read_text())["source"] == "x"


def test_the_fingerprint_is_the_same_in_memory_and_tells_content(tmp_path):
    table = frame(pairs(3))
    fingerprint = SegmentStore.write(table, tmp_path).fingerprint
    assert SegmentStore.from_frame(table.lazy()).fingerprint == fingerprint
    other = table.with_columns(ids=pl.col("ids").list.eval(pl.element() + 1))
    assert SegmentStore.from_frame(other).fingerprint != fingerprint


def test_what_a_store_knows_of_its_groups(tmp_path):
    made = [
        Group(
            [1, 2],
            [Response([3], kind="chosen", score=0.5), Response([4, 5, 6], [True, False, True], kind="rejected")],
            4,
        ),
        Group([7], [Response([8, 9], kind="response")], 9),
    ]
    segments = SegmentStore.write(frame(made), tmp_path)
    assert segments.num_rows == 2
    assert segments.num_lines == 5
    assert segments.rows.tolist() == [4, 9]
    assert segments.group_offsets.tolist() == [0, 3, 5]
    assert segments.lengths.tolist() == [2, 1, 3, 1, 2]
    assert segments.response_offsets.tolist() == [0, 0, 1, 4, 4, 6]
    assert segments.response_mask.tolist() == [True, True, False, True, True, True]
    assert segments.kinds.tolist() == [0, 1, 2, 0, 3]
    assert segments.scores[1] == 0.5
    assert np.isnan(segments.scores[2])
    assert isinstance(segments.table["ids"], pa.ChunkedArray)


@pytest.mark.parametrize(("bound", "groups"), [(8, [1, 1, 1, 1]), (16, [2, 2]), (17, [2, 2]), (7, [1, 1, 1, 1])])
def test_a_shard_holds_as_many_groups_as_fit(tmp_path, monkeypatch, bound, groups):
    monkeypatch.setattr(shards, "SHARD_TOKENS", bound)
    eight = Group([1, 2], [Response([3, 4, 5], kind="chosen"), Response([6, 7, 8], kind="rejected")], 0)
    SegmentStore.write(frame([replace(eight, row=row) for row in range(4)]), tmp_path)
    assert [shard["lines"] for shard in Folder(tmp_path).manifest["shards"]] == [3 * count for count in groups]


def test_an_unfinished_store_does_not_open(tmp_path, monkeypatch, small_shards):
    table = frame(pairs(6))
    SegmentStore.write(table, tmp_path)
    whole = contents(tmp_path)
    calls = []

    def fail(path, content):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(path, content)

    write = files.atomic_write
    monkeypatch.setattr(files, "atomic_write", fail)
    with pytest.raises(KeyboardInterrupt):
        SegmentStore.write(table, tmp_path)
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing; run its stage again"):
        SegmentStore.open(tmp_path)
    monkeypatch.undo()
    (tmp_path / ".segments-00000.arrow.1.tmp").write_bytes(b"left by a killed writer")
    SegmentStore.write(table, tmp_path)
    assert contents(tmp_path) == whole


def test_a_write_that_fails_midway_leaves_nothing(tmp_path):
    def half(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.atomic_write(tmp_path / "new", half)
    assert not list(tmp_path.iterdir())
    files.atomic_write(tmp_path / "old", b"before")
    with pytest.raises(OSError, match="disk full"):
        files.atomic_write(tmp_path / "old", half)
    assert contents(tmp_path) == {"old": b"before"}
    assert files.sha256_file(tmp_path / "old") == hashlib.sha256(b"before").hexdigest()


def test_the_error_of_a_damaged_store_has_a_remedy(tmp_path):
    SegmentStore.write(frame(pairs(2)), tmp_path)
    shard = tmp_path / "segments-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"is missing or not .* bytes long; delete"):
        SegmentStore.open(tmp_path)
    with pytest.raises(ArtifactError, match="has kind and schema version"):
        ValueStore.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="is not valid JSON"):
        SegmentStore.open(tmp_path)


def test_a_damaged_shard_is_noticed_where_it_is_asked_for(tmp_path):
    written = SegmentStore.write(frame(pairs(20)), tmp_path)
    assert SegmentStore.open(tmp_path, verify=True).fingerprint == written.fingerprint
    flip_a_bit(tmp_path / "segments-00000.arrow")
    SegmentStore.open(tmp_path)
    with pytest.raises(
        ArtifactError, match=r"segments-00000\.arrow is missing or damaged: its sha256 .*; delete .* make"
    ):
        SegmentStore.open(tmp_path, verify=True)


def rename_chosen(table):
    return table.with_columns(kind=pl.col("kind").str.replace("chosen", "best"))


def null_masks(table):
    return table.with_columns(mask=pl.when(pl.col("kind") == "prompt").then(None).otherwise("mask"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop("ids"), r"no column 'ids'"),
        (lambda t: t.with_columns(ids=pl.lit("x")), r"column 'ids' must be large_list"),
        (lambda t: t.clear(), r"has no line"),
        (lambda t: t[1:], r"row 0: segments must be 0, 1"),
        (lambda t: pl.concat([t[:1], t[2:]]), r"row 0: segments must be 0, 1"),
        (lambda t: pl.concat([t[3:], t[:3]]), r"row 0: segments must be 0, 1"),
        (lambda t: t[:2], r"row 0: one chosen and one rejected"),
        (rename_chosen, r"row 0: kind must be one of .* \(and 1 more\)"),
        (lambda t: t.with_columns(kind=pl.lit("prompt")), r"row 0: segment 0, and no other"),
        (null_masks, r"has 2 nulls"),
    ],
)  # fmt: skip
def test_lines_that_are_not_whole_groups_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        SegmentStore.from_frame(change(frame(pairs(2))))


@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
def test_values_flat_or_as_lists_are_the_same_file(tmp_path, dtype):
    segments = SegmentStore.from_frame(frame(pairs(3)))
    flat = np.arange(segments.response_offsets[-1]).astype(dtype)
    values = ValueStore.write(tmp_path / "flat", segments, flat, key="k")
    lists = ValueStore.write(tmp_path / "lists", segments, pl.Series(values.values), key="k")
    assert contents(tmp_path / "flat") == contents(tmp_path / "lists")
    assert lists.check(segments, key="k").key == "k"
    found = lists.values.to_pylist()
    assert [value is None for value in found] == [True, False, False] * 3
    assert [x for value in found if value for x in value] == flat.tolist()
    with pytest.raises(ArtifactError, match="made for key k, not other"):
        values.check(segments, key="other")
    with pytest.raises(DataError, match="must be numbers or bool"):
        ValueStore.write(tmp_path / "bad", segments, flat[:-1], key="k")
    with pytest.raises(DataError, match="must be numbers or bool"):
        ValueStore.write(tmp_path / "bad", segments, flat.astype(str), key="k")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8])
@pytest.mark.parametrize("column", [np.asarray, torch.tensor, pl.Series, lambda flat: pl.Series(flat).to_arrow()])
def test_numbers_of_any_width_become_float32(tmp_path, dtype, column):
    segments = SegmentStore.from_frame(frame(pairs(3)))
    flat = np.arange(segments.response_offsets[-1]).astype(dtype)
    if column in (np.asarray, torch.tensor):
        given = column(flat)
    else:
        lists = ValueStore.write(tmp_path / "lists", segments, flat.astype(np.float32), key="k").values.to_pylist()
        given = column(pl.Series(lists).cast(pl.List(pl.Series(flat).dtype)))
    values = ValueStore.write(tmp_path / "values", segments, given, key="k")
    assert values.values.type == pa.large_list(pa.float32())
    assert [x for value in values.values.to_pylist() if value for x in value] == flat.tolist()


def test_numbers_that_float32_lacks_are_refused(tmp_path):
    segments = SegmentStore.from_frame(frame(pairs(3)))
    flat = np.zeros(segments.response_offsets[-1])
    flat[1] = -1e39
    with pytest.raises(DataError, match=r"must hold numbers of float32, up to 3\.4e38, got -1e\+39; scale them"):
        ValueStore.write(tmp_path / "bad", segments, flat, key="k")
    flat[1] = -np.inf  # of float32 too; who reads it decides
    ValueStore.write(tmp_path / "own", segments, flat, key="k")
    with pytest.raises(DataError, match=r"must be an array of one number a response token, .*got one of type object"):
        ValueStore.write(tmp_path / "bad", segments, object(), key="k")


def test_scattered_values_come_back_where_they_were():
    made = pairs(5)
    made[1].responses[0].mask = [False, True, False, True, True]
    segments = SegmentStore.from_frame(frame(made))
    wanted = np.where(segments.response_mask, np.arange(1, segments.response_offsets[-1] + 1), 0).astype(np.float32)
    batches = Packer(segments, token_rewards=wanted).pack(max_tokens=30)
    assert len(batches) > 2
    lines, lengths, values = (
        np.concatenate([getattr(batch, name) for batch in batches] + [np.array(end)])
        for name, end in (("response_line", [-1]), ("scored_length", [1.0]), ("token_rewards", [99.0]))
    )
    values = values.astype(np.float32)
    flat = scatter_values(segments, lines, lengths, values)  # a zero-loss batch came last
    assert flat.dtype == np.float32
    np.testing.assert_array_equal(flat, wanted)
    first = slice(0, 1)
    part = scatter_values(segments, lines[first], lengths[first], values[: int(lengths[0])], partial=True)
    assert np.count_nonzero(part) == lengths[0]
    with pytest.raises(DataError, match="values of a response are missing"):
        scatter_values(segments, lines[first], lengths[first], values[: int(lengths[0])])
    with pytest.raises(DataError, match="values of a response must come once"):
        scatter_values(segments, lines[[0, 0]], lengths[[0, 0]], np.tile(values[: int(lengths[0])], 2))
    with pytest.raises(DataError, match="without selection"):
        scatter_values(segments, lines[first], np.array([1]), values[:1])
    with pytest.raises(DataError, match="sum to 1, but there are 2 values"):
        scatter_values(segments, lines[first], np.array([1]), values[:2])


READER = """
import sys, numpy as np
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.data.batching.packing import Packer
from pyprefopt.data.batching.loader import StepLoader
segments = SegmentStore.open(sys.argv[1])
values = ValueStore.open(sys.argv[2])
packer = Packer(segments, token_rewards=values)
loader = StepLoader(packer, global_batch_size=2, max_tokens=999, seed=0)
assert packer.pack(loader.groups(0), max_tokens=999)[0].token_rewards.sum() > 0
assert "polars" not in sys.modules
import pyarrow as pa
assert pa.total_allocated_bytes() < 20_000, pa.total_allocated_bytes()
print("read")
"""


def test_the_trainer_reads_without_polars_and_without_a_copy(tmp_path):
    segments = SegmentStore.write(frame(pairs(300, prompt=40, length=40)), tmp_path / "segments")
    ones = np.ones(segments.response_offsets[-1], np.float32)
    ValueStore.write(tmp_path / "values", segments, ones, key="k")
    assert segments.table.nbytes > 150_000
    command = [sys.executable, "-c", READER, str(tmp_path / "segments"), str(tmp_path / "values")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "read\n", result.stderr


def test_shards_hold_whole_groups_and_at_most_the_limit(tmp_path, small_shards):
    segments = SegmentStore.write(frame(pairs(8)), tmp_path)
    lines = np.cumsum([shard["lines"] for shard in segments.manifest["shards"]])
    assert set(lines) <= set(segments.group_offsets)
    assert max(np.add.reduceat(segments.lengths, np.append(0, lines[:-1]))) <= 40
    assert SegmentStore.open(tmp_path).table.equals(segments.table)
