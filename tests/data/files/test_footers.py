"""What we read of Parquet footers is what pyarrow reads of sound ones."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyprefopt.data import _native
from pyprefopt.data.files import data_file, typed_files
from tests.data.mutated.samples import parquets

CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "ZSTD": 6}


def others():
    """Columns of many types, in lists and structs, in files of each kind of packing."""
    table = pa.table(
        {
            "a.b": [{"x": 1, "y": ["p", "q"]}, None, {"x": None, "y": []}],
            "fixed": pa.array([b"abcd", None, b"efgh"], pa.binary(4)),
            "lists": [[[1.5]], [[], [2.5, 3.5]], None],
            "map": pa.array([[("k", "v")], [], None], pa.map_(pa.string(), pa.string())),
            "none": pa.nulls(3),
        }
    )
    for compression in ("snappy", "gzip", "zstd"):
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=2, compression=compression)
        yield compression, sink.getvalue()
    sink = io.BytesIO()
    pq.write_table(table.slice(0, 0), sink)
    yield "no rows", sink.getvalue()


@pytest.mark.parametrize(("name", "content"), [*parquets().items(), *others()])
def test_footers_say_what_pyarrow_reads(name, content):
    metadata = pq.ParquetFile(io.BytesIO(content)).metadata
    names = {metadata.schema.to_arrow_schema().names[0], "chosen", "lists", "fixed", "none"}
    found = _native.read_footer(typed_files._footer(io.BytesIO(content)), names)
    assert len(found) == metadata.num_row_groups
    for number, group in enumerate(found):
        known = metadata.row_group(number)
        assert (group["rows"], group["bytes"]) == (known.num_rows, known.total_byte_size)
        chunks = iter(group["chunks"])
        for index in range(known.num_columns):
            column, schema = known.column(index), metadata.schema.column(index)
            if not any(schema.path == name or schema.path.startswith(f"{name}.") for name in names):
                continue
            first = [column.data_page_offset]
            first += [column.dictionary_page_offset] if column.has_dictionary_page else []
            assert next(chunks) == {
                "path": column.path_in_schema,
                "in_lists": schema.max_repetition_level > 0,
                "is_text": column.physical_type == "BYTE_ARRAY",
                "width": max(0, schema.length or 0),
                "values": column.num_values,
                "bytes": column.total_uncompressed_size,
                "packed": column.total_compressed_size,
                "codec": CODECS[column.compression],
                "is_delta": "DELTA_BYTE_ARRAY" in column.encodings,
                "first_page": min(first),
            }
        assert next(chunks, None) is None


def test_wide_values_are_read_in_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(typed_files, "BATCH_BYTES", 1 << 16)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": pa.array([b"p" * 1000] * 500, pa.binary(1000))}), path)
    found = list(typed_files.batches(data_file.data_file(path), ["prompt"], 1 << 24))
    assert sum(batch.num_rows for batch in found) == 500
    assert max(batch.num_rows for batch in found) <= 65


def test_the_size_of_a_dictionary_is_that_of_its_page(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["one", "two"] * 50}), path, compression="none")
    with path.open("rb") as opened:
        (group,) = _native.read_footer(typed_files._footer(opened), {"prompt"})
        (chunk,) = group["chunks"]
        assert typed_files._Leaf.of(opened, chunk).longest == 14
