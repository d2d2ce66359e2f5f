"""Files that are cut: in every container and format, with everything else as it was."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import subprocess
import tempfile
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyprefopt.data.reading.frames import read_candidates, read_preferences, scan_preferences
from pyprefopt.data.truncation.dispatch import truncate
from pyprefopt.errors import ConfigError, DataError

CUT = {"length": 2, "unit": "words"}
PAIR = {"prompt": "q", "chosen": "x y z", "rejected": "z y x"}


def test_what_is_not_cut_stays_as_it_was_written(tmp_path):
    lines = [
        '{"prompt": "p", "chosen": "a b c", "rejected": "ü v w", "id": 123456789012345678901234567890, "x": 1.10}',
        '{"n":1,"prompt":"p","rejected":"d e","chosen":"\\u00fc f g","tags":["a",1,null,1e400],"k":{"b":1,"a":2.50}}',
        '{"chosen": "one\\/ two, three", "x": "text here", "rejected": "a", "prompt": "p", "y": 1, "y": 2}  ',
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    counts = [(1, False, 1, False), (1, False, 0, True), (1, False, 0, True)]
    expected = [
        lines[0].replace("a b c", "a b").replace("ü v w", "ü v"),
        lines[1].replace("\\u00fc f g", "\\u00fc f"),
        lines[2].replace("one\\/ two, three", "one/ two"),
    ]
    want = []
    for line, (c, cc, r, rc) in zip(expected, counts, strict=True):
        added = {"chosen_cut": c, "chosen_complete": cc, "rejected_cut": r, "rejected_complete": rc}
        want.append(line.rstrip()[:-1] + ", " + json.dumps(added)[1:] + line[len(line.rstrip()) :])
    assert truncate(path, **CUT).read_text().splitlines() == want
    again = truncate(tmp_path / "pairs.truncated.jsonl", length=1, unit="words").read_text().splitlines()
    assert '"chosen_cut": 2, "chosen_complete": false, "rejected_cut": 2' in again[0]
    assert '"id": 123456789012345678901234567890, "x": 1.10' in again[0]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def messages(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


SHAREGPT = [
    {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a b c"},
        "rejected": {"from": "gpt", "value": "d e"},
    }
]
SHP = [
    {"history": "q", "human_ref_A": "d e", "human_ref_B": "a b c", "labels": 0, "score_A": 1, "score_B": 2},
    {"history": "q", "human_ref_A": "a b c", "human_ref_B": "d e", "labels": 1, "score_A": 2, "score_B": 1},
]
ALPACA = [{"instruction": "q", "input": "", "output": ["a b c", "d e"]}]
HH = [
    {
        "chosen": "\n\nHuman: x y z\n\nAssistant: k l m\n\nHuman: q\n\nAssistant: a b c",
        "rejected": "\n\nHuman: x y z\n\nAssistant: k l m\n\nHuman: q\n\nAssistant: d e",
    }
]
ULTRAFEEDBACK = [
    {
        "prompt": "q q q",
        "chosen": messages(("user", "q q q"), ("assistant", "a b c")),
        "rejected": messages(("user", "q q q"), ("assistant", "d e")),
    }
]
FORMATS = {"sharegpt": SHAREGPT, "shp": SHP, "alpaca": ALPACA, "hh": HH, "ultrafeedback": ULTRAFEEDBACK}


def write(path, rows):
    """Rows as a file of the kind that its name says."""
    flat = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
    name = path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".bz2").removesuffix(".xz")
    if name.endswith(".parquet"):
        pl.DataFrame(rows).write_parquet(path)
    elif name.endswith((".arrow", ".feather")):
        pl.DataFrame(rows).write_ipc(path)
    elif name.endswith(".arrows"):
        pl.DataFrame(rows).write_ipc_stream(path)
    elif name.endswith((".csv", ".tsv")):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(flat[0]), delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(flat)
    else:
        text = json.dumps(rows, indent=1) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows)
        path.write_text(text)
    content = path.read_bytes()
    packed = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(path.suffix)
    if path.suffix == ".zst":
        content = pa.compress(content, "zstd", asbytes=True)
    path.write_bytes(packed(content) if packed else content)


def put(value, texts):
    """The value with other texts in the place of some."""
    if isinstance(value, str):
        for number, old in enumerate(texts):
            value = value.replace(old, f"\0{number}")
        for number, new in enumerate(texts.values()):
            value = value.replace(f"\0{number}", new)
        return value
    if isinstance(value, list):
        return [put(entry, texts) for entry in value]
    return {name: put(entry, texts) for name, entry in value.items()} if isinstance(value, dict) else value


def rows_of(path):
    """The rows of a file as they are written, the cells of CSV as what they hold."""
    if path.suffix == ".parquet":
        return pl.read_parquet(path).to_dicts()
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [
                {k: json.loads(v) if v[:1] in tuple('[{"-0123456789tfn') else v for k, v in row.items()}
                for row in csv.DictReader(file)
            ]
    return json.loads(path.read_text()) if path.suffix == ".json" else list(map(json.loads, path.open()))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_cut_file_holds_the_same_rows_but_for_the_cut(data):
    format = data.draw(st.sampled_from([*FORMATS, "preference", "candidates"]))  # noqa: A001
    suffix = data.draw(st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]))
    plain = {"preference": [PAIR], "candidates": [{"prompt": "q", "responses": ["a b c", "d e"], "scores": [1, 2]}]}
    rows = FORMATS.get(format) or put(plain[format], {"x y z": "a b c", "z y x": "d e"})
    words = st.text('ab é中,"\\\t😀', max_size=20)
    texts = {old: f"Ü {data.draw(words)}".rstrip() for old in ("a b c", "d e")}
    others = st.dictionaries(st.text("xyz.é", min_size=1, max_size=3), values, max_size=3)
    others = data.draw(others) if suffix in (".jsonl", ".json") else {"x": f"_{data.draw(words)}"}
    first = data.draw(st.booleans())
    cut = truncate(pl.DataFrame({"chosen": list(texts.values())}), **CUT, columns=["chosen"])["chosen"].to_list()
    whole, expected = (
        [{**others, **row} if first else {**row, **others} for row in put(rows, dict(zip(texts, new, strict=True)))]
        for new in (texts.values(), cut)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        write(path, whole)
        assert rows_of(path) == whole
        after = rows_of(truncate(path, **CUT, format=format))
    counts = ("_cut", "_complete")
    found = [{name: value for name, value in row.items() if not name.endswith(counts)} for row in after]
    assert [list(row) for row in found] == [list(row) for row in expected]
    assert all(sum(name.endswith(counts) for name in row) == (2 if format == "candidates" else 4) for row in after)
    assert found == expected


KINDS = [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".arrows"]
PACKED = [".jsonl.gz", ".json.zst", ".csv.bz2", ".tsv.xz", ".jsonl.xz", ".csv.zst"]


@pytest.mark.parametrize("suffix", KINDS + PACKED)
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_cut_in_every_container(tmp_path, format, suffix):  # noqa: A002
    path = tmp_path / f"pairs{suffix}"
    write(path, FORMATS[format])
    before = read_preferences(path, format=format)
    out = truncate(path, ratio_base="shared_min", ratio=0.9, unit="words", rounding="floor")
    assert out == tmp_path / f"pairs.truncated{suffix}"
    after = read_preferences(out, format=format)
    assert after["prompt"].to_list() == before["prompt"].to_list()
    for name, text in (("chosen", "a"), ("rejected", "d")):
        assert [chat[-1]["content"] for chat in after[name].to_list()] == [text] * len(before)
        assert after[f"{name}_complete"].to_list() == [False] * len(before)
    assert [int(cut) for cut in after["chosen_cut"]] == [2] * len(before)
    assert [int(cut) for cut in after["rejected_cut"]] == [1] * len(before)
    whole = read_preferences(truncate(path, length=2, unit="words", out=tmp_path / f"two{suffix}"), format=format)
    assert [chat[-1]["content"] for chat in whole["chosen"].to_list()] == ["a b"] * len(before)
    assert whole["rejected"].to_list() == before["rejected"].to_list()
    assert whole["rejected_complete"].all()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize("suffix", [*KINDS, ".jsonl.gz"])
@pytest.mark.parametrize("format", [*FORMATS, "preference"])
def test_pairs_that_the_cut_makes_the_same_are_reported(tmp_path, format, suffix, caplog):  # noqa: A002
    path = tmp_path / f"pairs{suffix}"
    rows = FORMATS.get(format) or [{"prompt": "p", "chosen": "a b c", "rejected": "d e"}]
    other = json.loads(json.dumps(rows).replace("d e", "a e"))
    write(path, other + rows + other)
    truncate(path, length=2, unit="words", out=tmp_path / f"two{suffix}")
    assert not caplog.text
    out = truncate(path, length=1, unit="words")
    refused = scan_preferences(out, format=format).rejects
    assert refused["reason"].to_list() == ["identical_pair"] * 2 * len(rows)
    assert f"{out}: the cut left chosen and rejected the same in {2 * len(rows)} pairs, which reading" in caplog.text


def test_pairs_that_differ_before_the_last_message_stay_pairs(tmp_path, caplog):
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    answers = [{"role": "tool", "content": text} for text in ("1", "2")]
    sides = [[call, answer, {"role": "assistant", "content": "one two"}] for answer in answers]
    for suffix in (".jsonl", ".parquet"):
        path = tmp_path / f"pairs{suffix}"
        write(path, [{"prompt": "p", "chosen": sides[0], "rejected": sides[1]}])
        assert scan_preferences(truncate(path, length=1, unit="words")).rejects.is_empty()
    assert not caplog.text


def test_a_typed_file_keeps_its_other_columns(tmp_path):
    for format, rows in FORMATS.items():  # noqa: A001
        frame = pl.DataFrame(rows).with_columns(extra=pl.lit(7, pl.Int8))
        frame.write_parquet(tmp_path / f"{format}.parquet")
        out = pl.read_parquet(truncate(tmp_path / f"{format}.parquet", length=9, unit="words"))
        assert out.select(frame.columns).equals(frame)
        counts = {"chosen_cut", "chosen_complete", "rejected_cut", "rejected_complete"}
        assert set(out.columns) == {*frame.columns, *counts}


@pytest.mark.parametrize("name", ["responses", "completions", "candidates"])
def test_candidates_are_cut_in_each_form(tmp_path, name):
    items = [
        "a b c",
        {"role": "assistant", "content": "d e f"},
        messages(("assistant", "g")),
        {"text": "h i j", "score": 1.0},
    ]
    path = tmp_path / "sets.jsonl"
    path.write_text(json.dumps({"prompt": "q", name: items}) + "\n")
    out = truncate(path, **CUT)
    row = json.loads(out.read_text())
    assert row[f"{name}_cut"] == [1, 1, 0, 1]
    assert row[f"{name}_complete"] == [False, False, True, False]
    assert row[name][3] == {"text": "h i", "score": 1.0}
    assert [chat[-1]["content"] for chat in read_candidates(out)["responses"][0].to_list()] == [
        "a b",
        "d e",
        "g",
        "h i",
    ]
    assert json.loads(truncate(out, length=1, unit="words").read_text())[f"{name}_cut"] == [2, 2, 0, 2]


def test_parts_and_turns_that_call_tools(tmp_path):
    parts = [{"type": "text", "text": "a b"}, {"type": "text", "text": " c d"}, {"type": "text", "text": " e"}]
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
    rows = [
        {"prompt": "q", "chosen": [{"role": "assistant", "content": parts}], "rejected": None, "z": 1},
        {"prompt": "q", "chosen": [call], "rejected": [{"role": "assistant", "tool_calls": []}]},
    ]
    path = tmp_path / "pairs.jsonl"
    write(path, rows)
    first, second = map(json.loads, truncate(path, length=3, unit="words", columns=["chosen", "rejected"]).open())
    assert [part["text"] for part in first["chosen"][0]["content"]] == ["a b", " c", ""]
    assert list(first) == ["prompt", "chosen", "rejected", "z", "chosen_cut", "chosen_complete"]
    assert (second["chosen"], second["rejected"], second["chosen_cut"]) == (rows[1]["chosen"], rows[1]["rejected"], 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q", "chosen": 5, "rejected": "b"}',
            "line 2: field 'chosen' must hold text or messages, got 5",
        ),
        ('{"prompt": "q", "chosen": "a", "rejected": "b"}\n\n{"a": ', "line 3: broken JSON: .* mend the line"),
        (
            '{"prompt": "q", "chosen": "a", "rejected": "b", "x": ' + "[" * 99_999 + "]" * 99_999 + "}",
            "line 1: a row is nested too deep; flatten the value",
        ),
        (
            '{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q", "chosen": [["a"]], "rejected": "b"}',
            "line 2: field 'chosen' must be a text, or a list of messages .* mend the row, or leave it out",
        ),
        ('{"prompt": "q", "chosen": "a", "rejected": "b"}\n[1]', r"line 2: broken JSON: a row must be an object"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "chosen_cut": "x"}', "line 1: field 'chosen_cut' must be"),
        ('{"messages": [{"role": "user", "content": "q"}]}', "truncate cuts pairs and candidates, or the fields"),
        ('{"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 2}', "line 1: field 'labels' must be 1"),
        ('{"instruction": "q", "output": ["a"]}', "line 1: field 'output' must be a list of two"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_cut_are_named(tmp_path, content, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        truncate(path, length=1, unit="words")
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_named_field_that_no_row_has(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"answer": "a b c"}\n{"answer": null}\n')
    with pytest.raises(DataError, match="no row has a text in the field 'answr'"):
        truncate(path, **CUT, columns=["answr"])
    rows = [json.loads(line) for line in truncate(path, **CUT, columns="answer").open()]
    assert rows == [{"answer": "a b", "answer_cut": 1, "answer_complete": False}, {"answer": None}]


def test_other_kinds_of_output(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write(path, HH)
    for name in ("o.json", "o.csv", "o.parquet", "o.arrow", "o.tsv.xz", "o.arrows"):
        frame = read_preferences(truncate(path, **CUT, out=tmp_path / name), format="hh")
        assert frame["chosen"][0][-1]["content"] == "a b", name
    with pytest.raises(ConfigError, match=r"out must be no \.json file here, .* write \.jsonl"):
        truncate(tmp_path / "o.parquet", **CUT, out=tmp_path / "p.json")
    with pytest.raises(ConfigError, match=r"file must be \.jsonl, \.json, \.csv"):
        truncate(path, **CUT, out=tmp_path / "p.txt")


def test_byte_order_marks_line_ends_and_empty_lines(tmp_path):
    row = '{"prompt": "q", "chosen": "a b c", "rejected": "d"}'
    (tmp_path / "p.jsonl").write_bytes(f"\ufeff{row}\r\n\r\n{row}".encode())
    out = truncate(tmp_path / "p.jsonl", **CUT).read_bytes().decode()
    assert out.startswith('\ufeff{"prompt": "q", "chosen": "a b", ')
    assert [line.endswith("}\r") for line in out.split("\n")[:-1]] == [True, False]
    assert read_preferences(tmp_path / "p.truncated.jsonl")["chosen_complete"].to_list() == [False, False]
    (tmp_path / "p.csv").write_bytes('\ufeffprompt,chosen,rejected\r\nq,"a b ""c""","d\ne"\r\n'.encode())
    assert truncate(tmp_path / "p.csv", **CUT).read_text().splitlines()[1:] == ['q,a b,"d', 'e",1,false,0,true']


