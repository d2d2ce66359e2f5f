"""Small valid files of every kind, as bytes, and a prepared folder."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq

from tests.data.prepared import run, write_pairs, write_tokenizer

ROWS = [
    {"prompt": f"say {i} é", "chosen": f"{i} it is, surely" * (1 + i % 3), "rejected": f"no, {i}", "id": i}
    for i in range(12)
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
        "source": "a" if row["id"] % 2 else None,
        "scores": [1.5, row["id"]],
    }
    for row in ROWS
]


def files() -> dict[str, bytes]:
    """Name -> content."""
    texts, chats = pa.Table.from_pylist(ROWS), pa.Table.from_pylist(CHATS)
    chats = chats.set_column(3, "source", chats["source"].combine_chunks().dictionary_encode())
    views = texts.cast(pa.schema([(n, pa.string_view() if n != "id" else pa.int64()) for n in texts.column_names]))
    found = {
        "texts.arrow": _ipc(texts),
        "chats.arrow": _ipc(chats),
        "views.arrow": _ipc(views),
        "lz4.arrow": _ipc(chats, compression="lz4"),
        "zstd.arrow": _ipc(texts, compression="zstd"),
        "stream.arrows": _ipc(chats, stream=True),
        "polars.arrow": _polars(CHATS),
        "one.feather": _feather(texts, version=1, compression=None),
        "two.feather": _feather(chats, version=2, compression="lz4"),
        "texts.parquet": _parquet(texts),
        "chats.parquet": _parquet(chats, compression="none", row_group_size=5),
        "delta.parquet": _parquet(
            texts, data_page_version="2.0", use_dictionary=False, column_encoding={"prompt": "DELTA_BYTE_ARRAY"}
        ),
        "texts.csv": pl.DataFrame(ROWS).write_csv().encode(),
        "texts.tsv": pl.DataFrame(ROWS).write_csv(separator="\t", quote_style="always").encode(),
        "texts.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
        "chats.json": json.dumps(CHATS, indent=1, ensure_ascii=False).encode(),
    }
    lines = found["texts.jsonl"]
    found["a.jsonl.gz"], found["a.csv.gz"] = gzip.compress(lines), gzip.compress(found["texts.csv"])
    found["a.jsonl.bz2"], found["a.jsonl.xz"] = bz2.compress(lines), lzma.compress(lines)
    found["a.json.zst"] = pa.compress(found["chats.json"], "zstd", asbytes=True)
    return found


def parquets() -> dict[str, bytes]:
    """Parquet files, flat and nested, of one row group and several: name -> content."""
    texts, chats = pa.Table.from_pylist(ROWS[:4]), pa.Table.from_pylist(CHATS[:5])
    lean = {"store_schema": False, "compression": "none"}
    return {
        "flat.parquet": _parquet(texts.select(["prompt", "chosen", "rejected"]), **lean),
        "groups.parquet": _parquet(texts, row_group_size=2, **lean),
        "chats.parquet": _parquet(chats, row_group_size=3, **lean),
        "schema.parquet": _parquet(texts),
        "delta.parquet": _parquet(
            texts, use_dictionary=False, column_encoding={"prompt": "DELTA_BYTE_ARRAY"}, write_page_index=True, **lean
        ),
    }


def folder(directory: Path) -> Path:
    """A prepared folder of three shards with a tokenizer beside it."""
    from pyprefopt.data.files import parts

    before = parts.BLOCK_BYTES, parts.BLOCK_ROWS
    parts.BLOCK_BYTES, parts.BLOCK_ROWS = 600, 8
    try:
        run(
            str(write_pairs(directory / "pairs.jsonl", 20)), write_tokenizer(directory / "tokenizer"), directory / "out"
        )
    finally:
        parts.BLOCK_BYTES, parts.BLOCK_ROWS = before
    return directory / "out"


def _ipc(table: pa.Table, *, compression: str | None = None, stream: bool = False) -> bytes:
    sink = pa.BufferOutputStream()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=5)
    return sink.getvalue().to_pybytes()


def _polars(rows: list[dict[str, object]]) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(rows).write_ipc(file, compression="zstd")
    return file.getvalue()


def _feather(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pyarrow.feather.write_feather(table, file, **options)
    return file.getvalue()


def _parquet(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()
