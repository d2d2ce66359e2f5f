"""The report on bad rows, and their record."""

from __future__ import annotations

import errno
import json
from functools import partial

import polars as pl
import pytest

from pyprefopt import data
from pyprefopt.data.reading import blocks
from pyprefopt.data.reading.frames import read_preferences, scan_preferences
from pyprefopt.data.reading.rejects import REJECTS, count_rejects, no_rejects, raise_for, write_rejected
from pyprefopt.errors import ArtifactError, ConfigError, DataError, did_you_mean, on_command_line, option
from tests.data.prepared import write_tokenizer


def rejects(reasons):
    rows = [
        ("a.jsonl", row, "chosen", 'say "x"', reason, "the rule", "the remedy") for row, reason in enumerate(reasons)
    ]
    return pl.DataFrame(rows, REJECTS, orient="row")


def test_no_bad_rows_no_error():
    raise_for(no_rejects(), 10)
    assert no_rejects().schema == REJECTS


def test_the_report_counts_by_reason_and_shows_the_first_of_each():
    frame = rejects(["empty_response"] * 2 + ["identical_pair"] * 5)
    assert list(count_rejects(frame).items()) == [("identical_pair", 5), ("empty_response", 2)]
    with pytest.raises(DataError) as caught:
        raise_for(frame, 1234, command="deepspeed scripts/train.py --data a.jsonl")
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 of 1,234 rows cannot be used"
    assert lines[1] == "  identical_pair: 5"
    assert lines[2] == r'    a.jsonl, row 2, chosen: "say \"x\"" - the rule; the remedy'
    assert lines[5:7] == ["    and 2 more", "  empty_response: 2"]
    assert lines[-1] == "  deepspeed scripts/train.py --data a.jsonl --on_error skip"


def test_without_a_command_the_report_names_the_setting():
    with pytest.raises(DataError, match=r"\(each is then recorded in rejected.jsonl\):\n  on_error='skip'$"):
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
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(pl.DataFrame, "write_ndjson", fail)
    with pytest.raises(ArtifactError, match=r"rejected.jsonl: No space left on device, .* are free; make room"):
        write_rejected(path, rejects(["b"]))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["rejected.jsonl"]


def test_rows_of_a_frame_are_named_without_a_file():
    entry = {"file": "", "row": 3, "field": "chosen", "value": "", "reason": "r", "rule": "rule", "remedy": "remedy"}
    with pytest.raises(DataError, match=r"\n    row 3, chosen: "):
        raise_for(pl.DataFrame([entry], schema=REJECTS), 5)


def test_rows_that_are_left_out_are_reported_once_and_recorded(tmp_path, caplog):
    frame = pl.DataFrame({"prompt": ["q"] * 4, "chosen": ["", "a", "b", "c"], "rejected": ["x", "", "b", "d"]})
    said = "3 of 4 rows are left out (empty_response: 2, identical_pair: 1); "
    record = tmp_path / "rejected.jsonl"
    tokenizer = data.load_tokenizer(write_tokenizer(tmp_path / "tokenizer"))
    for read in (data.read_preferences, partial(data.tokenize, tokenizer=tokenizer)):
        caplog.clear()
        read(frame, on_error="skip")
        read(frame, on_error="skip", rejected_path=record)
        assert caplog.messages == [said + "rejected_path=… records them", said + f"recorded in {record}"]
        assert pl.read_ndjson(record)["row"].to_list() == [0, 1, 2]
        record.unlink()
    segments = data.read_preferences(frame, on_error="skip")
    caplog.clear()
    longest = len(data.tokenize(segments, tokenizer)["ids"][0])
    assert data.tokenize(segments, tokenizer, on_error="skip", max_prompt_tokens=longest - 1).is_empty()
    assert caplog.messages == ["1 of 1 row is left out (prompt_too_long: 1); rejected_path=… records them"]
    assert data.tokenize_rows(segments, tokenizer, max_prompt_tokens=longest - 1).rejects.height == 1
    with pytest.raises(ConfigError, match="rejected_path must be left out for a LazyFrame"):
        data.tokenize(segments.lazy(), tokenizer, on_error="skip", rejected_path=record)


def test_settings_are_named_as_the_user_writes_them():
    with pytest.raises(DataError, match=r"drop them:\n  on_error='skip'$"):
        raise_for(rejects(["x"]), 1)
    with on_command_line(), pytest.raises(DataError, match=r"drop them:\n  --on_error skip$"):
        raise_for(rejects(["x"]), 1)
    assert option("overwrite", True) == "overwrite=True"


def test_few_of_many_different_rows_are_looked_through_for_a_name_like_the_missing_one(tmp_path, monkeypatch):
    asked = []

    def look(name, known):
        asked.append(name)
        return did_you_mean(name, known)

    monkeypatch.setattr(blocks, "did_you_mean", look)
    rows = ['{"prompt": "q", "chosen": "a", "rejected": "b"}'] * 3000
    rows += [f'{{"prompt": "q", "chosn": "a", "k{number}": 1, "rejected": "b"}}' for number in range(4000)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    rejects = scan_preferences(tmp_path / "a.jsonl").rejects
    assert rejects["row"].to_list() == list(range(3000, 7000))
    assert len(asked) == blocks.NEAR_NAMES
    hints = rejects["remedy"].str.contains("did you mean 'chosn'?", literal=True).to_list()
    assert hints == [at < blocks.NEAR_NAMES for at in range(4000)]
