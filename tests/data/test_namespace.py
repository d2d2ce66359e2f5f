"""`.prefopt` in every engine, and the same functions on PyArrow, DuckDB and `datasets` columns."""

from __future__ import annotations

import subprocess
import sys

import datasets
import duckdb
import polars as pl
import pyarrow as pa
import pytest

import pyprefopt.data.namespace  # noqa: F401  (what the documentation says to import)
from pyprefopt.data.batching.alignment import spans_to_mask
from pyprefopt.data.batching.selection import random_mask, threshold_mask, top_k_mask
from pyprefopt.data.truncation.dispatch import truncate_column
from pyprefopt.errors import ConfigError, DataError
from tests.data.frames import byte_tokenizer, chat

SPANS = pl.List(pl.Struct({"start": pl.UInt32, "end": pl.UInt32}))
FRAME = pl.DataFrame(
    {
        "row": pl.Series(range(5), dtype=pl.UInt64),
        "ids": pl.Series([[5, 6, 7, 8], [1], None, [], [9, 8, 7]], dtype=pl.List(pl.UInt32)),
        "mask": pl.Series(
            [[True, True, True, False], [True], None, [], [True, False, True]], dtype=pl.List(pl.Boolean)
        ),
        "scores": pl.Series([[1.0, 4.0, 2.0, 3.0], [1.0], None, [], [0.0, 1.0, 2.0]], dtype=pl.List(pl.Float32)),
        "starts": pl.Series([[0, 1, 2, None], [0], [], [], [0, 4, 8]], dtype=pl.List(pl.UInt32)),
        "ends": pl.Series([[1, 2, 3, None], [2], [], [], [4, 8, 9]], dtype=pl.List(pl.UInt32)),
        "spans": pl.Series([[{"start": 1, "end": 2}], None, None, [], [{"start": 3, "end": 5}]], dtype=SPANS),
        "text": ["One two. Three!", "", None, "a", "中文。二 é"],
        "chats": pl.Series([chat(("user", "a b"), ("assistant", "a b")), [], None, chat(("assistant", "")), []]),
        "sets": pl.Series([["a b", "c"], [], None, [None], ["d e f"]], dtype=pl.List(pl.String)),
    }
)

OPERATIONS = {
    "ids": pl.col("ids").prefopt.truncate(ratio=0.5),
    "content": pl.col("scores").prefopt.truncate(tokens=1, mask=pl.col("mask")),
    "characters": pl.col("text").prefopt.truncate(length=2, unit="characters"),
    "words": pl.col("text").prefopt.truncate(ratio=0.5, unit="words", rounding="floor"),
    "sentences": pl.col("text").prefopt.truncate(length=1, unit="sentences"),
    "chats": pl.col("chats").prefopt.truncate(length=1, unit="words"),
    "sets": pl.col("sets").prefopt.truncate(length=1, unit="words"),
    "top": pl.col("scores").prefopt.top_k_mask(0.3),
    "top_of_mask": pl.col("scores").prefopt.top_k_mask(0.5, largest=False, mask=pl.col("mask"), rounding="ceil"),
    "not_seven": pl.col("scores").prefopt.top_k_mask(1.0, ids=pl.col("ids"), excluded_ids=[7], minimum=0),
    "beyond": pl.col("scores").prefopt.threshold_mask(2.0, mask=pl.col("mask")),
    "by_chance": pl.col("ids").prefopt.random_mask(0.5, seed=1, rows=pl.col("row"), mask=pl.col("mask")),
    "overlapping": pl.col("spans").prefopt.spans_to_mask(pl.col("starts"), pl.col("ends")),
}
EXPECTED = {
    "ids": [[5, 6], [1], None, [], [9, 8]],
    "content": [[1.0], [1.0], None, [], [0.0]],
    "characters": ["On", "", None, "a", "中文"],
    "words": ["One", "", None, "a", "中文"],
    "sentences": ["One two.", "", None, "a", "中文。"],
    "sets": [["a", "c"], [], None, [None], ["d"]],
    "top": [[False, True, False, False], [True], None, [], [False, False, True]],
    "top_of_mask": [[True, False, True, False], [True], None, [], [True, False, False]],
    "not_seven": [[True, True, False, True], [True], None, [], [True, True, False]],
    "beyond": [[False, True, True, False], [False], None, [], [False, False, True]],
    "overlapping": [[False, True, False, False], [False], [], [], [True, True, False]],
}


@pytest.fixture(scope="module")
def byte_file(tmp_path_factory):
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


def operations(byte_file):
    encoded = pl.col("text").prefopt.encode(byte_file)
    tokens = pl.col("text").prefopt.truncate(tokens=2, tokenizer=byte_file)
    return {**OPERATIONS, "encoded": encoded, "tokens": tokens}


def test_values(byte_file):
    out = FRAME.select(**operations(byte_file))
    for name, values in EXPECTED.items():
        assert out[name].to_list() == values, name
    assert [turn["content"] for turn in out["chats"][0]] == ["a b", "a"]
    assert out["tokens"].to_list()[:2] == ["On", ""]
    assert out["encoded"].list.len().to_list()[1:4] == [0, None, 1]
    assert out.select("ids", "content", "words", "chats", "sets").dtypes == [
        FRAME[name].dtype for name in ("ids", "scores", "text", "chats", "sets")
    ]


