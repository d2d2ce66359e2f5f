"""`--check`: the first rows, one micro-batch of each stage, time and memory of the whole run, and nothing is left."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import pyprefopt
from pyprefopt.errors import ConfigError, DataError
from pyprefopt.pipeline import check
from pyprefopt.pipeline.run import RunResult
from tests.pipeline.runs import MODEL, small

ONE_STAGE: dict[str, Any] = {"method": "simpo", "base": {}, "oracle": {}, "policy_init": None}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where proofs are kept, and nothing is."""
    monkeypatch.setenv("PYPREFOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "cache"


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in [*tmp_path.iterdir(), *(tmp_path / "temporary").iterdir()])


def test_every_stage_takes_a_step_and_nothing_is_left(
    cache: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = pyprefopt.train(small(inputs, tmp_path / "run", check=True))
    told = capsys.readouterr().out.splitlines()
    assert re.match(r"check passed in .*: 96 rows read, 96 used, 0 rejected, 0 responses cut to max_tokens$", told[0])
    stages = "data, base, base_logps, oracle, oracle_logps, scores, selection, policy"
    assert told[1] == f"one micro-batch of each stage ran: {stages}"
    assert told[2] == "tokens are scored by an oracle that is trained from it, against the base that is trained"
    assert re.match(
        r"time, estimated by the step that was taken: .* \(base .*, oracle .*, policy .*, base_logps", told[3]
    )
    assert re.match(
        r"memory of one rank, estimated for 512 tokens .*MiB \(parameters .*; this machine has .* GiB", told[4]
    )
    assert left(tmp_path) == ["temporary"]
    assert os.environ["PYPREFOPT_CACHE"] == str(cache)
    assert set(result.summary["check"]["seconds"]) == {"base", "oracle", "policy", "base_logps", "oracle_logps"}


def test_a_frozen_second_copy_is_in_the_memory(
    cache: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TDPO compares whole distributions with a reference that every rank holds; with LoRA it is the model itself."""
    plain: dict[str, Any] = {"policy_init": None, "base": {}, "oracle": {}, "check": True}
    for method, more, extra in (("dpo", {}, 0), ("tdpo2", {}, 1), ("tdpo2", {"lora": {"r": 4}}, 0)):
        result = pyprefopt.train(small(inputs, tmp_path / "run", method=method, **plain, **more))
        memory = result.summary["check"]["memory"]
        assert memory.get("reference", 0) == extra * memory["parameters"]
    assert "reference" in capsys.readouterr().out


def test_a_run_that_is_there_is_left_as_it_is(cache: Path, sepo: RunResult, inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(sepo.output_dir, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    pyprefopt.train(small(inputs, run, **ONE_STAGE, check=True))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_of_much_data_the_first_rows_are_read_and_of_a_large_model_the_shape(
    cache: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pl.read_parquet(inputs / "train.parquet").drop("chosen_planted", "rejected_planted").to_dicts()
    rows = [row | {"id": "x" * 300} for row in rows]
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for _ in range(300):
            file.writelines(json.dumps(row) + "\n" for row in rows)
        file.write("broken\n")  # it is not read
    (tmp_path / "large.json").write_text(json.dumps(MODEL | {"hidden_size": 256, "num_hidden_layers": 6}))
    monkeypatch.setattr(check, "LARGEST", {"cpu": 1_000_000})
    data, model = str(tmp_path / "pairs.jsonl"), str(tmp_path / "large.json")
    result = pyprefopt.train(small(inputs, tmp_path / "run", **ONE_STAGE, data=data, model=model, check=True))
    told = capsys.readouterr().out
    read = int(re.search(r"([\d,]+) rows read", told)[1].replace(",", ""))  # type: ignore[index]
    assert 1000 <= read < 10_000
    about = int(re.search(r"data has about ([\d,]+) rows, of which the first were read", told)[1].replace(",", ""))  # type: ignore[index]
    assert about == pytest.approx(300 * len(rows), rel=0.05)
    assert re.search(
        r"that was a tiny model of the same architecture: LlamaForCausalLM has 2,\d{3},\d{3} weights", told
    )
    assert re.search(r"time, estimated by 40% of cpu's speed at large products, .* TFLOP/s: ", told)
    assert result.summary["check"]["memory"]["parameters"] > 4 * 2_000_000
    assert left(tmp_path) == ["large.json", "pairs.jsonl", "temporary"]


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"model": "./nothing"}, ConfigError, "model must exist"),
        ({"max_prompt_tokens": 8}, DataError, "prompt_overflow"),
    ],
)
def test_a_check_that_fails_leaves_nothing_either(
    settings: dict[str, Any], error: type[Exception], told: str, cache: Path, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        pyprefopt.train(small(inputs, tmp_path / "run", **ONE_STAGE, **settings, check=True))
    assert left(tmp_path) == ["temporary"]
