"""A run on rows and a tokenizer in memory is the run on files, and its config.yaml makes it again."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
from transformers import AutoTokenizer

import pyprefopt
from tests.pipeline.runs import SMALL, digest, losses, write_inputs


def test_a_run_in_memory_is_resumed_and_made_again_by_its_config(tmp_path: Path) -> None:
    toy = write_inputs(tmp_path)
    common = {
        **SMALL, "base": {}, "oracle": {}, "policy_init": None, "method": "simpo", "max_steps": 2,
        "model": tmp_path / "config.json", "output_dir": tmp_path / "run",
    }  # fmt: skip
    held = {
        "data": pl.read_parquet(toy.train).lazy(),
        "eval_data": pl.read_parquet(toy.test).to_dicts(),
        "tokenizer": AutoTokenizer.from_pretrained(toy.tokenizer),
    }
    made = pyprefopt.train(**common, **held)
    first = digest(made.output_dir)
    again = pyprefopt.train(**common, **held)
    assert all(stage["reused"] for stage in again.summary["stages"].values())
    again = pyprefopt.train(made.output_dir / "config.yaml")
    assert all(stage["reused"] for stage in again.summary["stages"].values())
    shutil.rmtree(made.output_dir / "stages")
    shutil.rmtree(made.output_dir / "policy")
    pyprefopt.train(str(made.output_dir / "config.yaml"))
    assert digest(made.output_dir) == first
    files = {"data": toy.train, "eval_data": toy.test, "tokenizer": toy.tokenizer, "output_dir": tmp_path / "files"}
    pyprefopt.train(**common | files)
    assert digest(tmp_path / "files") == first
    assert losses(tmp_path / "files") == losses(made.output_dir)[-2:]