@pytest.mark.parametrize("name", [*OPERATIONS, "encoded", "tokens"])
def test_engines_chunks_and_slices_agree(byte_file, name):
    operation = operations(byte_file)[name].alias("out")
    wanted = FRAME.select(operation)
    lazy = FRAME.lazy().select(operation)
    assert lazy.collect_schema() == wanted.schema
    chunked = pl.concat([FRAME[:1], FRAME[1:1], FRAME[1:3], FRAME[3:]], rechunk=False)
    for engine in ("in-memory", "streaming"):
        assert lazy.collect(engine=engine).equals(wanted)
        assert chunked.lazy().select(operation).collect(engine=engine).equals(wanted)
        assert FRAME[2:].lazy().select(operation).collect(engine=engine).equals(wanted[2:])
    assert FRAME.clear().select(operation).schema == wanted.schema
    # within groups: elementwise, so the same
    grouped = FRAME.with_columns(operation.over(pl.col("row") % 2))
    assert grouped["out"].equals(wanted["out"])
    aggregated = FRAME.group_by(pl.col("row") % 2, maintain_order=True).agg(operation)
    assert aggregated["out"][0].to_list() == wanted["out"].gather_every(2).to_list()


@pytest.mark.parametrize("name", ["scores", "mask"])
def test_fixed_size_lists(name):
    lists = pl.Series(name, [[1.0, 3.0], [4.0, 2.0]], dtype=pl.List(pl.Float32))
    mask = pl.Series("mask", [[True, False], [True, True]])
    arrays = lists.cast(pl.Array(pl.Float32, 2)), mask.cast(pl.Array(pl.Boolean, 2))
    assert top_k_mask(arrays[0], 0.5, mask=arrays[1]).equals(top_k_mask(lists, 0.5, mask=mask))
    out = pl.DataFrame(list(arrays[:1])).lazy().select(pl.col(name).prefopt.top_k_mask(0.5)).collect(engine="streaming")
    assert out[name].to_list() == [[False, True], [True, False]]
    with pytest.raises(DataError, match="lists of one fixed size; cast them to lists"):
        arrays[0].prefopt.truncate(length=1)


def test_series_have_it_too():
    assert FRAME["ids"].prefopt.truncate(ratio=0.5).to_list() == EXPECTED["ids"]
    assert FRAME["scores"].prefopt.top_k_mask(0.3).to_list() == EXPECTED["top"]
    assert FRAME["text"].prefopt.truncate(length=1, unit="sentences").to_list() == EXPECTED["sentences"]


def test_wrong_uses_are_reported():
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        FRAME["text"].prefopt.truncate(ratio=0.5)
    with pytest.raises(ConfigError, match="unit must be 'tokens' for lists"):
        FRAME["ids"].prefopt.truncate(ratio=0.5, unit="words")
    with pytest.raises(ConfigError, match="mask must be left out for text"):
        FRAME["text"].prefopt.truncate(ratio=0.5, unit="words", mask=FRAME["mask"])
    with pytest.raises(DataError, match="'row' must hold lists or texts, got UInt64"):
        FRAME["row"].prefopt.truncate(ratio=0.5)


def relation(table, name):
    return duckdb.from_arrow(table).project(f'"{name}"')


SOURCES = {
    "array": lambda table: {name: table[name].combine_chunks() for name in table.column_names},
    "chunked": lambda table: dict(zip(table.column_names, table.columns, strict=True)),
    "narrow": lambda table: {
        "scores": table["scores"].cast(pa.list_(pa.float32())),
        "mask": table["mask"].cast(pa.list_(pa.bool_())),
        "text": table["text"].cast(pa.string()),
        "row": table["row"],
    },
    "duckdb": lambda table: {
        name: relation(table, name).to_arrow_table()[name] for name in ("scores", "mask", "text", "row")
    },
    "relation": lambda table: {name: relation(table, name) for name in table.column_names},
    "datasets": lambda table: _columns(datasets.Dataset(table)),
    "selected": lambda table: _columns(datasets.Dataset(pa.concat_tables([table, table])).select(range(5, 10))),
}


def _columns(dataset):
    return {name: dataset[name] for name in dataset.column_names}


@pytest.mark.parametrize("kind", SOURCES)
def test_other_libraries_columns(kind):
    table = FRAME.select("row", "scores", "mask", "text").to_arrow(compat_level=pl.CompatLevel.oldest())
    columns = SOURCES[kind](table)
    wanted = pa.Array if kind == "array" else pa.ChunkedArray
    scores, mask, text = columns["scores"], columns["mask"], columns["text"]
    results = {
        "top": top_k_mask(scores, 0.3),
        "beyond": threshold_mask(scores, 2.0, mask=mask),
        "sentences": truncate_column(text, length=1, unit="sentences"),
        "by_chance": random_mask(scores, 0.5, seed=1, rows=columns["row"], mask=mask),
    }
    expected = EXPECTED | {"by_chance": FRAME.select(OPERATIONS["by_chance"])["ids"].to_list()}
    for name, result in results.items():
        assert isinstance(result, wanted)
        assert result.to_pylist() == expected[name], name
    if kind in ("array", "chunked", "narrow"):
        assert results["sentences"].type == text.type


def test_spans_of_arrow_columns():
    spans, starts, ends = (FRAME[name].to_arrow() for name in ("spans", "starts", "ends"))
    assert spans_to_mask(spans, starts, ends).to_pylist() == EXPECTED["overlapping"]


def test_any_data_function_brings_the_namespace():
    program = (
        "import polars as pl, pyprefopt.data, sys; assert not hasattr(pl.Expr, 'prefopt')\n"
        "from pyprefopt.data import top_k_mask; assert hasattr(pl.Expr, 'prefopt'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
