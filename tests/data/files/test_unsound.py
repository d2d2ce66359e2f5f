"""Files and tables that lie about themselves: one sentence that names file, place and what is wrong."""

from __future__ import annotations

import os
import re

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from pyprefopt import data
from pyprefopt.data.arrow import MOST_COLUMNS, MOST_LEVELS
from pyprefopt.data.batching.selection import top_k_mask
from pyprefopt.data.files import tables, typed_files
from pyprefopt.data.reading.frames import read_preferences
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.data.truncation.dispatch import truncate, truncate_column
from pyprefopt.errors import ConfigError, DataError

ROWS = 3
TEXTS = {"prompt": ["p"] * ROWS, "chosen": ["c"] * ROWS, "rejected": ["r"] * ROWS}


def texts(offsets, kind=pa.string()):  # noqa: B008
    """Three texts over 'abc'; pyarrow looks at the last offset alone."""
    wide = np.int64 if kind == pa.large_string() else np.int32
    return pa.Array.from_buffers(kind, ROWS, [None, pa.py_buffer(np.array(offsets, wide)), pa.py_buffer(b"abc")])


def lists(offsets):
    """Three lists over 0, 1, 2."""
    return pa.Array.from_buffers(
        pa.list_(pa.float32()), ROWS, [None, pa.py_buffer(np.array(offsets, np.int32))],
        children=[pa.array([0, 1, 2], pa.float32())],
    )  # fmt: skip


LIES = {
    "beyond": texts([0, 2**30, 2, 3]),
    "descending": texts([0, 2, 1, 3]),
    "negative": texts([0, -5, 2, 3]),
    "large": texts([0, 2**40, 2, 3], pa.large_string()),
    "not UTF-8": pa.Array.from_buffers(
        pa.string(), ROWS, [None, pa.py_buffer(np.array([0, 1, 2, 3], np.int32)), pa.py_buffer(b"a\xffc")]
    ),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 9, 0]), pa.array(["a"]), safe=False),
    "lists": lists([0, 2**20, 2, 3]),
    "struct": pa.StructArray.from_arrays([pa.array(["a"] * ROWS), texts([0, 2**30, 2, 3])], ["role", "content"]),
}  # fmt: skip


def write(path, table):
    new = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
    with new(path, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("ending", [".arrow", ".arrows", ".feather"])
@pytest.mark.parametrize("lie", LIES)
def test_arrow_files_are_looked_at_before_they_are_read(tmp_path, lie, ending):
    path = write(tmp_path / f"a{ending}", pa.table(TEXTS | {"chosen": LIES[lie]}))
    said = f"{path}, after row 0, is not sound Arrow data: .*; write it again$"
    with pytest.raises(DataError, match=said):
        read_preferences(path)
    kinds = "column 'chosen' must hold strings"  # what is no text is not read
    with pytest.raises(DataError, match=kinds if lie in ("lists", "struct") else said):
        truncate(path, length=1, unit="words")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [f"a{ending}"]


@pytest.mark.parametrize("lie", LIES)
def test_tables_are_looked_at_before_they_are_read(lie):
    table = pa.table(TEXTS | {"chosen": LIES[lie]})
    for source in (table, table.to_reader(), table.to_batches()[0]):
        with pytest.raises(DataError, match=r"<frame>, after row 0, is not sound Arrow data: .*; write it again$"):
            read_preferences(source)
    with pytest.raises(DataError, match="the table is not sound Arrow data"):
        truncate(table, length=1, unit="words")


def test_columns_are_looked_at_before_they_are_read():
    for call in (
        lambda: truncate_column(LIES["beyond"], length=1, unit="words"),
        lambda: top_k_mask(lists([0, 2**20, 2, 3]), 0.5),
        lambda: top_k_mask(pa.chunked_array([lists([0, 2, 1, 3])]), 0.5),
    ):
        with pytest.raises(DataError, match=r"a column is not sound Arrow data: .*; write it again"):
            call()
    with pytest.raises(DataError, match="the segments frame is not sound Arrow data"):
        SegmentStore.from_frame(pa.table({"ids": lists([0, 2**20, 2, 3])}))


def test_a_batch_behind_the_first_rows_is_looked_at_too(tmp_path):
    good = pa.record_batch({name: values * 3000 for name, values in TEXTS.items()})
    bad = pa.record_batch(list((TEXTS | {"chosen": LIES["beyond"]}).values()), names=list(TEXTS))
    path = tmp_path / "a.arrow"
    with pa.ipc.new_file(path, bad.schema) as writer:
        writer.write_batch(good.cast(bad.schema))
        writer.write_batch(bad)
    for read in (read_preferences, lambda path: truncate(path, length=1, unit="words")):
        with pytest.raises(DataError, match=r"a.arrow, after row 9000, is not sound Arrow data"):
            read(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.arrow"]


def parquet(path, table):
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("make", [parquet, write])
def test_columns_must_be_told_apart(tmp_path, make):
    ending = "parquet" if make is parquet else "arrow"
    twice = pa.Table.from_arrays([pa.array(["a"])] * 4, names=["prompt", "chosen", "rejected", "chosen"])
    path = make(tmp_path / f"a.{ending}", twice)
    for source in (path, twice):
        with pytest.raises(DataError, match="column 'chosen' is there more than once; name each column once"):
            read_preferences(source)
    many = pa.table({f"c{index}": ["a"] for index in range(MOST_COLUMNS + 1)})
    with pytest.raises(DataError, match="must have at most 10,000 columns, got 10,001; keep those you need"):
        read_preferences(many)
    kind = pa.string()
    for _ in range(MOST_LEVELS + 1):
        kind = pa.list_(kind)
    deep = pa.table(TEXTS | {"extra": pa.nulls(ROWS, kind)})
    with pytest.raises(DataError, match="column 'extra' must not be nested deeper than 64 levels; flatten it"):
        read_preferences(deep)


@pytest.mark.parametrize("ending", ["arrow", "parquet"])
def test_names_must_be_utf8(tmp_path, ending):
    table = pa.table(TEXTS | {"qqqq": ["x"] * ROWS})
    path = (parquet if ending == "parquet" else write)(tmp_path / f"a.{ending}", table)
    path.write_bytes(path.read_bytes().replace(b"qqqq", b"q\xffqq"))
    if ending == "parquet":  # Arrow's own schema in the footer is in base64
        pq.write_table(table, path, store_schema=False)
        path.write_bytes(path.read_bytes().replace(b"qqqq", b"q\xffqq"))
    for read in (read_preferences, lambda path: truncate(path, length=1, unit="words")):
        with pytest.raises(
            DataError, match=rf"a.{ending}: the names and metadata of fields must be UTF-8, got 'q\\xffqq'; rename it"
        ):
            read(path)


def test_metadata_of_fields_must_be_utf8():
    inner = pa.field("a", pa.string(), metadata={b"k": b"\xff"})
    table = pa.table(TEXTS | {"extra": pa.array([{"a": "x"}] * ROWS, pa.struct([inner]))})
    with pytest.raises(DataError, match=r"the names and metadata of fields must be UTF-8, got 'k\\xff'; rename it"):
        read_preferences(table)
    table = pa.table(TEXTS).replace_schema_metadata({b"\xff": b""})  # of the whole table nothing is read
    assert read_preferences(table).height == ROWS


def test_feathers_first_version_is_named(tmp_path):
    path = tmp_path / "a.feather"
    path.write_bytes(b"FEA1" + b"\0" * 100 + b"FEA1")
    with pytest.raises(DataError, match=r"a.feather is of Feather's first version; write it again in the second"):
        read_preferences(path)


ODD = {
    "decimal256": pa.array([1], pa.decimal256(50, 2)),
    "decimal32": pa.array([1], pa.decimal32(5, 2)),
    "run-end": pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["a"])),
    "union": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
    "interval": pa.array([pa.MonthDayNano([1, 2, 3])]),
    "list of none": pa.array([[]], pa.list_(pa.int8(), 0)),
    "in a list": pa.array([[1]], pa.list_(pa.decimal256(50, 2))),
    "time zone": pa.array([1], pa.timestamp("s", "Mars/Phobos")),
    "date": pa.array([2**31 - 1], pa.int32()).cast(pa.date32()),
    "time": pa.array([90_000], pa.time32("s")),
    "timestamp": pa.array([[{"at": 2**62}]], pa.list_(pa.struct([("at", pa.timestamp("ms"))]))),
    "bytes": pa.array([b"\xff"]),
}


