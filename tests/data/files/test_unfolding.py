"""Small files that stand for much: work and memory stay in proportion to the input, or the file is refused."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from pyprefopt.data.files import data_file, parts, typed_files, unfolding
from pyprefopt.data.files.unfolding import unfolded_bytes
from pyprefopt.data.reading.blocks import parse_block
from pyprefopt.data.reading.frames import read_preferences
from pyprefopt.data.reading.sources import open_source
from pyprefopt.data.truncation.dispatch import truncate
from pyprefopt.errors import DataError

MIB = 1 << 20
ROW = json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}).encode() + b"\n"


@pytest.fixture
def small(monkeypatch):
    """A file may unfold to 1 MiB, or to 50 times its size."""
    monkeypatch.setattr(unfolding, "MOST_BYTES", MIB)
    monkeypatch.setattr(unfolding, "MOST_TIMES", 50)
    monkeypatch.setattr(typed_files, "MOST_BYTES", MIB)
    monkeypatch.setattr(data_file, "PIECE_BYTES", 1 << 16)


def read_all(path):
    source = open_source(path)
    return sum(parse_block(block, source.format).rows_in for block in source.blocks())


def cut(path):
    return truncate(path, length=1, unit="words", overwrite=True)


TEXTS = {
    "empty lines.jsonl.gz": ROW + b"\n" * (4 * MIB),
    "empty lines.csv.gz": b"prompt,chosen,rejected\np,c,r\n" + b"\n" * (4 * MIB),
    "blank lines.csv.gz": b"prompt,chosen,rejected\np,c,r\n" + b" \t\r\n" * MIB,
    "rows.csv.gz": b"prompt,chosen,rejected\n" + b"a,b,c\n" * 20_000,
    "space.json.gz": b"[" + ROW + b" \n" * (2 * MIB) + b"]",
    "rows.json.gz": b"[" + b",".join([ROW] * 20_000) + b"]",
}


@pytest.mark.parametrize("read", [read_all, cut])
@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_are_far_larger_than_their_file_are_refused(tmp_path, small, name, read):
    path = tmp_path / name
    path.write_bytes(gzip.compress(TEXTS[name]))
    said = (
        rf"{name}(, after [\d,]+ bytes of text,|, (line|row) \d+,)? must not unfold to more than 1 MiB and 50 times its"
    )
    with pytest.raises(DataError, match=said):
        read(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    plain = tmp_path / name.removesuffix(".gz")
    plain.write_bytes(TEXTS[name])  # the same text is taken where it is as large as its file
    read(plain)


def test_the_bytes_that_are_unpacked_are_bounded(tmp_path, small):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * (64 * MIB)))
    meter, seen = data_file.Meter(), 0
    pieces = data_file.pieces(data_file.data_file(path), meter)
    while seen <= 64 * MIB:
        try:
            seen += len(next(pieces))
        except DataError:
            break
    assert seen <= max(MIB, 50 * path.stat().st_size)


def repeated(text, rows):
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))


def pairs(chosen):
    rows = len(chosen)
    return pa.table({"prompt": repeated("p", rows), "chosen": chosen, "rejected": repeated("r", rows)})


def chats(text, rows):
    messages = pa.StructArray.from_arrays([repeated("assistant", rows), repeated(text, rows)], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32)), messages)


def views(text, rows):
    head = np.frombuffer(text[:4].encode(), np.int32)[0]
    found = np.tile(np.array([len(text), head, 0, 0], np.int32), (rows, 1))
    return pa.Array.from_buffers(pa.string_view(), rows, [None, *map(pa.py_buffer, (found.tobytes(), text.encode()))])


def nothing(kind, rows):
    return pa.Array.from_buffers(pa.null(), rows, [None]) if kind == pa.null() else pa.nulls(rows, kind)


LONG = "x" * 100_000
TABLES = {
    "dictionary": pairs(repeated(LONG, 3000)),
    "in chats": pairs(chats(LONG, 3000)),
    "nulls": pairs(pa.nulls(100_000, pa.string())),
}
TYPED = TABLES | {
    "views": pairs(views(LONG, 3000)),
    "no buffers": pa.table({name: nothing(pa.null(), 1 << 30) for name in ("prompt", "chosen", "rejected")}),
}


@pytest.mark.parametrize("name", TYPED)
def test_arrow_files_that_stand_for_far_more_are_refused(tmp_path, small, name):
    path = tmp_path / "a.arrow"
    with pa.ipc.new_file(path, TYPED[name].schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(TYPED[name])
    with pytest.raises(DataError, match=r"a.arrow, (after row|message) \d, must not unfold to more than 1 MiB"):
        read_all(path)


@pytest.mark.parametrize("name", TABLES)
def test_parquet_files_that_stand_for_far_more_are_refused(tmp_path, small, name):
    path = tmp_path / "a.parquet"
    pq.write_table(TABLES[name], path, store_schema=False)
    with pytest.raises(DataError, match=r"a.parquet, (after row|row group) 0, must not unfold to more than 1"):
        read_all(path)


@pytest.mark.parametrize("name", ["dictionary", "in chats"])
def test_a_dictionary_is_not_unfolded_before_its_size_is_known(tmp_path, small, monkeypatch, name):
    path, held = tmp_path / "a.parquet", []
    pq.write_table(TABLES[name], path, store_schema=False)

    def look(batch):
        held.append(batch.nbytes)
        return unfolded_bytes(batch)

    monkeypatch.setattr(typed_files, "unfolded_bytes", look)
    with pytest.raises(DataError, match="must not unfold"):
        list(typed_files.batches(data_file.data_file(path), ["prompt", "chosen", "rejected"], 1 << 24))
    assert max(held) < MIB


def fallen_back(path, references, plain, rows):
    """A list of references to one long text, and lists of texts that stand whole, as writers do past a limit."""
    texts = [LONG] * references + [f"{index:040}" for index in range(plain)]
    ends = np.append(0, np.linspace(references, len(texts), rows).astype(np.int32))
    messages = pa.StructArray.from_arrays([pa.array(["assistant"] * len(texts)), pa.array(texts, pa.large_string())],
                                          ["role", "content"])  # fmt: skip
    chat = pa.ListArray.from_arrays(pa.array(ends), messages)
    table = pa.table({"prompt": ["p"] * rows, "chosen": chat, "rejected": ["r"] * rows})
    pq.write_table(table, path, store_schema=False, dictionary_pagesize_limit=110_000)


def test_a_row_of_references_beside_whole_texts_is_not_unfolded(tmp_path, small, monkeypatch):
    path, held = tmp_path / "a.parquet", []
    fallen_back(path, 2000, 8000, 50)  # 200 MB in one row
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(2)
    assert chunk.total_uncompressed_size - 2 * len(LONG) > 16 * chunk.num_values  # as of texts that stand whole

    def look(batch):
        held.append(batch.nbytes)
        return unfolded_bytes(batch)

    monkeypatch.setattr(typed_files, "unfolded_bytes", look)
    with pytest.raises(DataError, match=r"a.parquet, after row 0, must not unfold to more than 1 MiB"):
        list(typed_files.batches(data_file.data_file(path), ["prompt", "chosen", "rejected"], 1 << 24))
    assert max(held) < 4 * MIB


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_row_that_alone_unfolds_to_far_too_much_is_named(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(typed_files, "BATCH_BYTES", 8 * MIB)
    monkeypatch.setattr(typed_files, "MOST_BYTES", MIB)
    path = tmp_path / f"a.{suffix}"
    few, many = chats(LONG, 5), chats(LONG, 200)
    whole = pa.ListArray.from_arrays(pa.array([0, 200], pa.int32()), many.values)
    table = pairs(pa.concat_arrays([few, whole, few]))
    if suffix == "parquet":
        pq.write_table(table, path, store_schema=False)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match=rf"a.{suffix}, row 5, must not unfold to more than 8 MiB, got 1\d MiB; drop"):
        list(typed_files.batches(data_file.data_file(path), ["prompt", "chosen", "rejected"], 1 << 24))


def test_what_is_repeated_in_measure_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(typed_files, "MOST_BYTES", 1000)  # so that columns are read as dictionaries
    texts = [f"a text {index % 3}" for index in range(200)]
    table = pa.table({"prompt": texts, "chosen": chats("it is so", 200), "rejected": ["no"] * 200, "n": range(200)})
    plain = pa.schema([
        ("prompt", pa.string()), ("chosen", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("rejected", pa.string()), ("n", pa.int64()),
    ])  # fmt: skip
    path = tmp_path / "a.parquet"
    pq.write_table(table.cast(plain), path, row_group_size=70)
    found = list(typed_files.batches(data_file.data_file(path), table.column_names, 500))
    assert pa.Table.from_batches(found).equals(table.cast(plain))
    assert max(batch.num_rows for batch in found) < 70
    assert read_preferences(path).equals(read_preferences(table.cast(plain)))


def test_rows_are_measured_unfolded(monkeypatch):
    monkeypatch.setattr(parts, "BLOCK_BYTES", 1 << 20)
    table = pairs(repeated("x" * 10_000, 3000))
    blocks = list(open_source(table).blocks())
    assert 10 < len(blocks) < 60
    assert max(unfolded_bytes(block.rows) for block in blocks) < 2 << 20


KINDS = {
    "text": (pa.array(["ab", None, "c"]), [10, 8, 9]),
    "dictionary": (pa.array(["ab", None, "ab"]).dictionary_encode(), [10, 0, 10]),
    "view": (pa.array(["ab", None, "c"], pa.string_view()), [18, 16, 17]),
    "list": (pa.array([["ab"], [], None]), [18, 8, 8]),
    "list view": (pa.array([["ab"], [], ["c", "d"]], pa.list_view(pa.string())), [18, 8, 26]),
    "fixed": (pa.array([["ab", "c"], ["d", "e"]], pa.list_(pa.string(), 2)), [27, 26]),
    "struct": (pa.array([{"a": "ab", "b": "c"}, None, {"a": "d", "b": ""}]), [19, 16, 17]),
    "structs": (pa.array([[{"a": "ab"}, {"a": "c"}], None, [{"a": "d"}]]), [27, 8, 17]),
    "in structs": (pa.StructArray.from_arrays([pa.array(["ab", "c"]).dictionary_encode()], ["a"]), [10, 9]),
    "number": (pa.array([1, 2], pa.int64()), [8, 8]),
}


@pytest.mark.parametrize("name", KINDS)
def test_sizes_of_elements(name):
    array, sizes = KINDS[name]
    assert unfolding._sizes(array).tolist() == sizes
    assert unfolding._sizes(array[1:]).tolist() == sizes[1:]
    if unfolding._folds(array.type):
        assert [unfolding._total(part) for part in (array, array[1:], array[:0])] == [sum(sizes), sum(sizes[1:]), 0]


def test_a_table_in_memory_that_stands_for_a_far_larger_one() -> None:
    text = pa.array(["x" * MIB])

    def table(rows: int) -> pa.Table:
        repeated = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), text)
        return pa.table({"prompt": repeated, "chosen": repeated, "rejected": [str(row) for row in range(rows)]})

    assert read_preferences(table(4)).height == 4
    large = table(1_000)
    for made in (table(20_000), large, pa.RecordBatchReader.from_batches(large.schema, large.to_batches())):
        with pytest.raises(DataError, match=r"^<frame>, with row \d+, must not unfold to more than 256 MiB"):
            read_preferences(made)
