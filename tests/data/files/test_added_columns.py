"""Rows with further columns: nothing of what was there changes, whatever kinds of files are read and written."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pyprefopt.data.files.added_columns import add_columns, check_columns_free
from pyprefopt.errors import ConfigError, DataError

ROWS = pl.DataFrame(
    {
        "prompt": ["a", 'b "q"', "ü\n"],
        "responses": [["x", "y"], ["z"], []],
        "number": [1.5, math.pi, 1e300],
        "none": [None, 3, None],
    }
)
COLUMNS = pl.DataFrame(
    {"score": pl.Series([0.1, None, -1e-9], dtype=pl.Float32), "scores": pl.Series([[0.1, 2.0], None, []])},
    schema={"score": pl.Float32, "scores": pl.List(pl.Float32)},
)
WHOLE = ROWS.hstack(COLUMNS)


def read(path: Path) -> pl.DataFrame:
    readers = {".parquet": pl.read_parquet, ".arrow": pl.read_ipc, ".json": pl.read_json}
    frame = readers.get(path.suffix, pl.read_ndjson)(path)
    return frame.cast({"score": pl.Float32, "scores": pl.List(pl.Float32)})


@pytest.mark.parametrize("source", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("target", ["o.jsonl", "o.jsonl.zst", "o.parquet", "o.arrow", "o.json"])
def test_rows_and_values_stay(source: str, target: str, tmp_path: Path) -> None:
    path, out = tmp_path / source, tmp_path / target
    if source == "a.jsonl.gz":
        path.write_bytes(gzip.compress(ROWS.write_ndjson().encode()))
    elif source == "a.json":
        ROWS.write_json(path)
    else:
        {".jsonl": ROWS.write_ndjson, ".parquet": ROWS.write_parquet, ".arrow": ROWS.write_ipc}[path.suffix](path)
    if target == "o.json" and path.suffix in (".parquet", ".arrow"):
        with pytest.raises(ConfigError, match=r"out must not be a \.json file here"):
            add_columns(path, out, COLUMNS)
        return
    add_columns(path, out, COLUMNS)
    assert_frame_equal(read(out), WHOLE)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([source, target])


def test_a_row_of_json_keeps_its_bytes(tmp_path: Path) -> None:
    rows = ['{"b":  1.0e0, "a": {"c": [1,2 ]} }', "{}", '{"ü": "\\u00fc"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n\n")
    add_columns(tmp_path / "a.jsonl", tmp_path / "o.jsonl", COLUMNS)
    written = (tmp_path / "o.jsonl").read_text().splitlines()
    assert written[0] == '{"b":  1.0e0, "a": {"c": [1,2 ]}, "score": 0.1, "scores": [0.1, 2.0]}'
    assert written[1] == '{"score": null, "scores": null}'
    assert written[2] == '{"ü": "\\u00fc", "score": -1e-09, "scores": []}'


def test_cells_of_csv_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,n\n"a, b",007\n"c\nd",1e3\n,\n')
    add_columns(tmp_path / "a.csv", tmp_path / "o.csv", COLUMNS.select("score"))
    read = pl.read_csv(tmp_path / "o.csv", infer_schema=False)
    assert read["n"].to_list()[:2] == ["007", "1e3"]
    assert read["prompt"].to_list()[:2] == ["a, b", "c\nd"]
    assert float(read["score"][0]) == pytest.approx(0.1)
    with pytest.raises(DataError, match=r"write \.jsonl, \.parquet or \.arrow"):
        add_columns(tmp_path / "a.csv", tmp_path / "p.csv", COLUMNS)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "o.jsonl"
    path.write_text('{"a": 1}\n{"score": 1}\n{}\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl, row 1 must not have the column 'score'.*; rename it"):
        add_columns(path, out, COLUMNS, remedy="rename it")
    with pytest.raises(ConfigError, match=r"a\.jsonl must not have the column 'score'"):
        check_columns_free(path, ["score"], "")
    with pytest.raises(DataError, match="has 3 rows now, and values are there for 2"):
        add_columns(path, out, COLUMNS[:2].rename({"score": "s"}))
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    with pytest.raises(ConfigError, match="another file than the input"):
        add_columns(path, path, COLUMNS)
    ROWS.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="must not have the column 'number'"):
        add_columns(tmp_path / "a.parquet", out, COLUMNS.rename({"score": "number"}))
    with pytest.raises(DataError, match="has 3 rows now, and values are there for 2"):
        add_columns(tmp_path / "a.parquet", tmp_path / "o.parquet", COLUMNS[:2])
    add_columns(tmp_path / "a.parquet", out, COLUMNS)
    with pytest.raises(ConfigError, match="out must be a new file"):
        add_columns(tmp_path / "a.parquet", out, COLUMNS)
    add_columns(tmp_path / "a.parquet", out, COLUMNS, overwrite=True)
    assert json.loads(out.read_text().splitlines()[0])["score"] == pytest.approx(0.1)