def test_candidates_in_csv_are_cut_twice(tmp_path):
    path = tmp_path / "sets.csv"
    write(path, [{"prompt": "q", "responses": ["a b c", "d"], "scores": [1, 2]}])
    once = truncate(path, **CUT)
    twice = truncate(once, length=1, unit="words")
    with twice.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert json.loads(row["responses"]) == ["a", "d"]
    assert (json.loads(row["responses_cut"]), json.loads(row["responses_complete"])) == ([2, 0], [False, True])
    assert read_candidates(twice)["scores"].to_list() == [[1.0, 2.0]]


def test_a_csv_row_of_another_width_is_named(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected\nq,a,b\nq,a\n")
    with pytest.raises(DataError, match=r"p\.csv, line 3: a record must have 3 cells as the header, got 2"):
        truncate(tmp_path / "p.csv", **CUT)


def test_segments_in_files_are_cut(tmp_path):
    frame = pl.DataFrame({"ids": [[1, 2, 3, 4]], "mask": [[False, True, True, True]]})
    for suffix in (".parquet", ".arrow"):
        write(tmp_path / f"s{suffix}", frame.to_dicts())
        out = truncate(tmp_path / f"s{suffix}", length=2)
        read = pl.read_parquet if suffix == ".parquet" else pl.read_ipc
        assert read(out).to_dicts() == [{"ids": [1, 2, 3], "mask": [False, True, True], "cut": 1}]


def test_a_format_can_be_forced(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write(path, [{**SHP[0], "chosen": "x y z", "rejected": "z y x", "prompt": "q"}])
    assert json.loads(truncate(path, **CUT, format="shp").read_text())["human_ref_B"] == "a b"
    assert json.loads(truncate(path, **CUT, format="preference", overwrite=True).read_text())["chosen"] == "x y"
    for options, message in (
        ({"format": "messages"}, "format must be auto or one of sharegpt, .*got 'messages'"),
        ({"format": "shp", "columns": ["chosen"]}, "format must be left out where columns are named"),
    ):
        with pytest.raises(ConfigError, match=message):
            truncate(path, **CUT, **options)
    with pytest.raises(DataError, match="no row fits format 'hh'"):
        truncate(path, **CUT, format="hh")
    with pytest.raises(ConfigError, match="format must be left out for a frame"):
        truncate(pl.DataFrame({"chosen": ["a"]}), **CUT, format="shp")


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path):
    path, out = tmp_path / "pairs.jsonl", tmp_path / "pairs.truncated.jsonl"
    write(path, [PAIR])
    out.write_text("precious\n")
    for options in ({}, {"out": out}):
        with pytest.raises(ConfigError, match=r"^out must be a new file, got '.*truncated.jsonl'; .* overwrite=True$"):
            truncate(path, **CUT, **options)
    assert out.read_text() == "precious\n"
    assert json.loads(truncate(path, **CUT, overwrite=True).read_text())["chosen"] == "x y"
    with pytest.raises(ConfigError, match="overwrite must be left out for a frame, got True; no file is written"):
        truncate(pl.DataFrame({"chosen": ["a"]}), **CUT, overwrite=True)


def test_the_folder_of_the_output_is_made(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write(path, [PAIR])
    out = truncate(path, **CUT, out=tmp_path / "new" / "folder" / "cut.jsonl")
    assert json.loads(out.read_text())["chosen"] == "x y"
    with pytest.raises(ConfigError, match=r"^out must be a file in a folder that can be written .*another out$"):
        truncate(path, **CUT, out=path / "cut.jsonl")


def test_what_a_killed_run_left_is_cleared(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write(path, [PAIR])
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [tmp_path / f".cut.jsonl.{pid}.{part}" for pid in (dead.pid, os.getppid()) for part in ("cut", "packed")]
    for file in left:
        file.write_text("half")
    truncate(path, **CUT, out=tmp_path / "cut.jsonl")
    assert [file.exists() for file in left] == [False, False, True, True]  # a living process's stay
