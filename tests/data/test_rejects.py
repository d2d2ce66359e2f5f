"""The report on bad rows, and their record."""

from __future__ import annotations

import json

import polars as pl
import pytest

from pyprefopt.data.read import read_preferences
from pyprefopt.data.rejects import REJECTS, count_rejects, no_rejects, raise_for, write_rejected
from pyprefopt.errors import DataError


def rejects(reasons):
    rows = [
        ("a.jsonl", row, "chosen", 'say "x"', reason, "the rule", "the remedy") for row, reason in enumerate(reasons)
    ]
    return pl.DataFrame(rows, REJECTS, orient="row")


def test_no_bad_rows_no_error():
    raise_for(no_rejects(), 10)
    assert no_rejects().schema == REJECTS


def test_the_report_counts_by_reason_and_shows_the_first_of_each():
    books = rejects(["empty_response"] * 2 + ["identical_pair"] * 5)
    assert list(count_rejects(books).items()) == [("identical_pair", 5), ("empty_response", 2)]
    with pytest.raises(DataError) as caught:
        raise_for(books, 1234, command="deepspeed scripts/train.py --data a.jsonl")
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 of 1,234 rows cannot be used"
    assert lines[1] == "  identical_pair: 5"
    assert lines[2] == r'    a.jsonl, row 2, chosen: "say \"x\"" - the rule; the remedy'
    assert lines[5:7] == ["    and 2 more", "  empty_response: 2"]
    assert lines[-1] == "  deepspeed scripts/train.py --data a.jsonl --on_error skip"


def test_without_a_command_the_report_names_the_setting():
    with pytest.raises(DataError, match=r"\(each is then recorded in rejected.jsonl\):\n.*--on_error skip\)$"):
        raise_for(rejects(["x"]), 1, recorded="rejected.jsonl")


def test_in_memory_no_file_is_promised():
    with pytest.raises(DataError, match=r"Mend the rows, or drop them:\n  on_error='skip'$"):
        raise_for(rejects(["x"]), 1)
    frame = pl.DataFrame({"prompt": ["q", "q"], "chosen": ["a", "a"], "rejected": ["", "b"]})
    with pytest.raises(DataError) as caught:
        read_preferences(frame)
    assert "rejected.jsonl" not in str(caught.value)


def test_rejects_are_recorded_as_json_lines(tmp_path):
    path = tmp_path / "new" / "rejected.jsonl"
    write_rejected(path, rejects(["a", "b"]))
    write_rejected(path, rejects(["c"]))
    (line,) = path.read_text().splitlines()
    assert list(json.loads(line)) == REJECTS.names()
    assert json.loads(line)["reason"] == "c"
    assert [entry.name for entry in path.parent.iterdir()] == ["rejected.jsonl"]


def test_a_failed_write_leaves_the_old_record(tmp_path, monkeypatch):
    path = tmp_path / "rejected.jsonl"
    write_rejected(path, rejects(["a"]))
    before = path.read_bytes()

    def fail(self, file):
        file.write(b"half a li")
        raise OSError("disk full")

    monkeypatch.setattr(pl.DataFrame, "write_ndjson", fail)
    with pytest.raises(OSError, match="disk full"):
        write_rejected(path, rejects(["b"]))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["rejected.jsonl"]


def test_rows_of_a_frame_are_named_without_a_file():
    entry = {"file": "", "row": 3, "field": "chosen", "value": "", "reason": "r", "rule": "rule", "remedy": "remedy"}
    with pytest.raises(DataError, match=r"\n    row 3, chosen: "):
        raise_for(pl.DataFrame([entry], schema=REJECTS), 5)
