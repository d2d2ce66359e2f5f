"""Any container, cut into any blocks, gives the same rows; what cannot be read is named with file, place and remedy."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
from itertools import pairwise

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyprefopt.data import _native
from pyprefopt.data.files import parts
from pyprefopt.data.reading.blocks import parse_block
from pyprefopt.data.reading.formats import lines_bytes
from pyprefopt.data.reading.frames import read_preferences, scan_candidates, scan_preferences
from pyprefopt.data.reading.sources import open_source
from pyprefopt.data.truncation.dispatch import truncate
from pyprefopt.errors import ConfigError, DataError

ROWS = [{"prompt": f'Hi {i}\n"é" 😀, x', "chosen": f"Hello {i}.", "rejected": "No.\r\n", "id": i} for i in range(5)]
FRAME = pl.DataFrame(ROWS)


def zstd(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstd, ".bz2": bz2.compress, ".xz": lzma.compress}
TEXTS = {
    "a.jsonl": "\n".join(json.dumps(row) for row in ROWS).encode(),
    "b.json": json.dumps(ROWS, indent=2).encode(),
    "c.csv": FRAME.write_csv().encode(),
    "d.tsv": FRAME.write_csv(separator="\t").encode(),
    "e.csv": FRAME.write_csv(line_terminator="\r\n", quote_style="always").encode(),
}
WRITERS = {
    "f.parquet": lambda path: FRAME.write_parquet(path, row_group_size=2),
    "g.arrow": FRAME.write_ipc,
    "h.arrow": FRAME.write_ipc_stream,
    "i.feather": FRAME.write_ipc,
}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def all_rows(source, carry=False, **options):
    opened = open_source(source, **options)
    blocks = list(opened.blocks(carry=carry))
    parsed = [parse_block(pickle.loads(pickle.dumps(block)), opened.format, carry=carry) for block in blocks]  # noqa: S301
    return blocks, pl.concat([block.frame for block in parsed]), pl.concat([block.rejects for block in parsed])


# -- containers


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("name", TEXTS)
def test_text_files(tmp_path, name, ending):
    path = tmp_path / (name + ending)
    path.write_bytes(PACK[ending](TEXTS[name]))
    assert read_preferences(path).equals(read_preferences(FRAME))


@pytest.mark.parametrize("ending", PACK)
def test_members_one_after_the_other(tmp_path, ending):
    path = tmp_path / ("a.jsonl" + ending)
    path.write_bytes(b"".join(PACK[ending](json.dumps(row).encode() + b"\n") for row in ROWS))
    assert read_preferences(path).equals(read_preferences(FRAME))


@pytest.mark.parametrize("name", WRITERS)
def test_typed_files(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert read_preferences(tmp_path / name).equals(read_preferences(FRAME))


def tables():
    import duckdb

    def dataset():
        datasets = pytest.importorskip("datasets")
        return datasets.Dataset.from_list([ROWS[4], *ROWS]).select(range(1, 6))  # with an index mapping

    table = FRAME.to_arrow()
    return {
        "polars": lambda: FRAME,
        "chunks": lambda: pl.concat([FRAME[:2], FRAME[2:]], rechunk=False),
        "lazy": FRAME.lazy,
        "table": lambda: table,
        "reader": lambda: table.to_reader(max_chunksize=2),
        "duckdb": lambda: duckdb.from_arrow(table),
        "dataset": dataset,
        "categories": lambda: FRAME.with_columns(pl.col("rejected").cast(pl.Categorical)),
        "bytes": lambda: FRAME.with_columns(pl.col("prompt").cast(pl.Binary)),
    }


@pytest.mark.parametrize("name", tables())
def test_tables(name):
    frame = read_preferences(tables()[name]())
    assert frame.lazy().collect().equals(read_preferences(FRAME))


VIEWS = {
    "text": (pa.string_view(), ["a", None, "ü", "d"]),
    "bytes": (pa.binary_view(), [b"a", b"b", None, b"d"]),
    "struct": (pa.struct([pa.field("a", pa.string_view())]), [{"a": "x"}, {"a": "y"}, {"a": None}, {"a": "z"}]),
    "texts": (pa.list_(pa.string_view()), [["a"], [], ["b", "c"], None]),
    "array": (pa.list_(pa.string_view(), 1), [["a"], ["b"], ["c"], ["d"]]),
    "lists": (pa.list_view(pa.int64()), [[1], None, [2, 3], []]),
    "large": (pa.large_list_view(pa.int64()), [[1], None, [2, 3], []]),
    "nested": (pa.list_view(pa.list_view(pa.string_view())), [[["a"], []], None, [["b", "c"]], []]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_carried_columns_of_view_types(tmp_path, name):
    kind, values = VIEWS[name]
    columns = {"prompt": ["p"] * 4, "chosen": ["c", "", "c", "c"], "rejected": ["r"] * 4}  # the second row is bad
    table = pa.table(columns | {"extra": pa.array(values, kind)})
    with pa.ipc.new_file(tmp_path / "views.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    for source, first in ((table, 0), (tmp_path / "views.arrow", 0), (table.slice(1), 1)):
        wanted = [value for row, value in enumerate(values) if row >= first and row != 1]
        assert read_preferences(source, on_error="skip")["extra"].to_list() == wanted


def test_list_views_inside_of_other_types_are_refused():
    kind = pa.list_(pa.list_view(pa.int64()))
    table = pa.table({"prompt": ["p"], "chosen": ["c"], "rejected": ["r"], "extra": pa.array([[[1]]], kind)})
    with pytest.raises(DataError, match="column 'extra' holds list views inside of another type; write them as lists"):
        read_preferences(table)


def test_a_file_that_polars_wrote_or_truncate_made(tmp_path):
    FRAME.with_columns(extra=pl.lit("e")).write_ipc(tmp_path / "new.arrow", compat_level=pl.CompatLevel.newest())
    cut = truncate(tmp_path / "new.arrow", ratio=0.5, unit="words", out=tmp_path / "cut.arrow")
    for path in (tmp_path / "new.arrow", cut):
        assert read_preferences(path, on_error="skip")["extra"].to_list()[0] == "e"


def test_chats_through_every_container(tmp_path):
    chat = [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "é"}]
    rows = [{"chosen": chat, "rejected": [*chat[:1], {"role": "assistant", "content": text}]} for text in "xy"]
    frame = pl.DataFrame(rows)
    expected = read_preferences(frame)
    assert read_preferences(jsonl(tmp_path / "a.jsonl", rows)).equals(expected)
    frame.write_parquet(tmp_path / "a.parquet")
    assert read_preferences(tmp_path / "a.parquet").equals(expected)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["chosen", "rejected"])
        writer.writeheader()
        writer.writerows({name: json.dumps(value) for name, value in row.items()} for row in rows)
    assert read_preferences(tmp_path / "a.csv").equals(expected)


def test_types_of_csv_columns_do_not_depend_on_blocks(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text(
        "prompt,chosen,rejected,score_chosen,n,x,zip,flag,t,chosen_complete\n"
        "p,a,7,1.5,1,1,007,true,,true\n"
        "2,b,c,,2,2.5,12,false,word,False\n"
    )
    frames = []
    for rows in (1, 100):
        monkeypatch.setattr(parts, "BLOCK_ROWS", rows)
        frames.append(read_preferences(path))
    assert frames[0].equals(frames[1])
    types = {"n": pl.Int64, "x": pl.Float64, "zip": pl.String, "flag": pl.Boolean, "t": pl.String}
    assert {name: frames[0].schema[name] for name in types} == types
    assert frames[0]["rejected"][0][0]["content"] == "7"
    assert frames[0]["score_chosen"].to_list() == [1.5, None]
    assert frames[0]["chosen_complete"].to_list() == [True, False]


# -- several files


def test_globs_folders_and_lists_count_rows_on(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    paths = [jsonl(folder / f"{name}.jsonl", ROWS[start : start + 2]) for name, start in (("a", 0), ("b", 2))]
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[4]).encode()))
    (folder / "README.md").write_text("about")
    (folder / ".hidden").write_text("x")
    expected = read_preferences(FRAME)
    for source in (folder, str(folder), folder / "*.jsonl*", [folder / "c.jsonl.gz", *paths]):
        assert read_preferences(source).equals(expected)
    opened = open_source(folder)
    assert [file.rsplit("/", 1)[1] for file in opened.files] == ["a.jsonl", "b.jsonl", "c.jsonl.gz"]
    assert [path.rsplit("/", 1)[1] for path in opened.ignored] == [".hidden", "README.md"]
    blocks = list(opened.blocks())
    assert [(block.index, block.first_row, block.rows_in) for block in blocks] == [(0, 0, 2), (1, 2, 2), (2, 4, 1)]


def test_rejects_name_file_and_global_row(tmp_path):
    jsonl(tmp_path / "a.jsonl", ROWS[:2])
    jsonl(tmp_path / "b.jsonl", [ROWS[2], {**ROWS[3], "chosen": ""}])
    rejects = scan_preferences(tmp_path).rejects
    assert rejects.select("file", "row").rows() == [(str(tmp_path / "b.jsonl"), 3)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jsonl", "b.parquet"], "must be of one kind, got json: .*a.jsonl; parquet: .*b.parquet"),
        (["a.jsonl", "notes.txt"], "notes.txt must be .jsonl"),
        (["sub/a.jsonl"], "it holds the folder 'sub'; name the files by a glob"),
        (["README.md"], "holds no data file"),
    ],
)
def test_folders_that_are_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        jsonl(tmp_path / name, ROWS)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path)


def test_files_of_one_source_have_one_format(tmp_path):
    jsonl(tmp_path / "a.jsonl", ROWS)
    jsonl(tmp_path / "b.jsonl", [{"messages": []}])
    with pytest.raises(
        DataError, match=r"b\.jsonl: no row of its first block fits format 'preference', which .*a\.jsonl"
    ):
        scan_preferences(tmp_path)


def test_a_file_without_rows_is_refused(tmp_path):
    jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"b\.jsonl holds no rows; fill it, or leave it out"):
        scan_preferences(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the list of files is empty"),
        ("/nowhere/*.jsonl", "no file matches"),
        (7, "must be a path, a list of paths or a table .* got builtins.int"),
    ],
)
def test_what_is_no_source(source, message):
    with pytest.raises(DataError, match=message):
        open_source(source)


def test_a_file_named_twice(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError, match="is named twice"):
        open_source([path, tmp_path])


def test_a_reader_is_read_once():
    source = open_source(FRAME.to_arrow().to_reader(max_chunksize=2))
    assert sum(block.rows_in for block in source.blocks()) == 5
    with pytest.raises(DataError, match="which can be read once"):
        list(source.blocks())


def test_splits_and_streams_of_datasets_are_refused():
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(ROWS)
    with pytest.raises(DataError, match=r"holds the splits train; pass one of them, as dataset\['train'\]"):
        open_source(datasets.DatasetDict({"train": dataset}))

    class Streamed:
        def with_format(self, kind):
            return self

    with pytest.raises(DataError, match="without a length"):
        open_source(Streamed())


def test_blocks_of_tables_do_not_depend_on_batches(monkeypatch):
    monkeypatch.setattr(parts, "BLOCK_BYTES", 5000)
    table = pl.concat([FRAME] * 300).to_arrow()
    sizes = [
        [block.rows_in for block in open_source(table.to_reader(max_chunksize=size)).blocks()] for size in (1, 7, 5000)
    ]
    assert sizes[0] == sizes[1] == sizes[2]
    assert len(sizes[0]) > 3
    assert sum(sizes[0]) == 1500


# -- blocks


@pytest.mark.parametrize("name", [*TEXTS, *WRITERS, "table"])
def test_blocks_of_any_size_hold_the_same_rows(tmp_path, monkeypatch, name):
    source = FRAME if name == "table" else tmp_path / name
    if name in TEXTS:
        source.write_bytes(TEXTS[name])
    elif name in WRITERS:
        WRITERS[name](source)
    expected = read_preferences(source)
    for size in (1, 150, 1 << 24):
        monkeypatch.setattr(parts, "BLOCK_BYTES", size)
        blocks, frame, _ = all_rows(source)
        assert frame["row"].to_list() == list(range(5))
        assert [block.first_row for block in blocks] == [sum(b.rows_in for b in blocks[:i]) for i in range(len(blocks))]
        assert len(blocks) == (5 if size == 1 else len(blocks))
        assert read_preferences(source).equals(expected)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def split(layout, data, cuts, **limits):
    limits = {"block_bytes": 40, "block_rows": 3, "row_bytes": 1 << 20, **limits}
    splitter = _native.TextBlocks(layout, **limits)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    blocks = [b for start, end in pairwise(edges) for b in splitter.push(data[start:end])]
    return [(lines_bytes(data), rows, line) for data, rows, line in [*blocks, *splitter.finish()]]


@settings(max_examples=150, deadline=None)
@given(st.lists(JSON, max_size=8), st.sampled_from([None, 1]), st.booleans(), st.lists(st.integers(0, 500), max_size=8))
def test_arrays_split_as_python_reads_them(values, indent, ascii_only, cuts):
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    blocks = split("array", data, cuts)
    assert blocks == split("array", data, [])
    assert [json.loads(line) for block in blocks for line in block[0].splitlines()] == values
    assert sum(rows for _, rows, _ in blocks) == len(values)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["{}", "", " \r", "x\t1", "é😀" * 9])), st.lists(st.integers(0, 500), max_size=8))
def test_lines_split_as_python_splits_them(lines, cuts):
    data = "\n".join(lines).encode()
    blocks = split("lines", data, cuts)
    assert blocks == split("lines", data, [])
    expected = [line for line in data.split(b"\n") if line.strip()]
    assert [line for block in blocks for line in block[0].split(b"\n") if line.strip()] == expected
    for body, rows, first_line in blocks:
        assert rows == sum(bool(line.strip()) for line in body.split(b"\n"))
        assert data.split(b"\n")[first_line - 1] == body.split(b"\n")[0]


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6) | st.sampled_from(
    ['"', ",", "\r\n", '""']
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(CELL, min_size=2, max_size=2), max_size=6),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["\n", "\r\n"]),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_csv_records_are_those_of_python(records, quoting, ending, cuts):
    if quoting == csv.QUOTE_MINIMAL:  # Python writes a bare CR without quotes, and reads it as the end of a record
        records = [[cell.replace("\r", "") for cell in record] for record in records]
    sink = io.StringIO()
    writer = csv.writer(sink, quoting=quoting, lineterminator=ending)
    writer.writerows([["prompt", "chosen"], *records])
    data = sink.getvalue().encode()
    blocks = split("csv", data, cuts)
    assert blocks == split("csv", data, [])
    rows = [json.loads(line) for block in blocks for line in block[0].splitlines() if line]
    expected = [
        {"prompt": a, "chosen": b} for a, b in csv.reader(io.StringIO(sink.getvalue(), newline=""), strict=True)
    ]
    assert rows == expected[1:]


WHITE = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and c not in "\x1c\x1d\x1e\x1f")  # Unicode's
TEXT = st.text(max_size=8)
ROW = st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, min_size=1, max_size=8), st.integers(1, 300))
def test_parsing_has_a_twin_in_python(tmp_path, monkeypatch, rows, size):
    monkeypatch.setattr(parts, "BLOCK_BYTES", size)
    good = [row for row in rows if all(text.strip(WHITE) for text in row.values())]
    good = [(i, row) for i, row in enumerate(rows) if row in good and row["chosen"] != row["rejected"]]
    for source in (jsonl(tmp_path / "a.jsonl", rows), pl.DataFrame(rows)):
        _, frame, rejects = all_rows(source)
        assert frame["row"].to_list() == [i for i, _ in good]
        assert sorted(frame["row"].to_list() + rejects["row"].to_list()) == list(range(len(rows)))
        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            expected = [[{"role": role, "content": row[name], "extra": None}] for _, row in good]
            assert frame[name].to_list() == expected


# -- odd input


def reject_of(tmp_path, row):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        json.dumps(ROWS[0]).encode() + b"\n" + (row if isinstance(row, bytes) else json.dumps(row).encode())
    )
    result = scan_preferences(path)
    assert result.frame.height + result.rejects.height == 2
    return result.rejects.row(0, named=True) if result.rejects.height else None


@pytest.mark.parametrize(
    "text",
    [
        "w" * (1 << 20),
        "a\x00b",
        "😀👩‍👩‍👧 e\u0301\u0323",
        "\u202bشلوم שלום\u202c",
        "\ufeffbom",
        "\u2028\u2029\x85\x0b\x1c",
        "\\ud800 is an escape in text",
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_odd_texts_pass_unchanged(tmp_path, text, name):
    frame, path = pl.DataFrame([{**ROWS[0], "chosen": text}]), tmp_path / name
    if name == "a.parquet":
        frame.write_parquet(path)
    elif name == "a.csv":
        frame.write_csv(path)
    else:
        path.write_text(
            json.dumps(frame.rows(named=True)[0]) if name == "a.jsonl" else json.dumps(frame.rows(named=True))
        )
    assert read_preferences(path)["chosen"][0][0]["content"] == text


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        (b'{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', "lone_surrogate", "prompt"),
        (b'{"prompt": "p", "chosen": "a\\udc00\\ud800", "rejected": "b"}', "lone_surrogate", "chosen"),
        (b'{"prompt": "p", "chosen": "a", "rejected": "b", "note": ["\\udfff"]}', "lone_surrogate", "note"),
        (b'{"prompt": "p", "chosen": "a", "rejected": "b", "tools": "[\\"\\\\ud800\\"]"}', "lone_surrogate", "tools"),
        (b'{"prompt": "p", "chosen": "a", "rejected": "b", "note": ' + DEEP + b"}", "too_deep", "note"),
        (b'{"prompt": ' + DEEP + b', "chosen": "a", "rejected": "b"}', "not_a_message", "prompt[0]"),
        (b'{"prompt": "p", "chosen": "a\x00", "rejected": "b"}', "broken_json", ""),
        (b'{"prompt": "p", "chosen": "a", "rejected": "b"', "broken_json", ""),
        (DEEP, "broken_json", ""),
        ({**ROWS[0], "prompt": ["a", "b"]}, "not_a_message", "prompt[0]"),
        ({**ROWS[0], "chosen": 3}, "not_a_string", "chosen"),
        ({**ROWS[0], "chosen": [{"role": "assistant", "content": 3}]}, "not_a_string", "chosen[0].content"),
        ({**ROWS[0], "chosen": None}, "missing_field", "chosen"),
        ({**ROWS[0], "prompt": ""}, "empty_prompt", "prompt"),
        ({**ROWS[0], "tools": "[1"}, "broken_json", "tools"),
    ],
)
def test_odd_rows_are_rejects(tmp_path, row, reason, field):
    reject = reject_of(tmp_path, row)
    assert (reject["reason"], reject["row"], reject["field"]) == (reason, 1, field)
    assert reject["rule"]
    assert reject["remedy"]
    assert len(reject["value"]) <= 80


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        (b'{"prompt": "p", "chosen": "", "chosen": "a", "rejected": "b"}', "chosen", '"a"'),
        (b'{"prompt": "p", "chosen": "a", "rejected": "b", "id": 1, "\\u0069d": 1}', "id", "1"),
        (b'{"prompt": "p", "chosen": "a", " chosen": "c", "rejected": "b"}', " chosen", '"c"'),
        (b'{"prompt": "p", "chosen": "a", "rejected": "b", "\xef\xbb\xbfrejected": "c"}', "\ufeffrejected", '"c"'),
        (
            b'{"prompt": "p", "chosen": [{"role": "assistant", "content": "a", "content": "c"}], "rejected": "b"}',
            "chosen[0].content",
            '"c"',
        ),
        (
            b'{"prompt": "p", "chosen": "a", "rejected": "b", "template_kwargs": "{\\"x\\": 1, \\"x\\": 2}"}',
            "template_kwargs.x",
            "2",
        ),
    ],
)
def test_a_field_that_is_there_twice_is_a_bad_row(tmp_path, row, field, value):
    reject = reject_of(tmp_path, row)
    assert (reject["reason"], reject["field"], reject["value"]) == ("repeated_field", field, value)
    path = tmp_path / "b.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b"\n" + row + b"\n")
    if field != "id" and "template" not in field:
        with pytest.raises(DataError, match=r"b.jsonl, line 2.*(is there more than once|differ in nothing but space)"):
            truncate(path, length=1, unit="words")


def test_the_score_of_a_response_that_is_there_twice_is_a_bad_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "responses": [{"response": "a", "score": 1, "score": 2}, "b"]}\n')
    reject = scan_candidates(path).rejects.row(0, named=True)
    assert (reject["reason"], reject["field"]) == ("repeated_field", "responses[0].score")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize(
    ("column", "rule"),
    [
        ("chosen", "column 'chosen' is there more than once"),
        (" chosen", "columns 'chosen' and ' chosen' differ in nothing but space"),
        ("\ufeffchosen", "columns 'chosen' and '\ufeffchosen' differ in nothing but space"),
    ],
)
def test_a_column_that_is_there_twice_is_named(tmp_path, name, column, rule):
    path = tmp_path / name
    text = f"prompt,chosen,rejected,{column}\na,b,c,d\n".replace(",", "\t" if ".tsv" in name else ",").encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    for read in (read_preferences, lambda path: truncate(path, length=1, unit="words")):
        with pytest.raises(DataError, match=rf"a\.[a-z.]+\W+line 1: {rule}; name each column once"):
            read(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_columns_without_a_name_may_be_empty(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected,,\na,b,c,,\nd,e,f,1,2\n")
    found = scan_preferences(path)
    assert found.frame["row"].to_list() == [0]
    assert found.rejects["reason"].to_list() == ["repeated_field"]


def test_columns_of_tables_that_differ_in_space_are_named(tmp_path):
    frame = pl.DataFrame({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"], "rejected ": ["d"]})
    frame.write_parquet(tmp_path / "a.parquet")
    for source in (frame, frame.to_arrow(), tmp_path / "a.parquet"):
        with pytest.raises(DataError, match="columns 'rejected' and 'rejected ' differ in nothing but space"):
            read_preferences(source)


def test_a_pandas_frame_with_a_column_twice():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([["a", "b", "c", "d"]], columns=["prompt", "chosen", "rejected", "rejected"])
    with pytest.raises(
        DataError, match=r"must be a table whose columns .* DataFrame \(.*rejected.*\); mend its columns"
    ):
        read_preferences(frame)


@pytest.mark.parametrize("name", TEXTS)
def test_a_byte_order_mark_and_crlf(tmp_path, name):
    text = TEXTS[name].decode()
    if "json" in name:
        text = text.replace("\n", "\r\n")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_preferences(tmp_path / name).equals(read_preferences(FRAME))
    (tmp_path / name).write_bytes(TEXTS[name].decode().encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        read_preferences(tmp_path / name)


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz"])
def test_a_cut_member_is_an_error_after_whole_rows(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(parts, "BLOCK_ROWS", 1)
    path = tmp_path / ("a.jsonl" + ending)
    data = PACK[ending](
        b"".join(json.dumps({**ROWS[0], "id": i * 7919 % 65_537}).encode() + b"\n" for i in range(4000))
    )
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=rf"a\.jsonl\{ending} cannot be read .*it may be cut short or damaged"):
        list(open_source(path).blocks())
    path.write_bytes(data[:0])
    with pytest.raises(DataError):
        open_source(path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_footer(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    whole = path.read_bytes()
    damaged = [whole[: len(whole) // 2], whole[:-12] + b"\xff\xff\xff\x7f" + whole[-8:], b"", b"PAR1", b"ARROW1"]
    for data in damaged[: 1 if name == "h.arrow" else None]:  # a stream has no footer
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"cannot be read as|holds no rows"):
            list(open_source(path).blocks())


def test_a_parquet_with_a_damaged_page(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(FRAME.to_arrow(), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[30:200] = b"\xff" * 170
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as \.parquet"):
        scan_preferences(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('prompt,chosen,rejected\np,"a,b\nq,c,d\n', "row 0, line 2: broken quotes: a quote is opened here"),
        ('prompt,chosen,rejected\np,a,b\np,"a"x,b\n', "row 1, line 3: broken quotes: .* must be doubled"),
        ("prompt,chosen,rejected\np,a,b\np,a\n", "row 1, line 3: a record must have 3 cells as the header, got 2"),
        ("prompt,chosen,rejected\n", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_broken_csv(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=rf"a\.csv.*{message}"):
        scan_preferences(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{}", "the text ends before the array does, line 1 column 4"),
        ("[\n{},\n{]\n]", "']' closes nothing that is open, line 3 column 2"),
        ("[{},,{}]", "an element must stand here, line 1 column 5"),
        ("[{} {}]", "',' or ']' must stand here, line 1 column 5"),
        ('[{"a": "b]', "the text ends inside an element"),
        ("[{}] x", "nothing may follow the array, line 1 column 6"),
    ],
)
def test_broken_arrays(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=f"broken JSON array: {message}".replace("]", r"\]").replace("[", r"\[")):
        scan_preferences(tmp_path / "a.json")


def test_an_object_over_several_lines_is_no_file_of_rows(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS[0], indent=2))
    with pytest.raises(DataError, match="no row can be read: a file holds one object a line"):
        scan_preferences(tmp_path / "a.json")


def test_a_row_without_an_end_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "ROW_BYTES", 1 << 20)
    (tmp_path / "a.json").write_bytes(b'[{"a": "' + b"x" * (3 << 20))
    with pytest.raises(DataError, match="the row at line 1 is longer than 1 MiB"):
        scan_preferences(tmp_path / "a.json")


def test_columns_that_hold_no_text(tmp_path):
    frame = pl.DataFrame({"prompt": [b"\xff"], "chosen": ["a"], "rejected": ["b"]})
    with pytest.raises(DataError, match=r"prompt (large_)?binary.*cannot be read as text"):
        scan_preferences(frame)
    dates = pl.DataFrame({"prompt": ["a"], "chosen": ["a"], "rejected": ["b"]}).with_columns(pl.lit(3).alias("chosen"))
    with pytest.raises(DataError, match="no known schema"):
        scan_preferences(dates)


# -- description


def test_describe(tmp_path):
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "long " * 40}]
    rows = [{"prompt": chat, "chosen": "x", "rejected": "y", "tools": "[1]", "id": 1}, {**ROWS[0], "chosen": ""}]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    seen = open_source(path).describe()
    assert (seen["format"], seen["kind"], seen["rows"]) == ("preference", "preferences", None)
    assert seen["files"] == [{"name": str(path), "bytes": path.stat().st_size, "compression": "gzip"}]
    assert seen["first_block"] == {"rows": 2, "rejected": 1, "system_messages": 1, "tools": 1, "multi_turn": 0}
    assert seen["fields"] == {
        "prompt": "prompt",
        "chosen": "chosen response",
        "rejected": "rejected response",
        "tools": "tools",
    }
    assert seen["carried"] == ["id"]
    assert seen["first_row"]["prompt"] == ["system: S", "user: " + "long " * 12 + "…"]
    assert json.loads(json.dumps(seen)) == seen
    FRAME.write_parquet(tmp_path / "a.parquet")
    assert open_source(tmp_path / "a.parquet").describe()["rows"] == 5


def test_unknown_formats_and_kinds(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match="did you mean 'sharegpt'"):
        open_source(path, format="sharegtp")
    with pytest.raises(ConfigError, match="kind must be one of"):
        open_source(path, kind="pairs")


def test_an_error_for_a_list_of_rows_names_what_to_pass():
    with pytest.raises(DataError, match=r"pl\.DataFrame\(rows\)"):
        open_source([{"prompt": "a", "chosen": "b", "rejected": "c"}])


def test_a_field_that_is_there_but_null_is_not_suggested():
    with pytest.raises(DataError) as caught:
        read_preferences(pl.DataFrame({"prompt": ["a", None], "chosen": ["b", "c"], "rejected": ["d", "e"]}))
    assert "did you mean" not in str(caught.value)


def test_an_arrow_stream_that_is_cut_between_two_batches_is_an_error(tmp_path):
    batch = pa.record_batch({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    path = tmp_path / "cut.arrow"
    with path.open("wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
        file.flush()
        whole = file.tell()
        writer.write_batch(batch)
    assert read_preferences(path).height == 2
    path.write_bytes(path.read_bytes()[:whole])
    with pytest.raises(DataError, match="end-of-stream"):
        read_preferences(path)


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("a.jsonl", "", r"a.jsonl, line 1: the byte at column 31 \(0xe9\) is not UTF-8; convert .* iconv -f latin1"),
        (
            "b.jsonl",
            '{"prompt": "q", "chosen": "a", "rejected": "b"}\n',
            r"b.jsonl, row 1: .* line 2: .* 31 \(0xe9\) .* iconv",
        ),
        (
            "c.csv",
            "prompt,chosen,rejected\nq,a,b\nq,caf\xe9,b",
            r"c.csv: row 1, line 3: byte 3 \(0xe9\) of cell 1 .* iconv",
        ),
    ],
)
def test_latin1_is_reported_with_its_remedy(tmp_path, name, head, message):
    row = '{"prompt": "q", "chosen": "caf\xe9", "rejected": "b"}\n' if name.endswith("l") else ""
    (tmp_path / name).write_bytes((head + row).encode("latin1"))
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_preferences(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}, line \d: byte .* of the line \(0xe9\) is not UTF-8; .* iconv"):
        truncate(tmp_path / name, length=1, unit="words")


@pytest.mark.parametrize(
    ("packed", "kind"),
    [
        (gzip.compress, r"gzip; add \.gz to its name$"),
        (zstd, r"zstd; add \.zst to its name$"),
        (bz2.compress, r"bzip2; add \.bz2 to its name$"),
        (lzma.compress, r"xz; add \.xz to its name$"),
        (lambda text: text.decode().encode("utf-16"), r"UTF-16; convert it to UTF-8: iconv -f utf-16 .*NEW$"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "b.json", "c.csv"])
def test_bytes_of_another_kind_than_the_name(tmp_path, packed, kind, name):
    path = tmp_path / name
    path.write_bytes(packed(TEXTS[name]))
    with pytest.raises(DataError, match=rf"{name} must be text, as its name says, but its bytes are {kind}"):
        open_source(path)
    with pytest.raises(DataError, match=rf"{name} must be text, as its name says, but its bytes are {kind}"):
        truncate(path, length=1, unit="words")


def test_a_table_under_a_texts_name(tmp_path):
    for write, kind, remedy in ((FRAME.write_parquet, "Parquet", ".parquet"), (FRAME.write_ipc, "Arrow", ".arrow")):
        write(tmp_path / "a.jsonl")
        with pytest.raises(DataError, match=rf"but its bytes are {kind}; name it \{remedy}$"):
            open_source(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize("kind", [None, "preferences"])
def test_responses_labelled_wanted_or_not_are_no_examples(tmp_path, name, kind):
    rows = pl.DataFrame({"prompt": ["p", "q"], "completion": ["a", "b"], "label": [True, False]})
    writers = {"a.jsonl": rows.write_ndjson, "a.csv": rows.write_csv, "a.parquet": rows.write_parquet}
    writers[name](tmp_path / name)
    rule = rf"{name}: a row has one response and 'label' true or false \(KTO\).* name the format prompt_response"
    with pytest.raises(DataError, match=rule):
        open_source(tmp_path / name, kind=kind)
    with pytest.raises(DataError, match=rule.replace(name, "<frame>").replace("label", "kto_tag")):
        open_source(rows.rename({"label": "kto_tag"}), kind=kind)
    assert open_source(tmp_path / name, format="prompt_response").kind == "instructions"  # asked for
    open_source(rows.with_columns(label=pl.lit("math")))  # a label that is no judgement


def test_names_that_are_known_or_have_their_field_are_no_misspellings():
    chat = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]
    rows = pl.DataFrame(
        {"prompt": ["p"], "prompt_id": ["x"], "chosen": [chat], "rejected": [chat], "score_chosen": 1.0}
    )
    with pytest.raises(DataError, match="score_chosen; the nearest format, hh, needs chosen, rejected; they are there"):
        open_source(rows, format="hh")


def test_lists_do_not_go_into_csv(tmp_path):
    chat = [{"role": "assistant", "content": "a b c"}]
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": chat, "rejected": [chat[0] | {"content": "d e"}]}])
    with pytest.raises(DataError, match=r"a\.csv: CSV .*; write \.jsonl, \.parquet or \.arrow, which hold messages"):
        truncate(path, ratio=0.5, unit="words", out=tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_carriage_returns_alone_are_told(tmp_path, name):
    cells = "prompt,chosen,rejected\rq,a,b\r".replace(",", "\t" if name == "a.tsv" else ",")
    lines = '{"prompt":"q","chosen":"a","rejected":"b"}\r' * 2
    (tmp_path / name).write_text(lines if "json" in name else cells, newline="")
    with pytest.raises(DataError, match=r"a\.\w+: its lines end with a carriage return alone"):
        open_source(tmp_path / name)
    array = "[" + lines.strip().replace("\r", ",\r") + "]"
    (tmp_path / "array.json").write_text(array, newline="")
    assert open_source(tmp_path / "array.json").first_block.rows_in == 2


def test_infinite_scores_are_shown_without_quotes(tmp_path):
    frame = pl.DataFrame({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": float("inf")})
    opened = open_source(frame)
    rejects = parse_block(opened.first_block, opened.format).rejects
    assert rejects.select("reason", "value").rows() == [("not_a_number", "inf")]