@pytest.mark.parametrize("column", ["prompt", "chosen", "extra"])
@pytest.mark.parametrize("kind", ODD)
def test_types_that_cannot_be_read_are_told(tmp_path, capfd, kind, column):
    table = pa.table({"prompt": ["p"], "chosen": ["c d"], "rejected": ["r"], column: ODD[kind]})
    path = write(tmp_path / "a.arrow", table)
    said = r"cannot be read; cast it|cannot be read \(|(no calendar has|range of .*); write it again|be read as text"
    for read in (read_preferences, lambda source: truncate(source, length=1, unit="words")):
        for source in (path, table):
            try:
                read(source)
            except DataError as error:
                assert "\n" not in str(error)  # noqa: PT017
                if kind != "bytes" and column == "extra":
                    assert re.search(said, str(error))  # noqa: PT017
            else:
                assert kind == "bytes"
    assert "panicked" not in capfd.readouterr().err


# -- paths


def test_a_path_that_is_not_utf8_is_told(tmp_path):
    name = os.fsdecode(b"a\xff.jsonl")
    (tmp_path / name).write_text("{}")
    said = r"a path must be UTF-8, got '.*a\\xff\.jsonl'; rename the file or folder"
    for call in (
        read_preferences,
        lambda path: truncate(path, length=1, unit="words"),
        SegmentStore.open,
        data.inspect,
    ):
        with pytest.raises(ConfigError, match=said):
            call(tmp_path / name)
    with pytest.raises(ConfigError, match="a path must be UTF-8"):
        read_preferences(tmp_path)  # the folder that it is in


def test_a_path_that_cannot_be_followed_is_told(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="cannot be read: File name too long; give a path, which is shorter"):
        read_preferences("a" * 5000)
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        truncate("a" * 5000 + ".jsonl", length=1, unit="words")
    path = tmp_path / "a.jsonl"
    path.write_text("{}")

    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    for read in (read_preferences, lambda path: truncate(path, length=1, unit="words")):
        with pytest.raises(DataError, match=r"a.jsonl cannot be read: Permission denied; ask for the right to read it"):
            read(path)
    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read_preferences(tmp_path)


def test_polars_frames_are_taken_as_they_are():
    assert read_preferences(pl.DataFrame(TEXTS)).height == ROWS


@pytest.mark.parametrize("suffix", [".arrow", ".arrows", None])
def test_a_batch_is_looked_at_once(tmp_path, monkeypatch, suffix):
    looked = []
    for module in (tables, typed_files):
        monkeypatch.setattr(module, "check_sound", lambda batch, _: looked.extend(batch.schema.names))
    table = pa.table(TEXTS | {"note": ["n"] * ROWS})
    read_preferences(table if suffix is None else str(write(tmp_path / f"pairs{suffix}", table)))
    assert sorted(looked) == sorted(table.column_names)
