"""`min_response_tokens`: rows with a short response are left out and counted, before anything is cut."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

import pyprefopt
from pyprefopt import cli
from pyprefopt.data.store.segments import SegmentStore
from pyprefopt.errors import ConfigError
from pyprefopt.settings.resolve import configure
from tests.data.prepared import run, small_blocks, write_tokenizer
from tests.pipeline.runs import digest, small

PAIRS = [("three", "four!"), ("a", "longer one"), ("long enough", "no"), ("x", "y"), ("seven77", "8888888")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"say {n}", "chosen": w, "rejected": r} for n, (w, r) in enumerate(PAIRS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lengths(store: SegmentStore) -> dict[int, list[int]]:
    """Tokens that the assistant wrote in each response, by row."""
    found: dict[int, list[int]] = {}
    for line in store.table.to_pylist():
        if line["segment"] > 0:
            found.setdefault(line["row"], []).append(sum(line["mask"]))
    return found


def test_rows_are_those_of_which_all_responses_are_long_enough(
    pairs: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pyprefopt.data.files import parts

    monkeypatch.setattr(parts, "BLOCK_BYTES", parts.BLOCK_BYTES)
    monkeypatch.setattr(parts, "BLOCK_ROWS", parts.BLOCK_ROWS)
    small_blocks()
    whole = lengths(run(pairs, tokenizer, tmp_path / "whole"))
    assert len(whole) == len(PAIRS)
    for least in sorted({min(counts) for counts in whole.values()}):
        store = run(pairs, tokenizer, tmp_path / str(least), min_response_tokens=least)
        assert lengths(store) == {row: counts for row, counts in whole.items() if min(counts) >= least}
        left_out = len(whole) - store.num_rows
        assert store.manifest["rejected"] == ({"response_too_short": left_out} if left_out else {})
        if left_out:
            words = f"{left_out} of 5 rows are left out, which have a response of fewer tokens than min_response_tokens"
            assert words in caplog.text
    short = [json.loads(line) for line in (tmp_path / str(least) / "rejected.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in short} == {"response_too_short"}
    first = short[0]
    assert (first["row"], first["field"], first["value"]) == (0, "chosen", f"{whole[0][0]} tokens")
    assert f"at least {least} tokens" in first["rule"]


def test_a_cut_makes_no_response_too_short(pairs: Path, tokenizer: Path, tmp_path: Path) -> None:
    settings = {"min_response_tokens": 6, "truncation": {"tokens": 2}}
    assert set(lengths(run(pairs, tokenizer, tmp_path / "out", **settings))) == {0, 4}


@pytest.mark.parametrize(("scores", "field"), [([1.0, 2.0, 3.0], "responses[1]"), ([3.0, 2.0, 1.0], "responses[1]")])
def test_of_candidates_the_whole_set_is_left_out(
    scores: list[float], field: str, tokenizer: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "a", "responses": ["long enough", "no", "x"], "scores": scores},
        {"prompt": "b", "responses": ["long enough", "as long", "longer yet"], "scores": scores},
    ]
    path = tmp_path / "sets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = run(path, tokenizer, tmp_path / "out", min_response_tokens=6)
    assert set(lengths(store)) == {1}
    (line,) = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert (line["row"], line["field"]) == (0, field)


@pytest.mark.parametrize(
    ("value", "message"),
    [(0, "min_response_tokens must be > 0, got 0; 1 leaves out none"), ("8", "must be a whole number, got '8'")],
)
def test_the_setting_is_checked(pairs: Path, tokenizer: Path, tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(pairs, tokenizer, tmp_path / "out", min_response_tokens=value)
    with pytest.raises(ConfigError, match=r"min_response_tokens must be in 1 to max_tokens \(2048\), got 4096"):
        configure(min_response_tokens=4096, model="m", data="d")


def test_on_the_command_line(pairs: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prepare", str(pairs), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "out")]
    cli.main([*words, "--min_response_tokens", "6"])
    assert "rejected, response_too_short: 3" in capsys.readouterr().out
    assert SegmentStore.open(tmp_path / "out").num_rows == 2


def test_a_run_leaves_them_out_and_takes_a_folder_that_did(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = pl.read_parquet(inputs / "train.parquet").with_row_index()
    short = pl.when(pl.col("index") < 5).then(pl.lit("says")).otherwise("rejected")
    path = tmp_path / "pairs.parquet"
    rows.select("prompt", "chosen", rejected=short).write_parquet(path)
    alone = {"method": "simpo", "base": {}, "oracle": {}, "policy_init": None, "max_steps": 2, "min_response_tokens": 8}
    result = pyprefopt.train(small(inputs, tmp_path / "run", **alone, data=str(path)))
    facts = result.summary["stages"]["data"]
    assert facts["rows_dropped"] == {"response_too_short": facts["rows_rejected"]} == {"response_too_short": 5}
    assert f"5 of {facts['rows_in']} rows are left out, which have a response of fewer tokens" in caplog.text
    assert "left out as bad" not in caplog.text
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert reasons == ["response_too_short"] * 5
    limits = {"max_prompt_tokens": 64, "max_tokens": 128}
    for least in (8, 1):
        run(path, inputs / "tokenizer", tmp_path / f"folder-{least}", **limits, min_response_tokens=least)
    again = pyprefopt.train(small(inputs, tmp_path / "again", **alone, data=str(tmp_path / "folder-8")))
    assert digest(again.output_dir) == digest(result.output_dir)
    with pytest.raises(ConfigError, match=r"min_response_tokens must be at most 1 for the prepared data .*, got 8"):
        pyprefopt.train(small(inputs, tmp_path / "other", **alone, data=str(tmp_path / "folder-1")))
