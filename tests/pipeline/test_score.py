"""`pyprefopt score`: rewards of a file or of a prepared folder, to a table or a store."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pyprefopt.cli import main
from pyprefopt.cli.scoring.score import parse
from pyprefopt.data.preparation.job import prepare
from pyprefopt.data.store.segments import SegmentStore, ValueStore
from pyprefopt.data.tokenization.segments import load_tokenizer
from pyprefopt.pipeline.run import RunResult
from tests.stages.test_rewards import stored


@pytest.fixture
def words(inputs: Path, tmp_path: Path) -> list[str]:
    limits = ["--max_prompt_tokens", "64", "--max_tokens", "128", "--max_tokens_per_batch", "512", "--threads", "1"]
    model = ["--model", str(inputs / "config.json"), "--tokenizer", str(inputs / "tokenizer")]
    return ["--output_dir", str(tmp_path / "run"), *model, *limits]


def test_a_file_becomes_a_table_of_its_responses(inputs, sepo: RunResult, words, tmp_path, capsys):
    stages, out = sepo.output_dir / "stages", tmp_path / "rewards.parquet"
    checkpoints = [f"--{name}={stages / name / 'model'}" for name in ("base", "oracle")]
    given = ["score", str(inputs / "train.parquet"), *checkpoints, "--rewards.beta", "0.5", "--out", str(out), *words]
    assert main(given) == 0
    assert "rewards dpo; mean of a token: chosen" in capsys.readouterr().out
    frame = pl.read_parquet(out)
    store = SegmentStore.open(stages / "data" / "train")
    assert frame["kind"].to_list() == ["chosen", "rejected"] * store.num_rows
    assert (frame["rewards"].list.len() == frame["ids"].list.len()).all()
    scores = [line for line in stored(stages / "scores") if line is not None]
    for ours, theirs in zip(frame["rewards"].to_list(), scores, strict=True):
        np.testing.assert_allclose(ours, 0.5 * np.array(theirs), atol=2e-6)
    before = out.read_bytes()
    assert main(given) == 2
    assert f"{out} is there already; choose another --out, or pass --overwrite" in capsys.readouterr().err
    assert main([*given, "--overwrite"]) == 0  # from the stages
    assert out.read_bytes() == before


def test_a_prepared_folder_gets_values_of_its_own_lines(inputs, words, tmp_path):
    folder, out = tmp_path / "folder", tmp_path / "values"
    limits = {"max_prompt_tokens": 64, "max_tokens": 128}
    prepare(str(inputs / "train.parquet"), load_tokenizer(inputs / "tokenizer"), folder, **limits)
    words = [word for word in words if word not in ("--tokenizer", str(inputs / "tokenizer"))]
    assert main(["score", str(folder), "--rewards", "random", "--out", str(out), *words]) == 0
    store = SegmentStore.open(folder)
    values = ValueStore.open(out).check(store)
    flat = np.array([value for line in values.values.to_pylist() if line is not None for value in line])
    assert flat.std() == pytest.approx(1, abs=0.05)


def test_small_means_are_shown(inputs, words, tmp_path, capsys):
    frame = pl.read_parquet(inputs / "train.parquet")
    spans = pl.lit([{"start": 0, "end": 1, "weight": 5e-5}])
    frame.with_columns(spans.alias(f"{side}_rewards") for side in ("chosen", "rejected")).write_parquet(tmp_path / "p")
    (tmp_path / "p").rename(tmp_path / "p.parquet")
    given = [str(tmp_path / "p.parquet"), "--rewards", "column", "--out", str(tmp_path / "rewards.parquet")]
    assert main(["score", *given, *words]) == 0
    assert re.search(r"mean of a token: chosen \+\d\.\d+e-0\d \(sd \d\.\d+e-0\d\), rejected", capsys.readouterr().out)


@pytest.mark.parametrize(
    "given",
    [
        ["--local_rank=0", "IN", "--rewards", "random", "--out", "o.parquet"],  # what a launcher makes of it
        ["--rewards", "random", "IN", "--out=o.parquet"],
        ["--rewards", "random", "--out", "o.parquet", "--trust-remote-code", "IN"],
        ["--out", "o.parquet", "--rewards=random", "--seed", "1", "--local_rank", "0", "IN"],
    ],
)
def test_the_input_may_stand_anywhere(given):
    config, out = parse([*given, "--model", "M"])
    assert (config.data, out, config.rewards.name) == ("IN", "o.parquet", "random")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["IN", "--reward", "random", "--out", "o"],
            "unknown setting 'reward'; did you mean 'rewards'?; score takes model, tokenizer",
        ),
        (["IN"], "error: --out must be given; see pyprefopt score --help"),
        (["--rewards", "random", "--out", "o.parquet"], "error: IN must be given; see pyprefopt score --help"),
        (["IN", "--out", "o", "--learning_rate", "1"], "error: unknown setting 'learning_rate'; score takes model"),
        (
            ["IN", "--out", "o.parquet", "--rewards.bet", "1"],
            "unknown setting 'rewards.bet'; did you mean 'rewards.beta'?",
        ),
        (["IN", "--out", "values", "--rewards", "random"], "error: out must be a .parquet file, got 'values'"),
    ],
)
def test_refusals(inputs, words, capsys, given, message):
    own = [str(inputs / "train.parquet") if word == "IN" else word for word in given]
    assert main(["score", *own, *words]) == 2
    assert message in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["score", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "pyprefopt score IN --rewards NAME --out OUT" in printed
    assert " --out OUT " in printed
    assert " IN " in printed
